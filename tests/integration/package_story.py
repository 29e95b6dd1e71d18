"""A host and its control plane from packages: set up, nginx served, upgraded under load, removed and purged.

Everything runs as docs/installing.md and docs/services/nginx.md say, in a Debian with a running systemd.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from booted_root import BootedRoot, wait_for
from load_client import Line
from proofs import Load

from certctrl.sandbox.servers import free_port
from certctrl.sandbox.witness import plain_serial

DATA, DIRECTORY, SITE = "/var/lib/cert-ctrl-plane", "/etc/cert-ctrl", "www.example.com"
EXAMPLES = "/usr/share/doc/cert-ctrl/examples"
HELPERS = "/usr/local/lib/cert-ctrl"
AGENT, PLANE = "cert-ctrl.service", "cert-ctrl-plane.service"


class Story:
    """One host with agent, control plane and nginx."""

    def __init__(self, host: BootedRoot, keep: Path) -> None:
        self.host = host
        self.plane_port, self.nginx_port = free_port(), free_port()
        self._ca = keep / "issuing-ca.pem"

    def install(self, debs: Sequence[Path]) -> None:
        """Install the packages; nothing runs or will."""
        self.host.dpkg("-i", *debs)
        for unit in (AGENT, PLANE):
            assert self.host.shows(unit, "ActiveState") == "inactive"
            assert self.host.shows(unit, "UnitFileState") == "disabled"
        units = self.host.file("/usr/lib/systemd/system").glob("cert-ctrl*.service")
        for program in {
            found for unit in units for found in re.findall(r"^Exec\w+=[+!-]*(\S+)", unit.read_text(), re.M)
        }:
            self.host.run("test", "-x", program, quiet=True)

    def allow(self, files: Collection[Mapping[str, str]], units: Collection[str]) -> None:
        """Let the root helper write files and reload units for the agent, as docs/root-helper.md says."""
        policy = {"files": list(files), "units": {unit: ["reload"] for unit in units}}
        self.host.write("/etc/cert-ctrl-helper.json", json.dumps({"cert-ctrl": policy}))
        self.host.run("cert-ctrl", "helper", "--check")
        self.host.run("systemctl", "enable", "--now", "cert-ctrl-helper.socket")

    def set_up(self) -> None:
        """Set control plane and agent up; both run then."""
        host = self.host
        address = f"127.0.0.1:{self.plane_port}"
        said = host.run("cert-ctrl", "plane", "setup", "--hostname", "localhost", "--listen", address)
        found = re.search(r"--ca-fingerprint[ =]([0-9a-f]{16,})", said)
        assert found is not None, said
        host.run("sh", "-c", f"umask 077; cert-ctrl plane enrolment-token --data {DATA} > /root/token")
        url = f"https://localhost:{self.plane_port}"
        words = ("--server", url, "--ca-fingerprint", found[1], "--token-file", "/root/token", "--name", "web-1")
        host.run("cert-ctrl", "setup", *words)
        for unit in (AGENT, PLANE):
            assert host.shows(unit, "ActiveState") == "active", host.journal(unit)
            assert host.shows(unit, "UnitFileState") == "enabled"

    def issue(self) -> bytes:
        """Issue a certificate for the host; return it as it arrives there."""
        self.host.run("cert-ctrl", "plane", "issue", "--data", DATA, SITE, "--device", "web-1")
        file = self.host.file(f"{DIRECTORY}/certs/{SITE}.crt")
        wait_for(file.exists, "the certificate arrives")
        return file.read_bytes()

    def use_recipe(self) -> None:
        """Let nginx serve the certificate with the packaged recipe."""
        host = self.host
        host.run("sh", "-c", f"install -D -m 0755 -t {HELPERS} {EXAMPLES}/services/lib/*")
        recipe = host.file(f"{EXAMPLES}/services/nginx")
        items = json.loads((recipe / "items.json").read_text())
        for item in items:
            if "verify" in item:
                item["verify"]["port"] = self.nginx_port
        host.write(f"{DIRECTORY}/installs.local.json", json.dumps(items))
        host.write(f"{DIRECTORY}/policy.json", (recipe / "policy.json").read_text())
        host.run("chown", f"--reference={DIRECTORY}", f"{DIRECTORY}/installs.local.json", f"{DIRECTORY}/policy.json")
        site = (recipe / "site.conf").read_text().replace("listen 443", f"listen 127.0.0.1:{self.nginx_port}")
        host.write("/etc/nginx/conf.d/site.conf", site)
        host.run("sh", "-c", "mkdir -p /var/www/html; echo served > /var/www/html/index.html")
        host.run("systemctl", "restart", "nginx")
        host.run("systemctl", "reload", "cert-ctrl")
        host.run("cert-ctrl", "apply", "--now")
        self._ca.write_text(host.run("cat", f"{DATA}/issuing-ca.pem", quiet=True))

    def target(self) -> dict[str, Any]:
        """Return the parameters for `load_client`."""
        return {"kind": "https", "host": "127.0.0.1", "port": self.nginx_port, "name": SITE, "ca": str(self._ca)}

    def served(self) -> str:
        """Return the serial that nginx serves to a client that verifies it."""
        line = Line(self.target(), ssl.create_default_context(cafile=str(self._ca)))
        line.close()
        return line.serial

    def use_database(self, url: str) -> None:
        """Move the control plane into a database of PostgreSQL, as docs/postgresql.md says; the file of SQLite is gone then."""
        host = self.host
        host.run("systemctl", "stop", PLANE)
        host.run("cert-ctrl", "plane", "migrate-to", url, "--data", DATA)
        options = host.file("/etc/default/cert-ctrl-plane").read_text().strip()
        host.write("/etc/default/cert-ctrl-plane", f"{options} --database {url}\n")
        host.file(f"{DATA}/plane.db").rename(host.file(f"{DATA}/before.db"))
        host.run("systemctl", "start", PLANE)
        host.run("systemctl", "restart", AGENT)

    def renew_certificate(self) -> None:
        """Renew the certificate, and wait until the agent has the new one."""
        file = self.host.file(f"{DIRECTORY}/certs/{SITE}.crt")
        before = file.read_bytes()
        self.host.run("cert-ctrl", "plane", "renew", "--data", DATA, SITE, "--yes")
        wait_for(lambda: file.read_bytes() != before, "the renewed certificate arrives")

    def renew(self) -> None:
        """Renew the certificate, and wait until nginx serves the new one."""
        before = self.served()
        self.host.run("cert-ctrl", "plane", "renew", "--data", DATA, SITE, "--yes")
        wait_for(lambda: self.served() != before, "nginx serves the renewed certificate")

    def upgrade_under_load(self, debs: Sequence[Path]) -> None:
        """Upgrade both packages while clients connect to nginx: none fails, and each service restarts once."""
        host = self.host
        first = {unit: host.shows(unit, "InvocationID") for unit in (AGENT, PLANE)}
        starts = {unit: started(host, unit) for unit in first}
        with Load(self.target()) as load:
            self.renew()
            host.dpkg("-i", *debs)
            for unit, invocation in first.items():
                assert host.shows(unit, "ActiveState") == "active", host.journal(unit)
                assert host.shows(unit, "InvocationID") != invocation
                assert started(host, unit) == starts[unit] + 1, host.journal(unit)
            self.renew()
            seen = load.stop()
        counts = ", ".join(f"{what} {count}" for what, count in seen.items() if isinstance(count, int))
        host.transcript.say(f"  clients of nginx during the upgrade and two renewals: {counts}")
        assert seen["faults"] == [] and seen["new"] > 0 and seen["kept"] > 0, seen
        assert plain_serial(self.served()) in seen["serials"]
        for line in host.journal(AGENT, f"_SYSTEMD_INVOCATION_ID={host.shows(AGENT, 'InvocationID')}"):
            host.transcript.say(f"  cert-ctrl: {line}")
        host.run("cert-ctrl", "status")

    def remove(self) -> None:
        """Remove the packages: nginx serves on, and everything that the agent made stays."""
        host, served = self.host, self.served()
        host.dpkg("-r", "cert-ctrl-plane", "cert-ctrl")
        for unit in (AGENT, PLANE):
            assert host.shows(unit, "ActiveState") == "inactive"
        assert host.file(f"{DIRECTORY}/state/refresh_token.txt").exists()
        assert not host.file("/usr/lib/cert-ctrl").exists()
        self._serves_after_restart(served)

    def purge(self) -> None:
        """Purge the packages: only certificates stay, and nginx starts with them."""
        host, served = self.host, self.served()
        host.dpkg("--purge", "cert-ctrl-plane", "cert-ctrl")
        assert [path.name for path in host.file(DIRECTORY).iterdir()] == ["certs"]
        assert not host.file(DATA).exists()
        self._serves_after_restart(served)

    def _serves_after_restart(self, served: str) -> None:
        self.host.run("systemctl", "restart", "nginx")
        assert self.served() == served


def started(host: BootedRoot, unit: str) -> int:
    """Return how often systemd has started a unit."""
    return sum(line.startswith("Started ") for line in host.journal(unit, "_PID=1"))
