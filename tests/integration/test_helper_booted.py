"""The packaged root helper in a Debian with a running systemd: nginx, PostgreSQL and Java, with an agent that is not root.

``nox -s helper`` runs it. CERTCTRL_TEST_PACKAGES may name a directory with the packages, CERTCTRL_PACKAGES_CACHE one to keep the root in.
"""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from booted_root import BootedRoot, Transcript, wait_for
from cryptography import x509
from package_roots import BUILD, PROJECT
from package_story import AGENT, DATA, DIRECTORY, EXAMPLES, SITE, Story

from certctrl.sandbox.servers import free_port

pytestmark = [pytest.mark.integration, pytest.mark.root, pytest.mark.campaign]
SUITES = {"3.11": ("bookworm", "15"), "3.13": ("trixie", "17")}
"""Release whose Python the packages need, and its PostgreSQL."""
PACKAGES = (
    "procps",
    "systemd",
    "dbus",
    "ca-certificates",
    "libpq5",
    "nginx",
    "polkitd",
    "postgresql",
    "default-jre-headless",
)
SSL_REQUEST = struct.pack("!ii", 8, 80877103)
KEYSTORE, PASSWORD = "/etc/ssl/myapp/keystore.jks", "/etc/ssl/myapp/password"


@pytest.fixture(scope="module")
def release() -> tuple[str, str]:
    """Return the Debian release for the Python that runs this, and its version of PostgreSQL."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return SUITES[python] if python in SUITES else pytest.skip(f"no Debian release has Python {python}")


@pytest.fixture(scope="module")
def debs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the packages, that of the agent first."""
    made = Path(os.environ.get("CERTCTRL_TEST_PACKAGES") or tmp_path_factory.mktemp("packages"))
    if not list(made.rglob("*.deb")):
        subprocess.run(
            [sys.executable, str(BUILD), str(made), "--release", "1", "--kind", "deb"], check=True, timeout=1800
        )
    return sorted(made.rglob("*.deb"), key=lambda path: "-plane" in path.name)


@pytest.fixture
def host(release: tuple[str, str], tmp_path: Path, need: Callable[[str], str]) -> Iterator[BootedRoot]:
    """Yield a running system with the services; PostgreSQL has a free port."""
    need("mmdebstrap")
    suite, version = release
    tar = Path(os.environ.get("CERTCTRL_PACKAGES_CACHE") or tmp_path) / f"helper-{suite}.tar"
    if not tar.exists():
        python = f"python{sys.version_info.major}.{sys.version_info.minor}"
        argv = [sys.executable, str(PROJECT / "deploy/packages/roots.py"), suite, str(tar), *PACKAGES, python]
        subprocess.run(argv, check=True, timeout=1800)
    (root := tmp_path / "root").mkdir()
    subprocess.run(["tar", "-xf", tar, "-C", root], check=True, timeout=600)
    (root / "etc/nginx/sites-enabled/default").unlink()  # it listens on port 80, also outside
    config = root / f"etc/postgresql/{version}/main/postgresql.conf"
    config.write_text(re.sub(r"^port = \d+", f"port = {free_port()}", config.read_text(), flags=re.M))
    with BootedRoot(root, Transcript()) as booted:
        yield booted


class Helped(Story):
    """A host whose agent writes for PostgreSQL and Java, and reloads nginx and PostgreSQL, through the helper."""

    def __init__(self, host: BootedRoot, keep: Path, version: str) -> None:
        super().__init__(host, keep)
        self.database = f"postgresql@{version}-main.service"
        self.config = f"/etc/postgresql/{version}/main/postgresql.conf"
        found = re.search(r"^port = (\d+)", host.file(self.config).read_text(), re.M)
        assert found is not None
        self.database_port = int(found[1])

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
        units = {self.database: ["reload"], "nginx.service": ["reload"]}
        host.write("/etc/cert-ctrl-helper.json", json.dumps({"cert-ctrl": {"files": files, "units": units}}))
        host.run("cert-ctrl", "helper", "--check")
        host.run("systemctl", "enable", "--now", "cert-ctrl-helper.socket")

    def use_items(self) -> None:
        """Give the agent the items of the three recipes, without checks by programs that the root lacks."""
        items, policies = list[dict[str, Any]](), list[dict[str, Any]]()
        for name in ("nginx", "postgresql", "java"):
            recipe = self.host.file(f"{EXAMPLES}/services/{name}")
            text = (recipe / "items.json").read_text().replace("db.example.com", SITE).replace("app.example.com", SITE)
            items += json.loads(text)
            policies.append(json.loads((recipe / "policy.json").read_text()))
        ports = {443: self.nginx_port, 5432: self.database_port}
        for item in items:
            item.pop("check", None)
            if "port" in item.get("verify", {}):
                item["verify"]["port"] = ports[item["verify"]["port"]]
            elif "verify" in item:  # Java generates code, which the agent's unit forbids: keytool is run by the test
                del item["verify"]
        items = [item for item in items if item["id"] != "reload myapp"]
        policy: dict[str, Any] = {"commands": {}, "write_roots": [], "owners": []}
        for one in policies:
            policy["commands"] |= one["commands"]
            policy["write_roots"] += one.get("write_roots", [])
            policy["owners"] += one.get("owners", [])
        reload = policy["commands"]["reload postgresql"]["argv"]
        policy["commands"]["reload postgresql"]["argv"] = [*reload[:-1], self.database]
        host = self.host
        host.write(f"{DIRECTORY}/installs.local.json", json.dumps(items))
        host.write(f"{DIRECTORY}/policy.json", json.dumps(policy))
        host.run("chown", f"--reference={DIRECTORY}", f"{DIRECTORY}/installs.local.json", f"{DIRECTORY}/policy.json")

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
        self._ca.write_text(host.run("cat", f"{DATA}/issuing-ca.pem", quiet=True))

    def live(self) -> int:
        """Return the serial of the agent's live certificate."""
        data = self.host.file(f"{DIRECTORY}/certs/{SITE}.pem")
        path = data if data.exists() else self.host.file(f"{DIRECTORY}/certs/{SITE}.crt")
        text = self.host.run("cat", f"/{path.relative_to(self.host.path)}", quiet=True)
        return x509.load_pem_x509_certificates(text.encode())[0].serial_number

    def of_database(self) -> int:
        """Return the serial that PostgreSQL serves to a client that verifies it."""
        context = ssl.create_default_context(cafile=str(self._ca))
        with socket.create_connection(("127.0.0.1", self.database_port), timeout=10) as plain:
            plain.sendall(SSL_REQUEST)
            assert plain.recv(1) == b"S"
            with context.wrap_socket(plain, server_hostname=SITE) as tls:
                return x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"").serial_number

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

    def rights(self, path: str) -> str:
        """Return owner, group and mode of a file."""
        return self.host.run("stat", "--format=%U:%G:%a", path, quiet=True).strip()

    def audit(self) -> list[dict[str, Any]]:
        """Return the helper's lines in the journal."""
        lines = self.host.journal("cert-ctrl-helper.service")
        return [json.loads(line) for line in lines if line.startswith("{")]


def test_nginx_postgresql_and_java_through_the_helper(
    host: BootedRoot, debs: list[Path], release: tuple[str, str], tmp_path: Path
) -> None:
    story = Helped(host, tmp_path, release[1])
    story.install(debs)
    story.prepare()
    story.set_up()
    story.use_items()
    host.run("systemctl", "reload", "cert-ctrl")
    story.issue()
    wait_for(lambda: host.file(KEYSTORE).exists(), "the keystore is written")
    story.start_services()
    host.run("cert-ctrl", "apply", "--now")
    first, before_renewals = story.all_have(), len(story.audit())
    assert story.rights("/etc/ssl/postgresql/server.key") == "postgres:postgres:600"
    assert story.rights("/etc/ssl/postgresql/server.crt") == "postgres:postgres:644"
    assert story.rights(KEYSTORE) == "root:myapp:640"

    started = host.shows(story.database, "ActiveEnterTimestampMonotonic")
    for _ in range(2):
        before = story.live()
        host.run("cert-ctrl", "plane", "renew", "--data", DATA, SITE, "--yes")
        wait_for(lambda before=before: story.live() != before, "the renewed certificate arrives")  # type: ignore[misc]
        story.all_have()
        host.run("systemctl", "kill", "--signal=KILL", "cert-ctrl-helper.service", quiet=True)
    assert story.all_have() != first
    assert host.shows(story.database, "ActiveEnterTimestampMonotonic") == started, "reloaded, not restarted"
    host.run("cert-ctrl", "status")

    pid = host.shows(AGENT, "MainPID")
    assert host.run("stat", "--format=%U", f"/proc/{pid}", quiet=True).strip() == "cert-ctrl"
    done = [(one["user"], one["request"], one["result"]) for one in story.audit()]
    for one in story.audit():
        if one["result"] != "done":
            host.transcript.say(f"  {one}")
    for request in ("stage", "put", "reload"):
        assert ("cert-ctrl", request, "done") in done
    later = [one for one in story.audit()[before_renewals:] if one["result"] != "done"]
    assert [one for one in later if one["result"] != "unnamed"] == [], "only before the services ran has one failed"
    left = host.run("find", "/etc/ssl/postgresql", "/etc/ssl/myapp", "-name", ".*", quiet=True)
    assert left == "", "no staged file or copy is left"


def test_a_user_of_the_host_gets_nothing_from_the_helper(
    host: BootedRoot, debs: list[Path], release: tuple[str, str], tmp_path: Path
) -> None:
    story = Helped(host, tmp_path, release[1])
    story.install(debs)
    story.prepare()
    code = "import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect('/run/cert-ctrl-helper.sock'); "
    code += 's.send(b\'{"do": "rules"}\'); print(s.recv(9999).decode())'
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    assert "Permission denied" in host.run(python, "-c", code, user="myapp", status=1)
    said = host.run("setpriv", "--reuid=myapp", "--regid=myapp", "--groups=cert-ctrl", python, "-c", code)
    assert '"refused"' in said and "postgres" not in said, "even in the agent's group"
    assert [(one["user"], one["result"]) for one in story.audit()] == [("myapp", "refused")]
