"""The witness: a process that checks the endpoint and the disk, and never asks the agent.

``python -m certctrl.sandbox.witness`` reads one JSON object per line from standard input and answers in the same form:

- ``{"op": "endpoint", "host", "port", "ca_file"}``: the endpoint to check and the CAs to trust; sent once, first.
- ``{"op": "served", "id", "name", "serials", "within"}``: handshakes in a tight loop, verifying chain and name, until
  one of ``serials`` is served → ``{"id", "ok": true, "at", "saw", "tries"}``, with ``at`` on the monotonic clock, which
  all processes of a machine share; ``"ok": false`` after ``within`` seconds.
- ``{"op": "changed", …}``: until a trusted serial other than ``serials`` is served. These are all earlier serials: a
  server's old workers may briefly answer with one that was replaced long ago.
- ``{"op": "gone", …}``: until no trusted certificate is served for the name.
- ``{"op": "disk", "live": {name: path of its .live link}}``: compares key and certificate continuously from now on.
- ``{"op": "report", "id"}`` → ``{"id", "checks", "mismatches", "first"}``.
- ``{"op": "guard", "pid"}``: also ends that process when standard input ends.

Ends when standard input ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

HANDSHAKE_SECONDS = 2.0
TRY_PAUSE_SECONDS = 0.001
DISK_PAUSE_SECONDS = 0.002
NOTHING = ("", "untrusted")

# op -> whether the serial seen (first) satisfies the request, given its serials (second)
SATISFIED: Mapping[str, Callable[[str, Collection[str]], bool]] = {
    "served": lambda saw, serials: saw in serials,
    "changed": lambda saw, serials: saw not in NOTHING and saw not in serials,
    "gone": lambda saw, serials: saw in NOTHING,
}


def plain_serial(serial: str) -> str:
    """Return a serial number as lower-case hex without colons or leading zeros."""
    return serial.replace(":", "").lower().lstrip("0")


class Endpoint:
    """One TLS endpoint with many names, as a client sees it."""

    def __init__(self, host: str, port: int, ca_file: str) -> None:
        self._address = (host, port)
        self._context = ssl.create_default_context(cafile=ca_file)

    def served(self, name: str) -> str:
        """Return the serial served for a name, ``untrusted`` if verification fails, ``""`` without a handshake."""
        try:
            with socket.create_connection(self._address, timeout=HANDSHAKE_SECONDS) as plain:
                with self._context.wrap_socket(plain, server_hostname=name) as tls:
                    return plain_serial(str((tls.getpeercert() or {}).get("serialNumber", "")))
        except ssl.SSLCertVerificationError:
            return "untrusted"
        except (OSError, ssl.SSLError):
            return ""

    def wait_for(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Repeat handshakes until one satisfies the request, or its time is over."""
        serials = {plain_serial(serial) for serial in request["serials"]}
        end, tries, saw = time.monotonic() + request["within"], 0, ""
        while time.monotonic() < end:
            tries, saw = tries + 1, self.served(request["name"])
            if SATISFIED[request["op"]](saw, serials):
                return {"id": request["id"], "ok": True, "at": time.monotonic(), "tries": tries, "saw": saw}
            time.sleep(TRY_PAUSE_SECONDS)
        return {"id": request["id"], "ok": False, "tries": tries, "saw": saw}


class DiskWatch:
    """Repeatedly compares key and certificate behind each ``.live`` link."""

    def __init__(self, links: Mapping[str, str]) -> None:
        self._links = {name: Path(link) for name, link in links.items()}
        self.checks = 0
        self.mismatches = 0
        self.first = ""

    def run_forever(self) -> None:
        """Check each name in turn, with a short pause between rounds."""
        while True:
            for name, link in self._links.items():
                self.check(name, link)
            time.sleep(DISK_PAUSE_SECONDS)

    def check(self, name: str, link: Path) -> None:
        """Load one generation; its link is read once, so a concurrent switch cannot mix two."""
        with contextlib.suppress(FileNotFoundError):  # not deployed yet, or withdrawn
            target = os.readlink(link)
            why = self.problem(link.parent / target)
            if why == "gone" and os.readlink(link) != target:
                return  # removed after we read the link; the next round sees the new generation
            self.checks += 1
            if why:
                self.mismatches += 1
                self.first = self.first or f"{name}: {why}"

    def problem(self, generation: Path) -> str:
        """Return why a directory's certificate and key cannot be used; ``""`` if they can."""
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(generation / "fullchain.pem", generation / "private.key")
        except FileNotFoundError:
            return "gone"
        except (OSError, ssl.SSLError) as error:
            return str(error)
        return ""


def main() -> int:
    """Answer until standard input ends; each request has a thread, so that names do not delay each other."""
    writing = threading.Lock()
    endpoint: Endpoint | None = None
    disk = DiskWatch({})
    guarded: list[int] = []

    def reply(answer: Mapping[str, Any]) -> None:
        with writing:
            print(json.dumps(answer), flush=True)

    def answer(endpoint: Endpoint, request: Mapping[str, Any]) -> None:
        reply(endpoint.wait_for(request))

    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "endpoint":
            endpoint = Endpoint(request["host"], request["port"], request["ca_file"])
        elif request["op"] == "disk":
            disk = DiskWatch(request["live"])
            threading.Thread(target=disk.run_forever, daemon=True).start()
        elif request["op"] == "guard":
            guarded.append(request["pid"])
        elif request["op"] == "report":
            reply({"id": request["id"], "checks": disk.checks, "mismatches": disk.mismatches, "first": disk.first})
        elif endpoint is not None:
            threading.Thread(target=answer, args=(endpoint, request), daemon=True).start()
    for pid in guarded:
        with contextlib.suppress(ProcessLookupError):  # usual: the sandbox has stopped it
            os.kill(pid, signal.SIGTERM)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
