"""The floor of the show: how soon the new serial can be served at all, here and now.

A second device with the least client there is: it hangs in a long-poll, fetches what the signal names, opens it,
writes two files with an fsync each and tells the same service to reload. No checks, no records, no proof, no acks.
The witness takes its time exactly as it takes the agent's, so what the agent adds is the difference.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import trio

from certctrl.install.material.bundle import open_bundle
from certctrl.net.http import Http
from certctrl.net.operator import Operator
from certctrl.protocol.wire.answer import BUNDLE_CAP
from certctrl.protocol.wire.certificates import materials_from_wire
from certctrl.sandbox.servers import Server
from certctrl.sandbox.witness_client import Witness
from certctrl.store.disk.atomic import write_atomic
from certctrl.store.disk.fs import RealFs
from certctrl.store.state.session import SessionState

NAME = "floor.sandbox.test"
ROUNDS = 20
AT_MOST_SECONDS = 4.0
WITHIN_SECONDS = 10.0
_WAIT = 25
_SELF = "/apiv1/devices/self"


@attrs.define(kw_only=True, eq=False)
class Floor:
    """The least client, and one certificate of its own."""

    http: Http
    store: SessionState
    pair: Path
    """Directory that the service reads this certificate's pair from."""
    cert_id: int
    user_id: int
    wall_now: Callable[[], float]
    cursor: str = ""
    serial: str = ""
    """The newest one written."""

    async def deliver(self) -> None:
        """Fetch, open and write the pair; the first time before the service starts."""
        keys = self.store.load_device_keys()
        assert keys is not None, "registered before"
        data = await self._get(f"{_SELF}/certificates/{self.cert_id}/deploy-materials", {})
        bundle = open_bundle(
            self.cert_id,
            NAME,
            materials_from_wire(data),
            keys.secret,
            allow_plaintext=False,
            now=self.wall_now(),
            expected_domains=(NAME,),
        )
        self.serial = bundle.facts.serial
        chain = bundle.certificate_pem + bundle.chain_pem
        await trio.to_thread.run_sync(self._write, bundle.key_pem, chain)

    async def race(self, operator: Operator, witness: Witness, server: Server) -> list[float]:
        """Renew again and again, a few seconds long; return the milliseconds from each signal to its serial served."""
        found: list[float] = []
        with trio.move_on_after(AT_MOST_SECONDS):
            await self._poll(0)
            for _ in range(ROUNDS):
                if (milliseconds := await self._round(operator, witness, server)) is not None:
                    found.append(milliseconds)
        return found

    async def _round(self, operator: Operator, witness: Witness, server: Server) -> float | None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(operator.renew, self.user_id, self.cert_id)
            while not (signals := await self._poll(_WAIT)):
                pass
        await self.deliver()
        await trio.run_process(server.reload_argv)
        seen = await witness.ask(op="served", name=NAME, serials=[self.serial], within=WITHIN_SECONDS)
        if not seen["ok"]:
            return None
        published = signals[-1]["ts_ms"] / 1000
        return round(float(seen["at"] + self.wall_now() - time.monotonic() - published) * 1000, 2)

    async def _poll(self, wait: int) -> list[dict[str, Any]]:
        query = {"limit": 20, "wait": wait} | ({"cursor": self.cursor} if self.cursor else {})
        data = await self._get(f"{_SELF}/updates", query)
        return list(data["signals"]) if data else []

    async def _get(self, path: str, query: dict[str, Any]) -> Any:
        tokens = self.store.load_tokens()
        assert tokens is not None, "registered before"
        headers = {"authorization": f"Bearer {tokens.access_token}"}
        answer = await self.http.request("GET", path, query=query, headers=headers, deadline=_WAIT + 10, cap=BUNDLE_CAP)
        if path.endswith("/updates"):
            self.cursor = answer.headers.get("etag", self.cursor).strip('"')
        return json.loads(answer.body)["data"] if answer.body else None

    def _write(self, key: bytes, chain: bytes) -> None:
        fs = RealFs()
        write_atomic(fs, self.pair / "private.key", key)
        write_atomic(fs, self.pair / "fullchain.pem", chain)
