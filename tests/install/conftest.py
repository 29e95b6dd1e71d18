"""Certificates by the dozen: a small CA whose bundles are sealed as the plane seals them."""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import attrs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from nacl.public import PrivateKey as BoxKey
from nacl.public import SealedBox

from certctrl.model.bundle import DeployMaterials

NOW = 1_800_000_000.0
DAY = 86_400.0


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


@lru_cache(maxsize=1)
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


@attrs.define
class Issuer:
    """One CA certificate with its key, and the chain above it."""

    name: str
    above: Issuer | None = None
    key: Any = attrs.field(factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    certificate: x509.Certificate = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        signer = self.above or self
        self.certificate = build(self.name, signer.name, self.key.public_key(), signer.key, ca=True, life=(-400, 3000))

    @property
    def chain(self) -> list[x509.Certificate]:
        """Return this certificate and those above it, the root left out."""
        return [self.certificate, *(self.above.chain if self.above is not None and self.above.above else [])]

    @property
    def chain_pem(self) -> str:
        return "".join(pem(certificate) for certificate in self.chain)

    def leaf(self, key: Any, domains: tuple[str, ...], *, life: tuple[float, float] = (-1, 89), **how: Any) -> Any:
        return build(domains[0], self.name, key.public_key(), self.key, domains=domains, life=life, **how)


def build(
    subject: str,
    issuer: str,
    public: Any,
    signer: Any,
    *,
    ca: bool = False,
    domains: tuple[str, ...] = (),
    life: tuple[float, float] = (-1, 89),
    digest: Any = None,
    serial: int | None = None,
) -> x509.Certificate:
    """Return a certificate; ``life``: days from NOW."""

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    begins, ends = (dt.datetime.fromtimestamp(NOW + DAY * days, dt.UTC) for days in life)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(public)
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
    )
    if domains:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([san(domain) for domain in domains]), critical=False
        )
    return builder.sign(signer, digest or hashes.SHA256())


def san(domain: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(domain))
    except ValueError:
        return x509.DNSName(domain)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def seal(raw_key: bytes, device_public: bytes) -> dict[str, str]:
    """Return the five key fields of ``deploy-materials`` around some private key bytes."""
    data_key, nonce = os.urandom(32), os.urandom(12)
    sealed = AESGCM(data_key).encrypt(nonce, raw_key, None)
    from nacl.public import PublicKey

    return {
        "enc_data_key_b64": b64(SealedBox(PublicKey(device_public)).encrypt(data_key)),
        "enc_privkey_b64": b64(sealed[:-16]),
        "privkey_nonce_b64": b64(nonce),
        "privkey_tag_b64": b64(sealed[-16:]),
    }


def der(key: Any) -> bytes:
    return bytes(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))


@attrs.define
class Maker:
    """Makes materials as the plane answers them, sealed to one device."""

    issuer: Issuer = attrs.field(factory=lambda: Issuer("inter", Issuer("root")))
    device: BoxKey = attrs.field(factory=BoxKey.generate)

    @property
    def secret(self) -> bytes:
        return bytes(self.device)

    def materials(
        self,
        *domains: str,
        key: Any = None,
        raw_key: bytes | None = None,
        leaf: x509.Certificate | None = None,
        chain_pem: str | None = None,
        **leaf_options: Any,
    ) -> DeployMaterials:
        key = key or ec.generate_private_key(ec.SECP256R1())
        leaf = leaf or self.issuer.leaf(key, domains or ("example.com",), **leaf_options)
        return DeployMaterials(
            enc_scheme="aes256gcm",
            certificate_pem=pem(leaf),
            chain_pem=self.issuer.chain_pem if chain_pem is None else chain_pem,
            serial_number=f"{leaf.serial_number:x}",
            **seal(raw_key or der(key), bytes(self.device.public_key)),
        )


@pytest.fixture(scope="session")
def maker() -> Maker:
    return Maker()


@pytest.fixture(scope="session")
def make_issuer() -> Callable[..., Issuer]:
    return Issuer


@pytest.fixture(scope="session")
def now() -> float:
    return NOW


@pytest.fixture(scope="session")
def an_rsa_key() -> rsa.RSAPrivateKey:
    return rsa_key()


# --- a host for the runner ----------------------------------------------------------------------------------------


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
        from certctrl.store.fs import RealFs
        from certctrl.store.layout import ConfigDir
        from certctrl.store.tree import make_tree

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

        from certctrl.install.runner import Installer
        from certctrl.store.generations import GenerationStore
        from certctrl.store.state import StateStore

        async def inline(call: Callable[..., Any], *args: Any) -> Any:
            return call(*args)

        self.installer = Installer(
            layout=self.layout,
            fs=self.fs,
            generations=GenerationStore(self.layout, self.fs),
            state=StateStore(self.layout, self.fs),
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
        from certctrl.install.material import open_bundle

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


@pytest.fixture
def clock(autojump_clock: Any) -> Any:
    """Trio's virtual clock under a short name: pytest-trio finds it among a test's own arguments."""
    return autojump_clock


@pytest.fixture
def host(tmp_path: Any, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host whose probes ask the services of `Host.serve`."""
    import trio

    from certctrl.errors import ProbeError
    from certctrl.model.policy import HostPolicy

    made = Host(root=tmp_path, maker=maker, policy=HostPolicy(write_roots=(str(tmp_path / "out"),)))

    async def probe(verify: Any, fingerprints: Any, *, deadline: float) -> None:
        service = made.served[verify.host, verify.port]
        if service.served not in fingerprints:
            await trio.sleep(max(0.0, deadline - trio.current_time()))
            raise ProbeError(f"{verify.host}:{verify.port} serves another certificate")

    monkeypatch.setattr("certctrl.install.commands.probe_tls", probe)
    return made
