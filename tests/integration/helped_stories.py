"""Hosts whose agent is not root and has the packaged root helper: the databases, and the servers of web and mail.

Everything runs as docs/root-helper.md and the recipes of docs/services say, with the packaged files.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from booted_root import BootedRoot, wait_for
from cryptography import x509
from package_story import AGENT, DATA, DIRECTORY, EXAMPLES, HELPERS, SITE, Story

MAIL = "mail.example.com"
SSL_REQUEST = struct.pack("!ii", 8, 80877103)
KEYSTORE, PASSWORD = "/etc/ssl/myapp/keystore.jks", "/etc/ssl/myapp/password"


class Helped(Story):
    """A host with the helper, and servers at their `ports`."""

    def __init__(self, host: BootedRoot, keep: Path, ports: Mapping[str, int]) -> None:
        super().__init__(host, keep)
        self._ports = ports

    def recipe(self, name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return the packaged items and policy of a recipe."""
        recipe = self.host.file(f"{EXAMPLES}/services/{name}")
        return json.loads((recipe / "items.json").read_text()), json.loads((recipe / "policy.json").read_text())

    def use(self, items: Collection[Mapping[str, Any]], policies: Collection[Mapping[str, Any]]) -> None:
        """Give the agent items, and the policies of their recipes in one."""
        policy: dict[str, Any] = {"commands": {}, "write_roots": [], "owners": []}
        for one in policies:
            policy["commands"] |= one["commands"]
            policy["write_roots"] += one.get("write_roots", [])
            policy["owners"] += one.get("owners", [])
        host = self.host
        host.write(f"{DIRECTORY}/installs.local.json", json.dumps(list(items)))
        host.write(f"{DIRECTORY}/policy.json", json.dumps(policy))
        host.run("chown", f"--reference={DIRECTORY}", f"{DIRECTORY}/installs.local.json", f"{DIRECTORY}/policy.json")

    def trust(self) -> None:
        """Let the clients of the test trust the control plane's CA."""
        self._ca.write_text(self.host.run("cat", f"{DATA}/issuing-ca.pem", quiet=True))

    def issue_for(self, name: str) -> None:
        """Issue a certificate for the host, and wait until it arrives there."""
        self.host.run("cert-ctrl", "plane", "issue", "--data", DATA, name, "--device", "web-1")
        wait_for(self.host.file(f"{DIRECTORY}/certs/{name}.crt").exists, "the certificate arrives")

    def renew_for(self, name: str) -> None:
        """Renew a certificate, and wait until it arrives."""
        before = self.live(name)
        self.host.run("cert-ctrl", "plane", "renew", "--data", DATA, name, "--yes")
        wait_for(lambda: self.live(name) != before, "the renewed certificate arrives")

    def live(self, name: str = SITE) -> int:
        """Return the serial of the agent's live certificate."""
        return self.of_file(f"{DIRECTORY}/certs/{name}.crt")

    def of_file(self, path: str) -> int:
        """Return the serial of the first certificate in a file."""
        text = self.host.run("cat", path, quiet=True)
        return x509.load_pem_x509_certificates(text.encode())[0].serial_number

    @contextmanager
    def connected(self, server: str) -> Iterator[socket.socket]:
        """Connect to a server."""
        with socket.create_connection(("127.0.0.1", self._ports[server]), timeout=10) as plain:
            yield plain

    def serial(self, plain: socket.socket, name: str) -> int:
        """Return the serial that a server shows to a client that verifies it."""
        context = ssl.create_default_context(cafile=str(self._ca))
        with context.wrap_socket(plain, server_hostname=name) as tls:
            return x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"").serial_number

    def rights(self, path: str) -> str:
        """Return owner, group and mode of a file."""
        return self.host.run("stat", "--format=%U:%G:%a", path, quiet=True).strip()

    def audit(self) -> list[dict[str, Any]]:
        """Return the helper's lines in the journal."""
        lines = self.host.journal("cert-ctrl-helper.service")
        return [json.loads(line) for line in lines if line.startswith("{")]

    def agent_is_not_root(self) -> bool:
        """Return whether the agent that systemd has started runs as its own user."""
        pid = self.host.shows(AGENT, "MainPID")
        return self.host.run("stat", "--format=%U", f"/proc/{pid}", quiet=True).strip() == "cert-ctrl"


class Databases(Helped):
    """A host whose agent writes for PostgreSQL and Java, and reloads nginx and PostgreSQL, through the helper."""

    def __init__(self, host: BootedRoot, keep: Path, ports: Mapping[str, int], version: str) -> None:
        super().__init__(host, keep, ports)
        self.database = f"postgresql@{version}-main.service"
        self.config = f"/etc/postgresql/{version}/main/postgresql.conf"

    def prepare(self) -> None:
        """Do what the pages of the root helper, PostgreSQL and Java say."""
        host = self.host
        host.run("useradd", "--system", "--user-group", "myapp")
        host.run("install", "-d", "/etc/ssl/postgresql", "/etc/ssl/myapp")
        key = {"owner": "postgres", "group": "postgres", "mode": "0600"}
        files = [
            {"path": "/etc/ssl/postgresql/server.key", **key},
            {"path": "/etc/ssl/postgresql/server.crt", **key, "mode": "0644"},
            {"path": KEYSTORE, "owner": "root", "group": "myapp", "mode": "0640"},
        ]
        self.allow(files, [self.database, "nginx.service"])

    def use_items(self) -> None:
        """Give the agent the items of the three recipes, without checks by programs that the root lacks."""
        items, policies = list[dict[str, Any]](), list[dict[str, Any]]()
        for name in ("nginx", "postgresql", "java"):
            of_recipe, policy = self.recipe(name)
            items += of_recipe
            policies.append(policy)
        items = json.loads(json.dumps(items).replace("db.example.com", SITE).replace("app.example.com", SITE))
        ports = {443: self.nginx_port, 5432: self._ports["postgresql"]}
        for item in items:
            item.pop("check", None)
            if "port" in item.get("verify", {}):
                item["verify"]["port"] = ports[item["verify"]["port"]]
            elif "verify" in item:  # Java generates code, which the agent's unit forbids: keytool is run by the test
                del item["verify"]
        reload = policies[1]["commands"]["reload postgresql"]
        reload["argv"] = [*reload["argv"][:-1], self.database]
        self.use([item for item in items if item["id"] != "reload myapp"], policies)

    def start_services(self) -> None:
        """Let nginx and PostgreSQL use the certificate, after the first one has arrived."""
        host = self.host
        site = host.file(f"{EXAMPLES}/services/nginx/site.conf").read_text()
        host.write("/etc/nginx/conf.d/site.conf", site.replace("listen 443", f"listen 127.0.0.1:{self.nginx_port}"))
        host.run("systemctl", "restart", "nginx")
        tls = host.file(f"{EXAMPLES}/services/postgresql/tls.conf").read_text()
        config = host.file(self.config)
        old = [line for line in config.read_text().splitlines() if not line.startswith("ssl")]
        host.write(self.config, "\n".join([*old, tls]))
        host.run("systemctl", "restart", self.database)
        host.run("install", "-m", "0440", "-g", "myapp", f"{DIRECTORY}/state/passwords/{SITE}.jks", PASSWORD)
        self.trust()

    def of_database(self) -> int:
        """Return the serial that PostgreSQL serves."""
        with self.connected("postgresql") as plain:
            plain.sendall(SSL_REQUEST)
            assert plain.recv(1) == b"S"
            return self.serial(plain, SITE)

    def of_keystore(self) -> int:
        """Return the serial that Java reads from the keystore, as the user of the application."""
        words = ("keytool", "-list", "-v", "-keystore", KEYSTORE, "-storepass:file", PASSWORD)
        said = self.host.run(*words, user="myapp", quiet=True)
        assert "PrivateKeyEntry" in said
        found = re.search(r"Serial number: ([0-9a-f]+)", said)
        assert found is not None, said
        return int(found[1], 16)

    def all_have(self) -> int:
        """Wait until nginx, PostgreSQL and Java have the live certificate; return its serial."""
        live = self.live()
        wait_for(lambda: int(self.served(), 16) == live, "nginx serves it")
        wait_for(lambda: self.of_database() == live, "PostgreSQL serves it")
        assert self.of_keystore() == live
        return live


class Servers(Helped):
    """A host whose agent writes for HAProxy and Postfix, and reloads both, Apache and Dovecot, through the helper."""

    RECIPES = ("haproxy", "apache", "postfix", "dovecot")
    UNITS = ("haproxy.service", "apache2.service", "postfix.service", "dovecot.service")
    FILES = (f"/etc/haproxy/certs/{SITE}.pem", f"/etc/postfix/tls/{MAIL}.pem")
    NAMES: Mapping[str, str] = {"haproxy": SITE, "apache": SITE, "smtp": MAIL, "imap": MAIL, "imaps": MAIL}

    def prepare(self) -> None:
        """Do what the pages of the recipes say before the first certificate."""
        host = self.host
        host.run("sh", "-c", f"install -D -m 0755 -t {HELPERS} {EXAMPLES}/services/lib/*")
        host.run("install", "-d", "-m", "0755", "/etc/haproxy/certs", "/etc/postfix/tls")

    def use_items(self) -> None:
        """Give the agent the items of the four recipes, checks included, with the ports of this host."""
        items, policies = list[dict[str, Any]](), list[dict[str, Any]]()
        for name, server in zip(self.RECIPES, ("haproxy", "apache", "smtp", "imap"), strict=True):
            of_recipe, policy = self.recipe(name)
            for item in of_recipe:
                if "verify" in item:
                    item["verify"]["port"] = self._ports[server]
            items += of_recipe
            policies.append(policy)
        self.use(items, policies)

    def allow_as_doctor_says(self) -> None:
        """Let root's policy name the files that `doctor` prints, and the units of the recipes."""
        said = self.host.run("cert-ctrl", "doctor")
        files = [json.loads(line) for line in re.findall(r'"files": \[(\{.*?\})\]', said)]
        self.allow(files, self.UNITS)

    def start_services(self) -> None:
        """Let the servers use the certificates, after the first ones have arrived."""
        host, ports = self.host, self._ports

        def packaged(name: str) -> str:
            return host.file(f"{EXAMPLES}/services/{name}").read_text()

        frontend = packaged("haproxy/frontend.cfg").replace("bind :443", f"bind 127.0.0.1:{ports['haproxy']}")
        backend = "\nbackend app\n    mode http\n    timeout connect 1s\n    timeout server 1s\n"
        config = host.file("/etc/haproxy/haproxy.cfg").read_text()
        host.write("/etc/haproxy/haproxy.cfg", f"{config}\n{frontend}{backend}")
        host.run("a2enmod", "-q", "ssl")
        site = packaged("apache/site.conf").replace("*:443", f"*:{ports['apache']}")
        host.write("/etc/apache2/sites-enabled/site.conf", site)
        main = host.file("/etc/postfix/main.cf").read_text().splitlines()
        old = ("smtpd_tls_cert_file", "smtpd_tls_key_file", "smtpd_tls_security_level")
        kept = [line for line in main if not line.startswith(old)]
        host.write("/etc/postfix/main.cf", "\n".join([*kept, packaged("postfix/tls.cf")]))
        of_dovecot = "tls.conf" if host.run("dovecot", "--version").startswith("2.3") else "tls-2.4.conf"
        host.write("/etc/dovecot/conf.d/99-cert-ctrl.conf", packaged(f"dovecot/{of_dovecot}"))
        host.run("systemctl", "restart", *self.main())
        self.trust()

    def main(self) -> list[str]:
        """Return the units whose main process serves; that of Postfix is an instance before Debian 13."""
        alone = self.host.shows("postfix.service", "MainPID") != "0"
        return [unit if alone else unit.replace("postfix", "postfix@-") for unit in self.UNITS]

    def of(self, server: str) -> int:
        """Return the serial that a server serves, after STARTTLS where that is its way."""
        with self.connected(server) as plain:
            if server in STARTTLS:
                with plain.makefile("rw", newline="\r\n", encoding="ascii") as talk:
                    for ask, answer in STARTTLS[server]:
                        if ask:
                            talk.write(f"{ask}\n")
                            talk.flush()
                        while not re.match(answer, line := talk.readline()):
                            assert line, f"{server} has hung up"
            return self.serial(plain, self.NAMES[server])

    @contextmanager
    def broken_haproxy(self) -> Iterator[None]:
        """Break HAProxy's configuration, so that a reload fails; repair it afterwards."""
        config = self.host.file("/etc/haproxy/haproxy.cfg")
        text = config.read_text()
        config.write_text(f"{text}half a line\n")
        try:
            yield
        finally:
            config.write_text(text)

    def reloads_by_polkit(self) -> list[str]:
        """Return the units that the agent has started by polkit's rule instead of asking the helper."""
        units = self.host.run("journalctl", "--quiet", "--field", "UNIT", quiet=True).splitlines()
        assert "haproxy.service" in units
        return [unit for unit in units if unit.startswith("cert-ctrl-reload@")]

    def all_have(self) -> dict[str, int]:
        """Wait until each server serves the live certificate; return the serials by server."""
        live = {name: self.live(name) for name in (SITE, MAIL)}
        for server, name in self.NAMES.items():
            wait_for(lambda server=server, name=name: self.of(server) == live[name], f"{server} serves it")  # type: ignore[misc]
        seen = {server: self.of(server) for server in self.NAMES}
        for server, serial in seen.items():
            self.host.transcript.say(f"  {server} serves {self.NAMES[server]} {serial:x}")
        return seen

    def running(self) -> dict[str, tuple[str, str]]:
        """Return when each server has started, and its main process."""
        return {
            unit: (self.host.shows(unit, "ActiveEnterTimestampMonotonic"), self.host.shows(unit, "MainPID"))
            for unit in self.main()
        }


STARTTLS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "smtp": (("", "220 "), ("EHLO client.example.com", "250 "), ("STARTTLS", "220 ")),
    "imap": (("", r"\* OK "), ("a STARTTLS", "a OK ")),
}
"""What a client says, and the beginning of the line that it waits for."""
