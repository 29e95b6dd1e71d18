"""Copies keep the access control lists of the files that they replace; directories are judged by effective rights."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from acl import DEFAULT, acl_of, packed, set_acl
from copy_site import FS, begun, writes

from certctrl.errors import DiskError, PolicyRefusedError
from certctrl.store.deployments.file_set import FileSet, FileWrite
from certctrl.store.deployments.recovery import recover
from certctrl.store.disk.safe_path import destination_facts
from certctrl.store.layout import ConfigDir

READER = "user::6 user:1234:4 group::0 mask::4 other::0"
"""Shown as mode 0640, although the group may not read it."""


@pytest.fixture(autouse=True)
def _lists(tmp_path: Path, need_acl: Callable[[Path], None]) -> None:
    need_acl(tmp_path)


@pytest.fixture
def certificate(site: Path) -> Path:
    path = site / "ssl" / "site.pem"
    set_acl(path, READER)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    return path


def written(path: Path, mode: int) -> list[FileWrite]:
    return [FileWrite(path=path, data=b"new leaf", mode=mode)]


def test_a_replaced_file_keeps_its_list(layout: ConfigDir, certificate: Path) -> None:
    copies = FileSet(layout, FS)
    copies.begin(written(certificate, 0o640))
    copies.commit()
    assert (certificate.read_bytes(), acl_of(certificate)) == (b"new leaf", packed(READER))
    copies.undo()
    assert (certificate.read_bytes(), acl_of(certificate)) == (b"old leaf", packed(READER))


def test_another_mode_changes_the_mask_until_it_is_rolled_back(layout: ConfigDir, certificate: Path) -> None:
    copies = FileSet(layout, FS)
    copies.begin(written(certificate, 0o600))
    copies.commit()
    assert acl_of(certificate) == packed("user::6 user:1234:4 group::0 mask::0 other::0")
    copies.undo()
    assert acl_of(certificate) == packed(READER)


def test_a_recovered_file_keeps_its_list(layout: ConfigDir, site: Path, certificate: Path) -> None:
    copies = begun(layout, site)
    assert copies._journal is not None
    copies._journal.arm()
    certificate.with_name(copies._entries[0].temp).rename(certificate)
    assert recover(layout, FS, [site / "ssl"]).rolled_back
    assert (certificate.read_bytes(), acl_of(certificate)) == (b"old leaf", packed(READER))


@pytest.mark.parametrize("existing", [True, False])
def test_the_list_of_the_directory_is_for_new_files(existing: bool, layout: ConfigDir, site: Path) -> None:
    set_acl(site / "ssl", "user::7 user:1234:7 group::7 mask::7 other::0", DEFAULT)
    path = site / "ssl" / ("site.pem" if existing else "fresh.pem")
    copies = FileSet(layout, FS)
    copies.begin(written(path, 0o640))
    copies.commit()
    wanted = None if existing else packed("user::6 user:1234:7 group::7 mask::4 other::0")
    assert (acl_of(path), stat.S_IMODE(path.stat().st_mode)) == (wanted, 0o640)


def test_a_list_that_cannot_be_set_is_an_error_and_changes_nothing(
    layout: ConfigDir, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_args: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refused)
    with pytest.raises(DiskError, match=r"cannot set system.posix_acl_access of .*: Operation not supported"):
        FileSet(layout, FS).begin(written(certificate, 0o640))
    assert (certificate.read_bytes(), acl_of(certificate)) == (b"old leaf", packed(READER))
    assert [path.name for path in certificate.parent.iterdir()] == ["site.pem"]


def test_a_user_with_write_access_by_a_list_is_found(layout: ConfigDir, site: Path) -> None:
    """The group bits of the mode, which are the mask, belong to a trusted group."""
    set_acl(site / "ssl", "user::7 user:1234:7 group::5 mask::7 other::5")
    refusal = destination_facts(site / "ssl" / "site.pem", [site]).refusal
    assert refusal is not None and "can be written by user 1234 (mode 0775)" in refusal
    with pytest.raises(PolicyRefusedError, match="user 1234"):
        FileSet(layout, FS).begin(writes(site))


@pytest.mark.root
@pytest.mark.parametrize(
    ("acl", "owner"),
    [
        ("user::7 user:1234:7 group::5 mask::7 other::5", 1234),
        ("user::7 user:1234:7 group::7 mask::5 other::5", None),
    ],
    ids=["the user who gets the file", "the mask takes it away"],
)
def test_only_effective_rights_of_others_count(acl: str, owner: int | None, site: Path) -> None:
    os.chown(site / "ssl", 0, 4711)
    set_acl(site / "ssl", acl)
    assert destination_facts(site / "ssl" / "site.pem", [site], owner=owner).refusal is None


@pytest.mark.parametrize("kind", ["system.nfs4_acl", "system.richacl"])
def test_lists_of_other_kinds_are_refused_with_words(kind: str, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(FS), "attributes", lambda _fs, handle: {kind: b"?"} if "site.pem" in handle.path else {})
    refusal = destination_facts(site / "ssl" / "site.pem", [site]).refusal
    assert refusal is not None and f"does not know ({kind}), so its rights cannot be kept" in refusal
    monkeypatch.setattr(type(FS), "attributes", lambda _fs, handle: {kind: b"?"} if handle.path.endswith("ssl") else {})
    refusal = destination_facts(site / "ssl" / "site.pem", [site]).refusal
    assert refusal is not None and "can be written by others, perhaps" in refusal
