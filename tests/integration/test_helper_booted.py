"""The packaged root helper in a Debian with a running systemd, for each service with a recipe, with an agent that is not root.

``nox -s helper`` runs it. CERTCTRL_TEST_PACKAGES may name a directory with the packages, CERTCTRL_PACKAGES_CACHE one to keep the root in.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from booted_root import BootedRoot, Transcript, wait_for
from helped_stories import KEYSTORE, MAIL, Databases, Servers
from package_roots import BUILD, PROJECT
from package_story import DATA, SITE

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
    "openssl",
    "nginx",
    "haproxy",
    "apache2",
    "postfix",
    "dovecot-imapd",
    "polkitd",
    "postgresql",
    "default-jre-headless",
)
DOVECOT = """\
listen = 127.0.0.1
service imap-login {{
  inet_listener imap {{
    port = {imap}
  }}
  inet_listener imaps {{
    port = {imaps}
  }}
}}
"""


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
def ports() -> dict[str, int]:
    """Return a free port for each server, since the network is that of this machine."""
    return {name: free_port() for name in ("postgresql", "haproxy", "apache", "smtp", "imap", "imaps")}


@pytest.fixture
def host(
    release: tuple[str, str], tmp_path: Path, need: Callable[[str], str], ports: dict[str, int]
) -> Iterator[BootedRoot]:
    """Yield a running system with the services."""
    need("mmdebstrap")
    suite, version = release
    of_packages = hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:8]
    tar = Path(os.environ.get("CERTCTRL_PACKAGES_CACHE") or tmp_path) / f"helper-{suite}-{of_packages}.tar"
    if not tar.exists():
        python = f"python{sys.version_info.major}.{sys.version_info.minor}"
        argv = [sys.executable, str(PROJECT / "deploy/packages/roots.py"), suite, str(tar), *PACKAGES, python]
        subprocess.run(argv, check=True, timeout=1800)
    (root := tmp_path / "root").mkdir()
    subprocess.run(["tar", "-xf", tar, "-C", root], check=True, timeout=600)
    use_ports(root / "etc", version, ports)
    with BootedRoot(root, Transcript()) as booted:
        yield booted


def use_ports(etc: Path, version: str, ports: dict[str, int]) -> None:
    """Let no service listen elsewhere than at its port here; HAProxy has no frontend yet."""
    (etc / "nginx/sites-enabled/default").unlink()
    database = etc / f"postgresql/{version}/main/postgresql.conf"
    database.write_text(re.sub(r"^port = \d+", f"port = {ports['postgresql']}", database.read_text(), flags=re.M))
    (etc / "apache2/ports.conf").write_text(f"Listen 127.0.0.1:{ports['apache']}\n")
    (etc / "apache2/sites-enabled/000-default.conf").unlink()
    mail = etc / "postfix/master.cf"
    mail.write_text(re.sub(r"^smtp( +inet)", rf"127.0.0.1:{ports['smtp']}\1", mail.read_text(), flags=re.M))
    (etc / "dovecot/conf.d/98-ports.conf").write_text(DOVECOT.format(**ports))


def test_nginx_postgresql_and_java_through_the_helper(
    host: BootedRoot, debs: list[Path], release: tuple[str, str], ports: dict[str, int], tmp_path: Path
) -> None:
    story = Databases(host, tmp_path, ports, release[1])
    story.install(debs)
    story.prepare()
    story.set_up()
    story.use_items()
    host.run("systemctl", "reload", "cert-ctrl")
    story.issue_for(SITE)
    wait_for(lambda: host.file(KEYSTORE).exists(), "the keystore is written")
    story.start_services()
    host.run("cert-ctrl", "apply", "--now")
    first, before_renewals = story.all_have(), len(story.audit())
    assert story.rights("/etc/ssl/postgresql/server.key") == "postgres:postgres:600"
    assert story.rights("/etc/ssl/postgresql/server.crt") == "postgres:postgres:644"
    assert story.rights(KEYSTORE) == "root:myapp:640"

    started = host.shows(story.database, "ActiveEnterTimestampMonotonic")
    for _ in range(2):
        story.renew_for(SITE)
        story.all_have()
        host.run("systemctl", "kill", "--signal=KILL", "cert-ctrl-helper.service", quiet=True)
    assert story.all_have() != first
    assert host.shows(story.database, "ActiveEnterTimestampMonotonic") == started, "reloaded, not restarted"
    host.run("cert-ctrl", "status")

    assert story.agent_is_not_root()
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


def test_haproxy_apache_postfix_and_dovecot_through_the_helper(
    host: BootedRoot, debs: list[Path], ports: dict[str, int], tmp_path: Path
) -> None:
    story = Servers(host, tmp_path, ports)
    story.install(debs)
    story.prepare()
    story.set_up()
    story.use_items()
    host.run("systemctl", "reload", "cert-ctrl")
    story.allow_as_doctor_says()
    host.run("cert-ctrl", "plan")
    for name in (SITE, MAIL):
        story.issue_for(name)
    for path in story.FILES:
        wait_for(host.file(path).exists, f"{path} is written")
    story.start_services()
    host.run("cert-ctrl", "apply", "--now")
    first, before_renewals, running = story.all_have(), len(story.audit()), story.running()
    assert [story.rights(path) for path in story.FILES] == ["root:root:600"] * 2

    served = [first]
    for _ in range(2):
        for name in (SITE, MAIL):
            story.renew_for(name)
        served.append(story.all_have())
        host.run("systemctl", "kill", "--signal=KILL", "cert-ctrl-helper.service", quiet=True)
    for server in story.NAMES:
        assert len({serials[server] for serials in served}) == 3, f"{server} has served each certificate"
    assert story.running() == running, "reloaded, not restarted"
    assert [story.rights(path) for path in story.FILES] == ["root:root:600"] * 2
    host.run("cert-ctrl", "status")
    assert story.agent_is_not_root()

    audit = story.audit()
    assert [one for one in audit[before_renewals:] if one["result"] not in ("done", "unnamed")] == []
    assert story.reloads_by_polkit() == []

    before = story.of("haproxy")
    with story.broken_haproxy():
        host.run("cert-ctrl", "plane", "renew", "--data", DATA, SITE, "--yes")
        wait_for(lambda: "restore" in {one["request"] for one in story.audit()}, "the renewal is rolled back")
        wait_for(lambda: story.of_file(story.FILES[0]) == before, "the old file is back")
        assert story.of("haproxy") == before
        assert story.rights(story.FILES[0]) == "root:root:600"
    host.run("cert-ctrl", "apply", "--now")
    wait_for(lambda: story.live() != before, "the renewed certificate is live")
    assert story.all_have()["haproxy"] != before

    audit = story.audit()
    counts = Counter((one["request"], one.get("unit") or one.get("path") or "", one["result"]) for one in audit)
    for (request, what, result), count in sorted(counts.items()):
        host.transcript.say(f"  helper: {request} {what} {result}: {count}")
    assert all(counts["put", path, "done"] >= 3 for path in story.FILES)
    assert all(counts["reload", unit, "done"] >= 2 for unit in story.UNITS)
    assert counts["reload", "haproxy.service", "failed"] >= 1
    assert story.reloads_by_polkit() == []
    left = host.run("find", "/etc/haproxy/certs", "/etc/postfix/tls", "-name", ".*", quiet=True)
    assert left == "", "no staged file or copy is left"


def test_a_user_of_the_host_gets_nothing_from_the_helper(
    host: BootedRoot, debs: list[Path], release: tuple[str, str], ports: dict[str, int], tmp_path: Path
) -> None:
    story = Databases(host, tmp_path, ports, release[1])
    story.install(debs)
    story.prepare()
    code = "import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect('/run/cert-ctrl-helper.sock'); "
    code += 's.send(b\'{"do": "rules"}\'); print(s.recv(9999).decode())'
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    assert "Permission denied" in host.run(python, "-c", code, user="myapp", status=1)
    said = host.run("setpriv", "--reuid=myapp", "--regid=myapp", "--groups=cert-ctrl", python, "-c", code)
    assert '"refused"' in said and "postgres" not in said, "even in the agent's group"
    assert [(one["user"], one["result"]) for one in story.audit()] == [("myapp", "refused")]
