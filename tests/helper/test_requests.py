"""Requests to the root helper: who may ask, how often, what is not a request, and the line that each leaves."""

from __future__ import annotations

import json
import os
import socket
from hashlib import sha256
from pathlib import Path
from typing import Any

import attrs
import pytest
from helper_world import Direct, direct, me, rule, write_policy
from recording import Recording

from certctrl.errors import CommandError, DiskError, PolicyRefusedError
from certctrl.helper import client as client_module
from certctrl.helper.client import HelperClient, sealed
from certctrl.helper.messages import Answer, Request, Result, Verb, answer_of, encoded
from certctrl.helper.requests import Peer, read_sealed
from certctrl.store.disk.safe_path import SIZE_LIMIT
from certctrl.store.structure import Mismatch


@attrs.define
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


ENTRY: dict[str, Any] = {"units": {"nginx.service": ["reload"], "mail.service": ["reload", "restart"]}}


def helper_for(tmp_path: Path, entry: dict[str, Any] = ENTRY, **how: Any) -> Direct:
    return direct(policy=write_policy(tmp_path / "p.json", entry), **how)


def asked(helper: Direct, verb: str, unit: str) -> Result:
    return helper.ask(Request(do=Verb(verb), unit=unit)).result


def test_only_named_units_are_touched_and_only_as_named(tmp_path: Path) -> None:
    units = Recording()
    helper = helper_for(tmp_path, units=units)
    assert asked(helper, "reload", "nginx.service") is Result.DONE
    assert asked(helper, "restart", "mail.service") is Result.DONE
    for verb, unit in (
        ("restart", "nginx.service"),
        ("reload", "ssh.service"),
        ("reload", "nginx"),
        ("reload", "-H x"),
        ("reload", ""),
    ):
        assert asked(helper, verb, unit) is Result.UNNAMED
    assert units.calls == [("reload", "nginx.service"), ("restart", "mail.service")]


def test_a_user_without_an_entry_gets_nothing(tmp_path: Path) -> None:
    units = Recording()
    helper = helper_for(tmp_path, units=units)
    helper.uid = 4711
    for request in (
        Request(do=Verb.RULES),
        Request(do=Verb.RELOAD, unit="nginx.service"),
        Request(do=Verb.INSPECT, path="/etc/passwd"),
    ):
        answer = helper.ask(request)
        assert (answer.result, answer.units, answer.rules) == (Result.REFUSED, {}, ())
        assert "no entry for user 4711" in answer.why
    assert not units.calls


def test_an_entry_is_for_one_user_only(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps({"daemon": {"units": {"nginx.service": ["reload"]}}, me(): {}}))
    helper = direct(policy=tmp_path / "p.json", units=Recording())
    assert asked(helper, "reload", "nginx.service") is Result.UNNAMED


@pytest.mark.parametrize(
    "packet",
    [b"", b"x", b"{", b"[]", b"null", b"1e999", b"[" * 16000, b'{"do": "shell"}', b'{"do": "reload", "unit": 1}', b"\xff\xfe{}",
     b'{"do": "reload", "unit": ["nginx.service"]}', b'{"do": "reload", "unit": "nginx.service", "user": "root"}',
     b'{"do": "stage", "path": null}', b'{"do": "reload", "unit": "nginx.service\\u0000"}', b'{"unit": "nginx.service"}'],
)  # fmt: skip
def test_garbage_is_refused_and_recorded(tmp_path: Path, packet: bytes) -> None:
    units = Recording()
    helper = helper_for(tmp_path, units=units)
    answer = helper.send(packet)
    assert answer.result is Result.REFUSED and answer.why.startswith("not a request")
    assert [row["result"] for row in helper.audit] == ["refused"] and not units.calls


def test_a_request_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    helper = helper_for(tmp_path, units=Recording())
    packet = encoded(Request(do=Verb.RELOAD, unit="nginx.service"))
    assert helper.send(packet, whole=False).result is Result.REFUSED


def test_the_rate_of_each_unit_is_limited(tmp_path: Path) -> None:
    clock, units = Clock(), Recording()
    helper = helper_for(tmp_path, ENTRY | {"reloads_per_minute": 2}, units=units, now=clock)
    assert [asked(helper, "reload", "nginx.service") for _ in range(4)] == [
        Result.DONE,
        Result.DONE,
        Result.BUSY,
        Result.BUSY,
    ]
    assert asked(helper, "reload", "mail.service") is Result.DONE, "of another unit"
    assert [row["result"] for row in helper.audit] == ["done", "done", "busy", "done"], "one line for a flood"
    clock.now += 60
    assert asked(helper, "reload", "nginx.service") is Result.DONE


def test_the_rate_of_all_requests_is_limited(tmp_path: Path) -> None:
    clock = Clock()
    helper = helper_for(tmp_path, ENTRY | {"requests_per_minute": 5}, units=Recording(), now=clock)
    results = [helper.send(b"garbage").result for _ in range(50)]
    assert results == [Result.REFUSED] * 5 + [Result.BUSY] * 45
    assert len(helper.audit) == 6
    helper.uid = 4711
    assert [helper.ask(Request(do=Verb.RULES)).result for _ in range(61)][-1] is Result.BUSY


def test_a_broken_policy_stops_everything_and_floods_no_log(tmp_path: Path) -> None:
    units = Recording()
    helper = helper_for(tmp_path, units=units)
    (tmp_path / "p.json").write_text("{")
    answers = [helper.ask(Request(do=Verb.RELOAD, unit="nginx.service")) for _ in range(100)]
    assert answers[0].result is Result.FAILED and "invalid JSON" in answers[0].why
    assert not units.calls and len(helper.audit) <= 61


def test_a_changed_policy_is_effective_immediately(tmp_path: Path) -> None:
    helper = helper_for(tmp_path, units=Recording())
    assert asked(helper, "reload", "nginx.service") is Result.DONE
    write_policy(tmp_path / "p.json", {})
    assert asked(helper, "reload", "nginx.service") is Result.UNNAMED


def test_each_request_leaves_one_line_without_control_characters(tmp_path: Path) -> None:
    helper = helper_for(tmp_path, units=Recording())
    lines: list[str] = []
    helper.requests._audit = lines.append  # type: ignore[misc]
    helper.ask(Request(do=Verb.RELOAD, unit="a\n{}\x1b[2J\u202e" + "x" * 9000))
    helper.ask(Request(do=Verb.RELOAD, unit="nginx.service"))
    assert len(lines) == 2
    assert all(line.isascii() and line.isprintable() and len(line) < 6000 for line in lines)
    done = json.loads(lines[1])
    assert done == {
        "pid": 1,
        "uid": os.geteuid(),
        "user": me(),
        "request": "reload",
        "unit": "nginx.service",
        "result": "done",
    }


# --- the file of a request ---------------------------------------------------------------------------------------------


def test_a_sealed_memory_file_is_read(tmp_path: Path) -> None:
    fd = sealed(b"data")
    os.lseek(fd, 2, os.SEEK_SET)
    assert read_sealed(fd) == b"data"
    os.close(fd)


def test_no_other_file_is_read(tmp_path: Path) -> None:
    """A file could change while it is read; a directory, pipe, device or a file of FUSE could even never end."""
    (tmp_path / "plain").write_bytes(b"x")
    reader, writer = os.pipe()
    unsealed = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    fds = [
        os.open(tmp_path / "plain", os.O_RDONLY), os.open(tmp_path, os.O_RDONLY), os.open("/dev/zero", os.O_RDONLY),
        os.open(tmp_path, os.O_PATH), reader, writer, unsealed, os.memfd_create("y", 0), os.eventfd(0),
    ]  # fmt: skip
    for fd in fds:
        with pytest.raises(PolicyRefusedError, match="sealed memory file"):
            read_sealed(fd)
        os.close(fd)


def test_a_huge_memory_file_is_not_read() -> None:
    fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SIZE_LIMIT + 1)
    import fcntl

    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    with pytest.raises(PolicyRefusedError):
        read_sealed(fd)
    os.close(fd)


def test_a_file_belongs_to_its_request(tmp_path: Path) -> None:
    helper = helper_for(tmp_path, {"files": [rule(tmp_path / "x" / "a")]}, units=Recording())
    path = str(tmp_path / "x" / "a")
    stage = Request(do=Verb.STAGE, path=path, temp=".a.01.tmp", backup=".a.02.tmp", sha256=sha256(b"x").hexdigest())
    assert helper.ask(stage).result is Result.REFUSED, "without a file"
    assert helper.ask(attrs.evolve(stage, sha256="0" * 64), b"x").why.startswith("the file is not the one")
    assert helper.ask(Request(do=Verb.INSPECT, path=path), b"x").result is Result.REFUSED
    two = (sealed(b"x"), sealed(b"x"))
    assert helper.send(encoded(stage), fds=two).result is Result.REFUSED


def test_nothing_is_written_for_a_client_that_has_gone(tmp_path: Path) -> None:
    """Its recovery may have removed the file before the request had its turn."""
    (tmp_path / "tls").mkdir(mode=0o755)
    uid = str(os.geteuid())
    helper = helper_for(tmp_path, {"files": [rule(tmp_path / "tls" / "a", uid, str(os.getegid()))]}, units=Recording())
    request = Request(
        do=Verb.STAGE,
        path=str(tmp_path / "tls" / "a"),
        temp=".a.01.tmp",
        backup=".a.02.tmp",
        sha256=sha256(b"x").hexdigest(),
    )
    fd = sealed(b"x")
    peer = Peer(pid=1, uid=os.geteuid())
    answer = answer_of(helper.requests.answer(peer, encoded(request), [fd], is_gone=lambda: True))
    assert answer.result is Result.FAILED and os.listdir(tmp_path / "tls") == []
    assert answer_of(helper.requests.answer(peer, encoded(request), [fd])).result is Result.DONE
    os.close(fd)


# --- the agent's end ---------------------------------------------------------------------------------------------------


def test_units_that_root_does_not_name_are_left_to_the_agent(tmp_path: Path) -> None:
    client = helper_for(tmp_path, units=Recording()).client
    assert client.act("reload", "nginx.service", 5.0)
    assert not client.act("reload", "other.service", 5.0)
    assert client.units() == {"nginx.service": ("reload",), "mail.service": ("reload", "restart")}


def test_a_failed_reload_is_an_error_with_its_reason(tmp_path: Path) -> None:
    client = helper_for(tmp_path, units=Recording(fault="systemctl reload nginx.service exited with 1: no")).client
    with pytest.raises(CommandError, match="exited with 1: no") as caught:
        client.act("reload", "nginx.service", 5.0)
    assert caught.value.fix == "look"


def test_without_a_helper_nothing_is_asked(tmp_path: Path) -> None:
    client = HelperClient.at(str(tmp_path / "no.sock"))
    assert (client.rules(), client.units(), client.act("reload", "nginx.service", 1.0)) == ((), {}, False)
    with pytest.raises(DiskError, match="No such file") as caught:
        client.put("/x/a", ".a.01.tmp")
    assert caught.value.fix


def test_a_helper_for_other_agents_leaves_units_to_the_agent(tmp_path: Path) -> None:
    """A further agent of the host, without an entry or the group of the socket, and one whose helper was stopped."""
    client = helper_for(tmp_path, units=Recording()).client
    write_policy(tmp_path / "p.json", {}, user="someone-else")
    assert not client.act("reload", "nginx.service", 5.0)
    path = tmp_path / "helper.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
    assert not HelperClient.at(str(path)).act("reload", "nginx.service", 1.0), "nothing listens any more"
    path.chmod(0o400)
    if os.geteuid() != 0:
        assert not HelperClient.at(str(path)).is_there


def test_a_busy_helper_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, slept = [Answer(result=Result.BUSY)] * 3 + [Answer(result=Result.DONE)], list[float]()
    monkeypatch.setattr(client_module.time, "sleep", slept.append)
    HelperClient(lambda request, data, seconds: answers.pop(0)).put("/x/a", ".a.01.tmp")
    assert slept == [0.1, 0.2, 0.4]
    with pytest.raises(DiskError, match="too many"):
        clock = iter(range(1000))
        monkeypatch.setattr(client_module.time, "monotonic", lambda: float(next(clock)))
        HelperClient(lambda request, data, seconds: Answer(result=Result.BUSY, why="too many")).put("/x/a", ".a.01.tmp")


def test_a_deployment_of_more_files_than_fit_into_a_minute_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tls").mkdir(mode=0o755)
    clock = Clock()
    entry = {"files": [rule(tmp_path / "tls" / "*")], "requests_per_minute": 20}
    client = direct(policy=write_policy(tmp_path / "p.json", entry), now=clock).client
    monkeypatch.setattr(client_module.time, "monotonic", clock)
    monkeypatch.setattr(client_module.time, "sleep", lambda seconds: setattr(clock, "now", clock.now + seconds))
    for number in range(100):
        client.observe(str(tmp_path / "tls" / f"{number}"))
    assert clock.now - 1000.0 > 4 * 60.0


@pytest.mark.parametrize("packet", [b"{}", b"garbage", b'{"result": "maybe"}', b"[]"])
def test_an_answer_that_is_none_is_an_error(packet: bytes) -> None:

    with pytest.raises(Mismatch):
        answer_of(packet)


def test_answers_of_a_newer_helper_are_understood() -> None:
    assert answer_of(b'{"result": "done", "more": {"x": 1}}').result is Result.DONE
