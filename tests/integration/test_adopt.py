"""`adopt` with real services: certificates of certbot and by hand are taken over in place, and given back."""

from __future__ import annotations

import json
import ssl
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs
import pytest
from adopt_files import certificate, private_key
from cryptography import x509
from fleet import Agent, Child, Fleet, run_cli, served, wait_for
from load_client import Line
from recipes import open_place

from certctrl.sandbox.servers import HOST, free_port
from certctrl.store.config.files import init_config_dir
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir

pytestmark = pytest.mark.integration

WWW, SHOP = "www.example.com", "shop.example.com"
MODULES = "/usr/lib/apache2/modules"
NGINX = """\
daemon off;
pid {place}/nginx.pid;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {place}/tmp; proxy_temp_path {place}/tmp; fastcgi_temp_path {place}/tmp;
    uwsgi_temp_path {place}/tmp; scgi_temp_path {place}/tmp;
    include sites/*;
}}
"""
SITE = """\
server {{
    listen {host}:{port} ssl; # managed by Certbot
    server_name www.example.com example.com;
    ssl_certificate {live}/fullchain.pem;
    ssl_certificate_key {live}/privkey.pem;
    return 200;
}}
"""
APACHE = """\
ServerRoot {place}
ServerName localhost
PidFile {place}/apache.pid
ErrorLog {place}/apache.log
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule ssl_module {modules}/mod_ssl.so
LoadModule authz_core_module {modules}/mod_authz_core.so
User nobody
Group nogroup
Mutex file:{place} default
Define live {live}
Listen {host}:{port}
<VirtualHost {host}:{port}>
    ServerName www.example.com
    SSLEngine on
    SSLCertificateFile ${{live}}/cert.pem
    SSLCertificateKeyFile ${{live}}/privkey.pem
    SSLCertificateChainFile ${{live}}/chain.pem
</VirtualHost>
"""
HAPROXY = """\
global
    maxconn 50
    crt-base {place}/haproxy
defaults
    timeout connect 5s
    timeout client 5s
    timeout server 5s
frontend shop
    mode http
    bind {host}:{port} ssl crt shop.pem
    http-request return status 200
"""


@attrs.define(kw_only=True)
class Old:
    """A host that renews its certificates by other means, with its services."""

    place: Path
    nginx: Sequence[str]
    apache: Sequence[str]
    haproxy: Sequence[str]
    ports: dict[str, int] = attrs.field(factory=lambda: {name: free_port() for name in ("nginx", "apache", "haproxy")})
    children: list[Child] = attrs.field(factory=list)

    @property
    def archive(self) -> Path:
        return self.place / "le" / "archive" / WWW

    def write(self) -> None:
        """Write certificates as certbot and an administrator do, and the configurations that name them."""
        live, renewal = self.place / "le" / "live" / WWW, self.place / "le" / "renewal"
        for directory in (live, self.archive, renewal, self.place / "sites", self.place / "haproxy"):
            directory.mkdir(parents=True)
        leaf = certificate(WWW, "example.com")
        kinds = {"cert": leaf, "chain": certificate("Old CA", ca=True), "fullchain": leaf, "privkey": private_key()}
        for kind, data in kinds.items():
            (self.archive / f"{kind}1.pem").write_bytes(data)
            (live / f"{kind}.pem").symlink_to(f"../../archive/{WWW}/{kind}1.pem")
        (self.archive / "privkey1.pem").chmod(0o600)
        lines = "".join(f"{kind} = {live}/{kind}.pem\n" for kind in ("cert", "privkey", "chain", "fullchain"))
        (renewal / f"{WWW}.conf").write_text(f"version = 2.1.0\n{lines}[renewalparams]\nauthenticator = nginx\n")
        shop = self.place / "haproxy" / "shop.pem"
        shop.write_bytes(certificate(SHOP, number=1) + private_key(1))
        shop.chmod(0o640)
        texts = {"nginx.conf": NGINX, "sites/www": SITE, "apache.conf": APACHE, "haproxy.cfg": HAPROXY}
        ports = {"sites/www": "nginx", "apache.conf": "apache", "haproxy.cfg": "haproxy"}
        for name, text in texts.items():
            port = self.ports[ports.get(name, "nginx")]
            (self.place / name).write_text(
                text.format(place=self.place, host=HOST, port=port, live=live, modules=MODULES)
            )

    def start(self, fleet: Fleet) -> None:
        """Start the services, and wait until each serves its old certificate."""
        self.children = [
            fleet.child(self.nginx, "nginx.log"),
            fleet.child([*self.apache, "-DFOREGROUND"], "apache.log"),
            fleet.child(self.haproxy, "haproxy.log"),
        ]
        for name in self.ports:
            wait_for(lambda name=name: self.serves(name), f"{name} to serve")

    def serves(self, name: str) -> int:
        """Return the serial that a service serves; 0 if it does not."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        asked = SHOP if name == "haproxy" else WWW
        try:
            line = Line({"kind": "https", "host": HOST, "port": self.ports[name], "name": asked}, context)
        except OSError:
            return 0
        line.close()
        return x509.load_der_x509_certificate(line.leaf).serial_number

    def all_serve(self, serials: dict[str, int]) -> None:
        """Wait until each service serves its serial."""
        wait_for(lambda: {name: self.serves(name) for name in serials} == serials, f"{serials} to be served")

    def adopt(self, agent: Agent, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the command for the configurations of this host."""
        configs = {"nginx": "nginx.conf", "apache": "apache.conf", "haproxy": "haproxy.cfg", "certbot": "le"}
        options = [word for name, file in configs.items() for word in ("--config", f"{name}={self.place / file}")]
        for name, argv in self.reloads().items():
            options += ["--reload", f"{name}={argv}"]
        return agent.cli("adopt", *options, *words)

    def reloads(self) -> dict[str, str]:
        kill = f"kill -USR2 $(cat {self.place}/haproxy.pid)"
        return {
            "nginx": f"{' '.join(self.nginx)} -s reload",
            "apache": f"{' '.join(self.apache)} -k graceful",
            "haproxy": f"/bin/sh -c '{kill}'",
        }

    def files(self) -> dict[Path, tuple[bytes, int, int]]:
        """Return contents, mode and owner of the certificates' files."""
        paths = [*self.archive.iterdir(), self.place / "haproxy" / "shop.pem"]
        return {path: (path.read_bytes(), path.stat().st_mode, path.stat().st_uid) for path in paths}


@pytest.fixture
def old(need: Callable[[str], str], fleet: Fleet) -> Iterator[Old]:
    nginx, apache, haproxy = need("nginx"), need("apache2"), need("haproxy")
    with open_place() as place:
        made = Old(
            place=place,
            nginx=[nginx, "-e", f"{place}/nginx.log", "-c", f"{place}/nginx.conf"],
            apache=[apache, "-f", f"{place}/apache.conf"],
            haproxy=[haproxy, "-W", "-p", f"{place}/haproxy.pid", "-f", f"{place}/haproxy.cfg"],
        )
        made.write()
        made.start(fleet)
        yield made
        for child in made.children:
            child.close()


def number(serial: str) -> int:
    return int(serial.replace(":", ""), 16)


def test_certificates_in_use_are_taken_over_and_given_back(old: Old, fleet: Fleet) -> None:
    plane = fleet.plane(poll_rate=1000.0, poll_burst=1000)
    agent = fleet.agent(plane)
    before, links = old.files(), sorted((old.place / "le" / "live" / WWW).iterdir())
    old_serials = {"nginx": 7, "apache": 7, "haproxy": 8}
    old.all_serve(old_serials)

    # the proposal alone changes nothing that a service reads, even with a running daemon
    done = old.adopt(agent, "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "certbot has no other certificate: systemctl disable --now certbot.timer" in done.stdout
    assert done.stdout.count("becomes     a certificate that is not on this host yet") == 2
    agent.start()
    assert old.files() == before
    old.all_serve(old_serials)

    # a certificate of the control plane takes the place of each, in place
    www = int(plane.operator.issue(WWW, agent.device_id, sans=["example.com"])["id"])
    shop = int(plane.operator.issue(SHOP, agent.device_id)["id"])
    agent.catches_up()
    new = {name: number(plane.operator.serial(shop if name == "haproxy" else www)) for name in old.ports}
    old.all_serve(new)
    wait_for(lambda: all(agent.acked(plane.operator.serial(one)) for one in (www, shop)), "both to be proven")
    after = old.files()
    assert {path: facts[1:] for path, facts in after.items()} == {path: facts[1:] for path, facts in before.items()}
    assert all(after[path][0] != before[path][0] for path in before)
    assert sorted((old.place / "le" / "live" / WWW).iterdir()) == links and all(one.is_symlink() for one in links)
    again = json.loads(old.adopt(agent, "--json", "--yes").stdout)
    assert not again["items"] and {one["state"] for one in again["certificates"]} == {"taken over"}

    # a renewal, then a hold of the previous certificate, then its end
    plane.operator.renew(www)
    newer = number(plane.operator.serial(www))
    old.all_serve(new | {"nginx": newer, "apache": newer})
    held = agent.cli("rollback", "--domain", WWW)
    assert held.returncode == 0, held.stdout + held.stderr
    old.all_serve(new)
    assert agent.cli("rollback", "--domain", WWW, "--release").returncode == 0
    old.all_serve(new | {"nginx": newer, "apache": newer})

    # back to the former certificates: the items are disabled first
    items = json.loads(agent.layout.local_installs.read_text())
    agent.layout.local_installs.write_text(json.dumps([item | {"enabled": False} for item in items]))
    compared = agent.daemon.text.count("Compared with the plane")
    agent.daemon.send(1)
    agent.daemon.says("Configuration reloaded")
    agent.daemon.says("Compared with the plane", count=compared + 1)
    for path, (data, _, _) in before.items():
        path.write_bytes(data)
    for argv in old.reloads().values():
        subprocess.run(argv, shell=True, check=True, timeout=60)
    old.all_serve(old_serials)
    plane.operator.renew(www)
    wait_for(lambda: served(agent.layout, WWW) == plane.operator.serial(www), "the agent's own files to be renewed")
    assert {path: facts[0] for path, facts in old.files().items()} == {path: facts[0] for path, facts in before.items()}

    # uninstalled: nothing of a service's is removed
    agent.daemon.stop()
    subprocess.run(["rm", "-r", agent.layout.root], check=True)
    assert old.files().keys() == before.keys()
    old.all_serve(old_serials)


def test_a_service_that_refuses_keeps_its_old_certificate(old: Old, fleet: Fleet) -> None:
    plane = fleet.plane(poll_rate=1000.0, poll_burst=1000)
    agent = fleet.agent(plane)
    agent.configure(verify_timeout_seconds=3.0)
    before = old.files()
    assert old.adopt(agent, "--yes").returncode == 0
    site = old.place / "sites" / "www"
    site.write_text(site.read_text() + "broken")
    agent.start()
    plane.operator.issue(WWW, agent.device_id, sans=["example.com"])

    def failures() -> list[str]:
        rows = plane.operator.outcomes(agent.device_id)
        return [row["detail"] for row in rows if row["outcome"] == "failed"]

    wait_for(failures, "the failure")
    assert "reload nginx" in failures()[0] and "the files that were replaced are back" in failures()[0]
    assert old.files() == before
    assert old.serves("nginx") == 7


def test_limits_hold_on_a_real_disk(tmp_path: Path) -> None:
    """Ten thousand includes, a cycle, a pipe and a device: reported within seconds, without waiting."""
    agent = tmp_path / "agent"
    init_config_dir(RealFs(), ConfigDir(agent), server_url="https://plane.example", ca_pem=None)
    many = tmp_path / "many"
    many.mkdir()
    for n in range(10_000):
        (many / f"{n}.conf").write_text("keepalive_timeout 1;\n")
    (many / "0.conf").write_text(f"include {tmp_path}/nginx.conf; include {tmp_path}/pipe; include /dev/zero;")
    subprocess.run(["mkfifo", tmp_path / "pipe"], check=True)
    (tmp_path / "nginx.conf").write_text(f"http {{ include {many}/*.conf; }}")
    done = run_cli("-c", str(agent), "adopt", "--dry-run", "--config", f"nginx={tmp_path}/nginx.conf")
    assert done.returncode == 0, done.stdout + done.stderr
    for text in (
        "includes itself",
        "2000 are included before",
        "pipe: it is not a regular file",
        "/dev/zero: it is not",
    ):
        assert text in done.stdout, done.stdout
