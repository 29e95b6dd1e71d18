"""SqliteFile: read a database file, in use or not, without creating, migrating or changing anything."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from certctrl.errors import ConfigError, DiskError
from certctrl.plane.storage.database import Row
from certctrl.plane.storage.sqlite import MOVED, bytes_of


class SqliteFile:
    """An open file; `close` it."""

    engine = "SQLite"

    def __init__(self, path: Path) -> None:
        """Open the file. Raises ConfigError if it does not exist, DiskError if it cannot be read."""
        self._path = path
        if not path.exists():
            raise ConfigError("no such database", file=str(path), fix="give the directory of a control plane")
        try:
            uri = f"{path.absolute().as_uri()}?mode=ro"
            self._connection = sqlite3.connect(uri, uri=True, isolation_level=None)
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from None
        try:
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("BEGIN")
            self.schema_version()
        except sqlite3.DatabaseError as error:
            self.close()
            raise self._failure(error) from None

    def one(self, sql: str, *parameters: Any) -> Row | None:
        """Return the first row, or None."""
        rows = self.all(sql, *parameters)
        return rows[0] if rows else None

    def all(self, sql: str, *parameters: Any) -> list[Row]:
        """Return all rows."""
        try:
            return self._connection.execute(sql, parameters).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from None

    def schema_version(self) -> int:
        """Return the number of schema scripts that have run."""
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    def refuse_moved(self) -> None:
        """Raise ConfigError if the data have been moved to a server: this copy is out of date."""
        known = self.one("SELECT 1 FROM sqlite_master WHERE name = 'settings'") is not None
        moved = self.one("SELECT value FROM settings WHERE name = ?", MOVED) if known else None
        if moved is not None:
            raise ConfigError(f"was moved to {moved['value']}", file=str(self._path), fix="add --database")

    def size(self) -> int:
        """Return the bytes of the file and its journal."""
        return bytes_of(self._path)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _failure(self, error: sqlite3.DatabaseError) -> Exception:
        fix = "check free space and permissions"
        if not isinstance(error, sqlite3.OperationalError):
            fix = "restore it from a backup"
        return DiskError(f"{self._path}: {error}", path=str(self._path), fix=fix)
