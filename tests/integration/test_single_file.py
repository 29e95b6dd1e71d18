"""The single file of deploy/singlefile: where it unpacks itself to, and whose directories it refuses.

The file here has only what ``--version`` needs, so that it is fast; ``nox -s images`` builds and runs the whole.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
BUILD = PROJECT / "deploy" / "singlefile" / "build.py"
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
MEMORY = Path("/dev/shm")
NEEDED = 256 * 1024 * 1024
"""Bytes: the single file wants to see room for the whole program."""
SYSTEM = "cert-ctrl-program"
AS_ROOT = '/bin/mount --bind "$0" /var/lib && exec "$@"'
pytestmark = [pytest.mark.integration, pytest.mark.root]


def build(out: Path, **options: object) -> Path:
    """Build the file without libraries."""
    argv = [sys.executable, str(BUILD), str(out), "--bare"]
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True, timeout=300, **options)  # type: ignore[call-overload]
    return Path(done.stdout.strip())


def place() -> str | None:
    """Return a directory in memory, because unpacking ends with a sync, which takes long on a busy disk; None: on the disk.

    In a container, that file system is often small and mounted with noexec.
    """
    if not MEMORY.is_dir():
        return None
    found = os.statvfs(MEMORY)
    fits = not found.f_flag & (os.ST_NOEXEC | os.ST_RDONLY) and found.f_bavail * found.f_frsize >= NEEDED
    return str(MEMORY) if fits else None


@pytest.fixture(scope="module")
def built(need: Callable[[str], str]) -> Iterator[Path]:
    """Return the file, in a directory that all users can read."""
    if shutil.which(PYTHON, path="/usr/bin:/usr/local/bin") is None:
        pytest.skip(f"no user but root may run {PYTHON} here")
    with tempfile.TemporaryDirectory(prefix="cert-ctrl-file-", dir=place()) as folder:
        Path(folder).chmod(0o755)
        yield build(Path(folder))


class Host:
    """A host with an empty /var/lib, and one user that is not root."""

    def __init__(self, folder: Path, file: Path) -> None:
        self.file = file
        self.varlib, self.home = folder / "varlib", folder / "home"
        self.user = pwd.getpwnam("nobody")
        self.varlib.mkdir(mode=0o755)
        self.home.mkdir(mode=0o700)
        shutil.chown(self.home, self.user.pw_uid, self.user.pw_gid)

    @property
    def system(self) -> Path:
        """Root's directory for the program."""
        return self.varlib / SYSTEM

    @property
    def cache(self) -> Path:
        """The user's directory for the program."""
        return self.home / ".cache" / "cert-ctrl"

    def argv(self, *words: str, root: bool, mount: str = "") -> list[str]:
        """Return a command of root or the user, after a shell line that mounts something."""
        user = self.user
        become = (
            [] if root else ["/usr/bin/setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        )
        script = f"{mount} {AS_ROOT}" if mount else AS_ROOT
        return ["/usr/bin/unshare", "--mount", "/bin/sh", "-c", script, str(self.varlib), *become, *words]

    def run(self, *words: str, root: bool = False, mount: str = "", **environment: str) -> tuple[int, str]:
        """Run the file, or other words; return its exit status and what it prints."""
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root" if root else str(self.home)} | environment
        argv = self.argv(*(words or (str(self.file), "--version")), root=root, mount=mount)
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120, check=False)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def host(built: Path) -> Iterator[Host]:
    with tempfile.TemporaryDirectory(prefix="cert-ctrl-host-", dir=place()) as folder:
        Path(folder).chmod(0o755)
        yield Host(Path(folder), built)


def names(folder: Path) -> list[str]:
    """Return the unpacked programs and what is left of interrupted ones."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock") if folder.exists() else []


def version(said: tuple[int, str]) -> bool:
    """Return whether the program has run."""
    return said[0] == 0 and said[1].startswith("cert-ctrl ")


def test_a_user_unpacks_it_once_for_itself(host: Host) -> None:
    assert version(host.run())
    (name,) = names(host.cache)
    assert (host.cache.stat().st_mode & 0o777, host.cache.stat().st_uid) == (0o700, host.user.pw_uid)
    before = (host.cache / name).stat().st_mtime_ns
    assert version(host.run())
    assert (names(host.cache), (host.cache / name).stat().st_mtime_ns) == ([name], before)
    for path in ("deploy/cert-ctrl.service", "deploy/cert-ctrl-helper.json", "LICENSE"):
        assert (host.cache / name / path).exists()


def test_users_run_the_copy_of_root(host: Host) -> None:
    status, said = host.run(root=True)
    assert version((status, said)), said
    (name,) = names(host.system)
    assert version(host.run()) and not host.cache.exists()
    modes = {path.stat().st_mode & 0o777 for path in (host.system / name).rglob("*")}
    assert modes == {0o755, 0o644} and {path.stat().st_uid for path in (host.system / name).rglob("*")} == {0}


@pytest.mark.parametrize("how", ["owned", "writable", "inner", "link"])
def test_root_refuses_a_directory_that_others_may_change(host: Host, how: str) -> None:
    assert version(host.run(root=True))
    (name,) = names(host.system)
    if how == "owned":
        shutil.chown(host.system, host.user.pw_uid)
    if how == "writable":
        host.system.chmod(0o777)
    if how == "inner":
        (host.system / name).chmod(0o775)
    if how == "link":
        shutil.copytree(host.system, host.home / "copy")
        shutil.rmtree(host.system)
        host.system.symlink_to(host.home / "copy")
    (planted,) = host.system.glob("*/python/certctrl/__pycache__/__main__.*.pyc")
    planted.unlink()
    (planted.parents[1] / "__main__.py").write_text("print('planted')\n")
    status, said = host.run(root=True)
    assert status == 78 and "could replace the program" in said, said
    fix = said.partition("fix: ")[2].strip()
    assert fix == f"rm -r /var/lib/{SYSTEM}"
    host.run("/bin/sh", "-c", fix, root=True)
    assert version(host.run(root=True)), "and not what was planted"


@pytest.mark.parametrize("how", ["owned", "link", "file"])
def test_root_unpacks_nothing_into_what_others_have_prepared(host: Host, how: str) -> None:
    target = host.home / "mine"
    target.mkdir()
    shutil.chown(target, host.user.pw_uid)
    if how == "owned":
        target.rename(host.system)
    if how == "link":
        host.system.symlink_to(target)
    if how == "file":
        host.system.write_text("")
    status, said = host.run(root=True)
    assert status in (74, 78) and "fix: " in said and "Traceback" not in said, said
    assert not target.exists() or names(target) == []


def test_a_user_refuses_the_directory_of_another_one(host: Host) -> None:
    """As after `sudo -u USER` with the HOME of the caller."""
    host.cache.mkdir(parents=True)
    shutil.chown(host.cache.parent, 1)
    shutil.chown(host.cache, 1)
    host.cache.chmod(0o777)
    status, said = host.run()
    assert status == 78 and "the owner of" in said and names(host.cache) == [], said


def test_a_lock_that_another_user_could_hold_is_not_followed(host: Host) -> None:
    host.cache.mkdir(parents=True)
    for path in (host.cache.parent, host.cache):
        shutil.chown(path, host.user.pw_uid)
    (host.cache / ".lock").symlink_to("/etc/passwd")
    status, said = host.run()
    assert status == 74 and ".lock" in said, said


def test_one_that_was_killed_while_unpacking_is_repeated(host: Host) -> None:
    argv = host.argv(str(host.file), "--version", root=False)
    process = subprocess.Popen(argv, env={"PATH": "/usr/bin:/bin", "HOME": str(host.home)}, stdout=subprocess.DEVNULL)
    while process.poll() is None and not names(host.cache):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (host.cache / ".new-left").mkdir()
    shutil.chown(host.cache / ".new-left", host.user.pw_uid)
    for path in [path for path in host.cache.iterdir() if not path.name.startswith(".")]:
        shutil.rmtree(path)  # it was finished before it was killed
    assert version(host.run())
    assert len(names(host.cache)) == 1 and not names(host.cache)[0].startswith(".")


def test_processes_that_start_together_unpack_it_once(host: Host) -> None:
    env = {"PATH": "/usr/bin:/bin", "HOME": str(host.home)}
    argv = host.argv(str(host.file), "--version", root=False)
    together = [subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL) for _ in range(8)]
    assert [process.wait(120) for process in together] == [0] * 8
    assert len(names(host.cache)) == 1


def test_a_damaged_file_unpacks_nothing(host: Host, tmp_path: Path) -> None:
    content = bytearray(host.file.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = host.home / "damaged.pyz"
    damaged.write_bytes(content)
    damaged.chmod(0o755)
    status, said = host.run(str(damaged), "--version")
    assert (status, names(host.cache)) == (78, []) and "damaged.pyz is damaged" in said and "copy it again" in said


def test_a_program_that_lost_modules_says_so(host: Host) -> None:
    assert version(host.run())
    (name,) = names(host.cache)
    shutil.rmtree(host.cache / name / "python" / "certctrl")
    status, said = host.run()
    assert status == 78 and f"rm -r {host.cache / name}" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [("noexec", 78, "mounted with noexec"), ("size=4m", 74, "No space left"), ("ro", 74, "Read-only file system")],
)
def test_file_systems_that_cannot_hold_it_are_named(host: Host, options: str, status: int, words: str) -> None:
    mount = f"/bin/mount -t tmpfs -o {options},uid={host.user.pw_uid},mode=700 none {host.home};"
    assert (said := host.run(mount=mount))[0] == status and words in said[1] and "fix: " in said[1], said


def test_no_directory_at_all_is_said(host: Host) -> None:
    status, said = host.run(HOME="")
    assert status == 78 and "run `cert-ctrl --version` as root once, or set HOME" in said


def test_modules_of_the_caller_are_not_imported(host: Host) -> None:
    for name in ("certctrl", "os", "unpack"):
        (host.home / f"{name}.py").write_text("print('planted'); raise SystemExit(0)")
    said = host.run(PYTHON, str(host.file), "--version", PYTHONPATH=str(host.home))
    assert said[1].startswith("cert-ctrl ") or "planted" not in said[1], said
    assert version(host.run(PYTHONPATH=str(host.home)))


def test_another_python_is_refused_with_words(host: Host) -> None:
    """By the source in the file, which any Python 3 can read."""
    other = host.home / "other.pyz"
    with zipfile.ZipFile(host.file) as file, zipfile.ZipFile(other, "w") as into:
        here = PYTHON.removeprefix("python")
        into.writestr("__main__.py", file.read("__main__.py").decode().replace(f'"{here}"', '"3.9"'))
    status, said = host.run(PYTHON, str(other), "status")
    assert status == 78 and f"this file is for Python 3.9 on {os.uname().machine}, and" in said and "python3.9" in said


def test_a_host_without_python_is_told(host: Host) -> None:
    (host.home / "bin").mkdir()
    text = (
        host.file.read_bytes()
        .replace(b"/usr/bin/python", b"/usr/no/python")
        .replace(b"/usr/local/bin", b"/usr/nonono/bin")
    )
    (host.home / "none.pyz").write_bytes(text)
    status, said = host.run("/bin/sh", str(host.home / "none.pyz"), PATH=str(host.home / "bin"))
    assert (status, said) == (78, f"cert-ctrl: Python {PYTHON.removeprefix('python')} is not installed\n")


def test_two_builds_of_one_commit_have_the_same_bytes(built: Path, tmp_path: Path) -> None:
    again = build(tmp_path, umask=0o077, env=os.environ | {"TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7"})
    assert again.name == built.name and again.read_bytes() == built.read_bytes()
    assert again.stat().st_mode & 0o777 == 0o755
