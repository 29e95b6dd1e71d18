"""A command is gone, with everything it started, when `Proc.run` returns; meanwhile the event loop keeps going."""

from __future__ import annotations

import gc
import math
import os
import resource
import secrets
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from certctrl.errors import CommandError
from certctrl.install.process import CommandResult, Proc, child, proc
from certctrl.install.process.proc import LIMITS, own_names

ROOT = os.geteuid() == 0
LONGEST_STALL = 0.050


def left_of(token: str) -> list[str]:
    """Return the processes that carry a token in their environment or their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                text = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if token.encode() in text:
                found.append(f"{entry.name} {(entry / 'cmdline').read_bytes()!r}")
    return found


@pytest.fixture
def token() -> str:
    return f"marked-{secrets.token_hex(8)}"


@pytest.fixture
async def quick() -> AsyncIterator[Proc]:
    """A Proc that waits little between TERM and KILL and grants few processes."""
    runner = Proc(term_grace=0.3, linger=0.3, limits={**LIMITS, resource.RLIMIT_NPROC: 300})
    yield runner
    await runner.aclose()


async def heartbeat(stalls: list[float]) -> None:
    """Note by how much each 5 ms sleep of this loop came too late."""
    while True:
        asked = time.perf_counter()
        await trio.sleep(0.005)
        stalls.append(time.perf_counter() - asked - 0.005)


class Steps(trio.abc.Instrument):
    """Notes the longest CPU time of one step of any task: what keeps the loop from turning, on a busy machine too."""

    def __init__(self) -> None:
        self.began, self.longest = time.thread_time(), 0.0  # the step that adds us has no beginning of ours

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.longest = max(self.longest, time.thread_time() - self.began)


SH = "/bin/sh"
NASTY: dict[str, tuple[list[str], dict[str, object]]] = {
    # name: (argv, what is expected of the result)
    "setsid escapee": ([SH, "-c", "setsid sleep 300 & exit 0"], {"status": 0, "swept": 1}),
    "daemonises twice": ([SH, "-c", '(setsid sh -c "(setsid sleep 300 &) &" &); exit 0'], {"status": 0, "swept": 1}),
    "pipe holder": ([SH, "-c", "sleep 300 & echo done"], {"status": 0, "swept": 1, "output": "done"}),
    "escapee with an empty environment": (
        [SH, "-c", "env -i setsid sleep 300.TOKEN & exit 3"],
        {"status": 3, "output": ""},
    ),
    "fork bomb": (
        [SH, "-c", "trap '' TERM; bomb() { bomb | bomb & sleep 300; }; bomb"],
        {"timed_out": True, "swept": True},
    ),
    "endless sessions": (  # two processes each, well below the limit of the runner here
        [SH, "-c", "i=0; while [ $i -lt 100 ]; do setsid sh -c \"trap '' TERM; sleep 300\" & i=$((i+1)); done"],
        {"status": 0, "swept": 1},
    ),
    "ignores TERM": (
        [SH, "-c", "trap '' TERM HUP INT; while :; do sleep 1; done"],
        {"timed_out": True, "status": -signal.SIGKILL},
    ),
    "ignores TERM with children elsewhere": (
        [SH, "-c", "trap '' TERM; setsid sh -c \"trap '' TERM; sleep 300\" & sleep 300"],
        {"timed_out": True},
    ),
    "a gigabyte of output": (["/usr/bin/head", "-c", "1000000000", "/dev/zero"], {"status": 0}),
    "closes its standard streams": ([SH, "-c", "exec <&- >&- 2>&-; sleep 300"], {"timed_out": True}),
    "stops itself": ([SH, "-c", "kill -STOP $$; sleep 300"], {"timed_out": True, "status": -signal.SIGTERM}),
    "stops itself and its children": (
        [SH, "-c", "trap '' TERM CONT; sleep 300 & kill -STOP $! $$; sleep 300"],
        {"timed_out": True},
    ),
    "reads standard input": (["/bin/cat"], {"status": 0, "output": ""}),
    "sleeps for ever": (["/bin/sleep", "300"], {"timed_out": True, "status": -signal.SIGTERM}),
    "prints escape codes": (
        ["/usr/bin/printf", r"\033]0;owned\007\033[31m\302\233\342\200\256red\r\n\377ok"],
        {"status": 0, "output": "\\x1b]0;owned\\x07\\x1b[31m\\x9b\\u202ered\n\\xffok"},
    ),
    "very long arguments": ([SH, "-c", 'echo "${#1}"', "x", "\x1b[2J" * 10_000], {"status": 0, "output": "40000"}),
}


@pytest.mark.integration
@pytest.mark.parametrize("name", NASTY)
async def test_nasty_commands_leave_nothing_and_never_stall_the_loop(quick: Proc, token: str, name: str) -> None:
    argv, expected = NASTY[name]
    argv = [word.replace("TOKEN", str(int(token[7:], 16))) for word in argv]
    marks = [token, *([f"300.{int(token[7:], 16)}"] if "TOKEN" in NASTY[name][0][-1] else [])]
    worst, steps, quiet_machine = math.inf, Steps(), os.getloadavg()[0] < (os.cpu_count() or 1)
    trio.lowlevel.add_instrument(steps)
    for _ in range(3):  # a busy machine may hold us up now and then, a stall of ours comes every time
        stalls: list[float] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(heartbeat, stalls)
            user = "nobody" if ROOT and name in ("fork bomb", "endless sessions") else None
            limit = 0.5 if expected.get("timed_out") else 20.0
            result = await quick.run(argv, run_as=user, timeout=limit, env_paths={"CERTCTRL_MARK": token})
            assert [line for mark in marks for line in left_of(mark)] == []
            nursery.cancel_scope.cancel()
        as_expected(result, expected)
        worst = min(worst, max(stalls))
        if worst < LONGEST_STALL:
            break
    trio.lowlevel.remove_instrument(steps)
    print(
        f"{name}: longest stall {worst * 1000:.1f} ms ({steps.longest * 1000:.1f} ms of it ours), swept {result.swept}"
    )
    assert min(worst, steps.longest) < LONGEST_STALL  # neither clock is exact on a busy machine, a stall shows in both
    assert worst < LONGEST_STALL or not quiet_machine


def as_expected(result: CommandResult, expected: dict[str, object]) -> None:
    assert result.timed_out is expected.get("timed_out", False)
    if "status" in expected:
        assert result.status == expected["status"]
    if "swept" in expected:
        assert result.swept >= expected["swept"]  # type: ignore[operator]
    if "output" in expected:
        assert result.output == expected["output"]
    assert len(result.output) < 600_000


@pytest.mark.integration
async def test_cancellation_ends_the_command_first(quick: Proc, token: str) -> None:
    started = time.perf_counter()
    with trio.move_on_after(0.4) as scope:
        await quick.run(
            [SH, "-c", "trap '' TERM; setsid sleep 300 & sleep 300"], timeout=60, env_paths={"CERTCTRL_MARK": token}
        )
    assert scope.cancelled_caught
    assert left_of(token) == []
    assert time.perf_counter() - started < 5


@pytest.mark.integration
async def test_cancellation_at_any_moment_leaves_nothing(quick: Proc, token: str) -> None:
    for step in range(24):
        with trio.move_on_after(step * 0.0025):
            await quick.run(["/bin/sleep", "300"], timeout=60, env_paths={"CERTCTRL_MARK": token})
        assert left_of(token) == []


@pytest.mark.integration
async def test_commands_side_by_side_do_not_touch_each_other(quick: Proc) -> None:
    """The sweep of one is not the end of the other's children."""
    results: dict[str, CommandResult] = {}

    async def one(name: str, line: str) -> None:
        results[name] = await quick.run([SH, "-c", line], timeout=10)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, "leaver", "setsid sleep 300 & exit 0")
        nursery.start_soon(one, "worker", "sh -c 'sleep 1; echo survived' & wait")
    assert results["leaver"].swept == 1
    assert (results["worker"].swept, results["worker"].output) == (0, "survived")


@pytest.mark.integration
async def test_killing_the_supervisor_does_not_help(quick: Proc, token: str) -> None:
    with pytest.raises(CommandError, match="supervisor"):
        await quick.run(
            [SH, "-c", "sleep 300 & kill -KILL $PPID; sleep 300"], timeout=5, env_paths={"CERTCTRL_MARK": token}
        )
    assert left_of(token) == []


@pytest.mark.integration
async def test_stopping_the_supervisor_does_not_help(quick: Proc, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "ANSWER_MARGIN", 0.5)
    monkeypatch.setattr(child, "END_MARGIN", 0.2)
    with pytest.raises(CommandError, match="supervisor"):
        await quick.run(
            [SH, "-c", "setsid sleep 300 & kill -STOP $PPID; sleep 300"],
            timeout=0.3,
            env_paths={"CERTCTRL_MARK": token},
        )
    assert left_of(token) == []


@pytest.mark.integration
def test_kill_of_the_agent_ends_its_command(token: str, tmp_path: Path) -> None:
    code = f"""
        import trio
        from certctrl.install.process import Proc
        async def main():
            print("go", flush=True)
            await Proc().run(["/bin/sh", "-c", "trap '' TERM; setsid sleep 300 & sleep 300"], timeout=60,
                             env_paths={{"CERTCTRL_MARK": {token!r}}})
        trio.run(main)
    """
    agent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
    try:
        assert agent.stdout is not None and agent.stdout.readline() == b"go\n"
        deadline = time.monotonic() + 20
        while len(left_of(token)) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(left_of(token)) >= 2
    finally:
        agent.kill()
        agent.communicate()
    deadline = time.monotonic() + 10
    while left_of(token) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left_of(token) == []


# --- what a command gets ------------------------------------------------------------------------------------------

SHOW = textwrap.dedent(
    """
    import json, os, resource, sys
    status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
    print(json.dumps({
        "env": dict(os.environ), "cwd": os.getcwd(), "sid": os.getsid(0) == os.getpid(),
        "fds": sorted(int(n) for n in os.listdir("/proc/self/fd"))[:-1], "stdin": os.readlink("/proc/self/fd/0"),
        "umask": status["Umask"].strip(), "nnp": status["NoNewPrivs"].strip(), "ids": [os.getuid(), os.getgid()],
        "core": resource.getrlimit(resource.RLIMIT_CORE), "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "groups": os.getgroups(), "blocked": status["SigBlk"].strip(), "ignored": status["SigIgn"].strip(),
    }))
    """
)
PYTHON = "/usr/bin/python3" if ROOT else sys.executable  # one that other users may run too


async def seen(runner: Proc, run_as: str | None = None) -> dict[str, object]:
    import json

    result = await runner.run(
        [PYTHON, "-I", "-S", "-c", SHOW], timeout=20, run_as=run_as, env_paths={"CERTCTRL_LIVE_DIR": "/x"}
    )
    assert result.ok, result
    return dict(json.loads(result.output))


@pytest.mark.integration
@pytest.mark.skipif(not Path(PYTHON).exists(), reason="no python that every user may run")
async def test_a_command_gets_a_clean_world(quick: Proc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CERTCTRL_TOKEN", "canary")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/canary")
    kept = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(kept, True)
    try:
        facts = await seen(quick)
    finally:
        os.close(kept)
    assert facts["env"] == {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C", "HOME": "/", "CERTCTRL_LIVE_DIR": "/x",
        **({"LC_CTYPE": "C.UTF-8"} if "LC_CTYPE" in facts["env"] else {}),  # that Python's own addition
    }  # type: ignore[operator]  # fmt: skip
    assert (facts["cwd"], facts["umask"], facts["stdin"]) == ("/", "0077", "/dev/null")
    assert facts["fds"] == [0, 1, 2]
    assert facts["sid"] is True and facts["nnp"] == "1"
    assert facts["core"] == [0, 0] and facts["nofile"] == 4096
    assert int(str(facts["blocked"]), 16) == 0
    assert facts["ids"] == [os.geteuid(), os.getegid()]


@pytest.mark.integration
@pytest.mark.root
async def test_run_as_gives_up_everything_of_root(quick: Proc) -> None:
    facts = await seen(quick, run_as="nobody")
    assert facts["ids"] == [65534, 65534]
    assert facts["groups"] == [65534]


async def test_users_that_cannot_be(quick: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CommandError, match="no user"):
        await quick.run(["/bin/true"], run_as="no-such-user", timeout=5)
    assert (await quick.run(["/bin/true"], run_as=own_names()[0], timeout=5)).ok
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(CommandError, match="not root"):
        await quick.run(["/bin/true"], run_as="nobody", timeout=5)


async def test_limits_are_the_hosts(token: str) -> None:
    small = Proc(limits={resource.RLIMIT_NOFILE: 20})
    result = await small.run([SH, "-c", "ulimit -n"], timeout=5)
    assert result.output == "20"


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["/bin/no-such-program"], "No such file"),
        (["/etc/passwd"], "not an executable"),
        (["/bin"], "not an executable"),
        (["true"], "absolute"),
        ([], "absolute"),
        (["/bin/echo", "a\0b"], "NUL"),
        (["/bin/no\nsuch"], "No such file"),
    ],
)
async def test_what_cannot_be_started_says_why(quick: Proc, argv: list[str], why: str) -> None:
    with pytest.raises(CommandError, match=why) as caught:
        await quick.run(argv, timeout=5)
    assert caught.value.status is None


async def test_an_exec_that_the_kernel_refuses_says_why(quick: Proc, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    with pytest.raises(CommandError, match=r"cannot run .*No such file"):
        await quick.run([str(broken)], timeout=5)


async def test_check_tells_how_it_ended(quick: Proc) -> None:
    failed = await quick.run([SH, "-c", "echo first; echo '  the reason '; exit 7"], timeout=5)
    with pytest.raises(CommandError, match=r"^reload exited with 7: the reason$") as caught:
        failed.check("reload")
    assert (caught.value.status, caught.value.output) == (7, "first\n  the reason ")
    killed = await quick.run([SH, "-c", "kill -USR1 $$"], timeout=5)
    with pytest.raises(CommandError, match="was killed by SIGUSR1"):
        killed.check()
    slow = await quick.run(["/bin/sleep", "9"], timeout=0.2)
    with pytest.raises(CommandError, match="did not finish within"):
        slow.check()
    assert (await quick.run(["/bin/true"], timeout=5)).check().ok


async def test_output_keeps_its_beginning_and_its_end(quick: Proc) -> None:
    result = await quick.run([SH, "-c", "echo start; head -c 300000 /dev/zero | tr '\\0' x; echo; echo end"], timeout=9)
    assert result.output.startswith("start\nxxx")
    assert result.output.endswith("xxx\nend")
    assert "bytes left out]" in result.output
    assert 65_000 < len(result.output) < 66_000


async def test_a_supervisor_started_ahead_serves_one_command(quick: Proc) -> None:
    await quick.prepare()
    await quick.prepare()
    (spare,) = quick._spares
    assert (await quick.run(["/bin/true"], timeout=5)).ok
    assert spare.status == 0 and quick._spares == []


async def test_several_may_wait(quick: Proc) -> None:
    await quick.prepare(2)
    first, second = quick._spares
    await quick.run(["/bin/true"], timeout=5)
    assert (first.status, second.status, quick._spares) == (0, None, [second])
    await quick.prepare(2)
    assert quick._spares[0] is second and len(quick._spares) == 2


async def test_a_supervisor_that_left_meanwhile_is_replaced(quick: Proc) -> None:
    await quick.prepare()
    (spare,) = quick._spares
    os.kill(spare.pid, signal.SIGKILL)
    os.waitid(os.P_PID, spare.pid, os.WEXITED | os.WNOWAIT)
    assert (await quick.run(["/bin/echo", "here"], timeout=5)).output == "here"


async def test_nothing_of_a_waiting_supervisor_is_left_after_close() -> None:
    runner = Proc()
    await runner.prepare()
    (spare,) = runner._spares
    await runner.aclose()
    assert spare.status is not None
    assert not Path(f"/proc/{spare.pid}").exists()


async def test_a_forgotten_supervisor_ends_by_itself_and_complains_to_nobody() -> None:
    runner = Proc()
    await runner.prepare()
    pid = runner._spares[0].pid
    del runner
    gc.collect()
    for _ in range(500):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]:
            return
        await trio.sleep(0.01)
    raise AssertionError("it still runs")


async def test_descriptors_return_to_the_baseline(quick: Proc) -> None:
    await quick.run(["/bin/true"], timeout=5)
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await quick.run(["/bin/true"], timeout=5)
        with trio.move_on_after(0.02):
            await quick.run(["/bin/sleep", "9"], timeout=5)
    assert set(os.listdir("/proc/self/fd")) == before
