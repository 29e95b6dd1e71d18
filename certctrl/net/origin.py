"""Origin: the scheme, host and port that credentials may be sent to."""

from __future__ import annotations

from urllib.parse import urlsplit

from certctrl import lean
from certctrl.errors import ConfigError
from certctrl.model.config import is_loopback

_FIX = 'set "server_url": "https://HOST[:PORT]" in application.json'


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
        raise _refuse("is empty: no control plane is configured")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _refuse("is not a URL") from None
    host = (parts.hostname or "").lower()
    if parts.scheme not in ("https", "http") or not host or port == 0 or any(c.isspace() for c in host):
        raise _refuse("is not an https URL")
    if parts.username is not None or parts.password is not None:
        raise _refuse("contains a user or password; the device authenticates with tokens")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise _refuse("contains more than scheme, host and port")
    if parts.scheme == "http":
        if not is_loopback(host):
            raise _refuse("is plain http; credentials are sent over https only")
        if not allow_http_loopback:
            raise _refuse("is plain http", 'use https; for tests, set "allow_http_loopback": true')
        return Origin("http", host, port or 80)
    return Origin("https", host, port or 443)


def _refuse(why: str, fix: str = _FIX) -> ConfigError:
    return ConfigError(why, file="application.json", path="server_url", fix=fix)


def parse_proxy(url: str) -> Origin | None:
    """Return the origin of the configured proxy, without its user; None if there is none."""
    if not url:
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
        raise ConfigError(
            "is not the URL of a CONNECT proxy",
            file="httpclient_config.json",
            path="proxy",
            fix='write "http://[USER:PASSWORD@]HOST:PORT", or "" for none',
        )
    return Origin(parts.scheme, parts.hostname.lower(), port or (443 if parts.scheme == "https" else 80))
