"""A DNS server for Pebble, of which every name has an address of this host; it comes with Pebble."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence

import attrs
from pebble_server import free_port

START_SECONDS = 30.0


@attrs.frozen
class ChallengeDns:
    """One server."""

    address: str
    """HOST:PORT."""
    management: str

    def set_addresses(self, name: str, addresses: Sequence[str]) -> None:
        """Give a name these IPv4 addresses instead."""
        self._post("/add-a", {"host": name, "addresses": list(addresses)})

    def _post(self, path: str, body: Mapping[str, object]) -> None:
        request = urllib.request.Request(self.management + path, json.dumps(body).encode(), method="POST")
        urllib.request.urlopen(request, timeout=10).close()


@contextlib.contextmanager
def challenge_dns(need: Callable[[str], str]) -> Iterator[ChallengeDns]:
    """Run the server in the block."""
    port, management = free_port(), free_port()
    argv = [
        need("pebble-challtestsrv"), "-dns01", f"127.0.0.1:{port}", "-management", f"127.0.0.1:{management}",
        "-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", "", "-defaultIPv4", "127.0.0.1", "-defaultIPv6", "",
    ]  # fmt: skip
    if "-doh" not in subprocess.run([argv[0], "-help"], capture_output=True, text=True, check=False).stderr:
        del argv[argv.index("-doh") : argv.index("-doh") + 2]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        _wait(process, management)
        yield ChallengeDns(f"127.0.0.1:{port}", f"http://127.0.0.1:{management}")
    finally:
        process.terminate()
        process.wait()


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=10).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, "the DNS server of Pebble does not start"
            time.sleep(0.02)
