"""Signals that an operator appends while control planes and databases die, and what their devices must have received."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import AsyncIterator, Callable, Mapping
from itertools import pairwise

import attrs
import httpx
import trio
from fleet import PATIENCE, USER
from parked_devices import ParkedDevice, Signal, client, parked_devices
from postgres_server import PostgresServer
from several_planes import Planes

_TASKS = 4
_WAVE_EVERY = 25
"""Appends between two renewals of a certificate that all devices have."""
_PAUSE_SECONDS = 1.0
_UNANNOUNCED = """
UPDATE streams SET last_ms = last_ms + 1, last_seq = 0, length = length + 1;
INSERT INTO signals SELECT device_id, last_ms, last_seq, 'state.resync_required', '{"reason":"unannounced"}' FROM streams
"""
"""A signal for each device, as from a plane that died after its commit: no notification announces it."""


@attrs.define
class Appender:
    """An operator who appends signals, and notes which were acknowledged."""

    devices: list[ParkedDevice]
    _http: httpx.AsyncClient
    _certificate: int
    _random: random.Random
    acknowledged: dict[tuple[int, str], float] = attrs.field(factory=dict)
    """Device and ``ref`` -> when, by Trio's clock."""
    waves: int = 0
    """Renewals that were acknowledged."""
    unknown: int = 0
    """Appends without an acknowledgement: they may be stored or not."""
    _number: int = 0

    async def append(self, enough: Callable[[], bool]) -> None:
        """Append one signal after the other, in some tasks."""

        async def work() -> None:
            while not enough():
                await trio.sleep(self._random.uniform(0, 0.4))
                await self._next()

        async with trio.open_nursery() as nursery:
            for _ in range(_TASKS):
                nursery.start_soon(work)

    async def settle(self, server: PostgresServer, database: str) -> str:
        """Wait until the devices have what is stored, check it, and return the figures."""
        await self._receive(server, database)
        waits = sorted(delays(self))
        while not await self._wave():  # all devices begin a new poll
            await trio.sleep(_PAUSE_SECONDS)
        await self._receive(server, database)
        await trio.sleep(_PAUSE_SECONDS)
        before = trio.current_time()
        await trio.to_thread.run_sync(server.sql, _UNANNOUNCED, database)
        await self._receive(server, database)
        swept = sum(device.polls[-1] < before for device in self.devices)
        assert swept > len(self.devices) / 2, f"the sweep answered {swept} of {len(self.devices)} waiting polls"
        reconnects, refused = (sum(getattr(one, name) for one in self.devices) for name in ("reconnects", "refused"))
        return (
            f"{len(waits)} appends and {self.waves} waves acknowledged, {self.unknown} without an answer; received after"
            f" {waits[len(waits) // 2]:.3f} s (median) to {waits[-1]:.1f} s; {reconnects} reconnects, {refused} refused;"
            f" {swept} of {len(self.devices)} waiting polls answered by the sweep"
        )

    async def _receive(self, server: PostgresServer, database: str) -> None:
        """Wait until the devices have what is stored, and check it."""
        stored = await trio.to_thread.run_sync(stored_signals, server, database)
        with trio.move_on_after(PATIENCE):
            while any(len(device.received) < len(stored[device.id]) for device in self.devices):
                await trio.sleep(0.05)
        check(self, stored)

    async def _next(self) -> None:
        self._number += 1
        if self._number % _WAVE_EVERY == 0:
            await self._wave()
            return
        device, ref = self._random.choice(self.devices), {"reason": f"append {self._number}"}
        if await self._acknowledged(f"/apiv1/users/{USER}/devices/{device.id}/resync", ref):
            self.acknowledged[device.id, json.dumps(ref)] = trio.current_time()

    async def _wave(self) -> bool:
        """Renew the certificate of all devices; return whether that was acknowledged."""
        path = f"/apiv1/users/{USER}/certificates/{self._certificate}/issues"
        acknowledged = await self._acknowledged(path, {"action": "renew"})
        self.waves += acknowledged
        return acknowledged

    async def _acknowledged(self, path: str, body: dict[str, str]) -> bool:
        try:
            answer = await self._http.post(path, json=body)
        except httpx.TransportError:
            self.unknown += 1
            return False
        assert answer.status_code in (202, 503), answer.text
        self.unknown += answer.status_code == 503
        return answer.status_code == 202


@contextlib.asynccontextmanager
async def appender(planes: Planes, devices: int, seed: random.Random) -> AsyncIterator[Appender]:
    """Provide an appender to devices that wait in long polls."""
    token, ca = planes.operator.enrolment_token(), str(planes.ca)
    async with parked_devices(planes.url, ca, token, devices, seed) as parked:
        certificate = planes.operator.issue("wave.example", *(device.id for device in parked))["id"]
        key = {"authorization": f"Bearer {planes.operator_key}", "connection": "close"}
        async with client(planes.url, ca, headers=key) as http:
            yield Appender(parked, http, certificate, seed)


def stored_signals(server: PostgresServer, database: str) -> dict[int, list[Signal]]:
    """Return the streams of all devices."""
    rows = "SELECT device_id, json_agg(json_build_array(type, ms, ref) ORDER BY ms, seq) FROM signals GROUP BY 1"
    found = json.loads(server.sql(f"SELECT json_object_agg(device_id, json_agg) FROM ({rows}) AS streams", database))
    return {
        int(device): [(type_, ms, json.dumps(json.loads(ref), sort_keys=True)) for type_, ms, ref in stream]
        for device, stream in found.items()
    }


def check(appender: Appender, stored: Mapping[int, list[Signal]]) -> None:
    """Raise AssertionError unless each device received its stream, which has all that was acknowledged."""
    for device in appender.devices:
        assert device.received == stored[device.id], f"{device.public_id}: lost, twice, or in another order"
        assert all(one[1] <= two[1] for one, two in pairwise(device.received)), f"{device.public_id}: not in order"
        assert len(set(device.received)) == len(device.received), f"{device.public_id}: stored twice"
        assert sum(signal[0] == "cert.renewed" for signal in device.received) >= appender.waves, "a wave is lost"
        assert not device.copies_suspected
    received = {(device.id, ref) for device in appender.devices for _, _, ref in device.received}
    assert appender.acknowledged.keys() <= received, "acknowledged and lost"


def delays(appender: Appender) -> list[float]:
    """Return the seconds between each acknowledgement and its signal."""
    at = {(device.id, ref): when for device in appender.devices for (_, _, ref), when in device.received_at.items()}
    return [max(0.0, at[which] - when) for which, when in appender.acknowledged.items()]
