"""What a comparison of the whole host admits, reports and leaves alone; and when the next one comes."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from handler_world import AFTER, HOUR, LIVE, NOW, THERE, FakePlane, World, refused
from trio.testing import MockClock

from certctrl.agent.context import Agent
from certctrl.agent.lost import NAMES, check_disk
from certctrl.agent.reconcile import (
    BEHIND,
    FIRST_RETRY,
    LAST_RETRY,
    MAX_DIFFERENCES,
    UNKNOWN_CAS,
    plan_resync,
    reconcile_forever,
    try_resync,
)
from certctrl.errors import DiskError, NotRegisteredError, PlaneError, TransportError
from certctrl.model.certificate import CertificateSummary
from certctrl.model.records import CertRecord, Retry, RetryKind, Stage, Standing
from certctrl.model.signals import AtomicBatch, CaAssigned, CertRenewed, CertRevoked, InstallUpdated, Signal

TS = int(NOW * 1000)
ITEM = {"id": "a", "type": "import_ca"}
RENEWED, REVOKED = CertRenewed(ts_ms=TS, cert_id=1, serial="0a"), CertRevoked(ts_ms=TS, cert_id=1)
NEWER = attrs.evolve(THERE, serial_number="0b", fingerprint_sha256="bb", not_before=AFTER)
OLDER = attrs.evolve(THERE, serial_number="09", fingerprint_sha256="99", not_before="2020-01-01T00:00:00Z")
UNKNOWN = "alert:unknown-certificates:"


@pytest.fixture
def scene(tmp_path: Path) -> World:
    return World(tmp_path / "agent")


def second(record: CertRecord = LIVE) -> CertRecord:
    facts = attrs.evolve(record.facts, cert_id=2, name="b.example", domains=("b.example",))
    return attrs.evolve(record, facts=facts)


@pytest.mark.parametrize(
    ("listed", "record", "expected"),
    [
        (None, None, []),
        (THERE, LIVE, []),
        (THERE, None, [RENEWED]),
        (attrs.evolve(THERE, status="revoked"), LIVE, [REVOKED]),
        (NEWER, LIVE, [attrs.evolve(RENEWED, serial="0b")]),
        (attrs.evolve(NEWER, serial_number=""), LIVE, [attrs.evolve(RENEWED, serial=None)]),
        (attrs.evolve(OLDER, not_before="2023-11-14T21:56:40Z"), LIVE, [attrs.evolve(RENEWED, serial="09")]),
        (attrs.evolve(OLDER, not_before="unknown"), LIVE, [attrs.evolve(RENEWED, serial="09")]),
        (OLDER, LIVE, []),
        (None, LIVE, []),
        *((attrs.evolve(THERE, status=status), None, [RENEWED]) for status in ("", "issued", "valid")),
        (attrs.evolve(THERE, status="pending"), None, []),
    ],
)
async def test_the_differences_are_in_the_inbox_durably(
    scene: World, listed: CertificateSummary | None, record: CertRecord | None, expected: list[Signal]
) -> None:
    scene.has(record)
    scene.shows(listed)
    assert await plan_resync(scene.agent, "test") == len(expected)
    assert scene.admitted == expected
    assert [entry.signal for entry in scene.store.session.load_inbox()] == expected
    assert scene.agent.counters.reconciles == {"ok": 1}
    assert scene.did == [], "a comparison changes nothing itself"


@pytest.mark.parametrize("changed", [True, False])
@pytest.mark.parametrize("to_do", [True, False])
async def test_items_are_carried_out_if_they_changed_or_something_is_left_to_do(
    scene: World, changed: bool, to_do: bool
) -> None:
    scene.plane.offers(ITEM, version=4)
    assert await plan_resync(scene.agent, "test") == 1
    scene.plane.now += HOUR  # its clock counts, whatever this host's says
    if changed:
        scene.plane.offers(ITEM, {"id": "b", "type": "import_ca"}, version=5)
    scene.installer.to_do = to_do
    assert await plan_resync(scene.agent, "test") == (changed or to_do)
    expected = InstallUpdated(TS + 3_600_000, 7, 5 if changed else 4)
    assert [one for one in scene.admitted if one.ts_ms != TS] == ([expected] if changed or to_do else [])


async def test_without_an_install_config_the_signal_names_none(scene: World) -> None:
    scene.installer.to_do = True
    await plan_resync(scene.agent, "test")
    assert scene.admitted == [InstallUpdated(TS, None, None)]


async def test_certificates_are_compared_even_if_the_install_config_is_refused(scene: World) -> None:
    scene.plane.config = {"id": 7, "version": 1, "installs": [ITEM], "installs_hash_b64": "AAAA"}
    scene.shows(THERE)
    assert await plan_resync(scene.agent, "test") == 1
    assert scene.admitted == [RENEWED] and "install-config" in scene.agent.problems
    assert BEHIND not in scene.agent.problems


@pytest.mark.parametrize("call", ["config", "list", "cas"])
@pytest.mark.parametrize("error", [refused(503), refused(403), TransportError("no route")])
async def test_without_an_answer_nothing_is_admitted(scene: World, call: str, error: Exception) -> None:
    scene.shows(THERE)
    scene.has(second())
    scene.plane.fails[call] = error
    with pytest.raises(type(error)):
        await plan_resync(scene.agent, "test")
    assert scene.admitted == [] and scene.agent.counters.reconciles == {}
    assert scene.installer.records[2].standing is Standing.KNOWN


async def test_what_is_not_on_disk_is_fetched_again(scene: World) -> None:
    scene.has(LIVE)
    scene.shows(THERE)
    scene.installer.missing = {1}
    await plan_resync(scene.agent, "test")
    assert scene.admitted == [RENEWED] and "lost-certificates" in scene.agent.problems


async def test_public_names_that_were_removed_are_restored(scene: World, caplog: pytest.LogCaptureFixture) -> None:
    scene.installer.broken_names = ["certs/a.example.crt"]
    await check_disk(scene.agent, change=False)
    assert "certs/a.example.crt" in scene.agent.problems[NAMES].what, "`plan` only names them"
    scene.agent.clear_problem(NAMES)
    with caplog.at_level(logging.WARNING):
        await plan_resync(scene.agent, "test")
    assert "certs/a.example.crt" in caplog.text and NAMES not in scene.agent.problems


async def test_idle_items_are_noted(scene: World) -> None:
    scene.installer.waits = {"a": "certificate 9 is not on this host"}
    await plan_resync(scene.agent, "test")
    assert scene.agent.idle_items == scene.installer.waits


# --- a plane that is behind, emptied, or another one ------------------------------------------------------------------


async def test_a_plane_that_is_behind_takes_nothing_away(scene: World) -> None:
    scene.has(LIVE, second())
    scene.installer.ca_names = {3: "Private CA"}
    scene.plane.ca_list = {}
    scene.shows(OLDER)
    assert await plan_resync(scene.agent, "test") == 0
    assert "certificate 1 (a.example) is older there than here" in scene.agent.problems[BEHIND].what
    assert scene.installer.records[2].standing is Standing.KNOWN and UNKNOWN not in scene.agent.problems
    assert scene.installer.cas == {3} and scene.did == []
    scene.plane.certificates = {1: THERE}
    await plan_resync(scene.agent, "test")
    assert BEHIND not in scene.agent.problems
    assert scene.installer.records[2].standing is Standing.UNLISTED and UNKNOWN in scene.agent.problems


async def test_an_older_install_config_shows_that_the_plane_is_behind(scene: World) -> None:
    scene.has(LIVE, second())
    scene.shows(THERE)
    scene.plane.offers(ITEM, version=3)
    await plan_resync(scene.agent, "test")
    scene.installer.records[2] = second()
    scene.plane.offers(ITEM, version=2)
    await plan_resync(scene.agent, "test")
    assert "version 2 is older than version 3" in scene.agent.problems[BEHIND].what
    assert scene.installer.records[2].standing is Standing.KNOWN


@pytest.mark.parametrize(
    ("here", "listed", "assigned", "unknown"),
    [
        ({}, None, [], ""),
        ({3: "A"}, None, [], ""),
        ({3: "A"}, {}, [], "CA 3"),
        ({3: "A", 4: "B"}, {}, [], "CA 3, 4"),
        ({3: "A", 4: "B"}, {4: "B"}, [], "CA 3"),
        ({3: "A"}, {3: "A"}, [], ""),
        ({3: "A"}, {5: "E", 4: ""}, [CaAssigned(TS, 4), CaAssigned(TS, 5, None, "E")], "CA 3"),
        ({}, {3: "A"}, [CaAssigned(TS, 3, None, "A")], ""),
    ],
)
async def test_a_comparison_adds_cas_and_removes_none(
    scene: World, here: dict[int, str], listed: dict[int, str] | None, assigned: list[Signal], unknown: str
) -> None:
    scene.installer.ca_names, scene.plane.ca_list = dict(here), listed
    scene.agent.report_problem(UNKNOWN_CAS, "of the comparison before")
    assert await plan_resync(scene.agent, "test") == len(assigned)
    assert scene.admitted == assigned
    assert scene.installer.ca_names == here and scene.did == []
    found = scene.agent.problems.get(UNKNOWN_CAS)
    assert (found is not None) is bool(unknown)
    if found is not None:
        assert found.what == f"the control plane does not list {unknown} of this host; still trusted"
        assert found.fix.endswith("cert-ctrl forget --ca 3")


async def test_an_emptied_plane_is_no_order(scene: World) -> None:
    scene.has(LIVE, second())
    assert await plan_resync(scene.agent, "test") == 0
    assert [one.standing for one in scene.installer.records.values()] == [Standing.UNLISTED] * 2
    assert scene.installer.alerts == ["unknown-certificates"]
    await plan_resync(scene.agent, "test")
    assert scene.installer.alerts == ["unknown-certificates"], "once while it lasts"
    scene.plane.listed = [THERE, attrs.evolve(THERE, id=2, domain_name="b.example")]
    await plan_resync(scene.agent, "test")
    assert [one.standing for one in scene.installer.records.values()] == [Standing.KNOWN] * 2
    assert UNKNOWN not in scene.agent.problems


@pytest.mark.parametrize("new_stream", [True, False])
@pytest.mark.parametrize(
    ("records", "listed", "emptied"),
    [
        ([LIVE], None, True),
        ([LIVE, second()], THERE, False),
        ([], THERE, True),
        ([attrs.evolve(LIVE, standing=Standing.FOREIGN)], OLDER, True),
    ],
)
async def test_a_new_stream_of_an_emptied_plane_begins_now(
    scene: World, new_stream: bool, records: list[CertRecord], listed: CertificateSummary | None, emptied: bool
) -> None:
    """What it sent before is no order; a plane that only trimmed its stream still knows a certificate."""
    scene.follow(NOW - HOUR)
    scene.has(*records)
    scene.shows(listed)
    await plan_resync(scene.agent, "test", new_stream=new_stream)
    known = scene.store.session.load_known_plane()
    assert known is not None and known.since == (NOW if new_stream and emptied else NOW - HOUR)


async def test_a_certificate_deployed_during_a_comparison_is_not_unlisted(
    scene: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.has(LIVE)
    scene.shows(THERE)
    fetch = type(scene.plane).fetch_certificates

    async def meanwhile(plane: FakePlane, token: str) -> list[CertificateSummary]:
        found: list[CertificateSummary] = await fetch(plane, token)
        scene.has(second())
        return found

    monkeypatch.setattr(type(scene.plane), "fetch_certificates", meanwhile)
    await plan_resync(scene.agent, "test")
    assert scene.installer.records[2].standing is Standing.KNOWN
    monkeypatch.undo()
    await plan_resync(scene.agent, "test")
    assert scene.installer.records[2].standing is Standing.UNLISTED


@pytest.mark.parametrize(
    ("record", "status", "before", "after"),
    [
        (attrs.evolve(LIVE, generation="", stage=Stage.WITHDRAWN, revoked=True, alarmed=True), "revoked", False, True),
        (attrs.evolve(LIVE, generation="", stage=Stage.WITHDRAWN, revoked=True, alarmed=True), None, True, False),
        (LIVE, "active", True, True),
        (attrs.evolve(LIVE, generation="", standing=Standing.FOREIGN), "revoked", False, False),
        (attrs.evolve(LIVE, generation="", standing=Standing.FOREIGN), None, True, True),
    ],
)
async def test_revocations_stay_in_the_status_while_the_plane_lists_them(
    scene: World, record: CertRecord, status: str | None, before: bool, after: bool
) -> None:
    """Without another alert. One that is active again is cleared once its material is deployed."""
    scene.has(record)
    scene.shows(attrs.evolve(THERE, status=status) if status is not None else None)
    if before:
        scene.agent.report_problem("alert:revoked:1", "said")
    await plan_resync(scene.agent, "test")
    assert ("alert:revoked:1" in scene.agent.problems) is after
    assert "revoked" not in scene.installer.alerts


# --- a disk that refuses ----------------------------------------------------------------------------------------------


async def test_what_is_retried_keeps_its_pauses_while_the_disk_refuses(
    scene: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new signal would start again with the shortest pause at every comparison."""

    async def secure() -> None:
        raise DiskError("disk full")

    scene.installer.retries.put(Retry(resource="cert:1", kind=RetryKind.DISK, failures=7, signal=RENEWED))
    scene.plane.now += HOUR
    scene.plane.listed = [THERE, attrs.evolve(THERE, id=2, status="active")]
    with monkeypatch.context() as patch:
        patch.setattr(type(scene.agent.inbox), "secure", lambda _: secure())
        with pytest.raises(DiskError):
            await plan_resync(scene.agent, "test")
        assert [signal.resource for signal in scene.admitted] == ["cert:2"]
        assert scene.agent.counters.reconciles == {}
    await plan_resync(scene.agent, "test")
    assert [signal.resource for signal in scene.admitted] == ["cert:2", "cert:1"]


# --- when -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, (1, "")),
        (TransportError("no route"), (0, "no route")),
        (refused(500), (0, "refused")),
        (refused(503), (0, "refused")),
        (refused(499), None),
        (refused(403), None),
    ],
)
async def test_an_unreachable_plane_is_reported_and_a_refusal_raised(
    scene: World, error: Exception | None, expected: tuple[int, str] | None
) -> None:
    scene.shows(THERE)
    scene.plane.fails = {"list": error} if error is not None else {}
    if expected is None:
        with pytest.raises(PlaneError):
            await try_resync(scene.agent, "test")
    else:
        assert await try_resync(scene.agent, "test") == expected


class Comparisons:
    """Takes the place of `plan_resync`: notes when and why, and ends as scripted, by default well."""

    def __init__(self, *ends: Exception | str | None) -> None:
        self.ends = list(ends)
        self.calls: list[tuple[float, str]] = []

    async def __call__(self, agent: Agent, why: str) -> int:
        await trio.lowlevel.checkpoint()
        self.calls.append((trio.current_time(), why))
        end = self.ends.pop(0) if self.ends else None
        agent.clear_problem(BEHIND)
        if isinstance(end, Exception):
            raise end
        if end is not None:
            agent.report_problem(end, "said")
        return 0


async def compared(scene: World, patch: pytest.MonkeyPatch, hours: float, *ends: Exception | str | None) -> list[Any]:
    comparisons = Comparisons(*ends)
    patch.setattr("certctrl.agent.reconcile.plan_resync", comparisons)
    with trio.move_on_after(hours * HOUR):
        await reconcile_forever(scene.agent)
    return comparisons.calls


async def test_many_differences_are_admitted_in_portions(scene: World) -> None:
    """Choosing the next signal takes time for each that waits: with 20 000, polls would pause for very long."""
    count = 2 * MAX_DIFFERENCES + 500
    scene.plane.listed = [attrs.evolve(THERE, id=number) for number in range(1, count + 1)]
    for portion in (MAX_DIFFERENCES, MAX_DIFFERENCES, 500, 0):
        before = len(scene.admitted)
        scene.agent.reconcile_requested.value = False
        assert await plan_resync(scene.agent, "test") == count
        assert len(scene.admitted) - before == portion
        more = len(scene.admitted) < count
        assert scene.agent.reconcile_requested.value is more, "the next comparison follows"
    assert {signal.resource for signal in scene.admitted} == {f"cert:{number}" for number in range(1, count + 1)}


async def test_a_portion_has_all_of_an_atomic_batch_or_nothing(scene: World) -> None:
    """Its first half would wait for the other, and the next comparison for the first half."""
    batch = AtomicBatch(id="b", size=4)
    rows = [attrs.evolve(THERE, id=number) for number in range(1, MAX_DIFFERENCES + 100)]
    middle = range(MAX_DIFFERENCES - 2, MAX_DIFFERENCES + 2)
    scene.plane.listed = [attrs.evolve(one, batch=batch) if one.id in middle else one for one in rows]
    await plan_resync(scene.agent, "test")
    assert not {f"cert:{number}" for number in middle} & {signal.resource for signal in scene.admitted}
    await plan_resync(scene.agent, "test")
    found = [one.batch for one in scene.admitted if isinstance(one, CertRenewed) and one.cert_id in middle]
    assert found == [batch] * 4


async def test_the_comparison_after_many_differences_waits_until_they_were_tried(
    scene: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    entries = scene.agent.inbox.admit([attrs.evolve(RENEWED, cert_id=1 + n) for n in range(MAX_DIFFERENCES)])
    assert await compared(scene, monkeypatch, 1) == []
    async with trio.open_nursery() as nursery:

        async def finish() -> None:
            await trio.sleep(50)
            await scene.agent.inbox.finish(entries, [])

        nursery.start_soon(finish)
        calls = await compared(scene, monkeypatch, 1)
    assert [why for _, why in calls] == ["start"]


async def test_a_host_is_compared_at_start_and_every_few_hours(
    scene: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    interval = scene.agent.config.application.reconcile_interval_seconds
    calls = await compared(scene, monkeypatch, 2.5 * interval / HOUR)
    assert calls == [(0.0, "start"), (interval, "periodic"), (2 * interval, "periodic")]


async def test_failed_comparisons_are_repeated_with_growing_pauses_that_start_again(
    scene: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    broken = [TransportError("no route")] * 8
    calls = await compared(scene, monkeypatch, 30, *broken, None, TransportError("no route"))
    pauses = [later - at for (at, _), (later, _) in itertools.pairwise(calls)]
    assert pauses[0] <= FIRST_RETRY and pauses[:8] == sorted(pauses[:8]) and pauses[7] <= LAST_RETRY
    assert pauses[7] > 2 * FIRST_RETRY
    assert pauses[9] == pauses[0], "a success in between"
    assert [why for _, why in calls[:10]] == ["start"] * 9 + ["periodic"]
    assert scene.agent.counters.reconciles == {"failed": 9}


async def test_a_device_that_is_not_registered_is_not_compared(
    scene: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    assert len(await compared(scene, monkeypatch, 30, NotRegisteredError("no"))) == 1


@pytest.mark.parametrize("problem", [BEHIND, UNKNOWN_CAS, UNKNOWN])
async def test_a_plane_that_disagrees_is_asked_sooner(
    scene: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, problem: str
) -> None:
    """Perhaps only a replica lags."""
    interval = scene.agent.config.application.reconcile_interval_seconds
    calls = await compared(scene, monkeypatch, 30, *[problem] * 3)
    pauses = [later - at for (at, _), (later, _) in itertools.pairwise(calls)]
    assert pauses[0] < pauses[1] < pauses[2] < interval
    if problem == BEHIND:
        assert pauses[3] == interval


async def test_a_requested_comparison_comes_at_once(
    scene: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async def request() -> None:
        await trio.sleep(100)
        scene.agent.reconcile_requested.value = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request)
        calls = await compared(scene, monkeypatch, 1)
    assert calls == [(0.0, "start"), (100.0, "requested")]
    assert not scene.agent.reconcile_requested.value
