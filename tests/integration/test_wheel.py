"""Wheel and source archive have the same bytes wherever, whenever and by whomever they are built."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
pytestmark = [pytest.mark.integration, pytest.mark.campaign]


def built(folder: Path, *, mask: int, mtime: int, **environment: str) -> dict[str, bytes]:
    """Build the committed files in a new directory; return the archives by name."""
    tree, out = folder / "tree", folder / "out"
    tree.mkdir(parents=True)
    archive = subprocess.run(["git", "-C", PROJECT, "archive", "HEAD"], stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["tar", "-x", "-m", "-C", str(tree)], input=archive, check=True, umask=mask)
    for path in tree.rglob("*"):
        os.utime(path, (mtime, mtime))
    argv = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
    inherited = {name: text for name, text in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    subprocess.run(argv, cwd=tree, env=inherited | environment, check=True, umask=mask, stdout=subprocess.PIPE)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_two_builds_of_one_commit_have_the_same_bytes(need_module: Callable[[str], None], tmp_path: Path) -> None:
    need_module("hatchling")
    one = built(tmp_path / "one", mask=0o022, mtime=1_000_000_000, TZ="UTC", PYTHONHASHSEED="1", LANG="C")
    two = built(
        tmp_path / "another", mask=0o077, mtime=1_500_000_000, TZ="Asia/Tokyo", PYTHONHASHSEED="2", LANG="C.UTF-8"
    )
    assert sorted(Path(name).suffix for name in one) == [".gz", ".whl"]
    assert one == two
    (wheel,) = (tmp_path / "one/out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert all(name.startswith(("certctrl/", "certctrl-")) for name in names)
