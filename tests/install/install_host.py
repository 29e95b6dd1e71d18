"""A host for the installer: services, commands, a clock and a disk under the control of the test."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import attrs
import trio
from bundle_maker import NOW, Maker
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from certctrl.errors import DiskError, ProbeError, ProbeFault
from certctrl.install.deploy.context import Helper
from certctrl.install.deploy.retry_table import cert_resource
from certctrl.install.installer import Installer
from certctrl.install.material.bundle import open_bundle
from certctrl.install.probe.interface import Probe
from certctrl.install.probe.looked import Leaf, Look
from certctrl.install.process import Proc
from certctrl.install.process.result import CommandResult
from certctrl.model.certificate import Bundle, Wanted
from certctrl.model.config import AgentConfig
from certctrl.model.plan import ExecAction, InstallItem, Outcome, OutcomeKind, VerifyTls
from certctrl.model.policy import HostPolicy, NamedCommand
from certctrl.model.records import Retry, RetryKind
from certctrl.store.deployments.generations import GenerationStore
from certctrl.store.disk.fs import Fs, RealFs
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir
from certctrl.store.state.installed import InstalledState

RELOAD = ("/bin/true", "reload")
OTHER = ("/bin/true", "other")
CHECK = ("/bin/true", "check", "{staged}")

APPLIED, UNCHANGED = OutcomeKind.APPLIED, OutcomeKind.UNCHANGED
FAILED, ROLLED_BACK = OutcomeKind.FAILED, OutcomeKind.ROLLED_BACK


def commands(*argvs: tuple[str, ...]) -> dict[str, NamedCommand]:
    return {f"n{i}": NamedCommand(argv=argv) for i, argv in enumerate(argvs)}


def reload(*certs: int, argv: tuple[str, ...] = RELOAD, **more: Any) -> list[InstallItem]:
    """Return one command per certificate, as a plane writes them, each verified at its own port."""
    return [
        ExecAction(id=f"r{n}", ob_id=n, cmd_argv=argv, verify=VerifyTls(host="127.0.0.1", port=1000 + n), **more)
        for n in certs
    ]


def kinds(outcomes: Mapping[int, Outcome]) -> dict[int, OutcomeKind]:
    return {cert_id: outcome.kind for cert_id, outcome in outcomes.items()}


def leftovers(host: Host) -> list[Path]:
    found = [path for path in host.layout.root.rglob("*") if ".tmp" in path.name]
    found += host.layout.journal.iterdir()
    found += (path for path in host.out.rglob("*") if path.name.startswith("."))
    return found


class ScriptedFs:
    """A real Fs that counts calls; the n-th call of one verb may fail."""

    def __init__(self, fs: Fs, verb: str = "", fails_at: int = 0) -> None:
        self.fs, self.verb, self.fails_at, self.counts = fs, verb, fails_at, dict[str, int]()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        real = getattr(self.fs, name)

        def call(*args: object, **how: object) -> Any:
            self.counts[name] = self.counts.get(name, 0) + 1
            if name == self.verb and self.counts[name] == self.fails_at:
                raise DiskError(f"cannot {name}", path="x", errno=28)
            return real(*args, **how)

        return call


class FullDirectory:
    """A real disk on which no file can be made in one directory."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __getattr__(self, name: str) -> Any:
        return getattr(RealFs(), name)

    def create(self, name: str, mode: int, *, at: Any) -> Any:
        if str(at.path) == self.path:
            raise DiskError(f"cannot create {self.path}: No space left on device", path=self.path, errno=28)
        return RealFs().create(name, mode, at=at)


@attrs.define
class Service:
    """A server that reads its certificate on reload and keeps the old one if the new one does not fit."""

    certificate: Path
    """The file it reads."""
    key: Path
    served: str = ""
    """Fingerprint of the leaf that clients see."""
    reloads: int = 0
    broken: bool = False
    """Whether reload always fails."""
    refuses: set[str] = attrs.field(factory=set)
    """Fingerprints that it does not load."""
    deaf: bool = False
    """Whether reload succeeds and changes nothing."""
    seconds: float = 0.0
    """How long a reload takes."""
    stopped: bool = False
    """Whether it is not running: it neither listens nor reloads."""

    async def reload(self) -> int:
        """Return the exit status of the reload command."""
        self.reloads += 1
        await trio.sleep(self.seconds)
        if self.broken or self.stopped:
            return 1
        try:
            leaf = x509.load_pem_x509_certificates(self.certificate.read_bytes())[0]
            key = load_pem_private_key(self.key.read_bytes(), None)
        except (OSError, ValueError):
            return 2
        fingerprint = leaf.fingerprint(hashes.SHA256()).hex()
        if key.public_key() != leaf.public_key() or fingerprint in self.refuses:
            return 3
        if not self.deaf:
            self.served = fingerprint
        return 0


@attrs.define(slots=False)
class FakeProbe:
    """A probe that asks the services of a host."""

    services: dict[tuple[str, int], Service]
    looks: int = 0

    async def probe(self, verify: VerifyTls, wanted: Wanted, *, deadline: float, anywhere: bool = False) -> None:
        """Wait until the deadline if the service serves none of these."""
        service = self.services[verify.host, verify.port]
        if service.stopped or service.served not in wanted:
            await trio.sleep(max(0.0, deadline - trio.current_time()))
            raise ProbeError(f"{verify.host}:{verify.port} serves another certificate")

    async def look(self, verify: VerifyTls, wanted: Wanted, *, anywhere: bool = False) -> Look:
        """Return what the service serves."""
        self.looks += 1
        await trio.lowlevel.checkpoint()
        service = self.services[verify.host, verify.port]
        if service.stopped:
            return Look(fault=ProbeFault.REFUSED)
        if service.served in wanted:
            return Look(right=frozenset({service.served}))
        return Look(wrong=Leaf(fingerprint=service.served), fault=ProbeFault.OTHER)

    async def after_removal(
        self, verify: VerifyTls, fingerprint: str, *, deadline: float, anywhere: bool = False
    ) -> tuple[bool, str]:
        """Wait until the deadline if the service still serves this one."""
        served, where = self.services[verify.host, verify.port].served, f"{verify.host}:{verify.port}"
        if served != fingerprint:
            return False, "" if served else f"{where} serves no certificate"
        await trio.sleep(max(0.0, deadline - trio.current_time()))
        return True, f"{where} still serves it from memory"

    async def is_down(self, host: str, port: int) -> bool:
        """Return whether the service is stopped."""
        await trio.lowlevel.checkpoint()
        return (host, port) in self.services and self.services[host, port].stopped


Effect = Callable[[], Any]
"""What a command does: returns its exit status, or a coroutine that does."""


@attrs.define(slots=False, repr=False)
class FakeProc:
    """Commands without processes: argv -> effect; all others succeed."""

    does: dict[tuple[str, ...], Effect] = attrs.field(factory=dict)
    calls: list[tuple[str, ...]] = attrs.field(factory=list)
    asked: list[dict[str, Any]] = attrs.field(factory=list)
    """The keyword arguments of each call."""

    async def prepare(self, count: int = 1) -> None:
        """Start nothing."""

    async def run(self, argv: Sequence[str], **how: object) -> CommandResult:
        """Note the call and return the status of its effect."""
        self.calls.append(tuple(argv))
        self.asked.append(how)
        status = self.does.get(tuple(argv), lambda: 0)()
        status = await status if inspect.isawaitable(status) else status
        return CommandResult(argv=tuple(argv), status=status, output="it says no" if status else "")


async def inline(call: Callable[..., Any], *args: object) -> Any:
    """Stand in for a thread."""
    return call(*args)


@attrs.define(repr=False)
class Host:
    """A config directory with an Installer, a clock and commands that can be scripted."""

    root: Path
    maker: Maker
    clock: float = NOW
    """Wall-clock seconds."""
    steps: float = 0.0
    """Seconds by which the wall clock has been set."""
    proc: FakeProc = attrs.field(factory=FakeProc)
    policy: HostPolicy = attrs.field(factory=HostPolicy)
    config: AgentConfig = attrs.field(factory=AgentConfig)
    fs: Fs = attrs.field(factory=RealFs)
    helper: Helper | None = None
    """The root helper, for destinations and units that its policy names."""
    served: dict[tuple[str, int], Service] = attrs.field(factory=dict)
    """(host, port) -> the service there."""
    probe: Probe = attrs.field(default=attrs.Factory(lambda self: FakeProbe(self.served), takes_self=True))
    layout: ConfigDir = attrs.field(init=False)
    out: Path = attrs.field(init=False)
    """A directory that the policy lets items write to."""
    installer: Installer = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.layout = ConfigDir(self.root / "agent")
        make_tree(self.fs, self.layout)
        self.out = self.root / "out"
        self.out.mkdir(exist_ok=True)
        self.start()

    def start(self) -> Installer:
        """Begin a new run on the same disk."""
        self.installer = Installer(
            layout=self.layout,
            fs=self.fs,
            generations=GenerationStore(self.layout, self.fs),
            state=InstalledState(self.layout, self.fs),
            policy=lambda: self.policy,
            config=lambda: self.config,
            proc=cast(Proc, self.proc),
            probe=self.probe,
            wall_now=lambda: self.clock,
            steady_now=lambda: self.clock - self.steps,
            offload=inline,
            log=logging.getLogger("test"),
            helper=self.helper,
        )
        return self.installer

    def fill(self, directory: Path | None) -> None:
        """Begin a new run on a disk that is full in one directory; None: it has room again."""
        self.fs = cast(Fs, FullDirectory(directory)) if directory is not None else RealFs()
        self.start()

    def set_clock(self, by: float) -> None:
        """Set the wall clock, without time passing."""
        self.clock += by
        self.steps += by

    def retry(self, cert_id: int) -> Retry:
        """Return the retry of a certificate; one without attempts if there is none."""
        resource = cert_resource(cert_id)
        return self.installer.retries.of(resource) or Retry(resource=resource, kind=RetryKind.WAITING, failures=0)

    def allow(self, **settings: Any) -> None:
        """Change the host's policy."""
        self.policy = attrs.evolve(self.policy, **settings)

    def bundle(self, cert_id: int, *domains: str, **options: Any) -> Bundle:
        """Return due_now, checked material of a certificate."""
        domains = domains or (f"c{cert_id}.example",)
        return open_bundle(
            cert_id,
            self.installer.name_for(cert_id, domains),
            self.maker.materials(*domains, **options),
            self.maker.secret,
            allow_plaintext=False,
            now=self.clock,
            expected_domains=domains,
        )

    async def deliver(self, *cert_ids: int, items: Sequence[InstallItem] = (), **options: Any) -> dict[int, Outcome]:
        """Stage fresh material for some certificates and converge; return the outcomes."""
        prepared = [await self.installer.stage(self.bundle(cert_id), items) for cert_id in cert_ids]
        return dict(await self.installer.converge(prepared, items, **options))

    async def with_service(self) -> tuple[list[InstallItem], Service]:
        """Deploy certificate 1 to a service that a command reloads; return the items and the service."""
        items = reload(1)
        self.allow(commands=commands(RELOAD))
        service = self.serve(RELOAD, 1, 1001)
        await self.deliver(1, items=items)
        return items, service

    def live(self, cert_id: int) -> str:
        """Return the fingerprint of the live certificate on disk, after checking that its key matches."""
        name = self.installer.records[cert_id].name
        leaf = x509.load_pem_x509_certificates((self.layout.certs / f"{name}.crt").read_bytes())[0]
        key = load_pem_private_key((self.layout.certs / f"{name}.key").read_bytes(), None)
        assert key.public_key() == leaf.public_key()
        return leaf.fingerprint(hashes.SHA256()).hex()

    def serve(self, argv: tuple[str, ...], cert_id: int, port: int, **how: Any) -> Service:
        """Put a service on a port that reads a certificate of the agent's own tree when ``argv`` runs."""
        service = Service(
            self.layout.certs / f"c{cert_id}.example.crt", self.layout.certs / f"c{cert_id}.example.key", **how
        )
        self.served["127.0.0.1", port] = service
        before = self.proc.does.get(argv)

        async def reload_all() -> int:
            status = await before() if before is not None else 0
            return int(status or await service.reload())

        self.proc.does[argv] = reload_all
        return service
