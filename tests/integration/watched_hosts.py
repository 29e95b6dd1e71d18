"""Hosts for rollouts that are watched: each an agent and an nginx at a loopback address of its own, all with one certificate.

A host's reload waits for its gate, so that a test decides how far a wave is while it looks. A gate is a lock: who waits
for it does nothing meanwhile, and has no deadline that a busy machine could miss.
"""

from __future__ import annotations

import fcntl
import json
import shlex
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from cryptography import x509
from fleet import ROOT, USER, Child, Fleet, Plane

from certctrl.sandbox.servers import free_port
from certctrl.sandbox.witness import plain_serial

DOMAIN = "shop.example.com"
PATIENCE = 1200.0
"""Seconds after which something is taken to hang."""
CHECK_NGINX = ROOT / "deploy" / "services" / "lib" / "check-nginx"
NGINX = """\
daemon off;
pid {place}/nginx.pid;
worker_processes 1;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {place}/tmp; proxy_temp_path {place}/tmp; fastcgi_temp_path {place}/tmp;
    uwsgi_temp_path {place}/tmp; scgi_temp_path {place}/tmp;
    server {{
        listen {address}:{port} ssl;
        server_name {domain};
        ssl_certificate {place}/tls/fullchain.pem;
        ssl_certificate_key {place}/tls/private.key;
    }}
}}
"""
CHECK = """\
#!/bin/sh
if [ -e {place}/locked ]; then
    echo "changes are locked on this host: $(cat {place}/locked)" >&2
    exit 1
fi
exec {check} "$1"
"""
RELOAD = """\
#!/bin/sh
exec 9< {place}/gate
flock 9
exec {nginx} -s reload 9<&-
"""


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until something holds, without much work: machines with fifty agents are busy."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what}: it hangs"
        time.sleep(0.2)


class Host:
    """One host: its agent, its nginx and its gate."""

    def __init__(self, fleet: Fleet, plane: Plane, number: int, port: int, nginx: str) -> None:
        self._fleet, self.number, self.name = fleet, number, f"web-{number:02}"
        self.address, self.port = f"127.50.{number // 250}.{1 + number % 250}", port
        self.place = fleet.root / "hosts" / self.name
        (self.place / "tls").mkdir(parents=True)
        (self.place / "gate").touch()
        self._argv = (nginx, "-p", str(self.place), "-e", str(self.place / "error.log"), "-c", str(self.place / "conf"))
        words = {
            "place": self.place, "address": self.address, "port": port, "domain": DOMAIN, "nginx": shlex.join(self._argv),
            "check": CHECK_NGINX,
        }  # fmt: skip
        for file, text in (("conf", NGINX), ("check", CHECK), ("reload", RELOAD)):
            (self.place / file).write_text(text.format(**words))
        self._held: TextIO | None = None
        self.agent = fleet.agent(plane, self.name, poll_interval_ms=1000, signal_timeout_seconds=3600)
        self.agent.layout.policy.write_text(json.dumps(self._policy()))

    def _policy(self) -> dict[str, Any]:
        return {
            "write_roots": [str(self.place / "tls")],
            "commands": {
                "check nginx": {"argv": ["/bin/sh", str(self.place / "check"), "{staged}"], "timeout_seconds": 600},
                "reload nginx": {"argv": ["/bin/sh", str(self.place / "reload")], "timeout_seconds": 600},
            },
        }

    def start_nginx(self) -> None:
        """Start its nginx, and wait until it accepts connections."""
        self._nginx: Child = self._fleet.child(self._argv, f"{self.name}.nginx.log")
        until(self._accepts, f"nginx of {self.name}")

    def _accepts(self) -> bool:
        assert self._nginx.running, (self.place / "error.log").read_text()
        try:
            socket.create_connection((self.address, self.port), timeout=30).close()
        except OSError:
            return False
        return True

    def stop_nginx(self) -> None:
        """Stop its nginx."""
        self._nginx.stop()

    def lock(self, why: str) -> None:
        """Let its check refuse each change."""
        (self.place / "locked").write_text(why)

    def hold(self) -> None:
        """Let its next reload wait."""
        self._held = (self.place / "gate").open()
        fcntl.flock(self._held, fcntl.LOCK_EX)

    def let_go(self) -> None:
        """Let its reload go on."""
        if self._held is not None:
            self._held.close()

    def served(self) -> str:
        """Return the serial number that a client gets in a handshake; empty: none."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            with (
                socket.create_connection((self.address, self.port), timeout=60) as line,
                context.wrap_socket(line, server_hostname=DOMAIN) as tls,
            ):
                der = tls.getpeercert(binary_form=True)
        except OSError:
            return ""
        assert der is not None
        return f"{x509.load_der_x509_certificate(der).serial_number:x}"

    def on_disk(self) -> str:
        """Return the serial number of the file that its nginx reads."""
        pem = (self.place / "tls" / "fullchain.pem").read_bytes()
        return f"{x509.load_pem_x509_certificate(pem).serial_number:x}"


class Site:
    """A plane and its hosts, which serve a certificate."""

    def __init__(self, fleet: Fleet, count: int, nginx: str) -> None:
        self.root, self.plane = fleet.root, fleet.plane()
        port = free_port()
        self.hosts = [Host(fleet, self.plane, number, port, nginx) for number in range(1, count + 1)]
        self.canary = self.hosts[count // 2]
        self._tag()
        self._put_profile(port)
        ids = [host.agent.device_id for host in self.hosts]
        self.cert_id = int(self.plane.operator.issue(DOMAIN, *ids)["id"])
        make_pair(self.root)
        for host in self.hosts:
            for name in ("private.key", "fullchain.pem"):  # what a distribution starts a server with
                (host.place / "tls" / name).write_bytes((self.root / name).read_bytes())
            host.start_nginx()
        for host in self.hosts:
            host.agent.start(ready=False)
        wanted = self.serial()
        for host in self.hosts:
            until(lambda: host.served() == wanted, f"{host.name} to serve the certificate")  # noqa: B023

    def _tag(self) -> None:
        for host in self.hosts:
            tags = ["web", f"address={host.address}", *(["canary"] if host is self.canary else [])]
            body = {"device_ids": [host.agent.device_id], "add": tags}
            self.plane.operator.call("POST", f"/apiv1/users/{USER}/device-tags", body)

    def _put_profile(self, port: int) -> None:
        tls = f"{self.root}/hosts/{{device.name}}/tls"
        items = [
            {
                "id": "nginx", "type": "copy", "ob_name": DOMAIN, "from": ["private.key", "fullchain.pem"],
                "to": [f"{tls}/private.key", f"{tls}/fullchain.pem"], "check": ["check nginx"],
                "verify": {"type": "tls", "host": "{device.tag.address}", "port": port, "server_name": DOMAIN},
            },
            {"id": "reload", "type": "exec", "cmd_argv": ["reload nginx"], "depends_on": ["nginx"], "timeout_ms": 600_000},
        ]  # fmt: skip
        body = {"devices": "web", "installs": items}
        self.plane.operator.call("PUT", f"/apiv1/users/{USER}/profiles/nginx", body)

    def serial(self) -> str:
        """Return the newest serial number of the certificate."""
        return plain_serial(self.plane.operator.serial(self.cert_id))

    def waves(self, sizes: Sequence[int]) -> list[list[Host]]:
        """Return the hosts of each wave: the canary, waves of these sizes, the rest."""
        left = [host for host in self.hosts if host is not self.canary]
        found = [[self.canary]]
        for size in sizes:
            found.append(left[:size])
            left = left[size:]
        return [*found, left]


def make_pair(folder: Path) -> None:
    """Make a key and a certificate that nobody trusts."""
    words = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=unset", "-days", "30"]
    files = ["-keyout", str(folder / "private.key"), "-out", str(folder / "fullchain.pem")]
    subprocess.run(["openssl", "req", "-x509", *words, *files], check=True, capture_output=True, timeout=600)
