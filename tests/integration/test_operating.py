"""The commands of docs/operating.md and docs/upgrading.md, with a control plane and an agent that run as services."""

from __future__ import annotations

import getpass
import json
import re
import signal
import sys
from collections.abc import Iterator
from os import kill
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from fleet import wait_for
from pages import DOCS, Terminal, blocks, free_address

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]
DAY = ("In the morning", "A host needs you", "Let hosts in", "Change hosts, in waves", "Renew in waves")
WEEK = (
    "Check a backup by a restore", "What ends soon", "Alerts that nobody got", "Hosts that are silent for long",
    "Upgrade some hosts first", "Who changed what",
)  # fmt: skip
INCIDENT = (
    "An incident", "Many hosts fail alike", "A bad profile went out", "A rollout has halted",
    "A certificate was revoked by mistake",
)  # fmt: skip
FINGERPRINT, MOVE = "9f86d081884c7d65", "Move a host to another control plane"
SYSTEMCTL = """#!%s
import os, signal, subprocess, sys, time
from pathlib import Path

units = Path(%r)
verb, *names = [word for word in sys.argv[1:] if not word.startswith("-")]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def stop(name):
    pid = units / f"{name}.pid"
    if pid.exists() and is_running(pid.read_text()):
        os.kill(int(pid.read_text()), signal.SIGTERM)
        while is_running(pid.read_text()):
            time.sleep(0.02)


def start(name):
    log = units / f"{name}.log"
    with log.open("w") as sink:
        argv = (units / name).read_text().split()
        started = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True)
    (units / f"{name}.pid").write_text(str(started.pid))
    while not any(word in log.read_text() for word in ("Ready: poll mode", "operator key")):
        if started.poll() is not None:
            sys.exit(f"{name} ended with {started.returncode}: {log.read_text()}")
        time.sleep(0.02)


for name in names:
    if verb in ("stop", "disable", "restart"):
        stop(name)
    if verb in ("start", "enable", "restart"):
        start(name)
"""


class Site:
    """The machines of the page, in one directory: a control plane, and a host with an agent."""

    def __init__(self, root: Path, page: str) -> None:
        address, user = free_address(), getpass.getuser()
        self.etc, self.data, self.units = root / "etc/cert-ctrl", root / "var/plane", root / "units"
        self.root, self.words = root, {
            "/etc/cert-ctrl": str(self.etc), "/var/lib/cert-ctrl-plane": str(self.data), "/backup": f"{root}/backup",
            "/safe": f"{root}/safe", "/var/tmp/drill": f"{root}/drill", "/root/": f"{root}/", "-o cert-ctrl-plane": f"-o {user}", "-o cert-ctrl ": f"-o {user} ",
            "plane.example.com:8443": address, "--hostname plane.example.com": "--hostname 127.0.0.1",
        }  # fmt: skip
        self.terminal = Terminal(
            root, self.words, CERTCTRL_PLANE_DATA=str(self.data), CERTCTRL_CONFIG_DIR=str(self.etc),
            CERTCTRL_FIRST_POLL_SPREAD_SECONDS="0",
        )  # fmt: skip
        self.terminal.tool("systemctl", SYSTEMCTL % (sys.executable, str(self.units)))
        self.units.mkdir()
        program = f"{self.terminal.tools}/cert-ctrl"
        (self.units / "cert-ctrl").write_text(f"{program} -c {self.etc} --keep-running")
        (self.units / "cert-ctrl-plane").write_text(f"{program} plane serve --data {self.data} --listen {address}")
        self.type = self.terminal.type
        self.sections: dict[str, list[tuple[list[str], list[str]]]] = {}
        found = blocks(page)
        for part in re.split(r"^##+ ", (DOCS / page).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            self.sections[part.partition("\n")[0]] = [next(found) for _ in range(part.count("```sh\n"))]

    def prepare(self) -> None:
        """Serve the control plane, register the host as web-1, and issue a certificate for it and one for others."""
        self.type("systemctl start cert-ctrl-plane")
        self.type(f"cert-ctrl init --server https://plane.example.com:8443 --name web-1 --ca {self.data}/ca.pem")
        self.type("cert-ctrl plane enrolment-token > token && cert-ctrl register --enrolment-token-file token")
        self.type("systemctl start cert-ctrl")
        self.type("cert-ctrl plane issue www.example.com --device web-1 --key plane")
        self.type("cert-ctrl plane issue other.example.com --key plane")
        self.arrives("www.example.com")

    def arrives(self, name: str, but: str = "") -> str:
        """Wait until a certificate of a name is live, with another serial than ``but``; return its serial."""

        def live() -> str:
            path = self.etc / f"certs/{name}.crt"
            found = x509.load_pem_x509_certificate(path.read_bytes()).serial_number if path.exists() else 0
            return f"{found:x}" if found and f"{found:x}" != but else ""

        return wait_for(live, f"{name} to arrive")

    def run(self, heading: str, block: int | None = None, **statuses: tuple[int, ...]) -> None:
        """Run the blocks of a section and check what the page says they print; ``statuses`` by the last word."""
        for commands, quoted in [self.sections[heading][block]] if block is not None else self.sections[heading]:
            said = "".join(
                self.type(one, statuses=statuses.get(one.split()[-1].replace("-", "_"), (0,))) for one in commands
            )
            self.terminal.check(quoted, said)

    def close(self) -> None:
        for pid in self.units.glob("*.pid"):
            try:
                kill(int(pid.read_text()), signal.SIGTERM)
            except ProcessLookupError:
                continue
        self.terminal.close()


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path, request.param)
    yield made
    made.close()


@pytest.mark.parametrize("site", ["operating.md"], indirect=True)
def test_every_command_of_operating_works(site: Site) -> None:
    site.prepare()
    used = [
        *DAY, *WEEK, *INCIDENT, "Backups", "Restore the control plane", "Move the control plane to another machine",
        "Move an agent to another directory or disk", "A service serves an old or expired certificate",
        "A renewal broke a service", "Hosts do not reach the control plane", "Rename a host", "Replace a host", "Retire a host",
        "A key or a host is in foreign hands", "The operator key is in foreign hands",
        "The control plane's machine is gone", "Give a host a new device key", MOVE,
    ]  # fmt: skip
    assert {heading for heading, found in site.sections.items() if found} == set(used)
    live_a_day(site)
    have_an_incident(site)
    site.run("Backups")
    live_a_week(site)
    site.run("Restore the control plane")
    move_the_plane(site)
    site.run("Move an agent to another directory or disk")
    before = site.arrives("www.example.com")
    site.run("A service serves an old or expired certificate")
    site.arrives("www.example.com", but=before)
    site.run("A renewal broke a service")
    assert site.arrives("www.example.com") == before
    site.type("cert-ctrl rollback --domain www.example.com --release")
    site.run("Hosts do not reach the control plane")
    site.run("Rename a host")
    site.run("Give a host a new device key")
    replace_the_host(site)
    site.run("A key or a host is in foreign hands")
    site.run("Retire a host")
    key = (site.data / "operator.key").read_text()
    site.run("The operator key is in foreign hands")
    assert (site.data / "operator.key").read_text() != key
    start_anew(site)


@pytest.mark.parametrize("site", ["operating.md"], indirect=True)
def test_a_host_moves_to_another_control_plane_as_described(site: Site) -> None:
    site.prepare()
    new, address = site.root / "new-plane", free_address()
    site.terminal.leave_running(f"cert-ctrl plane serve --data {new} --listen {address}", "operator key")
    anchor = x509.load_pem_x509_certificate((new / "ca.pem").read_bytes())
    site.words |= {"new.example.com:8443": address, FINGERPRINT: anchor.fingerprint(SHA256()).hex()[:16]}
    before = site.arrives("www.example.com")
    site.type(f"cert-ctrl plane enrolment-token --data {new} > token")
    site.run(MOVE, 0)
    assert "no certificate for all names" in site.type(
        "cert-ctrl move /etc/cert-ctrl.next --dry-run 2>&1", statuses=(1,)
    )
    site.type(f"cert-ctrl plane issue www.example.com --device web-1 --key plane --data {new}")
    site.run(MOVE, 1)
    site.arrives("www.example.com", but=before)


def live_a_day(site: Site) -> None:
    for heading in DAY[:3]:
        site.run(heading)
    write_items(site, "web.json", site.etc / "certs/copy.pem")
    site.run(DAY[3])
    ends(site, 1, "done")
    assert (site.etc / "certs/copy.pem").exists()
    before = site.arrives("www.example.com")
    site.run(DAY[4])
    ends(site, 2, "done")
    site.arrives("www.example.com", but=before)


def have_an_incident(site: Site) -> None:
    """Run its first sections: with a rollout that halts, and a certificate that is revoked."""
    site.run(INCIDENT[0])
    site.type("cert-ctrl plane rollout freeze --end")
    site.run(INCIDENT[1])
    write_items(site, "wrong.json", site.etc / "certs/wrong.pem")
    site.type("cert-ctrl plane profile put web wrong.json")
    site.run(INCIDENT[2])
    write_items(site, "bad.json", site.root / "refused.pem")
    site.type("cert-ctrl plane rollout start web bad.json")
    ends(site, 3, "halted")
    site.run(INCIDENT[3], None, **{"3": (1,)})
    site.type("cert-ctrl plane rollout abort 3 --yes && cert-ctrl plane profile put web --version 2")
    wait_for(lambda: "nothing needs you" in site.type("cert-ctrl plane causes"), "the cause to go")
    site.type("cert-ctrl plane revoke other.example.com --yes")
    site.run(INCIDENT[4])


def live_a_week(site: Site) -> None:
    site.run(WEEK[0], None, **{"/var/tmp/drill": (0, 3)})
    for heading in WEEK[1:]:
        site.run(heading)


def write_items(site: Site, name: str, target: Path) -> None:
    item = {"id": "copy", "type": "copy", "ob_name": "www.example.com", "from": ["fullchain.pem"], "to": [str(target)]}
    (site.root / name).write_text(json.dumps([item]))


def ends(site: Site, rollout: int, state: str) -> None:
    command = f"cert-ctrl plane rollout status {rollout}"
    wait_for(lambda: f"is {state}" in site.type(command, statuses=(0, 1)), f"rollout {rollout} to be {state}")


def start_anew(site: Site) -> None:
    """Register the host at a new control plane, and issue its certificate there."""
    former = site.etc / "certs/www.example.com.crt"
    before = former.read_bytes()
    site.type("systemctl stop cert-ctrl-plane")
    site.data.rename(site.root / "machine-that-is-gone")
    site.type("systemctl start cert-ctrl-plane")
    anchor = x509.load_pem_x509_certificate((site.data / "ca.pem").read_bytes())
    site.words[FINGERPRINT] = anchor.fingerprint(SHA256()).hex()[:16]
    site.type("cert-ctrl plane enrolment-token > token")
    site.run("The control plane's machine is gone")
    assert former.read_bytes() == before
    serial = site.arrives("www.example.com")
    site.type("cert-ctrl plane issue www.example.com --device 1 --key plane")
    site.arrives("www.example.com", but=serial)


def move_the_plane(site: Site) -> None:
    """Run both blocks; the second one without the directory of the first, as on another machine."""
    heading = "Move the control plane to another machine"
    site.run(heading, 0)
    site.data.rename(site.root / "old-machine")
    site.run(heading, 1)
    site.type("systemctl start cert-ctrl-plane")
    site.type("cert-ctrl poll-now")


def replace_the_host(site: Site) -> None:
    """Run both blocks; the second one without the directory of the agent, as on another machine."""
    heading = "Replace a host"
    (device,) = json.loads(site.type("cert-ctrl plane devices --json"))
    site.run(heading, 0)
    site.type("systemctl stop cert-ctrl")
    old = site.root / "old-host"
    site.etc.rename(old)
    site.terminal.leave_running(f"cert-ctrl -c {old} --keep-running", r"Ready: poll mode")
    anchor = x509.load_pem_x509_certificate((site.data / "ca.pem").read_bytes())
    site.words[FINGERPRINT] = anchor.fingerprint(SHA256()).hex()[:16]
    site.run(heading, 1)
    former = site.terminal.running.pop()[0]
    assert former.wait(60) == 77
    site.arrives("www.example.com")
    (again,) = json.loads(site.type("cert-ctrl plane devices --json"))
    assert (again["id"], again["name"], again["tags"]) == (device["id"], device["name"], device["tags"])
    assert again["device_public_id"] != device["device_public_id"]
    assert again["replaced_hardware_seen_at"]


@pytest.mark.parametrize("site", ["upgrading.md"], indirect=True)
def test_every_command_of_upgrading_works(site: Site) -> None:
    site.prepare()
    assert {heading for heading, found in site.sections.items() if found} == {"Upgrade", "Downgrade"}
    site.run("Upgrade")
    serial = site.arrives("www.example.com")
    site.type("systemctl stop cert-ctrl")
    status = site.etc / "state/status.json"
    status.write_text(status.read_text().replace('"state_version":1', '"state_version":2', 1))
    site.type("systemctl start cert-ctrl", statuses=(1,))
    assert "ended with 78" in site.terminal.transcript[-1] and "later cert-ctrl" in site.terminal.transcript[-1]
    site.run("Downgrade")
    assert site.arrives("www.example.com") == serial
    assert json.loads(site.type("cert-ctrl status --json"))["health"] == "healthy"
    site.type("cert-ctrl plane renew www.example.com")
    site.arrives("www.example.com", but=serial)
