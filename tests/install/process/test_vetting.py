"""Only executables that no other user can have changed are run."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

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
    assert "others may write" in refused(link)


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
