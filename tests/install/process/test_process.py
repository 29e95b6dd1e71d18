"""When `Proc.run` returns, a command and all its descendants are gone; the event loop never stalls."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import trio
from process_marks import ROOT, SH, left_of

from certctrl.errors import CommandError
from certctrl.install.process import Proc, child, proc, supervisor
from certctrl.install.process.result import CommandResult

LONGEST_STALL = 0.050


def test_a_supervisor_has_time_for_its_sweep() -> None:
    assert proc.ANSWER_MARGIN == supervisor.SWEEP_LIMIT + 5.0


async def heartbeat(stalls: list[float]) -> None:
    """Record how late each 5 ms sleep of this loop was."""
    while True:
        asked = time.perf_counter()
        await trio.sleep(0.005)
        stalls.append(time.perf_counter() - asked - 0.005)


class Steps(trio.abc.Instrument):
    """Records the longest CPU time of one task step, which blocks the loop even on a busy machine."""

    def __init__(self) -> None:
        self.began, self.longest = time.thread_time(), 0.0  # the step that adds us began before us

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.longest = max(self.longest, time.thread_time() - self.began)


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
    "sleeps forever": (["/bin/sleep", "300"], {"timed_out": True, "status": -signal.SIGTERM}),
    "prints escape codes": (
        ["/usr/bin/printf", r"\033]0;owned\007\033[31m\302\233\342\200\256red\r\n\377ok"],
        {"status": 0, "output": "\\x1b]0;owned\\x07\\x1b[31m\\x9b\\u202ered\n\\xffok"},
    ),
    "very long arguments": ([SH, "-c", 'echo "${#1}"', "x", "\x1b[2J" * 10_000], {"status": 0, "output": "40000"}),
}


@pytest.mark.integration
@pytest.mark.parametrize("name", NASTY)
async def test_hostile_commands_leave_no_process_and_never_stall_the_loop(quick: Proc, token: str, name: str) -> None:
    argv, expected = NASTY[name]
    argv = [word.replace("TOKEN", str(int(token[7:], 16))) for word in argv]
    marks = [token, *([f"300.{int(token[7:], 16)}"] if "TOKEN" in NASTY[name][0][-1] else [])]
    worst, steps, quiet_machine = math.inf, Steps(), os.getloadavg()[0] < (os.cpu_count() or 1)
    trio.lowlevel.add_instrument(steps)
    for _ in range(3):  # a busy machine may stall us sometimes, a fault of ours every time
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
async def test_concurrent_commands_do_not_affect_each_other(quick: Proc) -> None:
    """The sweep of one command does not kill the children of another."""
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
