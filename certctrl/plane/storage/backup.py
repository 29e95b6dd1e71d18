"""Back up the data of a plane, of either engine, into one SQLite file, and restore them from it.

A backup is one state of the database, taken while planes serve it. A restore begins a new epoch: signals that agents
have received since the backup are unknown, so all their cursors become void, and ids and versions that may be in use
are skipped.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from certctrl.errors import BusyError, CertctrlError, ConfigError, DiskError, UsageError
from certctrl.plane.storage.data_dir import DataDir, GivenKey, disk_errors, locked, make_private, sync_directory
from certctrl.plane.storage.key_rotation import refuse_rotating, reseal
from certctrl.plane.storage.keyring import OPERATOR_KEY_DIGEST, Keyring, digest, storage_keyring
from certctrl.plane.storage.moving import TABLES, copy_all
from certctrl.plane.storage.schema import scripts_to_run
from certctrl.plane.storage.sqlite import MOVED, SqliteDatabase

if TYPE_CHECKING:  # its driver is an extra
    from certctrl.plane.storage.postgres import PostgresDatabase

TAKEN_AT = "backup_taken_at"
"""Setting of a backup with the time at which it was taken."""
BEFORE_RESTORE = "plane.db.before-restore"
ID_GAP = 100_000
"""Ids that a new epoch skips: more than a plane creates between a backup and its restore."""
VERSION_GAP = 1000
_GIVEN_OUT = ("devices", "certificates", "orders", "authorities", "install_configs", "audit")
"""Tables whose ids agents remember, or copies of the audit log."""


class Contents(NamedTuple):
    """The contents of a backup."""

    devices: int
    certificates: int
    taken_at: float
    """Seconds since the epoch; 0 if unknown, as for a copy of a database file."""


def back_up(
    data: DataDir, file: Path, *, now: float, connect: Callable[[], PostgresDatabase] | None = None
) -> Contents:
    """Write a backup to a new file of mode 0600; it has its name only once it is complete and durable.

    Raises UsageError if the file exists, ConfigError if there is nothing to back up, DiskError.
    """
    if os.path.lexists(file):
        raise UsageError(f"{file} exists", fix="give the name of a new file, or remove that one")
    with _new_file(file) as temp:
        if connect is None:
            _copy_file(_existing(data), temp)
        else:
            _copy_from_server(connect, temp)
        with closing(SqliteDatabase(temp)) as copy:
            copy.run("DELETE FROM settings WHERE name = ?", TAKEN_AT)
            copy.run("INSERT INTO settings VALUES (?, ?)", TAKEN_AT, repr(now))
            contents = _checked(copy, file)
            copy.run("PRAGMA journal_mode = DELETE")  # readable in a read-only directory, too
    return contents


def restore(
    data: DataDir,
    file: Path,
    *,
    now: float,
    connect: Callable[[], PostgresDatabase] | None = None,
    note: Callable[[SqliteDatabase], object] | None = None,
    old_key: GivenKey | None = None,
) -> Contents:
    """Replace all data of a stopped plane by those of a backup, completely or not at all.

    The replaced database file is kept as ``plane.db.before-restore``; a server keeps nothing. Raises BusyError while a
    plane serves the data, and ConfigError for a file that is not a backup, is of a newer release, or belongs to another
    ``storage.key``. ``note`` is called in the transaction that changes the restored data. ``old_key``: the storage key of
    the backup, if it was replaced since.
    """
    if not file.is_file():
        raise ConfigError("no such file", file=str(file), fix="give the file that plane backup has written")
    with locked(data), _prepared(data, file, now, note, old_key) as (temp, contents):
        if connect is None:
            _replace_file(data, temp)
        else:
            _replace_on_server(connect, temp)
    return contents


def begin_epoch(database: SqliteDatabase, now: float) -> None:
    """Void all cursors, and skip ids and versions that may already be in use."""
    ms = int(now * 1000)
    database.run("DELETE FROM signals")
    database.run(
        "UPDATE streams SET last_ms = CASE WHEN last_ms >= ? THEN last_ms + 1 ELSE ? END, last_seq = 0", ms, ms
    )
    database.run("UPDATE streams SET floor_ms = last_ms, floor_seq = 0, length = 0")
    database.run("UPDATE install_configs SET version = version + ?", VERSION_GAP)
    database.run("DELETE FROM page_sessions")
    database.run("DELETE FROM operator_sessions")
    database.run("DELETE FROM grants")
    database.run("DELETE FROM planes")
    database.run("UPDATE crls SET outdated = 1")  # clients may have later ones, with higher numbers
    database.run("DELETE FROM settings WHERE name = ?", TAKEN_AT)
    for table in _GIVEN_OUT:
        database.run(
            "INSERT INTO sqlite_sequence (name, seq) SELECT ?, 0 WHERE ? NOT IN (SELECT name FROM sqlite_sequence)",
            table,
            table,
        )
        database.run("UPDATE sqlite_sequence SET seq = seq + ? WHERE name = ?", ID_GAP, table)


# --- files --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """Yield a private file that is durably renamed to ``path`` after the block; an error removes it."""
    with disk_errors(path), _temporary(path) as temp:
        yield temp
        _sync(temp)
        os.link(temp, path)  # fails if the file exists by now
        sync_directory(path.parent)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield a private file next to ``path``, and remove it after the block."""
    temp = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    make_private(temp)
    try:
        yield temp
    finally:
        _remove(temp)


def _sync(path: Path) -> None:
    with path.open("rb") as opened:
        os.fsync(opened.fileno())


def _remove(temp: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{temp}{suffix}").unlink(missing_ok=True)


def _existing(data: DataDir) -> Path:
    if not data.database.exists():
        raise ConfigError("no such database", file=str(data.database), fix="give the directory of a control plane")
    return data.database


def _copy_file(path: Path, temp: Path) -> None:
    """Copy one state of a database file that may be in use."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)) as source:
            _check_source(source, path)
            source.execute("VACUUM INTO ?", (str(temp),))
    except sqlite3.OperationalError as error:
        raise DiskError(f"{path}: {error}", path=str(path), fix="check free space and permissions") from None
    except sqlite3.DatabaseError as error:
        raise ConfigError(f"is not a backup, or is damaged: {error}", file=str(path)) from None


def _check_source(source: sqlite3.Connection, path: Path) -> None:
    version = source.execute("PRAGMA user_version").fetchone()[0]
    scripts_to_run(version, str(path))
    tables = {name for (name,) in source.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not version or not {"streams", "certificates"} <= tables:
        raise ConfigError("is not the database of a control plane", file=str(path))
    moved = source.execute("SELECT value FROM settings WHERE name = ?", (MOVED,)) if "settings" in tables else ()
    for (where,) in moved:
        raise ConfigError(f"was moved to {where}", file=str(path), fix="add --database")


def _checked(database: SqliteDatabase, file: Path) -> Contents:
    """Return the contents of a complete copy."""
    found = database.one("PRAGMA quick_check")
    if found is None or found["quick_check"] != "ok":
        raise ConfigError("is damaged", file=str(file), fix="use another backup")
    refuse_rotating(database, file)
    row = database.one(
        "SELECT (SELECT count(*) FROM devices) AS devices, (SELECT count(*) FROM certificates) AS certificates"
    )
    assert row is not None
    return Contents(row["devices"], row["certificates"], float(database.setting(TAKEN_AT) or 0))


@contextlib.contextmanager
def _prepared(
    data: DataDir, file: Path, now: float, note: Callable[[SqliteDatabase], object] | None, old_key: GivenKey | None
) -> Iterator[tuple[Path, Contents]]:
    """Yield a copy of a backup in the data directory, migrated to this release and in a new epoch."""
    with _temporary(data.database) as temp:
        _copy_file(file, temp)
        with closing(SqliteDatabase(temp)) as copy:
            contents = _checked(copy, file)
            sealed = copy.one("SELECT value_enc FROM secrets WHERE name = 'jwt'")
            keyring = Keyring.open(data, create=False) if sealed is not None else None
            if keyring is not None and old_key is not None:
                reseal(copy, storage_keyring(old_key.text.encode(), old_key.path), keyring)
            elif keyring is not None and sealed is not None:
                keyring.unseal("jwt", sealed["value_enc"])
            with copy.transaction():
                begin_epoch(copy, now)
                if keyring is not None and copy.setting(OPERATOR_KEY_DIGEST):  # the backup may know an earlier key
                    _keep_key(copy, keyring)
                if note is not None:
                    note(copy)
        yield temp, contents


def _keep_key(database: SqliteDatabase, keyring: Keyring) -> None:
    """Make the operator key of the data directory the current one."""
    sql = "UPDATE settings SET value = ? WHERE name = ?"
    database.run(sql, digest(keyring.operator_key), OPERATOR_KEY_DIGEST)


def _replace_file(data: DataDir, temp: Path) -> None:
    """Give the copy the name of the database; a crash leaves the one or the other."""
    kept = data.root / BEFORE_RESTORE
    with disk_errors(data.database):
        if data.database.exists():
            with contextlib.suppress(CertctrlError), closing(SqliteDatabase(data.database)):
                pass  # closing merges the journal into the file
            _remove(kept)
            for suffix in ("-wal", "-shm"):  # of a damaged database: they would be applied to the new one
                with contextlib.suppress(FileNotFoundError):
                    os.rename(f"{data.database}{suffix}", f"{kept}{suffix}")
            os.link(data.database, kept)
        _sync(temp)
        os.rename(temp, data.database)
        sync_directory(data.root)


# --- servers ------------------------------------------------------------------------------------------------------


def _copy_from_server(connect: Callable[[], PostgresDatabase], temp: Path) -> None:
    with closing(connect()) as source, closing(SqliteDatabase(temp)) as copy:
        with copy.transaction(), source.snapshot():
            for table in TABLES:
                columns = [row["name"] for row in copy.all("SELECT name FROM pragma_table_info(?)", table)]
                marks = ", ".join("?" * len(columns))
                for row in source.each(f"SELECT {', '.join(columns)} FROM {table}"):
                    copy.run(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", *row)


def _replace_on_server(connect: Callable[[], PostgresDatabase], temp: Path) -> None:
    with closing(connect()) as target, closing(SqliteDatabase(temp)) as copy, target.transaction():
        others = target.other_planes()
        if others:
            raise BusyError(
                f"{target.name} is used by {others} connections of control planes", fix="stop them all, then restore"
            )
        target.run(f"TRUNCATE {', '.join(TABLES)}")
        copy_all(copy, target)
