"""The rig of the fleet: a served plane with N devices, its floors and the herd, as processes that end with the block."""

from __future__ import annotations

import contextlib
import http.client
import json
import resource
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import trio
from measure import Usage, percentile
from nacl.public import PrivateKey

from certctrl.plane.core import Plane
from certctrl.plane.devices.devices import FIRST_USER, DeviceFacts
from certctrl.plane.settings import DAY, PlaneSettings

HERE = Path(__file__).resolve().parent
PROGRAM = (sys.executable, "-m", "certctrl", "plane")
QUIET_SECONDS = 0.5
PATIENCE = 600.0


def allow_files() -> None:
    """Let this process and its children open as many files as the machine allows."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@attrs.define(eq=False)
class Fleet:
    """The data of a plane with devices that all have one certificate."""

    data: Path
    tokens: Path
    devices: list[int]
    cert_id: int


def make_fleet(data: Path, count: int) -> Fleet:
    """Make a plane's data directory; the tokens of its devices outlive the run."""
    settings = PlaneSettings(access_token_seconds=DAY)
    key = bytes(PrivateKey.generate().public_key)
    with Plane.open(data, settings=settings) as plane:
        devices, tokens = [], []
        with plane.database.transaction():
            for number in range(count):
                facts = DeviceFacts(device_public_id=f"bench-{number:05}", name=f"host-{number:05}")
                device_id = plane.devices.add(FIRST_USER, facts)
                plane.devices.activate(device_id, facts, key)
                devices.append(device_id)
                tokens.append(plane.sessions.start(device_id)["access_token"])

        async def issue() -> int:
            made = await plane.certificates.issue(FIRST_USER, ["wave.bench.test"], device_ids=devices)
            return int(made["id"])

        cert_id = trio.run(issue)
    (data.parent / "tokens").write_text("\n".join(tokens))
    return Fleet(data, data.parent / "tokens", devices, cert_id)


@attrs.define(eq=False)
class Server:
    """A running server: the plane or a floor."""

    process: subprocess.Popen[str]
    port: int
    ca: Path
    key: str = ""

    def usage(self) -> Usage:
        """Return the resources that it and its workers have used."""
        return Usage.of_all([self.process.pid, *self.workers()])

    def processor_seconds(self) -> list[float]:
        """Return the processor time of each worker; of the process itself if it has none."""
        return [Usage.of(pid).total for pid in self.workers() or [self.process.pid]]

    def workers(self) -> list[int]:
        """Return the ids of its child processes."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]

    def wait_quiet(self) -> None:
        """Wait until it has nothing to do: then all polls that were sent are held."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            before = self.usage().cpu
            time.sleep(QUIET_SECONDS)
            if self.usage().cpu - before < 0.1 * QUIET_SECONDS:
                return
        raise SystemExit("bench: the server is never quiet")

    def operator(self) -> Operator:
        """Return a new connection."""
        return Operator(self)


class Operator:
    """One kept connection with the operator key."""

    def __init__(self, server: Server) -> None:
        context = ssl.create_default_context(cafile=str(server.ca))
        context.check_hostname = False
        self._connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=PATIENCE, context=context)
        self._headers = {"authorization": f"Bearer {server.key}", "content-type": "application/json"}

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Return the answer's JSON."""
        self.begin(method, path, body)
        return self.answer()

    def begin(self, method: str, path: str, body: Any = None) -> None:
        """Send a request."""
        self._begun = f"{method} {path}"
        self._connection.request(method, path, None if body is None else json.dumps(body), self._headers)

    def answer(self) -> Any:
        """Return the JSON of the answer to the request begun."""
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise SystemExit(f"bench: {self._begun}: {answer.status} {text[:200]!r}")
        return json.loads(text) if text else None

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


@contextlib.contextmanager
def served_plane(
    fleet: Fleet, *options: str, port: int = 0, workers: int = 1, program: Sequence[str] = PROGRAM
) -> Iterator[Server]:
    """Serve the plane of a fleet; several workers need a database in ``options``."""
    options += ("--workers", str(workers)) if workers > 1 else ()
    argv = [*program, "serve", "--data", str(fleet.data), "--listen", f"127.0.0.1:{port}", "--json", *options]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = ""
            while not address:
                line = process.stdout.readline()
                if not line:
                    raise SystemExit("bench: the plane does not start")
                address = json.loads(line)["url"]
            key = (fleet.data / "operator.key").read_text().strip()
            server = Server(process, int(address.rpartition(":")[2]), fleet.data / "ca.pem", key)
            _await_workers(server, workers)
            yield server
        finally:
            _end(process)


def _await_workers(server: Server, workers: int) -> None:
    """Wait until all workers have noted in the database that they serve."""
    end = time.monotonic() + PATIENCE
    while workers > 1:
        operator = server.operator()
        serving = operator.call("GET", "/apiv1/plane/status")["data"]["database"]["planes"]
        operator.close()
        if sum(plane["running"] for plane in serving) >= workers:
            return
        if time.monotonic() > end:
            raise SystemExit("bench: not all workers serve")
        time.sleep(0.2)


@contextlib.contextmanager
def served_floor(kind: str, fleet: Fleet) -> Iterator[Server]:
    """Run a floor, with the certificate of the plane."""
    files = {"cert": "tls.pem", "key": "tls.key", "database": f"{kind}.db"}
    facts = json.dumps({name: str(fleet.data / file) for name, file in files.items()})
    argv = [sys.executable, str(HERE / "fleet_floors.py"), kind, facts]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Server(process, int(process.stdout.readline()), fleet.data / "ca.pem")
        finally:
            _end(process)


@attrs.define(eq=False)
class Herd:
    """A running `herd.py`."""

    process: subprocess.Popen[str]

    def obey(self, op: str, **order: Any) -> dict[str, Any]:
        """Send an order and return its answer."""
        self.begin(op, **order)
        return self.answer()

    def begin(self, op: str, **order: Any) -> None:
        """Send an order."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"op": op, **order}) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Return the answer to the order begun."""
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))


@contextlib.contextmanager
def running_herd(
    server: Server, tokens: Path, count: int, first: int = 0, *, program: str = "herd.py"
) -> Iterator[Herd]:
    """Run agents, from the first one on, for a server; they connect when they are told to."""
    files = {"ca": str(server.ca), "tokens": str(tokens)}
    facts = json.dumps({"port": server.port, "first": first, "count": count, **files})
    argv = [sys.executable, str(HERE / program), facts]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Herd(process)
        finally:
            _end(process, signal.SIGKILL)


class Prober:
    """Calls a path again and again in a thread, and keeps how long each call took."""

    def __init__(self, server: Server, path: str, *, fresh: bool = False, pause: float = 0.05) -> None:
        self.seconds: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(server, path, fresh, pause), daemon=True)
        self._thread.start()

    def _run(self, server: Server, path: str, fresh: bool, pause: float) -> None:
        operator = server.operator()
        while not self._ended.wait(pause):
            began = time.monotonic()
            if fresh:
                operator = server.operator()
            operator.call("GET", path)
            self.seconds.append(time.monotonic() - began)

    def end(self) -> tuple[float, float]:
        """Stop; return the median and the 99th percentile in seconds."""
        self._ended.set()
        self._thread.join()
        return percentile(self.seconds, 0.5), percentile(self.seconds, 0.99)


@contextlib.contextmanager
def postgres() -> Iterator[Any]:
    """Run a PostgreSQL server; None if it is not installed."""
    sys.path.insert(0, str(HERE.parent / "plane"))
    import postgres_server

    if shutil.which("initdb") is None and not list(Path("/usr/lib/postgresql").glob("*/bin")):
        yield None
        return

    def need(name: str) -> str:
        found = shutil.which(name)
        if found is None:
            raise SystemExit(f"bench: {name} is not installed")
        return found

    with postgres_server.postgres_server(need) as server:
        yield server


def move_to(fleet: Fleet, url: str, data: Path) -> Fleet:
    """Return a copy of the fleet whose data are on a PostgreSQL server."""
    shutil.copytree(fleet.data, data)
    subprocess.run([*PROGRAM, "migrate-to", "--data", str(data), url], check=True, stdout=subprocess.DEVNULL)
    return Fleet(data, fleet.tokens, fleet.devices, fleet.cert_id)


def _end(process: subprocess.Popen[str], signum: int = signal.SIGTERM) -> None:
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    process.send_signal(signum)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
