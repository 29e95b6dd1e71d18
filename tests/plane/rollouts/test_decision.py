"""What a rollout decides: tables of situations, and properties of any situation."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.plane.rollouts.decision import Decision, Member, MemberFacts, Rules, decide

NOW = 1000.0
LETTERS = {
    "h": Member.HELD,
    "r": Member.RELEASED,
    "p": Member.PROVEN,
    "f": Member.FAILED,
    "s": Member.SKIPPED,
    "a": Member.ACCEPTED,
}


def members(*waves: str, groups: dict[int, str] | None = None) -> list[MemberFacts]:
    """``"rh", "H"``: two waves; a capital letter is a stale device; ids count from 1; settled ten seconds ago."""
    found: list[MemberFacts] = []
    for wave, letters in enumerate(waves, 1):
        for letter in letters:
            number, state = len(found) + 1, LETTERS[letter.lower()]
            settled = NOW - 10 if state in (Member.PROVEN, Member.FAILED) else 0.0
            found.append(
                MemberFacts(
                    id=number, wave=wave, state=state, stale=letter.isupper(), group=(groups or {}).get(number, ""),
                    settled_at=settled,
                )
            )  # fmt: skip
    return found


@pytest.mark.parametrize(
    ("waves", "rules", "expected"),
    [
        (["h", "hh"], {}, {"release": (1,), "waits": "the proof of 1 device of wave 1", "wave": 1}),
        (["r", "hh"], {}, {"waits": "the proof of 1 device of wave 1", "wave": 1}),
        (["p", "hh"], {}, {"release": (2, 3), "waits": "the proof of 2 devices of wave 2", "wave": 2}),
        (["p", "pr"], {}, {"waits": "the proof of 1 device of wave 2", "wave": 2}),
        (["p", "pp"], {}, {"done": True}),
        (["f", "hh"], {}, {"halt": "1 device failed, none may fail"}),
        (["pf", "hh"], {"max_failures": 1}, {"release": (3, 4), "waits": "the proof of 2 devices of wave 2", "wave": 2}),
        (["f", "hh"], {"max_failures": 1}, {"halt": "no device of wave 1 has proven the change", "wave": 1}),
        (["pff", "hh"], {"max_failures": 1}, {"halt": "2 devices failed, 1 may fail"}),
        (["a", "hh"], {}, {"release": (2, 3), "waits": "the proof of 2 devices of wave 2", "wave": 2}),
        (["Hh", "h"], {}, {"release": (2,), "skip": (1,), "waits": "the proof of 1 device of wave 1", "wave": 1}),
        (["H", "h"], {}, {"skip": (1,), "wave": 1}),
        (["S", "h"], {}, {"waits": "a device of wave 1 that is heard from: all are skipped", "wave": 1}),
        (["Sp", "h"], {}, {"release": (3,), "waits": "the proof of 1 device of wave 2", "wave": 2}),
        (["p", "S", "h"], {}, {"release": (3,), "waits": "the proof of 1 device of wave 3", "wave": 3}),
        (["p", "HH"], {}, {"skip": (2, 3), "wave": 2}),
        (["P", "HH", "H"], {}, {"waits": "a device that is heard from: none is"}),
        (["P", "SS", "S"], {}, {"waits": "a device that is heard from: none is"}),
        (["P", "P"], {}, {"done": True}),
        (["F", "H"], {}, {"halt": "1 device failed, none may fail"}),
        (["", "hh"], {}, {"halt": "no device before wave 2 has proven the change, and those are revoked: abort it, and start another", "wave": 2}),
        (["", "ph"], {}, {"halt": "no device before wave 2 has proven the change, and those are revoked: abort it, and start another", "wave": 2}),
        (["p", "", "h"], {}, {"release": (2,), "waits": "the proof of 1 device of wave 3", "wave": 3}),
        ([], {}, {"halt": "all its devices are revoked, and none has proven the change"}),
        (["ps", "S"], {}, {"release": (2,), "waits": "the proof of 1 device of wave 1", "wave": 1}),
        (["pS", "p"], {}, {"done": True}),
        (["p", "h"], {"pause_seconds": 60}, {"waits": "the pause before wave 2, 50 s more", "wave": 2}),
        (["p", "h"], {"pause_seconds": 11}, {"waits": "the pause before wave 2, 1 s more", "wave": 2}),
        (["p", "h"], {"pause_seconds": 10}, {"release": (2,), "waits": "the proof of 1 device of wave 2", "wave": 2}),
        (["p", "rh"], {"pause_seconds": 60}, {"release": (3,), "waits": "the proof of 2 devices of wave 2", "wave": 2}),
    ],
)  # fmt: skip
def test_situations(waves: list[str], rules: dict[str, Any], expected: dict[str, Any]) -> None:
    assert decide(members(*waves), Rules(**rules), NOW) == Decision(**expected)


def test_nobody_is_skipped_who_may_not_have_had_the_time_to_be_heard() -> None:
    found = decide(members("p", "hH"), Rules(), NOW, may_skip=False)
    assert (found.release, found.skip, found.waits) == ((2,), (), "the proof of 1 device of wave 2")
    found = decide(members("p", "HH", "h"), Rules(), NOW, may_skip=False)
    assert found == Decision(waits="devices of wave 2 that were not heard from yet", wave=2)


def test_a_pause_does_not_end_because_clocks_of_planes_differ() -> None:
    for ahead, releases in ((10.5, ()), (200, ()), (310, ()), (311, (2,))):
        found = decide(members("p", "h"), Rules(pause_seconds=60), NOW - ahead)
        assert found.release == releases


def test_nothing_is_released_while_it_may_not_be() -> None:
    found = decide(members("pp", "hH"), Rules(), NOW, may_release="the window 22:00-06:00")
    assert (found.release, found.skip, found.waits) == ((), (4,), "the window 22:00-06:00")
    assert decide(members("pf", "h"), Rules(), NOW, may_release="a freeze").halt, "failures count all the same"
    assert decide(members("r"), Rules(), NOW, may_release="a freeze").waits == "the proof of 1 device of wave 1"


@pytest.mark.parametrize(
    ("waves", "release", "waits"),
    [
        (["hhh"], (1, 3), "the proof of 2 devices of wave 1"),
        (["rhh"], (3,), "the proof of 2 devices of wave 1"),
        (["rhr"], (), "other devices of db"),
        (["phr"], (2,), "the proof of 2 devices of wave 1"),
        (["fhp"], (), "other devices of db"),
        (["ahp"], (2,), "the proof of 1 device of wave 1"),
    ],
)
def test_never_two_of_a_serial_group(waves: list[str], release: tuple[int, ...], waits: str) -> None:
    found = decide(members(*waves, groups={1: "db", 2: "db"}), Rules(max_failures=1), NOW)
    assert (found.release, found.waits) == (release, waits)


WAVES = st.lists(st.text("hrpfsaHS", min_size=1, max_size=4), min_size=1, max_size=4)


@given(WAVES, st.integers(0, 3), st.sampled_from([0.0, 60.0]), st.sampled_from(["", "a freeze"]), st.data())
def test_any_situation(waves: list[str], most: int, pause: float, may_release: str, data: st.DataObject) -> None:
    groups = {number: data.draw(st.sampled_from(["", "x", "y"])) for number in range(1, sum(map(len, waves)) + 1)}
    them = members(*waves, groups=groups)
    found = decide(them, Rules(max_failures=most, pause_seconds=pause), NOW, may_release=may_release)
    states = {one.id: one for one in them}
    released = [states[number] for number in found.release]
    assert all(one.state in (Member.HELD, Member.SKIPPED) and not one.stale for one in released)
    assert all(states[number].state is Member.HELD and states[number].stale for number in found.skip)
    failures = sum(one.state is Member.FAILED for one in them)
    if failures > most:
        assert found.halt and not found.release
    if may_release:
        assert not found.release
    for one in released:
        earlier = [other for other in them if other.wave < one.wave]
        assert all(other.state not in (Member.HELD, Member.RELEASED) for other in earlier)
        settled = {Member.PROVEN, Member.ACCEPTED}
        assert not earlier or any(other.state in settled for other in earlier)
        if one.group:
            busy = [other for other in them if other.group == one.group and other.state is Member.RELEASED]
            assert not busy and [other.group for other in released].count(one.group) == 1
    if found.done:
        assert not any(one.state in (Member.HELD, Member.RELEASED) for one in them)
    if not found.done and not found.halt:
        assert found.release or found.skip or found.waits, "it says what it waits for"


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 2), st.randoms())
def test_a_rollout_ends_whatever_devices_report(sizes: list[int], most: int, random: Any) -> None:
    them = {one.id: one for one in members(*("h" * size for size in sizes))}
    for _ in range(100):
        found = decide(list(them.values()), Rules(max_failures=most), NOW)
        if found.done or found.halt:
            break
        for number in found.release:
            them[number] = MemberFacts(id=number, wave=them[number].wave, state=Member.RELEASED)
        under_way = [one for one in them.values() if one.state is Member.RELEASED]
        assert under_way
        one = random.choice(under_way)
        state = random.choice([Member.PROVEN] * 4 + [Member.FAILED])
        them[one.id] = MemberFacts(id=one.id, wave=one.wave, state=state, settled_at=NOW)
    failed = sum(one.state is Member.FAILED for one in them.values())
    assert found.halt or (found.done and failed <= most)
    touched = {one.wave for one in them.values() if one.state is not Member.HELD}
    assert touched == set(range(1, max(touched) + 1)), "waves begin in order"
