"""Options of ``plane serve``: the listener without TLS, and the URL of revocation lists."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Annotated
from urllib.parse import urlsplit

import typer

from certctrl.cli.plane.addresses import parse_listen
from certctrl.errors import UsageError

HttpListen = Annotated[
    str,
    typer.Option(
        "--http",
        metavar="HOST:PORT",
        help="Serve here without TLS: revocation lists of the built-in CA, and http-01 answers of plane-http; default: "
        "off.",
    ),
]
CrlUrl = Annotated[
    str,
    typer.Option(
        "--crl-url",
        metavar="URL|off",
        help="Where clients find the revocation lists of the built-in CA; certificates contain it. Default: the path /crl "
        "of --http with the first --hostname, or of --public-url. off: certificates contain no URL.",
    ),
]
OFF = "off"


def listen_without_tls(text: str, *, share: bool = False) -> socket.socket | None:
    """Return the socket of ``--http``; None: off. ``share``: as for ``listen``. Raises UsageError and TransportError."""
    if not text:
        return None
    from certctrl.plane.http.server import listen

    host, port = parse_listen(text, "--http")
    return listen(host, port, "--http", share=share)


def check_crl_url(url: str) -> None:
    """Raise UsageError for a URL that clients cannot fetch."""
    if not url or url == OFF:
        return
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        usable = usable and not parts.query and not parts.fragment
    except ValueError:
        usable = False
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        fix = "use for example --crl-url http://plane.example.com/crl, or off"
        raise UsageError(f"--crl-url {url!r} is not an http or https URL", fix=fix)


def crl_url(given: str, plain: socket.socket | None, hostnames: Sequence[str], public_url: str) -> str:
    """Return where clients find revocation lists, up to the name of one; empty: nowhere."""
    if given:
        return "" if given == OFF else given.rstrip("/")
    if plain is not None and hostnames and not hostnames[0].startswith("*"):
        port = plain.getsockname()[1]
        host = f"[{hostnames[0]}]" if ":" in hostnames[0] else hostnames[0]
        return f"http://{host}{'' if port == 80 else f':{port}'}/crl"
    return f"{public_url.rstrip('/')}/crl" if public_url else ""
