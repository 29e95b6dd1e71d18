"""Kill -9 before each step of a round: every condition is told at least once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alert_receivers import HttpsReceiver, https_receiver
from engine_plane import WALL, plane_on

from certctrl.plane.alerts.channels import NewChannel
from certctrl.plane.storage.keyring import Keyring
from certctrl.plane.storage.sqlite import SqliteDatabase

SCRIPT = Path(__file__).with_name("killed.py")
KEY, OPERATOR_KEY = b"k" * 32, "ok_" + "x" * 40
"""As in the script."""
SILENT = (
    "INSERT INTO devices (user_id, device_public_id, status, name, created_at, registered_at, last_seen_at)"
    " VALUES (1, 'id-1', 'active', 'web-1', 0, 0, 5)"
)


@pytest.fixture
def receiver() -> Iterator[HttpsReceiver]:
    with https_receiver() as found:
        yield found


class Rounds:
    """The process that runs rounds."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, file: Path, now: float, kill_at: int = -1) -> str:
        """Run a round; return the number of its steps, or ``killed``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{file} {now} {kill_at}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()


@pytest.fixture
def rounds() -> Iterator[Rounds]:
    argv = [sys.executable, str(SCRIPT)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Rounds(process)


def fresh(file: Path, receiver: HttpsReceiver) -> None:
    with closing(SqliteDatabase(file)) as database:
        plane = plane_on(database, Keyring(KEY, OPERATOR_KEY))
        settings = {"allow_local": True, "ca_pem": receiver.ca_pem, "wait_seconds": 0}
        new = NewChannel(name="ops", kind="webhook", settings=settings, secrets={"url": receiver.url})
        with database.transaction():
            plane.alerts.channels.put(new)
            database.run(SILENT)


@pytest.mark.integration
def test_a_round_that_is_killed_before_any_step_loses_nothing(
    tmp_path: Path, receiver: HttpsReceiver, rounds: Rounds
) -> None:
    template = tmp_path / "template.db"
    fresh(template, receiver)
    whole = tmp_path / "whole.db"
    shutil.copy(template, whole)
    steps = int(rounds.run(whole, WALL))
    assert [one.json["kind"] for one in receiver.received] == ["firing"]
    assert steps >= 10
    for kill_at in range(steps):
        receiver.received.clear()
        file = tmp_path / f"{kill_at}.db"
        shutil.copy(template, file)
        assert rounds.run(file, WALL, kill_at) == "killed"
        assert len(receiver.received) <= 1
        assert rounds.run(file, WALL + 130).isdigit()  # another plane, once the leases have ended
        kinds = [one.json["kind"] for one in receiver.received]
        assert kinds in (["firing"], ["firing", "firing"]), kill_at
        assert len({one.headers["webhook-id"] for one in receiver.received}) == 1, "a repetition is recognised"
        with closing(SqliteDatabase(file)) as database:
            assert [row["state"] for row in database.all("SELECT state FROM alert_messages")] == ["sent"]
