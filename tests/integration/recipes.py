"""The recipes of deploy/services/ under test: their files, a private instance of the service, plane and agent.

The paths in the files are replaced as docs/services/README.md says. Only commands that use systemd are
replaced by a direct form (`Recipe.commands`).
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from cryptography import x509
from fleet import ROOT, Agent, Child, Fleet, Plane, wait_for
from load_client import Line

from certctrl.model.records import Retry
from certctrl.sandbox.servers import HOST, free_port
from certctrl.sandbox.witness import plain_serial

SERVICES = ROOT / "deploy" / "services"
HELPERS = "/usr/local/lib/cert-ctrl"
CONFIG_DIR = "/etc/cert-ctrl"
SPOIL = 'if [ -d "$1" ]; then cp "$1"/* "$2"/; fi; shift 2; exec "$@"'
"""Replaces staged files, as a failing disk might, before the recipe's check runs."""


@contextlib.contextmanager
def open_place() -> Iterator[Path]:
    """Make a directory that other users may enter, unlike pytest's, with the helpers installed."""
    place = Path(tempfile.mkdtemp(prefix="certctrl-service-"))
    try:
        place.chmod(0o755)
        shutil.copytree(SERVICES / "lib", place / "lib")
        for helper in (place / "lib").iterdir():
            helper.chmod(0o755)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@attrs.define(kw_only=True)
class Recipe:
    """The files of one recipe, with the paths of this test."""

    name: str
    place: Path
    kind: str = "https"
    """The protocol for `load_client`."""
    port: int = attrs.field(factory=free_port)
    domain: str = "www.example.com"
    places: dict[str, str] = attrs.field(factory=dict)
    """Text in the files -> replacement."""
    local: bool = False
    """Whether the items are in installs.local.json instead of at the plane."""
    commands: dict[str, Sequence[str]] = attrs.field(factory=dict)
    """Name of a command -> its argv without systemd."""
    stop: Sequence[str] = ()
    """Command that stops a service which a signal does not stop."""

    def text(self, file: str) -> str:
        """Return the text of a file of the recipe."""
        return self._placed((SERVICES / self.name / file).read_text(encoding="utf-8"))

    def write(self, file: str, to: Path) -> Path:
        """Write a file of the recipe to the path that its service reads."""
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(self.text(file), encoding="utf-8")
        return to

    def items(self) -> list[dict[str, Any]]:
        """Return the install items."""
        items: list[dict[str, Any]] = json.loads(self.text("items.json"))
        for item in items:
            if item.get("verify", {}).get("type") == "tls":
                item["verify"]["port"] = self.port
        return items

    def policy(self) -> dict[str, Any]:
        """Return the policy with its commands in their direct form."""
        policy: dict[str, Any] = json.loads(self.text("policy.json"))
        for name, argv in self.commands.items():
            assert name in policy["commands"]
            policy["commands"][name]["argv"] = list(argv)
        systemd = [name for name, one in policy["commands"].items() if "systemctl" in one["argv"][0]]
        assert not systemd, f"commands without a direct form: {systemd}"
        return policy

    def check_argv(self, staged: Path) -> list[str]:
        """Return the recipe's check for a directory."""
        name = next(item["check"][0] for item in self.items() if "check" in item)
        return [word.replace("{staged}", str(staged)) for word in self.policy()["commands"][name]["argv"]]

    def _placed(self, text: str) -> str:
        here = {HELPERS: str(self.place / "lib")} | self.places
        for there in sorted(here, key=len, reverse=True):
            text = text.replace(there, here[there])
        return text


class Trial:
    """One recipe with its agent, its certificate and its service."""

    service: Child
    cert_id: int

    def __init__(self, fleet: Fleet, plane: Plane, recipe: Recipe) -> None:
        self.recipe, self.plane, self._fleet = recipe, plane, fleet
        self.spoiled = recipe.place / "spoiled"
        # a long-poll would delay the reports
        name = f"{recipe.name}-{recipe.port}"
        self.agent: Agent = fleet.agent(plane, name, poll_mode="interval", poll_interval_ms=100)
        recipe.places[CONFIG_DIR] = str(self.agent.layout.root)

    def begin(self, start: Callable[[Trial], Sequence[str | Path]]) -> None:
        """Deliver a first certificate, start the service, and wait until it is served."""
        operator = self.plane.operator
        self._allow()
        if self.recipe.local:
            self.agent.layout.local_installs.write_text(json.dumps(self.recipe.items()), encoding="utf-8")
        else:
            operator.put_items(self.agent.device_id, self.recipe.items())
        self.agent.start()
        self.cert_id = int(operator.issue(self.recipe.domain, self.agent.device_id)["id"])
        # there is no service yet: the files are deployed, the reload fails
        self.wait_for(lambda: self._record() is not None and self._record().failing, "the first delivery")
        self._start = start
        self.start()
        self.apply()
        self.sees(operator.serial(self.cert_id))

    def start(self) -> None:
        """Start the service and wait until it answers."""
        self.launch()
        wait_for(self._accepts, f"{self.recipe.name} to accept connections")

    def launch(self) -> Child:
        """Start the service without waiting for it."""
        self.service = self._fleet.child(self._start(self), f"{self.agent.name}.service.log")
        return self.service

    def stop(self) -> None:
        """Stop the service."""
        if self.recipe.stop:
            subprocess.run(self.recipe.stop, timeout=60, check=False)
        self.service.stop()

    def apply(self) -> None:
        """Have the agent retry immediately."""
        done = self.agent.cli("apply", "--now")
        assert done.returncode == 0, done.stdout + done.stderr

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        try:
            wait_for(condition, what)
        except AssertionError as error:
            lines = [line for line in self.agent.daemon.text.splitlines() if "[Poll]" not in line]
            raise AssertionError(f"{error}; the agent's log:\n" + "\n".join(lines[-40:])) from None

    def _allow(self) -> None:
        policy = self.recipe.policy()
        check = next(item["check"][0] for item in self.recipe.items() if "check" in item)
        argv = policy["commands"][check]["argv"]
        policy["commands"][check]["argv"] = ["/bin/sh", "-c", SPOIL, "spoil", str(self.spoiled), "{staged}", *argv]
        self.agent.layout.policy.write_text(json.dumps(policy), encoding="utf-8")

    def _record(self) -> Any:
        return self.agent.state.installed.load_certificates().get(self.cert_id)

    def _accepts(self) -> bool:
        assert self.service.running, self.service.text
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.recipe.port), timeout=5):
            return True
        return False

    def close(self) -> None:
        """Stop the agent, then the service, even if the agent does not stop."""
        try:
            if hasattr(self.agent, "daemon"):
                self.agent.daemon.stop()
        finally:
            if hasattr(self, "service"):
                self.stop()

    @contextlib.contextmanager
    def spoilt(self, files: Mapping[str, bytes]) -> Iterator[None]:
        """Replace staged files during the block, before the recipe's check runs."""
        self.spoiled.mkdir()
        try:
            for name, data in files.items():
                (self.spoiled / name).write_bytes(data)
            yield
        finally:
            shutil.rmtree(self.spoiled)

    @contextlib.contextmanager
    def impatient(self) -> Iterator[None]:
        """Shorten the agent's probes during the block; failures are retried at its end."""
        self._configure(verify_timeout_seconds=3.0)
        try:
            yield
        finally:
            self._configure(verify_timeout_seconds=15.0)

    def _configure(self, **settings: Any) -> None:
        daemon, reported = self.agent.daemon, "Compared with the plane"
        before = daemon.text.count(reported)
        self.agent.configure(**settings)
        daemon.send(signal.SIGHUP)
        daemon.says(reported, count=before + 1)  # a new configuration ends with a resync

    @contextlib.contextmanager
    def allowing(self, **settings: object) -> Iterator[None]:
        """Change the host's policy during the block."""
        text = self.agent.layout.policy.read_text(encoding="utf-8")
        self.agent.layout.policy.write_text(json.dumps(json.loads(text) | settings), encoding="utf-8")
        self._configure()
        try:
            yield
        finally:
            self.agent.layout.policy.write_text(text, encoding="utf-8")
            self._configure()

    # --- reading ----------------------------------------------------------------------------------------------------

    def target(self) -> dict[str, Any]:
        """Return the parameters for `load_client`."""
        return {"kind": self.recipe.kind, "host": HOST, "port": self.recipe.port, "name": self.recipe.domain,
                "ca": str(self.plane.issuing_ca)}  # fmt: skip

    def served(self) -> str:
        """Return the serial that the service serves now."""
        line = Line(self.target(), ssl.create_default_context(cafile=str(self.plane.issuing_ca)))
        line.close()
        return line.serial

    def shown(self) -> x509.Certificate:
        """Return the certificate that the service serves now, without verification."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        line = Line(self.target(), context)
        line.close()
        return x509.load_der_x509_certificate(line.leaf)

    def revealed(self, data: bytes) -> bytes:
        """Return the readable content of a file; a keystore is opened with its password."""
        return data

    def sees(self, serial: str) -> None:
        """Wait until this serial is served: old processes may accept one more connection."""
        self.wait_for(lambda: self.served() == plain_serial(serial), f"serial {serial} to be served")

    def stands(self, serial: str) -> bool:
        """Return whether this serial is deployed, verified and served."""
        record, plain = self._record(), plain_serial(serial)
        proven = (
            plain_serial(record.facts.serial) == plain and record.generation == record.activated and not record.failing
        )
        return proven and self.served() == plain

    def deployed(self) -> str:
        """Return the serial on disk."""
        return plain_serial(self._record().facts.serial)

    def retry(self) -> Retry:
        """Return why and when the certificate is retried."""
        retries, _ = self.agent.state.installed.load_retries()
        return next(one for one in retries if one.resource == f"cert:{self.cert_id}")

    def on_disk(self) -> dict[str, bytes | str]:
        """Return what the service reads: the live link and every file of the items."""
        link = self.agent.layout.live_link(self.recipe.domain)
        found: dict[str, bytes | str] = {str(link): str(link.readlink())}
        paths = [Path(path) for item in self.recipe.items() for path in item.get("to", ())]
        return found | {str(path): path.read_bytes() for path in paths}

    # --- acting -----------------------------------------------------------------------------------------------------

    def renew(self) -> tuple[str, str, str]:
        """Renew once; return the serial, the reported outcome, and its detail."""
        operator = self.plane.operator
        operator.renew(self.cert_id)
        serial = operator.serial(self.cert_id)

        def reported() -> dict[str, Any] | None:
            rows = operator.outcomes(self.agent.device_id)
            return next((row for row in rows if row["signal"]["ref"].get("serial") == serial), None)

        self.wait_for(reported, f"the outcome of {serial}")
        row = reported()
        assert row is not None
        return serial, row["outcome"], row["detail"]

    def renew_and_serve(self) -> str:
        """Renew once and check that it is served; return the serial."""
        serial, outcome, why = self.renew()
        # unchanged if the retry of an earlier signal has deployed it already
        assert outcome in ("applied", "unchanged") and not why, (outcome, why)
        self.sees(serial)
        return serial


@contextlib.contextmanager
def on_trial(
    fleet: Fleet, plane: Plane, recipe: Recipe, start: Callable[[Trial], Sequence[str | Path]],
    kind: type[Trial] = Trial,
) -> Iterator[Trial]:  # fmt: skip
    """Yield a recipe in operation and end its processes afterwards; ``start`` returns the argv of its service."""
    trial = kind(fleet, plane, recipe)
    try:
        trial.begin(start)
        yield trial
    finally:
        trial.close()
