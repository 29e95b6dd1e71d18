"""The options of `plane serve` and `plane migrate-to` that say where the database is, and their errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from postgres_server import PostgresServer

from certctrl.cli.main import run_command
from certctrl.cli.plane.database import CREDENTIAL, DatabaseAddress, database_address, needed_modules
from certctrl.errors import ConfigError, ExitStatus, UsageError
from certctrl.plane.core import Plane

URL = "postgresql://plane@db.example.com/plane"


def secret_file(path: Path, text: str, mode: int = 0o600) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_the_database_is_in_the_data_directory_by_default() -> None:
    assert database_address("", "", {}) is None


def test_a_url_without_password_leaves_the_password_to_libpq() -> None:
    assert database_address(URL, "", {}) == DatabaseAddress(URL, None)


def test_the_password_or_the_url_is_read_from_a_file_or_a_credential(tmp_path: Path) -> None:
    password, whole = secret_file(tmp_path / "password", "s3cret\n"), secret_file(tmp_path / "url", f"{URL}?x\n")
    assert database_address(URL, password, {}) == DatabaseAddress(URL, "s3cret")
    assert database_address("", whole, {}) == DatabaseAddress(f"{URL}?x", None)
    secret_file(tmp_path / CREDENTIAL, "other", 0o440)  # systemd restricts the directory
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert database_address(URL, "", environ) == DatabaseAddress(URL, "other")
    assert database_address(URL, password, environ) == DatabaseAddress(URL, "s3cret"), "the option comes first"
    assert "s3cret" not in repr(database_address(URL, password, {}))


def test_notifications_may_have_a_url_of_their_own(tmp_path: Path) -> None:
    direct = "postgresql://plane@direct.example.com/plane"
    password = secret_file(tmp_path / "password", "s3cret\n")
    assert database_address(URL, password, {}, direct) == DatabaseAddress(URL, "s3cret", direct)
    with pytest.raises(UsageError, match="no database is given"):
        database_address("", "", {}, direct)
    with pytest.raises(UsageError, match="--listen-database contains a password") as caught:
        database_address(URL, "", {}, "postgresql://plane:hunter2@db.example.com/plane")
    assert "hunter2" not in f"{caught.value}{caught.value.fix}"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://plane:hunter2@db.example.com/plane", "contains a password"),
        ("postgresql://plane@db.example.com/plane?password=hunter2", "contains a password"),
        ("mysql://plane@db.example.com/plane", "is not a PostgreSQL URL"),
        ("db.example.com", "is not a PostgreSQL URL"),
        ("postgresql://plane@[db/plane", "is not a URL"),
    ],
)
def test_an_unusable_url_is_a_usage_error_that_shows_no_password(url: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        database_address(url, "", {})
    assert "hunter2" not in f"{caught.value}{caught.value.fix}"
    assert caught.value.fix


def test_unusable_files_are_named(tmp_path: Path) -> None:
    cases = [
        (secret_file(tmp_path / "open", "s3cret", 0o644), "readable by other users"),
        (secret_file(tmp_path / "empty", "\n"), "one line"),
        (secret_file(tmp_path / "long", "a\nb\n"), "one line"),
        (str(tmp_path / "missing"), "cannot be read"),
        (secret_file(tmp_path / "mysql", "mysql://u@h/d"), "not PostgreSQL's"),
    ]
    for path, words in cases:
        with pytest.raises(ConfigError, match=words) as caught:
            database_address("" if "mysql" in path else URL, path, {})
        assert path in str(caught.value)
    with pytest.raises(UsageError, match="two databases"):
        database_address(URL, secret_file(tmp_path / "url", URL), {})
    with pytest.raises(UsageError, match="no database"):
        database_address("", secret_file(tmp_path / "password", "s3cret"), {})


def test_migrate_to_moves_a_data_directory(
    postgres: PostgresServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, data = postgres.database(), tmp_path / "data"
    Plane.open(data).close()
    assert run_command(["plane", "migrate-to", url, "--data", str(data)]) == 0
    assert capsys.readouterr().out.startswith("moved 0 devices, 0 certificates and 0 signals\n")
    assert run_command(["plane", "migrate-to", url, "--data", str(data)]) == ExitStatus.CONFIG
    assert "was moved to postgresql://" in capsys.readouterr().err
    assert run_command(["plane", "serve", "--data", str(data), "--listen", "127.0.0.1:0"]) == ExitStatus.CONFIG
    assert "add --database" in capsys.readouterr().err


def test_a_server_that_is_away_ends_the_start_with_69(
    need_module: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need_module("psycopg")
    data = tmp_path / "data"
    Plane.open(data).close()
    url = f"postgresql://plane@/plane?host={tmp_path}"
    status = run_command(["plane", "serve", "--data", str(data), "--listen", "127.0.0.1:0", "--database", url])
    assert status == ExitStatus.UNAVAILABLE
    error = capsys.readouterr().err
    assert str(tmp_path) in error
    assert "check the server" in error


def test_a_host_without_libpq_is_named() -> None:
    with pytest.raises(ConfigError, match=r"psycopg cannot be used: no pq wrapper available\.$") as refused:
        with needed_modules("plane-postgres"):
            raise ImportError("no pq wrapper available.\nAttempts made:\n- couldn't import psycopg 'c' implementation")
    assert refused.value.fix == "install libpq, such as Debian's libpq5"
