"""Generations that will not be used are removed while the process runs, not at its next start."""

from __future__ import annotations

import errno
import gc
from collections.abc import Callable
from contextlib import suppress
from weakref import ref

import pytest
from model_generations import LAYOUT, model_disk, publish, stage
from modeldisk import ModelFs

from certctrl.errors import DiskError
from certctrl.store.deployments import generations
from certctrl.store.deployments.generations import GenerationStore, Staged


@pytest.fixture
def fs() -> ModelFs:
    return model_disk(syncfs=True)


@pytest.fixture
def store(fs: ModelFs) -> GenerationStore:
    return GenerationStore(LAYOUT, fs)


def temporary(fs: ModelFs) -> list[str]:
    gc.collect()  # a traceback may still hold what it names
    return [path for path in fs.tree() if "/.tmp-" in path]


def test_the_next_renewal_removes_unused_generations(fs: ModelFs, store: GenerationStore) -> None:
    """Found by killing the plane: a handler failed after it had staged, and the next signal brought newer material."""
    (other,) = stage(store, "b")
    stage(store, "a", serial=1)
    assert temporary(fs), "nobody holds it, but it may be wanted again"
    published = publish(store, "a", serial=2)
    assert {path for path in temporary(fs) if "/a/" in path} == set()
    assert store.ids("a") == [published["a"]]
    store.settle([other])
    assert store.ids("b") == [other.id], "it was held"
    assert not store.has_leftovers


def test_staging_again_replaces_unreferenced_generations(fs: ModelFs, store: GenerationStore) -> None:
    stage(store, "a")
    (again,) = stage(store, "a")
    assert {path.split("/")[-2] for path in temporary(fs) if path.endswith("private.key")} == {again.path.name}
    store.settle([again])
    assert store.switch({"a": again.id}) == {"a": None}


def test_staging_does_not_examine_all_others_of_a_burst(
    store: GenerationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[str] = []

    def counting(staged: Staged) -> Callable[[], Staged | None]:
        held = ref(staged)

        def look() -> Staged | None:
            looked_at.append(staged_name)
            return held()

        return look

    monkeypatch.setattr(generations, "ref", counting)
    names = [f"n{number}" for number in range(20)]
    held = []
    for staged_name in names:
        held += stage(store, staged_name)
    assert looked_at == []
    store.settle(held)
    assert not store.has_leftovers


def test_clearing_up_removes_only_unreferenced_generations(fs: ModelFs, store: GenerationStore) -> None:
    held = stage(store, "a", "b", serial=2)
    stage(store, "c")
    store.clear_up()
    assert {path.split("/")[-3] for path in temporary(fs) if path.endswith("private.key")} == {"a", "b"}
    store.settle(held)
    assert store.switch({one.name: one.id for one in held}) == {"a": None, "b": None}
    assert (temporary(fs), store.has_leftovers) == ([], False)


def test_a_generation_that_was_renamed_but_not_synced_does_not_stay(fs: ModelFs, store: GenerationStore) -> None:
    first = publish(store, "a", serial=1)["a"]
    staged = stage(store, "a", serial=2)
    fs.fault = lambda verb, path: errno.EIO if verb == "syncfs" else None
    with pytest.raises(DiskError):
        store.settle(staged)
    fs.fault = None
    assert (store.ids("a"), temporary(fs), store.has_leftovers) == ([first], [], False)
    store.settle(staged)  # in vain
    newest = publish(store, "a", serial=3)["a"]
    assert newest is not None
    assert store.manifest("a", newest)["number"] == 2
    assert (store.prune("a", 0), store.ids("a")) == (1, [newest])


def stage_and_discard(store: GenerationStore) -> None:
    (staged,) = stage(store, "a", serial=3)
    store.discard(staged)


def stage_in_vain(store: GenerationStore) -> None:
    stage(store, "a", serial=3)


def prune(store: GenerationStore) -> None:
    store.prune("a", 0)


def withdraw(store: GenerationStore) -> None:
    for _ in range(2):  # as its owner does: the second call finds the certificate gone
        with suppress(DiskError):
            store.withdraw("a")


@pytest.mark.parametrize("work", [stage_in_vain, stage_and_discard, prune, withdraw])
def test_a_disk_that_fails_at_any_operation_leaves_no_key_for_long(work: Callable[[GenerationStore], None]) -> None:
    left_once, after = False, 0
    while True:
        fs = model_disk(syncfs=True)
        store = GenerationStore(LAYOUT, fs)
        publish(store, "a", serial=1)
        publish(store, "a", serial=2)
        count = 0

        def fault(verb: str, path: str, after: int = after) -> int | None:
            nonlocal count
            count += 1
            return errno.EIO if count > after else None

        fs.fault = fault
        with suppress(DiskError):
            work(store)
        left_once = left_once or bool(temporary(fs))
        with suppress(DiskError):
            store.clear_up()
        fs.fault = None
        store.clear_up()
        assert temporary(fs) == [], f"after {after} operations"
        if count <= after:
            break
        after += 1
    assert left_once or work is stage_and_discard


def test_a_key_that_stays_is_reported_until_it_is_gone(fs: ModelFs, store: GenerationStore) -> None:
    publish(store, "a")
    fs.fault = lambda verb, path: errno.EIO if verb == "unlink" and "/.tmp-" in path else None
    for _ in range(2):  # not only by the call that failed first
        with pytest.raises(DiskError):
            store.withdraw("a")
    with pytest.raises(DiskError):
        store.clear_up()
    fs.fault = None
    store.withdraw("a")
    assert [path for path in fs.tree() if path.endswith("private.key")] == []
