"""Replace the storage key of stopped planes: seal all stored secrets under a new key, then make it the current one.

Until the last secret is sealed under the new key, both keys are kept: a run that was interrupted at any point is repeated
with the same two. No plane starts in between: neither of the keys decrypts all secrets.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from certctrl import lean
from certctrl.errors import BusyError, ConfigError
from certctrl.plane.storage.data_dir import DataDir, GivenKey, disk_errors, locked, secret_file, sync_directory
from certctrl.plane.storage.database import Database, Row
from certctrl.plane.storage.keyring import Keyring, new_storage_text, require_files, storage_keyring
from certctrl.plane.storage.sqlite import SqliteDatabase

if TYPE_CHECKING:  # its driver is an extra
    from certctrl.plane.storage.postgres import PostgresDatabase

ROTATING = "storage_key_rotation"
"""Setting while some secrets may be sealed under the old key, and some under the new one."""
INSTALLATION = "alerts_installation"
"""Setting with what `installation_of` returned before the first rotation."""
NEW, OLD = "storage.key.new", "storage.key.old"
SECRETS_PER_UNIT = 200


@lean.frozen
class Sealed:
    """A column of sealed secrets."""

    table: str
    column: str
    purpose: str
    """With the columns of the table's primary key in braces."""
    key: tuple[str, ...] = ("id",)


SEALED = (
    Sealed("secrets", "value_enc", "{name}", ("name",)),
    Sealed("certificates", "private_key_enc", "certificate {id}"),
    Sealed("orders", "key_enc", "order {id} key"),
    Sealed("orders", "memo_enc", "order {id} memo"),
    Sealed("orders", "issued_enc", "order {id} issued"),
    Sealed("orders", "issued_key_enc", "order {id} issued key"),
    Sealed("issuers", "secrets_enc", "issuer {name}", ("name",)),
    Sealed("issuer_items", "value_enc", "issuer {issuer} {name}", ("issuer", "name")),
    Sealed("held_certificates", "private_key_enc", "certificate {cert_id}", ("cert_id", "serial_number")),
    Sealed("alert_channels", "secrets_enc", "alert channel {name}", ("name",)),
)
"""All of them; first the secret that planes read at their start."""


class Rotated(NamedTuple):
    """The result of a rotation."""

    secrets: int
    """Those that this run has sealed under the new key."""
    key: Path
    """The file with the new key."""
    old: Path
    """The file with the old one."""


def rotate(
    data: DataDir,
    connect: Callable[[], PostgresDatabase] | None,
    note: Callable[[Database], object],
    given: GivenKey | None = None,
) -> Rotated:
    """Replace the storage key; ``given`` is the new one if the old one is given from outside the directory.

    ``note`` is called in the last transaction. Raises BusyError while a plane uses the database, and ConfigError.
    """
    if connect is None and not data.database.exists():
        raise ConfigError("no such database", file=str(data.database), fix="give the directory of a control plane")
    with locked(data), closing(connect() if connect is not None else SqliteDatabase(data.database)) as database:
        new_file = _new_file(data, given)
        old = storage_keyring(_old_text(data), data.storage_key)
        if given is None and not new_file.exists():
            with database.transaction():
                _refuse_other_key(database, old, new_file)
        text = secret_file(new_file, new_storage_text) if given is None else given.text.encode()
        new = storage_keyring(text, new_file)
        if new.has_key_of(old):
            raise ConfigError("is the current storage key", file=str(new_file), fix="write another one to it")
        count = 0
        while found := reseal(database, old, new, _stopped):  # again: a plane may have been about to stop
            count += found
        with database.transaction():
            _stopped(database)
            database.run("DELETE FROM settings WHERE name = ?", ROTATING)
            note(database)
        if given is not None:
            return Rotated(count, new_file, data.storage_key)
        return Rotated(count, data.storage_key, _replace(data.storage_key, new_file))


def reseal(
    database: Database, old: Keyring, new: Keyring, before_unit: Callable[[Database], object] = lambda database: None
) -> int:
    """Seal all secrets under a new key, in bounded transactions; return how many were under the old one.

    The name of the installation in alerts stays.
    """
    count = 0
    for sealed in SEALED:
        last, is_last = None, False
        while not is_last:
            with database.transaction():
                before_unit(database)
                rows = _portion(database, sealed, last)
                count += sum(_reseal(database, sealed, row, old, new) for row in rows)
            is_last = len(rows) < SECRETS_PER_UNIT
            last = rows[-1] if rows else None
    with database.transaction():
        before_unit(database)
        sql = "INSERT INTO settings VALUES (?, ?) ON CONFLICT (name) DO NOTHING"
        database.run(sql, INSTALLATION, installation_of(database, old))
    return count


def installation_of(database: Database, keyring: Keyring) -> str:
    """Return the name of the installation in alerts: the same at all planes on a database, and after a rotation."""
    return database.setting(INSTALLATION) or keyring.derived("alerts")[:6].hex()


def _portion(database: Database, sealed: Sealed, after: Row | None) -> list[Row]:
    """Return the next rows with a secret in a column, after a row."""
    columns, marked = ", ".join(sealed.key), ", ".join("?" * len(sealed.key))
    return database.all(
        f"SELECT {columns}, {sealed.column} AS sealed FROM {sealed.table} WHERE length({sealed.column}) > 0"
        f"{'' if after is None else f' AND ({columns}) > ({marked})'} ORDER BY {columns} LIMIT ?",
        *(*(() if after is None else (after[name] for name in sealed.key)), SECRETS_PER_UNIT),
    )


def _reseal(database: Database, sealed: Sealed, row: Row, old: Keyring, new: Keyring) -> bool:
    """Seal one secret under the new key; return False if it is already. Raises ConfigError if neither key decrypts it."""
    key = {name: row[name] for name in sealed.key}
    purpose, value = sealed.purpose.format(**key), bytes(row["sealed"])
    try:
        plain = old.unseal(purpose, value)
    except ConfigError:
        new.unseal(purpose, value)
        return False
    found = " AND ".join(f"{name} = ?" for name in key)
    sql = f"UPDATE {sealed.table} SET {sealed.column} = ? WHERE {found}"
    database.run(sql, new.seal(purpose, plain), *key.values())
    return True


def _stopped(database: Database) -> None:
    """Raise BusyError if a plane uses the database; otherwise note that secrets are under two keys."""
    if others := database.other_planes():
        what = f"{others} connections of control planes use the database"
        raise BusyError(what, fix="stop them all, then repeat the rotation")
    database.run("INSERT INTO settings VALUES (?, '1') ON CONFLICT (name) DO NOTHING", ROTATING)


def refuse_rotating(database: Database, file: Path) -> None:
    """Raise ConfigError for a database in which a rotation was interrupted: no key decrypts all of its secrets."""
    if database.setting(ROTATING):
        fix = "repeat it first: cert-ctrl plane rotate storage-key"
        raise ConfigError("a rotation of its storage key was interrupted", file=str(file), fix=fix)


def _old_text(data: DataDir) -> bytes:
    if data.given.storage is not None:
        return data.given.storage.text.encode()
    require_files((data.storage_key,))
    return secret_file(data.storage_key, new_storage_text)


def _new_file(data: DataDir, given: GivenKey | None) -> Path:
    """Return the file of the new key. Raises ConfigError unless it comes from where the old one does."""
    own = data.root / "storage.key"
    if given is None and data.given.storage is not None:
        fix = "write a new key to a file, and name it: --new-storage-key-file FILE"
        raise ConfigError("is given from outside the data directory", file=str(data.given.storage.path), fix=fix)
    if given is not None and (data.given.storage is None or own.exists()):
        fix = "leave --new-storage-key-file out: the command makes a new key"
        raise ConfigError("is in the data directory", file=str(own), fix=fix)
    return own.with_name(NEW) if given is None else given.path


def _refuse_other_key(database: Database, old: Keyring, new_file: Path) -> None:
    """Raise ConfigError, before a new key is made, unless all secrets of the database are under the old one."""
    if database.setting(ROTATING):
        fix = "repeat the rotation in the data directory in which it was begun"
        raise ConfigError("is missing, and an interrupted rotation has used it", file=str(new_file), fix=fix)
    row = database.one("SELECT value_enc FROM secrets WHERE name = 'jwt'")
    if row is None:
        raise ConfigError("there are no secrets yet", file=str(new_file.parent), fix="start the control plane once")
    old.unseal("jwt", bytes(row["value_enc"]))


def _replace(old_file: Path, new_file: Path) -> Path:
    """Make the new key the current one, and return the file that keeps the old one; a crash leaves both."""
    kept = old_file.with_name(OLD)
    with disk_errors(old_file):
        kept.unlink(missing_ok=True)
        os.link(old_file, kept)
        sync_directory(old_file.parent)
        new_file.rename(old_file)
        sync_directory(old_file.parent)
    return kept
