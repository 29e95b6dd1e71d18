"""A lone renewal: opened when it is staged, and written in the thread job that switches to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
from install_host import APPLIED, FAILED, UNCHANGED, Host, ScriptedFs, kinds, leftovers
from trio.testing import MockClock

from certctrl.install.installer import Candidate
from certctrl.model.plan import CopyAction, InstallItem, Outcome
from certctrl.model.policy import MaintenanceWindow
from certctrl.model.records import Stage
from certctrl.store.disk.fs import Fs, RealFs

NAME = "c1.example"


def generations(host: Host) -> list[Path]:
    return sorted(host.layout.generations.glob(f"{NAME}/*"))


async def opened(host: Host, items: Sequence[InstallItem] = ()) -> Candidate:
    before = generations(host)
    candidate = await host.installer.stage(lambda: host.bundle(1), items, alone=True)
    assert generations(host) == before, "nothing is written yet"
    return candidate


async def switch(host: Host, candidate: Candidate, items: Sequence[InstallItem] = (), **how: Any) -> Outcome:
    return (await host.installer.converge([candidate], items, **how))[1]


@pytest.fixture
async def renewed(clock: MockClock, host: Host) -> Host:
    """A host with certificate 1, which counts its thread jobs."""
    await host.deliver(1)
    return host


def count_jobs(host: Host, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    jobs: list[str] = []
    context = host.installer._context

    async def counted(call: Callable[..., Any], *args: object) -> Any:
        jobs.append(getattr(call, "__name__", "?"))
        return call(*args)

    monkeypatch.setattr(host.installer, "_context", attrs.evolve(context, offload=counted))
    return jobs


async def test_it_is_written_and_switched_in_one_job(renewed: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    before, jobs = renewed.live(1), count_jobs(renewed, monkeypatch)
    candidate = await opened(renewed)
    assert jobs == []
    assert (await switch(renewed, candidate)).kind is APPLIED
    assert jobs == ["work"]
    assert renewed.live(1) == candidate.facts.fingerprint_sha256 != before
    assert renewed.installer.records[1].generation in [path.name for path in generations(renewed)]
    assert leftovers(renewed) == []


async def test_a_first_certificate_or_the_live_one_again_is_written_at_once(clock: MockClock, host: Host) -> None:
    bundle = host.bundle(1)
    for kind in (APPLIED, UNCHANGED):
        candidate = await host.installer.stage(lambda: bundle, (), alone=True)
        assert candidate.unwritten is None and generations(host)
        assert (await switch(host, candidate)).kind is kind


async def test_one_that_has_to_wait_survives(renewed: Host) -> None:
    renewed.allow(window=MaintenanceWindow(days=()))
    before, candidate = renewed.live(1), await opened(renewed)
    assert "waits for the window" in (await switch(renewed, candidate)).detail
    assert renewed.live(1) == before
    assert renewed.installer.records[1].staged in [path.name for path in generations(renewed)]
    renewed.start()
    await renewed.installer.recover()
    assert kinds(await renewed.installer.converge((), (), ignore_window=True)) == {1: APPLIED}
    assert renewed.live(1) == candidate.facts.fingerprint_sha256


@pytest.mark.parametrize("verb", ["mkdir", "create", "write", "rename", "syncfs"])
async def test_a_failing_disk_changes_nothing_live_and_leaves_nothing(renewed: Host, verb: str) -> None:
    before = renewed.live(1)
    failing = ScriptedFs(RealFs(), fails_at=1)
    renewed.fs = cast(Fs, failing)
    renewed.start()
    await renewed.installer.recover()
    candidate = await opened(renewed)
    failing.counts.clear()
    failing.verb = verb
    outcome = await switch(renewed, candidate)
    assert (outcome.kind, renewed.live(1)) == (FAILED, before)
    assert renewed.installer.records[1].staged == ""
    del candidate
    again = await opened(renewed)
    assert (await switch(renewed, again)).kind is APPLIED
    assert renewed.live(1) == again.facts.fingerprint_sha256
    assert leftovers(renewed) == []


async def test_one_that_was_withdrawn_meanwhile_stays_withdrawn(renewed: Host) -> None:
    candidate = await opened(renewed)
    await renewed.installer.withdraw(1, revoked=True, items=())
    outcome = await switch(renewed, candidate)
    assert outcome.kind is FAILED and "withdrawn" in outcome.detail
    assert not (renewed.layout.certs / f"{NAME}.crt").exists()
    assert renewed.installer.records[1].stage is Stage.WITHDRAWN


async def test_a_format_that_is_wanted_since_it_was_opened_is_made(renewed: Host) -> None:
    candidate = await opened(renewed)
    items = [CopyAction(id="p", ob_id=1, sources=("combined.pem",), targets=(str(renewed.out / "x.pem"),))]
    assert (await switch(renewed, candidate, items)).kind is APPLIED
    assert renewed.live(1) == candidate.facts.fingerprint_sha256
    assert (renewed.out / "x.pem").read_bytes().count(b"BEGIN CERTIFICATE") >= 1


async def test_two_that_were_opened_alone_are_switched_together(renewed: Host) -> None:
    await renewed.deliver(2)
    first = await opened(renewed)
    other = await renewed.installer.stage(lambda: renewed.bundle(2), (), alone=True)
    assert kinds(await renewed.installer.converge([first, other], ())) == {1: APPLIED, 2: APPLIED}
    assert (renewed.live(1), renewed.live(2)) == (first.facts.fingerprint_sha256, other.facts.fingerprint_sha256)
