"""Lists: requests and bytes of a comparison of a host with a thousand certificates, with the served control plane.

The same requests as the agent's, by hand on one kept connection, so that each byte is counted: without TLS, with
headers.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio
from fleet_rig import PATIENCE, Fleet, Server, served_plane
from measure import row
from nacl.public import PrivateKey

from certctrl.plane.core import Plane
from certctrl.plane.devices.devices import FIRST_USER, DeviceFacts
from certctrl.plane.settings import DAY, PlaneSettings

MOST_REQUESTS, MAX_BYTES = 3, 20 * 1024
SELF = "/apiv1/devices/self"


def measure(work: Path, *, count: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a host with ``count`` certificates."""
    fleet = _made(work / "plane", count)
    with served_plane(fleet) as server:
        host = Host(server, fleet.tokens.read_text())
        host.compare()
        yield row(f"the first comparison of {count} certificates, bytes", host.bytes, digits=0, note=host.said)
        host.compare()
        yield row("a comparison in step, requests", host.requests, must=MOST_REQUESTS, digits=0)
        yield row("a comparison in step, bytes", host.bytes, must=MAX_BYTES, digits=0, note=host.said)
        operator = server.operator()
        operator.call("POST", f"/apiv1/users/{FIRST_USER}/certificates/{fleet.cert_id}/issues", {"action": "renew"})
        operator.close()
        host.compare()
        yield row("a comparison after one renewal, bytes", host.bytes, must=MAX_BYTES, digits=0, note=host.said)
        host.close()


def _made(data: Path, count: int) -> Fleet:
    with Plane.open(data, settings=PlaneSettings(access_token_seconds=DAY)) as plane:
        with plane.database.transaction():
            facts = DeviceFacts(device_public_id="bench-lists", name="host")
            device = plane.devices.add(FIRST_USER, facts)
            plane.devices.activate(device, facts, bytes(PrivateKey.generate().public_key))
            token = plane.sessions.start(device)["access_token"]

        async def issue() -> int:
            made = [
                await plane.certificates.issue(FIRST_USER, [f"h{number:04}.bench.test"], device_ids=[device])
                for number in range(count)
            ]
            return int(made[0]["id"])

        cert_id = trio.run(issue)
    (data.parent / "token").write_text(token)
    return Fleet(data, data.parent / "token", [device], cert_id)


class Host:
    """A device that compares itself with the plane, and what its last comparison cost."""

    def __init__(self, server: Server, token: str) -> None:
        context = ssl.create_default_context(cafile=str(server.ca))
        context.check_hostname = False
        plain = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
        self._stream = context.wrap_socket(plain, server_hostname="127.0.0.1")
        self._answers = self._stream.makefile("rb")
        self._head = (
            f"Host: 127.0.0.1:{server.port}\r\nAuthorization: Bearer {token}\r\nUser-Agent: cert-ctrl/0.1.0\r\n"
        )
        self._head += "Accept: application/json\r\nAccept-Encoding: identity\r\nConnection: keep-alive\r\n"
        self._config, self._revision = "", ""
        self.requests = self.sent = self.received = 0

    @property
    def bytes(self) -> int:
        """The bytes of requests and answers."""
        return self.sent + self.received

    @property
    def said(self) -> str:
        """The bytes by direction."""
        return f"{self.requests} requests; {self.sent} sent, {self.received} received"

    def compare(self) -> None:
        """Fetch install config, list and CAs, as far as they have changed."""
        self.requests = self.sent = self.received = 0
        self._config = self._ask(f"{SELF}/install-config", self._config)[0] or self._config
        after, since = 0, self._revision
        while True:
            query = f"after_id={after}&limit=500&updated_since={since}"
            etag, data = self._ask(f"{SELF}/certificates?{query}", since)
            self._revision = etag or since
            if len(data) < 500:
                break
            after, since = max(one["id"] for one in data), ""
        self._ask(f"{SELF}/cas", "")

    def _ask(self, path: str, etag: str) -> tuple[str, list[Any]]:
        """Return the ETag of the answer and its data, empty after a 304."""
        condition = f'If-None-Match: "{etag}"\r\n' if etag else ""
        request = f"GET {path} HTTP/1.1\r\n{self._head}{condition}\r\n".encode()
        self._stream.sendall(request)
        head = [self._answers.readline()]
        while head[-1] != b"\r\n":
            head.append(self._answers.readline())
        fields = [line.decode().partition(":") for line in head[1:-1]]
        headers = {name.lower(): value.strip() for name, _, value in fields}
        body = self._answers.read(int(headers.get("content-length", "0")))
        status = int(head[0].split()[1])
        if status not in (200, 304):
            raise SystemExit(f"bench: {path}: {status} {body[:200]!r}")
        self.requests += 1
        self.sent += len(request)
        self.received += sum(map(len, head)) + len(body)
        data = json.loads(body)["data"] if status == 200 else []
        return headers.get("etag", "").strip('"'), data if isinstance(data, list) else []

    def close(self) -> None:
        """Close the connection."""
        self._answers.close()
        self._stream.close()
