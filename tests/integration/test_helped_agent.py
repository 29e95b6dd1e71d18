"""An unprivileged agent and the root helper, as their units run them: a real nginx serves files of another user."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from fleet import Agent, Child, Fleet, Plane, wait_for
from helper_unit import HelperUnit, exec_start
from private_host import PrivateHost

from certctrl.sandbox.servers import free_port
from certctrl.sandbox.witness import Endpoint, plain_serial

pytestmark = [pytest.mark.integration, pytest.mark.root]
USER, OWNER = 4711, 1
"""The agent's user, and the service's: daemon."""
SYSTEMCTL = """#!/bin/sh
printf '%s\\n' "$*" >> /opt/tools/calls
pid=$(cat /opt/tools/nginx.pid 2>/dev/null)
case "$*" in
*"is-active --quiet db.service") [ -n "$pid" ] ;;
*"reload db.service") [ ! -e /opt/tools/broken ] || { echo it is broken; exit 1; }; kill -HUP "$pid" ;;
*) exit 1 ;;
esac
"""
NGINX = """
pid {tools}/nginx.pid;
error_log stderr;
events {{ }}
http {{
    access_log off;
    server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {etc}/db/server.crt; ssl_certificate_key {etc}/db/server.key; }}
}}
"""


@attrs.define
class Site:
    """One host: agent, helper and, once started, nginx."""

    fleet: Fleet
    host: PrivateHost
    agent: Agent
    helper: HelperUnit
    daemon: Child
    port: int

    def start_nginx(self, program: str) -> None:
        config = self.host.place / "nginx.conf"
        config.write_text(NGINX.format(tools=self.host.tools, etc=self.host.place / "etc", port=self.port))
        self.fleet.child([program, "-e", "stderr", "-g", "daemon off;", "-c", config], "nginx.log")
        wait_for(lambda: self.served() != "", "nginx to serve")

    def served(self) -> str:
        """Return the serial that nginx serves; empty while it serves none."""
        endpoint = Endpoint("127.0.0.1", self.port, str(self.agent.plane.issuing_ca))
        return endpoint.served("db.example")

    def serial(self, cert_id: int) -> str:
        """Return the serial of the newest certificate."""
        return plain_serial(self.agent.plane.operator.serial(cert_id))

    def rights(self) -> list[tuple[int, int, int]]:
        found = [(self.host.place / "etc/db" / name).stat() for name in ("server.key", "server.crt")]
        return [(one.st_uid, one.st_gid, stat.S_IMODE(one.st_mode)) for one in found]


def configure(host: PrivateHost, port: int) -> None:
    """Write the user, both policies and the items; the agent's command is that of the unit template."""
    etc = host.place / "etc"
    (etc / "db").mkdir(mode=0o755)
    with (etc / "passwd").open("a") as passwd, (etc / "group").open("a") as group:
        passwd.write(f"cert-ctrl:x:{USER}:{USER}::/etc/cert-ctrl:/usr/sbin/nologin\n")
        group.write(f"cert-ctrl:x:{USER}:\n")
    rights = {"owner": "daemon", "group": "daemon"}
    files = [
        {"path": "/etc/db/server.key", "mode": "0600"} | rights,
        {"path": "/etc/db/*.crt", "mode": "0644"} | rights,
    ]
    policy = etc / "cert-ctrl-helper.json"
    policy.write_text(json.dumps({"cert-ctrl": {"files": files, "units": {"db.service": ["reload"]}}}))
    policy.chmod(0o644)
    items: list[dict[str, Any]] = [
        {"id": "pair", "type": "copy", "ob_name": "db.example", "from": ["private.key", "fullchain.pem"],
         "to": ["/etc/db/server.key", "/etc/db/server.crt"], "owner": "daemon",
         "verify": {"type": "tls", "host": "127.0.0.1", "port": port}},
        {"id": "reload", "type": "exec", "cmd_argv": ["reload db"], "depends_on": ["pair"]},
    ]  # fmt: skip
    argv = ["/usr/bin/systemctl", "start", "cert-ctrl-reload@db.service"]
    commands = {"write_roots": ["/etc/db"], "owners": ["daemon"], "commands": {"reload db": {"argv": argv}}}
    (host.agent / "installs.local.json").write_text(json.dumps(items))
    (host.agent / "policy.json").write_text(json.dumps(commands))
    for path in (host.agent, *host.agent.rglob("*")):
        os.lchown(path, USER, USER)


@pytest.fixture
def site(fleet: Fleet, need: Callable[[str], str]) -> Iterator[Site]:
    place = Path(tempfile.mkdtemp(prefix="certctrl-helped-"))
    try:
        host, port = PrivateHost(place), free_port()
        host.script("systemctl", SYSTEMCTL)
        plane: Plane = fleet.plane()
        agent = fleet.agent(plane, "db", helper_socket="/opt/tools/helper.sock", verify_timeout_seconds=5)
        agent.moved_to(host.agent)
        configure(host, port)
        argv = [*host.argv(*exec_start(), "--systemctl", "/opt/tools/systemctl")]
        with HelperUnit(host.tools / "helper.sock", argv, gid=USER, **host.environ()) as helper:
            become = [need("setpriv"), f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs"]
            words = host.argv("-c", "/etc/cert-ctrl", "--keep-running", wrapped=become)
            library = "/opt/python/lib"  # where that user can read it
            daemon = fleet.child(words, "agent.log", **host.environ(LD_LIBRARY_PATH=library))
            daemon.says("Ready: poll mode")
            yield Site(fleet, host, agent, helper, daemon, port)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def test_an_unprivileged_agent_serves_files_of_another_user(site: Site, need: Callable[[str], str]) -> None:
    uids = Path(f"/proc/{site.daemon.pid}/status").read_text().partition("Uid:")[2].split()[:4]
    assert uids == [str(USER)] * 4
    operator = site.agent.plane.operator
    row = operator.issue("db.example", site.agent.device_id)
    wait_for(lambda: (site.host.place / "etc/db/server.crt").exists(), "the files of a service that is not running")
    assert site.rights() == [(OWNER, OWNER, 0o600), (OWNER, OWNER, 0o644)]
    site.start_nginx(need("nginx"))
    first = site.served()

    operator.renew(row["id"])
    second = site.serial(row["id"])
    wait_for(lambda: site.served() == second, "the renewal")
    assert second != first and site.rights() == [(OWNER, OWNER, 0o600), (OWNER, OWNER, 0o644)]
    wait_for(lambda: site.agent.acked(operator.serial(row["id"])), "its outcome")

    (site.host.tools / "broken").touch()
    before = (site.host.place / "etc/db/server.key").read_bytes()
    operator.renew(row["id"])
    wait_for(
        lambda: any(one["outcome"] == "rolled_back" for one in operator.outcomes(site.agent.device_id)), "a rollback"
    )
    assert (site.host.place / "etc/db/server.key").read_bytes() == before and site.served() == second
    assert site.rights() == [(OWNER, OWNER, 0o600), (OWNER, OWNER, 0o644)]

    (site.host.tools / "broken").unlink()
    site.helper.kill()
    third = site.serial(row["id"])
    done = site.host.run("-c", "/etc/cert-ctrl", "apply", "--now")
    assert site.served() == third, done.out + done.err
    assert sorted(os.listdir(site.host.place / "etc/db")) == ["server.crt", "server.key"]
    assert {row["user"] for row in site.helper.audit} == {"cert-ctrl"}
    assert {row["request"] for row in site.helper.audit} >= {
        "rules",
        "inspect",
        "stage",
        "put",
        "restore",
        "drop",
        "reload",
    }
    doctor = site.host.run("-c", "/etc/cert-ctrl", "doctor", "--offline").out
    assert "the root helper has what the items need (2 rules for files, 1 unit)" in doctor
