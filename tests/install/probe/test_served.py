"""The whole pipeline against a real server: real files, real commands, real handshakes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import cast

import attrs
import pytest
import trio
from install_host import FakeProc, Host

from certctrl.install.probe.interface import TlsProbe
from certctrl.install.process import Proc
from certctrl.model.plan import CopyAction, ExecAction, InstallItem, OutcomeKind, VerifyTls
from certctrl.model.policy import NamedCommand

pytestmark = pytest.mark.integration


@pytest.fixture
def port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
async def live_host(host: Host) -> AsyncIterator[Host]:
    """The host of the other tests, with real commands and probes."""
    proc = Proc()
    host.proc, host.probe = cast(FakeProc, proc), TlsProbe()
    host.config = attrs.evolve(
        host.config, application=attrs.evolve(host.config.application, verify_timeout_seconds=3.0)
    )
    host.start()
    yield host
    await proc.aclose()


@pytest.fixture
def nginx(live_host: Host, need: Callable[[str], str], port: int, tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """A private nginx that serves certificate 1 from the agent's directory; yields its reload command."""
    program, config, live = need("nginx"), tmp_path / "nginx.conf", live_host.layout.live / "c1.example"
    config.write_text(
        textwrap.dedent(
            f"""
            user {"root" if os.geteuid() == 0 else ""};
            pid {tmp_path}/nginx.pid;
            error_log {tmp_path}/error.log;
            events {{}}
            http {{
              access_log off;
              client_body_temp_path {tmp_path}/b; proxy_temp_path {tmp_path}/p; fastcgi_temp_path {tmp_path}/f;
              uwsgi_temp_path {tmp_path}/u; scgi_temp_path {tmp_path}/s;
              server {{
                listen 127.0.0.1:{port} ssl;
                ssl_certificate {live}/fullchain.pem;
                ssl_certificate_key {live}/private.key;
              }}
            }}
            """
        ).replace("user ;", "")
    )
    yield (program, "-p", str(tmp_path), "-c", str(config), "-s", "reload")
    pid = tmp_path / "nginx.pid"
    if pid.exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid.read_text()), signal.SIGQUIT)
        for _ in range(500):
            if not pid.exists():
                break
            time.sleep(0.01)


def start(reload: tuple[str, ...]) -> None:
    subprocess.run(reload[:-2], check=True, capture_output=True)


def items_for(reload: tuple[str, ...], port: int) -> list[InstallItem]:
    return [ExecAction(id="r", cmd_argv=reload, verify=VerifyTls(host="127.0.0.1", port=port))]


async def test_renewed_means_served(live_host: Host, nginx: tuple[str, ...], port: int) -> None:
    host, items = live_host, items_for(nginx, port)
    host.allow(commands={"nginx": NamedCommand(argv=nginx)})
    first = (await host.deliver(1, items=items))[1]
    assert first.kind is OutcomeKind.FAILED, "nginx does not run yet"
    assert host.live(1), "but it can be started now"
    start(nginx)
    assert (await host.installer.converge_all(items, due_now=True)).kind is OutcomeKind.APPLIED
    took = []
    for _ in range(5):
        bundle = host.bundle(1)
        began = time.perf_counter()
        prepared = await host.installer.stage(bundle, items)
        outcome = (await host.installer.converge([prepared], items))[1]
        took.append((time.perf_counter() - began) * 1000)
        assert outcome.kind is OutcomeKind.APPLIED, outcome
        assert host.live(1) == bundle.facts.fingerprint_sha256
    print("staged to served, ms:", [round(one) for one in took])


async def test_a_pair_that_nginx_refuses_is_rolled_back_under_load(
    live_host: Host, nginx: tuple[str, ...], port: int, tmp_path: Path
) -> None:
    host, items = live_host, items_for(nginx, port)
    host.allow(commands={"nginx": NamedCommand(argv=nginx)})
    await host.deliver(1, items=items)
    start(nginx)
    await host.installer.converge_all(items, due_now=True)
    good = host.live(1)
    # a directive nginx does not know: the reload command fails, the old workers continue
    config = tmp_path / "nginx.conf"
    text = config.read_text()
    config.write_text(text + "nonsense;\n")
    outcome = (await host.deliver(1, items=items))[1]
    assert outcome.kind is OutcomeKind.ROLLED_BACK
    assert "unknown directive" in outcome.detail and host.live(1) == good
    config.write_text(text)
    assert (await host.installer.converge_all(items, due_now=True)).kind is OutcomeKind.APPLIED
    assert host.live(1) != good


async def test_the_probe_notices_a_server_that_ignores_its_reload(
    live_host: Host, nginx: tuple[str, ...], port: int
) -> None:
    host, deaf = live_host, ("/bin/true",)
    host.allow(commands={"nginx": NamedCommand(argv=nginx), "deaf": NamedCommand(argv=deaf)})
    items = items_for(nginx, port)
    await host.deliver(1, items=items)
    start(nginx)
    await host.installer.converge_all(items, due_now=True)
    good = host.live(1)
    outcome = (await host.deliver(1, items=items_for(deaf, port)))[1]
    assert outcome.kind is OutcomeKind.ROLLED_BACK and "serves another certificate" in outcome.detail
    assert host.live(1) == good


async def test_a_real_check_sees_the_staged_files(live_host: Host, tmp_path: Path, need: Callable[[str], str]) -> None:
    host, openssl = live_host, need("openssl")
    check = (openssl, "pkey", "-in", "{staged}/private.key", "-check", "-noout")
    items = [CopyAction(id="c", ob_id=1, sources=("combined.pem",), targets=(str(host.out / "a.pem"),), check=check)]
    host.allow(commands={"check": NamedCommand(argv=check)})
    assert (await host.deliver(1, items=items))[1].kind is OutcomeKind.APPLIED
    assert (host.out / "a.pem").exists()


async def test_a_hanging_reload_of_one_service_does_not_delay_another(
    live_host: Host, nginx: tuple[str, ...], port: int
) -> None:
    host, hang = live_host, ("/bin/sleep", "30")
    host.allow(commands={"nginx": NamedCommand(argv=nginx), "hang": NamedCommand(argv=hang, timeout_seconds=2.0)})
    items = [
        ExecAction(id="n", ob_id=1, cmd_argv=nginx, verify=VerifyTls(host="127.0.0.1", port=port)),
        ExecAction(id="h", ob_id=2, cmd_argv=hang),
    ]
    await host.deliver(1, items=items)
    start(nginx)
    await host.installer.converge((), items, only=[1])
    done: dict[int, tuple[float, OutcomeKind]] = {}
    began = trio.current_time()

    async def one(cert_id: int) -> None:
        outcome = (await host.deliver(cert_id, items=items))[cert_id]
        done[cert_id] = (trio.current_time() - began, outcome.kind)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, 2)
        await trio.sleep(0.2)
        nursery.start_soon(one, 1)
    assert done[1][1] is OutcomeKind.APPLIED and done[2][1] is OutcomeKind.FAILED
    assert done[1][0] < 1.5 < done[2][0]
