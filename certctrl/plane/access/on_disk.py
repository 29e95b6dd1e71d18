"""Turn the operator key on, and replace it, as a user who can write the data directory.

The control plane may be running: its database says which key is current, so it needs no restart.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from certctrl.errors import ConfigError
from certctrl.plane.access.key import OFF, STATE, set_setting
from certctrl.plane.access.roles import Caller, Role
from certctrl.plane.audit.log import AuditLog, Change
from certctrl.plane.clock import wall_now
from certctrl.plane.settings import PlaneSettings
from certctrl.plane.storage.data_dir import DataDir, GivenKey, disk_errors, make_data_dir, sync_directory, write_file
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import OPERATOR_KEY_DIGEST, digest, new_operator_key, operator_key_in
from certctrl.plane.storage.sqlite import SqliteDatabase

Connect = Callable[[], Database] | None
VIA = "data directory"


def turn_key_on(root: Path, who: str, connect: Connect) -> None:
    """Turn the operator key on, and record who did; no-op if it is on."""
    with _changing(root, connect) as (_, database, audit):
        before = database.setting(STATE)
        if before == OFF:
            set_setting(database, STATE, "")
            entry = audit.add(_caller(who), "operator-key.on")
            change = Change(kind="setting", object_id=STATE, before={"value": before}, after={"value": ""})
            audit.add_change(entry, change)


def rotate_key(root: Path, who: str, connect: Connect, given: GivenKey | None = None) -> Path:
    """Replace the operator key, end its sessions, and record who did; return its file.

    ``given``: the new key, if control planes get it from outside the directory. After a crash in between, the file may
    contain a key that is not current: repeat it.
    """
    with _changing(root, connect) as (data, database, audit):
        own = data.root / "operator.key"
        if given is None:
            key, new = new_operator_key(), own.with_name("operator.key.new")
            if not own.exists():
                fix = "write the new key to where it is given, and name that file: --operator-key-file FILE"
                raise ConfigError("does not exist: the operator key is given from outside", file=str(own), fix=fix)
            write_file(new, f"{key}\n".encode(), mode=0o600)
        else:
            key, new = operator_key_in(given.text, given.path), None
            if own.exists():
                fix = f"remove {own}, or leave --operator-key-file out to replace it"
                raise ConfigError(f"is not the operator key of {own}", file=str(given.path), fix=fix)
        set_setting(database, OPERATOR_KEY_DIGEST, digest(key))
        database.run("DELETE FROM page_sessions")
        audit.add(_caller(who), "operator-key.rotate")
    if new is None:
        return given.path if given is not None else own
    with disk_errors(own):
        new.rename(own)
        sync_directory(own.parent)
    return own


@contextlib.contextmanager
def _changing(root: Path, connect: Connect) -> Iterator[tuple[DataDir, Database, AuditLog]]:
    """Open the database of a data directory for one transaction."""
    if not root.is_dir():
        raise ConfigError("is not a data directory", file=str(root), fix="give the directory of a control plane")
    data = make_data_dir(root)
    if connect is None and not data.database.exists():
        raise ConfigError("no such database", file=str(data.database), fix="give the directory of a control plane")
    with closing(connect() if connect is not None else SqliteDatabase(data.database)) as database:
        with database.transaction():
            yield data, database, AuditLog(database, wall_now, days=PlaneSettings().audit_days)


def note(database: Database, who: str, action: str, **detail: object) -> None:
    """Record what a command on the data directory did, in the caller's transaction."""
    AuditLog(database, wall_now, days=PlaneSettings().audit_days).add(_caller(who), action, detail)


def _caller(who: str) -> Caller:
    return Caller(who=who, role=Role.ADMIN, via=VIA)
