"""The model disk agrees with the kernel, and allows the same states after a crash."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from examples import at_most
from hypothesis import example, given, settings
from hypothesis import strategies as st
from modeldisk import ModelFs

from certctrl.errors import DiskError
from certctrl.store.disk.fs import Fs, Handle, RealFs, closing


def contents(fs: ModelFs, path: str) -> set[bytes | None]:
    """Return the possible contents of one file after a power cut now."""
    found = [crashed.tree().get(path) for crashed in fs.crash_states(500, random.Random(1))]
    return {None if node is None else node.data for node in found}


def make(fs: Fs, path: str, data: bytes) -> Handle:
    handle = fs.create(path, 0o600)
    fs.write(handle, data)
    return handle


def test_unsynced_data_may_be_lost_torn_or_zero() -> None:
    fs = ModelFs()
    make(fs, "/a", b"four")
    assert contents(fs, "/a") == {None, b"", b"fo", b"\0\0\0\0", b"four"}


def test_a_synced_file_is_whole_but_its_name_may_be_lost() -> None:
    fs = ModelFs()
    fs.fsync(make(fs, "/a", b"four"))
    assert contents(fs, "/a") == {None, b"four"}
    fs.fsync(fs.open_dir("/"))
    assert contents(fs, "/a") == {b"four"}


def test_a_rename_without_fsync_of_the_file_may_tear_the_target() -> None:
    fs = ModelFs()
    fs.put("/a", b"old")
    make(fs, "/t", b"news")
    fs.rename("/t", "/a")
    assert contents(fs, "/a") == {b"old", b"", b"ne", b"\0\0\0\0", b"news"}


def test_a_rename_after_fsync_is_old_or_new() -> None:
    fs = ModelFs()
    fs.put("/a", b"old")
    fs.fsync(make(fs, "/t", b"new"))
    fs.rename("/t", "/a")
    assert contents(fs, "/a") == {b"old", b"new"}


def test_directory_changes_persist_in_any_order_except_per_name() -> None:
    fs = ModelFs()
    for name in ("/a", "/b"):
        fs.close(fs.create(name, 0o600))
    fs.unlink("/a")
    fs.close(fs.create("/a", 0o644))
    found = {tuple(sorted(crashed.tree())) for crashed in fs.crash_states(500, random.Random(1))}
    assert found == {("/",), ("/", "/a"), ("/", "/b"), ("/", "/a", "/b")}


def test_a_later_chmod_may_be_lost() -> None:
    fs = ModelFs()
    handle = make(fs, "/a", b"")
    fs.syncfs(handle)
    fs.chmod(handle, 0o644)
    assert {crashed.tree()["/a"].mode for crashed in fs.crash_states(9, random.Random(1))} == {0o600, 0o644}


def test_locks_and_handles_end_with_the_process() -> None:
    fs = ModelFs()
    handle = make(fs, "/a", b"")
    assert fs.try_lock(handle)
    assert not fs.try_lock(fs.open_file("/a"))
    killed = fs.copy()
    assert killed.try_lock(killed.open_file("/a"))
    assert killed.open_files() != fs.open_files()


# --- the model against the kernel ---------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "d", "d/a", "d/e", "l", "l/a", "missing/a"])
PAIRS = [("a", "b"), ("b", "a"), ("d", "e"), ("d/a", "d/e"), ("l", "a"), ("a", "d")]
MODES = st.sampled_from([0o600, 0o644, 0o640])
STEPS = st.one_of(
    st.tuples(st.just("write"), NAMES, MODES, st.binary(max_size=9)),
    st.tuples(st.just("append"), NAMES, st.binary(max_size=9)),
    st.tuples(st.just("rename"), st.sampled_from(PAIRS)),
    st.tuples(st.just("symlink"), st.sampled_from(["d", "nowhere", "a", "../{}"]), NAMES),
    st.tuples(st.just("unlink"), NAMES),
    st.tuples(st.just("mkdir"), NAMES),
    st.tuples(st.just("rmdir"), NAMES),
    st.tuples(st.just("truncate"), NAMES, st.integers(0, 12)),
    st.tuples(st.just("inspect"), NAMES),
)  # fmt: skip


def run(fs: Fs, root: str, step: tuple[Any, ...]) -> object:
    """Perform one step; return its visible result."""
    verb, *rest = step
    doing: dict[str, Callable[..., object]] = {
        "write": lambda name, mode, data: close(fs, fs.create(f"{root}/{name}", mode), data),
        "append": lambda name, data: close(fs, fs.open_append(f"{root}/{name}", 0o600), data),
        "rename": lambda pair: fs.rename(f"{root}/{pair[0]}", f"{root}/{pair[1]}"),
        "symlink": lambda text, name: fs.symlink(text.format(Path(root).name), f"{root}/{name}"),
        "unlink": lambda name: fs.unlink(f"{root}/{name}"),
        "mkdir": lambda name: fs.mkdir(f"{root}/{name}", 0o700),
        "rmdir": lambda name: fs.rmdir(f"{root}/{name}"),
        "truncate": lambda name, size: resize(fs, f"{root}/{name}", size),
        "inspect": lambda name: inspect(fs, f"{root}/{name}"),
    }
    try:
        return doing[verb](*rest)
    except DiskError as error:
        return error.errno


def close(fs: Fs, handle: Handle, data: bytes) -> None:
    with closing(fs, handle):
        fs.write(handle, data)


def resize(fs: Fs, path: str, size: int) -> None:
    if fs.lstat(path) is not None:
        with closing(fs, fs.open_append(path, 0o600)) as handle:
            fs.truncate(handle, size)


def inspect(fs: Fs, path: str) -> object:
    found = fs.lstat(path)
    if found is None:
        return None
    inside: object = None
    if found.kind == "file":
        with closing(fs, fs.open_file(path)) as handle:
            inside = (fs.read(handle, 100), found.mode, found.size)
    elif found.kind == "dir":
        with closing(fs, fs.open_dir(path)) as handle:
            inside = sorted(fs.listdir(handle))
    else:
        inside = fs.readlink(path)
    return found.kind, inside


@settings(max_examples=at_most(100))
@example(steps=[("symlink", "d", "d"), ("mkdir", "d/a")])  # a link to itself: ELOOP, no endless walk
@example(steps=[("write", "b", 0o600, b""), ("mkdir", "a"), ("rename", ("a", "b"))])
@given(steps=st.lists(STEPS, max_size=14))
def test_the_model_and_the_kernel_agree(steps: list[tuple[Any, ...]], tmp_path_factory: pytest.TempPathFactory) -> None:
    root = str(tmp_path_factory.mktemp("disk"))
    real, model = RealFs(), ModelFs()
    model.put_dir(root)
    for step in [*steps, *(("inspect", name) for name in ("a", "b", "d", "d/a", "d/e", "e", "l"))]:
        assert run(model, root, step) == run(real, root, step), step
