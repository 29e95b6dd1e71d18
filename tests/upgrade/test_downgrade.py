"""An older agent on the disk of a newer one: refused with words, and nothing is changed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from upgrade.old_host import write_real

from certctrl.cli.main import run_command
from certctrl.errors import ExitStatus, LaterStateError
from certctrl.store import decode
from certctrl.store.deployments.journal import journals
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir
from certctrl.store.state import read_only
from certctrl.store.state.versions import refuse_later_state

STATE = sorted(
    path.name for path in vars(ConfigDir(Path("/"))).values() if path.parent.name == "state" and path.suffix == ".json"
)
CHANGING = (
    "--keep-running", "apply", "poll-now", "plan", "register --enrolment-token-file {token}", "renew --domain copied.example",
    "rollback --domain held.example", "forget --domain copied.example --yes", "trust reset --scripts --yes",
)  # fmt: skip
LATER = decode.VERSION + 1


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_real(tmp_path / "etc")
    return tmp_path / "etc"


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], root: Path) -> Callable[[str], tuple[int, str]]:
    """Return a function that runs a command on the host; it returns exit status and standard error."""
    token = root.parent / "token"
    token.write_text("et_" + "a" * 40)
    token.chmod(0o600)

    def run(words: str) -> tuple[int, str]:
        status = run_command(["-c", str(root), *words.format(token=token).split()])
        return status, capsys.readouterr().err

    return run


def contents(root: Path) -> dict[Path, tuple[int, str | bytes]]:
    """Return the modes and contents of everything below a directory."""
    found: dict[Path, tuple[int, str | bytes]] = {}
    for path in root.rglob("*"):
        data = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[path] = (path.lstat().st_mode, data)
    return found


def make_later(path: Path) -> None:
    """Give a state file the next version, as the release would that introduces it."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    data = path.read_bytes() if path.exists() else decode.to_json({})
    now, later = (b'{"%b":%d' % (decode.VERSION_KEY.encode(), version) for version in (decode.VERSION, LATER))
    assert data.startswith(now), "the version comes first, so that its first bytes tell it"
    path.write_bytes(data.replace(now, later, 1))


def journal_of(root: Path) -> Path:
    (found,) = (root / "state/journal").iterdir()
    return found


def test_the_list_has_every_state_file() -> None:
    assert {"certificates.json", "inbox.json", "status.json", "retries.json", "challenges.json"} <= set(STATE)


@pytest.mark.parametrize("name", [*STATE, "journal"])
def test_nothing_starts_on_a_file_of_a_later_release(
    root: Path, call: Callable[[str], tuple[int, str]], name: str
) -> None:
    path = journal_of(root) if name == "journal" else root / "state" / name
    make_later(path)
    before = contents(root)
    status, said = call("--keep-running")
    assert (status, contents(root)) == (ExitStatus.CONFIG, before)
    assert f"{path} was written by a later cert-ctrl (state version {LATER}, this one knows {decode.VERSION})" in said
    assert "fix: install that version again" in said


@pytest.mark.parametrize("words", CHANGING)
def test_no_command_changes_the_state_of_a_later_release(
    root: Path, call: Callable[[str], tuple[int, str]], words: str
) -> None:
    make_later(root / "state/status.json")
    before = contents(root)
    status, said = call(words)
    assert (status, contents(root)) == (ExitStatus.CONFIG, before), said
    assert "was written by a later cert-ctrl" in said


@pytest.mark.parametrize(
    "name", ["status.json", "certificates.json", "retries.json", "inbox.json", "pending_acks.json"]
)
def test_status_says_so_too(root: Path, call: Callable[[str], tuple[int, str]], name: str) -> None:
    make_later(root / "state" / name)
    status, said = call("status")
    assert status == ExitStatus.CONFIG
    assert re.search(rf"{name} was written by a later cert-ctrl.*\nfix: install that version again", said)


@pytest.mark.parametrize("name", ["status.json", "challenges.json", "plane.json"])
def test_doctor_names_the_file(root: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    make_later(root / "state" / name)
    assert run_command(["-c", str(root), "doctor", "--offline"]) == ExitStatus.FAILED
    assert re.search(rf"FAIL  state: \S+/{name} was written by a later cert-ctrl", capsys.readouterr().out)


def test_a_journal_of_a_later_release_is_no_damage_and_stays(root: Path) -> None:
    for cut in (None, -1):  # the second is not armed
        path = journal_of(root)
        make_later(path) if cut is None else path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
        (found,) = journals(RealFs(), ConfigDir(root))
        with pytest.raises(LaterStateError, match="later cert-ctrl"):
            found.load()


def test_this_release_and_damage_are_left_to_their_readers(root: Path) -> None:
    for name, data in (("cas.json", b""), ("pins.json", b"{"), ("inbox.json", b'{"state_version":"2"}')):
        (root / "state" / name).write_bytes(data)
    (root / "state/plane.json").unlink(missing_ok=True)
    (root / "state/plane.json").symlink_to("missing")
    (root / "state/activations.json").unlink()
    (root / "state/activations.json").mkdir()
    refuse_later_state(ConfigDir(root), RealFs())
    refuse_later_state(ConfigDir(root / "missing"), RealFs())


def test_a_reader_without_the_check_names_the_file(root: Path) -> None:
    make_later(root / "state/status.json")
    with pytest.raises(LaterStateError, match=re.escape(str(root / "state/status.json"))):
        read_only.read_status(root)
