"""Origin: the scheme, host and port that credentials may be sent to."""

from __future__ import annotations

from urllib.parse import SplitResult, unquote, urlsplit

from certctrl import lean
from certctrl.errors import ConfigError
from certctrl.model.config import is_loopback
from certctrl.text import ascii_name

_FIX = "write https://HOST[:PORT]"
_WITHOUT = "expected scheme, host and port, without"


@lean.frozen
class Origin:
    """Scheme, host and port."""

    scheme: str
    host: str
    """Without brackets, lower-case; international names as ``xn--``."""
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}"

    @property
    def netloc(self) -> str:
        """The host, with the port if it is not the scheme's own: as in a URL and in the header ``Host``."""
        if self.port != (443 if self.scheme == "https" else 80):
            return self.place
        return f"[{self.host}]" if ":" in self.host else self.host

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
    parts, host, port = _parsed(url)
    if parts.scheme not in ("https", "http") or not host or port == 0:
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
    parts, host, port = _parsed(url)
    if parts.scheme != "http" or not host or port == 0 or parts.path not in ("", "/"):
        raise ConfigError(
            "expected the http:// URL of a CONNECT proxy",
            file="httpclient_config.json",
            path="proxy",
            fix='write "http://[USER:PASSWORD@]HOST:PORT", or "" for none',
        )
    return Origin(parts.scheme, host, port or 80)


def proxy_login(url: str) -> tuple[str, str] | None:
    """Return user and password of the configured proxy; None if it needs none."""
    parts = urlsplit(url)
    if not parts.username and not parts.password:
        return None
    return unquote(parts.username or ""), unquote(parts.password or "")


def _parsed(url: str) -> tuple[SplitResult, str, int | None]:
    """Return the parts of a URL, its host and its port; the host is empty if there is none that could be connected to."""
    try:
        parts = urlsplit(url)
        host, port = ascii_name((parts.hostname or "").lower()), parts.port
    except ValueError:
        return urlsplit(""), "", None
    return parts, host if host.isascii() and host.isprintable() and " " not in host else "", port
