"""The witness: a process of its own that never asks the agent, only looks at the endpoint and at the disk.

``python -m certctrl.sandbox.witness`` reads one JSON object per line from standard input and answers likewise:

- ``{"op": "endpoint", "host", "port", "ca_file"}`` says where to look and whom to trust, once, first.
- ``{"op": "served", "id", "name", "serials", "within"}``: handshakes in a tight loop, as a client that checks chain and
  name would, until one of ``serials`` is served → ``{"id", "ok": true, "at", "saw", "tries"}``, ``at`` on the monotonic
  clock, which all processes of a machine share; ``"ok": false`` after ``within`` seconds.
- ``{"op": "changed", …}``: until a trusted serial is served that is none of ``serials``: all that were issued before,
  for a server's old workers may answer for a moment with one that was replaced long ago.
- ``{"op": "gone", …}``: until nothing trusted is served for the name.
- ``{"op": "disk", "live": {name: path of its .live link}}``: compares key and certificate from now on, without end.
- ``{"op": "report", "id"}`` → ``{"id", "checks", "mismatches", "first"}``.
- ``{"op": "guard", "pid"}``: end that process, too, when standard input ends.

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

# op -> whether what was seen (first) is what was asked for, given the serials of the question (second)
SEEN: Mapping[str, Callable[[str, Collection[str]], bool]] = {
    "served": lambda saw, serials: saw in serials,
    "changed": lambda saw, serials: saw not in NOTHING and saw not in serials,
    "gone": lambda saw, serials: saw in NOTHING,
}


def plain_serial(serial: str) -> str:
    """Return a serial number as lower-case hex without colons and leading zeros, however it was written."""
    return serial.replace(":", "").lower().lstrip("0")


class Endpoint:
    """One TLS endpoint with many names, seen as a client sees it."""

    def __init__(self, host: str, port: int, ca_file: str) -> None:
        self._address = (host, port)
        self._context = ssl.create_default_context(cafile=ca_file)

    def served(self, name: str) -> str:
        """Return the serial served for a name, ``untrusted`` for one that no client would take, ``""`` for none."""
        try:
            with socket.create_connection(self._address, timeout=HANDSHAKE_SECONDS) as plain:
                with self._context.wrap_socket(plain, server_hostname=name) as tls:
                    return plain_serial(str((tls.getpeercert() or {}).get("serialNumber", "")))
        except ssl.SSLCertVerificationError:
            return "untrusted"
        except (OSError, ssl.SSLError):
            return ""

    def watch(self, ask: Mapping[str, Any]) -> dict[str, Any]:
        """Look until what is asked for is seen."""
        serials = {plain_serial(serial) for serial in ask["serials"]}
        end, tries, saw = time.monotonic() + ask["within"], 0, ""
        while time.monotonic() < end:
            tries, saw = tries + 1, self.served(ask["name"])
            if SEEN[ask["op"]](saw, serials):
                return {"id": ask["id"], "ok": True, "at": time.monotonic(), "tries": tries, "saw": saw}
            time.sleep(TRY_PAUSE_SECONDS)
        return {"id": ask["id"], "ok": False, "tries": tries, "saw": saw}


class DiskWatch:
    """Compares the pair behind each ``.live`` link, over and over."""

    def __init__(self, links: Mapping[str, str]) -> None:
        self._links = {name: Path(link) for name, link in links.items()}
        self.checks = 0
        self.mismatches = 0
        self.first = ""

    def run_forever(self) -> None:
        """Check every name in turn, with a short pause; a thread's life."""
        while True:
            for name, link in self._links.items():
                self.check(name, link)
            time.sleep(DISK_PAUSE_SECONDS)

    def check(self, name: str, link: Path) -> None:
        """Load the pair of one generation: the link is read once, so a switch in between cannot mix two."""
        with contextlib.suppress(FileNotFoundError):  # not deployed yet, or withdrawn
            target = os.readlink(link)
            why = self.why_not(link.parent / target)
            if why == "gone" and os.readlink(link) != target:
                return  # pruned after we read the link: the next round sees the newer one
            self.checks += 1
            if why:
                self.mismatches += 1
                self.first = self.first or f"{name}: {why}"

    def why_not(self, generation: Path) -> str:
        """Return why the pair of a directory cannot be used, or ``""``."""
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(generation / "fullchain.pem", generation / "private.key")
        except FileNotFoundError:
            return "gone"
        except (OSError, ssl.SSLError) as error:
            return str(error)
        return ""


def main() -> int:
    """Answer until standard input ends; each question has a thread, so that one name never delays another."""
    speaking = threading.Lock()
    endpoint: Endpoint | None = None
    disk = DiskWatch({})
    guarded: list[int] = []

    def reply(answer: Mapping[str, Any]) -> None:
        with speaking:
            print(json.dumps(answer), flush=True)

    for line in sys.stdin:
        ask = json.loads(line)
        if ask["op"] == "endpoint":
            endpoint = Endpoint(ask["host"], ask["port"], ask["ca_file"])
        elif ask["op"] == "disk":
            disk = DiskWatch(ask["live"])
            threading.Thread(target=disk.run_forever, daemon=True).start()
        elif ask["op"] == "guard":
            guarded.append(ask["pid"])
        elif ask["op"] == "report":
            reply({"id": ask["id"], "checks": disk.checks, "mismatches": disk.mismatches, "first": disk.first})
        elif endpoint is not None:
            look = endpoint.watch
            threading.Thread(target=lambda ask=ask, look=look: reply(look(ask)), daemon=True).start()
    for pid in guarded:
        with contextlib.suppress(ProcessLookupError):  # the rule: the sandbox has stopped it in order
            os.kill(pid, signal.SIGTERM)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
