"""Root becomes the owner of a directory before it reads anything in it, or refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from acl import set_acl
from adopt_files import certificate, private_key

from certctrl.cli.app import COMMANDS as TABLE
from certctrl.cli.owner import become_owner
from certctrl.errors import ConfigError
from certctrl.store.config.files import init_config_dir
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir

USER = 54321
"""A user id without a name on any test host."""
DRIVER = """
import importlib, io, json, os, pkgutil, sys
import certctrl, certctrl.cli.owner
from certctrl.__main__ import main
for found in pkgutil.walk_packages(certctrl.__path__, "certctrl."):
    if not found.name.startswith(("certctrl.__main__", "certctrl.install.process.supervisor")):
        importlib.import_module(found.name)  # the Python of a test may be one that only root can read
certctrl.cli.owner.reads_program = lambda: True
for line in sys.stdin:
    argv = json.loads(line)
    reader, writer = os.pipe()
    if os.fork() == 0:
        sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
        status = main(argv)
        facts = [status, os.getresuid(), os.getresgid(), os.getgroups(), sys.stderr.getvalue()]
        os.write(writer, json.dumps(facts).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        print(pipe.read().decode(), flush=True)
    os.wait()
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a directory of root's that every user can enter."""
    made = Path(tempfile.mkdtemp(dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def give(path: Path, uid: int = USER) -> None:
    for below in (path, *path.rglob("*")):
        os.lchown(below, uid, uid)


def agent_in(root: Path) -> ConfigDir:
    layout = ConfigDir(root)
    init_config_dir(RealFs(), layout, server_url="https://127.0.0.1:1", ca_pem=None)
    return layout


Ended = tuple[int, list[int], list[int], list[int], str]
"""Status, user ids, group ids, groups and standard error of a command."""
Ends = Callable[..., list[Ended]]


@pytest.fixture(scope="module")
def ends() -> Iterator[Ends]:
    """``ends(argv, …)`` runs command lines as root, each in a process of its own that is forked from one with all modules."""
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert driver.stdin is not None and driver.stdout is not None
    stdin, stdout = driver.stdin, driver.stdout

    def run(*argvs: list[str]) -> list[Ended]:
        found = []
        for argv in argvs:
            stdin.write(json.dumps(argv) + "\n")
            stdin.flush()
            found.append(tuple(json.loads(stdout.readline())))
        return found

    with driver:
        yield run
        stdin.close()


COMMANDS = [
    "status", "list-certs", "plan", "apply", "poll-now", "history", "doctor", "register", "--keep-running",
    "renew --domain a.example", "rollback --domain a.example", "forget --domain a.example --yes", "config show", "config check", "policy show",
    "policy allow path /srv/x --yes", "trust show", "init --name web-1", "adopt --dry-run --config certbot=/usr",
    "keystore-password --domain a.example --from-file /proc/sys/kernel/ostype", "move /nowhere",
    "setup --server https://127.0.0.1:1 --system-ca --token-file /proc/sys/kernel/ostype",
]  # fmt: skip


@pytest.mark.root
def test_every_command_of_root_runs_as_the_owner_of_the_directory(ends: Ends, place: Path) -> None:
    tested = {command.split()[0] for command in COMMANDS}
    assert tested - {"--keep-running"} == {name for name, entry in TABLE.items() if not entry.own_directory}
    layout = agent_in(place / "agent")
    give(layout.root)
    found = ends(*(["-c", str(layout.root), *command.split()] for command in COMMANDS))
    assert len(found) == len(COMMANDS)
    for command, (_, uids, gids, groups, _) in zip(COMMANDS, found, strict=True):
        assert (uids, gids, groups) == ([USER] * 3, [USER] * 3, []), command
    owners = {path: path.lstat().st_uid for path in layout.root.rglob("*")}
    assert set(owners.values()) == {USER}, owners


@pytest.mark.root
def test_adopt_searches_as_root_and_judges_and_writes_as_the_owner(ends: Ends, place: Path) -> None:
    layout = agent_in(place / "agent")
    give(layout.root)
    tls, conf = place / "tls", place / "nginx.conf"
    tls.mkdir(mode=0o700)
    (tls / "c.pem").write_bytes(certificate("www.example.com"))
    (tls / "c.key").write_bytes(private_key())
    conf.write_text(
        f"http {{ server {{ listen 443 ssl; ssl_certificate {tls}/c.pem; ssl_certificate_key {tls}/c.key; }} }}"
    )
    conf.chmod(0o600)
    argv = ["-c", str(layout.root), "adopt", "--yes", "--config", f"nginx={conf}"]
    ((status, uids, *_),) = ends(argv)
    assert (status, uids) == (1, [USER] * 3), "it is found, but the agent could not write it"
    assert not layout.local_installs.exists()
    give(tls)
    ((status, uids, *_),) = ends(argv)
    assert (status, uids, layout.local_installs.stat().st_uid) == (0, [USER] * 3, USER)


@pytest.mark.root
def test_a_user_with_a_name_keeps_that_users_groups(ends: Ends, place: Path) -> None:
    import pwd

    entry = pwd.getpwnam("nobody")
    layout = agent_in(place / "agent")
    give(layout.root, entry.pw_uid)
    ((_, uids, gids, groups, _),) = ends(["-c", str(layout.root), "config", "show"])
    assert (uids, gids) == ([entry.pw_uid] * 3, [entry.pw_gid] * 3)
    assert sorted(groups) == sorted(os.getgrouplist("nobody", entry.pw_gid))


@pytest.mark.root
def test_root_stays_root_in_its_own_directory(ends: Ends, place: Path) -> None:
    place.chmod(0o1777)  # sticky, like /tmp
    layout = agent_in(place / "agent")
    ((status, uids, _, _, err),) = ends(["-c", str(layout.root), "config", "show"])
    assert (status, uids, err) == (0, [0, 0, 0], "")


def by_owner(place: Path) -> None:
    os.chown(place, USER, USER)


def by_others(place: Path) -> None:
    place.chmod(0o777)


def by_a_group(place: Path) -> None:
    os.chown(place, 0, USER)
    place.chmod(0o775)


def by_a_link(place: Path) -> None:
    (place / "parent").rename(place / "real")
    (place / "parent").symlink_to("real")
    os.lchown(place / "parent", USER, USER)


def by_a_list(place: Path) -> None:
    set_acl(place, f"user::7 user:{USER}:7 group::5 mask::7 other::5")


@pytest.mark.root
@pytest.mark.parametrize("replaceable", [by_owner, by_others, by_a_group, by_a_list, by_a_link])
def test_a_directory_of_root_that_others_can_replace_is_refused(
    replaceable: Callable[[Path], None], ends: Ends, place: Path, need_acl: Callable[[Path], None]
) -> None:
    need_acl(place)
    layout = agent_in(place / "parent" / "agent")
    replaceable(place)
    ((status, _, _, _, err),) = ends(["-c", str(layout.root), "config", "show"])
    where = place / "parent" if replaceable is by_a_link else place
    error, fix = err.splitlines()
    assert (status, error.startswith(f"cert-ctrl: error: {where}: ")) == (78, True), err
    assert f"replace {layout.root}" in error
    assert str(where) in fix


@pytest.mark.root
def test_init_in_a_users_directory_makes_that_users_files(ends: Ends, place: Path) -> None:
    trustme = pytest.importorskip("trustme")
    ca, home = place / "ca.pem", place / "home"
    trustme.CA().cert_pem.write_to_path(ca)
    ca.chmod(0o600)
    home.mkdir()
    give(home)
    root = home / "new" / "agent"
    ((status, uids, *_, err),) = ends(["-c", str(root), "init", "--server", "https://plane.example", "--ca", str(ca)])
    assert (status, uids, err) == (0, [USER] * 3, ""), "a file that only root can read is read before"
    assert {path.lstat().st_uid for path in home.rglob("*")} == {USER}


@pytest.mark.root
@pytest.mark.parametrize("command", ["plane devices --data DIR", "plane serve --data DIR --listen 127.0.0.1:x"])
def test_commands_of_the_plane_run_as_the_owner_of_its_data(command: str, ends: Ends, place: Path) -> None:
    data = place / "plane"
    data.mkdir(mode=0o700)
    (data / "operator.key").write_text("ok_x\n")
    (data / "address").write_text("https://127.0.0.1:1\n")
    give(data)
    words = command.replace("DIR", str(data)).replace(":x", ":0").split()
    if "serve" in words:
        (data / "plane.db").mkdir()  # ends the command
        os.chown(data / "plane.db", USER, USER)
        pytest.importorskip("starlette")
    ((_, uids, *_),) = ends(words)
    assert uids == [USER] * 3


@pytest.mark.root
def test_the_sandbox_runs_as_the_owner_of_its_directory(ends: Ends, place: Path) -> None:
    pytest.importorskip("starlette")
    box = place / "box"
    box.mkdir()
    (box / "file").touch()  # not empty: ends the command
    give(box)
    ((status, uids, *_),) = ends(["sandbox", "--dir", str(box)])
    assert (status, uids) == (2, [USER] * 3)


@pytest.mark.root
def test_root_that_may_not_become_the_owner_prints_the_command(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give(place)

    def refused(*_ids: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    for call in ("setgroups", "setegid", "seteuid", "setresgid", "setresuid"):
        monkeypatch.setattr(os, call, refused)
    with pytest.raises(ConfigError, match="root may not become that user here") as caught:
        become_owner(place)
    assert caught.value.fix == f"setpriv --reuid={USER} --clear-groups cert-ctrl …"


@pytest.mark.root
def test_root_does_not_become_a_user_who_cannot_read_the_program(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give(place)
    before = os.getresuid(), os.getresgid(), os.getgroups()
    monkeypatch.setattr("certctrl.cli.owner.reads_program", lambda: False)
    with pytest.raises(ConfigError, match=f"belongs to user id {USER}, who cannot read the program") as caught:
        become_owner(place)
    assert "where every user can read it" in str(caught.value.fix)
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == before


def test_other_users_are_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    become_owner(tmp_path / "missing")
