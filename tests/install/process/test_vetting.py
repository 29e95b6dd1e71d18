"""Only executables that no other user can have changed are run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from acl import set_acl

from certctrl.errors import CommandError
from certctrl.install.process.vetting import is_script, sha256_of, vet_executable


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "bin" / "hook"
    path.parent.mkdir(mode=0o755)
    path.write_text("#!/bin/sh\nexit 0\n")
    path.chmod(0o755)
    return path


def refused(path: Path, *, sha256: str | None = None) -> str:
    with pytest.raises(CommandError) as caught:
        vet_executable(str(path), sha256)
    return f"{caught.value} [{caught.value.fix}]"


def test_own_and_root_owned_files_are_accepted(script: Path) -> None:
    vet_executable(str(script))
    vet_executable("/bin/sh")  # through /bin -> usr/bin and sh -> dash


@pytest.mark.parametrize("name", ["/\0", "/bin/true\0/x", "/\ud800"])
def test_impossible_file_names_are_refused(name: str) -> None:
    with pytest.raises(CommandError, match="no file can have this name"):
        vet_executable(name)


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o722])
def test_writable_by_others_is_refused(script: Path, mode: int) -> None:
    script.chmod(mode)
    assert f"[chmod go-w {script}]" in refused(script)


NAMED = "user::7 user:1234:{right} group::5 mask::{mask} other::5"


@pytest.mark.parametrize(
    ("acl", "who"),
    [
        (NAMED.format(right=7, mask=7), "user 1234"),
        ("user::7 group::7 mask::7 other::5", "group"),
        (NAMED.format(right=7, mask=5), ""),  # the mask takes the right away
        (NAMED.format(right=5, mask=7), ""),  # no one has the right that the mask, shown as the group's, would allow
    ],
)
@pytest.mark.parametrize("of", ["script", "directory"])
def test_access_control_lists_are_judged_by_effective_rights(
    of: str, acl: str, who: str, script: Path, need_acl: Callable[[Path], None]
) -> None:
    need_acl(script.parent)
    path = script if of == "script" else script.parent
    set_acl(path, acl)
    if who:
        assert f"{who} " in refused(script) and f"may write to {path} [" in refused(script)
    else:
        vet_executable(str(script))


def test_a_list_of_another_kind_is_refused_by_its_name(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "listxattr", lambda path, **_how: ["system.richacl"] if path == str(script) else [])
    monkeypatch.setattr(os, "getxattr", lambda *_args, **_how: b"?")
    assert "access control list that this agent does not know (system.richacl)" in refused(script)


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_a_directory_that_others_may_write_to_is_refused(script: Path, mode: int) -> None:
    script.parent.chmod(mode)
    assert f"[chmod go-w {script.parent}]" in refused(script)


def test_the_sticky_bit_protects_names_in_it(script: Path) -> None:
    script.parent.chmod(0o1777)
    vet_executable(str(script))


@pytest.mark.root
def test_strangers_files_directories_and_links_are_refused(script: Path) -> None:
    os.chown(script, 65534, 0)
    assert "belongs to uid 65534" in refused(script)
    os.chown(script, 0, 0)
    os.chown(script.parent, 65534, 0)
    assert f"{script.parent} belongs to uid 65534" in refused(script)
    os.chown(script.parent, 0, 0)
    link = script.parent / "link"
    link.symlink_to(script)
    vet_executable(str(link))
    os.lchown(link, 65534, 0)
    assert f"{link} belongs to" in refused(link)


def test_the_targets_of_links_are_checked_too(script: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("bin/../bin/hook")
    vet_executable(str(link))
    script.parent.chmod(0o777)
    assert "group 0 may write" in refused(link)


def test_link_loops_and_missing_files_are_refused(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    assert "too many symbolic links" in refused(loop)
    assert "No such file" in refused(tmp_path / "none" / "x")
    assert "not an executable" in refused(tmp_path)
    plain = tmp_path / "plain"
    plain.write_text("x")
    assert "not an executable" in refused(plain)


def test_pins(script: Path) -> None:
    pin = hashlib.sha256(script.read_bytes()).hexdigest()
    assert sha256_of(str(script)) == pin
    vet_executable(str(script), pin.upper())
    script.write_text("#!/bin/sh\nexit 1\n")
    assert "has changed" in refused(script, sha256=pin)


def test_is_script(script: Path, tmp_path: Path) -> None:
    assert is_script(str(script))
    assert not is_script("/bin/sh")
    assert not is_script(str(tmp_path / "none"))
