"""Cut the power, kill, or fail the disk before every operation of every protocol, on a model of the disk.

By default a seeded sample; the whole campaign (``-m campaign``) prints how many states it checked.
"""

from __future__ import annotations

import errno
import random

import pytest
from crash_exploration import Tally, explore
from crash_protocols import (
    PROTOCOLS,
    Copies,
    CopiesDropped,
    FailedSignals,
    Protocol,
    Refresh,
    Renew,
    RenewEach,
    Signals,
)
from modeldisk import ModelFs

from certctrl.errors import CertctrlError

EACH = pytest.mark.parametrize("protocol", [pytest.param(kind(), id=kind.name) for kind in PROTOCOLS])
ERRNOS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.EMFILE)


@EACH
def test_no_crash_violates_an_invariant(protocol: Protocol) -> None:
    tally = explore(protocol.world(), protocol.act, protocol.check, limit=protocol.sample)
    assert tally.points >= 5
    assert len(tally.states) >= 4


@pytest.mark.parametrize(
    "protocol", [Renew(), RenewEach(), Copies(), Signals(), FailedSignals(), Refresh()], ids=lambda one: one.name
)
def test_a_power_cut_after_a_kill_violates_no_invariant(protocol: Protocol) -> None:
    """A restart inherits unsynced renames of the killed process and must sync them before it builds on them."""
    assert two_faults(protocol, every=10) >= 1


def test_recovery_syncs_the_journal_first() -> None:
    """Regression: killed between writing "armed" and syncing it, then a power cut during recovery."""
    protocol, killed = Copies(), list[ModelFs]()
    fs = protocol.world()
    fs.observer = lambda disk, operation: (
        killed.append(disk.copy()) if operation.startswith("fsync") and operation.endswith(".jsonl") else None
    )
    protocol.act(fs)
    assert len(killed) == 2, "plan and armed"
    for one in killed:
        protocol.check_deep(one)


def test_recovery_makes_the_removal_of_dropped_files_durable() -> None:
    """Found by a campaign: killed after the removal of staged files, then a power cut: they were back, unknown to all."""
    assert two_faults(CopiesDropped(), every=1) >= 10


def two_faults(protocol: Protocol, *, every: int) -> int:
    kills = 0

    def sampled(fs: ModelFs) -> None:
        nonlocal kills
        kills += 1
        if kills % every == 0:
            protocol.check_deep(fs)

    explore(protocol.world(), protocol.act, sampled, limit=0)
    return kills // every


# --- the disk fails ----------------------------------------------------------------------------------------


@EACH
def test_a_failing_disk_violates_no_invariant(protocol: Protocol) -> None:
    length = operations(protocol)
    step = max(1, length // 10)
    for number in range(0, length, step):
        for sticky in (False, True):
            fail(protocol, number, ERRNOS[(number // step + sticky) % len(ERRNOS)], sticky=sticky)


def operations(protocol: Protocol) -> int:
    fs = protocol.world()
    protocol.act(fs)
    return len(fs.trace)


def fail(protocol: Protocol, number: int, code: int, *, sticky: bool) -> None:
    """Fail one operation, or all from one on: the state is old or new, no file stays open, and a retry succeeds."""
    fs = protocol.world()

    def fault(verb: str, path: str) -> int | None:
        at = len(fs.trace) - 1
        return code if at == number or (sticky and at > number) else None

    fs.fault = fault
    try:
        protocol.act(fs)
    except CertctrlError as error:
        assert error.fix, f"no fix: {error}"
    fs.fault = None
    assert not fs.open_files(), f"operation {number} ({fs.trace[number]}) failed and left files open"
    for crashed in (fs.copy(), *fs.crash_states(3, random.Random(number))):
        protocol.check_start(crashed)
    protocol.restart(fs)
    protocol.check_start(fs)


# --- the campaign -------------------------------------------------------------------------------------------

CHECKED: dict[str, int] = {}
"""Protocol -> number of distinct crash states checked."""


@EACH
@pytest.mark.campaign
@pytest.mark.timeout(2 * 3600)
def test_campaign(protocol: Protocol, capsys: pytest.CaptureFixture[str]) -> None:
    tally: Tally = explore(protocol.world(), protocol.act, protocol.check, limit=200)
    two = two_faults(protocol, every=protocol.deep_every)
    length = operations(protocol)
    for number in range(length):
        for code in ERRNOS:
            for sticky in (False, True):
                fail(protocol, number, code, sticky=sticky)
    CHECKED[protocol.name] = len(tally.states)
    with capsys.disabled():
        print(f"\n{protocol.name}: {len(tally.states)} states at {tally.points} points,", end=" ")
        print(f"{two} kills and then power cuts, {length * 2 * len(ERRNOS)} disk failures: all pass", end="")


@pytest.mark.campaign
def test_campaign_in_all(capsys: pytest.CaptureFixture[str]) -> None:
    if len(CHECKED) < len(PROTOCOLS):
        pytest.skip("only for the whole campaign")
    with capsys.disabled():
        print(f"\n{sum(CHECKED.values())} of {sum(CHECKED.values())} crash states pass", end="")
    assert sum(CHECKED.values()) >= 10_000
