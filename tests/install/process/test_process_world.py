"""A command gets a clean environment and limits, and its supervisor leaves nothing behind."""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
import textwrap
from pathlib import Path

import pytest
import trio
from process_marks import ROOT, SH

from certctrl.errors import CommandError
from certctrl.install.process import Proc
from certctrl.install.process.proc import own_names

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
async def test_a_command_gets_a_clean_environment(quick: Proc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
async def test_run_as_drops_all_privileges_of_root(quick: Proc) -> None:
    facts = await seen(quick, run_as="nobody")
    assert facts["ids"] == [65534, 65534]
    assert facts["groups"] == [65534]


async def test_unusable_users_are_refused(quick: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CommandError, match="no user"):
        await quick.run(["/bin/true"], run_as="no-such-user", timeout=5)
    assert (await quick.run(["/bin/true"], run_as=own_names()[0], timeout=5)).ok
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(CommandError, match="not root"):
        await quick.run(["/bin/true"], run_as="nobody", timeout=5)


async def test_limits_apply_to_commands(token: str) -> None:
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
async def test_a_command_that_cannot_be_started_reports_why(quick: Proc, argv: list[str], why: str) -> None:
    with pytest.raises(CommandError, match=why) as caught:
        await quick.run(argv, timeout=5)
    assert caught.value.status is None


async def test_a_refused_exec_reports_why(quick: Proc, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    with pytest.raises(CommandError, match=r"cannot run .*No such file"):
        await quick.run([str(broken)], timeout=5)


async def test_check_reports_how_a_command_ended(quick: Proc) -> None:
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


async def test_output_keeps_its_start_and_end(quick: Proc) -> None:
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


async def test_several_supervisors_may_wait(quick: Proc) -> None:
    await quick.prepare(2)
    first, second = quick._spares
    await quick.run(["/bin/true"], timeout=5)
    assert (first.status, second.status, quick._spares) == (0, None, [second])
    await quick.prepare(2)
    assert quick._spares[0] is second and len(quick._spares) == 2


async def test_a_supervisor_that_has_exited_is_replaced(quick: Proc) -> None:
    await quick.prepare()
    (spare,) = quick._spares
    os.kill(spare.pid, signal.SIGKILL)
    os.waitid(os.P_PID, spare.pid, os.WEXITED | os.WNOWAIT)
    assert (await quick.run(["/bin/echo", "here"], timeout=5)).output == "here"


async def test_close_ends_waiting_supervisors() -> None:
    runner = Proc()
    await runner.prepare()
    (spare,) = runner._spares
    await runner.aclose()
    assert spare.status is not None
    assert not Path(f"/proc/{spare.pid}").exists()


async def test_a_dropped_supervisor_exits_without_a_warning() -> None:
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
