"""Random lengths of held polls, and of the time until devices return to a plane that stops."""

from __future__ import annotations

import pytest

from certctrl.plane.pace import Pace


@pytest.mark.parametrize(("chance", "seconds"), [(0.0, 17.5), (0.5, 21.25), (0.9999999, 25.0)])
def test_a_poll_is_held_for_most_of_its_wait(chance: float, seconds: float) -> None:
    assert Pace(lambda: chance).hold_seconds(25) == pytest.approx(seconds)
    assert Pace(lambda: chance).hold_seconds(0) == 0


@pytest.mark.parametrize(("chance", "seconds"), [(0.0, 5), (0.5, 15), (0.9999999, 25)])
def test_devices_return_after_whole_seconds(chance: float, seconds: int) -> None:
    assert Pace(lambda: chance).return_seconds() == seconds


def test_the_lengths_differ() -> None:
    pace = Pace()
    assert len({pace.hold_seconds(25) for _ in range(20)}) == 20
    assert len({pace.return_seconds() for _ in range(200)}) > 15
