"""The way to a path, by which root and commands are judged, ends where the kernel ends."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from certctrl.store.disk.path_walk import steps_to


@pytest.mark.parametrize(
    "path",
    ["a/b", "a/../a/b", "a//./b/", "link/b", "to-b", "absolute/b", "up/a", "here/a/b", "root", "a/b/..", "chain/b"],
)
def test_the_last_step_is_the_real_path(tmp_path: Path, path: str) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name, target in (
        ("link", "a"), ("to-b", "a/b"), ("absolute", str(tmp_path / "a")), ("up", "a/.."), ("here", "."), ("root", "/"),
        ("chain", "link"),
    ):  # fmt: skip
        (tmp_path / name).symlink_to(target)
    given = f"{tmp_path}/{path}"
    steps = list(steps_to(given))
    assert steps[-1][0] == os.path.realpath(given)
    assert all(os.lstat(step).st_ino == found.st_ino for step, found in steps)
    assert steps[0][0] == "/" and str(tmp_path) in [step for step, _ in steps]


def test_every_link_on_the_way_is_a_step(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "chain").symlink_to("link")
    seen = [Path(step).name for step, _ in steps_to(f"{tmp_path}/chain")]
    assert seen[-3:] == ["chain", "link", "a"]


def test_a_way_that_does_not_end(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="links") as caught:
        list(steps_to(f"{tmp_path}/loop"))
    assert (caught.value.errno, caught.value.filename) == (errno.ELOOP, f"{tmp_path}/loop")
    with pytest.raises(FileNotFoundError) as missing:
        list(steps_to(f"{tmp_path}/no/x"))
    assert missing.value.filename == f"{tmp_path}/no"
    with pytest.raises(ValueError, match="null"):
        list(steps_to("/a\0b"))
