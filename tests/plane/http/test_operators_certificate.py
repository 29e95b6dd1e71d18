"""An operator's own TLS certificate: used, never replaced, and read again at SIGHUP, which ends nothing."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import trio
from operators_certificate import write_certificate
from plane_socket import FAST, connected, operator_key, port_of
from trio_util import RepeatedEvent

from certctrl.errors import ConfigError
from certctrl.plane.ca.x509 import KEY_TYPES, Authority, key_pem, new_key, new_root
from certctrl.plane.core import Plane
from certctrl.plane.health.problems import ProblemName
from certctrl.plane.reserved_names import MAX_NAMES
from certctrl.plane.serve import PlaneAddress, _reserve, serve_plane
from certctrl.plane.settings import PlaneSettings
from certctrl.plane.storage.data_dir import DataDir
from certctrl.plane.tls import ServerCertificate

DAY = 86_400
FILES = ("tls.pem", "tls.key")


@pytest.fixture(scope="module")
def company() -> Authority:
    now = time.time()
    return new_root("Example company CA", not_before=now - DAY, not_after=now + 3650 * DAY)


def contents(data: Path) -> list[bytes]:
    return [(data / name).read_bytes() for name in FILES]


async def served_leaf(port: int) -> str:
    """Return the certificate that a new connection gets, in PEM."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=context, https_compatible=True)
    await stream.do_handshake()
    der = stream.getpeercert(binary_form=True)
    await trio.aclose_forcefully(stream)
    assert isinstance(der, bytes)
    return ssl.DER_cert_to_PEM_cert(der)


# --- never replaced ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("days", "problem"), [(30, False), (3, True), (-0.5, True)])
async def test_it_is_kept_even_if_it_ends_or_has_other_names(
    tmp_path: Path, company: Authority, days: float, problem: bool
) -> None:
    data = tmp_path / "plane"
    write_certificate(data, company, days)
    before = contents(data)
    with Plane.open(data) as plane:
        certificate = ServerCertificate(plane, DataDir(data), ("plane.example.com",))
        await certificate.load()
        assert not await certificate.renew_when_due()
        assert (ProblemName.TLS_CERTIFICATE in plane.problems) is problem
        assert contents(data) == before
        write_certificate(data, company)
        await certificate.load()
        assert ProblemName.TLS_CERTIFICATE not in plane.problems


async def test_its_names_are_reserved_except_wildcards(tmp_path: Path, company: Authority) -> None:
    data = tmp_path / "plane"
    write_certificate(data, company, names=["fleet.example.com", "*.example.org", "192.0.2.9"])
    with Plane.open(data) as plane:
        certificate = ServerCertificate(plane, DataDir(data), ("plane.example.com",))
        assert certificate.names() == ("plane.example.com", "fleet.example.com", "192.0.2.9")
        for name in FILES:
            (data / name).unlink()
        await certificate.load()
        assert certificate.names() == ("plane.example.com",)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://Devices.example.com./", "devices.example.com"),
        ("https://bücher.example", "xn--bcher-kva.example"),
        ("https://[2001:DB8:0::1]:8443", "2001:db8::1"),
        ("https://my_host.example", "my_host.example"),
    ],
)
async def test_the_host_of_the_public_url_is_reserved_besides_many_names(
    tmp_path: Path, company: Authority, url: str, name: str
) -> None:
    write_certificate(tmp_path / "plane", company, names=[f"n{number}.example.com" for number in range(MAX_NAMES + 9)])
    with Plane.open(tmp_path / "plane", settings=PlaneSettings(public_url=url)) as plane:
        await _reserve(plane, ServerCertificate(plane, DataDir(tmp_path / "plane"), ("plane.example.com",)))
        reserved = await plane.work(plane.reserved.all)
    assert {name, "plane.example.com", "n0.example.com"} <= {*reserved}


@pytest.mark.parametrize("key", [b"", b"not a key", None, key_pem(new_key(KEY_TYPES[0]))])
async def test_one_without_its_key_is_refused_and_kept(tmp_path: Path, company: Authority, key: bytes | None) -> None:
    data = tmp_path / "plane"
    write_certificate(data, company)
    if key is None:
        (data / "tls.key").unlink()
    else:
        (data / "tls.key").write_bytes(key)
    before = (data / "tls.pem").read_bytes()
    with (
        Plane.open(data) as plane,
        pytest.raises(ConfigError, match=r"tls.pem.* cannot be used with tls.key") as caught,
    ):
        await ServerCertificate(plane, DataDir(data), ("localhost",)).load()
    assert "delete both" in caught.value.fix
    assert (data / "tls.pem").read_bytes() == before
    assert (None if key is None else (data / "tls.key").read_bytes()) == key


async def test_an_encrypted_key_asks_for_no_password(tmp_path: Path, company: Authority) -> None:
    data = tmp_path / "plane"
    write_certificate(data, company)
    argv = ["openssl", "ec", "-in", str(data / "tls.key"), "-aes256", "-passout", "pass:x", "-out", str(data / "new")]
    if subprocess.run(argv, capture_output=True, check=False).returncode:
        pytest.skip("no openssl")
    (data / "new").rename(data / "tls.key")
    with Plane.open(data) as plane, pytest.raises(ConfigError):
        await ServerCertificate(plane, DataDir(data), ("localhost",)).load()


async def test_files_deleted_again_give_the_planes_own(tmp_path: Path, company: Authority) -> None:
    data = tmp_path / "plane"
    write_certificate(data, company)
    with Plane.open(data) as plane:
        certificate = ServerCertificate(plane, DataDir(data), ("localhost",))
        await certificate.load()
        for name in FILES:
            (data / name).unlink()
        await certificate.load()
        assert plane.anchor.ca.signs(ServerCertificate(plane, DataDir(data), ())._certificate())  # type: ignore[arg-type]


# --- SIGHUP -----------------------------------------------------------------------------------------------------------


@pytest.mark.integration
async def test_a_reload_changes_new_connections_only(tmp_path: Path, company: Authority) -> None:
    reload, data = RepeatedEvent(), tmp_path / "plane"
    async with trio.open_nursery() as nursery:
        address: PlaneAddress = await nursery.start(partial(serve_plane, data, settings=FAST, reload=reload))
        port = port_of(address)
        async with connected(address, operator_key(address)) as operator:
            assert (await operator.ask("GET", "/health")).status == 200
            write_certificate(data, company)
            new = (data / "tls.pem").read_text()
            assert await served_leaf(port) != new
            reload.set()
            with trio.fail_after(60):
                while await served_leaf(port) != new:
                    await trio.sleep(0.05)
            (data / "tls.key").write_bytes(b"broken")
            reload.set()
            with trio.fail_after(60):
                while (answer := await operator.ask("GET", "/health")).data["status"] == "ok":
                    await trio.sleep(0.05)
            assert [shown["key"] for shown in answer.data["problems"]] == ["tls_certificate"]
            assert await served_leaf(port) == new, "the old one is kept"
        nursery.cancel_scope.cancel()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Return a function that starts `plane serve`."""
    started: list[subprocess.Popen[bytes]] = []
    argv = [sys.executable, "-m", "certctrl", "plane", "serve", "--data", str(tmp_path / "plane")]

    def start() -> subprocess.Popen[bytes]:
        started.append(
            subprocess.Popen([*argv, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        )
        return started[-1]

    yield start
    for child in started:
        child.kill()
        child.communicate()


@pytest.mark.integration
async def test_sighup_reloads_and_never_ends_the_command(
    tmp_path: Path, company: Authority, process: Callable[[], subprocess.Popen[bytes]]
) -> None:
    child, data = process(), tmp_path / "plane"
    assert child.stdout is not None
    await trio.to_thread.run_sync(child.stdout.readline)
    port = int((data / "address").read_text().strip().rpartition(":")[2])
    write_certificate(data, company)
    new = (data / "tls.pem").read_text()
    with trio.fail_after(60):
        while await served_leaf(port) != new:
            os.kill(child.pid, signal.SIGHUP)
            await trio.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    assert await trio.to_thread.run_sync(child.wait, 60) == 0
    assert (data / "tls.pem").read_text() == new


@pytest.mark.integration
async def test_sighup_during_the_start_does_not_end_it(process: Callable[[], subprocess.Popen[bytes]]) -> None:
    child = process()
    assert child.stdout is not None
    caught = Path(f"/proc/{child.pid}/status")
    with trio.fail_after(60):
        while not _catches_hangups(caught.read_text()):
            await trio.sleep(0.01)
    os.kill(child.pid, signal.SIGHUP)
    assert (await trio.to_thread.run_sync(child.stdout.readline)).startswith(b"control plane")
    child.send_signal(signal.SIGTERM)
    assert await trio.to_thread.run_sync(child.wait, 60) == 0


def _catches_hangups(status: str) -> bool:
    (mask,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(mask, 16) >> (signal.SIGHUP - 1) & 1)


@pytest.mark.integration
async def test_agents_that_trust_the_companys_ca_connect(tmp_path: Path, company: Authority) -> None:
    data = tmp_path / "plane"
    write_certificate(data, company)
    ca = tmp_path / "company.pem"
    ca.write_text(company.pem)
    async with trio.open_nursery() as nursery:
        address: PlaneAddress = await nursery.start(partial(serve_plane, data, settings=FAST))
        trusting = PlaneAddress(address.url, ca, address.operator_key_file)
        async with connected(trusting, operator_key(address)) as operator:
            assert (await operator.ask("GET", "/apiv1/users")).status == 200
        nursery.cancel_scope.cancel()
