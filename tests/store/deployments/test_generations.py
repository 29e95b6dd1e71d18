"""Generations: staged, settled, switched as a set, reused, repaired, pruned, withdrawn."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest
from modeldisk import ModelFs

from certctrl.errors import DiskError, StateCorruptError
from certctrl.store.deployments.generations import GenerationStore, Staged
from certctrl.store.disk.fs import RealFs
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir

NAME = "example.com"
FACTS = {"cert_id": 7, "domains": ["example.com"], "not_after": 1.5}


def material(number: int) -> dict[str, bytes]:
    return {
        "private.key": b"key %d" % number, "certificate.pem": b"leaf %d" % number, "chain.pem": b"chain",
        "fullchain.pem": b"leaf %d chain" % number,
    }  # fmt: skip


@pytest.fixture
def store(layout: ConfigDir) -> GenerationStore:
    return GenerationStore(layout, RealFs())


def publish(store: GenerationStore, number: int, name: str = NAME) -> Staged:
    staged = store.stage(name, material(number), FACTS | {"serial": number})
    store.settle([staged])
    store.switch({name: staged.id})
    return staged


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_first_certificate_appears_at_the_specs_paths(layout: ConfigDir, store: GenerationStore) -> None:
    assert store.live_id(NAME) is None
    staged = store.stage(NAME, material(1), FACTS)
    assert (staged.name, staged.unchanged, staged.path.parent) == (NAME, False, layout.generations / NAME)
    assert {path.name for path in staged.path.iterdir()} == {*material(1), "manifest.json"}
    assert not (layout.certs / f"{NAME}.key").exists()
    store.settle([staged])
    assert store.live_id(NAME) is None
    assert store.switch({NAME: staged.id}) == {NAME: None}
    assert store.live_id(NAME) == staged.id
    assert (layout.certs / f"{NAME}.crt").read_bytes() == b"leaf 1 chain"
    assert (layout.certs / f"{NAME}.key").read_bytes() == b"key 1"
    assert (layout.chains / f"{NAME}.pem").read_bytes() == b"chain"


def test_modes_are_those_of_the_spec(layout: ConfigDir, store: GenerationStore) -> None:
    before = os.umask(0)
    try:
        staged = publish(store, 1)
    finally:
        os.umask(before)
    path = store.path(NAME, staged.id)
    assert (mode(path), mode(path.parent)) == (0o700, 0o700)
    found = {file.name: mode(file) for file in path.iterdir()}
    assert found == {
        "private.key": 0o600, "certificate.pem": 0o644, "chain.pem": 0o644, "fullchain.pem": 0o644,
        "manifest.json": 0o600,
    }  # fmt: skip


def test_other_formats_are_treated_as_secret(store: GenerationStore) -> None:
    staged = store.stage(NAME, material(1) | {"bundle.pfx": b"x", "combined.pem": b"y"}, FACTS)
    assert mode(staged.path / "bundle.pfx") == mode(staged.path / "combined.pem") == 0o600


def test_all_links_are_relative_and_a_copied_directory_works(layout: ConfigDir, store: GenerationStore) -> None:
    publish(store, 1)
    publish(store, 2)
    for path in layout.certs.rglob("*"):
        assert not path.is_symlink() or not os.readlink(path).startswith("/")
    copied = ConfigDir(layout.root.with_name("elsewhere"))
    shutil.copytree(layout.root, copied.root, symlinks=True)
    shutil.rmtree(layout.root)
    again = GenerationStore(copied, RealFs())
    assert (copied.certs / f"{NAME}.key").read_bytes() == b"key 2"
    publish(again, 3)
    assert (copied.certs / f"{NAME}.key").read_bytes() == b"key 3"


def test_the_same_material_is_the_same_generation(store: GenerationStore) -> None:
    first = publish(store, 1)
    again = store.stage(NAME, material(1), FACTS | {"serial": 1})
    assert (again.id, again.unchanged, again.is_temporary) == (first.id, True, False)
    store.settle([again])
    assert store.ids(NAME) == [first.id]
    assert store.stage(NAME, material(1), FACTS | {"serial": 2}).id != first.id


def test_staging_again_before_settling_returns_the_same(layout: ConfigDir, store: GenerationStore) -> None:
    one, two = (store.stage(NAME, material(1), FACTS) for _ in range(2))
    assert one.path == two.path
    store.settle([one, two])
    store.settle([one])
    assert [path.name for path in (layout.generations / NAME).iterdir()] == [one.id]


def test_an_older_generation_is_reused_and_verified(store: GenerationStore) -> None:
    first = publish(store, 1)
    publish(store, 2)
    again = publish(store, 1)
    assert again.id == first.id
    assert store.live_id(NAME) == first.id


def test_ids_are_in_order_of_creation(store: GenerationStore) -> None:
    made = [publish(store, number).id for number in range(5)]
    assert GenerationStore(store._layout, RealFs()).ids(NAME) == made
    assert store.manifest(NAME, made[3])["number"] == 4


def test_the_manifest_lists_files_and_facts(store: GenerationStore) -> None:
    staged = publish(store, 1)
    manifest = store.manifest(NAME, staged.id)
    assert manifest["facts"] == FACTS | {"serial": 1}
    assert manifest["files"].keys() == material(1).keys()
    assert set(staged.files) == manifest["files"].keys()
    assert store.read(NAME, staged.id, "private.key") == b"key 1"


def test_switch_returns_the_previous_generations(store: GenerationStore) -> None:
    first, second = publish(store, 1), publish(store, 2)
    assert store.switch({NAME: first.id}) == {NAME: second.id}
    assert store.switch({NAME: None}) == {NAME: first.id}
    assert store.live_id(NAME) is None
    assert store.ids(NAME) == [first.id, second.id]


def test_discarding_leaves_nothing(layout: ConfigDir, store: GenerationStore) -> None:
    live = publish(store, 1)
    staged = store.stage(NAME, material(2), FACTS)
    store.discard(staged)
    assert [path.name for path in (layout.generations / NAME).iterdir()] == [live.id]
    store.discard(store.stage(NAME, material(1), FACTS | {"serial": 1}))  # the live generation is not discarded
    assert store.live_id(NAME) == live.id
    assert (layout.certs / f"{NAME}.key").exists()


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\0b"])
def test_names_that_are_paths_are_refused(store: GenerationStore, name: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        store.stage(name, material(1), FACTS)


def test_one_that_was_withdrawn_meanwhile_does_not_fail_the_others(store: GenerationStore) -> None:
    """Forgotten by the operator while a batch collects."""
    gone, other = store.stage("gone.example", material(1), FACTS), store.stage(NAME, material(2), FACTS)
    store.withdraw("gone.example")
    store.settle([gone, other])
    store.switch({NAME: other.id})
    assert store.live_id(NAME) == other.id


# --- damage -------------------------------------------------------------------------------------------------


def test_a_damaged_generation_is_not_switched_to(layout: ConfigDir, store: GenerationStore) -> None:
    first, second = publish(store, 1), publish(store, 2)
    (store.path(NAME, first.id) / "private.key").write_bytes(b"another key")
    with pytest.raises(StateCorruptError, match=r"private\.key"):
        GenerationStore(layout, RealFs()).switch({NAME: first.id})
    assert store.live_id(NAME) == second.id
    with pytest.raises(StateCorruptError):
        store.read(NAME, first.id, "private.key")


def test_damage_after_staging_is_noticed_through_the_link(
    layout: ConfigDir, store: GenerationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publish(store, 1)
    second = store.stage(NAME, material(2), FACTS)
    store.settle([second])
    (store.path(NAME, second.id) / "private.key").write_bytes(b"another key")
    with pytest.raises(StateCorruptError):
        store.switch({NAME: second.id})
    assert store.live_id(NAME) == first.id
    assert (layout.certs / f"{NAME}.key").read_bytes() == b"key 1"


def test_a_damaged_generation_is_written_again(store: GenerationStore) -> None:
    first = publish(store, 1)
    publish(store, 2)
    (store.path(NAME, first.id) / "chain.pem").unlink()
    assert publish(store, 1).id == first.id
    assert store.read(NAME, first.id, "chain.pem") == b"chain"


def test_a_damaged_live_generation_is_replaced_under_another_id(layout: ConfigDir, store: GenerationStore) -> None:
    first = publish(store, 1)
    (store.path(NAME, first.id) / "private.key").write_bytes(b"rotten")
    mended = store.stage(NAME, material(1), FACTS | {"serial": 1})
    assert (mended.id, mended.unchanged) == (f"{first.id}.1", False)
    store.settle([mended])
    assert store.switch({NAME: mended.id}) == {NAME: first.id}
    assert (layout.certs / f"{NAME}.key").read_bytes() == b"key 1"
    assert store.prune(NAME, 0) == 1
    assert store.ids(NAME) == [mended.id]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\0" * 9, b"{}", b"garbage", b'{"state_version":1,"files":{},"facts":{},"number":1}',
        b'{"state_version":1,"files":{},"facts":{"not_after":NaN},"number":1,"name":"example.com"}',
    ],
)  # fmt: skip
def test_a_damaged_manifest_is_not_a_generation(layout: ConfigDir, store: GenerationStore, body: bytes) -> None:
    first = publish(store, 1)
    (store.path(NAME, first.id) / "manifest.json").write_bytes(body)
    fresh = GenerationStore(layout, RealFs())
    assert fresh.ids(NAME) == []
    with pytest.raises(StateCorruptError) as caught:
        fresh.manifest(NAME, first.id)
    assert caught.value.fix
    assert fresh.live_id(NAME) == first.id
    fresh.sweep()
    assert store.path(NAME, first.id).exists()  # live, so it stays


@pytest.mark.parametrize("text", ["../.generations/other/x", "/etc", "../.generations/example.com", "x/../../y", "."])
def test_a_foreign_live_link_is_damage(layout: ConfigDir, store: GenerationStore, text: str) -> None:
    publish(store, 1)
    link = layout.live_link(NAME)
    link.unlink()
    link.symlink_to(text)
    with pytest.raises(StateCorruptError, match="does not lead"):
        store.live_id(NAME)
    assert store.sweep() == 0


# --- all or none --------------------------------------------------------------------------------------------


def test_a_switch_of_several_names_is_all_or_none() -> None:
    fs = ModelFs()
    fs.put_dir("/etc")
    layout = ConfigDir(Path("/etc/agent"))
    make_tree(fs, layout)
    store = GenerationStore(layout, fs)
    names = [f"{letter}.example" for letter in "abcd"]
    old = {name: publish(store, 1, name).id for name in names}
    new = [store.stage(name, material(2), FACTS) for name in names]
    store.settle(new)
    fs.fault = lambda verb, path: errno.ENOSPC if verb == "symlink" and "c.example" in path else None
    with pytest.raises(DiskError):
        store.switch({one.name: one.id for one in new})
    fs.fault = None
    assert {name: store.live_id(name) for name in names} == old
    assert store.switch({one.name: one.id for one in new}) == old


def test_a_reader_that_resolves_the_link_once_sees_one_pair(layout: ConfigDir, store: GenerationStore) -> None:
    """200 switches while a reader opens the directory behind the link: no mixed pair."""
    staged = [publish(store, number) for number in (1, 2)]
    for number in range(200):
        directory = os.open(layout.live_link(NAME), os.O_RDONLY | os.O_DIRECTORY)
        store.switch({NAME: staged[number % 2].id})
        key, leaf = (read_in(directory, file) for file in ("private.key", "certificate.pem"))
        os.close(directory)
        assert key.split()[1] == leaf.split()[1]


def read_in(directory: int, name: str) -> bytes:
    fd = os.open(name, os.O_RDONLY, dir_fd=directory)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


# --- removing -----------------------------------------------------------------------------------------------


def test_prune_keeps_the_live_the_named_and_the_newest(store: GenerationStore) -> None:
    ids = [publish(store, number).id for number in range(6)]
    store.switch({NAME: ids[0]})
    assert store.prune(NAME, 2, also_keep={ids[2]}) == 2
    assert store.ids(NAME) == [ids[0], ids[2], ids[4], ids[5]]
    assert store.prune(NAME, 2, also_keep={ids[2]}) == 0
    assert store.live_id(NAME) == ids[0]


def test_withdraw_leaves_no_file(layout: ConfigDir, store: GenerationStore) -> None:
    publish(store, 1)
    publish(store, 2)
    publish(store, 1, "other.example")
    store.withdraw(NAME)
    store.withdraw(NAME)
    assert store.live_id(NAME) is None
    assert not [path for path in layout.certs.rglob("*") if NAME in str(path.relative_to(layout.certs))]
    assert (layout.certs / "other.example.key").exists()
    publish(store, 1)
    assert (layout.certs / f"{NAME}.key").exists()


def test_withdraw_keeps_foreign_files(layout: ConfigDir, store: GenerationStore) -> None:
    publish(store, 1)
    link = layout.certs / f"{NAME}.crt"
    link.unlink()
    link.write_text("the operator's own")
    store.withdraw(NAME)
    assert link.read_text() == "the operator's own"


def test_withdraw_removes_files_that_a_backup_restored_in_place_of_links(
    layout: ConfigDir, store: GenerationStore
) -> None:
    """Their keys stayed, readable at the very path where services expect them."""
    publish(store, 1)
    publish(store, 2)
    store.public.publish({"alias.example": NAME})
    links = {
        layout.certs / f"{NAME}.key": b"key 1", layout.certs / f"{NAME}.crt": b"leaf 2 chain",
        layout.chains / f"{NAME}.pem": b"chain", layout.certs / "alias.example.key": b"key 2",
    }  # fmt: skip
    for link, data in links.items():
        link.unlink()
        link.write_bytes(data)
    other = layout.certs / "alias.example.crt"
    other.unlink()
    other.write_bytes(b"leaf 3 chain")
    store.withdraw(NAME)
    assert not any(link.exists() for link in links)
    assert other.read_bytes() == b"leaf 3 chain", "not what the agent wrote"


def test_withdraw_goes_on_beside_a_damaged_generation(layout: ConfigDir, store: GenerationStore) -> None:
    damaged, live = publish(store, 1), publish(store, 2)
    (layout.generation(NAME, damaged.id) / "manifest.json").write_bytes(b"{")
    link = layout.certs / f"{NAME}.key"
    link.unlink()
    link.write_bytes(b"key 2")
    GenerationStore(layout, RealFs()).withdraw(NAME)
    assert not link.exists() and not layout.generation(NAME, live.id).exists()


def test_withdraw_keeps_files_at_a_name_that_was_passed_on(layout: ConfigDir, store: GenerationStore) -> None:
    publish(store, 1)
    publish(store, 2, f"{NAME}+5")
    store.public.publish({NAME: f"{NAME}+5"})
    link = layout.chains / f"{NAME}.pem"
    link.unlink()
    link.write_bytes(b"chain")  # both have the same
    store.withdraw(NAME)
    assert link.read_bytes() == b"chain"


def test_sweep_repairs_links_and_removes_leftovers(layout: ConfigDir, store: GenerationStore) -> None:
    live = publish(store, 1)
    half = publish(store, 2)
    store.switch({NAME: live.id})
    (store.path(NAME, half.id) / "private.key").unlink()  # interrupted pruning
    left = store.stage(NAME, material(3), FACTS)
    (layout.generations / ".tmp-gone").mkdir()
    (layout.live / ".x.00.tmp").symlink_to("nowhere")
    (layout.certs / f"{NAME}.crt").unlink()
    (layout.generations / "stray file").touch()
    assert GenerationStore(layout, RealFs()).sweep() == 4
    assert not left.path.exists()
    assert [path.name for path in (layout.generations / NAME).iterdir()] == [live.id]
    assert (layout.certs / f"{NAME}.crt").read_bytes() == b"leaf 1 chain"
    assert GenerationStore(layout, RealFs()).sweep() == 0


# --- cost ---------------------------------------------------------------------------------------------------


class Counting(RealFs):
    """Count the calls that make data durable."""

    def __init__(self) -> None:
        self.syncs = 0

    def fsync(self, handle: object) -> None:
        self.syncs += 1

    def syncfs(self, handle: object) -> bool:
        self.syncs += 1
        return True


def cost(fs: Counting, store: GenerationStore, names: Mapping[str, int]) -> int:
    before = fs.syncs
    staged = [store.stage(name, material(number), FACTS) for name, number in names.items()]
    store.settle(staged)
    store.switch({one.name: one.id for one in staged})
    return fs.syncs - before


def test_one_certificate_costs_at_most_four_fsyncs(layout: ConfigDir) -> None:
    fs = Counting()
    store = GenerationStore(layout, fs)
    assert cost(fs, store, {NAME: 1}) <= 4
    assert cost(fs, store, {NAME: 2}) <= 3


def test_a_hundred_certificates_cost_at_most_a_tenth_each(layout: ConfigDir) -> None:
    fs = Counting()
    store = GenerationStore(layout, fs)
    names = [f"{number}.example" for number in range(100)]
    assert cost(fs, store, dict.fromkeys(names, 1)) <= 10
    assert cost(fs, store, dict.fromkeys(names, 2)) <= 10


def test_an_unchanged_certificate_writes_nothing() -> None:
    fs = ModelFs()
    fs.put_dir("/etc")
    layout = ConfigDir(Path("/etc/agent"))
    make_tree(fs, layout)
    store = GenerationStore(layout, fs)
    publish(store, 1)
    fs.trace.clear()
    store.settle([store.stage(NAME, material(1), FACTS | {"serial": 1})])
    assert not [line for line in fs.trace if not line.startswith("fsync")]
