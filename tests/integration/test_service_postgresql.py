"""The PostgreSQL recipe: copies owned by the server's user, and sessions that survive reloads."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from failure_table import EACH_FAILURE, Faults, Row, prove_row, replaced
from fleet import Fleet, Plane
from proofs import (
    broken_pairs,
    check_by_hand,
    edited,
    prove_nothing_is_dropped,
    prove_rollback,
)
from recipes import Recipe, Trial, on_trial, open_place
from revocations import FROM_MEMORY, prove_placeholder, prove_removal

pytestmark = [
    pytest.mark.integration,
    pytest.mark.root,
]  # the owner of the key is set, and the server refuses to run as root

AS_POSTGRES = ("--reuid=postgres", "--regid=postgres", "--clear-groups")
SETTINGS = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
fsync = off
shared_buffers = 16MB
include '{place}/tls.conf'
"""


@pytest.fixture(scope="module")
def program(need: Callable[[str], str]) -> Callable[[str], str]:
    """``program("pg_ctl")`` returns a path: Debian has the programs in one directory outside of PATH."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    directory = versions[-1] if versions else Path(need("postgres")).parent
    return lambda name: str(directory / name)


@pytest.fixture(scope="module")
def trial(
    shared_fleet: Fleet, plane: Plane, need: Callable[[str], str], program: Callable[[str], str]
) -> Iterator[Trial]:
    with open_place() as place:
        recipe = Recipe(name="postgresql", place=place, kind="postgres", domain="db.example.com")
        recipe.places |= {"/etc/ssl/postgresql": str(place / "tls")}
        data = place / "data"
        become = [need("setpriv"), *AS_POSTGRES]
        recipe.commands["reload postgresql"] = [*become, program("pg_ctl"), "-D", str(data), "reload"]
        for directory in (data, place / "tls"):
            directory.mkdir()
        shutil.chown(data, "postgres", "postgres")
        initdb = [*become, program("initdb"), "-D", data, "--auth=trust", "--no-sync", "--no-instructions"]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd="/")
        with (data / "postgresql.conf").open("a") as settings:
            settings.write(SETTINGS.format(place=place, port=recipe.port))

        def start(trial: Trial) -> list[str]:
            recipe.write("tls.conf", place / "tls.conf")
            return [*become, program("postgres"), "-D", str(data)]

        with on_trial(shared_fleet, plane, recipe, start) as trial:
            yield trial


@pytest.mark.parametrize("renewals", [4, pytest.param(50, marks=pytest.mark.campaign)])
def test_renewals_end_no_session(trial: Trial, renewals: int) -> None:
    prove_nothing_is_dropped(trial, renewals)
    key = (trial.recipe.place / "tls" / "server.key").stat()
    assert (stat.S_IMODE(key.st_mode), key.st_uid) == (0o600, (trial.recipe.place / "data").stat().st_uid)


def faults(trial: Trial) -> Faults:
    place = trial.recipe.place

    @contextlib.contextmanager
    def unreadable() -> Iterator[None]:  # only pg_ctl reads it; the server keeps running
        pid_file = place / "data" / "postmaster.pid"
        mode = stat.S_IMODE(pid_file.stat().st_mode)
        pid_file.chmod(0)
        try:
            yield
        finally:
            pid_file.chmod(mode)

    def elsewhere() -> contextlib.AbstractContextManager[None]:
        for name in ("server.crt", "server.key"):
            shutil.copy(place / "tls" / name, place / name)
            shutil.chown(place / name, "postgres", "postgres")
            os.chmod(place / name, 0o600)
        return edited(place / "tls.conf", lambda text: replaced(text, {f"{place}/tls/": f"{place}/"}))

    return Faults(
        refused=broken_pairs(trial)["another certificate's key"],
        why="private.key does not belong to the certificate",
        broken=unreadable,
        elsewhere=elsewhere,
        reload="reload postgresql",
    )


@EACH_FAILURE
def test_failure_table(trial: Trial, row: Row) -> None:
    prove_row(trial, row, faults(trial))


def test_the_check_knows_good_from_broken(trial: Trial, tmp_path: Path) -> None:
    assert check_by_hand(trial, {}, tmp_path / "good").returncode == 0
    for number, (what, files) in enumerate(broken_pairs(trial).items()):
        done = check_by_hand(trial, files, tmp_path / str(number))
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), what


def test_the_check_may_include_the_live_configuration(
    trial: Trial, tmp_path: Path, need: Callable[[str], str], program: Callable[[str], str]
) -> None:
    data = trial.recipe.place / "data"
    options = [need("setpriv"), *AS_POSTGRES, program("postgres"), "-D", str(data), "-C", "ssl_cert_file"]
    good = check_by_hand(trial, {}, tmp_path / "good", *options)
    assert (good.returncode, good.stdout.strip()) == (0, str(trial.recipe.place / "tls" / "server.crt"))
    with edited(trial.recipe.place / "tls.conf", lambda text: text + "half a line"):
        assert check_by_hand(trial, {}, tmp_path / "broken", *options).returncode != 0


def test_a_key_that_the_server_cannot_use_is_rolled_back(trial: Trial) -> None:
    # its reload succeeds but keeps the old pair: only the probe finds it
    @contextlib.contextmanager
    def closed() -> Iterator[None]:
        directory = trial.recipe.place / "tls"
        directory.chmod(0o700)
        try:
            yield
        finally:
            directory.chmod(0o755)

    prove_rollback(trial, closed(), "serves another certificate")


def test_a_placeholder_replaces_a_revoked_certificate(trial: Trial) -> None:
    prove_placeholder(trial)


def test_a_removed_certificate_is_served_until_the_server_ends(trial: Trial) -> None:
    # its reload succeeds: only the probe finds it
    with trial.impatient():
        prove_removal(trial, FROM_MEMORY)
