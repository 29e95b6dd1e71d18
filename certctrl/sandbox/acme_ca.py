"""The certificate authority of `sandbox --acme`: Pebble, or acme2certifier, as child processes on loopback.

Both are third-party test servers. Pebble validates challenges at a port of the agent, and its small DNS server resolves
all names to this host. acme2certifier suggests renewal windows (RFC 9773); it does not check challenges here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import trio

from certctrl import lean
from certctrl.agent.clock import wall_now
from certctrl.errors import CommandError, UsageError
from certctrl.plane.ca.x509 import key_pem, new_intermediate, new_key, new_root, pem_of, sign_leaf
from certctrl.sandbox.servers import HOST, end_process, free_port, module_argv

PEBBLE, ARI = "pebble", "ari"
KINDS = (PEBBLE, ARI)
START_SECONDS = 30.0
LIFE_SECONDS = 45
"""Life of Pebble's certificates; a renewal is due after half of it."""
WINDOW_STARTS = 10.0
"""Seconds after its issue when acme2certifier wants a certificate to be renewed."""
WINDOW_SECONDS = 10
DAY = 86_400
_PROGRAM_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/bin"))

Guard = Callable[[int], Awaitable[None]]
"""Makes the witness end a process if the sandbox is killed."""


@lean.frozen(kw_only=True)
class AcmeCa:
    """A running authority."""

    label: str
    settings: Mapping[str, Any]
    """Settings of the plane's issuer, without the challenges."""
    root_file: Path
    """File with the root of its certificates, for the witness."""
    http_port: int
    """Port of the agent at which it validates http-01."""


def require_ca(kind: str) -> None:
    """Raise UsageError unless the kind is known and installed."""
    if kind not in KINDS:
        raise UsageError(f"--acme {kind}: not one of {', '.join(KINDS)}")
    if kind == PEBBLE:
        for program in ("pebble", "pebble-challtestsrv"):
            if shutil.which(program, path=_PROGRAM_PATH) is None:
                raise UsageError(f"--acme: {program} is not installed", fix="apt-get install pebble")
    elif importlib.util.find_spec("acme2certifier") is None:
        raise UsageError("--acme ari: acme2certifier is not installed", fix="pip install acme2certifier")


@contextlib.asynccontextmanager
async def running_ca(kind: str, folder: Path, guard: Guard) -> AsyncIterator[AcmeCa]:
    """Run the authority in a new folder during the block. Raises CommandError if it does not start."""
    await trio.Path(folder).mkdir(mode=0o700)
    start = _pebble if kind == PEBBLE else _acme2certifier
    async with start(folder, guard) as ca:
        yield ca


@contextlib.asynccontextmanager
async def _pebble(folder: Path, guard: Guard) -> AsyncIterator[AcmeCa]:
    port, management, dns, dns_management, http_port = (free_port() for _ in range(5))
    tls_ca = await trio.to_thread.run_sync(_write_tls, folder)
    config = {
        "listenAddress": f"{HOST}:{port}",
        "managementListenAddress": f"{HOST}:{management}",
        "certificate": str(folder / "tls.pem"),
        "privateKey": str(folder / "tls.key"),
        "httpPort": http_port,
        "tlsPort": free_port(),
        "ocspResponderURL": "",
        "externalAccountBindingRequired": False,
        "certificateValidityPeriod": LIFE_SECONDS,
    }
    (folder / "pebble.json").write_text(json.dumps({"pebble": config}))
    names = [
        *("pebble-challtestsrv", "-dns01", f"{HOST}:{dns}", "-management", f"{HOST}:{dns_management}"),
        *("-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv4", HOST, "-defaultIPv6", ""),
    ]
    pebble = ["pebble", "-config", str(folder / "pebble.json"), "-dnsserver", f"{HOST}:{dns}"]
    async with (
        _child(names, folder / "dns.log", dns_management, guard),
        _child(pebble, folder / "pebble.log", management, guard, PEBBLE_VA_NOSLEEP="1"),
    ):
        root = await _fetched(management, "/roots/0", tls_ca)
        (folder / "root.pem").write_bytes(root)
        yield AcmeCa(
            label="Pebble",
            settings={"directory_url": f"https://{HOST}:{port}/dir", "ca_file": str(tls_ca)},
            root_file=folder / "root.pem",
            http_port=http_port,
        )


@contextlib.asynccontextmanager
async def _acme2certifier(folder: Path, guard: Guard) -> AsyncIterator[AcmeCa]:
    port = free_port()
    await trio.to_thread.run_sync(_write_acme2certifier, folder)
    argv = module_argv("certctrl.sandbox.acme2certifier", str(port))
    environment = {
        "ACME_SRV_CONFIGFILE": str(folder / "acme_srv.cfg"),
        "ACME2CERTIFIER_BASE_DIR": str(folder),
        "ACME2CERTIFIER_I_KNOW_THE_RISK": "1",  # otherwise it refuses to skip the check of challenges
    }
    async with _child(argv, folder / "ca.log", port, guard, cwd=folder, **environment):
        yield AcmeCa(
            label="acme2certifier",
            settings={"directory_url": f"http://{HOST}:{port}/directory", "contact": ["sandbox@example.com"]},
            root_file=folder / "root.pem",
            http_port=free_port(),
        )


def _write_tls(folder: Path) -> Path:
    """Write the certificate of Pebble's own web server; return the file of its CA."""
    now = wall_now()
    root = new_root("certctrl sandbox", not_before=now - 3600, not_after=now + 30 * DAY)
    issuer = new_intermediate(root, "certctrl sandbox 2", not_before=now - 3600, not_after=now + 30 * DAY)
    key = new_key("ecdsa-p256")
    leaf = sign_leaf(issuer, key.public_key(), [HOST], not_before=now - 3600, not_after=now + 30 * DAY)
    (folder / "tls-ca.pem").write_text(root.pem)
    (folder / "tls.pem").write_text(pem_of(leaf) + issuer.pem)
    (folder / "tls.key").write_bytes(key_pem(key))
    return folder / "tls-ca.pem"


def _write_acme2certifier(folder: Path) -> None:
    """Write the CA that acme2certifier issues from, and its configuration."""
    now = wall_now()
    root = new_root("certctrl sandbox ACME", not_before=now - 3600, not_after=now + 30 * DAY)
    issuer = new_intermediate(root, "certctrl sandbox ACME 2", not_before=now - 3600, not_after=now + 30 * DAY)
    (folder / "root.pem").write_text(root.pem)
    (folder / "ca.pem").write_text(issuer.pem)
    (folder / "ca.key").write_bytes(key_pem(issuer.key))
    (folder / "certs").mkdir()
    package = "acme2certifier"
    config: dict[str, dict[str, str]] = {
        "DEFAULT": {"debug": "False"},
        "Nonce": {"nonce_check_disable": "False"},
        "CAhandler": {
            "handler_module": f"{package}.cahandlers.openssl_ca_handler",
            "issuing_ca_key": str(folder / "ca.key"),
            "issuing_ca_cert": str(folder / "ca.pem"),
            "ca_cert_chain_list": json.dumps([str(folder / "root.pem")]),
            "issuing_ca_crl": str(folder / "crl.pem"),
            "cert_save_path": str(folder / "certs"),
            "cert_validity_days": "1",
        },
        "DBhandler": {"handler_module": f"{package}.dbhandlers.wsgi_handler", "dbfile": str(folder / "ca.db")},
        "Certificate": {"revocation_reason_check_disable": "False"},
        "Challenge": {"challenge_validation_disable": "True"},
        "Renewalinfo": {
            "renewalthreshold_pctg": f"{100 * WINDOW_STARTS / DAY:.5f}",
            "renewal_window_duration": f"{WINDOW_SECONDS}s",
        },
    }
    sections = [
        f"[{name}]\n" + "".join(f"{key}: {value}\n" for key, value in one.items()) for name, one in config.items()
    ]
    (folder / "acme_srv.cfg").write_text("\n".join(sections))


@contextlib.asynccontextmanager
async def _child(
    argv: Sequence[str], log: Path, port: int, guard: Guard, *, cwd: Path | None = None, **environment: str
) -> AsyncIterator[None]:
    """Run a child until the block ends; the block starts once it accepts connections at a port."""
    program = shutil.which(argv[0], path=_PROGRAM_PATH) or argv[0]
    with log.open("ab") as out:
        process = await trio.lowlevel.open_process(
            [program, *argv[1:]],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=cwd,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    try:
        await guard(process.pid)
        await _wait_until_up(process, argv[0], log, port)
        yield
    finally:
        await end_process(process)


async def _wait_until_up(process: trio.Process, name: str, log: Path, port: int) -> None:
    with trio.move_on_after(START_SECONDS):
        while process.poll() is None:
            with contextlib.suppress(OSError):
                await (await trio.open_tcp_stream(HOST, port)).aclose()
                return
            await trio.sleep(0.05)
    lines = (await trio.Path(log).read_text(errors="replace")).splitlines()
    raise CommandError(f"{name} did not start: {lines[-1] if lines else 'no output'}", fix=f"read {log}")


async def _fetched(port: int, path: str, ca_file: Path) -> bytes:
    """Return the body of a small answer of Pebble's management interface."""
    context = ssl.create_default_context(cafile=str(ca_file))
    stream = await trio.open_ssl_over_tcp_stream(HOST, port, ssl_context=context, https_compatible=True)
    async with stream:
        await stream.send_all(f"GET {path} HTTP/1.0\r\nHost: {HOST}\r\n\r\n".encode("ascii"))
        data = b""
        while len(data) < 1_000_000 and (part := await stream.receive_some(65_536)):
            data += part
    head, _, body = data.partition(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise CommandError("Pebble does not show its root", fix="update pebble")
    return body
