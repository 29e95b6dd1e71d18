"""The expiry guard requests missing renewals, sees new certificates, and alerts with a reason."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock
from trio_util import AsyncBool

from certctrl.agent.counters import Counters
from certctrl.agent.expiry_guard import guard_expiry
from certctrl.errors import PlaneError
from certctrl.model.certificate import CertFacts
from certctrl.model.config import AgentConfig
from certctrl.model.plan import OutcomeKind
from certctrl.model.records import CertRecord, Stage

DAY = 86_400.0
LIVE = CertRecord(
    facts=CertFacts(
        cert_id=1, name="a.example", domains=("a.example",), serial="01", not_before=0.0, not_after=90 * DAY
    ),
    generation="g1",
    activated="g1",
    stage=Stage.ACTIVATED,
)
STAGED = attrs.evolve(LIVE, staged="g2")
HERE = attrs.evolve(
    LIVE, facts=attrs.evolve(LIVE.facts, serial="02", not_before=60 * DAY, not_after=150 * DAY), generation="g2"
)


@attrs.define(eq=False)
class Host:
    """The part of an agent that the guard uses; its clock starts at ``begins`` and follows Trio's."""

    begins: float
    records: dict[int, CertRecord]
    here: CertRecord | None = None
    device_id: str = "d-1"
    refuses: bool = False
    """Whether the plane refuses each request."""
    asked: list[float] = attrs.field(factory=list)
    alerts: list[str] = attrs.field(factory=list)
    problems: dict[str, tuple[str, ...]] = attrs.field(factory=dict)
    config: AgentConfig = attrs.field(factory=AgentConfig)
    counters: Counters = attrs.field(factory=Counters)
    lifetimes_changed: AsyncBool = attrs.field(factory=AsyncBool)
    log: logging.Logger = attrs.field(factory=lambda: logging.getLogger("test"))

    @property
    def installer(self) -> Any:
        return self

    tokens = plane = installer

    def wall_now(self) -> float:
        return self.begins + trio.current_time()

    def last_error(self, cert_id: int) -> str:
        return "nginx: bad" if self.records[cert_id].failing else ""

    async def renewal_here(self, record: CertRecord) -> CertRecord | None:
        return self.here

    async def identity(self) -> tuple[str, str]:
        return "1", "1"

    async def authorized(self, _call: Callable[[str], Any]) -> None:
        self.asked.append(trio.current_time())
        if self.refuses:
            raise PlaneError("no", status=403)

    async def alert(self, alert: dict[str, Any]) -> None:
        self.alerts.append(str(alert["what"]))

    def report_problem(self, key: str, *what: str) -> None:
        self.problems[key] = what

    def clear_problem(self, key: str) -> None:
        self.problems.pop(key, None)

    async def watch(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await guard_expiry(self)  # type: ignore[arg-type]


@pytest.fixture
def ahead(autojump_clock: MockClock) -> MockClock:
    return autojump_clock


async def test_a_missing_renewal_is_requested_every_six_hours(ahead: MockClock) -> None:
    host = Host(60.5 * DAY, {1: LIVE})
    await host.watch(DAY - 1)
    assert len(host.asked) == 4 and host.alerts == []


async def test_a_refused_request_is_repeated_within_a_tenth_of_the_remaining_life(ahead: MockClock) -> None:
    host = Host(90 * DAY - 3600, {1: LIVE}, refuses=True)
    await host.watch(3500)
    pauses = [later - earlier for earlier, later in zip(host.asked, host.asked[1:], strict=False)]
    assert all(pause <= max(65, (3600 - at) / 10 + 5) for at, pause in zip(host.asked, pauses, strict=False))
    assert len(pauses) > 15


@pytest.mark.parametrize("step", [-3 * 3600.0, 3 * 3600.0])
async def test_a_request_is_repeated_in_its_time_although_the_clock_was_set(ahead: MockClock, step: float) -> None:
    host = Host(62 * DAY, {1: LIVE})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.watch, DAY - 1)
        await trio.sleep(600)
        host.begins += step
    assert [round(at / 3600) for at in host.asked] == [0, 6, 12, 18]


async def test_a_staged_renewal_is_not_requested_again(ahead: MockClock) -> None:
    host = Host(60.5 * DAY, {1: STAGED}, HERE)
    await host.watch(10 * DAY)
    assert host.asked == []


async def test_a_staged_renewal_that_is_due_itself_is_requested_again(ahead: MockClock) -> None:
    host = Host(119.5 * DAY, {1: STAGED}, HERE)
    await host.watch(DAY)
    assert host.asked and host.begins + host.asked[0] >= 120 * DAY


@pytest.mark.parametrize(
    ("changes", "here", "why", "fix"),
    [
        ({}, None, "no renewal has arrived", "on the plane"),
        ({}, HERE, "waits for the maintenance window", "apply --now"),
        ({"held": True}, HERE, "held back by a rollback", "rollback --domain a.example --release"),
        ({"last_outcome": OutcomeKind.ROLLED_BACK}, HERE, "could not be deployed: nginx: bad", "apply --now"),
    ],
)
async def test_the_alert_names_the_reason_and_the_fix(
    changes: dict[str, Any], here: CertRecord | None, why: str, fix: str, ahead: MockClock
) -> None:
    host = Host(76 * DAY, {1: attrs.evolve(LIVE, staged="g2" if here else "", **changes)}, here)
    await host.watch(3600)
    ((what, advice),) = host.problems.values()
    assert why in what and fix in advice and host.alerts == [what]


async def test_a_short_lived_certificate_deployed_after_a_check_is_not_missed(ahead: MockClock) -> None:
    host = Host(0.0, {})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.watch, 3600)
        await trio.sleep(100)
        host.records[1] = attrs.evolve(LIVE, facts=attrs.evolve(LIVE.facts, not_before=0.0, not_after=900.0))
        host.lifetimes_changed.value = True
    assert host.asked and host.asked[0] <= 520, "it is due from 450 on"
    assert any("no renewal has arrived" in what for what in host.alerts)
