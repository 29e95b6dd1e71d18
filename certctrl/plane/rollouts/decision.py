"""Which devices of a rollout may be released now, and why no more: a pure function of what is known about them.

A wave is released once all earlier ones are *settled*: each of their devices has proven the change, has failed, or is
skipped, and at least one device has proven it. So no wave is released by time alone. More failures than allowed halt the
rollout, and so does a wave in which some fail and none succeeds. A device that has not been heard from is skipped, and is
released when it is heard from again. While none is heard from, it is the network or the control plane, and nothing is
decided. Failures that an operator has accepted are neither proof nor failure.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import StrEnum

import attrs

from certctrl import lean
from certctrl.text import counted

CLOCK_SECONDS = 300.0
"""By which the clocks of control planes may differ; one that was set back by more ends a pause."""


class Member(StrEnum):
    """The state of a device in a rollout."""

    HELD = "held"
    SKIPPED = "skipped"
    RELEASED = "released"
    PROVEN = "proven"
    FAILED = "failed"
    ACCEPTED = "accepted"
    """It failed, and an operator has resumed the rollout since."""


_PASSED = (Member.PROVEN, Member.ACCEPTED)


@lean.frozen(kw_only=True)
class MemberFacts:
    """What is known about a device in a rollout."""

    id: int
    wave: int
    """From 1."""
    state: Member
    stale: bool = False
    """Whether it has not been heard from for too long."""
    group: str = ""
    """Its serial group; empty: none."""
    settled_at: float = 0.0
    """When it has proven the change, or has failed."""


@lean.frozen(kw_only=True)
class Rules:
    """The rules of a rollout."""

    max_failures: int = 0
    pause_seconds: float = 0.0
    """Between the proof of a wave and the release of the next one."""


@lean.frozen(kw_only=True)
class Decision:
    """What a rollout does now."""

    release: tuple[int, ...] = ()
    skip: tuple[int, ...] = ()
    """Held devices that have not been heard from."""
    halt: str = ""
    """Why it halts; empty: it does not."""
    done: bool = False
    waits: str = ""
    """What the next release waits for."""
    wave: int = 0
    """The wave that is released; 0: none is left."""


def decide(
    members: Sequence[MemberFacts], rules: Rules, now: float, *, may_release: str = "", may_skip: bool = True
) -> Decision:
    """Return what a running rollout does now; ``may_release``: why nothing may be released at present, empty: it may.

    ``may_skip``: a device that has not been heard from is skipped; otherwise, it may not have had the time.
    """
    if not members:
        return Decision(halt="all its devices are revoked, and none has proven the change")
    failed = [one.id for one in members if one.state is Member.FAILED]
    if len(failed) > rules.max_failures:
        allowed = f"{rules.max_failures} may fail" if rules.max_failures else "none may fail"
        return Decision(halt=f"{counted(len(failed), 'device')} failed, {allowed}")
    if all(one.stale for one in members) and any(one.state in (Member.HELD, Member.SKIPPED) for one in members):
        return Decision(waits="a device that is heard from: none is")
    proven_at = 0.0
    for wave in sorted({one.wave for one in members}):
        of_wave = [one for one in members if one.wave == wave]
        if wave > 1 and not any(one.wave < wave and one.state in _PASSED for one in members):
            what = f"no device before wave {wave} has proven the change, and those are revoked"
            return Decision(halt=f"{what}: abort it, and start another", wave=wave)
        if decision := _unsettled(wave, of_wave, members, rules, now, proven_at, may_release):
            if may_skip or not decision.skip:
                return decision
            waits = decision.waits or f"devices of wave {wave} that were not heard from yet"
            return attrs.evolve(decision, skip=(), waits=waits)
        proven_at = max(proven_at, *(one.settled_at for one in of_wave))
    return Decision(done=True)


def _unsettled(
    wave: int,
    of_wave: Sequence[MemberFacts],
    members: Sequence[MemberFacts],
    rules: Rules,
    now: float,
    earlier_proven_at: float,
    may_release: str,
) -> Decision | None:
    """Return the decision of the first wave that is not settled; None: this one is."""
    open_ones = [one for one in of_wave if one.state in (Member.HELD, Member.RELEASED)]
    back = [one for one in members if one.wave <= wave and one.state is Member.SKIPPED and not one.stale]
    skip = tuple(one.id for one in of_wave if one.state is Member.HELD and one.stale)
    ready = [one for one in of_wave if one.state is Member.HELD and not one.stale] + back
    if not open_ones and not back:
        if any(one.state in _PASSED for one in of_wave):
            return None
        if any(one.state is Member.FAILED for one in of_wave):
            return Decision(halt=f"no device of wave {wave} has proven the change", wave=wave)
        if earlier_proven_at:
            return None
        return Decision(waits=f"a device of wave {wave} that is heard from: all are skipped", wave=wave)
    waits = _reason(wave, ready, of_wave, rules, now, earlier_proven_at, may_release)
    if waits:
        return Decision(skip=skip, waits=waits, wave=wave)
    release, blocked = _without_conflicts(ready, members)
    return Decision(release=release, skip=skip, waits=blocked or _awaited(wave, of_wave, release), wave=wave)


def _reason(
    wave: int,
    ready: Sequence[MemberFacts],
    of_wave: Sequence[MemberFacts],
    rules: Rules,
    now: float,
    earlier_proven_at: float,
    may_release: str,
) -> str:
    """Return why nothing is released now; empty: something may be."""
    if not ready:
        return _awaited(wave, of_wave, ())
    if may_release:
        return may_release
    begun = any(one.state not in (Member.HELD, Member.SKIPPED) for one in of_wave)
    left = earlier_proven_at + rules.pause_seconds - now
    if not begun and earlier_proven_at and 0 < left <= rules.pause_seconds + CLOCK_SECONDS:
        return f"the pause before wave {wave}, {round(left)} s more"
    return ""


def _awaited(wave: int, of_wave: Sequence[MemberFacts], release: Collection[int]) -> str:
    chosen = frozenset(release)
    count = sum(one.state is Member.RELEASED or one.id in chosen for one in of_wave)
    return f"the proof of {counted(count, 'device')} of wave {wave}" if count else ""


def _without_conflicts(ready: Sequence[MemberFacts], members: Sequence[MemberFacts]) -> tuple[tuple[int, ...], str]:
    """Return the devices to release, one of each serial group that has none under way, and what the others wait for.

    A device that has failed keeps its group: it may be out of service.
    """
    busy = {one.group for one in members if one.group and one.state in (Member.RELEASED, Member.FAILED)}
    release, blocked = [], set()
    for one in ready:
        if one.group in busy:
            blocked.add(one.group)
            continue
        release.append(one.id)
        if one.group:
            busy.add(one.group)
    waits = f"other devices of {', '.join(sorted(blocked)[:3])}" if blocked and not release else ""
    return tuple(release), waits
