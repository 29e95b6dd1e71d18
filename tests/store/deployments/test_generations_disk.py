"""Generations on a model disk: durability when a call returns, leftovers of failures, order of removal."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest
from model_generations import FILES, LAYOUT, model_disk, publish, stage
from modeldisk import ModelFs

from certctrl.errors import DiskError, StateCorruptError
from certctrl.store.deployments.generation_files import GenerationFiles, identify, remove_tree
from certctrl.store.deployments.generations import GenerationStore
from certctrl.store.disk.fs import Handle, RealFs, closing
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir


@pytest.fixture(params=[True, False], ids=["syncfs", "a kernel without a reliable syncfs"])
def fs(request: pytest.FixtureRequest) -> ModelFs:
    return model_disk(syncfs=request.param)


@pytest.mark.parametrize("names", [("a",), ("a", "b", "c", "d")])
def test_each_step_is_durable_when_it_returns(fs: ModelFs, names: tuple[str, ...]) -> None:
    store = GenerationStore(LAYOUT, fs)
    for serial in (1, 2):
        staged = stage(store, *names, serial=serial)
        assert fs.pending, "staging is not durable yet"
        store.settle(staged)
        assert (fs.pending, fs.open_files()) == ([], [])
        store.switch({one.name: one.id for one in staged})
        assert (fs.pending, fs.open_files()) == ([], [])
    store.switch(dict.fromkeys(names))
    assert (fs.pending, [store.live_id(name) for name in names]) == ([], [None] * len(names))
    for name in names:
        store.withdraw(name)
        assert fs.open_files() == []
        for crashed in fs.crash_states(10, random.Random(1)):
            assert not [path for path in crashed.tree() if f"/{name}/" in path or path.endswith(f"/{name}.key")]


def test_a_start_makes_renames_of_a_killed_process_durable(fs: ModelFs) -> None:
    store = GenerationStore(LAYOUT, fs)
    live = publish(store, "a", "b")
    fs.fault = lambda verb, path: errno.EIO if verb in ("fsync", "syncfs") else None
    with pytest.raises(DiskError):
        store.switch(dict.fromkeys(live))
    fs.fault = None
    assert fs.pending
    again = GenerationStore(LAYOUT, fs)
    assert again.sweep() == 0
    assert (fs.pending, fs.open_files()) == ([], [])


def test_a_generation_of_an_earlier_process_is_verified_and_synced_before_it_is_live(fs: ModelFs) -> None:
    first = publish(GenerationStore(LAYOUT, fs), "a")["a"]
    publish(GenerationStore(LAYOUT, fs), "a", serial=2)
    fs.trace.clear()
    GenerationStore(LAYOUT, fs).switch({"a": first})
    synced = f"syncfs {LAYOUT.generations}" if fs.can_syncfs else f"fsync {LAYOUT.generations / 'a'}"
    assert synced in fs.trace and not fs.pending
    swept = GenerationStore(LAYOUT, fs)
    swept.sweep()
    fs.trace.clear()
    swept.switch({"a": first})
    assert synced not in fs.trace, "the sweep has synced it"


def test_a_start_removes_a_generation_that_a_power_cut_has_torn(fs: ModelFs) -> None:
    """One sync makes contents and name durable, so a power cut before it may leave the name alone."""
    store = GenerationStore(LAYOUT, fs)
    for serial in (1, 2):
        live = publish(store, "a", serial=serial)["a"]
    (newer,) = stage(store, "a", serial=3)
    store.settle([newer])
    fs.put(store.path("a", newer.id) / "private.key", b"")
    before = len(fs.trace)
    again = GenerationStore(LAYOUT, fs)
    assert again.sweep() == 1
    assert again.ids("a")[1:] == [live]
    fs.put(store.path("b", "x") / "private.key", b"")
    assert again.sweep() == 1, "first installation"
    assert len(fs.trace) > before and fs.open_files() == []


def test_a_generation_that_could_not_be_made_durable_is_written_again(fs: ModelFs) -> None:
    """After a failed sync, a kernel may consider lost data to be written: another sync succeeds, and the data is lost."""
    store = GenerationStore(LAYOUT, fs)
    live = publish(store, "a")["a"]
    (first,) = stage(store, "a", serial=2)
    fs.fault = lambda verb, path: errno.EIO if verb in ("fsync", "syncfs") else None
    with pytest.raises(DiskError):
        store.settle([first])
    fs.fault = None
    del first
    before = len(fs.trace)
    (again,) = stage(store, "a", serial=2)
    assert again.is_temporary and any(call.startswith("write ") for call in fs.trace[before:])
    store.settle([again])
    assert store.switch({"a": again.id}) == {"a": live}
    assert store.ids("a") == [live, again.id]
    assert (fs.open_files(), store.has_leftovers) == ([], False)


def test_a_generation_that_cannot_be_read_does_not_prevent_a_start(
    fs: ModelFs, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = GenerationStore(LAYOUT, fs)
    publish(store, "a")
    (newer,) = stage(store, "a", serial=2)
    store.settle([newer])
    real = ModelFs.read

    def read(self: ModelFs, handle: Handle, limit: int) -> bytes:
        if handle.path.endswith(f"{newer.id}/chain.pem"):
            raise DiskError("cannot read", path=handle.path, errno=errno.EIO)
        return real(self, handle, limit)

    again = GenerationStore(LAYOUT, fs)
    with monkeypatch.context() as patch:
        patch.setattr(ModelFs, "read", read)
        assert again.sweep() == 0
        with pytest.raises(DiskError):
            again.switch({"a": newer.id})
    again.switch({"a": newer.id})


def test_a_generation_that_cannot_be_synced_does_not_prevent_a_start(fs: ModelFs) -> None:
    store = GenerationStore(LAYOUT, fs)
    publish(store, "a")
    (newer,) = stage(store, "a", serial=2)
    store.settle([newer])
    again = GenerationStore(LAYOUT, fs)
    fs.fault = lambda verb, path: errno.EIO if verb == "fsync" and newer.id in str(path) else None
    assert again.sweep() == 0
    fs.fault = None
    fs.trace.clear()
    again.switch({"a": newer.id})
    assert fs.can_syncfs or any(one.startswith("fsync ") and newer.id in one for one in fs.trace)
    assert fs.open_files() == []


def test_a_live_manifest_that_cannot_be_read_does_not_prevent_a_start(
    fs: ModelFs, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = publish(GenerationStore(LAYOUT, fs), "a")["a"]
    real = ModelFs.read

    def read(self: ModelFs, handle: Handle, limit: int) -> bytes:
        if handle.path.endswith(f"{live}/manifest.json"):
            raise DiskError("cannot read", path=handle.path, errno=errno.EIO)
        return real(self, handle, limit)

    monkeypatch.setattr(ModelFs, "read", read)
    again = GenerationStore(LAYOUT, fs)
    assert (again.sweep(), again.live_id("a")) == (0, live)


@pytest.mark.parametrize("sticky", [False, True])
def test_staging_on_a_full_disk_leaves_nothing(fs: ModelFs, sticky: bool) -> None:
    store = GenerationStore(LAYOUT, fs)
    full = [f"write {file}" for file in ("chain.pem", "manifest.json")]

    def fault(verb: str, path: str) -> int | None:
        if sticky and verb in ("unlink", "rmdir"):
            return errno.EIO
        return errno.ENOSPC if f"{verb} {Path(path).name}" in full else None

    fs.fault = fault
    with pytest.raises(DiskError) as caught:
        stage(store, "a")
    assert caught.value.errno == errno.ENOSPC, "the first error is reported"
    home = f"{LAYOUT.generations / 'a'}/"
    assert bool([path for path in fs.tree() if path.startswith(home)]) is sticky
    fs.fault = None
    assert fs.open_files() == []
    assert publish(store, "a")["a"] == store.live_id("a")
    assert GenerationStore(LAYOUT, fs).sweep() == 0, "what had to stay is gone"


def test_a_failed_switch_restores_as_much_as_possible(fs: ModelFs) -> None:
    """A name that cannot be restored does not keep the others from it."""
    store = GenerationStore(LAYOUT, fs)
    old = publish(store, "a", "b", "c", "d")
    new = stage(store, "a", "b", "c", "d", serial=2)
    store.settle(new)
    failed = list[str]()

    def fault(verb: str, path: str) -> int | None:
        if verb == "symlink" and (".c." in path or (failed and ".a." in path)):
            failed.append(path)
            return errno.ENOSPC if ".c." in path else errno.EIO
        return None

    fs.fault = fault
    with pytest.raises(DiskError) as caught:
        store.switch({one.name: one.id for one in new})
    fs.fault = None
    assert caught.value.errno == errno.ENOSPC, "the first error is reported"
    assert {name: store.live_id(name) for name in old} == old | {"a": new[0].id}
    assert fs.open_files() == []


# --- removing -----------------------------------------------------------------------------------------------


def test_private_files_are_removed_first(fs: ModelFs) -> None:
    store = GenerationStore(LAYOUT, fs)
    publish(store, "a")
    publish(store, "a", serial=2)
    fs.trace.clear()
    assert store.prune("a", 0) == 1
    removed = [Path(line.partition(" ")[2]).name for line in fs.trace if line.startswith("unlink")]
    assert removed == ["bundle.pfx", "private.key", "certificate.pem", "chain.pem", "manifest.json"]


def test_a_tree_is_removed_without_following_links(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "file").touch()
    (tmp_path / "tree" / "below" / "deeper").mkdir(parents=True)
    (tmp_path / "tree" / "below" / "file").touch()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "victim")
    (tmp_path / "link").symlink_to("victim")
    fs = RealFs()
    with closing(fs, fs.open_dir(tmp_path)) as parent:
        remove_tree(fs, parent, "tree")
        remove_tree(fs, parent, "link")
        with pytest.raises(DiskError) as caught:
            remove_tree(fs, parent, "missing")
    assert caught.value.errno == errno.ENOENT
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "victim"]


def test_an_error_while_removing_is_reported(fs: ModelFs) -> None:
    store = GenerationStore(LAYOUT, fs)
    publish(store, "a")
    publish(store, "a", serial=2)
    fs.fault = lambda verb, path: errno.EIO if verb == "unlink" else None
    with pytest.raises(DiskError) as caught:
        store.prune("a", 0)
    assert (caught.value.errno, fs.open_files()) == (errno.EIO, [])


def test_pruning_includes_generations_published_since(fs: ModelFs) -> None:
    store = GenerationStore(LAYOUT, fs)
    ids = [publish(store, "a", serial=serial)["a"] for serial in range(3)]
    assert store.prune("a", 1) == 1
    ids += [publish(store, "a", serial=serial)["a"] for serial in (3, 4)]
    assert store.prune("a", 1) == 2
    assert store.ids("a") == GenerationStore(LAYOUT, fs).ids("a") == ids[3:]
    assert [store.manifest("a", str(one))["number"] for one in ids[3:]] == [4, 5]
    fs.trace.clear()
    assert store.prune("a", 1) == 0 and fs.trace == []
    (staged,) = stage(store, "a", serial=9)
    store.settle([staged])
    for manifest in (store.manifest("a", staged.id), GenerationStore(LAYOUT, fs).manifest("a", staged.id)):
        assert (manifest["id"], manifest["number"], manifest["name"]) == (staged.id, 6, "a")
        assert (manifest["facts"], set(manifest["files"])) == ({"serial": 9}, set(FILES))


@pytest.mark.parametrize("damage", ["no manifest", "a damaged manifest", "a missing file", "a directory for a file"])
def test_the_sweep_removes_only_incomplete_generations(fs: ModelFs, damage: str) -> None:
    store = GenerationStore(LAYOUT, fs)
    ids = [str(publish(store, "a", serial=serial)["a"]) for serial in range(3)]
    path = LAYOUT.generation("a", ids[0])
    match damage:
        case "no manifest":
            fs.unlink(path / "manifest.json")
        case "a damaged manifest":
            fs.put(path / "manifest.json", b"{")
        case _:
            fs.unlink(path / "chain.pem")
            if damage == "a directory for a file":
                fs.mkdir(path / "chain.pem", 0o700)
    assert GenerationStore(LAYOUT, fs).sweep() == 1
    assert GenerationStore(LAYOUT, fs).ids("a") == ids[1:]
    assert GenerationStore(LAYOUT, fs).sweep() == 0


# --- manifests ----------------------------------------------------------------------------------------------


def test_the_id_depends_on_files_and_facts_alone() -> None:
    """Ids are in links of earlier releases, and must be found again."""
    assert identify({"a": "1", "b": "2"}, {"c": 3}) == identify({"b": "2", "a": "1"}, {"c": 3})
    assert identify({"a": "1", "b": "2"}, {"c": 3}) == "485466eef50cd7e886a7fd2ba2cd01c5"
    assert len({identify(files, facts) for files in ({}, {"a": "1"}) for facts in ({}, {"a": 1})}) == 4


def test_damage_in_a_generation_is_named(fs: ModelFs) -> None:
    store = GenerationStore(LAYOUT, fs)
    one = str(publish(store, "a")["a"])
    path = LAYOUT.generation("a", one)
    fix = "remove its directory; the agent then fetches the certificate again"
    cases = [
        ("chain.pem", b"other", f"{path}/chain.pem is not the file that was written there"),
        ("chain.pem", None, f"{path}/chain.pem is missing"),
        ("manifest.json", b'{"state_version":1}', f"{path}/manifest.json is damaged: number: is missing"),
        ("manifest.json", b"{", f"{path}/manifest.json is damaged: it is not JSON, or is truncated"),
        ("manifest.json", None, f"{path}/manifest.json is missing"),
    ]
    for file, data, what in cases:
        if data is None:
            fs.unlink(path / file)
        else:
            fs.put(path / file, data)
        with pytest.raises(StateCorruptError) as caught:
            GenerationStore(LAYOUT, fs).read("a", one, "chain.pem")
        assert (str(caught.value), caught.value.path, caught.value.fix) == (what, what.partition(" ")[0], fix)
    for present in (False, True):
        if present:
            fs.put(path / "other.pem", b"not the agent's")
        with pytest.raises(StateCorruptError, match=r"other\.pem is missing"):
            GenerationFiles(LAYOUT, fs).read(path, {"files": {}}, "other.pem")


def test_a_replaced_file_is_damage(tmp_path: Path) -> None:
    layout, disk = ConfigDir(tmp_path / "agent"), RealFs()
    make_tree(disk, layout)
    store = GenerationStore(layout, disk)
    one = str(publish(store, "a")["a"])
    path = layout.generation("a", one) / "chain.pem"
    for make in (lambda: path.symlink_to("certificate.pem"), path.mkdir, lambda: path.write_bytes(b"x" * 4_194_305)):
        if path.is_symlink() or path.exists():
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        make()
        with pytest.raises(StateCorruptError) as caught:
            store.read("a", one, "chain.pem")
        assert str(path) in str(caught.value)
        assert caught.value.path == str(path) and caught.value.fix


def test_a_foreign_link_is_named_with_its_fix(fs: ModelFs) -> None:
    fs.symlink("/etc", LAYOUT.live_link("a"))
    with pytest.raises(StateCorruptError) as caught:
        GenerationStore(LAYOUT, fs).live_id("a")
    link = LAYOUT.live_link("a")
    assert str(caught.value) == f"{link} does not lead to a generation of a"
    assert caught.value.path == str(link)
    assert caught.value.fix == f"remove {link}; the agent then fetches the certificate again"
