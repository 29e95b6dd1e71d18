"""Conditions that last are alerted once each: failures, quarantine, holds, a silent plane, a copied directory."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock
from trio_util import RepeatedEvent

from certctrl.agent.alert_watch import INTERVAL, MAX_SEPARATE, alert_forever
from certctrl.agent.context import Problem
from certctrl.agent.counters import Counters
from certctrl.install.deploy.retry_table import RetryTable
from certctrl.install.plan.retries import Failure
from certctrl.model.certificate import CertFacts
from certctrl.model.config import AgentConfig, ApplicationConfig
from certctrl.model.records import CertRecord, Retry, RetryKind
from certctrl.model.signals import CertRenewed

DAY = 86_400.0
RECORD = CertRecord(facts=CertFacts(cert_id=7, name="a.example", domains=("a.example",)), generation="g")


@attrs.define(eq=False)
class Host:
    """The part of an agent that is watched."""

    heard: float | None = None
    """When the plane answered last, on Trio's clock; None: always now."""
    records: dict[int, CertRecord] = attrs.field(factory=lambda: {7: RECORD})
    alerts: list[dict[str, Any]] = attrs.field(factory=list)
    problems: dict[str, Problem] = attrs.field(factory=dict)
    config: AgentConfig = attrs.field(factory=AgentConfig)
    counters: Counters = attrs.field(factory=Counters)
    log: logging.Logger = attrs.field(factory=lambda: logging.getLogger("test"))
    device_id: str = "d-1"
    polled: RepeatedEvent = attrs.field(factory=RepeatedEvent)
    started_mono: float = 0.0
    retries: RetryTable = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.retries = RetryTable(
            load=lambda: ((), False), wall_now=self.wall_now, steady_now=trio.current_time, random=lambda: 1.0,
            settings=ApplicationConfig,
        )  # fmt: skip

    @property
    def installer(self) -> Any:
        return self

    @property
    def session(self) -> Any:
        return SimpleNamespace(last_answer_at=trio.current_time() if self.heard is None else self.heard)

    def wall_now(self) -> float:
        return 100 * DAY + trio.current_time()

    def next_try_at(self, retry: Retry) -> float:
        return self.wall_now() + self.retries.left(retry.key)

    async def alert(self, alert: dict[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        self.alerts.append(alert)

    def fail(self, kind: RetryKind = RetryKind.REFUSED, resource: str = "cert:7", **more: Any) -> None:
        self.retries.failed(Failure(resource=resource, kind=kind, error="reload: exited with 1", **more))

    async def watch(self, seconds: float) -> list[str]:
        """Watch for a time and return the kinds of the alerts so far."""
        await trio.sleep(seconds)
        return [alert["alert"] for alert in self.alerts]


async def watching(host: Host, nursery: trio.Nursery) -> Host:
    nursery.start_soon(alert_forever, host)
    await trio.lowlevel.checkpoint()
    return host


async def test_what_fails_again_and_again_is_alerted_then_its_quarantine(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    host = await watching(Host(), nursery)
    for tries, kinds in ((1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (6, 2)):
        host.fail(signal=CertRenewed(ts_ms=1, cert_id=7))
        assert await host.watch(5) == ["failing", "quarantined"][:kinds], tries
    first, second = host.alerts
    assert first["what"] == "certificate 7 (a.example) has failed 3 times: reload: exited with 1"
    assert "`cert-ctrl apply --now`" in first["fix"]
    assert {key: first[key] for key in ("device_id", "cert_id", "name", "signal", "attempts", "error")} == {
        "device_id": "d-1", "cert_id": 7, "name": "a.example", "signal": "cert.renewed", "attempts": 3,
        "error": "reload: exited with 1",
    }  # fmt: skip
    assert first["next_try_at"] > first["at"] > 100 * DAY
    assert "in quarantine, and retried every 6.0 hours" in second["what"]
    assert host.counters.alerts == {"failing": 1, "quarantined": 1}


async def test_a_new_failure_after_a_success_is_alerted_again(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    host = await watching(Host(), nursery)
    for count in (1, 2):
        for kind in (RetryKind.DOWN, RetryKind.DOWN, RetryKind.DOWN, RetryKind.DOWN):
            host.fail(kind)
            await host.watch(5)
        assert await host.watch(0) == ["failing"] * count
        host.retries.succeeded("cert:7")
        await host.watch(5)


async def test_waiting_for_the_plane_is_no_failure(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    host = await watching(Host(), nursery)
    for _ in range(30):
        host.fail(RetryKind.WAITING)
        await host.watch(5)
    assert host.alerts == []


async def test_items_and_install_configs_are_named(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    host = await watching(Host(records={}), nursery)
    for resource in ("install", "ca:3", "cert:9"):
        for _ in range(3):
            host.fail(RetryKind.PENDING, resource)
        await host.watch(5)
    assert [one["what"].partition(" has failed")[0] for one in host.alerts] == [
        "the install config",
        "CA 3",
        "certificate 9",
    ]


async def test_many_that_begin_to_fail_together_share_an_alert(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    host = Host(records={n: attrs.evolve(RECORD, facts=CertFacts(cert_id=n, name=f"c{n}")) for n in range(100)})
    await watching(host, nursery)
    for n in range(100):
        for _ in range(3):
            host.fail(RetryKind.DOWN, f"cert:{n}")
    assert await host.watch(INTERVAL[1] * 3) == ["failing"]
    assert len(host.alerts[0]["subjects"]) == 100 and "and 80 more" in host.alerts[0]["what"]
    for n in range(100, 100 + MAX_SEPARATE):
        for _ in range(3):
            host.fail(RetryKind.DOWN, f"cert:{n}")
    assert await host.watch(INTERVAL[1] * 3) == ["failing"] * (1 + MAX_SEPARATE)


async def test_a_hold_that_was_forgotten_is_alerted(
    autojump_clock: MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("certctrl.agent.alert_watch.INTERVAL", (300.0, 600.0))  # it looks for a month
    host = await watching(Host(), nursery)
    host.records[7] = attrs.evolve(RECORD, held=True, held_since=host.wall_now(), staged="h")
    assert await host.watch(3 * DAY - 60) == []
    assert await host.watch(600) == ["held"]
    assert "for 3.0 days, while a renewal waits" in host.alerts[0]["what"]
    assert host.alerts[0]["fix"] == "cert-ctrl rollback --domain a.example --release"
    assert await host.watch(30 * DAY) == ["held"]


async def test_a_silent_plane_is_alerted(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    host = await watching(Host(), nursery)
    assert await host.watch(3600) == []
    host.heard = trio.current_time()
    assert await host.watch(200) == []
    assert await host.watch(300) == ["stale"]
    host.heard = None
    await host.watch(200)
    host.heard = trio.current_time()
    assert await host.watch(600) == ["stale", "stale"]


async def test_a_copied_directory_is_alerted(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    host = await watching(Host(), nursery)
    host.problems["copies"] = Problem(what="another agent polls as this device", since=0.0, fix="stop one")
    assert await host.watch(3600) == ["copies"]
    assert (host.alerts[0]["what"], host.alerts[0]["fix"]) == ("another agent polls as this device", "stop one")
