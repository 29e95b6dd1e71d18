"""Run one history: a seed gives a setting and a schedule of trouble, after which the host must converge."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import traceback
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import count
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

import attrs
import trio
from simulation.batchauditor import watch_batches
from simulation.clock import run_seeded
from simulation.director import Director
from simulation.host import control_stand_in, signals_stand_in
from simulation.journal import JournalHandler, Violation
from simulation.world import Setting, World, template

from certctrl.agent.push_link import Link
from certctrl.model.commands import script_words
from certctrl.protocol.wire.push import PING_SECONDS

PUSHES = 0.25
"""Share of the shorter histories in push mode: a week would be 24 000 pings."""
HALF_HOUR, DAY, WEEK = 1800.0, 86_400.0, 604_800.0
PING = 600.0
"""Seconds between pings on an idle push socket in histories of a day."""


@attrs.frozen(kw_only=True)
class HistoryResult:
    """The result of one history."""

    seed: int
    span: float
    converged_after: float
    """Seconds from the end of all trouble."""
    counts: dict[str, int]
    lines: int
    mark: str
    """Hash of the journal."""


def setting_for(seed: int) -> Setting:
    """Return the setting of a seed."""
    chance = random.Random(seed)
    span, interval, reconcile, access = chance.choices(
        [
            (HALF_HOUR, chance.choice((120.0, 300.0, 300.0)), 1200, 900),
            (DAY, 3600.0, 21_600, 14_400),
            (WEEK, 3600.0, 86_400, 43_200),
        ],
        weights=(33, 6, 1),
    )[0]
    mode = chance.choices(("interval", "long-poll", "adaptive"), weights=(3, 1, 1))[0]
    if span <= DAY and random.Random(f"push {seed}").random() < PUSHES:
        mode = "push"
    return Setting(
        span=span,
        interval=interval,
        mode=mode,
        page=chance.choice((1, 3, 20, 20)),
        reconcile=reconcile,
        access_seconds=access,
        rotate=chance.random() < 0.5,
        queue=chance.choice((4, 1000)),
        stream_length=chance.choice((10, 1000)),
    )


def run_history(seed: int, setting: Setting | None = None) -> HistoryResult:
    """Run the history of a seed. Raises Violation with everything that is needed to repeat it."""
    template()
    setting = setting or setting_for(seed)
    with stand_ins(OF_HISTORIES), quiet_sockets(setting):
        return run_seeded(seed, _play, seed, setting)  # type: ignore[no-any-return]


async def _play(seed: int, setting: Setting) -> HistoryResult:
    world = World(seed, setting)
    watch_batches(world)
    director = Director(world)
    try:
        with logged_to_journal(world), world.auditor.over:
            async with trio.open_nursery() as nursery:
                world.network.nursery = nursery
                nursery.start_soon(world.host.run_forever)
                await director.trouble()
                peace = trio.current_time()
                await director.peace()
                converged = trio.current_time() - peace
                nursery.cancel_scope.cancel()
        if world.auditor.violation is not None:
            raise world.auditor.violation
    except BaseException as error:
        raise explained(seed, setting, world, error) from error
    finally:
        world.close()
    return HistoryResult(
        seed=seed, span=setting.span, converged_after=converged, counts=dict(world.auditor.counts),
        lines=world.journal.count, mark=world.journal.mark({str(world.made.root): "DIR", f"pid={os.getpid()}": ""}),
    )  # fmt: skip


def explained(seed: int, setting: Setting, world: World, error: BaseException) -> Violation:
    """Return a Violation with the seed, the command that repeats it, and the journal."""
    what = world.auditor.violation or innermost(error)
    return Violation(
        f"{type(what).__name__}: {what}{where_in(what)}\n"
        f"repeat: CERTCTRL_TEST_SEED={seed} pytest tests/simulation -k replay\n"
        f"{setting}\n{world.journal.text()}"
    )


def innermost(error: BaseException) -> BaseException:
    """Return the first exception inside all groups that is not a cancellation."""
    while isinstance(error, BaseExceptionGroup):
        error = next((one for one in error.exceptions if not isinstance(one, trio.Cancelled)), error.exceptions[0])
    return error


def where_in(error: BaseException) -> str:
    """Return the places in certctrl that an exception passed, the innermost last."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        f"{frame.filename.rpartition('/certctrl/')[2]}:{frame.lineno}"
        for frame in frames
        if "/certctrl/" in frame.filename
    ]
    return f" [{' > '.join(ours[-4:])}]" if ours and not isinstance(error, Violation) else ""


@contextlib.contextmanager
def logged_to_journal(world: World) -> Iterator[None]:
    """Send the agent's log to the journal only."""
    log = logging.getLogger("certctrl")
    before, handler = (log.level, log.propagate, log.handlers[:]), JournalHandler(world.journal)
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.level, log.propagate, log.handlers = before
        log.setLevel(log.level)


@contextlib.contextmanager
def stand_ins(more: Mapping[str, Any] = MappingProxyType({})) -> Iterator[None]:
    """Replace what needs sockets, OS signals or threads, and lengthen intervals that cost time in a week-long history."""
    with contextlib.ExitStack() as stack:
        for name, value in {**STAND_INS, **more}.items():
            stack.enter_context(patch(name, value))
        numbers = count(1)  # random names would make each run of a seed another one
        stack.enter_context(patch("certctrl.plane.orders.batches._new_name", lambda: f"b-{next(numbers):016x}"))
        yield


@contextlib.contextmanager
def quiet_sockets(setting: Setting) -> Iterator[None]:
    """Let an idle push socket ping and poll less often on a day, which would be 3 456 of each."""
    if setting.span < DAY:
        yield
        return
    with contextlib.ExitStack() as stack:
        for module in ("certctrl.protocol.wire.push", "certctrl.plane.http.websocket"):
            stack.enter_context(patch(f"{module}.PING_SECONDS", PING))
        stack.enter_context(patch("certctrl.protocol.wire.push.MAX_PING", PING))
        stack.enter_context(patch("certctrl.plane.http.websocket._FIRST_PING_SECONDS", 1.2 * PING))
        later = Link._later
        stack.enter_context(patch.object(Link, "_later", lambda self, wait: later(self, wait * PING / PING_SECONDS)))
        yield


STAND_INS: dict[str, Any] = {
    "certctrl.agent.run.serve_control": control_stand_in,
    "certctrl.agent.run.watch_os_signals": signals_stand_in,
    "certctrl.net.calls.LARGE_BODY": float("inf"),  # a thread neither knows the virtual time nor stops it
    "certctrl.agent.reporter.WRITE_EVERY": 1800.0,
    "certctrl.install.process.vetting.script_words": lru_cache(script_words),
    "certctrl.agent.retries.CHECK_INTERVAL": 1800.0,
    "certctrl.agent.alert_watch.INTERVAL": (600.0, 1200.0),
}
OF_HISTORIES: dict[str, Any] = {
    "certctrl.agent.retries.CLOCK_INTERVAL": (300.0, 600.0),
    "certctrl.agent.reporter.release_memory": lambda: None,  # it would collect the garbage of the whole process
}
