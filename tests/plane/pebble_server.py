"""A real Pebble: an ACME CA for tests, on free ports, with a TLS certificate that the test makes."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import trustme

START_SECONDS = 30.0
EAB_KEYS = {
    "kid-1": "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W",
    "kid-2": "b10lLJs8l1GPIzsLP0s6pMt8O0XVGnfTaCeROxQM0BIt2XrJMDHJZBM5NuQmQJQH",
}


@attrs.frozen
class Pebble:
    """One server."""

    directory_url: str
    ca_file: Path
    """CA of its web server."""
    management: str
    process: subprocess.Popen[bytes]

    def get(self, path: str) -> str:
        """Return an answer of its management interface, such as ``/roots/0``."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        with urllib.request.urlopen(self.management + path, context=context, timeout=10) as answer:
            return str(answer.read().decode())


def free_port() -> int:
    """Return a TCP port of the loopback address that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def pebble_server(
    need: Callable[[str], str],
    root: Path,
    *,
    environment: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    options: Sequence[str] = (),
) -> Iterator[Pebble]:
    """Run Pebble in the block; ``environment``, ``config`` and ``options`` are Pebble's own."""
    program = need("pebble")
    root.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(root / "ca.pem"))
    issued = authority.issue_cert("127.0.0.1", "localhost")
    issued.private_key_pem.write_to_path(str(root / "key.pem"))
    for index, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(str(root / "cert.pem"), append=index > 0)
    port, management = free_port(), free_port()
    settings = {
        "listenAddress": f"127.0.0.1:{port}",
        "managementListenAddress": f"127.0.0.1:{management}",
        "certificate": str(root / "cert.pem"),
        "privateKey": str(root / "key.pem"),
        "httpPort": 5002,
        "tlsPort": 5001,
        "ocspResponderURL": "",
        "externalAccountBindingRequired": False,
    }
    (root / "pebble.json").write_text(json.dumps({"pebble": settings | dict(config or {})}))
    given = {"PATH": os.environ["PATH"], "PEBBLE_VA_NOSLEEP": "1"} | dict(environment or {})
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "-config", str(root / "pebble.json"), *options],
            env=given,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    pebble = Pebble(f"https://127.0.0.1:{port}/dir", root / "ca.pem", f"https://127.0.0.1:{management}", process)
    try:
        _wait(pebble, root / "log")
        yield pebble
    finally:
        process.terminate()
        process.wait()


def _wait(pebble: Pebble, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            pebble.get("/roots/0")
            return
        except OSError:
            assert pebble.process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
