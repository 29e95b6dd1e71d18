"""The plan of a rollout: sizes of waves, canaries, serial groups and windows."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.plane.rollouts.plan import RulesError, closed, serial_group, wave_sizes, waves_of, windows_of


@pytest.mark.parametrize(
    ("total", "sizes", "canaries", "expected"),
    [
        (20, ["1", "10%"], (), [1, 2, 17]),
        (20, [], (), [20]),
        (3, ["1", "1%"], (), [1, 1, 1]),
        (2, ["5"], (), [2]),
        (10, ["2"], (9, 10), [2, 2, 6]),
        (10, ["100%"], (), [10]),
        (3, ["1"], (1, 2, 3), [3]),
    ],
)
def test_waves(total: int, sizes: list[str], canaries: tuple[int, ...], expected: list[int]) -> None:
    waves = waves_of(range(1, total + 1), wave_sizes(sizes), canaries)
    assert [count for _, count in sorted(Counter(waves.values()).items())] == expected
    assert all(waves[one] == 1 for one in canaries)


@given(
    st.lists(st.integers(1, 500), unique=True, max_size=60),
    st.lists(st.sampled_from(["1", "7", "10%", "50%"]), max_size=4),
)
def test_each_device_is_in_one_wave_and_none_is_empty(devices: list[int], sizes: list[str]) -> None:
    waves = waves_of(devices, wave_sizes(sizes))
    assert waves.keys() == set(devices)
    assert set(waves.values()) == set(range(1, max(waves.values(), default=0) + 1))


@pytest.mark.parametrize("text", ["", "0", "-1", "101%", "1.5", "ten", "1 0", "9999999", "１"])
def test_what_is_not_a_size(text: str) -> None:
    with pytest.raises(RulesError, match="is not the size of a wave"):
        wave_sizes([text])


def test_too_many_waves() -> None:
    with pytest.raises(RulesError, match="more than 20"):
        wave_sizes(["1"] * 20)
    assert len(wave_sizes(["1"] * 19)) == 19


@pytest.mark.parametrize(
    ("rule", "tags", "group"),
    [
        ("", ["db"], ""), ("db", ["db", "web"], "db"), ("db", ["web"], ""), ("cluster=", ["cluster=a", "db"], "cluster=a"),
        ("cluster=", ["clusters=a"], ""),
    ],
)  # fmt: skip
def test_serial_groups(rule: str, tags: list[str], group: str) -> None:
    assert serial_group(rule, tags) == group


@pytest.mark.parametrize(
    ("texts", "hour", "expected"),
    [
        ([], 12, False), (["22:00-06:00"], 23, False), (["22:00-06:00"], 5, False), (["22:00-06:00"], 6, True),
        (["22:15-06:45"], 22.24, True), (["22:15-06:45"], 22.25, False), (["22:15-06:45"], 6.74, False),
        (["22:15-06:45"], 6.75, True), (["08:20-09:30"], 8.33, True), (["08:20-09:30"], 8.34, False),
        (["08:00-09:30", "12:00-13:00"], 9.4, False), (["08:00-09:30", "12:00-13:00"], 10, True),
    ],
)  # fmt: skip
def test_windows(texts: list[str], hour: float, expected: bool) -> None:
    assert closed(windows_of(texts), 1_790_035_200 - 1_790_035_200 % 86_400 + hour * 3600) is expected


@pytest.mark.parametrize("text", ["", "22-06", "24:00-06:00", "10:00-10:00", "10:00", "10:60-11:00"])
def test_what_is_not_a_window(text: str) -> None:
    with pytest.raises(RulesError, match="is not a window"):
        windows_of([text])
