"""Real DNS servers for tests: BIND and Knot on loopback addresses and unprivileged ports, with TSIG keys."""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs
import dns.message
import dns.query

START_SECONDS = 60.0
BIND_ADDRESS = "127.0.0.1"


@attrs.frozen
class Key:
    """A TSIG key."""

    name: str = "acme-update"
    algorithm: str = "hmac-sha256"
    secret: str = attrs.field(factory=lambda: base64.b64encode(secrets.token_bytes(32)).decode(), repr=False)

    @property
    def file(self) -> str:
        """As tsig-keygen writes it."""
        return f'key "{self.name}" {{\n\talgorithm {self.algorithm};\n\tsecret "{self.secret}";\n}};\n'


@attrs.define
class DnsServerProcess:
    """A running server."""

    address: str
    port: int
    log: Path
    command: list[str]
    process: subprocess.Popen[bytes] | None = None

    @property
    def place(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, cwd="/", start_new_session=True)
        query = dns.message.make_query("example.com", "SOA")
        limit = time.monotonic() + START_SECONDS
        while True:
            assert self.process.poll() is None and time.monotonic() < limit, self.log.read_text()[-3000:]
            with contextlib.suppress(dns.exception.Timeout, OSError):
                dns.query.tcp(query, self.address, port=self.port, timeout=2)
                return
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def texts(self, name: str) -> list[str]:
        """Return the TXT records that it has for a name."""
        answer = dns.query.tcp(dns.message.make_query(name, "TXT"), self.address, port=self.port, timeout=5)
        return sorted(
            "".join(part.decode() for part in rdata.strings)
            for rrset in answer.answer if rrset.rdtype == dns.rdatatype.TXT for rdata in rrset
        )  # fmt: skip


def zone_text(zone: str, servers: Sequence[str], extra: str = "") -> str:
    """Return a zone whose name servers have these addresses."""
    lines = ["$TTL 60", f"@ IN SOA ns1.{zone}. hostmaster.{zone}. 1 3600 600 86400 60"]
    for number, address in enumerate(servers, 1):
        kind = "AAAA" if ":" in address else "A"
        lines += [f"@ IN NS ns{number}.{zone}.", f"ns{number} IN {kind} {address}"]
    return "\n".join([*lines, "www IN A 127.0.0.1", extra, ""])


@attrs.frozen
class Servers:
    """Starts servers in a directory of their own."""

    root: Path
    need: Callable[[str], str]
    stack: contextlib.ExitStack

    def bind(self, zones: dict[str, str], key: Key, *, policy: str = "", port: int = 0) -> DnsServerProcess:
        """Return a running BIND with zone texts; ``policy`` replaces the right of the key to update everything.

        It listens at 127.0.0.1 only, since no interface has another address, but at a port of its own.
        """
        home, port = self._home("bind"), port or free_port()
        lines = [
            key.file,
            f'options {{ directory "{home}"; listen-on port {port} {{ {BIND_ADDRESS}; }}; listen-on-v6 {{ none; }};',
            f'  pid-file "{home}/pid"; session-keyfile "{home}/session.key"; recursion no; dnssec-validation no;',
            "  allow-transfer { any; }; notify no; empty-zones-enable no; max-cache-size 1m; };",
            "controls { };",
        ]
        for zone, text in zones.items():
            (home / f"{zone}.zone").write_text(text)
            allowed = policy or f"allow-update {{ key {key.name}; }};"
            lines.append(f'zone "{zone}" {{ type primary; file "{home}/{zone}.zone"; {allowed} }};')
        (home / "named.conf").write_text("\n".join(lines))
        self._hand_over(home)
        user = ["-u", "bind"] if os.geteuid() == 0 else []
        command = [self.need("named"), "-g", "-n", "1", "-c", str(home / "named.conf"), *user]
        return self._started(BIND_ADDRESS, port, home, command)

    def knot(
        self, address: str, zones: dict[str, str], key: Key, *, port: int = 0, primary: str = "", acl: str = ""
    ) -> DnsServerProcess:
        """Return a running Knot with zone texts; ``primary``: it copies them from there every two seconds.

        ``acl``: lines that restrict what the key may update.
        """
        home, port = self._home("knot"), port or free_port()
        (home / "db").mkdir()
        lines = [
            f"server:\n    rundir: {home}\n    listen: {address}@{port}\n    udp-workers: 1\n    tcp-workers: 1",
            "    background-workers: 1",
            f"database:\n    storage: {home}/db\n    journal-db-max-size: 16M",
            f"key:\n  - id: {key.name}\n    algorithm: {key.algorithm}\n    secret: {key.secret}",
            f"acl:\n  - id: update\n    key: {key.name}\n    action: [update]\n{acl}",
            "log:\n  - target: stderr\n    any: info",
            *([f"remote:\n  - id: primary\n    address: {primary}@{port}"] if primary else []),
            "zone:",
        ]
        copying = "    master: primary\n    refresh-max-interval: 2\n    retry-max-interval: 2\n" if primary else ""
        for zone, text in zones.items():
            if not primary:
                (home / f"{zone}.zone").write_text(text)
            lines.append(
                f"  - domain: {zone}\n    storage: {home}\n    file: {zone}.zone\n    acl: [update]\n{copying}"
            )
        (home / "knot.conf").write_text("\n".join(lines) + "\n")
        return self._started(address, port, home, [self.need("knotd"), "-c", str(home / "knot.conf")])

    def _home(self, kind: str) -> Path:
        home = self.root / f"{kind}-{len(list(self.root.iterdir()))}"
        home.mkdir(mode=0o755)
        return home

    def _hand_over(self, home: Path) -> None:
        """Give a directory to BIND's user, which it becomes."""
        if os.geteuid() == 0:
            for path in (home, *home.iterdir()):
                shutil.chown(path, "bind", "bind")

    def _started(self, address: str, port: int, home: Path, command: list[str]) -> DnsServerProcess:
        server = DnsServerProcess(address, port, self.root / f"{home.name}.log", command)
        self.stack.callback(server.stop)
        server.start()
        return server


@contextlib.contextmanager
def dns_servers(need: Callable[[str], str]) -> Iterator[Servers]:
    """Yield a factory of servers, which end with the block."""
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dns-", dir="/tmp")))
        root.chmod(0o755)
        yield Servers(root, need, stack)


def free_port() -> int:
    """Return a port that is free on all loopback addresses, for UDP and TCP."""
    while True:
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("0.0.0.0", 0))
            port = int(tcp.getsockname()[1])
            with contextlib.suppress(OSError):
                udp.bind(("0.0.0.0", port))
                return port
