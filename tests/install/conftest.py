"""Fixtures of the install tests: bundles from a small CA, a host for the installer, and a Proc for commands."""

from __future__ import annotations

import resource
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from atomic_host import MAIL, WEB, Batch, batch_on, items_of
from bundle_maker import NOW, Issuer, Maker, rsa_key
from cryptography.hazmat.primitives.asymmetric import rsa
from install_host import RELOAD, Host
from trio.testing import MockClock

from certctrl.install.process import Proc
from certctrl.install.process.proc import LIMITS
from certctrl.model.policy import HostPolicy


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
def clock(autojump_clock: MockClock) -> MockClock:
    """Trio's virtual clock under a short name: pytest-trio finds it among a test's own arguments."""
    return autojump_clock


@pytest.fixture
def host(tmp_path: Path, maker: Maker) -> Host:
    """A host whose probes ask the services of `Host.serve`."""
    return Host(root=tmp_path, maker=maker, policy=HostPolicy(write_roots=(str(tmp_path / "out"),)))


@pytest.fixture
async def batch(clock: MockClock, host: Host) -> Batch:
    return await batch_on(host, items_of((RELOAD, 1), (WEB, 2), (MAIL, 3)))


@pytest.fixture
def token() -> str:
    return f"marked-{secrets.token_hex(8)}"


@pytest.fixture
async def quick() -> AsyncIterator[Proc]:
    """A Proc that waits little between TERM and KILL and grants few processes."""
    runner = Proc(term_grace=0.3, linger=0.3, limits={**LIMITS, resource.RLIMIT_NPROC: 300})
    yield runner
    await runner.aclose()
