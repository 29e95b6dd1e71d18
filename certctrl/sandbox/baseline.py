"""Measure how fast a minimal client can deploy a renewal on this machine, for comparison with the agent.

A second device long-polls, fetches the announced material, decrypts it, writes two files with an fsync each and
reloads the same service: no checks, no records, no probe, no acks. The witness times it exactly as it times the
agent, so the difference is what the agent adds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from certctrl import lean
from certctrl.install.material.bundle import open_bundle
from certctrl.model.records import Tokens
from certctrl.net.calls import data_or_error
from certctrl.net.control_plane import ControlPlane
from certctrl.net.http import Http
from certctrl.net.operator import Operator
from certctrl.protocol.wire.answer import BUNDLE_CAP
from certctrl.protocol.wire.certificates import materials_from_wire
from certctrl.sandbox.servers import Server
from certctrl.sandbox.witness_client import WitnessClient
from certctrl.store.disk.atomic import write_atomic
from certctrl.store.disk.fs import RealFs
from certctrl.store.state.session import SessionState

NAME = "baseline.sandbox.test"
ROUNDS = 20
MAX_SECONDS = 4.0
SERVED_SECONDS = 10.0
_WAIT_SECONDS = 25
_SELF = "/apiv1/devices/self"


@lean.define(kw_only=True, eq=False)
class BaselineClient:
    """The minimal client, with a separate certificate."""

    http: Http
    plane: ControlPlane
    store: SessionState
    pair: Path
    """Directory from which the service reads this certificate and its key."""
    cert_id: int
    user_id: int
    wall_now: Callable[[], float]
    cursor: str = ""
    serial: str = ""
    """The serial written last."""

    async def deliver(self) -> None:
        """Fetch, decrypt and write certificate and key; called once before the service starts."""
        keys = self.store.load_device_keys()
        assert keys is not None, "the device is registered"
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

    async def measure(self, operator: Operator, witness: WitnessClient, server: Server) -> list[float]:
        """Renew for up to ``MAX_SECONDS``; return the milliseconds from each signal to the new serial being served."""
        latencies: list[float] = []
        await self.refresh()
        with trio.move_on_after(MAX_SECONDS):
            await self._poll(0)
            for _ in range(ROUNDS):
                if (milliseconds := await self._round(operator, witness, server)) is not None:
                    latencies.append(milliseconds)
        return latencies

    async def refresh(self) -> None:
        """Refresh the access token, which has expired during a long run."""
        refresh_token = self._tokens().refresh_token
        fresh = await self.plane.refresh(refresh_token, self.store.load_device_id() or "")
        self.store.save_tokens(
            Tokens(access_token=fresh.access_token, refresh_token=fresh.refresh_token or refresh_token)
        )

    async def _round(self, operator: Operator, witness: WitnessClient, server: Server) -> float | None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(operator.renew, self.user_id, self.cert_id)
            while not (signals := await self._poll(_WAIT_SECONDS)):
                pass
        await self.deliver()
        await trio.run_process(server.reload_argv)
        seen = await witness.ask(op="served", name=NAME, serials=[self.serial], within=SERVED_SECONDS)
        if not seen["ok"]:
            return None
        published = signals[-1]["ts_ms"] / 1000
        return round(float(seen["at"] + self.wall_now() - time.monotonic() - published) * 1000, 2)

    async def _poll(self, wait: int) -> list[dict[str, Any]]:
        query = {"limit": 20, "wait": wait} | ({"cursor": self.cursor} if self.cursor else {})
        data = await self._get(f"{_SELF}/updates", query)
        return list(data["signals"]) if data else []

    async def _get(self, path: str, query: dict[str, Any]) -> Any:
        headers = {"authorization": f"Bearer {self._tokens().access_token}"}
        answer = await self.http.request(
            "GET", path, query=query, headers=headers, deadline=_WAIT_SECONDS + 10, cap=BUNDLE_CAP
        )
        if path.endswith("/updates"):
            self.cursor = answer.headers.get("etag", self.cursor).strip('"')
        return data_or_error(answer, now=self.wall_now(), cap=BUNDLE_CAP)

    def _tokens(self) -> Tokens:
        tokens = self.store.load_tokens()
        assert tokens is not None, "the device is registered"
        return tokens

    def _write(self, key: bytes, chain: bytes) -> None:
        fs = RealFs()
        write_atomic(fs, self.pair / "private.key", key)
        write_atomic(fs, self.pair / "fullchain.pem", chain)
