"""Names that no file can have, or that the locale cannot encode, are disk errors with a fix."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from certctrl.errors import DiskError
from certctrl.store.disk.fs import Handle, RealFs

FS = RealFs()


def calls(at: Handle, name: str) -> dict[str, Callable[[], object]]:
    return {
        "open_dir": lambda: FS.open_dir(name, at),
        "open_file": lambda: FS.open_file(name, at),
        "open_append": lambda: FS.open_append(name, 0o600, at),
        "open_lock": lambda: FS.open_lock(name, 0o600),
        "create": lambda: FS.create(name, 0o600, at),
        "rename": lambda: FS.rename("a", name, at),
        "symlink": lambda: FS.symlink("a", name, at),
        "symlink to": lambda: FS.symlink(name, "a", at),
        "unlink": lambda: FS.unlink(name, at),
        "mkdir": lambda: FS.mkdir(name, 0o700, at),
        "rmdir": lambda: FS.rmdir(name, at),
        "lstat": lambda: FS.lstat(name, at),
        "readlink": lambda: FS.readlink(name, at),
    }


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"], ids=["NUL", "not encodable in any locale"])
@pytest.mark.parametrize("call", calls(Handle(0, "/"), ""))
def test_a_name_that_cannot_exist_is_a_disk_error(call: str, name: str, tmp_path: Path) -> None:
    at = FS.open_dir(tmp_path)
    try:
        with pytest.raises(DiskError) as caught:
            calls(at, name)[call]()
    finally:
        FS.close(at)
    assert caught.value.errno == errno.EILSEQ
    where = {"open_lock": name, "symlink to": f"{tmp_path}/a"}.get(call, f"{tmp_path}/{name}")
    assert caught.value.path == ascii(where)
    assert ascii(where) in str(caught.value)
    assert "LANG=C.UTF-8" in str(caught.value.fix)
    assert str(caught.value).isascii()


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""A locale without any characters beyond ASCII; a stand-in for ISO 8859 locales, which few hosts have."""

DESTINATION = """
from certctrl.errors import DiskError
from certctrl.store.disk.safe_path import destination_facts
try:
    destination_facts("/\\u043a\\u043b\\u044e\\u0447.pem", ["/"])
except DiskError as error:
    print(error, error.fix)
"""
COMMAND = """
import trio
from certctrl.errors import CommandError
from certctrl.install.process import Proc
async def main():
    for how in ({"argv": ("/bin/true", "\\u043a")}, {"argv": ("/bin/true",), "env_paths": {"A": "\\u043a"}}):
        try:
            await Proc().run(timeout=9, **how)
        except CommandError as error:
            print(error, error.fix)
trio.run(main)
"""


def under_ascii(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | ASCII, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("program", "times"), [(DESTINATION, 1), (COMMAND, 2)], ids=["destination", "command"])
def test_a_locale_that_lacks_characters_is_an_error_of_the_item(program: str, times: int) -> None:
    lines = under_ascii(program).splitlines()
    assert len(lines) == times
    for line in lines:
        assert "\\u043a" in line and "this locale (ascii) cannot encode" in line and "LANG=C.UTF-8" in line
