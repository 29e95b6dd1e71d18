"""The way to a path, by which root and commands are judged, ends where the kernel ends."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from acl import set_acl

from certctrl.store.disk.path_walk import steps_to, writers_of


def walked(path: str) -> list[tuple[str, os.stat_result]]:
    """Return the steps to a path, far fewer than the bound of the test."""
    return [step for step, _ in zip(steps_to(path), range(500), strict=False)]


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
    steps = walked(given)
    assert steps[-1][0] == os.path.realpath(given)
    assert all(os.lstat(step).st_ino == found.st_ino for step, found in steps)
    assert steps[0][0] == "/" and str(tmp_path) in [step for step, _ in steps]


def test_every_link_on_the_way_is_a_step(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "chain").symlink_to("link")
    assert [step for step, _ in walked("/")] == [step for step, _ in walked("//.")] == ["/"]
    seen = [Path(step).name for step, _ in walked(f"{tmp_path}/chain")]
    assert seen[-3:] == ["chain", "link", "a"]


def test_a_way_that_does_not_end(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="links") as caught:
        walked(f"{tmp_path}/loop")
    assert (caught.value.errno, caught.value.filename) == (errno.ELOOP, f"{tmp_path}/loop")
    with pytest.raises(FileNotFoundError) as missing:
        walked(f"{tmp_path}/no/x")
    assert missing.value.filename == f"{tmp_path}/no"
    with pytest.raises(ValueError, match="null"):
        walked("/a\0b")


def test_a_chain_of_at_most_forty_links_is_followed(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    for number in range(1, 42):
        (tmp_path / f"{number}").symlink_to(f"{number - 1}")
    assert walked(f"{tmp_path}/40")[-1][0] == f"{tmp_path}/0"
    with pytest.raises(OSError, match="too many symbolic links") as caught:
        walked(f"{tmp_path}/41")
    assert caught.value.errno == errno.ELOOP


@pytest.mark.parametrize(
    ("kind", "mode", "who"),
    [
        ("directory", 0o755, ""), ("directory", 0o757, "others"), ("directory", 0o775, "group 50"),
        ("directory", 0o1777, ""), ("file", 0o644, ""), ("file", 0o646, "others"), ("file", 0o1646, "others"),
        ("link", 0o777, ""),
    ],
)  # fmt: skip
def test_other_writers_of_a_step(kind: str, mode: int, who: str, tmp_path: Path) -> None:
    step = tmp_path / "step"
    match kind:
        case "directory":
            step.mkdir()
        case "file":
            step.touch()
        case _:
            step.symlink_to("/")
    found = os.lstat(step)
    facts = os.stat_result((stat.S_IFMT(found.st_mode) | mode, *found[1:5], 50, *found[6:]))
    assert writers_of(str(step), facts, (0,), (0,)) == who
    assert writers_of(str(step), facts, (0,), (50,)) == ("" if who == "group 50" else who)


def test_a_user_on_the_list_of_a_step_can_change_it(tmp_path: Path, need_acl: Callable[[Path], None]) -> None:
    need_acl(tmp_path)
    set_acl(tmp_path, "user::7 user:1234:7 group::5 mask::7 other::5")
    group = tmp_path.stat().st_gid
    assert writers_of(str(tmp_path), tmp_path.stat(), (0,), (0, group)) == "user 1234"
    assert writers_of(str(tmp_path), tmp_path.stat(), (0, 1234), (0, group)) == ""
