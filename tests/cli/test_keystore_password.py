"""`keystore-password` stores a given password, and reads it from a file or a prompt only."""

from __future__ import annotations

import io
import os
import pty
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from certctrl.cli.app import COMMANDS, load
from certctrl.cli.invocation import Invocation
from certctrl.install.material.formats import password_fault
from certctrl.store.layout import ConfigDir
from certctrl.store.state.store import StateStore

from .conftest import Ran, record

Run = Callable[..., Ran]
SECRET = "correct horse / battery"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "password.txt"
    path.write_text(SECRET + "\n")
    path.chmod(0o600)
    return path


def test_a_password_from_a_file(layout: ConfigDir, store: StateStore, ran: Run, file: Path) -> None:
    store.installed.save_certificates({7: record()})
    done = ran("-c", layout.root, "keystore-password", "--domain", "example.com", "--from-file", file)
    assert (done.status, done.err) == (0, "") and SECRET not in done.out
    assert done.out.endswith(f"next: cert-ctrl -c {layout.root} apply\n")
    path = layout.passwords / "www.example.com.pfx"
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == (SECRET, 0o600)
    assert store.installed.password("www.example.com", "pfx") == (SECRET.encode(), path)
    again = ran("-c", layout.root, "keystore-password", "--domain", "example.com", "--from-file", file,
                "--format", "jks", "--json")  # fmt: skip
    assert again.json() == {
        "name": "www.example.com", "format": "jks", "file": str(layout.passwords / "www.example.com.jks"),
        "delivered": True,
    }  # fmt: skip


def test_before_the_first_delivery(layout: ConfigDir, store: StateStore, ran: Run, file: Path) -> None:
    done = ran("-c", layout.root, "keystore-password", "--domain", "*.Example.com", "--from-file", file)
    assert (
        done.out == "No certificate _wildcard.example.com on this host yet; its first pfx keystore gets this password\n"
    )
    assert store.installed.password("_wildcard.example.com", "pfx")[0] == SECRET.encode()


def test_a_password_from_standard_input(
    layout: ConfigDir, store: StateStore, ran: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with file.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert ran("-c", layout.root, "keystore-password", "--domain", "a.example", "--from-file", "-").status == 0
    assert store.installed.password("a.example", "pfx")[0] == SECRET.encode()


def test_a_password_from_a_prompt(layout: ConfigDir, store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[dict[str, object]]()

    def prompt(text: str, **how: object) -> str:
        asked.append(how)
        return SECRET

    monkeypatch.setattr("typer.prompt", prompt)
    leader, follower = pty.openpty()
    invoked = Invocation()
    invoked.config_dir = str(layout.root)
    with os.fdopen(follower) as terminal, os.fdopen(leader, "wb"):
        monkeypatch.setattr(sys, "stdin", terminal)
        command = load("keystore-password", COMMANDS["keystore-password"])
        command.main(["--domain", "a.example"], standalone_mode=False, obj=invoked)
    assert asked == [{"hide_input": True, "confirmation_prompt": True, "err": True}]
    assert store.installed.password("a.example", "pfx")[0] == SECRET.encode()


def test_without_a_terminal_a_file_is_needed(layout: ConfigDir, ran: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(SECRET))
    done = ran("-c", layout.root, "keystore-password", "--domain", "a.example")
    assert done.status == 2 and "fix: add --from-file FILE" in done.err
    assert not list(layout.passwords.iterdir())


@pytest.mark.parametrize(
    ("data", "kind", "why"),
    [
        (b"", "pfx", "is empty"), (b"\n", "pfx", "is empty"), (b"a\nb\n", "pfx", "not printable"),
        (b" a\n", "pfx", "begins or ends with a space"), ("schlüssel".encode(), "jks", "not ASCII"),
        (b"\xff", "pfx", "is not text in UTF-8"), (b"x" * 5000, "pfx", "has more than 4096 bytes"),
    ],
)  # fmt: skip
def test_a_password_that_no_keystore_can_have(
    data: bytes, kind: str, why: str, layout: ConfigDir, ran: Run, file: Path
) -> None:
    file.write_bytes(data)
    done = ran("-c", layout.root, "keystore-password", "--domain", "a.example", "--format", kind, "--from-file", file)
    assert done.status == 2 and why in done.err and "fix: " in done.err
    assert not list(layout.passwords.iterdir())


def test_a_readable_file_is_warned_about_and_a_missing_one_is_an_error(layout: ConfigDir, ran: Run, file: Path) -> None:
    file.chmod(0o644)
    argv = ("-c", layout.root, "keystore-password", "--domain", "a.example", "--from-file")
    assert "warning: other users can read" in ran(*argv, file).err
    assert ran(*argv, file.with_name("no")).status == 2


def test_no_option_takes_the_password_itself(ran: Run) -> None:
    help_text = ran("keystore-password", "--help").out
    assert "--password" not in help_text and "[env var" not in help_text
    assert password_fault("pfx", "schlüssel") == "" == password_fault("jks", "changeit")
