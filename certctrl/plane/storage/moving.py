"""Move the data of a plane from SQLite to PostgreSQL, with all ids and cursors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from certctrl.errors import ConfigError
from certctrl.plane.storage.data_dir import DataDir, locked
from certctrl.plane.storage.sqlite import MOVED, SqliteDatabase

if TYPE_CHECKING:  # its driver is an extra
    from certctrl.plane.storage.postgres import PostgresDatabase

TABLES = (
    "secrets", "settings", "users", "devices", "refresh_tokens", "grants", "enrolment_tokens", "enrolments",
    "page_sessions", "certificates", "issues", "assignments", "authorities", "authority_assignments",
    "install_configs", "streams", "signals", "outcomes", "jobs", "limits", "planes", "plane_names", "issuers", "issuer_rules",
    "issuer_items", "orders", "revoked_serials", "crls", "former_certificates", "revocations", "http_challenges", "host_challenges", "known_keys",
    "published_proofs", "proof_holds", "device_tags", "sockets", "questions",
    "profiles", "profile_versions", "profile_pins", "rollouts", "rollout_devices",
    "operators", "operator_tokens", "operator_sessions", "audit", "audit_objects",
    "deployments", "endpoints", "device_replacements", "held_certificates", "certificate_holds", "rollout_certificates",
    "alert_channels", "alert_groups", "alert_messages", "alert_problems",
)  # fmt: skip
"""All tables, each after those it refers to."""


class Moved(NamedTuple):
    """The result of a move."""

    devices: int
    certificates: int
    signals: int


def move(
    data: DataDir, connect: Callable[[], PostgresDatabase], note: Callable[[PostgresDatabase], object] | None = None
) -> Moved:
    """Copy all rows in one transaction, and close the file to planes afterwards.

    Raises BusyError while a plane serves the directory, and ConfigError if there is nothing to move, or if the target is
    not empty. A move that was interrupted can be repeated. ``note`` is called in the transaction that fills the target.
    """
    if not data.database.exists():
        raise ConfigError("no such database", file=str(data.database), fix="give the directory of a control plane")
    with locked(data), closing(SqliteDatabase(data.database)) as source, closing(connect()) as target:
        with target.transaction():
            _refuse_used(target)
            counts = copy_all(source, target)
            if note is not None:
                note(target)
        source.run("INSERT INTO settings VALUES (?, ?)", MOVED, target.name)
    return Moved(counts["devices"], counts["certificates"], counts["signals"])


def _refuse_used(target: PostgresDatabase) -> None:
    target.run("LOCK TABLE users IN EXCLUSIVE MODE")
    if target.one("SELECT 1 FROM users") is not None:
        raise ConfigError("contains the data of a control plane", file=target.name, fix="use an empty database")


def copy_all(source: SqliteDatabase, target: PostgresDatabase) -> dict[str, int]:
    """Copy all tables into empty ones, with the ids that come next; return the number of rows by table."""
    return {table: _copy(source, target, table) for table in TABLES}


def _copy(source: SqliteDatabase, target: PostgresDatabase, table: str) -> int:
    """Copy the rows of a table; return their number."""
    columns = [row["name"] for row in source.all("SELECT name FROM pragma_table_info(?) ORDER BY cid", table)]
    count = target.copy_in(table, columns, source.each(f"SELECT {', '.join(columns)} FROM {table}"))
    if "id" in columns and table != "refresh_tokens":
        given = source.one("SELECT seq FROM sqlite_sequence WHERE name = ?", table)
        last = 0 if given is None else given["seq"]
        target.all("SELECT setval(pg_get_serial_sequence(?, 'id'), ?, true)", table, max(last, 1))
    return count
