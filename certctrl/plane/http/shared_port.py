"""Hand over an address from one process to the next: sockets of a service manager, and shared ports.

A process that ends resets the connections that wait in its queue. So none may wait there: either the queue belongs to a
socket that another process keeps open, or new connections already go to the next process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Mapping

from certctrl import lean
from certctrl.errors import ConfigError

FIRST_FD = 3
"""The first socket of a service manager (sd_listen_fds(3))."""
PLAIN = "http"
"""The name of the socket for requests without TLS (``FileDescriptorName=``)."""
_SO_ATTACH_REUSEPORT_CBPF = 51
_SECOND_SOCKET = struct.pack("=HBBI", 0x06, 0, 0, 1)
"""A packet filter of one instruction, ``return 1``. The process that is about to end has socket 0; once it has closed
that, there is no socket 1, and the kernel chooses."""


@lean.frozen(kw_only=True)
class HandOver:
    """How a control plane shares its address with the previous and the next process."""

    stays_open: bool = False
    """Whether another process keeps the sockets open."""
    wait_seconds: float = 0.0
    """Seconds to wait until the previous process has left the data directory."""


def take_over(sock: socket.socket) -> None:
    """Direct new connections to the newer of two sockets that share a port.

    Without that (another system, a third process) the kernel spreads them, and the few that complete their handshake
    while the older one closes are lost.
    """
    program = ctypes.create_string_buffer(_SECOND_SOCKET)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, struct.pack("HP", 1, ctypes.addressof(program)))


def inherited_sockets(environ: Mapping[str, str]) -> tuple[socket.socket | None, socket.socket | None]:
    """Return the listening sockets for HTTPS and HTTP that a service manager passed; None: none.

    Raises ConfigError if they are not listening TCP sockets, or more than one of each.
    """
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return None, None
    count = environ.get("LISTEN_FDS", "")
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    found: dict[bool, socket.socket] = {}
    with contextlib.ExitStack() as opened:
        for number in range(int(count) if count.isascii() and count.isdigit() and len(count) < 4 else 0):
            plain = names[number : number + 1] == [PLAIN]
            if plain in found:
                fix = f"use one ListenStream, and another with FileDescriptorName={PLAIN} for requests without TLS"
                raise ConfigError("the service manager passed too many sockets", fix=fix)
            found[plain] = opened.enter_context(_listening(FIRST_FD + number))
        opened.pop_all()
    return found.get(False), found.get(True)


def _listening(fd: int) -> socket.socket:
    """Return an inherited descriptor as a socket that no child process inherits; raises ConfigError."""
    fix = "use ListenStream=PORT, and Accept=no"
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ConfigError(f"the service manager's socket {fd}: {error.strerror or error}", fix=fix) from None
    if not listens or sock.family not in (socket.AF_INET, socket.AF_INET6):
        sock.detach()
        raise ConfigError(f"the service manager's socket {fd} is not a listening TCP socket", fix=fix)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock
