"""The store's memory of generations: without removed ones, and those that another process left half done."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from model_generations import FILES, LAYOUT, model_disk, publish, stage
from modeldisk import ModelFs

from certctrl.errors import StateCorruptError
from certctrl.store import decode
from certctrl.store.deployments.generation_files import identify
from certctrl.store.deployments.generations import GenerationStore


@pytest.fixture
def fs() -> ModelFs:
    return model_disk(syncfs=False)


@pytest.fixture
def store(fs: ModelFs) -> GenerationStore:
    return GenerationStore(LAYOUT, fs)


def changes(fs: ModelFs) -> list[str]:
    return [line for line in fs.trace if not line.startswith(("fsync", "syncfs"))]


class KilledError(Exception):
    """Stands for the end of the process."""


def killed_before_sync(fs: ModelFs, store: GenerationStore) -> GenerationStore:
    """Stage and rename a generation of `a`, end before the new name is durable, and return the next process's store."""
    staged = stage(store, "a")
    home = f"fsync {LAYOUT.generations / 'a'}"

    def kill(verb: str, path: str) -> None:
        if f"{verb} {path}" == home:
            raise KilledError

    fs.fault = kill
    with pytest.raises(KilledError):
        store.settle(staged)
    fs.fault = None
    again = GenerationStore(LAYOUT, fs)
    assert staged[0].id in again.ids("a")
    return again


# --- durable ------------------------------------------------------------------------------------------------


def earlier_process(fs: ModelFs, store: GenerationStore) -> GenerationStore:
    return killed_before_sync(fs, store)


def withdrawn(fs: ModelFs, store: GenerationStore) -> GenerationStore:
    publish(store, "a", "b")
    store.withdraw("a")
    return killed_before_sync(fs, store)


def pruned(fs: ModelFs, store: GenerationStore) -> GenerationStore:
    publish(store, "a")
    publish(store, "a", serial=2)
    assert store.prune("a", 0) == 1
    return killed_before_sync(fs, store)


@pytest.mark.parametrize("before", [earlier_process, withdrawn, pruned])
def test_a_name_that_is_not_durable_is_synced_by_the_next_settle(
    fs: ModelFs, store: GenerationStore, before: Callable[[ModelFs, GenerationStore], GenerationStore]
) -> None:
    store = before(fs, store)
    (again,) = stage(store, "a")
    assert not again.is_temporary
    store.settle([again])
    assert all(f"{again.path}/manifest.json" in crashed.tree() for crashed in fs.crash_states(10, random.Random(1)))
    fs.trace.clear()
    store.settle([again])
    assert fs.trace == [], "now it is durable"


# --- verified -----------------------------------------------------------------------------------------------


def discard(store: GenerationStore) -> str:
    (staged,) = stage(store, "a")
    store.discard(staged)
    return staged.id


def withdraw(store: GenerationStore) -> str:
    publish(store, "b")
    staged = stage(store, "a")
    store.settle(staged)
    store.withdraw("a")
    return staged[0].id


def prune(store: GenerationStore) -> str:
    publish(store, "a", serial=2)
    staged = stage(store, "a")
    store.settle(staged)
    assert store.prune("a", 0) == 1
    return staged[0].id


@pytest.mark.parametrize("remove", [discard, withdraw, prune])
def test_no_link_ever_leads_to_a_removed_generation(
    fs: ModelFs, store: GenerationStore, remove: Callable[[GenerationStore], str]
) -> None:
    """Readers of the live link would find nothing until it is restored."""
    removed = remove(store)
    fs.trace.clear()
    with pytest.raises(StateCorruptError, match="is missing"):
        store.switch({"a": removed})
    assert changes(fs) == []
    with pytest.raises(StateCorruptError, match="is missing"):
        store.manifest("a", removed)


def test_a_generation_that_has_decayed_since_it_was_live_is_not_switched_to(
    fs: ModelFs, store: GenerationStore
) -> None:
    first, _ = publish(store, "a")["a"], publish(store, "a", serial=2)
    fs.put(LAYOUT.generation("a", str(first)) / "private.key", b"another key")
    fs.trace.clear()
    with pytest.raises(StateCorruptError, match="not the file that was written"):
        store.switch({"a": first})
    assert changes(fs) == []


def test_withdrawing_a_certificate_keeps_those_staged_for_others(store: GenerationStore) -> None:
    (staged,) = stage(store, "b")
    publish(store, "a")
    store.withdraw("a")
    found = store.manifest("b", staged.id)
    assert (found["id"], found["facts"], set(found["files"])) == (staged.id, {"serial": 1}, set(FILES))
    store.settle([staged])
    store.switch({"b": staged.id})
    assert store.live_id("b") == staged.id


# --- listed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damaged", range(3))
def test_a_damaged_generation_does_not_hide_the_others(fs: ModelFs, store: GenerationStore, damaged: int) -> None:
    ids = [str(publish(store, "a", serial=serial)["a"]) for serial in range(3)]
    fs.put(LAYOUT.generation("a", ids[damaged]) / "manifest.json", b"{")
    assert GenerationStore(LAYOUT, fs).ids("a") == [one for one in ids if one != ids[damaged]]


def test_a_manifest_of_another_generation_is_damage(fs: ModelFs, store: GenerationStore) -> None:
    first, second = (LAYOUT.generation("a", str(publish(store, "a", serial=serial)["a"])) for serial in (1, 2))
    fs.put(first / "manifest.json", fs.tree()[f"{second}/manifest.json"].data)
    assert GenerationStore(LAYOUT, fs).ids("a") == [second.name]


def test_a_manifest_never_names_files_elsewhere(fs: ModelFs) -> None:
    """Its id is a hash that anyone can compute."""
    for name, listed in (("plain.pem", True), ("../plain.pem", False)):
        path = LAYOUT.generation("a", identify({name: "0"}, {}))
        body = {"number": 1, "name": "a", "files": {name: "0"}, "facts": {}}
        fs.put(path / "manifest.json", decode.to_json(body))
        assert (path.name in GenerationStore(LAYOUT, fs).ids("a")) is listed


def test_facts_that_are_not_json_are_refused_before_anything_is_written(fs: ModelFs, store: GenerationStore) -> None:
    fs.trace.clear()
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.stage("a", FILES, {"not_after": float("nan")})
    assert fs.trace == []
