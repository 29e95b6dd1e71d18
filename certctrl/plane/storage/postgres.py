"""PostgresDatabase: PostgreSQL 15 or later, for fleets that outgrow one process.

A unit of work is one hop to a worker thread and one READ COMMITTED transaction there: a hop per statement costs more
than the statements. Rows that a unit reads before it changes them are locked (``one_locked``). A unit that loses a race
or its connection before the commit runs again; after that, callers get DatabaseAwayError.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import psycopg
import trio
from psycopg import errors
from psycopg.rows import tuple_row

from certctrl.errors import ConfigError, DiskError
from certctrl.plane.errors import DatabaseAwayError
from certctrl.plane.storage.database import Callbacks, Database, Row, T, Waiting, run_woken_first
from certctrl.plane.storage.postgres_connections import Connection, Connections
from certctrl.plane.storage.postgres_wakes import Wakes, first_line
from certctrl.plane.storage.queue import Queue
from certctrl.plane.storage.schema import postgres_script, scripts_to_run

CONNECTIONS = 8
"""Units of work at a time, each with a connection."""
COMMIT_SECONDS = 10.0
"""Longest wait of a commit for the synchronous standby."""
_OLDEST = 150_000
_ATTEMPTS = 6
_FIRST_PAUSE = 0.005
_MIGRATION_LOCK = 0x63657274  # "cert"
_LOST_RACE = (errors.SerializationFailure, errors.DeadlockDetected, errors.UniqueViolation)
_NO_ROOM = (errors.DiskFull, errors.ReadOnlySqlTransaction)
_AWAY = (psycopg.OperationalError, psycopg.InterfaceError)

log = logging.getLogger("certctrl.Plane")


class PostgresDatabase(Database):
    """A database of a PostgreSQL server; `close` it."""

    engine = "PostgreSQL"

    def __init__(
        self,
        url: str,
        *,
        password: str | None = None,
        listen_url: str = "",
        connections: int = CONNECTIONS,
        migrate: bool = True,
        read_again: Callable[[], tuple[str, str | None]] | None = None,
    ) -> None:
        """Connect, and create or migrate the tables, or with ``migrate`` False only check that there are some.

        ``url`` is a connection URI of libpq; a password in it counts only without ``password``. ``listen_url`` leads to
        the server itself if ``url`` is that of a pooler, whose connections may change with each transaction.
        ``read_again`` returns the current ``url`` and ``password``, whose password new connections use. Raises ConfigError
        for an unusable URL, server or schema, and DatabaseAwayError if the server does not answer.
        """
        super().__init__()
        self.connections = Connections(
            url, password=password, listen_url=listen_url, read_again=read_again, on_notice=self._note_warning
        )
        self.name = self.connections.name
        self._limiter = trio.CapacityLimiter(connections)
        self._queue = Queue()
        self._local = threading.local()
        self._away = False
        self._commits: dict[Connection, float] = {}
        """Commits under way, and when they began."""
        try:
            with self._explained():
                self._prepare(migrate=migrate)
        except BaseException:
            self.close()
            raise

    async def _work(self, unit: Callable[[], T]) -> T:
        """Run the unit in a worker thread, again if it lost a race."""
        return await self._in_thread(unit, reading=False)

    async def _work_read(self, unit: Callable[[], T]) -> T:
        """Run the unit in a worker thread without a transaction, which would cost two round trips."""
        return await self._in_thread(unit, reading=True)

    async def _in_thread(self, unit: Callable[[], T], *, reading: bool) -> T:
        with self._queue.place() as place:
            run = partial(self._run_from, place, unit, reading=reading)
            result, callbacks = await trio.to_thread.run_sync(run, limiter=self._limiter)
        if callbacks.call():
            await run_woken_first()
        return result

    def backlog(self) -> float:
        """Return for how many seconds the next unit of work has been waiting for a connection."""
        return self._queue.longest_wait()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit the block as a whole; see ``Database.transaction``. Outside of units of work, this blocks."""
        if self._connection() is not None:
            yield
            return
        with self._explained():
            with self._transaction() as callbacks:
                yield
        callbacks.call()

    def after_commit(self, callback: Callable[[], object]) -> None:
        """Call back after the commit; see ``Database.after_commit``."""
        self._require_connection()
        self._local.callbacks.add(callback)

    def all(self, sql: str, *parameters: Any) -> list[Row]:
        """Return all rows."""
        rows: list[Any] = self._execute(translated(sql), parameters).fetchall()
        return rows

    def one_locked(self, sql: str, *parameters: Any) -> Row | None:
        """Return the first row, locked; rows that refer to it may still be added."""
        self._require_transaction()
        return self.one(f"{sql} FOR NO KEY UPDATE", *parameters)

    def all_locked(self, sql: str, *parameters: Any) -> list[Row]:
        """Return the rows, locked; rows that refer to them may still be added."""
        self._require_transaction()
        return self.all(f"{sql} FOR NO KEY UPDATE", *parameters)

    def all_unlocked(self, sql: str, *parameters: Any) -> list[Row]:
        """Return rows, skipping those that are locked."""
        self._require_transaction()
        return self.all(f"{sql} FOR UPDATE SKIP LOCKED", *parameters)

    def guard(self, what: int, *, alone: bool) -> None:
        """Wait for a lock; see ``Database.guard``."""
        self._require_transaction()
        self.all(f"SELECT pg_advisory_xact_lock{'' if alone else '_shared'}(?)", what)

    def _run(self, sql: str, parameters: tuple[Any, ...]) -> int:
        """Run a statement; return the number of changed rows."""
        self._require_transaction()
        return self._execute(translated(sql), parameters).rowcount

    def _insert(self, sql: str, parameters: tuple[Any, ...]) -> int:
        """Run an INSERT and return the id of the new row."""
        self._require_transaction()
        row = self._execute(translated(f"{sql} RETURNING id"), parameters).fetchone()
        return 0 if row is None else int(row["id"])

    def schema_version(self) -> int:
        """Return the number of schema scripts that have run."""
        row = self.one("SELECT version FROM schema_version")
        return 0 if row is None else int(row["version"])

    def size(self) -> int:
        """Return the bytes of the database."""
        row = self.one("SELECT pg_database_size(current_database()) AS n")
        return 0 if row is None else int(row["n"])

    def is_read_only(self) -> bool:
        """Return whether the server is a standby, or accepts no changes by its settings."""
        row = self.one("SELECT current_setting('transaction_read_only') AS state")
        return row is not None and row["state"] == "on"

    def copy_in(self, table: str, columns: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> int:
        """Add many rows to a table; return their number."""
        count = 0
        with self._require_connection().cursor() as cursor:
            with cursor.copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN".encode()) as copy:
                for row in rows:
                    copy.write_row([_without_nul(value) for value in row])
                    count += 1
        return count

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read one state of the database in the block."""
        with self.transaction():
            self.run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield

    def each(self, sql: str) -> Iterator[tuple[Any, ...]]:
        """Yield all rows of a large answer, inside a transaction."""
        with self._require_connection().cursor("each", row_factory=tuple_row) as cursor:
            yield from cursor.execute(sql.encode())

    def other_planes(self) -> int:
        """Return the number of other connections that control planes have to this database.

        Their URLs may give them other names, but they have the same user.
        """
        row = self.one(
            "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database()"
            " AND (application_name = ? OR usename = current_user) AND pid <> pg_backend_pid()",
            self.connections.application,
        )
        return 0 if row is None else int(row["n"])

    async def exchange_wakes(self, waiting: Waiting) -> None:
        """Exchange wakes with the other planes; see ``Database.exchange_wakes``."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_long_commits)
            nursery.start_soon(Wakes(self, self.connections.open_to_listen, waiting).run)

    def close(self) -> None:
        """Close the connections that no unit uses."""
        self.connections.close()

    # --- one transaction ------------------------------------------------------------------------------------------

    def _run_from(self, place: object, unit: Callable[[], T], *, reading: bool) -> tuple[T, Callbacks]:
        self._queue.leave(place)
        return self._repeated(unit, reading=reading)

    def _repeated(self, unit: Callable[[], T], *, reading: bool) -> tuple[T, Callbacks]:
        """Return the result and the callbacks of a unit that has been committed."""
        with self._explained():
            for attempt in range(1, _ATTEMPTS):
                try:
                    return self._once(unit, reading=reading)
                except _LOST_RACE:
                    time.sleep(random.uniform(0, _FIRST_PAUSE * 2**attempt))
                except _AWAY as error:
                    if isinstance(error, _NO_ROOM) or attempt > 1:
                        raise
                    self.close()  # a server that was restarted has closed all of them
            return self._once(unit, reading=reading)

    def _once(self, unit: Callable[[], T], *, reading: bool) -> tuple[T, Callbacks]:
        with self._transaction(reading=reading) as callbacks:
            result = unit()
        return result, callbacks

    @contextlib.contextmanager
    def _transaction(self, *, reading: bool = False) -> Iterator[Callbacks]:
        """Run the block with a connection of this thread, and commit; the callbacks are the caller's to call.

        A block that is ``reading`` runs without a transaction, and must not change anything.
        """
        connection, callbacks = self.connections.take(), Callbacks()
        if connection.autocommit != reading:
            connection.autocommit = reading
        self._local.connection, self._local.callbacks = connection, callbacks
        try:
            try:
                yield callbacks
            finally:
                self._local.connection = None
            if not reading:
                self._commit(connection)
        except BaseException:
            with contextlib.suppress(psycopg.Error):
                connection.rollback()
            raise
        finally:
            self.connections.give_back(connection)

    def _commit(self, connection: Connection) -> None:
        """Commit; raises DatabaseAwayError if that may be stored or not, or only here: it must not be repeated here."""
        self._local.warned, self._commits[connection] = False, time.monotonic()
        try:
            connection.commit()
        except _LOST_RACE:
            raise
        except _AWAY as error:
            raise DatabaseAwayError(f"{self.name}: lost the connection during a commit") from error
        finally:
            del self._commits[connection]
        if self._local.warned:  # a commit that no longer waits for its standby succeeds with a warning
            what = f"{self.name}: no synchronous standby has confirmed a commit"
            raise DatabaseAwayError(what, fix="check the standby and pg_stat_replication")

    def _note_warning(self, notice: errors.Diagnostic) -> None:
        self._local.warned = notice.severity_nonlocalized == "WARNING"

    async def _end_long_commits(self) -> None:
        """End the wait of commits for a standby that is away, forever: PostgreSQL's time limits leave them alone."""
        while True:
            await trio.sleep(1)
            for connection, since in self._commits.copy().items():
                if time.monotonic() - since >= COMMIT_SECONDS:
                    with contextlib.suppress(psycopg.Error):
                        await trio.to_thread.run_sync(connection.cancel_safe, abandon_on_cancel=True)

    def _connection(self) -> Connection | None:
        return getattr(self._local, "connection", None)

    def _require_connection(self) -> Connection:
        connection = self._connection()
        if connection is None:
            raise RuntimeError("a statement outside of a unit of work")
        return connection

    def _require_transaction(self) -> None:
        if self._require_connection().autocommit:
            raise RuntimeError("a change or a lock in a unit of work that should only read")

    def _execute(self, sql: Any, parameters: tuple[Any, ...]) -> psycopg.Cursor[dict[str, Any]]:
        return self._require_connection().execute(sql, tuple(_without_nul(value) for value in parameters))

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn exceptions of the server into those of ``Database``, and log when it goes away and returns."""
        try:
            yield
        except _NO_ROOM as error:
            number = errno.ENOSPC if isinstance(error, errors.DiskFull) else errno.EROFS
            what = f"{self.name}: {first_line(error)}"
            raise DiskError(what, path=self.name, errno=number, fix="check the server") from None
        except (*_AWAY, errors.SerializationFailure, errors.DeadlockDetected) as error:
            failure = DatabaseAwayError(f"{self.name}: {first_line(error)}", fix="check the server and its log")
            self._note_away(failure)
            raise failure from None
        except DatabaseAwayError as failure:
            self._note_away(failure)
            raise
        if self._away:
            self._away = False
            log.warning("database %s answers again", self.name)

    def _note_away(self, failure: DatabaseAwayError) -> None:
        if not self._away:
            self._away = True
            log.error("database does not answer: %s", failure)

    # --- the schema -----------------------------------------------------------------------------------------------

    def _prepare(self, *, migrate: bool) -> None:
        """Migrate the schema, one plane at a time."""
        with self._transaction():
            server = self._require_connection().info.server_version
            if server < _OLDEST:
                raise ConfigError(
                    f"the server is PostgreSQL {server // 10_000}", file=self.name, fix="use PostgreSQL 15 or later"
                )
            if not migrate:
                if not self._has_schema():
                    raise ConfigError("contains no control plane", file=self.name, fix="check --database")
                return
            try:
                self._migrate()
            except errors.InsufficientPrivilege as error:
                raise ConfigError(
                    first_line(error), file=self.name, fix="let this user create tables: make it the database's owner"
                ) from None

    def _has_schema(self) -> bool:
        row = self.one("SELECT to_regclass('schema_version') IS NOT NULL AS known")
        return row is not None and bool(row["known"])

    def _migrate(self) -> None:
        if self._has_schema() and not scripts_to_run(self.schema_version(), self.name):
            return  # the usual start needs no lock and no write
        self.one("SELECT pg_advisory_xact_lock(?)", _MIGRATION_LOCK)
        self.run("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)")
        version = self.schema_version()
        scripts = scripts_to_run(version, self.name)
        for script in scripts:
            self._require_connection().execute(postgres_script(script).encode())
        if scripts:
            self.run("DELETE FROM schema_version")
            self.run("INSERT INTO schema_version VALUES (?)", version + len(scripts))


@lru_cache(maxsize=1024)
def translated(sql: str) -> bytes:
    """Return a statement with the placeholders of psycopg; our statements contain no quoted question marks."""
    return sql.replace("%", "%%").replace("?", "%s").encode()


def _without_nul(value: Any) -> Any:
    """Return a value that PostgreSQL can store: its texts contain no NUL."""
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value
