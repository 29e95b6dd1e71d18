"""`status` and `list-certs`: output and exit status, with and without a daemon."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from certctrl.cli import certs_view, facts, output
from certctrl.cli import status_view as status_module
from certctrl.model.certificate import CertFacts
from certctrl.model.plan import OutcomeKind
from certctrl.model.records import CertRecord, Retry, RetryKind, Stage, Tokens
from certctrl.store.layout import ConfigDir
from certctrl.store.state.store import StateStore

from .conftest import DAY, NOW, Answer, FakeDaemon, Ran, record, running_status

Daemon = Callable[[Answer], FakeDaemon]

BLOCK = """\
Daemon Status: Running
Uptime: 2d 14h 32m
Last Poll: 5 seconds ago (204 No Content)
Cursor: 1736900123-42
Poll Interval: 5 seconds (base)
Next Poll In: 5 seconds
Last Retry-After: none
Queue Depth: 0 pending signals
Token Expires: 14m 23s
Last Signal: 2h 15m ago (install.updated)
"""


def status_answer(**changes: object) -> Answer:
    return lambda request: (
        {"ok": True, "data": running_status(**changes)} if request["op"] == "status" else {"ok": False}
    )


@pytest.mark.parametrize("argv", [["status", "--daemon"], ["status"]])
def test_the_block_of_the_specification(
    argv: list[str], layout: ConfigDir, daemon: Daemon, ran: Callable[..., Ran]
) -> None:
    daemon(status_answer())
    done = ran("-c", layout.root, *argv)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(BLOCK)
    rest = done.out.removeprefix(BLOCK).splitlines()
    assert rest[:3] == ["State: Polling", "Health: healthy", "Server: https://plane.example"]
    assert ("Certificates: none deployed" in rest) == ("--daemon" not in argv)


def with_transport(**changes: object) -> dict[str, Any]:
    transport = {"uses": "long-poll", "since": NOW - 61, "why": "", "next_try_at": None} | changes
    return {"poll": {**running_status()["poll"], "transport": transport}}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"poll": {**running_status()["poll"], "last_retry_after": 30}}, "Last Retry-After: 30 seconds"),
        ({"poll": {**running_status()["poll"], "interval_ms": 250}}, "Poll Interval: 250 ms (base)"),
        ({"poll": {**running_status()["poll"], "last_at": None, "last_text": ""}}, "Last Poll: never"),
        ({"poll": {**running_status()["poll"], "next_at": None}}, "Next Poll In: none"),
        ({"cursor": None}, "Cursor: none"),
        ({"token": {"expires_at": None}}, "Token Expires: unknown"),
        ({"token": {"expires_at": NOW - 61}}, "Token Expires: expired 1m 1s ago"),
        ({"last_signal": None}, "Last Signal: none"),
        ({"queue_depth": 12}, "Queue Depth: 12 pending signals"),
        ({"acks_pending": 3}, "Pending Acks: 3"),
        ({"cursor": "1\x1b[2J\n2"}, "Cursor: 1\\x1b[2J\\n2"),
        (with_transport(uses="push", why=""), "Transport: push, for 1m 1s"),
        (
            with_transport(why="the upgrade was refused (status 403)", next_try_at=NOW + 300),
            "Transport: long-poll, for 1m 1s; no push: the upgrade was refused (status 403); next try in 5m 0s",
        ),
        (with_transport(why="connecting"), "Transport: long-poll, for 1m 1s; no push: connecting"),
    ],
)
def test_variants_of_lines(
    changes: dict[str, Any], line: str, layout: ConfigDir, daemon: Daemon, ran: Callable[..., Ran]
) -> None:
    daemon(status_answer(**changes))
    assert line in ran("-c", layout.root, "status").out.splitlines()


@pytest.mark.parametrize(("health", "status"), [("healthy", 0), ("degraded", 1), ("stale", 1), ("odd", 1)])
def test_health_is_the_exit_status(
    health: str, status: int, layout: ConfigDir, daemon: Daemon, ran: Callable[..., Ran]
) -> None:
    daemon(status_answer(health=health))
    assert ran("-c", layout.root, "status").status == status
    assert ran("-c", layout.root, "status", "--daemon", "--json").json()["exit_status"] == status


def test_problems_come_with_their_fix(layout: ConfigDir, daemon: Daemon, ran: Callable[..., Ran]) -> None:
    daemon(
        status_answer(
            health="degraded",
            problems=[{"what": "circuit breaker open", "since": NOW - 120, "fix": "cert-ctrl -c DIR poll-now"}],
            stuck=[{"item": "certificate 7", "reason": "nginx: bad", "next_try_at": NOW + 60, "attempts": 3}],
            held=[
                {"cert_id": 7, "name": "a.example", "generation": "g1", "staged": "g2"},
                {"cert_id": 8, "name": "b.example", "generation": "g3", "staged": ""},
            ],
            not_served=[{"cert_id": 7, "name": "a.example", "what": "127.0.0.1:443 refuses the connection"}],
            idle_items=[
                {"item": f"i{number}", "reason": "there is no certificate 'x' here yet"} for number in range(7)
            ],
            quarantined=[{"type": "cert.renewed", "ts_ms": 5, "ref": {}, "reason": "always fails", "attempts": 5}],
        )
    )
    out = ran("-c", layout.root, "status").out
    assert "Problem: circuit breaker open (since 2m 0s)\n" in out
    assert f"  fix: cert-ctrl -c {layout.root} poll-now\n" in out
    assert "Stuck: certificate 7: nginx: bad (attempt 3, next try in 1m 0s)\n" in out
    assert "Not served: a.example: 127.0.0.1:443 refuses the connection\n" in out
    assert "Idle: item i4: there is no certificate 'x' here yet\nIdle: 2 more items\n" in out
    assert "Quarantined: cert.renewed, ts=5: always fails\n" in out
    assert "Held: a.example, at g1 since a rollback; a newer one is staged\n" in out
    assert "Held: b.example, at g3 since a rollback\n" in out
    assert f"cert-ctrl -c {layout.root} rollback --domain a.example --release\n" in out


def test_json_has_all_facts(layout: ConfigDir, store: StateStore, daemon: Daemon, ran: Callable[..., Ran]) -> None:
    store.installed.save_certificates({7: record()})
    daemon(status_answer())
    shown = ran("-c", layout.root, "status", "--json").json()
    assert shown["source"] == "daemon" and shown["cursor"] == "1736900123-42"
    assert [row["name"] for row in shown["certificates"]] == ["www.example.com"]
    assert "certificates" not in ran("-c", layout.root, "status", "--daemon", "--json").json()


def test_the_summary_of_certificates(
    layout: ConfigDir, store: StateStore, daemon: Daemon, ran: Callable[..., Ran]
) -> None:
    rows = {7: record(), 8: record(8, "b.example.com", not_after=NOW + 3 * DAY), 9: record(9, "c", generation="")}
    store.installed.save_certificates(rows)
    daemon(status_answer())
    assert "Certificates: 2 deployed, b.example.com expires first: 3d 0h 0m\n" in ran("-c", layout.root, "status").out


# --- without a daemon -------------------------------------------------------------------------------------------


@pytest.fixture
def registered(store: StateStore, clock: float) -> StateStore:
    store.session.save_device_id("23229bf7-5172-02c7-59a2-76d5b4a40090")
    store.session.save_tokens(Tokens(access_token="a.b.c", refresh_token="rt_x.y"))
    return store


def test_never_registered(layout: ConfigDir, clock: float, ran: Callable[..., Ran]) -> None:
    done = ran("-c", layout.root, "status")
    assert done.status == 77
    assert done.out.startswith("Daemon Status: Not running (not registered)\n")
    assert f"  fix: cert-ctrl -c {layout.root} register, then start the daemon\n" in done.out


def test_not_running_shows_the_state_on_disk(
    layout: ConfigDir, registered: StateStore, ran: Callable[..., Ran]
) -> None:
    registered.session.save_cursor("1-5")
    registered.session.save_last_poll(NOW - 3600)
    registered.installed.save_status(running_status() | {"running": False, "stopped": "asked to stop"})
    done = ran("-c", layout.root, "status")
    assert done.status == 3
    lines = done.out.splitlines()
    assert lines[0] == "Daemon Status: Not running (asked to stop)"
    assert "Cursor: 1-5" in lines and "Uptime: none" in lines and "Next Poll In: none" in lines
    assert "Last Poll: 5 seconds ago (204 No Content)" in lines, "the status file is newer than last_poll_time.txt"
    assert "Health: unknown (not running)" in lines


@pytest.mark.parametrize("reason", ["device revoked", "refresh token refused"])
def test_a_permanently_ended_session_is_77(
    reason: str, layout: ConfigDir, registered: StateStore, ran: Callable[..., Ran]
) -> None:
    registered.installed.save_status(running_status() | {"running": False, "stopped": reason})
    done = ran("-c", layout.root, "status")
    assert done.status == 77
    assert done.out.startswith(f"Daemon Status: Not running ({reason})\n")


def test_a_daemon_that_was_killed(layout: ConfigDir, registered: StateStore, ran: Callable[..., Ran]) -> None:
    registered.installed.save_status(running_status())
    done = ran("-c", layout.root, "status")
    assert (done.status, done.out.splitlines()[0]) == (3, "Daemon Status: Not running (stopped unexpectedly)")


def test_a_daemon_that_does_not_answer(
    layout: ConfigDir, registered: StateStore, daemon: Daemon, ran: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "ANSWER_SECONDS", 0.2)
    daemon(lambda _request: time.sleep(1) or {"ok": True})
    done = ran("-c", layout.root, "status")
    assert done.status == 1
    assert done.out.startswith("Daemon Status: Running, but the daemon did not answer `status` within 0.2 s\n")


def test_reading_takes_no_lock_and_changes_nothing(
    layout: ConfigDir, registered: StateStore, ran: Callable[..., Ran]
) -> None:
    from certctrl.store.disk.lock import lock_daemon

    def tree() -> dict[str, float]:
        return {str(path): path.lstat().st_mtime_ns for path in layout.root.rglob("*")}

    with lock_daemon(layout):
        before = tree()
        assert ran("-c", layout.root, "status").status == 3
        assert ran("-c", layout.root, "list-certs").status == 0
        assert tree() == before


@pytest.mark.root
def test_another_user_gets_an_error_and_no_traceback(
    layout: ConfigDir, registered: StateStore, ran: Callable[..., Ran]
) -> None:
    layout.root.chmod(0o755)
    layout.root.parent.chmod(0o755)
    os.seteuid(65534)
    try:
        done = ran("-c", layout.root, "status")
    finally:
        os.seteuid(0)
    assert done.status in (69, 74)
    assert "Traceback" not in done.err and "fix: run as" in done.err


# --- watch --------------------------------------------------------------------------------------------------------


def watched(monkeypatch: pytest.MonkeyPatch, rounds: int) -> None:
    """Run `status --watch` for ``rounds`` updates, then send Ctrl-C."""
    left = iter(range(rounds - 1))

    def sleep(_seconds: float) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(status_module.time, "sleep", sleep)


def test_watch_with_json_prints_an_object_per_line(
    layout: ConfigDir, daemon: Daemon, ran: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched(monkeypatch, 3)
    daemon(status_answer(health="degraded"))
    done = ran("-c", layout.root, "status", "--daemon", "--watch", "--json")
    assert done.status == 1, "Ctrl-C ends the watch normally"
    assert [json.loads(line)["health"] for line in done.out.splitlines()] == ["degraded"] * 3


def test_watch_clears_the_screen_only_on_a_terminal(
    layout: ConfigDir, daemon: Daemon, ran: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon(status_answer())
    watched(monkeypatch, 2)
    assert ran("-c", layout.root, "status", "--watch").out.count("\x1b") == 0
    watched(monkeypatch, 2)
    monkeypatch.setattr(status_module, "on_terminal", lambda: True)
    assert ran("-c", layout.root, "status", "--watch").out.count(status_module.HOME_AND_CLEAR) == 2


# --- list-certs ---------------------------------------------------------------------------------------------------


def test_no_certificates(layout: ConfigDir, ran: Callable[..., Ran]) -> None:
    assert ran("-c", layout.root, "list-certs") == (0, "No certificates on this host yet.\n", "")
    assert ran("-c", layout.root, "list-certs", "--json").json() == []


def test_certificates_in_a_pipe(
    layout: ConfigDir,
    store: StateStore,
    clock: float,
    ran: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("certctrl.cli.output.TABLE_WIDTH", 200)
    own = tuple(f"{layout.root}/certs/{name}" for name in ("www.example.com.crt", "www.example.com.key"))
    rows = [
        record(targets=own),
        record(8, "b.example.com", domains=("b.example.com",), targets=(*own, "/etc/nginx/b.pem", "/etc/nginx/b.key")),
        record(9, "c.example.com", domains=(), generation="", last_outcome=OutcomeKind.FAILED),
        record(10, "d.example.com", stage=Stage.WITHDRAWN, generation=""),
        record(11, "e.example.com", held=True, staged="g2", not_after=NOW - 60),
    ]
    store.installed.save_certificates({row.cert_id: row for row in rows})
    store.installed.save_retries([Retry(resource="cert:9", kind=RetryKind.REFUSED, last_error="SAN")])
    lines = [" ".join(line.split()) for line in ran("-c", layout.root, "list-certs").out.splitlines()]
    serial = "04:ab:00…55:66"
    assert lines == [
        "DOMAIN SERIAL REMAINING DEPLOYED LAST RESULT",
        f"www.example.com +1 {serial} 45d 0h 0m certs/www.example.com.crt applied",
        f"b.example.com {serial} 45d 0h 0m /etc/nginx/b.pem, /etc/nginx/b.key applied",
        f"c.example.com {serial} - not yet failed (SAN)",
        f"d.example.com +1 {serial} - withdrawn removed",
        f"e.example.com +1 {serial} expired 1m 0s ago certs/e.example.com.crt applied (held; newer one staged)",
    ]


def test_certificates_on_a_terminal_have_a_bar(
    layout: ConfigDir, store: StateStore, clock: float, ran: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.installed.save_certificates({7: record()})
    monkeypatch.setattr(certs_view, "on_terminal", lambda: True)
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "140")
    out = ran("-c", layout.root, "list-certs").out
    assert "█████░░░░░ 45d 0h 0m" in out
    assert "04:ab:00…55:66" in out


def test_json_has_every_recorded_fact(
    layout: ConfigDir, store: StateStore, clock: float, ran: Callable[..., Ran]
) -> None:
    store.installed.save_certificates({7: record()})
    (row,) = ran("-c", layout.root, "list-certs", "--json").json()
    flat = {field.name for kind in (CertFacts, CertRecord) for field in attrs.fields(kind)} - {"facts", "pending"}
    assert row.keys() == flat | {"owed", "last_error", "attempts", "next_try_at", "remaining_seconds"}
    assert row["remaining_seconds"] == 45 * DAY


def test_a_damaged_file_is_named(layout: ConfigDir, ran: Callable[..., Ran]) -> None:
    layout.certificates.write_text("{")
    done = ran("-c", layout.root, "list-certs")
    assert done.status == 74
    assert str(layout.certificates) in done.err and "\nfix: " in done.err


AWAITED = "Awaited: www.example.com (certificate 7): its key is made here, order 12 of the control plane is not deployed yet\n"


def test_certificates_that_the_plane_has_not_issued_are_named(
    layout: ConfigDir, store: StateStore, daemon: Daemon, ran: Callable[..., Ran]
) -> None:
    store.staged_keys.save(7, 12, "www.example.com", b"secret")
    (layout.staged_keys / "notes.key").write_text("mine")
    assert AWAITED in ran("-c", layout.root, "status").out, "from the disk"
    assert ran("-c", layout.root, "list-certs").out == f"No certificates on this host yet.\n{AWAITED}"
    store.installed.save_certificates({8: record(8, "b.example.com")})
    assert ran("-c", layout.root, "list-certs").out.endswith(AWAITED)
    daemon(status_answer(awaited=[{"cert_id": 7, "order_id": 12, "name": "www.example.com"}]))
    assert AWAITED in ran("-c", layout.root, "status").out
    layout.staged_keys.rename(layout.root / "elsewhere")
    assert "Awaited" not in ran("-c", layout.root, "list-certs").out, "a directory of an earlier release"
