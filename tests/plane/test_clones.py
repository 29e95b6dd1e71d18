"""Two live agents with one identity are detected; restarts, upgrades and old agents are not."""

from __future__ import annotations

from itertools import count

import pytest
from plane_world import World

from certctrl.plane.clones import WINDOW_SECONDS, CloneDetector

UPDATES = "/apiv1/devices/self/updates"


@pytest.mark.parametrize(
    ("names", "suspected"),
    [
        ("a", False),
        ("aaaa", False),
        ("ab", False),  # a restart
        ("abcdefghijklmnop", False),  # a restart loop
        ("aba", True),
        ("aabbab", True),
        ("abca", True),  # one of the two restarts
        ("a-b-", False),  # agents without instance names
        ("a-a", False),
    ],
)
def test_alternating_instances_are_suspected(names: str, suspected: bool) -> None:
    seconds = count()
    clones = CloneDetector(lambda: float(next(seconds)))
    for name in names:
        clones.note(7, "" if name == "-" else name)
    assert clones.suspected(7) is suspected
    assert clones.suspected(8) is False


def test_the_suspicion_ends_when_one_of_them_stops() -> None:
    now = [0.0]
    clones = CloneDetector(lambda: now[0])
    for name in "aba":
        clones.note(7, name)
    now[0] += WINDOW_SECONDS - 1
    assert clones.note(7, "a")
    now[0] += 1
    assert not clones.note(7, "a")


def test_names_are_forgotten_after_the_window() -> None:
    now = [0.0]
    clones = CloneDetector(lambda: now[0])
    clones.note(7, "a")
    clones.note(7, "b")
    now[0] += WINDOW_SECONDS
    assert not clones.note(7, "a")


async def test_both_clones_and_the_operator_are_notified(world: World) -> None:
    device = await world.device()
    reported = []
    for name in ("one", "two", "one", "two"):
        reply = await device("GET", UPDATES, headers={"cert-ctrl-instance": name})
        reported.append(reply.headers.get("cert-ctrl-copies"))
        world.clock.advance(5)
    assert reported == [None, None, "suspected", "suspected"]
    assert world.plane.devices.show(1, device.id)["copies_suspected"] is True
    world.plane.clones.forget(device.id)
    assert world.plane.devices.show(1, device.id)["copies_suspected"] is False
