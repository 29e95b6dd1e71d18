"""A host for the runner, with services, commands, a clock and a disk that do as told; and short words for its tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
from bundle_maker import NOW, Maker
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from certctrl.errors import DiskError
from certctrl.model.plan import ExecAction, InstallItem, OutcomeKind, VerifyTls
from certctrl.model.policy import NamedCommand

RELOAD = ("/bin/true", "reload")
OTHER = ("/bin/true", "other")
CHECK = ("/bin/true", "check", "{staged}")

APPLIED, UNCHANGED = OutcomeKind.APPLIED, OutcomeKind.UNCHANGED
FAILED, ROLLED_BACK = OutcomeKind.FAILED, OutcomeKind.ROLLED_BACK


def commands(*argvs: tuple[str, ...]) -> dict[str, NamedCommand]:
    return {f"n{i}": NamedCommand(argv=argv) for i, argv in enumerate(argvs)}


def reload(*certs: int, argv: tuple[str, ...] = RELOAD, **more: Any) -> list[InstallItem]:
    """One command per certificate, as a plane writes them, each proven at its own port."""
    return [
        ExecAction(id=f"r{n}", ob_id=n, cmd_argv=argv, verify=VerifyTls(host="127.0.0.1", port=1000 + n), **more)
        for n in certs
    ]


def kinds(outcomes: dict[int, Any]) -> dict[int, OutcomeKind]:
    return {cert_id: outcome.kind for cert_id, outcome in outcomes.items()}


def leftovers(host: Any) -> list[Path]:
    found = [path for path in host.layout.root.rglob("*") if ".tmp" in path.name]
    found += host.layout.journal.iterdir()
    found += (path for path in host.out.rglob("*") if path.name.startswith("."))
    return found


class ScriptedFs:
    """The real one, counting; the n-th call of one verb may fail."""

    def __init__(self, fs: Any, verb: str = "", fails_at: int = 0) -> None:
        self.fs, self.verb, self.fails_at, self.counts = fs, verb, fails_at, dict[str, int]()

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.fs, name)

        def call(*args: Any, **how: Any) -> Any:
            self.counts[name] = self.counts.get(name, 0) + 1
            if name == self.verb and self.counts[name] == self.fails_at:
                raise DiskError(f"cannot {name}", path="x", errno=28)
            return real(*args, **how)

        return call


@attrs.define
class Service:
    """A server that reads its certificate at reload, refuses what does not fit, and keeps the old one then."""

    certificate: Any
    """Path of the file it reads."""
    key: Any
    served: str = ""
    reloads: int = 0
    broken: bool = False
    """Reload fails whatever is on disk."""
    refuses: set[str] = attrs.field(factory=set)
    """Fingerprints it does not take."""
    deaf: bool = False
    """Reload succeeds and changes nothing."""
    seconds: float = 0.0

    async def reload(self) -> int:
        import trio
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        self.reloads += 1
        await trio.sleep(self.seconds)
        if self.broken:
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


@attrs.define(slots=False, repr=False)
class FakeProc:
    """Commands without processes: argv -> what they do; everything else succeeds."""

    does: dict[tuple[str, ...], Callable[[], Any]] = attrs.field(factory=dict)
    calls: list[tuple[str, ...]] = attrs.field(factory=list)
    asked: list[dict[str, Any]] = attrs.field(factory=list)

    async def prepare(self, count: int = 1) -> None:
        pass

    async def run(self, argv: Any, **how: Any) -> Any:
        import inspect

        from certctrl.install.process import CommandResult

        self.calls.append(tuple(argv))
        self.asked.append(how)
        status = self.does.get(tuple(argv), lambda: 0)()
        status = await status if inspect.isawaitable(status) else status
        return CommandResult(argv=tuple(argv), status=status, output="it says no" if status else "")


@attrs.define(repr=False)
class Host:
    """One config directory with an Installer, a clock and commands that can be scripted."""

    root: Any
    maker: Maker
    clock: float = NOW
    proc: FakeProc = attrs.field(factory=FakeProc)
    policy: Any = None
    config: Any = None
    fs: Any = None
    served: dict[tuple[str, int], Service] = attrs.field(factory=dict)
    installer: Any = None

    def __attrs_post_init__(self) -> None:
        from certctrl.model.config import AgentConfig
        from certctrl.model.policy import HostPolicy
        from certctrl.store.disk.fs import RealFs
        from certctrl.store.disk.tree import make_tree
        from certctrl.store.layout import ConfigDir

        self.fs = self.fs or RealFs()
        self.policy = self.policy or HostPolicy()
        self.config = self.config or AgentConfig()
        self.layout = ConfigDir(self.root / "agent")
        make_tree(self.fs, self.layout)
        self.out = self.root / "out"
        self.out.mkdir(exist_ok=True)
        self.start()

    layout: Any = attrs.field(init=False)
    out: Any = attrs.field(init=False)

    def start(self) -> Any:
        """Begin a new run on the same disk."""
        import logging

        from certctrl.install.installer import Installer
        from certctrl.store.deployments.generations import GenerationStore
        from certctrl.store.state.installed import InstalledState

        async def inline(call: Callable[..., Any], *args: Any) -> Any:
            return call(*args)

        self.installer = Installer(
            layout=self.layout,
            fs=self.fs,
            generations=GenerationStore(self.layout, self.fs),
            state=InstalledState(self.layout, self.fs),
            policy=lambda: self.policy,
            config=lambda: self.config,
            proc=self.proc,
            wall_now=lambda: self.clock,
            offload=inline,
            log=logging.getLogger("test"),
        )
        return self.installer

    def allow(self, **settings: Any) -> None:
        self.policy = attrs.evolve(self.policy, **settings)

    def bundle(self, cert_id: int, *domains: str, **options: Any) -> Any:
        from certctrl.install.material.bundle import open_bundle

        domains = domains or (f"c{cert_id}.example",)
        return open_bundle(
            cert_id, self.installer.name_for(cert_id, domains), self.maker.materials(*domains, **options),
            self.maker.secret, allow_plaintext=False, now=self.clock, expected_domains=domains,
        )  # fmt: skip

    async def deliver(self, *cert_ids: int, items: Any = (), **options: Any) -> dict[int, Any]:
        """Stage fresh material for some certificates and converge; return the outcomes."""
        prepared = [await self.installer.stage(self.bundle(cert_id), items) for cert_id in cert_ids]
        return dict(await self.installer.converge(prepared, items, **options))

    def live(self, cert_id: int) -> str:
        """Return the fingerprint of what is live on disk, after checking that key and certificate match."""
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

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
            status = await before() if before is not None else 0  # type: ignore[misc]
            return int(status or await service.reload())

        self.proc.does[argv] = reload_all
        return service
