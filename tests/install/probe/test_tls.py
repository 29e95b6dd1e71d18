"""The probe repeats, with growing pauses, until the answer is steadily right or the deadline passes."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import trio
import trio.testing

from certctrl.errors import ProbeError, ProbeFault
from certctrl.install.probe.address import Seen
from certctrl.install.probe.tls import (
    ADDRESS_SECONDS,
    STEADY_PROBES,
    STEADY_SECONDS,
    after_removal,
    look,
    plain_words,
    probe_tls,
)
from certctrl.model.certificate import KeyKind
from certctrl.model.plan import VerifyTls

VERIFY = VerifyTls(host="service.example", port=443)
OLD, NEW = "0" * 64, "f" * 64


def at(address: str, fingerprint: str = "", fault: str = "", **more: Any) -> Seen:
    return Seen(address=address, fingerprint=fingerprint, fault=fault, **more)


class Script:
    """A probe with one answer after the other; the last one repeats."""

    def __init__(self, *shows: tuple[Seen, ...], seconds: float = 0.0) -> None:
        self.shows, self.probes, self.seconds = list(shows), 0, seconds

    async def __call__(self, verify: VerifyTls, kinds: object = (), anywhere: bool = False) -> tuple[Seen, ...]:
        await trio.sleep(self.seconds)
        self.probes += 1
        return self.shows.pop(0) if len(self.shows) > 1 else self.shows[0]


# --- when it probes, under a virtual clock ------------------------------------------------------------------------


async def test_an_asynchronous_reload_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    script = Script((at("a", OLD),), (at("a", fault="refused"),), (at("a", OLD), at("b", NEW)), (at("a", NEW),))
    await probe_tls(VERIFY, NEW, deadline=trio.current_time() + 15, once=script)
    assert script.probes == 4 + STEADY_PROBES
    assert trio.current_time() < 0.2 + STEADY_SECONDS


@pytest.mark.parametrize("late", [(at("a", OLD),), (at("a", fault="refused"),), (at("a", NEW), at("b", OLD)), ()])
async def test_a_right_answer_counts_only_if_it_stays(
    autojump_clock: trio.testing.MockClock, late: tuple[Seen, ...]
) -> None:
    """Old nginx workers accept connections for a while: the next client may still reach one."""
    good = (at("a", NEW),)
    script = Script(good, late, good, good, late, good)
    await probe_tls(VERIFY, NEW, deadline=trio.current_time() + 15, once=script)
    assert script.probes == 6 + STEADY_PROBES


async def test_a_right_answer_just_before_the_deadline_may_be_confirmed_after_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    await probe_tls(VERIFY, NEW, deadline=trio.current_time() + 0.1, once=Script((at("a", NEW),)))
    assert STEADY_SECONDS <= trio.current_time() < 2 * STEADY_SECONDS


async def test_a_confirmation_that_fails_after_the_deadline_is_a_failure(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with pytest.raises(ProbeError, match="another certificate"):
        await probe_tls(VERIFY, NEW, deadline=trio.current_time() + 0.1, once=Script((at("a", NEW),), (at("a", OLD),)))


async def test_a_confirmation_that_hangs_ends_in_time(autojump_clock: trio.testing.MockClock) -> None:
    probes = iter([0.0, 1e9])

    async def script(verify: VerifyTls, kinds: object, anywhere: bool) -> tuple[Seen, ...]:
        await trio.sleep(next(probes))
        return (at("a", NEW),)

    with pytest.raises(ProbeError, match="no answer in time"):
        await probe_tls(VERIFY, NEW, deadline=trio.current_time() + 1, once=script)
    assert trio.current_time() <= ADDRESS_SECONDS


async def test_at_the_deadline_the_last_answers_are_reported(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(ProbeError, match=r"service.example:443 serves another certificate: 0{16}… at a; deployed is f"):
        await probe_tls(VERIFY, NEW, deadline=trio.current_time() + 15, once=Script((at("a", OLD),)))
    assert 14 <= trio.current_time() <= 15


async def test_the_pauses_between_probes_grow(autojump_clock: trio.testing.MockClock) -> None:
    script = Script((at("a", OLD),))
    with pytest.raises(ProbeError):
        await probe_tls(VERIFY, NEW, deadline=trio.current_time() + 15, once=script)
    assert 25 < script.probes < 45


async def test_a_hanging_probe_ends_at_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(ProbeError, match="no answer in time"):
        await probe_tls(VERIFY, NEW, deadline=trio.current_time() + 3, once=Script((at("a", NEW),), seconds=60))
    assert trio.current_time() == 3


@pytest.mark.parametrize(
    ("seen", "good"),
    [
        ((at("a", NEW),), True),
        ((at("a", NEW), at("b", fault="refused")), True),
        ((at("a", NEW), at("b", OLD)), False),
        ((at("a", fault="refused"),), False),
        ((), False),
    ],
)
async def test_every_address_that_answers_counts(
    autojump_clock: trio.testing.MockClock, seen: tuple[Seen, ...], good: bool
) -> None:
    with contextlib.nullcontext() if good else pytest.raises(ProbeError):
        await probe_tls(VERIFY, NEW, deadline=trio.current_time() + 1, once=Script(seen))


async def test_one_of_several_certificates_is_accepted(autojump_clock: trio.testing.MockClock) -> None:
    await probe_tls(VERIFY, [OLD, NEW], deadline=trio.current_time() + 1, once=Script((at("a", OLD),)))


RSA, ECDSA = KeyKind.RSA, KeyKind.ECDSA
TWIN = "a" * 64


@pytest.mark.parametrize(
    ("wanted", "seen", "good"),
    [
        ({NEW: RSA}, (at("a", NEW, kind=RSA),), True),
        ({NEW: RSA}, (at("a", OLD, kind=RSA),), False),
        ({NEW: RSA}, (at("a", TWIN, kind=ECDSA),), False),
        ({NEW: RSA}, (at("a", NEW, kind=RSA), at("b", TWIN, kind=ECDSA)), False),
        ({NEW: RSA, TWIN: ECDSA}, (at("a", NEW, kind=RSA), at("a", TWIN, kind=ECDSA)), True),
        ({NEW: RSA, TWIN: ECDSA}, (at("a", OLD, kind=RSA), at("a", TWIN, kind=ECDSA)), False),
        ({NEW: RSA, TWIN: ECDSA}, (at("a", TWIN, kind=ECDSA), at("a", TWIN, kind=ECDSA)), True),
        ({NEW: RSA, TWIN: ECDSA}, (at("a", fault="silent"), at("a", TWIN, kind=ECDSA)), False),
        ({NEW: RSA, TWIN: ECDSA}, (at("b", fault="refused"), at("a", NEW, kind=RSA), at("a", TWIN, kind=ECDSA)), True),
        ({NEW: None}, (at("a", NEW, kind=RSA), at("a", TWIN, kind=ECDSA)), False),
    ],
)
async def test_leaves_are_judged_by_their_kind_of_key(
    autojump_clock: trio.testing.MockClock, wanted: Any, seen: tuple[Seen, ...], good: bool
) -> None:
    with contextlib.nullcontext() if good else pytest.raises(ProbeError):
        await probe_tls(VERIFY, wanted, deadline=trio.current_time() + 1, once=Script(seen))


async def test_the_wanted_kinds_are_asked_for(autojump_clock: trio.testing.MockClock) -> None:
    asked = []

    async def script(verify: VerifyTls, kinds: Any, anywhere: bool) -> tuple[Seen, ...]:
        asked.append(tuple(kinds))
        return (at("a", OLD, kind=RSA),)

    wanted: list[Any] = [{NEW: RSA}, {NEW: ECDSA, OLD: RSA}, {NEW: None, OLD: RSA}, NEW]
    for one in wanted:
        with contextlib.suppress(ProbeError):
            await probe_tls(VERIFY, one, deadline=trio.current_time() + 0.01, once=script)
    assert list(dict.fromkeys(asked)) == [(RSA,), (RSA, ECDSA), (None,)]
    with pytest.raises(ProbeError, match=r"another certificate \(asked for RSA\): 0{16}"):
        await probe_tls(VERIFY, {NEW: RSA}, deadline=trio.current_time() + 0.01, once=script)


# --- other hosts --------------------------------------------------------------------------------------------------


async def test_an_endpoint_elsewhere_is_given_up_immediately(autojump_clock: trio.testing.MockClock) -> None:
    foreign = at("192.0.2.1:443", fault="not an address of this host", fault_class=ProbeFault.NOT_OURS)
    script, begun = Script((foreign, foreign)), trio.current_time()
    with pytest.raises(ProbeError, match="not an address of this host") as caught:
        await probe_tls(VERIFY, NEW, deadline=begun + 15, once=script)
    assert (caught.value.fault, trio.current_time()) == (ProbeFault.NOT_OURS, begun)
    assert caught.value.fix == 'to allow it, policy.json needs "probe": ["service.example:443"]'
    await probe_tls(VERIFY, NEW, deadline=begun + 15, once=Script((foreign, at("127.0.0.1:443", NEW))))


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        ((at("a", OLD),), "serves another certificate"),
        ((at("a", fault="454 canary", fault_class=ProbeFault.NO_STARTTLS),), "does not offer TLS"),
        ((at("a", fault="x canary", fault_class=ProbeFault.REFUSED),), "refuses the connection"),
        ((), "does not answer in time"),
    ],
)
async def test_the_plane_learns_only_the_class_of_a_failure(
    autojump_clock: trio.testing.MockClock, seen: tuple[Seen, ...], words: str
) -> None:
    with pytest.raises(ProbeError) as caught:
        await probe_tls(VERIFY, NEW, deadline=trio.current_time() + 0.01, once=Script(seen))
    assert plain_words(VERIFY, caught.value) == f"service.example:443 {words}"


# --- removed leaves -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "said"),
    [((at("a", NEW),), ""), ((at("a", fault="refused"),), "service.example:443 does not answer in time")],
)
async def test_a_removed_leaf_is_gone_only_if_it_stays_away(
    autojump_clock: trio.testing.MockClock, left: tuple[Seen, ...], said: str
) -> None:
    old = (at("a", NEW), at("b", OLD))
    script = Script(old, left, old, left)
    assert await after_removal(VERIFY, OLD, deadline=trio.current_time() + 15, once=script) == (False, said)
    assert script.probes == 4 + STEADY_PROBES


@pytest.mark.parametrize("patience", [0.0, 15.0])
async def test_a_leaf_served_until_the_deadline_is_still_there(
    autojump_clock: trio.testing.MockClock, patience: float
) -> None:
    until = trio.current_time() + patience
    still, said = await after_removal(VERIFY, OLD, deadline=until, once=Script((at("a", OLD),)))
    assert (still, said) == (True, "service.example:443 still serves it from memory")
    assert trio.current_time() <= until


# --- one look -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shows", "right", "wrong", "fault"),
    [
        ((at("a", NEW),), {NEW}, "", None),
        ((at("a", NEW), at("b", fault="refused")), {NEW}, "", None),
        ((at("a", OLD), at("b", NEW)), set(), OLD, ProbeFault.OTHER),
        ((at("a", OLD),), set(), OLD, ProbeFault.OTHER),
        ((at("a", fault="refused", fault_class=ProbeFault.REFUSED),), set(), "", ProbeFault.REFUSED),
        ((), set(), "", ProbeFault.NO_ANSWER),
        ((at("a", fault="elsewhere", fault_class=ProbeFault.NOT_OURS),), set(), "", ProbeFault.NOT_OURS),
    ],
)
async def test_a_look_asks_once(shows: tuple[Seen, ...], right: set[str], wrong: str, fault: ProbeFault | None) -> None:
    script = Script(shows)
    found = await look(VERIFY, {NEW: None}, once=script)
    assert script.probes == 1
    assert (found.right, found.wrong.fingerprint if found.wrong else "", found.fault) == (right, wrong, fault)
