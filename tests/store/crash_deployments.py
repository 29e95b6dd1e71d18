"""Protocols of deployments: certificates as generations, and files at explicit destinations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from crash_protocol import (
    LAYOUT,
    NAME,
    ROOTS,
    SECRET,
    Protocol,
    generations_of,
    live_number,
    material,
    publish,
)
from helper_world import POLICY, helper_on, me
from modeldisk import ModelFs

from certctrl.errors import DiskError
from certctrl.store.deployments.file_set import FileSet, FileWrite
from certctrl.store.deployments.recovery import recover
from certctrl.store.disk.atomic import read_bytes
from certctrl.store.state.files import sweep_leftovers
from certctrl.store.state.store import StateStore


class FirstInstall(Protocol):
    name = "first install"

    def act(self, fs: ModelFs) -> None:
        publish(fs, {NAME: 1})
        fs.promise(live=1)

    def always(self, fs: ModelFs) -> None:
        assert live_number(fs) == fs.promises.get("live") or "live" not in fs.promises

    def recovered(self, fs: ModelFs) -> None:
        if live_number(fs) is not None:
            for link, text in LAYOUT.public_links(NAME).items():
                assert fs.readlink(link) == text


class FirstInstallEach(FirstInstall):
    name = "first install, kernel without a reliable syncfs"
    syncfs = False


class Renew(FirstInstall):
    name = "renew"

    def prepare(self, fs: ModelFs) -> None:
        publish(fs, {NAME: 1})

    def act(self, fs: ModelFs) -> None:
        generations = publish(fs, {NAME: 2})
        fs.promise(live=2)
        generations.prune(NAME, 0)
        assert len(generations.ids(NAME)) == 1

    def always(self, fs: ModelFs) -> None:
        assert live_number(fs) in ((2,) if "live" in fs.promises else (1, 2))
        for link, text in LAYOUT.public_links(NAME).items():
            assert fs.readlink(link) == text


class RenewEach(Renew):
    name = "renew, kernel without a reliable syncfs"
    syncfs = False


class Batch(Protocol):
    name = "a batch of renewals and a first install"
    names = ("a.example", "b.example", "c.example", "d.example")
    sample = 2  # one act is slow and has many operations
    deep_every = 15

    def prepare(self, fs: ModelFs) -> None:
        publish(fs, dict.fromkeys(self.names[:3], 1))

    def act(self, fs: ModelFs) -> None:
        publish(fs, dict.fromkeys(self.names, 2))
        fs.promise(live=2)

    def always(self, fs: ModelFs) -> None:
        numbers = [live_number(fs, name) for name in self.names]
        if "live" in fs.promises:
            assert numbers == [2, 2, 2, 2]
        assert all(number in (1, 2) for number in numbers[:3])
        assert numbers[3] in (None, 2)


class Rollback(Renew):
    name = "roll back"

    def prepare(self, fs: ModelFs) -> None:
        publish(fs, {NAME: 1})
        publish(fs, {NAME: 2})

    def act(self, fs: ModelFs) -> None:
        generations = generations_of(fs)
        generations.switch({NAME: generations.ids(NAME)[0]})
        fs.promise(live=1)

    def always(self, fs: ModelFs) -> None:
        assert live_number(fs) in ((1,) if "live" in fs.promises else (1, 2))


class Withdraw(Protocol):
    name = "withdraw"

    def prepare(self, fs: ModelFs) -> None:
        publish(fs, {NAME: 1})
        publish(fs, {NAME: 2})
        StateStore(LAYOUT, fs).installed.password(NAME, "pfx")

    def act(self, fs: ModelFs) -> None:
        generations_of(fs).withdraw(NAME)
        StateStore(LAYOUT, fs).installed.forget_passwords(NAME)
        fs.promise(withdrawn=True)

    def always(self, fs: ModelFs) -> None:
        assert live_number(fs) in (None, 2)
        if "withdrawn" in fs.promises:
            secret = [path for path, node in fs.tree().items() if SECRET in node.data or ".pfx" in path]
            assert not secret, f"withdrawn, but still there: {secret}"
            assert live_number(fs) is None


class Copies(Protocol):
    """Explicit destinations in two directories: an existing file and a new one."""

    name = "file set: commit"
    old: Mapping[str, bytes] = {"/srv/a/site.pem": b"LEAF 1"}
    new: Mapping[str, bytes] = {"/srv/a/site.pem": b"LEAF 2 and more", "/srv/b/site.key": b"SECRET-KEY 2"}

    def prepare(self, fs: ModelFs) -> None:
        for directory in ("/srv/a", "/srv/b"):
            fs.put_dir(directory)
        for path, data in self.old.items():
            fs.put(path, data, 0o600)

    def writes(self, contents: Mapping[str, bytes]) -> list[FileWrite]:
        return [FileWrite(path=Path(path), data=data, mode=self.mode(path)) for path, data in contents.items()]

    def mode(self, path: str) -> int:
        return 0o600 if path.endswith(".key") else 0o644

    def act(self, fs: ModelFs) -> None:
        self.put(fs, self.new)
        fs.promise(copies="new")

    def put(self, fs: ModelFs, contents: Mapping[str, bytes]) -> None:
        copies = self.file_set(fs)
        copies.begin(self.writes(contents))
        copies.commit()
        copies.close()

    def file_set(self, fs: ModelFs) -> FileSet:
        return FileSet(LAYOUT, fs)

    def found(self, fs: ModelFs) -> dict[str, bytes]:
        found = {path: read_bytes(fs, path, 1000) for path in self.new}
        return {path: data for path, data in found.items() if data is not None}

    def always(self, fs: ModelFs) -> None:
        for path, data in self.found(fs).items():
            assert data in (self.old.get(path), self.new[path]), f"a partial file at {path}"
        assert self.old.keys() <= self.found(fs).keys(), "the old file is gone without the new one"

    def recovered(self, fs: ModelFs) -> None:
        found = self.found(fs)
        wanted = {"new": [self.new], "old": [self.old]}.get(fs.promises.get("copies", ""), [self.old, self.new])
        assert found in wanted, f"mixed: {found}"
        assert not self.journals(fs)
        if found == self.new:
            modes = {path: fs.tree()[path].mode for path in found}
            assert modes == {path: self.mode(path) for path in found}

    def journals(self, fs: ModelFs) -> list[str]:
        return [path for path in fs.tree() if path.startswith(f"{LAYOUT.journal}/")]


class CopiesEach(Copies):
    name = "file set: commit, kernel without a reliable syncfs"
    syncfs = False


class CopiesUndone(Copies):
    name = "file set: commit, then undo"
    old: Mapping[str, bytes] = {"/srv/a/site.pem": b"LEAF 1", "/srv/b/site.key": b"SECRET-KEY 1"}

    def act(self, fs: ModelFs) -> None:
        fs.promises.pop("copies", None)  # the deployment is retried
        copies = self.file_set(fs)
        copies.begin(self.writes(self.new))
        copies.commit()
        copies.undo()
        if self.found(fs) == self.new:  # a crash had completed it: deploy the old files again
            self.put(fs, self.old)
        fs.promise(copies="old")


class CopiesDropped(Copies):
    """Staged, and then not put in place, because the switch failed."""

    name = "file set: staged, then dropped"
    old: Mapping[str, bytes] = {"/srv/a/site.pem": b"LEAF 1", "/srv/b/site.key": b"SECRET-KEY 1"}

    def act(self, fs: ModelFs) -> None:
        copies = self.file_set(fs)
        copies.begin(self.writes(self.new))
        copies.close()
        fs.promise(copies="old")


class CopiesModeOnly(Copies):
    name = "file set: same bytes, narrower mode"
    old: Mapping[str, bytes] = {"/srv/a/site.key": b"KEY", "/srv/b/site.key": b"KEY TOO"}
    new = old

    def prepare(self, fs: ModelFs) -> None:
        for path, data in self.old.items():
            fs.put(path, data, 0o640)

    def recovered(self, fs: ModelFs) -> None:
        modes = {fs.tree()[path].mode for path in self.new}
        assert modes == {0o600} if "copies" in fs.promises else len(modes) == 1
        assert not self.journals(fs)


class CopiesInPlace(Copies):
    """Two bind-mounted files, the key's too open until the first delivery, and one that is replaced."""

    name = "file set: write in place"
    old: Mapping[str, bytes] = {
        "/srv/a/site.pem": b"LEAF 1 AND MORE",
        "/srv/a/site.key": b"EMPTY KEY",
        "/srv/b/chain.pem": b"CHAIN 1",
    }
    new: Mapping[str, bytes] = {
        "/srv/a/site.pem": b"LEAF 2",
        "/srv/a/site.key": b"SECRET-KEY 2",
        "/srv/b/chain.pem": b"CHAIN 2",
    }
    mounted = ("/srv/a/site.pem", "/srv/a/site.key")

    def prepare(self, fs: ModelFs) -> None:
        super().prepare(fs)
        for path in self.mounted:
            fs.put(path, self.old[path], 0o644)
            fs.mount_on(path)

    def writes(self, contents: Mapping[str, bytes]) -> list[FileWrite]:
        return [attrs.evolve(one, in_place=str(one.path) in self.mounted) for one in super().writes(contents)]

    def always(self, fs: ModelFs) -> None:
        found = self.found(fs)
        assert found.keys() == self.old.keys(), "a file is gone"
        for path, data in found.items():
            old, new = self.old[path], self.new[path]
            if path in self.mounted:
                assert min(map(len, (old, new))) <= len(data) <= max(map(len, (old, new))), f"cut short: {path}"
            else:
                assert data in (old, new), f"a partial file at {path}"


class CopiesInPlaceEach(CopiesInPlace):
    name = "file set: write in place, kernel without a reliable syncfs"
    syncfs = False


class CopiesInPlaceUndone(CopiesInPlace, CopiesUndone):
    name = "file set: write in place, then undo"
    old = CopiesInPlace.old
    new = CopiesInPlace.new


class CopiesHelped(Copies):
    """The root helper writes the key, for another user, and a new file; the agent writes the certificate."""

    name = "file set: with the root helper"
    old: Mapping[str, bytes] = {"/srv/a/site.pem": b"LEAF 1", "/srv/b/site.key": b"SECRET-KEY 1"}
    new: Mapping[str, bytes] = {
        "/srv/a/site.pem": b"LEAF 2 and more",
        "/srv/b/site.key": b"SECRET-KEY 2",
        "/srv/b/more.key": b"SECRET-KEY 3",
    }
    policy: Mapping[str, Any] = {
        "files": [
            {"path": "/srv/b/site.key", "owner": "33", "group": "33", "mode": "0600"},
            {"path": "/srv/b/more*.key", "owner": "1000", "group": "1000", "mode": "0600"},
        ]
    }

    def prepare(self, fs: ModelFs) -> None:
        super().prepare(fs)
        fs.put(POLICY, json.dumps({me(): self.policy}).encode(), 0o644)

    def writes(self, contents: Mapping[str, bytes]) -> list[FileWrite]:
        return [
            attrs.evolve(
                one,
                helper=True,
                uid=33 if one.path.name == "site.key" else 1000,
                gid=33 if one.path.name == "site.key" else 1000,
            )
            if one.path.suffix == ".key"
            else one
            for one in super().writes(contents)
        ]

    def file_set(self, fs: ModelFs) -> FileSet:
        return FileSet(LAYOUT, fs, helper=helper_on(fs))

    def recover(self, fs: ModelFs) -> None:
        report = recover(LAYOUT, fs, ROOTS, helper=helper_on(fs))
        assert not report.failed, report
        sweep_leftovers(LAYOUT, fs)

    def recovered(self, fs: ModelFs) -> None:
        super().recovered(fs)
        if self.found(fs) == self.new:
            assert (fs.tree()["/srv/b/site.key"].uid, fs.tree()["/srv/b/more.key"].uid) == (33, 1000)


class CopiesHelpedUndone(CopiesHelped, CopiesUndone):
    name = "file set: with the root helper, then undo"
    old: Mapping[str, bytes] = {
        "/srv/a/site.pem": b"LEAF 1",
        "/srv/b/site.key": b"SECRET-KEY 1",
        "/srv/b/more.key": b"SECRET-KEY 1",
    }
    new = CopiesHelped.new


class RenewWithCopies(Copies):
    """As the installer does it: staged at the destinations first, then the switch, then the renames."""

    name = "renew with copies"
    old: Mapping[str, bytes] = {"/srv/a/site.pem": b"LEAF 1", "/srv/b/site.key": b"SECRET-KEY 1"}
    new: Mapping[str, bytes] = {"/srv/a/site.pem": b"LEAF 2", "/srv/b/site.key": b"SECRET-KEY 2"}

    def prepare(self, fs: ModelFs) -> None:
        super().prepare(fs)
        publish(fs, {NAME: 1})

    def act(self, fs: ModelFs) -> None:
        generations = generations_of(fs)
        staged = generations.stage(NAME, material(2), {"serial": 2})
        generations.settle([staged])
        copies = FileSet(LAYOUT, fs)
        copies.begin(self.writes(self.new))
        try:
            generations.switch({NAME: staged.id})
        except DiskError:
            copies.close()
            raise
        copies.commit()
        copies.close()
        fs.promise(copies="new", live=2)

    def always(self, fs: ModelFs) -> None:
        super().always(fs)
        live = live_number(fs)
        assert live in ((2,) if "live" in fs.promises else (1, 2))
        renewed = [path for path, data in self.found(fs).items() if data == self.new[path]]
        assert live == 2 or not renewed, f"in place before the switch: {renewed}"
