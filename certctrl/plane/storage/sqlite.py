"""SqliteDatabase: one SQLite connection, called inline except for long units of work; the default engine.

A read takes 0.02 ms and a durable write one fsync, less than a thread switch, and inline calls work under a virtual
clock. WAL with ``synchronous=FULL``: acknowledged changes survive kill -9 and power loss.

No other task can run during a unit that runs inline. A long one (``work_long``) runs in a worker thread; meanwhile the
event loop runs other tasks, and other units wait in order of arrival. At most one long unit waits among them, and further
ones wait for it, so a short unit waits for at most two. Units that change nothing (``work_read``), such as polls, do not
wait for a long one: a second connection reads what was committed before it. A unit of work that finds a lock of another process is repeated
for a while, without blocking other tasks. A database that cannot be written is opened read-only.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import trio

from certctrl.errors import ConfigError, DiskError
from certctrl.model.offload import Offload
from certctrl.plane.errors import DatabaseLockedError
from certctrl.plane.storage.data_dir import UNWRITABLE, make_private
from certctrl.plane.storage.database import Callbacks, Database, Row, T, Waiting, run_woken_first
from certctrl.plane.storage.queue import Queue
from certctrl.plane.storage.schema import scripts_to_run

_ERRNO = {
    sqlite3.SQLITE_FULL: errno.ENOSPC, sqlite3.SQLITE_READONLY: errno.EROFS, sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_PERM: errno.EACCES,
}  # fmt: skip
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_LOCKED_SECONDS = 5.0
"""Seconds that a unit of work waits for another process to unlock the database."""
_LOCKED_PAUSE = (0.01, 0.05)
MOVED = "moved_to"
"""Setting with the database to which the data were moved."""


log = logging.getLogger("certctrl.Plane")


class SqliteDatabase(Database):
    """A database file, or a database in memory."""

    engine = "SQLite"
    reads_inline = True

    def __init__(self, path: Path | None, offload: Offload | None = None) -> None:
        """Open (and create or migrate) a database file of mode 0600, or one in memory.

        ``offload`` runs long units in a thread; None: inline, for tests and virtual clocks, which do not wait for
        threads.
        """
        super().__init__()
        self._offload = offload
        self._turn = trio.Lock()
        """Held by the unit that runs."""
        self._next_long = trio.Lock()
        """Held by the long unit that runs or is next, so that a short one waits for at most two of them."""
        self._queue = Queue()
        self._thread: int | None = None
        """The thread of the unit that runs."""
        self._reader: sqlite3.Connection | None = None
        """The connection of units that read during a long one; opened when the first one does."""
        self._reading: int | None = None
        """The thread of the unit that reads, while it runs."""
        self._read_from: sqlite3.Connection
        """The connection of that unit."""
        self._file = path
        self._path = "memory" if path is None else str(path)
        self._callbacks = Callbacks()
        self.read_only = False
        """Whether the file could only be opened for reading."""
        try:
            if path is not None:
                make_private(path)
            self._open(":memory:" if path is None else path.absolute().as_uri())
        except DiskError as error:
            if path is None or error.errno not in UNWRITABLE or not _has_content(path):
                raise
            self._open_read_only(path, error)

    def _open(self, uri: str) -> None:
        """Connect and prepare the connection."""
        try:
            self._connection = sqlite3.connect(
                uri,
                isolation_level=None,
                timeout=_LOCKED_SECONDS,
                uri=True,
                check_same_thread=False,  # `_turn` lets one thread at a time use it
            )
            self._connection.row_factory = sqlite3.Row
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from None
        self._patience = _LOCKED_SECONDS
        try:
            self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _open_read_only(self, path: Path, cause: DiskError) -> None:
        """Open a database that cannot be written; without access to its directory only if no journal is left."""
        self.read_only = True
        journal = path.with_name(f"{path.name}-wal")
        try:
            self._open(f"{path.absolute().as_uri()}?mode=ro")
        except DiskError:
            if _has_content(journal):
                raise
            self._open(f"{path.absolute().as_uri()}?immutable=1")
        log.warning("%s; opened read-only: nothing can be changed until the next start", cause)

    async def _work(self, unit: Callable[[], T]) -> T:
        """Run the unit inline; without a checkpoint unless it wakes others, a long one runs, or another process has a lock."""
        return await self._when_unlocked(unit, None)

    async def _work_now(self, unit: Callable[[], T]) -> T:
        """Run the unit inline, without a checkpoint unless a long one runs. Raises DatabaseLockedError for a lock."""
        return await self._once(unit, None)

    async def _work_read(self, unit: Callable[[], T]) -> T:
        """Run the unit inline, during a long one on a connection of its own.

        Otherwise it needs no transaction: until it ends, nothing else runs that could change something.
        """
        if not self._turn.locked():
            self._wait_for_locks(0.0)
            return self._read(unit, self._connection)
        if self._file is None or self.read_only:
            return await self._work_now(partial(self._read, unit, self._connection))
        return self._read_beside(unit, self._file)

    def _read(self, unit: Callable[[], T], connection: sqlite3.Connection) -> T:
        self._reading, self._read_from = threading.get_ident(), connection
        try:
            return unit()
        finally:
            self._reading = None

    def _read_beside(self, unit: Callable[[], T], path: Path) -> T:
        """Run a unit that reads what was committed when it begins, while another one runs in a thread."""
        try:
            if self._reader is None:
                self._reader = _reader(path)
            self._reader.execute("BEGIN")
            try:
                return self._read(unit, self._reader)
            finally:
                self._reader.execute("ROLLBACK")
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from None

    async def _work_long(self, unit: Callable[[], T]) -> T:
        """Run the unit in a worker thread, while all other units wait."""
        return await self._when_unlocked(unit, self._offload)

    def backlog(self) -> float:
        """Return for how many seconds the next unit of work has been waiting for a long one."""
        return self._queue.longest_wait()

    async def _when_unlocked(self, unit: Callable[[], T], offload: Offload | None) -> T:
        """Run the unit, again for a while if another process has locked the database."""
        deadline = inf  # waiting for its turn does not count
        while True:
            try:
                return await (self._once_long(unit, offload) if offload else self._once(unit, None))
            except DatabaseLockedError:
                deadline = min(deadline, trio.current_time() + _LOCKED_SECONDS)
                if trio.current_time() >= deadline:
                    raise
            await trio.sleep(random.uniform(*_LOCKED_PAUSE))

    async def _once(self, unit: Callable[[], T], offload: Offload | None) -> T:
        """Run the unit in its turn, and its callbacks on the event loop."""
        try:
            self._turn.acquire_nowait()
        except trio.WouldBlock:
            with self._queue.place():
                await self._turn.acquire()
        try:
            result: T = self._committed(unit) if offload is None else await offload(self._committed, unit)
            called = self._callbacks.call()
        finally:
            self._turn.release()
        if called:
            await run_woken_first()
        return result

    async def _once_long(self, unit: Callable[[], T], offload: Offload) -> T:
        """Run the unit, as ``_once``, when no other long one runs or is the next."""
        try:
            self._next_long.acquire_nowait()
        except trio.WouldBlock:
            await self._next_long.acquire()
        try:
            return await self._once(unit, offload)
        finally:
            self._next_long.release()

    def _committed(self, unit: Callable[[], T]) -> T:
        self._thread = threading.get_ident()
        try:
            self._wait_for_locks(0.0)
            with self._transaction("BEGIN"):
                return unit()
        finally:
            self._thread = None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit the block as a whole; see ``Database.transaction``. Outside of units of work, locks are waited for."""
        if self._connection.in_transaction:
            yield
            return
        self._wait_for_locks(_LOCKED_SECONDS)
        with self._transaction("BEGIN IMMEDIATE"):
            yield
        self._callbacks.call()

    def _wait_for_locks(self, seconds: float) -> None:
        """Wait, blocking, so long for locks of other processes from now on."""
        if self._patience != seconds:
            self._patience = seconds
            self._connection.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")

    def after_commit(self, callback: Callable[[], object]) -> None:
        """Call back after the commit; see ``Database.after_commit``."""
        self._require_change()
        if self._connection.in_transaction:
            self._callbacks.add(callback)
        else:
            callback()

    def one(self, sql: str, *parameters: Any) -> Row | None:
        """Return the first row, or None."""
        try:
            row: Row | None = self._execute(sql, parameters).fetchone()
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from None
        return row

    def all(self, sql: str, *parameters: Any) -> list[Row]:
        """Return all rows."""
        try:
            return self._execute(sql, parameters).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from None

    def each(self, sql: str) -> Iterator[tuple[Any, ...]]:
        """Yield all rows of a large answer."""
        for row in self._connection.execute(sql):
            yield tuple(row)

    def _run(self, sql: str, parameters: tuple[Any, ...]) -> int:
        """Run a statement; return the number of changed rows."""
        self._require_change()
        try:
            return self._execute(sql, parameters).rowcount
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from None

    def _insert(self, sql: str, parameters: tuple[Any, ...]) -> int:
        """Run an INSERT and return the id of the new row."""
        self._require_change()
        try:
            return self._execute(sql, parameters).lastrowid or 0
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from None

    def schema_version(self) -> int:
        """Return the number of schema scripts that have run."""
        row = self.one("PRAGMA user_version")
        return 0 if row is None else int(row["user_version"])

    def size(self) -> int:
        """Return the bytes of the file and its journal."""
        return 0 if self._file is None else bytes_of(self._file)

    def is_read_only(self) -> bool:
        """Return whether the database was opened read-only, or its file system is read-only."""
        if self._file is None or self.read_only:
            return self.read_only
        try:
            return bool(os.statvfs(self._file).f_flag & os.ST_RDONLY)
        except OSError as error:
            raise DiskError(f"{self._path}: {error.strerror}", path=self._path, errno=error.errno or 0) from None

    def guard(self, what: int, *, alone: bool) -> None:
        """Return: units of work run one after the other."""

    async def exchange_wakes(self, waiting: Waiting) -> None:
        """Return: no other process uses the database."""

    def close(self) -> None:
        """Merge the journal into the file and close it."""
        if self._reader is not None:
            self._reader.close()
        self._connection.close()

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        """Run the block as a transaction; the callbacks are the caller's to call."""
        try:
            self.run(begin)
            yield
            self.run("COMMIT")
        except BaseException:
            self._callbacks.drop()
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _execute(self, sql: str, parameters: tuple[Any, ...]) -> sqlite3.Cursor:
        thread = threading.get_ident()
        if self._reading == thread:
            return self._read_from.execute(sql, parameters)
        if self._thread not in (None, thread):
            raise RuntimeError("a statement outside of a unit of work, while a long one runs")
        return self._connection.execute(sql, parameters)

    def _require_change(self) -> None:
        if self._reading == threading.get_ident():
            raise RuntimeError("a change in a unit of work that should only read")

    def _failure(self, error: sqlite3.DatabaseError) -> Exception:
        """Return the exception for an SQLite error."""
        if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
            return error  # violated schema or misused library: our bug
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _LOCKED:
            fix = f"end the process that has it open: fuser {self._path}"
            return DatabaseLockedError(f"{self._path}: locked by another process", path=self._path, fix=fix)
        fix = "restore it from a backup"
        if isinstance(error, sqlite3.OperationalError):
            fix = "check free space and permissions"
        number = _ERRNO.get(code, 0)
        return DiskError(f"{self._path}: {error}", path=self._path, errno=number, fix=fix)

    def _refuse_moved(self) -> None:
        """Raise ConfigError if the data have been moved to a server: this copy is out of date."""
        known = self.one("SELECT 1 FROM sqlite_master WHERE name = 'settings'") is not None
        moved = self.setting(MOVED) if known else ""
        if moved:
            raise ConfigError(f"was moved to {moved}", file=self._path, fix="add --database")

    def _prepare(self) -> None:
        """Configure the connection and migrate the schema."""
        pragmas = ["foreign_keys = ON"]
        if not self.read_only:
            pragmas += ["journal_mode = WAL", "synchronous = FULL", "secure_delete = ON"]
        for pragma in pragmas:
            self.run(f"PRAGMA {pragma}")
        version = self.schema_version()
        if version:
            self._refuse_moved()
        scripts = scripts_to_run(version, self._path)
        if scripts and self.read_only:
            what = f"{self._path}: must be migrated and is read-only"
            raise DiskError(what, path=self._path, errno=errno.EROFS, fix="make it writable for one start")
        for number, script in enumerate(scripts, start=version + 1):
            try:
                self._connection.executescript(f"BEGIN IMMEDIATE;{script}PRAGMA user_version = {number};COMMIT;")
            except sqlite3.DatabaseError as error:
                raise self._failure(error) from None


def _reader(path: Path) -> sqlite3.Connection:
    """Return a connection that changes nothing and waits for no lock."""
    connection = sqlite3.connect(path.absolute().as_uri(), isolation_level=None, timeout=0.0, uri=True)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA query_only = ON")
    return connection


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def bytes_of(path: Path) -> int:
    """Return the bytes of a database file and its journal."""
    total = 0
    for suffix in ("", "-wal"):
        with contextlib.suppress(FileNotFoundError):
            total += os.stat(f"{path}{suffix}").st_size
    return total
