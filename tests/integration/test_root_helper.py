"""The root helper as a process of root, and processes of other users that ask it for more than root's policy allows."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import attrs
import pytest
from fleet import PATIENCE, ROOT, wait_for
from helper_unit import HelperUnit, exec_start

from certctrl.errors import CommandError, DiskError, PolicyRefusedError
from certctrl.helper import serve
from certctrl.helper.client import HelperClient, sealed
from certctrl.helper.messages import Answer, Request, Result, Verb, answer_of, encoded

pytestmark = [pytest.mark.integration, pytest.mark.root]
ASKER = 65534
"""User and group of the agent here: nobody, whom every system has."""
TEMP, BACKUP = ".a.key.0000000000000001.tmp", ".a.key.0000000000000002.tmp"
RECORDING = '#!/bin/sh\nprintf "%s\\n" "$*" >> "$(dirname "$0")/calls"\ncase "$*" in *fails*) echo no such luck; exit 3;; esac\n'


@attrs.define
class Site:
    """A helper, its policy and the directory that it may write."""

    place: Path
    tls: Path
    unit: HelperUnit

    @property
    def calls(self) -> list[str]:
        """The command lines of systemctl."""
        return (self.place / "calls").read_text().splitlines() if (self.place / "calls").exists() else []

    def connect(self) -> socket.socket:
        """Return a connection of the agent's user."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(PATIENCE)
        with user(ASKER):
            connection.connect(str(self.unit.path))
        return connection

    def send(self, packet: bytes, fds: list[int] | None = None) -> Answer | None:
        """Return the answer to one packet; None if the connection was closed."""
        with contextlib.closing(self.connect()) as connection:
            with contextlib.suppress(BrokenPipeError):  # it is busy, and has answered already
                socket.send_fds(connection, [packet], fds or [])
            answer = connection.recv(1 << 20)
            return answer_of(answer) if answer else None

    @property
    def client(self) -> HelperClient:
        """The agent's client, which connects as its user."""

        def ask(request: Request, data: bytes | None, seconds: float) -> Answer:
            fds = [sealed(data)] if data is not None else []
            answer = self.send(encoded(request), fds)
            for fd in fds:
                os.close(fd)
            assert answer is not None
            return answer

        return HelperClient(ask)


@contextlib.contextmanager
def user(uid: int) -> Iterator[None]:
    """Be another user for a moment."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@contextlib.contextmanager
def helper_site(place: Path) -> Iterator[Site]:
    place.chmod(0o755)
    tls = place / "tls"
    tls.mkdir(mode=0o755)
    systemctl = place / "systemctl"
    systemctl.write_text(RECORDING)
    systemctl.chmod(0o755)
    files = [{"path": f"{tls}/a.key", "owner": "1", "group": "1", "mode": "0600"},
             {"path": f"{tls}/*.pem", "owner": "root", "group": "root", "mode": "0644"}]  # fmt: skip
    units = {"web.service": ["reload"], "fails.service": ["restart"]}
    policy = place / "policy.json"
    policy.write_text(json.dumps({"nobody": {"files": files, "units": units, "reloads_per_minute": 5}}))
    policy.chmod(0o644)
    argv = [*exec_start(sys.executable, "-m", "certctrl"), "--policy", str(policy), "--systemctl", str(systemctl)]
    with HelperUnit(place / "helper.sock", argv, gid=ASKER) as unit:
        yield Site(place, tls, unit)


@pytest.fixture
def site() -> Iterator[Site]:
    place = Path(tempfile.mkdtemp(prefix="certctrl-helper-"))  # others may not enter pytest's
    try:
        with helper_site(place) as made:
            yield made
    finally:
        shutil.rmtree(place)


def digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def stage(path: Path, data: bytes = b"x", **more: str) -> Request:
    return Request(do=Verb.STAGE, path=str(path), sha256=digest(data), **{"temp": TEMP, "backup": BACKUP} | more)


def test_a_file_is_written_and_a_unit_reloaded(site: Site) -> None:
    key, client = site.tls / "a.key", site.client
    client.stage(str(key), TEMP, BACKUP, b"a key")
    client.put(str(key), TEMP)
    client.drop(str(key), TEMP, BACKUP)
    found = key.stat()
    assert (key.read_bytes(), stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (b"a key", 0o600, 1, 1)
    assert client.act("reload", "web.service", 5.0)
    assert site.calls == [
        f"--no-ask-password --no-pager {what}" for what in ("is-active --quiet web.service", "reload web.service")
    ]
    lines = [(row["user"], row["request"], row["result"]) for row in site.unit.audit]
    assert lines == [("nobody", what, "done") for what in ("stage", "put", "drop", "reload")]
    assert all(row["pid"] == os.getpid() for row in site.unit.audit)
    assert len(site.unit.pids) == 1


def test_other_users_get_nothing(site: Site) -> None:
    """Not even root without an entry; a user without the socket's group cannot connect at all."""
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as connection:
        connection.connect(str(site.unit.path))
        connection.send(encoded(Request(do=Verb.RELOAD, unit="web.service")))
        assert answer_of(connection.recv(1 << 16)).result is Result.REFUSED
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as connection, user(4711):
        with pytest.raises(PermissionError):
            connection.connect(str(site.unit.path))
    site.unit.path.chmod(0o666)  # even then the kernel says who asks
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as connection:
        with user(4711):
            connection.connect(str(site.unit.path))
        connection.send(encoded(Request(do=Verb.RULES)))
        assert answer_of(connection.recv(1 << 16)).result is Result.REFUSED
    assert [(row["uid"], row["result"]) for row in site.unit.audit] == [(0, "refused"), (4711, "refused")]
    assert not site.calls


def test_a_connection_is_of_the_user_that_opened_it(site: Site) -> None:
    """One that another process has passed on, or whose process has changed its user, keeps its rights and gains none."""
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as connection:
        connection.connect(str(site.unit.path))  # as root, who has no entry
        with user(ASKER):
            connection.send(encoded(Request(do=Verb.RULES)))
        assert answer_of(connection.recv(1 << 16)).result is Result.REFUSED


def test_garbage_huge_requests_and_many_files_are_refused(site: Site) -> None:
    rng = random.Random(1)
    packets = [
        b"\0",
        b"{" * 5000,
        b"x" * 16384,
        b"x" * 100_000,
        *(rng.randbytes(rng.randrange(1, 3000)) for _ in range(50)),
    ]
    packets += [encoded(Request(do=Verb.RELOAD, unit="web.service")) + b" " * 20_000]
    for packet in packets:
        answer = site.send(packet)
        assert answer is not None and answer.result is Result.REFUSED
    for number in (2, 20, 200):
        fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(number)]
        answer = site.send(encoded(stage(site.tls / "a.key")), fds)
        assert answer is not None and answer.result is Result.REFUSED
        for fd in fds:
            os.close(fd)
    assert site.client.act("reload", "web.service", 5.0), "it still works"
    assert len(site.calls) == 2 and os.listdir(site.tls) == []
    assert len(os.listdir(f"/proc/{site.unit.pids[-1]}/fd")) < 12, "no descriptor of a request stays"


def test_a_directory_a_device_and_a_growing_file_are_not_read(site: Site) -> None:
    (site.place / "plain").write_bytes(b"x")
    for path in (site.place, "/dev/zero", site.place / "plain", "/etc/passwd"):
        fd = os.open(path, os.O_RDONLY)
        answer = site.send(encoded(stage(site.tls / "a.key")), [fd])
        assert answer is not None and answer.result is Result.REFUSED and "sealed memory file" in answer.why
        os.close(fd)


def answers(site: Site) -> bool:
    try:
        return len(site.client.rules()) == 2
    except DiskError:  # too many connections
        return False


def test_silent_connections_keep_out_neither_others_nor_for_long(site: Site) -> None:
    silent = [site.connect() for _ in range(3 * serve.MOST_PER_USER)]
    wait_for(lambda: answers(site), "an answer, once the silent connections are closed")
    site.unit.path.chmod(0o666)
    for _ in range(3 * serve.MOST_PER_USER):
        silent.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        with user(4711):
            silent[-1].connect(str(site.unit.path))
    assert len(site.client.rules()) == 2, "those of another user are not in the way"
    for connection in silent:
        connection.close()


def test_a_client_that_goes_away_harms_nobody(site: Site) -> None:
    for _ in range(50):
        connection = site.connect()
        connection.send(encoded(Request(do=Verb.RULES)))
        connection.close()
    assert len(site.client.rules()) == 2


@pytest.mark.parametrize(
    "path", ["{tls}/../policy.json", "{tls}/b.key", "/etc/passwd", "{place}/systemctl", "{tls}/../tls/a.key"]
)
def test_only_the_files_of_the_policy_are_written(site: Site, path: str) -> None:
    target = path.format(tls=site.tls, place=site.place)
    before = Path(target).read_bytes() if Path(target).exists() else None
    fd = sealed(b"x")
    for request in (
        stage(Path(target)),
        attrs.evolve(stage(site.tls / "a.key"), path=target, temp=f".{Path(target).name}.01.tmp"),
    ):
        answer = site.send(encoded(request), [fd])
        assert answer is not None and answer.result in (Result.UNNAMED, Result.REFUSED)
    os.close(fd)
    assert (Path(target).read_bytes() if Path(target).exists() else None) == before


def test_units_are_limited_to_those_of_the_policy_and_in_rate(site: Site) -> None:
    for unit in (
        "ssh.service",
        "-H evil.service",
        "web.service ssh.service",
        "web*",
        "--root=/x",
        "web.service\nssh.service",
    ):
        assert not site.client.act("reload", unit, 5.0)
    assert not site.client.act("restart", "web.service", 5.0)
    assert not site.calls
    with pytest.raises(CommandError, match=r"is not running"):
        site.client.act("restart", "fails.service", 5.0)
    answers = [site.send(encoded(Request(do=Verb.RELOAD, unit="web.service"))) for _ in range(12)]
    assert [one.result for one in answers if one is not None] == [Result.DONE] * 5 + [Result.BUSY] * 7
    assert sum("reload web.service" in call for call in site.calls) == 5


def test_a_policy_that_others_can_write_stops_the_helper(site: Site) -> None:
    policy = site.place / "policy.json"
    for change, undo in (
        (lambda: policy.chmod(0o666), lambda: policy.chmod(0o644)),
        (lambda: os.chown(policy, ASKER, 0), lambda: os.chown(policy, 0, 0)),
    ):
        change()
        with pytest.raises((DiskError, PolicyRefusedError)):
            site.client.rules()
        undo()
        site.client.rules()
    assert len(site.unit.pids) == 1, "it does not end, which would stop its socket"


RACER = """
import os, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
victim, here, evil = sys.argv[1:]
while True:
    for name in ("a.key", "swap"):
        try: os.symlink(victim, f"{here}/{name}")
        except OSError: pass
        try: os.rename(here, f"{here}.away"); os.symlink(evil, here)
        except OSError: pass
        try: os.unlink(here)
        except OSError: pass
        try: os.rename(f"{here}.away", here)
        except OSError: pass
        try: os.unlink(f"{here}/{name}")
        except OSError: pass
"""


def test_an_attacker_who_swaps_links_wins_nothing(site: Site) -> None:
    """A directory of another user on the way: whatever that user does meanwhile, nothing is written through it."""
    loose, victim, evil = site.place / "loose", site.place / "victim", site.place / "evil"
    loose.mkdir(mode=0o755)
    evil.mkdir(mode=0o755)
    victim.write_bytes(b"victim")
    os.chown(loose, ASKER, ASKER)
    (loose / "tls").mkdir(mode=0o755)
    os.chown(loose / "tls", ASKER, ASKER)
    policy = json.loads((site.place / "policy.json").read_text())
    policy["nobody"]["files"].append({"path": f"{loose}/tls/a.key", "owner": "root", "group": "root", "mode": "0600"})
    policy["nobody"]["requests_per_minute"] = 100_000
    (site.place / "policy.json").write_text(json.dumps(policy))
    racer = subprocess.Popen([sys.executable, "-c", RACER, str(victim), str(loose / "tls"), str(evil)])
    try:
        refused = 0
        for number in range(300):
            temp = f".a.key.{number:016x}.tmp"
            try:
                site.client.stage(str(loose / "tls" / "a.key"), temp, BACKUP, b"evil")
                site.client.put(str(loose / "tls" / "a.key"), temp)
            except (PolicyRefusedError, DiskError):
                refused += 1
    finally:
        racer.kill()
        racer.wait()
    assert refused == 300
    assert victim.read_bytes() == b"victim" and os.listdir(evil) == []
    assert not [path for path in site.place.rglob("*") if path.is_file() and path.read_bytes() == b"evil"]


AGENT = """
import os, sys, time
from pathlib import Path
from certctrl.helper.client import HelperClient
from certctrl.store.deployments.file_set import FileSet, FileWrite
from certctrl.store.deployments.recovery import recover
from certctrl.store.disk.fs import RealFs
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir
from certctrl.errors import CertctrlError
os.setgroups([]); os.setgid(65534); os.setuid(65534)
place, rounds = Path(sys.argv[1]), int(sys.argv[2])
layout, fs = ConfigDir(place / "agent"), RealFs()
helper = HelperClient.at(str(place / "helper.sock"))
make_tree(fs, layout)
recover(layout, fs, [str(place)], helper=helper)
number = int(time.time() * 1000)
for number in range(number, number + rounds):
    files = FileSet(layout, fs, helper=helper)
    data = b"%d" % number
    writes = [FileWrite(path=place / "tls" / "a.key", data=data, mode=0o600, uid=1, gid=1, helper=True),
              FileWrite(path=place / "tls" / "b.pem", data=data, mode=0o644, uid=0, gid=0, helper=True)]
    try:
        files.begin(writes)
        files.commit()
        files.undo() if number % 3 == 0 else files.close()
    except CertctrlError as error:
        print(error, flush=True)
        recover(layout, fs, [str(place)], helper=helper)
print("end", flush=True)
"""


def agent(site: Site, rounds: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", AGENT, str(site.place), str(rounds)],
        stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def pair(site: Site) -> tuple[bytes, bytes]:
    return (site.tls / "a.key").read_bytes(), (site.tls / "b.pem").read_bytes()


def test_kills_of_helper_and_agent_leave_a_pair_and_nothing_else(site: Site) -> None:
    """kill -9 of either at random moments: after the next start of the agent, both files are of one delivery."""
    policy = json.loads((site.place / "policy.json").read_text())
    policy["nobody"]["requests_per_minute"] = 100_000
    (site.place / "policy.json").write_text(json.dumps(policy))
    (site.place / "agent").mkdir(mode=0o700)
    os.chown(site.place / "agent", ASKER, ASKER)
    assert "end" in agent(site, 1).communicate(timeout=PATIENCE)[0]
    rng = random.Random(7)
    for trial in range(6):
        one = agent(site, 10_000)
        for _ in range(3 if trial % 2 else 0):
            started = len(site.unit.pids)
            wait_for(lambda n=started: site.unit.running or len(site.unit.pids) > n, "the helper")  # type: ignore[misc]
            time.sleep(rng.uniform(0.05, 0.4))
            site.unit.kill()
        wait_for(lambda: (site.tls / "a.key").exists(), "the first files")
        time.sleep(rng.uniform(0.1, 0.6))
        one.kill()
        one.communicate()
        assert "end" in agent(site, 0).communicate(timeout=PATIENCE)[0]
        key, chain = pair(site)
        assert key == chain, f"trial {trial}: a mixed pair"
        assert sorted(os.listdir(site.tls)) == ["a.key", "b.pem"], f"trial {trial}"
        assert os.listdir(site.place / "agent" / "state" / "journal") == []
    assert len(site.unit.pids) > 9
