"""A real PostgreSQL server on a Unix socket in a temporary directory, run by an unprivileged user."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import attrs

SETTINGS = """
listen_addresses = ''
unix_socket_directories = '{socket}'
fsync = off
full_page_writes = off
autovacuum = off
shared_buffers = 16MB
max_connections = 60
dynamic_shared_memory_type = mmap
"""
EMPTIED = """
SET lock_timeout = '2s'; SET session_replication_role = replica;
DO $$ DECLARE one name; BEGIN
FOR one IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'schema_version' LOOP
EXECUTE 'DELETE FROM ' || quote_ident(one); END LOOP;
FOR one IN SELECT sequencename FROM pg_sequences WHERE schemaname = 'public' LOOP
PERFORM setval(quote_ident(one), 1, false); END LOOP;
END $$
"""
"""Empties all tables, whatever refers to them; TRUNCATE would take several times as long for small tables."""
_ACCOUNTS = ("postgres", "nobody")


def find_program(need: Callable[[str], str], name: str) -> str:
    """Return the path of a program of PostgreSQL; Debian has them in one directory outside of PATH."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    return str(versions[-1] / name) if versions else need(name)


def _become(need: Callable[[str], str]) -> tuple[list[str], pwd.struct_passwd]:
    """Return the words before a command that is not to run as root, and its user: the server refuses root."""
    if os.geteuid() != 0:
        return [], pwd.getpwuid(os.geteuid())
    for name in _ACCOUNTS:
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return [need("setpriv"), f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"], user
    raise AssertionError("no unprivileged account")


@attrs.define
class PostgresServer:
    """One server; `start` it, `stop` it, and create databases in it."""

    root: Path
    user: str
    _command: list[str]
    _psql: list[str]
    _process: subprocess.Popen[bytes] | None = None
    _made: int = 0
    _lent: list[str] = attrs.field(factory=list)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        log = (self.root / "log").open("ab")
        self._process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd="/", start_new_session=True)
        log.close()
        while subprocess.run([*self._psql, "-c", "SELECT 1"], capture_output=True).returncode:
            assert self._process.poll() is None, (self.root / "log").read_text()

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT ends the connections, SIGQUIT is a crash."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait()

    def kill(self) -> None:
        """Send SIGKILL to the server and all of its processes."""
        self._send(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the server and all of its processes in the block: they keep their connections and answer nothing."""
        assert self._process is not None
        try:
            self._process.send_signal(signal.SIGSTOP)  # so that it starts no other process
            self._send(signal.SIGSTOP)
            yield
        finally:
            self._send(signal.SIGCONT)

    def _send(self, signum: signal.Signals) -> None:
        """Send a signal to the server and all of its processes."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for pid in (self._process.pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    def kill_backend(self, pid: int) -> None:
        """Send SIGKILL to one process of the server, which then ends all connections and recovers."""
        assert self._process is not None
        with contextlib.suppress(OSError):
            if int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == self._process.pid:
                os.kill(pid, signal.SIGKILL)

    def database(self) -> str:
        """Create an empty database and return its URL."""
        self._made += 1
        name = f"plane{self._made}"
        self.sql(f"CREATE DATABASE {name}")
        return f"postgresql://{self.user}@/{name}?host={quote(str(self.root), safe='')}"

    @contextlib.contextmanager
    def lent_database(self) -> Iterator[str]:
        """Provide the URL of a database with the tables of this release and without rows, at most.

        The next test gets the same one: to create a database and its tables takes 17 times as long as to empty it. One
        that cannot be emptied, because something still uses it, is left alone.
        """
        url = self._lent.pop() if self._lent else self.database()
        yield url
        name = url.partition("?")[0].rpartition("/")[2]
        if self._run_sql(EMPTIED, name).returncode == 0:
            self._lent.append(url)

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run a statement as the superuser; return what psql prints."""
        done = self._run_sql(statement, database)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def _run_sql(self, statement: str, database: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self._psql, "-d", database, "-c", statement], capture_output=True, text=True)


@contextlib.contextmanager
def postgres_server(need: Callable[[str], str]) -> Iterator[PostgresServer]:
    """Start a server, and remove it in the end."""
    with unprivileged(need) as (root, become):
        options = ["--auth=trust", "--no-sync", "--no-instructions", "--encoding=UTF8", "--username=plane"]
        _run([*become, find_program(need, "initdb"), "-D", root / "data", *options])
        with _started(need, root, become, SETTINGS) as server:
            yield server


@contextlib.contextmanager
def standby_of(need: Callable[[str], str], primary: PostgresServer) -> Iterator[PostgresServer]:
    """Start a standby of a server, and remove it in the end."""
    with unprivileged(need) as (root, become):
        copy(need, primary, root, become)
        with _started(need, root, become) as server:
            yield server


def copy(need: Callable[[str], str], primary: PostgresServer, root: Path, become: Sequence[str] = ()) -> None:
    """Replace the data of a stopped server by a standby's."""
    become = become or _become(need)[0]
    shutil.rmtree(root / "data", ignore_errors=True)
    source = f"host={primary.root} user={primary.user} application_name=standby"
    options: list[str | Path] = [
        "-D",
        root / "data",
        "-d",
        source,
        "--write-recovery-conf",
        "--no-sync",
        "--checkpoint=fast",
    ]
    _run([*become, find_program(need, "pg_basebackup"), *options])
    with (root / "data" / "postgresql.conf").open("a") as settings:
        settings.write(f"unix_socket_directories = '{root}'\n")


@contextlib.contextmanager
def unprivileged(need: Callable[[str], str]) -> Iterator[tuple[Path, list[str]]]:
    """Provide a directory, and the words before commands of the user to whom it belongs."""
    become, user = _become(need)
    root = Path(tempfile.mkdtemp(prefix="pg-"))  # short: the path of a socket has at most 107 bytes
    try:
        shutil.chown(root, user.pw_uid, user.pw_gid)
        root.chmod(0o755)
        yield root, become
    finally:
        shutil.rmtree(root)


def _run(command: Sequence[str | Path]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")


@contextlib.contextmanager
def _started(
    need: Callable[[str], str], root: Path, become: Sequence[str], settings: str = ""
) -> Iterator[PostgresServer]:
    with (root / "data" / "postgresql.conf").open("a") as file:
        file.write(settings.format(socket=root))
    ask = [find_program(need, "psql"), "-h", str(root), "-U", "plane", "-d", "postgres", "-XAtq"]
    server = PostgresServer(root, "plane", [*become, find_program(need, "postgres"), "-D", str(root / "data")], ask)
    server.start()
    try:
        yield server
    finally:
        server.stop()
