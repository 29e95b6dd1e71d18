"""A server between host and control plane that presents certificates of another CA and records what it receives."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import trustme

from certctrl.sandbox.servers import HOST

SECONDS = 20


class Middleman:
    """Answers each connection with the same bytes, over TLS with its own certificate."""

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_OPTIONAL  # it would learn of a client certificate
        self.ca.configure_trust(context)
        self.ca.issue_cert(HOST).configure_cert(context)
        self.pem = folder / "middleman.pem"
        self.ca.cert_pem.write_to_path(str(self.pem))
        self.answer_with(self.pem.read_bytes())
        self.received: list[bytes] = []
        self._context, self._listener = context, socket.create_server((HOST, 0))
        self.url = f"https://{HOST}:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def answer_with(self, body: bytes, *, status: int = 200, headers: str = "") -> None:
        """Set the answer."""
        head = f"HTTP/1.1 {status} Word\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        self.answer = head.encode() + body

    def _serve(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            raw.settimeout(SECONDS)
            with contextlib.suppress(OSError), self._context.wrap_socket(raw, server_side=True) as stream:
                received = b""
                while b"\r\n\r\n" not in received and (part := stream.recv(65_536)):
                    received += part
                stream.sendall(self.answer)
                while part := stream.recv(65_536):
                    received += part
                self.received.append(received)

    def close(self) -> None:
        """End it."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(SECONDS)


@contextlib.contextmanager
def middleman(folder: Path) -> Iterator[Middleman]:
    """Run a `Middleman`."""
    made = Middleman(folder)
    try:
        yield made
    finally:
        made.close()
