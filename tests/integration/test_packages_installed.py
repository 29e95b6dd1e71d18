"""The packages in a fresh Debian: ``nox -s packages``.

systemd does not run in the root: a recording systemctl takes the calls of the maintainer scripts, and this test does what
systemd would do, with ``ExecStart`` and ``User`` of the installed units. ``CERTCTRL_TEST_ROOT`` may name a tar file that
``mmdebstrap`` made before.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import platform
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from package_roots import PROJECT, Builds, recorded, recording_systemctl

pytestmark = [pytest.mark.integration, pytest.mark.root, pytest.mark.campaign]
SUITE = {"3.11": "bookworm", "3.13": "trixie"}.get(platform.python_version().rpartition(".")[0], "")
DATA, DIRECTORY, SITE = "/var/lib/cert-ctrl-plane", "/etc/cert-ctrl", "www.example.com"
PORT = 18443
OPTIONS = f"--listen 127.0.0.1:{PORT} --hostname localhost"
MOUNT_AND_ENTER = 'mount -t proc proc "$0/proc" && exec chroot "$@"'


def say(text: str) -> None:
    """Add a line to the transcript."""
    print(text, flush=True)


class Root:
    """A Debian without a running systemd."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._calls = path / "calls"
        recording_systemctl(path / "usr/local/sbin", self._calls, seen_as="/calls")
        (path / "run/systemd/system").mkdir(parents=True, exist_ok=True)
        (path / "etc/hosts").write_text("127.0.0.1 localhost\n")

    def argv(self, *words: str, user: str = "") -> list[str]:
        """Return the command that runs a program in the root, with its own /proc."""
        enter = [f"--userspec={user}:{user}"] if user else []
        return ["unshare", "--mount", "sh", "-c", MOUNT_AND_ENTER, str(self.path), *enter, str(self.path), *words]

    def run(self, *words: str, status: int = 0, user: str = "") -> str:
        """Run a program, transcribe what it prints and return that."""
        say(f"# {shlex.join(words)}")
        done = subprocess.run(
            self.argv(*words, user=user), env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
        )
        for line in (done.stdout + done.stderr).splitlines():
            say(f"  {line}")
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    def dpkg(self, *words: str | Path) -> list[str]:
        """Run dpkg with packages from outside; return the calls of systemctl."""
        inside = []
        for word in words:
            if isinstance(word, Path):
                shutil.copy(word, self.path / "tmp")
                inside.append(f"/tmp/{word.name}")
            else:
                inside.append(word)
        self.run("dpkg", *inside)
        calls = recorded(self._calls)
        say(f"  systemctl was called with: {calls}")
        return calls

    def setting(self, unit: str, key: str) -> str:
        """Return a setting of an installed unit."""
        lines = (self.path / "usr/lib/systemd/system" / unit).read_text().splitlines()
        return next(line.partition("=")[2] for line in lines if line.startswith(f"{key}="))

    @contextlib.contextmanager
    def service(self, unit: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a service from its unit until the block ends; it must end with status 0."""
        user = self.setting(unit, "User")
        words = self.setting(unit, "ExecStart").replace("$PLANE_OPTIONS", OPTIONS).split()
        say(f"# (as {user}, from {unit}) {shlex.join(words)}")
        process = subprocess.Popen(self.argv(*words, user=user), env=ENVIRONMENT, stdin=subprocess.DEVNULL)
        try:
            yield process
            assert process.poll() is None, "it is still running"
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()


ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.1)


def listening() -> bool:
    """Return whether the control plane accepts connections."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", PORT)):
        return True
    return False


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    """Return two whole builds, of different releases."""
    return Builds(tmp_path_factory.mktemp("packages"))


@pytest.fixture
def root(tmp_path: Path, need: Callable[[str], str], builds: Builds) -> Root:
    """Return a fresh Debian with what the packages depend on."""
    path, tar = tmp_path / "root", os.environ.get("CERTCTRL_TEST_ROOT")
    if tar is None:
        if not SUITE:
            pytest.skip("no Debian release has this Python")
        wanted = f"--include=python{platform.python_version().rpartition('.')[0]},systemd,ca-certificates,libpq5"
        sources = [str(one) for one in Path("/etc/apt/sources.list.d").glob("debian.sources")]
        subprocess.run(
            [need("mmdebstrap"), "--quiet", "--variant=minbase", wanted, SUITE, str(path), *sources],
            check=True,
            timeout=1800,
        )
    else:
        path.mkdir()
        subprocess.run(["tar", "-xf", tar, "-C", str(path)], check=True, timeout=600)
    return Root(path)


def test_installed_used_upgraded_removed_and_purged(root: Root, builds: Builds) -> None:
    assert root.dpkg("-i", *builds.debs("1")) == ["daemon-reload", "daemon-reload"]
    root.run("cert-ctrl", "--version")
    root.run("cert-ctrl", "status", status=78)
    data = root.path / DATA.lstrip("/")
    data.mkdir(mode=0o700)  # as StateDirectory= does
    shutil.chown(
        data, *[int(word) for word in root.run("sh", "-c", "id -u cert-ctrl-plane; id -g cert-ctrl-plane").split()]
    )
    with root.service("cert-ctrl-plane.service"):
        wait_for(listening, "the control plane listens")
        register(root)
        with root.service("cert-ctrl.service"):
            served = root.path / DIRECTORY.lstrip("/") / "certs" / f"{SITE}.crt"
            root.run("cert-ctrl", "plane", "issue", "--data", DATA, SITE, "--device", "web-1")
            wait_for(served.exists, "the certificate arrives")
            first = served.read_bytes()
            calls = root.dpkg("-i", *builds.debs("2"))
            assert calls == [
                "daemon-reload",
                "try-restart cert-ctrl-helper.service cert-ctrl.service cert-ctrl@*.service",
                "daemon-reload",
                "try-restart cert-ctrl-plane.service",
            ]
            assert served.read_bytes() == first
    with root.service("cert-ctrl-plane.service"), root.service("cert-ctrl.service"):
        wait_for(listening, "the upgraded control plane listens")
        root.run("cert-ctrl", "plane", "renew", "--data", DATA, SITE, "--yes")
        wait_for(lambda: served.read_bytes() != first, "the renewal arrives")
        root.run("cert-ctrl", "status")
    renewed = served.read_bytes()
    root.dpkg("-r", "cert-ctrl-plane", "cert-ctrl")
    assert served.read_bytes() == renewed and (root.path / "etc/cert-ctrl/state/refresh_token.txt").exists()
    root.dpkg("--purge", "cert-ctrl-plane", "cert-ctrl")
    assert served.read_bytes() == renewed and not data.exists()
    assert [path.name for path in (root.path / "etc/cert-ctrl").iterdir()] == ["certs"]


def register(root: Root) -> None:
    """Register the agent with a token, as docs/installing.md does."""
    root.run("sh", "-c", f"umask 077; cert-ctrl plane enrolment-token --data {DATA} > /root/token")
    root.run("cert-ctrl", "init", "--server", f"https://localhost:{PORT}", "--ca", f"{DATA}/ca.pem", "--name", "web-1")
    root.run("cert-ctrl", "register", "--enrolment-token-file", "/root/token")


def test_the_sandbox_passes(root: Root, builds: Builds) -> None:
    root.dpkg("-i", *builds.debs("1"))
    root.run("cert-ctrl", "sandbox", "--duration", "10", "--service", "builtin")


def test_two_builds_of_one_commit_have_the_same_bytes(builds: Builds) -> None:
    builds.build(again := builds.folder / "again", "1")
    for path in (*builds.debs("1"), *builds.rpms("1")):
        (other,) = again.rglob(path.name)
        assert other.read_bytes() == path.read_bytes(), path.name


def test_lintian_and_rpmlint_have_no_findings(builds: Builds, need: Callable[[str], str]) -> None:
    config = PROJECT / "deploy/packages/rpmlint.toml"
    lintian = subprocess.run(
        [need("lintian"), "--fail-on", "warning", *map(str, builds.debs("1"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (lintian.returncode, lintian.stdout) == (0, "")
    rpmlint = subprocess.run(
        [need("rpmlint"), "-c", str(config), *map(str, builds.rpms("1"))], capture_output=True, text=True, check=False
    )
    assert rpmlint.returncode == 0 and "0 errors, 0 warnings" in rpmlint.stdout, rpmlint.stdout


def test_manual_pages_are_correct(root: Root, builds: Builds, need: Callable[[str], str]) -> None:
    root.run("sh", "-c", "rm -f /etc/dpkg/dpkg.cfg.d/*")
    root.dpkg("-i", *builds.debs("1"))
    pages = sorted((root.path / "usr/share/man").rglob("cert-ctrl*.gz"))
    assert len(pages) >= 20
    for page in pages:
        argv, text = [need("mandoc"), "-Tlint", "-Wwarning"], gzip.decompress(page.read_bytes())
        done = subprocess.run(argv, input=text, capture_output=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (0, b""), page.name


def test_rpm_installs_the_whole_into_an_empty_root(builds: Builds, need: Callable[[str], str], tmp_path: Path) -> None:
    rpm = [need("rpm"), "--root", str(tmp_path), "--nodeps", "--noscripts"]
    subprocess.run([*rpm, "-i", *map(str, builds.rpms("1"))], check=True, timeout=600)
    verified = subprocess.run([*rpm, "-Va"], capture_output=True, text=True, timeout=600, check=False)
    assert (verified.returncode, verified.stdout) == (0, "")
