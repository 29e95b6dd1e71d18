"""The one origin this agent talks to (safety.md T7, T8)."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

import attrs

from certctrl.errors import ConfigError

_FIX = 'set "server_url": "https://HOST[:PORT]" in application.json'


@attrs.frozen
class Origin:
    """Scheme, host and port: where credentials may go, and nowhere else."""

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
        """Return ``host:port`` for a message."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Return True for hosts that never leave this machine."""
    if host.rstrip(".") == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def parse_origin(url: str, *, allow_http_loopback: bool = False) -> Origin:
    """Return the origin of a server URL; ConfigError when it is none we may send credentials to.

    https only; plain http for loopback hosts when the configuration allows it. No path, query or user part.
    """
    if not url:
        raise _refuse("is empty: this host does not know its control plane")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _refuse("is not a URL") from None
    host = (parts.hostname or "").lower()
    if parts.scheme not in ("https", "http") or not host or port == 0 or any(c.isspace() for c in host):
        raise _refuse("is not an https URL")
    if parts.username is not None or parts.password is not None:
        raise _refuse("holds a user or password; the device authenticates by its tokens")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise _refuse("holds more than scheme, host and port")
    if parts.scheme == "http":
        if not is_loopback(host):
            raise _refuse("is plain http; credentials go over https only")
        if not allow_http_loopback:
            raise _refuse("is plain http", 'use https, or for tests set "allow_http_loopback": true')
        return Origin("http", host, port or 80)
    return Origin("https", host, port or 443)


def _refuse(why: str, fix: str = _FIX) -> ConfigError:
    return ConfigError(why, file="application.json", path="server_url", fix=fix)


def parse_proxy(url: str) -> Origin | None:
    """Return where the configured proxy listens, without its user part; None when there is none."""
    if not url:
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
        raise ConfigError(
            "is not the http:// URL of a CONNECT proxy",
            file="httpclient_config.json",
            path="proxy",
            fix='write "http://[USER:PASSWORD@]HOST:PORT", or "" for none',
        )
    return Origin(parts.scheme, parts.hostname.lower(), port or (443 if parts.scheme == "https" else 80))
