"""The host's policy: refusals name the line that allows them, and alerts reach the operator's command."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import attrs
import pytest
from install_host import APPLIED, CHECK, FAILED, OTHER, RELOAD, Host, commands, kinds, leftovers
from trio.testing import MockClock

from certctrl.errors import CommandError, PolicyRefusedError
from certctrl.install.plan.render import plan_lines
from certctrl.model.plan import CopyAction, ExecAction
from certctrl.model.policy import HostPolicy, NamedCommand
from certctrl.model.records import Stage

# --- what the host allows -----------------------------------------------------------------------------------------


async def test_a_refused_item_is_reported_with_its_policy_line_and_not_done(clock: MockClock, host: Host) -> None:
    good, bad = host.out / "a.pem", host.root / "elsewhere" / "deep" / "a.key"
    items = [
        CopyAction(id="c", ob_id=1, sources=("fullchain.pem", "private.key"), targets=(str(good), str(bad))),
        ExecAction(id="r", ob_id=1, cmd_argv=RELOAD),
    ]
    outcome = (await host.deliver(1, items=items))[1]
    assert outcome.kind is FAILED
    assert f'"write_roots": ["{bad.parent}"]' in outcome.detail
    assert '"commands": {"true-reload"' in outcome.detail
    assert not good.exists() and not bad.exists() and host.proc.calls == []
    assert host.live(1), "the agent's own tree is always open"
    record = host.installer.records[1]
    assert (record.stage, host.retry(1).attempts) == (Stage.COMMITTED, 1)
    assert not await host.installer.unfinished(items), "it has been told"
    found = await host.installer.plan(items)
    assert [refusal.item for refusal in found.refusals] == ["c", "r"] and plan_lines(found) == ()
    bad.parent.mkdir(parents=True)
    host.allow(write_roots=(str(host.out), str(bad.parent)), commands=commands(RELOAD))
    assert kinds(await host.installer.converge((), items)) == {1: APPLIED}
    assert good.exists() and bad.exists() and host.proc.calls == [RELOAD]
    record = host.installer.records[1]
    assert (record.stage, host.retry(1).attempts, host.retry(1).last_error) == (Stage.ACTIVATED, 0, "")


async def test_a_refusal_counts_as_work_until_it_is_reported(clock: MockClock, host: Host) -> None:
    await host.deliver(1)
    items = [ExecAction(id="r", ob_id=1, cmd_argv=RELOAD)]
    assert plan_lines(await host.installer.plan(items)) == () and await host.installer.unfinished(items)
    assert (await host.installer.converge_all(items)).kind is FAILED
    assert "not among commands" in host.retry(1).last_error
    assert not await host.installer.unfinished(items)


async def test_a_refusing_check_changes_nothing(clock: MockClock, host: Host) -> None:
    items = [CopyAction(id="c", ob_id=1, sources=("combined.pem",), targets=(str(host.out / "a.pem"),), check=CHECK)]
    host.allow(commands=commands(CHECK))
    await host.deliver(1, items=items)
    before = host.live(1), (host.out / "a.pem").read_bytes()
    seen: list[str] = []

    def refuse() -> int:
        seen.extend(path.name for path in Path(host.proc.calls[-1][-1]).iterdir())
        return 1

    bundle = host.bundle(1)
    original = host.proc.run

    async def run(argv: Any, **how: Any) -> Any:
        host.proc.does[tuple(argv)] = refuse
        return await original(argv, **how)

    host.proc.run = run
    with pytest.raises(CommandError, match="the check refuses the new certificate"):
        await host.installer.stage(bundle, items)
    assert {"private.key", "combined.pem", "fullchain.pem"} <= set(seen)
    assert (host.live(1), (host.out / "a.pem").read_bytes()) == before
    assert leftovers(host) == []


async def test_material_whose_check_may_not_run_does_not_go_live(clock: MockClock, host: Host) -> None:
    items = [CopyAction(id="c", ob_id=1, sources=("combined.pem",), targets=(str(host.out / "a.pem"),), check=CHECK)]
    with pytest.raises(PolicyRefusedError) as caught:
        await host.deliver(1, items=items)
    assert '"commands"' in (caught.value.fix or "")
    assert host.installer.records == {} and leftovers(host) == []


async def test_scripts_are_pinned_on_first_use_if_the_policy_says_so(
    clock: MockClock, host: Host, tmp_path: Path
) -> None:
    script = tmp_path / "hook"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    argv = (str(script),)
    items = [ExecAction(id="r", ob_id=1, cmd_argv=argv)]
    host.allow(commands=commands(argv), trust_on_first_use=True)
    await host.deliver(1, items=items)
    await host.deliver(1, items=items)
    assert [asked["sha256"] for asked in host.proc.asked] == [
        None,
        host.installer._context.state.load_pins()[str(script)],
    ]
    host.allow(trust_on_first_use=False)
    await host.deliver(1, items=items)
    assert host.proc.asked[-1]["sha256"] is None


async def test_a_plan_names_a_program_that_is_not_the_pinned_one(clock: MockClock, host: Host, tmp_path: Path) -> None:
    script = tmp_path / "hook"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    items = [ExecAction(id="r", ob_id=1, cmd_argv=(str(script),))]
    host.allow(commands=commands((str(script),)), trust_on_first_use=True)
    host.proc.does[(str(script),)] = lambda: 1
    await host.deliver(1, items=items)
    assert (await host.installer.plan(items)).refusals == ()
    script.write_text("#!/bin/sh\nexit 0\n")
    (refusal,) = (await host.installer.plan(items)).refusals
    assert refusal.item == "r" and f"{script} has changed" in refusal.why and not refusal.setting
    host.allow(commands={"n": NamedCommand(argv=(str(script),), sha256="0" * 64)}, trust_on_first_use=False)
    assert "the policy pins 0000" in (await host.installer.plan(items)).refusals[0].why


async def test_remote_commands_off_does_not_apply_to_local_items(clock: MockClock, host: Host) -> None:
    items = [ExecAction(id="p", ob_id=1, cmd_argv=RELOAD), ExecAction(id="local:o", ob_id=1, cmd_argv=OTHER)]
    host.allow(commands=commands(RELOAD), remote_commands="off")
    outcome = (await host.deliver(1, items=items))[1]
    assert outcome.kind is FAILED and '"remote_commands": "on"' in outcome.detail
    assert host.proc.calls == [OTHER]


def test_the_policies_of_the_tests_are_valid_files() -> None:
    assert HostPolicy().commands == {}
    assert attrs.fields(HostPolicy).remote_commands.default == "on"


# --- alerts -------------------------------------------------------------------------------------------------------


async def test_alerts_reach_the_on_alert_command_as_a_file(clock: MockClock, host: Host) -> None:
    argv, seen = ("/bin/true", "alert"), list[Any]()
    await host.installer.alert({"alert": "nobody listens"})
    host.allow(on_alert=argv)

    def read() -> int:
        path = Path(host.proc.asked[-1]["env_paths"]["CERTCTRL_ALERT"])
        seen.append((json.loads(path.read_text()), stat.S_IMODE(path.stat().st_mode), path))
        return 1

    host.proc.does[argv] = read
    await host.installer.alert({"alert": "revoked", "cert_id": 7})
    ((alert, mode, path),) = seen
    assert (alert, mode) == ({"alert": "revoked", "cert_id": 7}, 0o600)
    assert not path.exists()
