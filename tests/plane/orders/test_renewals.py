"""Renewals on both engines: what is due is ordered once, CAs are asked for windows, and late ones are reported."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import pytest
from engine_plane import WALL, plane_on, registered

from certctrl.plane.core import Plane
from certctrl.plane.errors import ErrorResponse
from certctrl.plane.health.problems import ProblemName
from certctrl.plane.issuers.issuer import IssuerContext, IssuerError, RenewalWindow
from certctrl.plane.issuers.registry import NewIssuer, installed_kinds
from certctrl.plane.orders import renewals
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring

Open = Callable[[], Database]


@attrs.define
class Clock:
    wall: float = WALL


@attrs.define
class Windows:
    """A kind of issuer that is the built-in CA, but names windows and may fail."""

    window: RenewalWindow | None = None
    failure: str = ""
    asked: int = 0

    def check_settings(self, settings: Mapping[str, Any], secrets: Mapping[str, bytes]) -> dict[str, Any]:
        return dict(settings)

    def make(self, settings: Mapping[str, Any], secrets: Mapping[str, bytes], context: IssuerContext) -> Any:
        inner = installed_kinds()["builtin"].make({}, {}, context)
        kind = self

        class Issuer:
            async def issue(self, request: Any) -> Any:
                if kind.failure:
                    raise IssuerError(kind.failure, fix="wait")
                return await inner.issue(request)

            async def renewal_window(self, certificate_pem: str, chain_pem: str) -> RenewalWindow | None:
                kind.asked += 1
                if kind.failure:
                    raise IssuerError(kind.failure)
                return kind.window

        return Issuer()


@attrs.define
class Fleet:
    """Planes on one database with one clock, a device, and a scripted issuer named ``scripted``."""

    planes: list[Plane]
    clock: Clock
    kind: Windows
    device: int = 0

    @property
    def plane(self) -> Plane:
        return self.planes[0]

    async def issue(self, name: str = "a.example", *, on_device: bool = True, issuer: str = "") -> dict[str, Any]:
        device_ids = [self.device] if on_device else []
        row = await self.plane.certificates.issue(1, [name], device_ids=device_ids, issuer=issuer)
        await self.work()
        return await self.shown(row["id"])

    async def shown(self, cert_id: int) -> dict[str, Any]:
        row: dict[str, Any] = await self.plane.work(self.plane.certificates.show, 1, cert_id)
        return row

    async def orders(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = await self.plane.work(self.plane.orders.page_of_user, 1, 0, 1000)
        return rows

    async def work(self) -> None:
        """Make the first plane work on the orders that are due."""
        while await self.plane.order_runner.run_once():
            pass

    async def round(self, plane: int = 0) -> float:
        """Run the next round."""
        self.clock.wall += renewals.PLAN_SECONDS
        self.planes[plane].renewals._problems._next = float("-inf")
        return await self.planes[plane].renewals.round()


@pytest.fixture
async def fleet(open_database: Open) -> Fleet:
    clock, keyring, kind = Clock(), Keyring.open(None), Windows()
    planes = [plane_on(open_database(), keyring, lambda: clock.wall) for _ in range(2)]
    for plane in planes:
        plane.issuers._kinds = {**installed_kinds(), "scripted": kind}
    made = Fleet(planes, clock, kind)
    made.device, _ = await registered(planes[0])
    new = NewIssuer(name="scripted", kind="scripted", settings={})
    await planes[0].work(planes[0].issuers.put, new)
    return made


async def test_a_due_certificate_is_renewed_once(fleet: Fleet) -> None:
    row = await fleet.issue()
    await fleet.round()
    assert await fleet.orders() == []
    fleet.clock.wall += 61 * DAY
    for plane in (0, 1, 0, 1):
        await fleet.round(plane)
    (order,) = await fleet.orders()
    assert (order["action"], order["reason"], order["cert_id"]) == ("renew", "due", row["id"])
    await fleet.work()
    for plane in (0, 1):
        await fleet.round(plane)
    (order,) = await fleet.orders()
    assert order["state"] == "done"
    after = await fleet.shown(row["id"])
    assert after["serial_number"] != row["serial_number"]
    assert after["renew_at"] > row["renew_at"]
    page = await fleet.plane.work(fleet.plane.stream.read, fleet.device, None, 10)
    assert [signal["ref"].get("serial") for signal in page.signals][-1] == after["serial_number"]


async def test_what_is_not_renewed(fleet: Fleet) -> None:
    unused, revoked = await fleet.issue("unused.example", on_device=False), await fleet.issue("revoked.example")
    imported = await fleet.issue("imported.example")
    await fleet.plane.certificates.revoke(1, revoked["id"])
    sql = "UPDATE certificates SET issuer = 'import' WHERE id = ?"
    await fleet.plane.work(fleet.plane.database.run, sql, imported["id"])
    fleet.clock.wall += 80 * DAY
    await fleet.round()
    assert await fleet.orders() == []
    await fleet.plane.certificates.assign(1, fleet.device, unused["id"])
    await fleet.round()
    assert [order["cert_id"] for order in await fleet.orders()] == [unused["id"]]


async def test_an_imported_certificate_cannot_be_renewed(fleet: Fleet) -> None:
    row = await fleet.issue()
    sql = "UPDATE certificates SET issuer = 'import' WHERE id = ?"
    await fleet.plane.work(fleet.plane.database.run, sql, row["id"])
    for device_id in (None, fleet.device):
        with pytest.raises(ErrorResponse, match="was imported: get a new one") as caught:
            await fleet.plane.certificates.renew(1, row["id"], device_id=device_id)
        assert (caught.value.status, caught.value.key) == (409, "CERT_IMPORTED")


async def test_requests_of_agents_and_renewals_of_the_plane_do_not_double(fleet: Fleet) -> None:
    row = await fleet.issue()
    fleet.clock.wall += 61 * DAY
    await fleet.round()
    (order,) = await fleet.orders()
    answer = await fleet.plane.certificates.renew(1, row["id"], device_id=fleet.device)
    assert (answer["order_id"], answer["status"]) == (order["id"], "pending")
    await fleet.work()
    serial = (await fleet.shown(row["id"]))["serial_number"]
    again = await fleet.plane.certificates.renew(1, row["id"], device_id=fleet.device)
    assert again["serial_number"] == serial
    assert len(await fleet.orders()) == 1
    fleet.clock.wall += 60
    later = await fleet.plane.certificates.renew(1, row["id"], device_id=fleet.device)
    assert later["serial_number"] != serial, "later it is a request of its own"


async def test_a_fleet_that_is_due_at_once_is_ordered_bit_by_bit(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewals, "MAX_ORDERED", 3)
    monkeypatch.setattr(renewals, "MAX_WAITING", 5)
    for number in range(8):
        await fleet.issue(f"{number}.example")
    fleet.clock.wall += 61 * DAY
    counts = []
    for _ in range(4):
        await fleet.round()
        counts.append(len(await fleet.orders()))
    assert counts == [3, 5, 5, 5]
    await fleet.work()
    for _ in range(2):
        await fleet.round()
    await fleet.work()
    assert [order["state"] for order in await fleet.orders()] == ["done"] * 8


async def test_certificates_of_an_older_release_are_planned(fleet: Fleet) -> None:
    row = await fleet.issue()
    await fleet.plane.work(fleet.plane.database.run, "UPDATE certificates SET renew_at = NULL")
    await fleet.round()
    assert (await fleet.shown(row["id"]))["renew_at"] == row["renew_at"]


async def test_the_window_of_a_ca_decides(fleet: Fleet) -> None:
    row = await fleet.issue(issuer="scripted")
    fleet.kind.window = RenewalWindow(WALL + 5 * DAY, WALL + 5 * DAY, "", WALL + 7200)
    await fleet.round()
    await fleet.plane.renewals.ask()
    assert (await fleet.shown(row["id"]))["renew_at"] == "2026-09-26T14:13:20Z"
    fleet.clock.wall += 7100
    await fleet.plane.renewals.ask()
    assert fleet.kind.asked == 1, "asked again when the CA says"
    fleet.kind.window = RenewalWindow(WALL - 2 * DAY, WALL - DAY, "https://ca.example/incident")
    fleet.clock.wall += 101
    await fleet.plane.renewals.ask()
    assert fleet.kind.asked == 2
    await fleet.round()
    assert [order["cert_id"] for order in await fleet.orders() if order["action"] == "renew"] == [row["id"]]
    await fleet.work()
    assert (await fleet.shown(row["id"]))["serial_number"] != row["serial_number"]


async def test_a_ca_that_does_not_answer_changes_nothing(fleet: Fleet) -> None:
    row = await fleet.issue(issuer="scripted")
    fleet.kind.failure = "ca.example does not answer"
    await fleet.round()
    await fleet.plane.renewals.ask()
    assert (await fleet.shown(row["id"]))["renew_at"] == row["renew_at"]
    fleet.clock.wall += 3600
    await fleet.plane.renewals.ask()
    assert fleet.kind.asked == 1
    fleet.clock.wall += 5 * 3600
    await fleet.plane.renewals.ask()
    assert fleet.kind.asked == 2


async def test_the_window_of_a_replaced_certificate_is_forgotten(fleet: Fleet) -> None:
    row = await fleet.issue(issuer="scripted")
    await fleet.round()
    (job,) = await fleet.plane.work(fleet.plane.jobs.claim, renewals.WINDOW_JOB, limit=1, lease_seconds=60)
    old = await fleet.plane.work(fleet.plane.renewals._begin, job)
    assert old is not None
    await fleet.plane.certificates.renew(1, row["id"])
    await fleet.work()
    renewed = await fleet.shown(row["id"])
    window = RenewalWindow(WALL - 2, WALL - 1)
    await fleet.plane.work(fleet.plane.renewals._end, job, old, window, "")
    assert (await fleet.shown(row["id"]))["renew_at"] == renewed["renew_at"]
    await fleet.round()
    await fleet.plane.renewals.ask()
    assert fleet.kind.asked == 1, "the CA is asked for the window of the new one"
    fleet.clock.wall += 2 * DAY
    await fleet.plane.renewals.ask()
    keys = await fleet.plane.work(
        fleet.plane.database.all, "SELECT job_key FROM jobs WHERE kind = ?", renewals.WINDOW_JOB
    )
    assert [key["job_key"] for key in keys] == [f"{row['id']}:{renewed['serial_number']}"]


async def test_a_failing_renewal_is_retried_and_reported_and_leaves_the_certificate(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    row = await fleet.issue(issuer="scripted")
    fleet.kind.failure = "order limit reached"
    problems, ends = fleet.plane.problems, WALL + 90 * DAY
    fleet.clock.wall = WALL + 60 * DAY + 1
    await fleet.round()
    for _ in range(12):
        await fleet.work()
        fleet.clock.wall += 0.5 * DAY
    (first, *_) = [order for order in await fleet.orders() if order["action"] == "renew"]
    assert first["state"] == "ready"
    assert first["attempts"] > 10
    assert (await fleet.shown(row["id"]))["serial_number"] == row["serial_number"]
    materials = await fleet.plane.work(fleet.plane.certificates.materials, fleet.device, row["id"])
    assert materials["serial_number"] == row["serial_number"]

    await fleet.round()
    (late,) = [p for p in problems.now() if p.name is ProblemName.RENEWALS_LATE]
    assert late.what.endswith(f"order {first['id']}: order limit reached")
    fleet.clock.wall = ends - 8 * DAY
    caplog.clear()
    with caplog.at_level(logging.WARNING, "certctrl.Renewals"):
        await fleet.round()
        await fleet.round()
    assert [record.levelname for record in caplog.records if record.name == "certctrl.Renewals"] == ["ERROR"]
    assert ProblemName.RENEWALS_ENDING in problems
    assert ProblemName.RENEWALS_LATE not in problems

    fleet.kind.failure = ""
    await fleet.work()
    await fleet.round()
    assert (await fleet.shown(row["id"]))["serial_number"] != row["serial_number"]
    assert not problems.now()


async def test_the_owner_of_an_imported_certificate_is_warned(fleet: Fleet) -> None:
    row = await fleet.issue()
    sql = "UPDATE certificates SET issuer = 'import' WHERE id = ?"
    await fleet.plane.work(fleet.plane.database.run, sql, row["id"])
    fleet.clock.wall = WALL + 59 * DAY
    await fleet.round()
    assert not fleet.plane.problems.now()
    fleet.clock.wall = WALL + 61 * DAY
    await fleet.round()
    (problem,) = fleet.plane.problems.now()
    assert problem.name is ProblemName.IMPORTS_ENDING
    assert problem.what.endswith("get the next one from its CA, then cert-ctrl plane import")
    assert not problem.name.prevents_ready


async def test_the_first_round_is_planned_again_if_the_clock_was_set_back(fleet: Fleet) -> None:
    assert await fleet.round() <= renewals.ROUND_SECONDS
    fleet.clock.wall -= 10 * DAY
    await fleet.issue()
    fleet.clock.wall += 61 * DAY
    await fleet.round()
    assert len(await fleet.orders()) == 1
    fleet.clock.wall -= 200 * DAY
    await fleet.round()
    job = await fleet.plane.work(fleet.plane.database.one, "SELECT due FROM jobs WHERE kind = 'renewals'")
    assert job is not None
    assert job["due"] <= fleet.clock.wall + renewals.ROUND_SECONDS


async def test_the_next_round_comes_soon_while_there_is_more(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if so many orders wait that none is added: they may be done in a moment."""
    monkeypatch.setattr(renewals, "MAX_WAITING", 1)
    for number in range(2):
        await fleet.issue(f"{number}.example")
    assert await fleet.round() > 1
    fleet.clock.wall += 61 * DAY
    for _ in range(2):
        assert await fleet.round() == renewals.FULL_PAUSE
    assert len(await fleet.orders()) == 1
