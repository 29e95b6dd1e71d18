"""A real agent between a fake control plane and a fake installer, for the tests of handlers and comparisons."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import attrs
import trio
from wire_items import installs_hash

from certctrl.agent.atomic_batches import AtomicBatches
from certctrl.agent.burst import BurstWatch
from certctrl.agent.context import Agent
from certctrl.agent.counters import Counters
from certctrl.agent.fetches import Fetches
from certctrl.agent.inbox import Inbox
from certctrl.agent.materials import known_etag
from certctrl.errors import DiskError, HostKeyMissingError, PlaneError, WrongNamesError
from certctrl.install.deploy.retry_table import RetryTable, cert_resource
from certctrl.install.plan.retries import LAGGING_FAILURES, Failure
from certctrl.model.certificate import DEVICE_KEY, Bundle, CaBundle, CertFacts, CertificateSummary, DeployMaterials
from certctrl.model.config import AgentConfig
from certctrl.model.plan import InstallItem, Outcome, OutcomeKind
from certctrl.model.policy import HostPolicy
from certctrl.model.records import CertRecord, KnownPlane, Retry, RetryKind, Stage, Standing, retry_key
from certctrl.model.signals import Signal
from certctrl.store.disk.fs import Handle, RealFs
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir
from certctrl.store.state.store import StateStore

NOW = 1_700_000_000.0
TS = int(NOW * 1000) - 500
"""When the signals of the tests were sent (milliseconds)."""
BEFORE, AFTER = "2023-11-14T22:13:18Z", "2023-11-14T22:13:20Z"
"""When a resource was last updated, seen from ``TS``."""
HOUR = 3600.0
FACTS = CertFacts(
    cert_id=1,
    name="a.example",
    domains=("a.example",),
    serial="0a",
    fingerprint_sha256="aa",
    not_before=NOW - 1000,
    not_after=NOW + 10_000,
)
LIVE = CertRecord(facts=FACTS, generation="g1", activated="g1", stage=Stage.ACTIVATED)
THERE = CertificateSummary(
    id=1,
    domain_name="a.example",
    serial_number="0a",
    fingerprint_sha256="aa",
    not_before="2023-11-14T21:56:40Z",
    status="active",
    updated_at=AFTER,
)
FAILED = OutcomeKind.FAILED
STAGED_ONLY = attrs.evolve(LIVE, generation="", activated="", staged="g1", stage=Stage.STAGED)
FOREIGN = attrs.evolve(LIVE, standing=Standing.FOREIGN)
WITHDRAWN = attrs.evolve(LIVE, generation="", activated="", stage=Stage.WITHDRAWN, revoked=True, alarmed=True)
INCOMPLETE = attrs.evolve(WITHDRAWN, last_outcome=FAILED)
UNALERTED = attrs.evolve(WITHDRAWN, alarmed=False)
LOST = attrs.evolve(LIVE, generation="", activated="")
"""Deployed once, and then deleted on disk."""
BLANK = attrs.evolve(LOST, stage=Stage.STAGED)
REVOKED = attrs.evolve(THERE, status="revoked")
OTHER = attrs.evolve(THERE, domain_name="b.example")
LEAVING = attrs.evolve(LIVE, standing=Standing.UNASSIGNED, unassigned_at=NOW - HOUR)
"""``LIVE`` as the plane shows it."""
APPLIED, UNCHANGED, IGNORED = OutcomeKind.APPLIED, OutcomeKind.UNCHANGED, OutcomeKind.IGNORED


def refused(status: int) -> PlaneError:
    return PlaneError("refused", status=status)


@attrs.define(eq=False)
class FakePlane:
    """What a control plane answers; a resource that it does not have is a 404, unless ``gone`` says otherwise."""

    certificates: dict[int, CertificateSummary] = attrs.field(factory=dict)
    listed: list[CertificateSummary] | None = None
    """The list, if it is not that of ``certificates``."""
    materials: dict[int, DeployMaterials] = attrs.field(factory=dict)
    cas: dict[int, CaBundle] = attrs.field(factory=dict)
    ca_list: Mapping[int, str] | None = None
    config: dict[str, Any] | None = None
    gone: int = 404
    fails: dict[str, Exception] = attrs.field(factory=dict)
    """Method -> what it raises."""
    calls: list[str] = attrs.field(factory=list)
    now: float = NOW
    csrs: list[tuple[int, int, str]] = attrs.field(factory=list)
    """Certificate, order and signing request of each request that it accepted."""
    renewals: list[tuple[int, int, bool]] = attrs.field(factory=list)
    """User, certificate, and whether its key is lost, of each renewal that it accepted."""
    features: frozenset[str] = frozenset()

    def server_now(self) -> float:
        return self.now

    def own_signal_ms(self) -> int:
        return int(self.now * 1000)

    async def _called(self, name: str) -> None:
        await trio.lowlevel.checkpoint()
        self.calls.append(name)
        if name in self.fails:
            raise self.fails[name]

    async def fetch_certificates(self, _token: str) -> list[CertificateSummary]:
        await self._called("list")
        return [*self.certificates.values()] if self.listed is None else self.listed

    async def fetch_certificate(self, _token: str, cert_id: int) -> CertificateSummary:
        await self._called("detail")
        return self._one(self.certificates, cert_id)

    async def fetch_materials(self, _token: str, cert_id: int) -> DeployMaterials:
        await self._called("materials")
        return self._one(self.materials, cert_id)

    async def send_csr(self, _token: str, cert_id: int, order_id: int, csr_pem: str) -> None:
        await self._called("csr")
        self.csrs.append((cert_id, order_id, csr_pem))

    async def request_renewal(
        self, _token: str, user_id: int, cert_id: int, reason: str, *, key_lost: bool = False
    ) -> None:
        await self._called("renew")
        self.renewals.append((user_id, cert_id, key_lost))

    async def fetch_ca(self, _token: str, ca_id: int) -> CaBundle:
        await self._called("ca")
        return self._one(self.cas, ca_id)

    async def fetch_cas(self, _token: str) -> Mapping[int, str] | None:
        await self._called("cas")
        return self.ca_list

    async def fetch_install_config(self, *_: object) -> tuple[str, dict[str, Any]]:
        await self._called("config")
        if self.config is None:
            raise refused(404)
        return "etag", self.config

    def _one(self, found: Mapping[int, T], number: int) -> T:
        if number not in found:
            raise refused(self.gone)
        return found[number]

    def offers(self, *items: dict[str, Any], version: int = 1) -> None:
        """Offer an install config."""
        listed = [*items]
        self.config = {"id": 7, "version": version, "installs": listed, "installs_hash_b64": installs_hash(listed)}


@attrs.define(eq=False)
class FakeInstaller:
    """Records what it is asked to do; a withdrawal and an import change only the records."""

    retries: RetryTable
    secure: Callable[[], Awaitable[None]]
    """Makes the retries durable."""
    records: dict[int, CertRecord] = attrs.field(factory=dict)
    bundles: dict[int, Bundle] = attrs.field(factory=dict)
    """Certificate id -> what its material contains."""
    ca_names: dict[int, str] = attrs.field(factory=dict)
    calls: list[tuple[Any, ...]] = attrs.field(factory=list)
    alerts: list[str] = attrs.field(factory=list)
    outcome: Outcome = attrs.field(default=Outcome(kind=UNCHANGED))
    """The result of `converge_all`."""
    withdraws: Outcome = attrs.field(default=Outcome(kind=APPLIED))
    imports: Outcome = attrs.field(default=Outcome(kind=APPLIED))
    waits: dict[str, str] = attrs.field(factory=dict)
    to_do: bool = False
    """Whether a converge would do something."""
    missing: set[int] = attrs.field(factory=set)
    """Certificates that are not on disk."""
    broken_names: list[str] = attrs.field(factory=list)
    """Public names that do not lead to their certificates."""
    left: DiskError | None = None
    """Why old generations cannot be removed."""
    host_keys: dict[int, dict[str, bytes]] = attrs.field(factory=dict)
    """Certificate id -> hash of the public half -> key, of all its generations, the live one last."""

    @property
    def cas(self) -> frozenset[int]:
        return frozenset(self.ca_names)

    def next_try_at(self, retry: Retry) -> float:
        return self.retries.due_at(retry.resource)

    def ca_name(self, ca_id: int) -> str:
        return self.ca_names.get(ca_id, "")

    def opener(
        self, cert_id: int, materials: DeployMaterials, _secret: bytes, expected: Sequence[str]
    ) -> Callable[[], Bundle]:
        def opened() -> Bundle:
            bundle = self.bundles[cert_id]
            if materials.enc_scheme == DEVICE_KEY and not materials.host_key_pem:
                raise HostKeyMissingError("not here")
            if not {*expected} <= {*bundle.facts.domains}:
                raise WrongNamesError(f"not for {expected}")
            return bundle

        return opened

    async def host_key(self, cert_id: int, public_key_sha256: str) -> bytes | None:
        return self.host_keys.get(cert_id, {}).get(public_key_sha256)

    async def is_live_key(self, cert_id: int, public_key_sha256: str) -> bool:
        return public_key_sha256 in [*self.host_keys.get(cert_id, {})][-1:]

    async def prepare_commands(self, cert_id: int, _items: Sequence[InstallItem]) -> None:
        self.calls.append(("prepare", cert_id))

    async def stage(
        self, source: Callable[[], Bundle], _items: Sequence[InstallItem], *, alone: bool = False
    ) -> Bundle:
        """Return the bundle in place of a candidate."""
        bundle = source()
        self.calls.append(("stage", bundle.facts.cert_id))
        return bundle

    async def converge_all(self, _items: Sequence[InstallItem], *, lasting: bool) -> Outcome:
        self.calls.append(("converge", lasting))
        return self.outcome

    async def withdraw(self, cert_id: int, *, revoked: bool, items: Sequence[InstallItem]) -> Outcome:
        self.calls.append(("withdraw", cert_id, revoked))
        changes = {"generation": "", "staged": "", "stage": Stage.WITHDRAWN}
        record = self.records[cert_id]
        alarmed = record.alarmed and record.stage is Stage.WITHDRAWN
        self.records[cert_id] = attrs.evolve(record, **cast(Any, changes), revoked=revoked, alarmed=alarmed)
        if self.withdraws.recorded:
            error = self.withdraws.detail
            self.retries.failed(Failure(resource=cert_resource(cert_id), kind=RetryKind.REFUSED, error=error))
            self.records[cert_id] = attrs.evolve(self.records[cert_id], last_outcome=OutcomeKind.FAILED)
        return self.withdraws

    async def save_retries(self) -> None:
        await self.secure()

    async def prune(self) -> None:
        if self.left is not None:
            raise self.left

    async def import_ca(self, ca_id: int, name: str, pem: str, _items: Sequence[InstallItem]) -> Outcome:
        self.calls.append(("import", ca_id, name, pem))
        return self.imports

    async def remove_ca(self, ca_id: int) -> Outcome:
        self.calls.append(("remove", ca_id))
        known = self.ca_names.pop(ca_id, None) is not None
        return Outcome(kind=APPLIED if known else UNCHANGED)

    async def update(self, records: Iterable[CertRecord]) -> None:
        self.records |= {record.cert_id: record for record in records}

    async def record_alert(self, cert_id: int) -> None:
        self.records[cert_id] = attrs.evolve(self.records[cert_id], alarmed=True)

    async def alert(self, alert: Mapping[str, Any]) -> None:
        self.alerts.append(str(alert["alert"]))

    async def waiting_items(self, _items: Sequence[InstallItem]) -> dict[str, str]:
        return self.waits

    async def unfinished(self, _items: Sequence[InstallItem]) -> bool:
        return self.to_do

    async def clear_up(self) -> None:
        pass

    async def repair_links(self, *, change: bool = True) -> list[str]:
        return self.broken_names

    async def lost(self, *, contents: bool = True) -> list[CertRecord]:
        return [record for number, record in self.records.items() if number in self.missing and record.generation]


@attrs.define(eq=False)
class FakeTokens:
    """A session that never ends, of user 14 and device 5."""

    async def identity(self) -> tuple[int, int]:
        return 14, 5

    async def current(self) -> str:
        return "token"

    async def refresh(self, _token: str) -> str:
        return "another"

    def finish_by(self, _at: float) -> None:
        """Nothing runs that would have to end."""


T = TypeVar("T")


class FaultyDisk(RealFs):
    """A real disk that may fail to make changes durable."""

    errno: int = 0
    """Of each sync; 0: they succeed."""

    def fsync(self, handle: Handle) -> None:
        if self.errno:
            raise DiskError(os.strerror(self.errno), path=handle.path, errno=self.errno)
        super().fsync(handle)


class World:
    """An agent with its plane and its installer; the files of its state are real."""

    def __init__(self, root: Path) -> None:
        self.now = NOW
        self.layout = ConfigDir(root)
        self.disk = FaultyDisk()
        make_tree(self.disk, self.layout)
        self.store = StateStore(self.layout, self.disk)
        self.plane = FakePlane()
        self.installer = FakeInstaller(
            RetryTable(
                load=self.store.installed.load_retries,
                wall_now=lambda: self.now,
                steady_now=lambda: self.now,
                random=lambda: 1.0,
                settings=lambda: AgentConfig().application,
            ),
            self._secure,
        )
        self.agent = self._agent()

    async def _secure(self) -> None:
        self.store.installed.save_retries([*self.installer.retries.rows().values()])

    def _agent(self) -> Agent:
        async def offload(call: Callable[..., Any], *args: object) -> Any:
            await trio.lowlevel.checkpoint()
            return call(*args)

        parts: dict[str, Any] = {
            "plane": self.plane, "tokens": FakeTokens(), "installer": self.installer, "layout": self.layout,
            "inbox": Inbox(self.store.session, offload, self.installer.retries, self._secure, limit=100),
            "fetches": Fetches(
                cast(Any, self.plane), lambda call: self.agent.authorized(call), lambda number: known_etag(self.agent, number)
            ),
            "store": self.store, "fs": self.disk, "burst": BurstWatch(debounce=lambda: (0.5, 5.0), clock=trio.current_time), "batches": None, "session": None,
            "atomic": AtomicBatches(
                self.installer.retries, limit=lambda: 600.0, clock=trio.current_time, compare=lambda: None,
                is_withdrawn=lambda _: False,
            ),
        }  # fmt: skip
        return Agent(
            **parts,
            counters=Counters(),
            log=logging.getLogger("test"),
            wall_now=lambda: self.now,
            random=lambda: 0.5,
            offload=offload,
            config=AgentConfig(),
            policy=HostPolicy(),
        )

    def follow(self, since: float) -> None:
        """Record that this host follows its plane since a time."""
        server = self.agent.config.application.server_url.rstrip("/").lower()
        self.store.session.save_known_plane(KnownPlane(origin=f"{server} 5 -", since=since))

    def has(self, *records: CertRecord | None) -> None:
        """Put certificates on this host."""
        self.installer.records |= {record.cert_id: record for record in records if record is not None}

    def shows(self, detail: CertificateSummary | None, *, listed: bool = False) -> None:
        """Let the plane have a certificate, or only list it (``listed``, without a detail)."""
        self.plane.certificates = {} if detail is None else {detail.id: detail}
        if listed:
            self.plane.listed = [THERE]

    def sends(self, facts: CertFacts = FACTS) -> None:
        """Let the plane offer the material of a certificate."""
        self.plane.materials[facts.cert_id] = DeployMaterials(enc_scheme="aes256gcm")
        self.installer.bundles[facts.cert_id] = Bundle(facts=facts, key_pem=b"", certificate_pem=b"", chain_pem=b"")

    def waited(self, signal: Signal, failures: int = LAGGING_FAILURES) -> None:
        """Let the plane have had its time for a signal."""
        kind = RetryKind.LAGGING
        self.installer.retries.put(Retry(resource=signal.resource, kind=kind, failures=failures, signal=signal))
        assert retry_key(signal) in self.installer.retries.rows()

    @property
    def did(self) -> list[str]:
        """What the installer was asked to do."""
        return [str(call[0]) for call in self.installer.calls]

    @property
    def admitted(self) -> list[Signal]:
        """The signals in the inbox."""
        return [entry.signal for entry in self.agent.inbox.entries()]
