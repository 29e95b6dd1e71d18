"""Sockets that ``plane serve`` listens on: its own, those of a service manager, or shared with another process."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from certctrl import lean
from certctrl.cli.plane.plain_http import listen_without_tls
from certctrl.errors import UsageError

TAKE_OVER_SECONDS = 60.0
"""Seconds that a control plane waits for the one before it to leave the data directory."""

ReusePort = Annotated[
    bool,
    typer.Option(
        "--reuse-port",
        help="Share the port with another process of the same user, to restart without refusing connections: start a "
        "second one, which logs that it waits for the data directory, then stop the first one with SIGTERM.",
    ),
]


@lean.frozen(kw_only=True)
class Sockets:
    """The listening sockets."""

    host: str
    port: int
    https: socket.socket | None
    """None: the control plane opens it."""
    http: socket.socket | None
    """For requests without TLS; None: off."""
    stays_open: bool = False
    """Whether the service manager keeps them open."""
    shares: bool = False
    """Whether other processes may have the same ports."""

    def options(self) -> dict[str, Any]:
        """Return the options of ``serve_plane``."""
        from certctrl.plane.http.shared_port import HandOver

        hand_over = HandOver(stays_open=self.stays_open, wait_seconds=TAKE_OVER_SECONDS if self.shares else 0.0)
        given = {"host": self.host, "port": self.port, "listening": self.https, "without_tls": self.http}
        return given | {"hand_over": hand_over}


def open_sockets(host: str, port: int, http: str, share: bool, environ: Mapping[str, str]) -> Sockets:
    """Return the sockets for an address and for ``--http``; those of a service manager come first.

    Raises UsageError, ConfigError and TransportError.
    """
    from certctrl.plane.http.server import listen
    from certctrl.plane.http.shared_port import inherited_sockets

    https, plain = inherited_sockets(environ)
    if https is None:
        if plain is not None:
            plain.close()
            fix = "remove FileDescriptorName=http, or add a socket without it"
            raise UsageError("the service manager passed a socket without TLS only", fix=fix)
        plain = listen_without_tls(http, share=share)
        https = listen(host, port, share=True) if share else None
        return Sockets(host=host, port=port, https=https, http=plain, shares=share)
    for option, given in (("--reuse-port", share), ("--http", bool(http and plain is None))):
        if given:
            https.close()
            raise UsageError(f"{option} does not go with sockets of a service manager", fix=f"remove {option}")
    host, port = https.getsockname()[:2]
    return Sockets(host=host, port=port, https=https, http=plain, stays_open=True)
