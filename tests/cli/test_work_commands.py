"""Commands that work with or without a daemon, `history`, `sandbox` and `--keep-running`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from certctrl.cli.commands import renew as renew_module
from certctrl.errors import BusyError, NotRegisteredError, PlaneError
from certctrl.model.status import StopReason
from certctrl.model.stop import Stop
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.store import StateStore

from .conftest import NOW, Answer, FakeDaemon, Ran, record
from .doctor_helpers import register

Run = Callable[..., Ran]
Daemon = Callable[[Answer], FakeDaemon]


def answers(data: object) -> Answer:
    return lambda _request: {"ok": True, "data": data}


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """``local(name, result)`` replaces a function of agent/oneshot.py and returns the list of its calls."""

    def put(name: str, result: object) -> list[Any]:
        calls: list[Any] = []

        async def one_shot(*args: object, **named: object) -> Any:
            calls.append((*args, named) if named else args)
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(f"certctrl.agent.oneshot.{name}", one_shot)
        return calls

    return put


POLLED = {"poll": "200 OK, 2 signals", "cursor": "1-9", "queue_depth": 2}
OUTCOME = {"outcome": "applied", "detail": "", "differences": 1}
PLAN = {
    "changes": True, "diff": "~ switch  certs/.live/a\n            certificate 7: x -> y\n! refused  run /bin/true",
    "steps": [{"kind": "switch"}], "refusals": [{"what": "run /bin/true", "why": "not listed", "setting": "commands"}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "request_", "data", "status", "out"),
    [
        (["poll-now"], {"op": "poll-now"}, POLLED, 0,
         "Polled: 200 OK, 2 signals\nCursor: 1-9\nQueue Depth: 2 pending signals\n"),
        (["poll-now"], {"op": "poll-now"}, {"poll": "503 Service Unavailable", "cursor": None}, 69,
         "Polled: 503 Service Unavailable\nCursor: none\n"),
        (["poll-now"], {"op": "poll-now"}, {"poll": "", "cursor": None}, 69, "Polled: no answer\nCursor: none\n"),
        (["renew", "--domain", "a.example"], {"op": "renew", "domain": "a.example"},
         {"cert_id": 7, "name": "a.example", "requested": True}, 0,
         "Renewal of a.example requested; the next poll after it is issued fetches it\n"),
        (["apply"], {"op": "apply", "now": False}, OUTCOME, 0, "applied\n"),
        (["apply", "--now"], {"op": "apply", "now": True}, {**OUTCOME, "outcome": "rolled_back", "detail": "probe"}, 1,
         "rolled_back: probe\n"),
        (["rollback", "--domain", "a"], {"op": "rollback", "domain": "a", "to": None},
         {**OUTCOME, "name": "a"}, 0, "a applied\n"),
        (["rollback", "--domain", "a", "--to", "g1"], {"op": "rollback", "domain": "a", "to": "g1"},
         {**OUTCOME, "name": "a", "outcome": "failed", "detail": "reload"}, 1, "a failed: reload\n"),
        (["rollback", "--domain", "a", "--release"], {"op": "release", "domain": "a"},
         {"name": "a", "released": True}, 0, "a is no longer held\n"),
        (["forget", "--domain", "a.example", "--yes"], {"op": "forget", "domain": "a.example"},
         {**OUTCOME, "name": "a", "assigned": False}, 0, "a applied\n"),
        (["forget", "--ca", "3", "--yes"], {"op": "forget", "ca_id": 3},
         {**OUTCOME, "name": "CA 3", "outcome": "failed", "detail": "busy", "assigned": False}, 1, "CA 3 failed: busy\n"),
        (["trust", "reset", "--install-config", "--scripts", "--yes"],
         {"op": "trust-reset", "install_config": True, "scripts": True},
         {"install_configs": {"7": 3}, "scripts": ["/x"]}, 0,
         "reset: install config 7 (minimum version was 3)\nreset: pin of /x\n"),
        (["trust", "reset", "--scripts", "--yes"], {"op": "trust-reset", "install_config": False, "scripts": True},
         {"install_configs": {}, "scripts": []}, 0, "nothing to reset\n"),
    ],
)  # fmt: skip
def test_a_running_daemon_does_the_work(
    argv: list[str], request_: dict[str, Any], data: object, status: int, out: str,
    layout: ConfigDir, daemon: Daemon, ran: Run,
) -> None:  # fmt: skip
    fake = daemon(answers(data))
    assert ran("-c", layout.root, *argv) == (status, out, "")
    assert fake.requests == [request_]
    shown = ran("-c", layout.root, *argv, "--json")
    assert (shown.status, shown.json()) == (status, data)


def test_without_a_daemon_the_command_does_the_work(layout: ConfigDir, local: Callable[..., Any], ran: Run) -> None:
    for argv, name, result, call in (
        (["poll-now"], "poll_once", {"poll": "204 No Content", "cursor": "1"}, (layout.root,)),
        (["renew", "--domain", "a"], "renew", {"cert_id": 1, "name": "a"}, (layout.root, "a")),
        (["apply", "--now"], "apply", OUTCOME, (layout.root, {"now": True})),
        (["rollback", "--domain", "a", "--to", "x"], "rollback", {**OUTCOME, "name": "a"}, (layout.root, "a", "x")),
        (["rollback", "--domain", "a", "--release"], "release", {"name": "a"}, (layout.root, "a")),
        (
            ["forget", "--domain", "a", "--yes"],
            "forget",
            {**OUTCOME, "name": "a"},
            (layout.root, {"domain": "a", "ca_id": None}),
        ),
        (["plan"], "plan", {**PLAN, "changes": False, "refusals": []}, (layout.root,)),
        (
            ["trust", "reset", "--scripts", "-y"],
            "reset_trust",
            {"install_configs": {}, "scripts": []},
            (layout.root, {"install_config": False, "scripts": True}),
        ),
    ):
        calls = local(name, result)
        assert ran("-c", layout.root, *argv).status == 0
        assert calls == [call]


def test_failures_of_single_signals_are_printed(layout: ConfigDir, local: Callable[..., Any], ran: Run) -> None:
    local("poll_once", {"poll": "200 OK, 1 signal", "cursor": "1", "failed": ["nginx -t: \x1bbad"]})
    done = ran("-c", layout.root, "poll-now")
    assert (done.status, done.err) == (1, "failed: nginx -t: \\x1bbad\n")
    local("apply", {**OUTCOME, "plane": "no route to plane"})
    done = ran("-c", layout.root, "apply")
    assert (done.status, done.err) == (0, "warning: control plane not reached: no route to plane\n")


def test_any_command_of_a_revoked_device_names_register_as_fix(
    layout: ConfigDir, local: Callable[..., Any], ran: Run
) -> None:
    local("apply", PlaneError("Device has been revoked", status=403, key="DEVICE_REVOKED"))
    done = ran("-c", layout.root, "apply")
    assert (done.status, done.out) == (77, "")
    assert done.err.endswith(f"fix: cert-ctrl -c {layout.root} register\n")


@pytest.mark.parametrize(("error", "status"), [(BusyError("held by 12"), 75), (NotRegisteredError("no"), 77)])
def test_errors_of_local_work_are_printed(
    error: Exception, status: int, layout: ConfigDir, local: Callable[..., Any], ran: Run
) -> None:
    local("poll_once", error)
    done = ran("-c", layout.root, "poll-now")
    assert (done.status, done.err) == (status, f"cert-ctrl: error: {error}\n")


def test_an_error_of_the_daemon_is_printed(layout: ConfigDir, daemon: Daemon, ran: Run) -> None:
    daemon(lambda _request: {"ok": False, "error": "no certificate for 'x'", "fix": "known: a", "exit": 2})
    done = ran("-c", layout.root, "renew", "--domain", "x")
    assert done == (2, "", "cert-ctrl: error: no certificate for 'x'\nfix: known: a\n")


def test_release_cannot_be_combined_with_to(layout: ConfigDir, ran: Run) -> None:
    assert ran("-c", layout.root, "rollback", "--domain", "a", "--to", "x", "--release").status == 2
    assert ran("-c", layout.root, "forget", "--yes").status == 2
    assert ran("-c", layout.root, "forget", "--domain", "a", "--ca", "3", "--yes").status == 2
    assert ran("-c", layout.root, "forget", "--domain", "a").status == 2, "not confirmed"


# --- renew --wait -------------------------------------------------------------------------------------------------


def test_waiting_for_the_new_certificate(
    layout: ConfigDir, store: StateStore, daemon: Daemon, ran: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renew_module, "PAUSE_SECONDS", 0.0)
    store.installed.save_certificates({7: record()})

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if request["op"] == "poll-now":
            store.installed.save_certificates({7: record(serial="0b:0b")})
        return {"ok": True, "data": {"cert_id": 7, "name": "www.example.com"}}

    fake = daemon(answer)
    done = ran("-c", layout.root, "renew", "--domain", "www.example.com", "--wait", 20)
    assert done == (0, "Renewed www.example.com: serial 0b:0b\n", "")
    assert [request["op"] for request in fake.requests] == ["renew", "poll-now"]


def test_waiting_ends_after_its_time(layout: ConfigDir, store: StateStore, daemon: Daemon, ran: Run) -> None:
    store.installed.save_certificates({7: record()})
    daemon(answers({"cert_id": 7, "name": "www.example.com"}))
    done = ran("-c", layout.root, "renew", "--domain", "www.example.com", "--wait", 0.01)
    assert done.status == 1
    assert "not deployed within 0.01 s" in done.out


# --- plan and history ---------------------------------------------------------------------------------------------


def test_a_plan_with_changes(layout: ConfigDir, daemon: Daemon, ran: Run) -> None:
    daemon(answers(PLAN))
    done = ran("-c", layout.root, "plan")
    assert done.status == 2
    assert done.out == PLAN["diff"] + f"\n\nto allow refused items: cert-ctrl -c {layout.root} policy allow\n"
    shown = ran("-c", layout.root, "plan", "--json")
    assert (shown.status, shown.json()) == (2, PLAN)


def test_a_plan_without_changes(layout: ConfigDir, daemon: Daemon, ran: Run) -> None:
    daemon(answers({"changes": False, "diff": "Nothing to do.", "steps": [], "refusals": []}))
    assert ran("-c", layout.root, "plan") == (0, "Nothing to do.\n", "")


def test_a_plan_that_only_refuses_fails(layout: ConfigDir, daemon: Daemon, ran: Run) -> None:
    """Scripts that run `plan` must notice that an item never runs."""
    daemon(answers({**PLAN, "changes": False}))
    assert ran("-c", layout.root, "plan").status == 1
    assert ran("-c", layout.root, "plan", "--json").status == 1


@pytest.mark.parametrize(
    ("command", "data", "status"),
    [("plan", {**PLAN, "changes": False}, 1), ("plan", PLAN, 2), ("apply", OUTCOME, 1)],
)
def test_a_plan_without_some_items_reports_them(
    command: str, data: dict[str, Any], status: int, layout: ConfigDir, daemon: Daemon, ran: Run
) -> None:
    problem = {"what": "installs.local.json: $[0].id: is missing", "since": NOW, "fix": "correct it"}
    daemon(answers({**data, "problems": [problem]}))
    done = ran("-c", layout.root, command)
    assert (done.status, done.err) == (status, f"warning: {problem['what']}\nfix: correct it\n")


def test_a_plan_changes_nothing(layout: ConfigDir, ran: Run) -> None:
    register(StateStore(layout, RealFs()))
    layout.local_installs.write_text('[{"id": "r", "type": "copy", "ob_id": 7, "from": ["ca.pem"], "to": ["/x/y"]}]')
    layout.state.chmod(0o755)
    layout.application.chmod(0o666)
    layout.logs.rmdir()
    layout.daemon_lock.touch(0o600)  # the command takes this lock

    def tree() -> dict[str, tuple[int, float, bytes]]:
        found = [layout.root, *layout.root.rglob("*")]
        return {
            str(path): (path.stat().st_mode, path.stat().st_mtime, path.read_bytes() if path.is_file() else b"")
            for path in found
            if path != layout.daemon_lock
        }

    before = tree()
    assert ran("-c", layout.root, "plan").status == 1  # the item is refused
    assert tree() == before


@pytest.mark.parametrize("name", ["installs.local.json", "state/install_config.json"])
def test_invalid_items_are_not_treated_as_missing(name: str, layout: ConfigDir, ran: Run) -> None:
    register(StateStore(layout, RealFs()))
    (layout.root / name).write_text('[{"id": "r"')
    (layout.root / name).chmod(0o600)
    done = ran("-c", layout.root, "plan")
    assert done.status == 1 and done.out == "Nothing to do.\n"
    assert name.rpartition("/")[2] in done.err and "\nfix: " in done.err


def entry(at: float, name: str, **more: object) -> dict[str, Any]:
    return {
        "at": at, "asked_by": "plane", "cert_id": 7, "name": name, "outcome": "applied", "from": "", "to": "g1",
        "live": "g1", "serial": "04:ab", "fingerprint_sha256": "ab", "targets": [], "detail": "",
    } | more  # fmt: skip


def test_history_order_limit_and_filter(
    layout: ConfigDir, store: StateStore, ran: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("certctrl.cli.output.TABLE_WIDTH", 200)
    assert ran("-c", layout.root, "history").out == "No deployments yet.\n"
    for number in range(30):
        store.installed.append_history(
            [entry(NOW + number, "a.example" if number % 2 else "_wildcard.b.example")], 1000
        )
    last = entry(
        NOW + 99, "a.example", outcome="rolled_back", detail="probe\nfailed", asked_by="operator", **{"from": "g1"}
    )
    store.installed.append_history([last], 1000)
    lines = [" ".join(line.split()) for line in ran("-c", layout.root, "history", "--limit", 2).out.splitlines()]
    assert lines == [
        "TIME CERTIFICATE FROM TO SERIAL REQUESTED BY RESULT",
        "2025-10-03 05:40:29 a.example - g1 04:ab plane applied",
        "2025-10-03 05:41:39 a.example g1 the same 04:ab operator rolled_back: probe\\nfailed",
    ]
    assert len(ran("-c", layout.root, "history").out.splitlines()) == 21
    assert len(ran("-c", layout.root, "history", "--limit", 0, "--json").json()) == 31
    wild = ran("-c", layout.root, "history", "--domain", "*.b.example", "--limit", 0, "--json").json()
    assert len(wild) == 15


# --- the daemon and the sandbox -----------------------------------------------------------------------------------


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[Any]]:
    """``agent(ending)`` makes the daemon return a Stop or raise."""

    def put(ending: object) -> list[Any]:
        calls: list[Any] = []

        async def run_agent(config_dir: Path, *, seams: object) -> Any:
            calls.append((config_dir, seams))
            if isinstance(ending, Exception):
                raise ending
            return ending

        monkeypatch.setattr("certctrl.agent.run.run_agent", run_agent)
        return calls

    return put


@pytest.mark.parametrize(
    ("reason", "status"), [(StopReason.ASKED, 0), (StopReason.REVOKED, 77), (StopReason.REFRESH_REFUSED, 77)]
)
def test_the_stop_reason_is_the_exit_status(
    reason: StopReason, status: int, layout: ConfigDir, agent: Callable[..., Any], ran: Run
) -> None:
    calls = agent(Stop(reason))
    for argv in (["-c", layout.root, "--keep-running"], ["--keep-running", "-c", layout.root]):
        assert ran(*argv).status == status
    assert [root for root, _ in calls] == [layout.root] * 2


def test_a_reload_reopens_the_logs(layout: ConfigDir, agent: Callable[..., Any], ran: Run) -> None:
    import attrs

    from certctrl.model.config import AgentConfig, LogConfig

    calls = agent(Stop(StopReason.ASKED))
    assert ran("-c", layout.root, "--keep-running").status == 0
    calls[0][1].on_reload(attrs.evolve(AgentConfig(), log=LogConfig(file="agent.log", stderr=False)))
    import logging

    logging.getLogger("certctrl.Agent").error("written")
    assert "written" in (layout.logs / "agent.log").read_text()


def test_a_daemon_that_cannot_start_logs_the_reason(layout: ConfigDir, agent: Callable[..., Any], ran: Run) -> None:
    layout.log_config.write_text('{"file": "agent.log", "stderr": false}')
    agent(BusyError("another daemon (pid 12) runs", fix="stop it"))
    done = ran("-c", layout.root, "--keep-running")
    assert done == (75, "", "cert-ctrl: error: another daemon (pid 12) runs\nfix: stop it\n")
    assert (
        "[CRITICAL] [Agent] Ended with exit status 75: another daemon (pid 12) runs\n"
        in (layout.logs / "agent.log").read_text()
    )


def test_a_daemon_with_an_invalid_configuration_does_not_start(
    layout: ConfigDir, agent: Callable[..., Any], ran: Run
) -> None:
    calls = agent(Stop(StopReason.ASKED))
    layout.application.write_text(json.dumps({"server_url": "https://p", "nonsense": 1}))
    done = ran("-c", layout.root, "--keep-running")
    assert done.status == 78 and "nonsense" in done.err and calls == []


def test_the_sandbox_receives_its_options(ran: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from certctrl.sandbox import engine

    seen: list[Any] = []

    async def run_sandbox(options: object) -> int:
        seen.append(options)
        return 1

    monkeypatch.setattr(engine, "run_sandbox", run_sandbox)
    done = ran("sandbox", "--service", "builtin", "--duration", 9, "--certs", 2, "--dir", tmp_path, "--json")
    assert done.status == 1
    assert (seen[0].service, seen[0].duration, seen[0].certs) == ("builtin", 9.0, 2)
    assert seen[0].directory == tmp_path and seen[0].as_json


def test_the_sandbox_without_the_planes_libraries(
    ran: Run, monkeypatch: pytest.MonkeyPatch, forget_modules: Callable[..., None]
) -> None:
    forget_modules("certctrl.sandbox", "certctrl.plane")
    monkeypatch.setitem(sys.modules, "starlette", None)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    monkeypatch.setitem(sys.modules, "starlette.requests", None)
    done = ran("sandbox")
    assert done.status == 2 and done.err.endswith("fix: pip install 'certctrl[plane]'\n")
