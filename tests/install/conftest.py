"""What the tests of installing share: bundles from a small CA, a host for the runner, and a Proc for commands."""

from __future__ import annotations

import resource
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from bundle_maker import NOW, Issuer, Maker, rsa_key
from cryptography.hazmat.primitives.asymmetric import rsa
from runner_host import Host

from certctrl.install.process import Proc
from certctrl.install.process.proc import LIMITS


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

    async def remains(verify: Any, fingerprint: str, *, deadline: float) -> tuple[bool, str]:
        served, where = made.served[verify.host, verify.port].served, f"{verify.host}:{verify.port}"
        if served != fingerprint:
            return False, "" if served else f"{where} serves no certificate"
        await trio.sleep(max(0.0, deadline - trio.current_time()))
        return True, f"{where} still serves it from memory"

    monkeypatch.setattr("certctrl.install.deploy.commands.probe_tls", probe)
    monkeypatch.setattr("certctrl.install.deploy.withdrawal.after_removal", remains)
    return made


@pytest.fixture
def token() -> str:
    return f"marked-{secrets.token_hex(8)}"


@pytest.fixture
async def quick() -> AsyncIterator[Proc]:
    """A Proc that waits little between TERM and KILL and grants few processes."""
    runner = Proc(term_grace=0.3, linger=0.3, limits={**LIMITS, resource.RLIMIT_NPROC: 300})
    yield runner
    await runner.aclose()
