"""A small fleet for tests: real planes, daemons and TLS services, each a separate process on loopback."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import trio

from certctrl.agent.clock import wall_now
from certctrl.agent.register import register
from certctrl.agent.token_claims import read_claims
from certctrl.cli.control import ask
from certctrl.model.config import AgentConfig, ApplicationConfig, HttpClientConfig
from certctrl.net.control_plane import ControlPlane
from certctrl.net.transport import HttpcoreHttp
from certctrl.sandbox.servers import HOST, Server, choose_server
from certctrl.store.config.files import init_config_dir
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.session import SessionState
from certctrl.store.state.store import StateStore

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROGRAM = (sys.executable, "-m", "certctrl")
USER = 1
PATIENCE = float(os.environ.get("CERTCTRL_TEST_PATIENCE") or 60)
"""Longest wait for a condition, in seconds; measures nothing."""

T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str, seconds: float = PATIENCE) -> T:
    """Return the first true value of ``condition``. Raises AssertionError naming ``what`` if there is none in time."""
    until = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < until, f"waited {seconds:g} s for {what}"
        time.sleep(0.01)


def clean_environment(**extra: str) -> dict[str, str]:
    """Return this environment with ``extra`` and without variables that configure the program."""
    ours = {
        name: text for name, text in os.environ.items() if not name.startswith(("CERTCTRL_", "NOTIFY_", "WATCHDOG_"))
    }
    return ours | {"PYTHONPATH": str(ROOT)} | extra


class Child:
    """One process in its own session; its output goes to a file."""

    def __init__(
        self,
        argv: Sequence[str | Path],
        log: Path,
        *,
        stdin: int = subprocess.DEVNULL,
        passed: Collection[int] = (),
        **extra: str,
    ) -> None:
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [str(word) for word in argv], cwd=ROOT, env=clean_environment(**extra),
                stdin=stdin, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, pass_fds=passed,
            )  # fmt: skip
        self.pid = self.process.pid

    @property
    def text(self) -> str:
        """Everything it has printed."""
        return self.log.read_text(errors="replace")

    @property
    def running(self) -> bool:
        """Whether it is running."""
        return self.process.poll() is None

    def says(self, *texts: str, count: int = 1) -> None:
        """Wait until it has printed each text at least ``count`` times. Raises AssertionError if it ends before."""

        def said() -> bool:
            alive, printed = self.running, self.text
            if all(printed.count(text) >= count for text in texts):
                return True
            assert alive, f"ended with {self.process.returncode} before saying {texts}:\n{printed}"
            return False

        try:
            wait_for(said, repr(texts))
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.text}") from None

    def send(self, signum: int) -> None:
        """Send an OS signal."""
        self.process.send_signal(signum)

    def wait(self, seconds: float = PATIENCE) -> int:
        """Wait for its end and return its exit status, negative after an OS signal."""
        return self.process.wait(seconds)

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Send an OS signal and return its exit status."""
        if self.running:
            self.send(signum)
        return self.wait()

    def kill(self) -> None:
        """Send it SIGKILL and reap it; its children stay until `close`."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End it and every process that it left in its process group, such as the workers of a killed nginx."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()


class Operator:
    """The plane's operator API, one connection per call; safe in threads."""

    def __init__(self, url: str, ca: Path, key: str) -> None:
        self._address = urlsplit(url).netloc
        self._context = ssl.create_default_context(cafile=str(ca))
        self._headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Return ``data`` of the answer. Raises AssertionError for an error answer, OSError without one."""
        connection = http.client.HTTPSConnection(self._address, timeout=30, context=self._context)
        with contextlib.closing(connection):
            connection.request(method, path, None if body is None else json.dumps(body), self._headers)
            answer = connection.getresponse()
            text = answer.read()
            assert answer.status < 300, f"{method} {path}: {answer.status} {text!r}"
        return json.loads(text)["data"] if text else None

    def issue(self, domain: str, *device_ids: int, **fields: object) -> dict[str, Any]:
        """Issue a certificate and assign it to devices."""
        body = {"domain_name": domain, "device_ids": list(device_ids), **fields}
        return dict(self.call("POST", f"/apiv1/users/{USER}/certificates", body))

    def renew(self, cert_id: int) -> None:
        """Renew a certificate; `serial` returns the new serial."""
        self.call("POST", f"/apiv1/users/{USER}/certificates/{cert_id}/issues", {"action": "renew"})

    def serial(self, cert_id: int) -> str:
        """Return the serial of the newest certificate."""
        return str(self.call("GET", f"/apiv1/users/{USER}/certificates/{cert_id}")["serial_number"])

    def assigned(self, device_id: int) -> dict[int, str]:
        """Return certificate id -> newest serial of the certificates assigned to a device."""
        rows = self.call("GET", f"/apiv1/users/{USER}/devices/{device_id}/certificates")
        return {row["id"]: row["serial_number"] for row in rows if row["status"] == "active"}

    def outcomes(self, device_id: int) -> list[dict[str, Any]]:
        """Return the outcomes that a device has reported, newest first."""
        return list(self.call("GET", f"/apiv1/users/{USER}/devices/{device_id}/outcomes?limit=1000"))

    def put_items(self, device_id: int, items: Sequence[Mapping[str, Any]]) -> None:
        """Replace a device's install items."""
        self.call("PUT", f"/apiv1/users/{USER}/devices/{device_id}/install-config", {"installs": list(items)})

    def enrolment_token(self) -> str:
        """Return an enrolment token without a limit of uses."""
        return str(self.call("POST", f"/apiv1/users/{USER}/enrolment-tokens", {"uses": None})["token"])


class Entrance(Protocol):
    """What agents connect to: a plane, or a proxy before it."""

    url: str
    operator: Operator

    @property
    def ca(self) -> Path:
        """The CA file for agents."""


class Plane:
    """`cert-ctrl plane serve` on one port, across stops and kills."""

    def __init__(self, fleet: Fleet, settings: Mapping[str, Any]) -> None:
        self._fleet, self._settings, self._starts, self._port = fleet, settings, 0, 0
        self.data = fleet.root / "plane"
        self.start()
        key = (self.data / "operator.key").read_text().strip()
        self.operator = Operator(self.url, self.ca, key)

    @property
    def ca(self) -> Path:
        """The CA file for agents."""
        return self.data / "ca.pem"

    @property
    def issuing_ca(self) -> Path:
        """The CA file for clients of services."""
        return self.data / "issuing-ca.pem"

    def start(self) -> None:
        """Start it on its port and wait until it serves."""
        listen = f"{HOST}:{self._port}"
        argv: list[str | Path] = [*PROGRAM, "plane", "serve", "--data", self.data, "--listen", listen]
        if self._settings:
            argv = [sys.executable, HERE / "plane_process.py", self.data, listen, json.dumps(self._settings)]
        self._starts += 1
        self.child = self._fleet.child(argv, f"plane.{self._starts}.log")
        self.child.says("operator key")
        self.url = (self.data / "address").read_text().strip()
        self._port = int(self.url.rpartition(":")[2])


class Agent:
    """One config directory and its daemon."""

    def __init__(self, fleet: Fleet, plane: Entrance, name: str) -> None:
        self._fleet, self.plane, self.name, self._starts = fleet, plane, name, 0
        self.layout = ConfigDir(fleet.root / name)
        self.device_id = 0

    def configure(self, section: str = "application.json", **settings: object) -> None:
        """Merge settings into a configuration file."""
        path = self.layout.root / section
        path.write_text(json.dumps(json.loads(path.read_text()) | settings), encoding="utf-8")

    def enrol(self, token: str) -> None:
        """Register with the plane as `cert-ctrl register` does."""
        init_config_dir(RealFs(), self.layout, server_url=self.plane.url, ca_pem=self.plane.ca.read_bytes())
        self.device_id = trio.run(_register, self.layout, self.plane, self.name, token)

    def moved_to(self, root: Path) -> None:
        """Move the config directory as an operator does: copy it with its links, remove the old one."""
        shutil.copytree(self.layout.root, root, symlinks=True)
        shutil.rmtree(self.layout.root)
        self.layout = ConfigDir(root)

    def start(self, *options: str, ready: bool = True, **extra: Any) -> Child:
        """Start the daemon; ``ready`` waits for its log line."""
        self._starts += 1
        argv = [*PROGRAM, *options, "-c", str(self.layout.root), "--keep-running"]
        self.daemon = self._fleet.child(argv, f"{self.name}.{self._starts}.log", **extra)
        if ready:
            self.daemon.says("Ready: poll mode")
        return self.daemon

    def cli(self, *words: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run a one-shot command until it ends."""
        return run_cli("-c", str(self.layout.root), *words, **extra)

    def serials(self) -> dict[int, str]:
        """Return certificate id -> serial of the live certificates, from the files that services read."""
        return {record.cert_id: served(self.layout, record.name)
                for record in self.state.installed.load_certificates().values() if record.generation}  # fmt: skip

    @property
    def state(self) -> StateStore:
        """A newly opened store of its state directory."""
        return StateStore(self.layout, RealFs())

    def outlives_its_token(self) -> None:
        """Wait until the access token has expired."""
        tokens = self.state.session.load_tokens()
        assert tokens is not None
        expires_at = read_claims(tokens.access_token).expires_at or 0.0
        wait_for(lambda: wall_now() > expires_at, "the access token to expire")

    def caught_up(self) -> bool:
        """Return whether the live certificates are those of the plane."""
        return self.serials() == self.plane.operator.assigned(self.device_id)

    def catches_up(self) -> None:
        """Wait until the live certificates are those of the plane."""
        wait_for(self.caught_up, f"{self.name} to have the plane's certificates")

    def has_reported_all(self) -> bool:
        """Return whether every outcome has been reported, according to the daemon: the disk is updated later."""
        reply = ask(self.layout, "status", seconds=PATIENCE)
        return reply is not None and reply.data["acks_pending"] == 0

    def acked(self, serial: str) -> bool:
        """Return whether a serial was reported as deployed (and as served, where that is verified)."""
        reported = [row for outcome in self.plane.operator.outcomes(self.device_id) for row in outcome["deployed"]]
        return serial in {row["serial"] for row in reported}


def served(layout: ConfigDir, name: str) -> str:
    """Return the serial of ``certs/<name>.crt`` in the plane's form; empty without the file."""
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificate((layout.certs / f"{name}.crt").read_bytes())
    except FileNotFoundError:
        return ""
    digits = f"{certificate.serial_number:x}"
    return bytes.fromhex(digits.zfill(len(digits) + len(digits) % 2)).hex(":")


async def _register(layout: ConfigDir, plane: Entrance, name: str, token: str) -> int:
    config = AgentConfig(
        application=ApplicationConfig(server_url=plane.url, name=name),
        httpclient=HttpClientConfig(ca_files=(str(plane.ca),)),
    )
    http_client = HttpcoreHttp(config, root=layout.root)
    try:
        done = await register(
            layout, SessionState(layout, RealFs()), ControlPlane(http_client, config, wall_now=wall_now), config,
            enrolment_token=token, show=print, wall_now=wall_now,
        )  # fmt: skip
        return int(done.device_id)
    finally:
        await http_client.aclose()


def run_cli(*words: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run `cert-ctrl` until it ends, with text output."""
    argv = [*PROGRAM, *map(str, words)]
    return subprocess.run(
        argv, cwd=ROOT, env=clean_environment(**extra), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=10 * PATIENCE, check=False,
    )  # fmt: skip


def command_lines() -> Iterator[tuple[int, str]]:
    """Yield pid and command line of every process except this one."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # it has just ended
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                yield int(entry.name), command


def processes_naming(text: str) -> list[str]:
    """Return the command lines of all processes that mention a text."""
    return [command for _, command in command_lines() if text in command]


def sessions_naming(text: str) -> set[int]:
    """Return the sessions of all processes whose command line mentions a text."""
    return {session_of(pid) for pid, command in command_lines() if text in command}


def processes_in(sessions: Collection[int]) -> list[str]:
    """Return the command lines of all processes in some sessions; a worker of nginx names no path in its own."""
    return [command for pid, command in command_lines() if session_of(pid) in sessions]


def session_of(pid: int) -> int:
    """Return the session of a process; 0 when it has just ended."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


class Service:
    """A real TLS service, nginx or the built-in one, that reads the agent's ``certs/``."""

    def __init__(self, fleet: Fleet, server: Server) -> None:
        self.server = server
        self.child = fleet.child(server.argv, f"{server.folder.name}.log", stdin=subprocess.PIPE)
        wait_for(self._accepts, f"{server.kind} to accept connections")

    def _accepts(self) -> bool:
        assert self.child.running, self.child.text
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.server.port), timeout=5):
            return True
        return False


class Fleet:
    """All processes of a test; closing the fleet ends them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._children: list[Child] = []
        self._tokens: dict[str, str] = {}

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for child in reversed(self._children):
            child.close()

    def child(
        self,
        argv: Sequence[str | Path],
        log: str,
        *,
        stdin: int = subprocess.DEVNULL,
        passed: Collection[int] = (),
        **extra: str,
    ) -> Child:
        """Start a process that ends with the fleet; it inherits the descriptors ``passed``."""
        started = Child(argv, self.root / log, stdin=stdin, passed=passed, **extra)
        self._children.append(started)
        return started

    def plane(self, **settings: object) -> Plane:
        """Start a plane: the command line itself, or with `PlaneSettings` the same code in `plane_process.py`."""
        return Plane(self, settings)

    def agent(self, plane: Entrance, name: str = "agent", **settings: object) -> Agent:
        """Make a registered agent with short intervals; ``settings`` go into its application.json."""
        made = Agent(self, plane, name)
        if plane.url not in self._tokens:
            self._tokens[plane.url] = plane.operator.enrolment_token()
        made.enrol(self._tokens[plane.url])
        hasty: dict[str, Any] = {
            "poll_mode": "long-poll",
            "poll_interval_ms": 50,
            "first_poll_spread_seconds": 0,
            "debounce_ms": 0,
        }
        made.configure(**hasty | settings)
        return made

    def service(self, kind: str, agent: Agent, names: list[str]) -> Service:
        """Start a TLS service for certificates of the agent."""
        return Service(self, choose_server(kind, self.root / f"service-{kind}-{agent.name}", agent.layout.certs, names))
