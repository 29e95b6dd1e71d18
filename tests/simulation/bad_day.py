"""A bad day of a fleet: a profile with a mistake for some devices, a lost plane and a revocation, under a virtual clock.

Two planes share a database file. A profile and the renewal of certificates, two of which are a set, are rolled out in
waves to devices, each of which polls one of the planes, or the other one once its own is lost; on every other day, so is
an imported certificate. Meanwhile one of the certificates is revoked. One seed is one day. The watcher compares with what
the devices themselves have done, not with what the planes believe; what it sees against the rules is in ``Day.broken``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import trio
from made_chains import made
from nacl.public import PrivateKey
from simulation.clock import START, run_seeded

from certctrl.model.features import ATOMIC_BATCH
from certctrl.model.plan import OutcomeKind
from certctrl.plane.ca.issuer import inline
from certctrl.plane.certificates.imports import ImportRequest
from certctrl.plane.core import Plane
from certctrl.plane.devices.acks import Ack
from certctrl.plane.devices.devices import DeviceFacts
from certctrl.plane.devices.sessions import DeviceSession
from certctrl.plane.errors import ErrorResponse
from certctrl.plane.profiles.profiles import ProfileChange
from certctrl.plane.rollouts.rollouts import RolloutRules
from certctrl.plane.settings import PlaneSettings
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring
from certctrl.plane.storage.sqlite import SqliteDatabase

USER = 1
OLD = {
    "id": "files", "type": "copy", "ob_name": "all.example", "from": ["combined.pem"], "to": ["/etc/tls/old.pem"],
}  # fmt: skip
NEW = OLD | {"to": ["/etc/tls/new.pem"]}
WAVES = ("1", "5%", "20%", "40%")
SIZES = (1, 0.05, 0.2, 0.4)
RENEWAL_WAVES = ("2", "20%", "50%")
RENEWAL_SIZES = (2, 0.2, 0.5)
REVOKED, SET, IMPORTED = 1, (2, 3), 4
"""Ids of the certificates."""
DAY = 86_400
BROKEN_SHARE = 0.03
SILENT_SHARE = 0.01
POLL_SECONDS = 20.0, 60.0
"""Between two polls of a device, at random."""
WORK_SECONDS = 1.0, 20.0
"""In which a device applies a change, at random."""
RETURN_SECONDS = 1.0, 25.0
"""In which a device notices that its plane is lost, at random."""
REVOKED_WITHIN = 3 * WORK_SECONDS[1] + POLL_SECONDS[1] + RETURN_SECONDS[1] + POLL_SECONDS[1]
"""Seconds after which a revocation has reached each device that is up, even if its plane is lost in between."""
HALTED_WITHIN = 30.0
"""Seconds after the report of one failure too many within which the rollout has halted."""
WATCH_SECONDS = 3.0
MANY = 500
"""Devices of a fleet of which the halt spares a part."""
STARTED_AT = 1000.0
"""Seconds after which the planes have run for long enough to know who is silent."""
LASTS = 2400.0


class Lost(BaseException):
    """The process of a plane is killed."""


@attrs.define(eq=False)
class Device:
    """One virtual device."""

    id: int
    place: int
    plane: int
    is_broken: bool
    """Whether the new version of the profile does not work on it."""
    is_silent: bool
    cursor: str = ""
    tried: bool = False
    """Whether it has tried the new version of the profile, and reported so."""
    serials: dict[int, str] = attrs.field(factory=dict)
    """Certificate -> serial number in use; empty: withdrawn."""
    reported: dict[int, str] = attrs.field(factory=dict)
    """Certificate -> serial number that it has reported."""

    @property
    def cluster(self) -> int:
        return self.place // 2


@attrs.define(eq=False)
class Day:
    """One day, made from a seed."""

    seed: int
    size: int
    database: Path
    broken: list[str] = attrs.field(factory=list)
    """What was against the rules."""
    devices: list[Device] = attrs.field(factory=list)
    planes: list[Plane] = attrs.field(factory=list)
    lost: set[int] = attrs.field(factory=set)
    failed_at: list[float] = attrs.field(factory=list)
    """When each failure was reported."""
    revoked_at: float = 0.0
    halted_at: float = 0.0
    touched: set[int] = attrs.field(factory=set)
    """Places of devices that have got the new version of the profile."""
    renewed: set[tuple[int, int]] = attrs.field(factory=set)
    """Certificates that have been renewed, with the places of devices that have got them."""
    chance: random.Random = attrs.field(init=False)
    limit: int = attrs.field(init=False)
    first: dict[int, str] = attrs.field(factory=dict)
    """Certificate -> serial number at the start."""

    def __attrs_post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.limit = 5 if self.size >= MANY else 1

    @property
    def plane(self) -> Plane:
        """A plane that is not lost."""
        return self.planes[min({0, 1} - self.lost)]

    # --- the world ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Live the day, to its end."""
        keyring, now = Keyring.open(None), lambda: START + trio.current_time()
        with ExitStack() as stack:
            for _ in range(2):
                opened = SqliteDatabase(self.database)
                stack.callback(opened.close)
                self.planes.append(_plane_on(opened, keyring, now))
            await self._make()
            async with trio.open_nursery() as nursery:
                for number in range(2):
                    nursery.start_soon(self._serve, number)
                for device in self.devices:
                    if not device.is_silent:
                        nursery.start_soon(self._live, device)
                nursery.start_soon(self._watch)
                nursery.start_soon(self._revoke)
                await trio.sleep_until(STARTED_AT)
                await self._start()
                nursery.start_soon(self._lose)
                await trio.sleep_until(LASTS)
                nursery.cancel_scope.cancel()
            await self._check_end()

    async def _make(self) -> None:
        plane = self.planes[0]
        # The second one of its cluster: after the first one, the other would wait for an operator.
        broken = set(self.chance.sample(range(1, self.size, 2), max(self.limit + 1, round(BROKEN_SHARE * self.size))))
        silent = set(self.chance.sample(sorted(set(range(1, self.size)) - broken), round(SILENT_SHARE * self.size)))
        for place in range(self.size):
            facts = DeviceFacts(device_public_id=f"d{place}", name=f"d{place}")
            device_id = await plane.work(_registered, plane, facts, f"cluster={place // 2}")
            self.devices.append(Device(device_id, place, self.chance.randrange(2), place in broken, place in silent))
        await plane.profiles.put(USER, "web", ProfileChange(devices="*", installs=[OLD]))
        ids = [device.id for device in self.devices]
        names = ["revoked.example", "renewed.example", "paired.example"]
        for name in [*names, "imported.example"] if self.seed % 2 else names:
            issued = await plane.certificates.issue(USER, [name], device_ids=ids)
            self.first[issued["id"]] = issued["serial_number"]
        await plane.work(plane.batches.mark, USER, "pair", SET)

    async def _start(self) -> None:
        plane, rules = self.plane, RolloutRules(waves=WAVES, max_failures=self.limit, serial="cluster=")
        await plane.rollouts.start(USER, "web", ProfileChange(installs=[NEW]), rules)
        rules = RolloutRules(waves=RENEWAL_WAVES)
        await plane.work(plane.renewal_rollouts.start, USER, [REVOKED, SET[0]], rules)
        if IMPORTED in self.first:
            name, now = "imported.example", plane.wall_now()
            one = made(name, names=[name], start=now - 60, end=now + 90 * DAY)
            request = ImportRequest(certificate_pem=one.pem, private_key_pem=one.key_pem)
            begin = plane.renewal_rollouts.begin_import
            await plane.imports.add(USER, request, cert_id=IMPORTED, roll_out=lambda row: begin(row, rules, ""))

    async def _serve(self, number: int) -> None:
        """Run a plane until it is lost: in the middle of a unit of work, which is rolled back."""
        plane = self.planes[number]
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(plane.rollout_runner.run)
                nursery.start_soon(plane.order_runner.run)
                nursery.start_soon(_save_sightings, plane)
        except* Lost:
            self.lost.add(number)

    async def _lose(self) -> None:
        await trio.sleep(self.chance.uniform(30, 300))
        plane, left = self.planes[0], self.chance.randrange(1, 40)
        run = plane.database.run

        def killed(sql: str, *parameters: Any) -> int:
            nonlocal left
            left -= 1
            if left <= 0:
                raise Lost
            return run(sql, *parameters)

        plane.database.run = killed  # type: ignore[method-assign]

    async def _revoke(self) -> None:
        await trio.sleep_until(STARTED_AT + self.chance.uniform(30, 300))
        while not self.revoked_at:
            try:
                await self.plane.certificates.revoke(USER, 1)
            except Lost:
                self.lost.add(0)  # the operator tries it again with the other one
                continue
            self.revoked_at = trio.current_time()

    # --- devices --------------------------------------------------------------------------------------------------

    async def _live(self, device: Device) -> None:
        await trio.sleep_until(STARTED_AT - 2 * POLL_SECONDS[1])
        while True:
            await trio.sleep(self.chance.uniform(*POLL_SECONDS))
            if device.plane in self.lost:
                await trio.sleep(self.chance.uniform(*RETURN_SECONDS))
                device.plane = 1 - device.plane
            try:
                await self._poll(device, self.planes[device.plane])
            except Lost:
                self.lost.add(device.plane)

    async def _poll(self, device: Device, plane: Plane) -> None:
        plane.devices.seen(device.id, "192.0.2.1", "", plane.wall_now())
        page = await plane.work(plane.stream.read, device.id, device.cursor or None, 100)
        self._check_batches(device, page.signals)
        for signal in sorted(page.signals, key=lambda one: one["type"] != "cert.revoked"):
            if signal["type"] == "cert.revoked":
                self._withdrawn(device, signal["ref"]["cert_id"])
            elif signal["type"] == "install.updated":
                await self._configure(device, plane, signal)
            elif signal["type"] == "cert.renewed":
                await self._deploy(device, plane, signal)
        device.cursor = page.cursor
        if self.chance.random() < 0.05:  # a full comparison
            await self._compare(device, plane)

    def _check_batches(self, device: Device, signals: Any) -> None:
        """Note a new certificate of the set that comes without the other one."""
        new = [one["ref"] for one in signals if one["ref"].get("cert_id") in SET and one["type"] == "cert.renewed"]
        batches = [ref.get("batch", {}) for ref in new if ref["serial"] != self.first[ref["cert_id"]]]
        if any(batch.get("size") != len(SET) or batches.count(batch) != len(SET) for batch in batches):
            self._note(f"d{device.place} is told a part of a set: {batches}")

    def _withdrawn(self, device: Device, cert_id: int) -> None:
        device.serials[cert_id] = ""
        if cert_id == 1 and trio.current_time() > self.revoked_at + REVOKED_WITHIN:
            self._note(f"d{device.place} has withdrawn late")

    async def _configure(self, device: Device, plane: Plane, signal: Any) -> None:
        document = await plane.work(plane.installs.document, device.id)
        await trio.sleep(self.chance.uniform(*WORK_SECONDS))
        is_new = document["installs"] == [NEW]
        fails = is_new and device.is_broken
        outcome = OutcomeKind.ROLLED_BACK if fails else OutcomeKind.APPLIED
        ack = Ack(
            type="install.updated", ts_ms=signal["ts_ms"], ref={"version": document["version"]}, outcome=outcome,
            detail="nginx: [emerg] host not found" if fails else "",
        )  # fmt: skip
        await plane.work(plane.reports.store, device.id, [ack])
        if is_new and not device.tried:
            device.tried = True
            self.failed_at += [trio.current_time()] if fails else []

    async def _deploy(self, device: Device, plane: Plane, signal: Any) -> None:
        cert_id = signal["ref"]["cert_id"]
        serial = await self._fetched(device, plane, cert_id)
        if not serial:
            return
        if serial != signal["ref"]["serial"] and serial == self.first[cert_id]:
            self._note(f"d{device.place} was told {signal['ref']['serial']}, and got {serial}")
        await trio.sleep(self.chance.uniform(*WORK_SECONDS))
        device.serials.setdefault(cert_id, serial)
        if device.serials[cert_id]:
            device.serials[cert_id] = serial
        ack = Ack(
            type="cert.renewed", ts_ms=signal["ts_ms"], ref=signal["ref"], outcome=OutcomeKind.APPLIED,
            deployed=[{"cert_id": cert_id, "serial": serial, "served": True}],
        )  # fmt: skip
        await plane.work(plane.reports.store, device.id, [ack])
        device.reported[cert_id] = serial

    async def _fetched(self, device: Device, plane: Plane, cert_id: int) -> str:
        """Return the serial number of the material that a device gets; empty if it gets none."""
        session = DeviceSession(device.id, USER, 0)
        (found,) = await plane.work(plane.certificates.materials_of, [(session, (cert_id, ""))])
        if isinstance(found, ErrorResponse) and cert_id == 1 and self.revoked_at:
            return ""
        if isinstance(found, Exception):
            self._note(f"d{device.place} gets no material of certificate {cert_id}: {found}")
            return ""
        serial = str((found.data or {})["serial_number"])
        self._saw(device, cert_id, serial)
        return serial

    async def _compare(self, device: Device, plane: Plane) -> None:
        found = await plane.work(plane.certificates.list_of, device.id)
        for row in found.rows:
            if row["status"] == "active":
                self._saw(device, row["id"], row["serial_number"])
        serials = {row["id"]: row["serial_number"] for row in found.rows}
        if len({serials[cert_id] == self.first[cert_id] for cert_id in SET}) > 1:
            self._note(f"d{device.place} has a part of a set: {serials}")
        for row in found.rows:
            if row["status"] == "active":
                await self._fetched(device, plane, row["id"])

    def _saw(self, device: Device, cert_id: int, serial: str) -> None:
        if serial != self.first[cert_id] and (cert_id, device.place) not in self.renewed:
            self.renewed.add((cert_id, device.place))
            if cert_id != REVOKED or not self.revoked_at:
                self._check_wave(device, RENEWAL_SIZES, lambda one: one.reported.get(cert_id) == serial)

    # --- the watcher ----------------------------------------------------------------------------------------------

    def _note(self, what: str) -> None:
        self.broken.append(f"{trio.current_time():.0f} s: {what}")

    async def _watch(self) -> None:
        await trio.sleep_until(STARTED_AT)
        while True:
            await trio.sleep(WATCH_SECONDS)
            await self.planes[1].work(self._look)

    def _look(self) -> None:
        """Compare which devices have the new version of the profile with what they have reported."""
        plane, now = self.planes[1], trio.current_time()
        rows = plane.database.all("SELECT device_id, installs_json FROM install_configs")
        have = {row["device_id"] for row in rows if "/etc/tls/new.pem" in row["installs_json"]}
        for device in self.devices:
            if device.id in have and device.place not in self.touched:
                self._touch(device, now)
        if now > self._due_to_halt() and not self.halted_at:
            row = plane.database.one("SELECT state FROM rollouts WHERE id = 1")
            self.halted_at = now
            if row is None or row["state"] != "halted":
                self._note(f"the rollout is {row and row['state']} although {len(self.failed_at)} devices failed")

    def _due_to_halt(self) -> float:
        return self.failed_at[self.limit] + HALTED_WITHIN if len(self.failed_at) > self.limit else LASTS * 2

    def _touch(self, device: Device, now: float) -> None:
        self.touched.add(device.place)
        if now > self._due_to_halt():
            self._note(f"d{device.place} has got the new version after the halt")
        self._check_wave(device, SIZES, lambda one: one.tried)
        other = self.devices[device.place ^ 1] if device.place ^ 1 < self.size else device
        under_way = other is not device and other.place in self.touched and not other.is_silent
        if under_way and (not other.tried or other.is_broken):
            self._note(f"d{device.place} and d{other.place} of one cluster are under way at once")

    def _check_wave(self, device: Device, sizes: tuple[float, ...], is_settled: Callable[[Device], bool]) -> None:
        """Note a device that is released although a device of an earlier wave has not reported."""
        wave = _wave_of(device.place, self.size, sizes)
        for other in self.devices:
            if other.is_silent or is_settled(other):
                continue
            if _wave_of(other.place, self.size, sizes) < wave:
                self._note(f"d{device.place} of wave {wave} is released before d{other.place} has reported")
                return

    async def _check_end(self) -> None:
        if 0 not in self.lost:
            self._note("no plane was lost")
        if not self.halted_at:
            self._note(f"the rollout has not halted; {len(self.failed_at)} devices failed")
        if self.size >= MANY and len(self.touched) >= self.size * 0.9:
            self._note("the halt has spared no device")
        for device in self.devices:
            if not device.is_silent and device.serials.get(1) != "":
                self._note(f"d{device.place} still serves the revoked certificate")
            for cert_id in () if device.is_silent else (*SET, *({IMPORTED} & self.first.keys())):
                if (cert_id, device.place) not in self.renewed:
                    self._note(f"d{device.place} has not got the renewed certificate {cert_id}")


def _wave_of(place: int, size: int, sizes: tuple[float, ...]) -> int:
    """Return the wave of a device, from 1, for sizes that are numbers of devices or, below 1, shares."""
    end = 0
    for wave, wanted in enumerate(sizes, start=1):
        end += int(wanted) if wanted >= 1 else -int(-size * wanted // 1)
        if place < end:
            return wave
    return len(sizes) + 1


def _plane_on(database: Database, keyring: Keyring, now: Callable[[], float]) -> Plane:
    with database.transaction():
        return Plane(
            None, database, keyring, settings=PlaneSettings(), wall_now=now, monotonic=trio.current_time, offload=inline
        )


def _registered(plane: Plane, facts: DeviceFacts, tag: str) -> int:
    device_id = int(plane.devices.expect(USER, facts)["id"])
    facts = attrs.evolve(facts, features=(ATOMIC_BATCH,))
    plane.devices.activate(device_id, facts, bytes(PrivateKey.generate().public_key))
    plane.devices.tags.change(USER, [device_id], add=[tag])
    return device_id


async def _save_sightings(plane: Plane) -> None:
    while True:
        await trio.sleep(30)
        await plane.work(plane.devices.save_sightings)


def live(seed: int, size: int, folder: Path) -> Day:
    """Return a day that has been lived."""
    day = Day(seed, size, folder / f"plane-{seed}.db")
    run_seeded(seed, day.run)
    return day
