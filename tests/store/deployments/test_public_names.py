"""Public names that lead to another directory than their own: through an alias, each change atomic and durable."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest
from crash_exploration import explore
from model_generations import LAYOUT, model_disk
from modeldisk import ModelFs

from certctrl.store.deployments.generations import GenerationStore
from certctrl.store.disk.fs import RealFs, closing
from certctrl.store.disk.interface import Fs
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir


def material(name: str) -> dict[str, bytes]:
    return {file: f"{file} of {name}".encode() for file in ("private.key", "fullchain.pem", "chain.pem")}


def publish(store: GenerationStore, *names: str) -> None:
    staged = [store.stage(name, material(name), {"cert_id": 7}) for name in names]
    store.settle(staged)
    store.switch({one.name: one.id for one in staged})


def shown(layout: ConfigDir, public: str) -> set[str]:
    """Return the certificates whose files a public name has."""
    paths = {
        layout.certs / f"{public}.key": "private.key", layout.certs / f"{public}.crt": "fullchain.pem",
        layout.chains / f"{public}.pem": "chain.pem",
    }  # fmt: skip
    return {path.read_text().removeprefix(f"{file} of ") for path, file in paths.items() if path.is_symlink()}


def remove(layout: ConfigDir, fs: Fs, store: GenerationStore, directory: str) -> None:
    with ExitStack() as stack:
        paths = (layout.live, layout.certs, layout.chains)
        store.public.remove(directory, {path: stack.enter_context(closing(fs, fs.open_dir(path))) for path in paths})


@pytest.fixture
def store(layout: ConfigDir) -> GenerationStore:
    made = GenerationStore(layout, RealFs())
    publish(made, "www", "www+5", "mail")
    return made


def test_a_public_name_leads_to_another_directory_and_back(layout: ConfigDir, store: GenerationStore) -> None:
    assert (shown(layout, "www"), shown(layout, "www+5")) == ({"www"}, {"www+5"})
    store.public.publish({"www": "www+5"})
    assert shown(layout, "www") == {"www+5"}
    assert os.readlink(layout.live / "+www") == "www+5"
    assert os.readlink(layout.certs / "www.crt") == ".live/+www/fullchain.pem"
    assert os.readlink(layout.chains / "www.pem") == "../.live/+www/chain.pem"
    store.public.publish({"www": "www"})
    assert (shown(layout, "www"), os.readlink(layout.live / "+www")) == ({"www"}, "www")
    assert shown(layout, "mail") == {"mail"}
    names = names_in(layout)
    assert GenerationStore(layout, RealFs()).sweep() == 0
    assert names_in(layout) == names, "an alias is not a certificate"
    assert not list(layout.certs.rglob("*.tmp"))


def test_the_name_of_the_directory_needs_no_alias(layout: ConfigDir, store: GenerationStore) -> None:
    store.public.publish({"mail": "mail"})
    assert not (layout.live / "+mail").exists()
    assert os.readlink(layout.certs / "mail.crt") == ".live/mail/fullchain.pem"


def test_a_public_name_without_a_directory(layout: ConfigDir, store: GenerationStore) -> None:
    store.public.publish({"shop": "www+5", "mail": "www"})
    assert (shown(layout, "shop"), shown(layout, "mail")) == ({"www+5"}, {"www"})


def test_a_name_that_was_passed_on_survives_renewals_and_starts(layout: ConfigDir, store: GenerationStore) -> None:
    store.public.publish({"www": "www+5"})
    staged = store.stage("www", material("www"), {"cert_id": 8})
    store.settle([staged])
    store.switch({"www": staged.id})
    assert shown(layout, "www") == {"www+5"}
    assert GenerationStore(layout, RealFs()).sweep() == 0
    assert shown(layout, "www") == {"www+5"}


def test_a_new_name_never_leads_to_a_missing_directory() -> None:
    fs = model_disk(syncfs=True)
    store = GenerationStore(LAYOUT, fs)
    publish(store, "www")
    seen = set[str]()

    def observe(disk: ModelFs, _: str) -> None:
        if disk.lstat(LAYOUT.live / "+shop") is not None:
            seen.add(disk.readlink(LAYOUT.live / "+shop"))

    fs.observer = observe
    store.public.publish({"shop": "www"})
    assert seen == {"www"}


def test_publishing_again_writes_nothing() -> None:
    fs, layout = ModelFs(), ConfigDir(Path("/etc/agent"))
    fs.put_dir("/etc")
    make_tree(fs, layout)
    store = GenerationStore(layout, fs)
    publish(store, "www", "www+5")
    store.public.publish({"www": "www+5"})
    assert not fs.pending
    fs.trace.clear()
    store.public.publish({"www": "www+5"})
    assert [line for line in fs.trace if not line.startswith(("fsync", "syncfs"))] == []
    assert fs.open_files() == []


def test_no_crash_mixes_the_files_of_two_certificates() -> None:
    fs, layout = ModelFs(), ConfigDir(Path("/etc/agent"))
    fs.put_dir("/etc")
    make_tree(fs, layout)
    publish(GenerationStore(layout, fs), "www", "www+5")
    fs = fs.settled()
    fs.promise(www=("www",))

    def leads_to(disk: ModelFs, link: Path) -> str:
        text = disk.readlink(link).rpartition(".live/")[2].partition("/")[0]
        return disk.readlink(layout.live / text) if text.startswith("+") else text

    def check(crashed: ModelFs) -> None:
        links = (layout.certs / "www.crt", layout.certs / "www.key", layout.chains / "www.pem")
        (found,) = {leads_to(crashed, link) for link in links}
        assert found in crashed.promises["www"]

    def act(disk: ModelFs) -> None:
        for directory in ("www+5", "www"):
            disk.promise(www=("www", "www+5"))
            GenerationStore(layout, disk).public.publish({"www": directory})
            disk.promise(www=(directory,))
            check(disk)

    assert explore(fs, act, check, limit=200).points > 10


# --- removing -----------------------------------------------------------------------------------------------


def names_in(layout: ConfigDir) -> set[str]:
    return {path.name for path in (*layout.certs.iterdir(), *layout.chains.iterdir(), *layout.live.iterdir())} - {
        "chains", ".live", ".generations",
    }  # fmt: skip


def test_a_removed_directory_takes_its_public_names_with_it(layout: ConfigDir, store: GenerationStore) -> None:
    store.public.publish({"www": "www+5", "shop": "www+5"})
    remove(layout, RealFs(), store, "www+5")
    mail = {"mail.crt", "mail.key", "mail.pem", "mail"}
    assert names_in(layout) == mail | {"www", "www+5"}, "the live links are removed by the caller"


def test_a_name_that_was_passed_on_stays(layout: ConfigDir, store: GenerationStore) -> None:
    store.public.publish({"www": "www+5"})
    remove(layout, RealFs(), store, "www")
    assert shown(layout, "www") == {"www+5"} and (layout.live / "+www").is_symlink()
    store.public.publish({"www": "www"})
    remove(layout, RealFs(), store, "www")
    assert not shown(layout, "www") and not (layout.live / "+www").is_symlink()
    assert (shown(layout, "www+5"), shown(layout, "mail")) == ({"www+5"}, {"mail"})


def test_files_that_others_put_there_stay(layout: ConfigDir, store: GenerationStore) -> None:
    store.public.publish({"www": "www+5"})
    for path in (layout.certs / "www.crt", layout.certs / "www+5.key"):
        path.unlink()
        path.write_text("the operator's")
    (layout.chains / "www.pem").unlink()
    (layout.chains / "www.pem").symlink_to("/etc/chain.pem")
    remove(layout, RealFs(), store, "www+5")
    left = names_in(layout)
    assert {"www.crt", "www+5.key", "www.pem"} <= left
    assert not {"www.key", "www+5.crt", "www+5.pem", "+www"} & left
    remove(layout, RealFs(), store, "nothing")
    assert names_in(layout) == left
