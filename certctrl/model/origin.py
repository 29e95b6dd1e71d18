"""Origin: the scheme, host and port that credentials may be sent to."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

from certctrl import lean
from certctrl.errors import ConfigError
from certctrl.model.config import is_loopback

_FIX = "write https://HOST[:PORT]"
_WITHOUT = "expected scheme, host and port, without"


@lean.frozen
class Origin:
    """Scheme, host and port."""

    scheme: str
    host: str
    """Without brackets, lower-case."""
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return f"{self.scheme}://{host}" + ("" if self.port == default else f":{self.port}")

    @property
    def place(self) -> str:
        """The form ``host:port``, for messages."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_origin(url: str, *, allow_http_loopback: bool = False) -> Origin:
    """Return the origin of a server URL; raises ConfigError if credentials must not be sent to it.

    The URL is https, or http for a loopback host if the configuration allows it, without path, query and user.
    """
    if not url:
        raise _refuse("is not set", "set it to the control plane's URL, such as https://plane.example.com")
    parts, port = _parsed(url)
    host = (parts.hostname or "").lower()
    if parts.scheme not in ("https", "http") or not host or port == 0 or any(c.isspace() for c in host):
        raise _refuse("expected an https URL with a host name")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise _refuse(f"{_WITHOUT} credentials or query")
    if parts.path not in ("", "/"):
        raise _refuse(f"{_WITHOUT} a path")
    if parts.scheme == "http":
        if not is_loopback(host):
            raise _refuse("expected https; plain http is for loopback hosts only")
        if not allow_http_loopback:
            raise _refuse("plain http needs allow_http_loopback", "use https, or for tests set it to true")
        return Origin("http", host, port or 80)
    return Origin("https", host, port or 443)


def _refuse(why: str, fix: str = _FIX) -> ConfigError:
    return ConfigError(why, file="application.json", path="server_url", fix=fix)


def parse_proxy(url: str) -> Origin | None:
    """Return the origin of the configured proxy, without its user; None if there is none."""
    if not url:
        return None
    parts, port = _parsed(url)
    if parts.scheme != "http" or not parts.hostname or port == 0 or parts.path not in ("", "/"):
        raise ConfigError(
            "expected the http:// URL of a CONNECT proxy",
            file="httpclient_config.json",
            path="proxy",
            fix='write "http://[USER:PASSWORD@]HOST:PORT", or "" for none',
        )
    return Origin(parts.scheme, parts.hostname.lower(), port or 80)


def _parsed(url: str) -> tuple[SplitResult, int | None]:
    """Return the parts of a URL and its port; empty parts and no port if it is not a URL."""
    try:
        parts = urlsplit(url)
        return parts, parts.port
    except ValueError:
        return urlsplit(""), None
