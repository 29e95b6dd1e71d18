"""A minimal control plane for agents: it answers from memory over TLS, so that its own cost is small.

``python tiny_plane.py DIRECTORY`` serves the material of `material.py`. It prints its port, then executes one JSON
object per line of standard input and answers each with one line. Times are on the monotonic clock, which all
processes of a machine share:

- ``{"op": "publish", "ids": […], "version": V}``: from now on these certificates have version V, and one
  ``cert.renewed`` each → ``{"at"}``.
- ``{"op": "config", "items": […]}``: the install config, and ``install.updated`` → ``{"at"}``.
- ``{"op": "revoke", "id": N}``: the certificate is revoked, and ``cert.revoked`` → ``{"at"}``.
- ``{"op": "signal", "type": T, "ref": R}``: one signal.
- ``{"op": "answer", "answers": [{"path": P, "file": F, "times": N}]}``: requests whose path ends in P get the bytes of
  F as the whole answer, N times; in it, ``@N@`` is a number that grows and ``@LENGTH@`` the length of the body,
  ``@ACCEPT@`` what opens a WebSocket. An answer that switches protocols continues with the body, as frames, after the
  first bytes of the client.
- ``{"op": "stat"}`` → counters: parked long-polls, connections, polls, acks, when the last ack came, fetches, answers
  that were replaced, bytes of requests received and of answers sent (without TLS).

The same server, and the same bytes, serve the product and the floors. Ends when standard input ends.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import ssl
import sys
import time
from pathlib import Path
from typing import Any

UPDATES = "/apiv1/devices/self/updates"
CERTIFICATES = "/apiv1/devices/self/certificates"
NOTIFY = "/apiv1/devices/self/notify"
BATCH = "/apiv1/devices/self/deploy-materials"
ITEM_KEY = "installs"
SWITCHES = b"HTTP/1.1 101"
SWITCHED_SECONDS = 5.0
NOT_FOUND = b'{"error": {"code": 404, "what": "nothing here"}}'
REASONS = {200: "OK", 204: "No Content", 304: "Not Modified", 404: "Not Found"}


class Plane:
    """The state of the server."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        made = json.loads((directory / "names.json").read_text())
        self.names: dict[int, str] = {int(key): value for key, value in made["names"].items()}
        self.version = dict.fromkeys(self.names, 1)
        self.bodies: dict[tuple[int, int], tuple[bytes, dict[str, Any]]] = {}
        self.revoked: set[int] = set()
        self.signals: list[dict[str, Any]] = []
        self.fresh = asyncio.Event()
        self.config: dict[str, Any] | None = None
        self.counts = {"waiting": 0, "connections": 0, "polls": 0, "fetches": 0, "acks": 0, "requests": 0}
        self.outcomes: dict[str, int] = {}
        self.last_ack_at = self.last_fetch_at = 0.0
        self.replaced: list[dict[str, Any]] = []
        self.counts |= {"replaced": 0, "received": 0, "sent": 0}
        for cert_id in self.names:
            for version in range(1, made["versions"] + 1):
                text = json.loads((directory / f"{cert_id}.{version}.json").read_text())
                self.bodies[cert_id, version] = (json.dumps({"data": text["materials"]}).encode(), text["summary"])

    def body(self, cert_id: int) -> tuple[bytes, dict[str, Any]]:
        """Return materials (wire bytes) and summary of a certificate's current version."""
        return self.bodies[cert_id, self.version[cert_id]]

    def publish(self, ids: list[int], version: int) -> None:
        """Renew certificates."""
        for cert_id in ids:
            self.version[cert_id] = version
            self._signal("cert.renewed", {"cert_id": cert_id})
        self._wake()

    def revoke(self, cert_id: int) -> None:
        """Revoke a certificate."""
        self.revoked.add(cert_id)
        self._signal("cert.revoked", {"cert_id": cert_id})
        self._wake()

    def put_config(self, items: list[dict[str, Any]]) -> None:
        """Replace the install config."""
        text = json.dumps(items)
        version = self.config["version"] + 1 if self.config else 1
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        self.config = {"id": 1, "user_device_id": 1, "version": version, ITEM_KEY: items, "installs_json": text,
                       "installs_hash_b64": digest, "updated_at": "2026-01-01T00:00:00Z"}  # fmt: skip
        self._signal("install.updated", {"config_id": 1, "version": version, "installs_hash_b64": digest})
        self._wake()

    def _signal(self, kind: str, ref: dict[str, Any]) -> None:
        self.signals.append({"type": kind, "ts_ms": int(time.time() * 1000) + len(self.signals), "ref": ref})

    def _wake(self) -> None:
        self.fresh.set()
        self.fresh = asyncio.Event()

    def replacement(self, path: str, headers: dict[str, str]) -> bytes | None:
        """Return the bytes to answer with instead, if an order says so."""
        for one in self.replaced:
            if path.endswith(one["path"]) and one["times"]:
                one["times"] -= 1
                self.counts["replaced"] += 1
                head, gap, body = one["raw"].partition(b"\r\n\r\n")
                head = head.replace(b"@ACCEPT@", _accept(headers))
                number = b"%d" % (self.counts["replaced"] * 1_000_000)
                body = body.replace(b"@N@", number)
                return head.replace(b"@N@", number).replace(b"@LENGTH@", b"%d" % len(body)) + gap + body
        return None

    async def updates(self, query: dict[str, str], headers: dict[str, str]) -> tuple[int, str, bool, bytes]:
        """Answer a poll after at most ``wait`` seconds; a page after a full one has no rate limit, as at the real plane."""
        self.counts["polls"] += 1
        cursor = query.get("cursor") or headers.get("if-none-match", "").strip('"')
        seen = min(int(cursor.rpartition("-")[2]) if cursor else len(self.signals), len(self.signals))
        wait = float(query.get("wait", "0"))
        if seen >= len(self.signals) and wait:
            self.counts["waiting"] += 1
            try:
                await asyncio.wait_for(self.fresh.wait(), wait)
            except TimeoutError:
                pass
            finally:
                self.counts["waiting"] -= 1
        limit = int(query.get("limit", "20"))
        if "ahead" in query:
            shown = [one for one in self.signals[seen:] if one["type"] == "cert.revoked"][:limit]
            body = json.dumps({"data": {"cursor": f"1-{seen}", "signals": shown}}).encode()
            return (200, f"1-{seen}", False, body) if shown else (204, f"1-{seen}", False, b"")
        page = self.signals[seen : seen + limit]
        after = f"1-{seen + len(page)}"
        if not page:
            return 204, after, False, b""
        return 200, after, len(page) == limit, json.dumps({"data": {"cursor": after, "signals": page}}).encode()

    def resource(self, path: str, query: dict[str, str]) -> tuple[int, bytes]:
        """Answer all other requests."""
        if path == CERTIFICATES:
            after = int(query.get("after_id", "0"))
            ids = [one for one in sorted(self.names) if one > after][: int(query.get("limit", "500"))]
            by_revision = {"complete": True} if "updated_since" in query else {}
            return 200, json.dumps({"data": [self.body(one)[1] for one in ids], **by_revision}).encode()
        if path.startswith(CERTIFICATES + "/"):
            number, _, what = path[len(CERTIFICATES) + 1 :].partition("/")
            if int(number) not in self.names:
                return 404, NOT_FOUND
            materials, summary = self.body(int(number))
            if int(number) in self.revoked:
                if what:
                    return 404, NOT_FOUND
                summary = summary | {"status": "revoked"}
            if what == "deploy-materials":
                self.counts["fetches"] += 1
                self.last_fetch_at = time.monotonic()
                return 200, materials
            return 200, json.dumps({"data": summary}).encode()
        if path.endswith("/install-config") and self.config is not None:
            return 200, json.dumps({"data": self.config}).encode()
        return 404, NOT_FOUND

    def batch(self, body: bytes) -> bytes:
        """Answer one request for many materials."""
        ids = json.loads(body)["cert_ids"]
        self.counts["fetches"] += len(ids)
        self.last_fetch_at = time.monotonic()
        items = [
            b'{"cert_id": %d, "status": 200, ' % one + self.body(one)[0][1:]
            if one in self.names
            else b'{"cert_id": %d, "status": 404, ' % one + NOT_FOUND[1:]
            for one in ids
        ]
        return b'{"data": [' + b", ".join(items) + b"]}"

    def notify(self, body: bytes) -> None:
        """Count outcomes."""
        for event in json.loads(body)["events"]:
            if event["type"] == "signal.ack":
                self.counts["acks"] += 1
                self.outcomes[event["outcome"]] = self.outcomes.get(event["outcome"], 0) + 1
        self.last_ack_at = time.monotonic()

    async def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """Execute one order of the driver."""
        at = time.monotonic()
        if order["op"] == "publish":
            self.publish(order["ids"], order["version"])
        elif order["op"] == "revoke":
            self.revoke(order["id"])
        elif order["op"] == "config":
            self.put_config(order["items"])
        elif order["op"] == "signal":
            self._signal(order["type"], order["ref"])
            self._wake()
        elif order["op"] == "answer":
            self.replaced = [one | {"raw": Path(one["file"]).read_bytes()} for one in order["answers"]]
        return {"at": at, "last_ack_at": self.last_ack_at, "last_fetch_at": self.last_fetch_at,
                "outcomes": self.outcomes, **self.counts}  # fmt: skip


def _accept(headers: dict[str, str]) -> bytes:
    """Return the answer to the key of a WebSocket (RFC 6455, section 4.2.2)."""
    key = headers.get("sec-websocket-key", "").encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    return base64.b64encode(hashlib.sha1(key).digest())


async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, raw: bytes) -> None:
    """Switch protocols, send everything once the client has said something, and wait a little until it closes."""
    head, gap, body = raw.partition(b"\r\n\r\n")
    writer.write(head + gap)
    await writer.drain()
    await reader.read(1)
    writer.write(body)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SWITCHED_SECONDS):
            await writer.drain()
            while await reader.read(65_536):
                pass


async def serve_one(plane: Plane, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection."""
    plane.counts["connections"] += 1
    try:
        while True:
            received = await reader.readuntil(b"\r\n\r\n")
            head = received.decode("latin-1").split("\r\n")
            method, target, _ = head[0].split(" ", 2)
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            path, _, text = target.partition("?")
            query = dict(part.partition("=")[::2] for part in text.split("&") if part)
            plane.counts["requests"] += 1
            plane.counts["received"] += len(received) + len(body)
            if (raw := plane.replacement(path, headers)) is not None:
                if raw.startswith(SWITCHES):
                    await converse(reader, writer, raw)
                    return
                writer.write(raw)
                await writer.drain()
                continue
            cursor, free = "", False
            if path == UPDATES:
                status, cursor, free, answer = await plane.updates(query, headers)
            elif method == "POST" and path == NOTIFY:
                plane.notify(body)
                status, answer = 204, b""
            elif method == "POST" and path == BATCH:
                status, answer = 200, plane.batch(body)
            else:
                status, answer = plane.resource(path, query)
            lines = [f"HTTP/1.1 {status} {REASONS[status]}"]
            if cursor:
                lines.append(f'ETag: "{cursor}"')
            if "updated_since" in query:
                lines.append('ETag: "tiny"')
            if path == UPDATES and free:
                lines.append("Cert-Ctrl-Next-Page: free")
            if status != 204:
                lines += ["Content-Type: application/json", f"Content-Length: {len(answer)}"]
            whole = "\r\n".join((*lines, "", "")).encode() + answer
            plane.counts["sent"] += len(whole)
            writer.write(whole)
            await writer.drain()
    except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
        pass  # the client has disconnected, or the bench ends
    finally:
        writer.close()


async def serve(directory: Path) -> None:
    """Serve until standard input ends."""
    plane = Plane(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem", directory / "server.key")
    server = await asyncio.start_server(
        lambda reader, writer: serve_one(plane, reader, writer), "127.0.0.1", 0, ssl=context, backlog=4096
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(await plane.obey(json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
