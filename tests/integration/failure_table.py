"""The table of docs/services/README.md, "kind of failure x state of the service", proven with a real service.

Not every combination exists: a service that is running and takes the old files reloads them, and one that is stopped
or broken fails its reload before the probe.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from enum import StrEnum

import attrs
import pytest
from recipes import Trial

from certctrl.model.records import RetryKind
from certctrl.sandbox.servers import HOST
from certctrl.sandbox.witness import plain_serial

MAX_PAUSE = {RetryKind.REFUSED: 900.0, RetryKind.DOWN: 300.0}
"""Seconds until the next try, before a certificate is quarantined."""


class Failure(StrEnum):
    CHECK = "check"
    RELOAD = "reload"
    PROBE = "probe"


class State(StrEnum):
    RUNNING = "running"
    STOPPED = "stopped"
    BROKEN = "broken"


@attrs.frozen
class Row:
    failure: Failure
    service: State
    new_files: bool
    """Whether the new files are live afterwards."""
    outcome: str
    retry: RetryKind


TABLE = (
    Row(Failure.CHECK, State.RUNNING, False, "failed", RetryKind.REFUSED),
    Row(Failure.CHECK, State.STOPPED, False, "failed", RetryKind.REFUSED),
    Row(Failure.CHECK, State.BROKEN, False, "failed", RetryKind.REFUSED),
    Row(Failure.RELOAD, State.STOPPED, True, "failed", RetryKind.DOWN),
    Row(Failure.RELOAD, State.BROKEN, False, "rolled_back", RetryKind.DOWN),
    Row(Failure.PROBE, State.RUNNING, False, "rolled_back", RetryKind.REFUSED),
)
EACH_FAILURE = pytest.mark.parametrize("row", [pytest.param(row, id=f"{row.failure} {row.service}") for row in TABLE])


@attrs.frozen(kw_only=True)
class Faults:
    """How to cause each failure of one service."""

    refused: Mapping[str, bytes]
    """Staged files that its check refuses."""
    why: str
    """What its check says about them."""
    broken: Callable[[], AbstractContextManager[object]]
    """Make its reload fail, with old files as with new ones."""
    elsewhere: Callable[[], AbstractContextManager[object]]
    """Make it serve other files than the ones that the agent deploys."""
    reload: str
    """The id of the item that reloads it."""


def prove_row(trial: Trial, row: Row, faults: Faults) -> None:
    """Renew as a row says: outcome, next try and files are those of the row; without the failure, all is well."""
    before, old = trial.on_disk(), trial.served()
    with trial.impatient(), _in_state(trial, row.service, faults), _failing(trial, row.failure, faults):
        serial, outcome, why = trial.renew()
        assert outcome == row.outcome and all(part in why for part in _reasons(trial, row, faults)), (outcome, why)
        retry = trial.retry()
        assert retry.kind is row.retry, retry
        assert retry.next_try_at <= time.time() + MAX_PAUSE[row.retry], retry
        if row.new_files:
            assert trial.on_disk() != before and trial.deployed() == plain_serial(serial)
        elif row.failure is Failure.CHECK:
            assert trial.on_disk() == before, "nothing live was changed"
            assert row.service is State.STOPPED or trial.served() == old
        else:  # the agent tries again meanwhile, and then the new pair may be there for a moment
            trial.wait_for(lambda: (trial.on_disk(), trial.served()) == (before, old), "the old pair to be back")
    # an interrupted attempt may have been served briefly as well: only the final state counts
    trial.wait_for(lambda: trial.stands(serial), f"{serial} to be deployed and served")
    print(f"{trial.recipe.name}, {row.failure} {row.service}: {why}")


def replaced(text: str, places: Mapping[str, str]) -> str:
    """Return a configuration with other paths."""
    for old, new in places.items():
        text = text.replace(old, new)
    return text


def _reasons(trial: Trial, row: Row, faults: Faults) -> tuple[str, ...]:
    match row.failure, row.service:
        case Failure.CHECK, _:
            return "the check refuses the new certificate", faults.why
        case Failure.RELOAD, State.STOPPED:
            return (f"nothing listens at {HOST}:{trial.recipe.port}",)
        case Failure.RELOAD, _:
            return (f"item {faults.reload}",)
        case Failure.PROBE, _:
            return ("serves another certificate",)


@contextlib.contextmanager
def _stopped(trial: Trial) -> Iterator[None]:
    trial.stop()
    try:
        yield
        newest = trial.plane.operator.serial(trial.cert_id)
        # a server that starts during a switch may read the old certificate and the new key
        trial.wait_for(lambda: trial.deployed() == plain_serial(newest), "the new files to be there")
    finally:
        trial.start()
    trial.sees(newest)


def _in_state(trial: Trial, state: State, faults: Faults) -> AbstractContextManager[object]:
    match state:
        case State.RUNNING:
            return contextlib.nullcontext()
        case State.STOPPED:
            return _stopped(trial)
        case State.BROKEN:
            return faults.broken()


def _failing(trial: Trial, failure: Failure, faults: Faults) -> AbstractContextManager[object]:
    match failure:
        case Failure.CHECK:
            return trial.spoilt(faults.refused)
        case Failure.RELOAD:
            return contextlib.nullcontext()
        case Failure.PROBE:
            return faults.elsewhere()
