"""An interrupted move to another control plane: wherever it is killed, repeating it finishes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from certctrl.agent import move as move_module
from certctrl.agent.move import Findings, move
from certctrl.agent.setup import Seams
from certctrl.errors import BusyError, ConfigError, DiskError, UsageError
from certctrl.model.records import DeviceKeys, Tokens
from certctrl.store.config.files import add_settings, init_config_dir, load_config
from certctrl.store.disk.fs import RealFs
from certctrl.store.disk.lock import lock_daemon
from certctrl.store.layout import ConfigDir
from certctrl.store.state.moves import begin_move, refuse_unfinished_move
from certctrl.store.state.session import SessionState

FOUND = Findings(
    server="https://new.example", device_id=7, covered=("a",), missing=(), clashing=(), items=0, lacks_items=False
)
FS = RealFs()
SEAMS = Seams(environ={})
STEPS = ("begin_move", "write_atomic", "add_settings", "remove_file", "end_move", "_void")
PEM = b"-----BEGIN CERTIFICATE-----\n%b\n-----END CERTIFICATE-----\n"


class Killed(BaseException):
    """The process ends here."""


def registered(root: Path, server: str, number: int) -> ConfigDir:
    layout = ConfigDir(root)
    init_config_dir(FS, layout, server_url=server, ca_pem=PEM % server.encode(), name=f"name-{number}")
    session = SessionState(layout, FS)
    session.save_device_keys(DeviceKeys(public=bytes([number]) * 32, secret=bytes([number + 1]) * 32))
    session.save_device_id(f"device-id-{number}")
    session.save_tokens(Tokens(access_token=f"access-{number}", refresh_token=f"refresh-{number}"))
    session.save_cursor(f"{number}-0")
    return layout


@pytest.fixture
def dirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ConfigDir, ConfigDir]:
    async def findings(*_: Any) -> Findings:
        return FOUND

    monkeypatch.setattr(move_module, "_findings", findings)
    here = registered(tmp_path / "here", "https://old.example", 1)
    add_settings(FS, here, {"proxy": "http://proxy.example:3128"}, "httpclient")
    return here, registered(tmp_path / "next", "https://new.example", 4)


def assert_moved(here: ConfigDir, source: ConfigDir) -> None:
    session, config = SessionState(here, FS), load_config(here, {}).config
    assert (config.application.server_url, config.application.name) == ("https://new.example", "name-1")
    assert (config.httpclient.ca_files, config.httpclient.proxy) == (("plane-ca.pem",), "http://proxy.example:3128")
    assert here.plane_ca.read_bytes() == PEM % b"https://new.example"
    assert session.load_device_id() == "device-id-4"
    assert session.load_device_keys() == DeviceKeys(public=bytes([4]) * 32, secret=bytes([5]) * 32)
    tokens = session.load_tokens()
    assert tokens is not None and tokens.refresh_token == "refresh-4"
    assert session.load_cursor() is None
    refuse_unfinished_move(here, FS)
    assert SessionState(source, FS).load_tokens() is None and not source.device_secret_key.exists()


async def test_a_move_takes_over_the_session_of_the_new_plane(dirs: tuple[ConfigDir, ConfigDir]) -> None:
    here, source = dirs
    plan = await move(here, source, dry_run=True, seams=SEAMS)
    assert (plan["ready"], plan["moved"]) == (True, False)
    assert load_config(here, {}).config.application.server_url == "https://old.example"
    assert (await move(here, source, dry_run=False, seams=SEAMS))["moved"]
    assert_moved(here, source)
    again = await move(here, source, dry_run=False, seams=SEAMS)
    assert (again["moved"], again["finished"]) == (True, False)
    assert_moved(here, source)


def counted_steps(patch: pytest.MonkeyPatch, kill_at: int) -> list[str]:
    """Have the process killed before and after a step; return the names of the steps that were begun."""
    begun: list[str] = []

    def killing(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            begun.append(name)
            if len(begun) == kill_at:
                raise Killed
            return step(*arguments, **options)

        return run

    for name in STEPS:
        patch.setattr(move_module, name, killing(name, getattr(move_module, name)))
    return begun


async def test_a_killed_move_is_finished_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def findings(*_: Any) -> Findings:
        return FOUND

    monkeypatch.setattr(move_module, "_findings", findings)
    number, refused = 0, 0
    while True:
        number += 1
        here = registered(tmp_path / f"here-{number}", "https://old.example", 1)
        add_settings(FS, here, {"proxy": "http://proxy.example:3128"}, "httpclient")
        source = registered(tmp_path / f"next-{number}", "https://new.example", 4)
        with monkeypatch.context() as patch:
            counted_steps(patch, number)
            try:
                await move(here, source, dry_run=False, seams=SEAMS)
                break
            except Killed:
                pass
        if here.move.exists():
            refused += 1
            with pytest.raises(ConfigError, match="a move to another control plane was interrupted") as unfinished:
                refuse_unfinished_move(here, FS)
            assert f"move {source.root}" in str(unfinished.value.fix)
        assert (await move(here, source, dry_run=False, seams=SEAMS))["moved"]
        assert_moved(here, source)
    assert number > 10 and refused > 8


async def test_what_a_move_refuses(dirs: tuple[ConfigDir, ConfigDir], tmp_path: Path) -> None:
    here, source = dirs
    with lock_daemon(here, FS), pytest.raises(BusyError):
        await move(here, source, dry_run=False, seams=SEAMS)
    with pytest.raises(UsageError, match="is this one"):
        await move(here, here, dry_run=False, seams=SEAMS)
    with pytest.raises(ConfigError, match="no such file"):
        await move(here, ConfigDir(tmp_path / "none"), dry_run=False, seams=SEAMS)
    by_variable = Seams(environ={"CERTCTRL_SERVER_URL": "https://old.example"})
    with pytest.raises(ConfigError, match="names the control plane of this host"):
        await move(here, source, dry_run=False, seams=by_variable)
    begin_move(here, FS, ConfigDir(tmp_path / "other"))
    with pytest.raises(ConfigError, match="another move was interrupted"):
        await move(here, source, dry_run=False, seams=SEAMS)


async def test_a_dry_run_changes_nothing_after_an_interrupted_or_a_finished_move(
    dirs: tuple[ConfigDir, ConfigDir],
) -> None:
    here, source = dirs
    begin_move(here, FS, source)
    before = [path.read_bytes() for path in (here.application, source.refresh_token, source.device_secret_key)]
    with lock_daemon(here, FS), pytest.raises(ConfigError, match="was interrupted"):
        await move(here, source, dry_run=True, seams=SEAMS)
    assert before == [path.read_bytes() for path in (here.application, source.refresh_token, source.device_secret_key)]
    await move(here, source, dry_run=False, seams=SEAMS)
    with lock_daemon(here, FS):
        assert (await move(here, source, dry_run=True, seams=SEAMS))["moved"]


async def test_a_directory_of_the_same_device_with_another_key_keeps_it(dirs: tuple[ConfigDir, ConfigDir]) -> None:
    here, source = dirs
    await move(here, source, dry_run=False, seams=SEAMS)
    session = SessionState(source, FS)  # a copy of this directory, registered again
    session.save_device_keys(DeviceKeys(public=bytes([8]) * 32, secret=bytes([9]) * 32))
    session.save_tokens(Tokens(access_token="access-9", refresh_token="refresh-9"))
    with pytest.raises(ConfigError, match="the same device"):
        await move(here, source, dry_run=False, seams=SEAMS)
    assert source.device_secret_key.exists() and source.refresh_token.exists()


async def test_a_key_that_is_being_rotated_moves_with_the_session(dirs: tuple[ConfigDir, ConfigDir]) -> None:
    here, source = dirs
    SessionState(here, FS).save_rotated_secret(bytes([3]) * 32)
    SessionState(source, FS).save_rotated_secret(bytes([7]) * 32)
    await move(here, source, dry_run=False, seams=SEAMS)
    assert SessionState(here, FS).load_rotated_secret() == bytes([7]) * 32
    assert not source.rotated_secret_key.exists()


async def test_the_rotated_key_of_the_former_plane_does_not_stay(dirs: tuple[ConfigDir, ConfigDir]) -> None:
    here, source = dirs
    SessionState(here, FS).save_rotated_secret(bytes([3]) * 32)
    await move(here, source, dry_run=False, seams=SEAMS)
    assert not SessionState(here, FS).has_rotated_secret()


@pytest.mark.parametrize(("failing", "startable"), [("write_atomic", True), ("add_settings", False)])
async def test_after_a_full_disk_the_agent_starts_only_with_its_former_configuration(
    dirs: tuple[ConfigDir, ConfigDir], monkeypatch: pytest.MonkeyPatch, failing: str, startable: bool
) -> None:
    here, source = dirs

    def full(*_: Any, **__: Any) -> None:
        raise DiskError("no space left on device", path=str(here.root))

    with monkeypatch.context() as patch:
        patch.setattr(move_module, failing, full)
        with pytest.raises(DiskError):
            await move(here, source, dry_run=False, seams=SEAMS)
        with pytest.raises(DiskError):
            await move(here, source, dry_run=False, seams=SEAMS)
    assert (not here.move.exists()) == startable == (here.plane_ca.read_bytes() == PEM % b"https://old.example")
    await move(here, source, dry_run=False, seams=SEAMS)
    assert_moved(here, source)


async def test_ca_files_in_the_directory_that_is_removed_are_refused(dirs: tuple[ConfigDir, ConfigDir]) -> None:
    here, source = dirs
    (source.root / "corp.pem").write_bytes(PEM % b"corp")
    add_settings(FS, source, {"ca_files": ["corp.pem"]}, "httpclient")
    for dry_run in (True, False):
        with pytest.raises(ConfigError, match=r"corp\.pem is in"):
            await move(here, source, dry_run=dry_run, seams=SEAMS)
    assert not here.move.exists()
