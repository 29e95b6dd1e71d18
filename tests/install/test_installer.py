"""From a checked bundle to "served": switched as one group, reloaded once, verified."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import trio
import trio.testing
from install_host import APPLIED, CHECK, FAILED, OTHER, RELOAD, UNCHANGED, Host, commands, kinds, leftovers, reload
from trio.testing import MockClock

from certctrl.install.plan.render import plan_lines
from certctrl.model.plan import COMMAND_VARIABLES, CopyAction, ExecAction, VerifyCommand
from certctrl.model.policy import NamedCommand
from certctrl.model.records import Stage

# --- the way through ----------------------------------------------------------------------------------------------


async def test_a_first_delivery_is_live_under_the_names_of_the_spec(clock: MockClock, host: Host) -> None:
    outcome = (await host.deliver(1))[1]
    record = host.installer.records[1]
    assert outcome.kind is APPLIED
    assert host.live(1) == record.facts.fingerprint_sha256 == outcome.deployed[0].fingerprint_sha256
    assert (record.stage, record.generation, record.activated) == (
        Stage.ACTIVATED,
        record.generation,
        record.generation,
    )
    assert (host.layout.chains / "c1.example.pem").read_text() == host.maker.issuer.chain_pem
    for path in host.layout.root.rglob("*"):
        if path.is_dir() or b"PRIVATE" in path.read_bytes():
            assert not stat.S_IMODE(path.stat().st_mode) & 0o077
    again = host.start()
    assert again.records == {1: record}, "durable"
    assert leftovers(host) == []


async def test_a_renewal_is_reloaded_once_and_proven(clock: MockClock, host: Host) -> None:
    items, service = await host.with_service()
    outcome = (await host.deliver(1, items=items))[1]
    assert outcome.kind is APPLIED
    assert service.served == host.live(1)
    assert service.reloads == 2


async def test_the_same_material_again_changes_nothing_and_reloads_nothing(clock: MockClock, host: Host) -> None:
    items = [*reload(1), CopyAction(id="c", ob_id=1, sources=("bundle.pfx", "combined.pem", "bundle.jks"),
             targets=tuple(str(host.out / name) for name in ("a.pfx", "a.pem", "a.jks")))]  # fmt: skip
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    bundle = host.bundle(1)
    for expected in (APPLIED, UNCHANGED, UNCHANGED):
        prepared = await host.installer.stage(bundle, items)
        assert kinds(await host.installer.converge([prepared], items)) == {1: expected}
        before = {path: (path.stat().st_ino, path.read_bytes()) for path in host.out.iterdir()}
    host.start()
    await host.installer.recover()
    prepared = await host.installer.stage(bundle, items)
    assert kinds(await host.installer.converge([prepared], items)) == {1: UNCHANGED}
    assert {path: (path.stat().st_ino, path.read_bytes()) for path in host.out.iterdir()} == before
    assert service.reloads == 1
    assert not plan_lines(await host.installer.plan(items))
    assert not await host.installer.unfinished(items)


async def test_destinations_get_bytes_mode_and_a_reload(clock: MockClock, host: Host) -> None:
    key, chain = host.out / "a.key", host.out / "a.pem"
    items = [
        CopyAction(id="c", ob_id=1, sources=("private.key", "fullchain.pem"), targets=(str(key), str(chain))),
        ExecAction(id="r", cmd_argv=RELOAD, depends_on=("c",)),
    ]
    host.allow(commands=commands(RELOAD))
    outcome = (await host.deliver(1, items=items))[1]
    assert (outcome.kind, host.proc.calls) == (APPLIED, [RELOAD])
    assert (stat.S_IMODE(key.stat().st_mode), stat.S_IMODE(chain.stat().st_mode)) == (0o600, 0o644)
    assert key.read_bytes() == (host.layout.certs / "c1.example.key").read_bytes()
    assert {str(key), str(chain), str(host.layout.certs / "c1.example.crt")} <= set(outcome.deployed[0].targets)
    key.write_bytes(b"tampered")
    assert [step.what.split()[0] for step in plan_lines(await host.installer.plan(items))] == [str(key), "/bin/true"]
    assert kinds(await host.installer.converge((), items)) == {1: APPLIED}
    assert key.read_bytes() == (host.layout.certs / "c1.example.key").read_bytes()
    assert host.proc.calls == [RELOAD, RELOAD]
    assert leftovers(host) == []


async def test_the_environment_of_commands_has_paths_and_no_secrets(clock: MockClock, host: Host) -> None:
    items = [CopyAction(id="c", ob_id=1, sources=("bundle.pfx",), targets=(str(host.out / "a.pfx"),), check=CHECK),
             ExecAction(id="r", cmd_argv=RELOAD, depends_on=("c",), env={"NOTE": "x"})]  # fmt: skip
    host.allow(commands=commands(CHECK) | {"reload": NamedCommand(argv=RELOAD, env=("NOTE",))})
    await host.deliver(1, items=items)
    check, run = host.proc.asked
    (argv, _) = host.proc.calls
    staged = check["env_paths"]["CERTCTRL_STAGED_DIR"]
    assert argv == ("/bin/true", "check", staged)
    env = run["env_paths"]
    assert Path(env["CERTCTRL_KEY_FILE"]) == host.layout.live / "c1.example" / "private.key"
    password = Path(env["CERTCTRL_PFX_PASSWORD_FILE"]).read_bytes()
    lines = Path(env["CERTCTRL_KEY_FILE"]).read_bytes().splitlines()[1:-1]
    assert lines and set(run["secrets"]) == set(check["secrets"]) == {password, *lines}
    assert stat.S_IMODE(Path(env["CERTCTRL_PFX_PASSWORD_FILE"]).stat().st_mode) == 0o600
    assert env["NOTE"] == "x" and env["CERTCTRL_NAMES"] == "c1.example"
    assert password.decode() not in repr(run["env_paths"])


async def test_every_variable_of_the_agent_is_set_for_every_command(clock: MockClock, host: Host) -> None:
    """Those that do not apply are empty."""
    verify = VerifyCommand(cmd_argv=OTHER)
    items = [
        CopyAction(id="c", ob_id=1, sources=("fullchain.pem",), targets=(str(host.out / "a.pem"),), check=CHECK),
        ExecAction(id="r", cmd_argv=RELOAD, verify=verify),
    ]
    host.allow(commands=commands(RELOAD, CHECK, OTHER))
    await host.deliver(1, 2, items=items)
    assert len(host.proc.asked) == 3, "check, command, verification"
    for asked in host.proc.asked:
        assert asked["env_paths"].keys() == set(COMMAND_VARIABLES)
    several = host.proc.asked[-1]["env_paths"]
    assert {name for name, value in several.items() if value} == {
        "CERTCTRL_CONFIG_DIR", "CERTCTRL_LIVE_DIR", "CERTCTRL_NAMES",
    }  # fmt: skip
    check = host.proc.asked[0]["env_paths"]
    assert (check["CERTCTRL_NAME"], check["CERTCTRL_NAMES"]) == ("c1.example", "c1.example")
    assert check["CERTCTRL_STAGED_DIR"] and not check["CERTCTRL_PFX_FILE"]


async def test_keys_of_several_certificates_are_redacted_line_by_line(clock: MockClock, host: Host) -> None:
    host.allow(commands=commands(RELOAD))
    await host.deliver(1, 2, items=[ExecAction(id="r", cmd_argv=RELOAD)])
    keys = [(host.layout.certs / f"c{number}.example.key").read_bytes().splitlines()[1:-1] for number in (1, 2)]
    assert set(host.proc.asked[-1]["secrets"]) == {line for key in keys for line in key}


async def test_a_new_item_that_wants_another_format_needs_no_fetch(clock: MockClock, host: Host) -> None:
    await host.deliver(1)
    fingerprint = host.live(1)
    items = [CopyAction(id="c", ob_id=1, sources=("bundle.pfx",), targets=(str(host.out / "a.pfx"),))]
    assert kinds(await host.installer.converge((), items)) == {1: APPLIED}
    assert (host.out / "a.pfx").stat().st_size > 500
    assert host.live(1) == fingerprint
    assert (await host.installer.converge_all(items)).kind is UNCHANGED


async def test_named_certificates_that_are_not_on_this_host_are_unchanged(clock: MockClock, host: Host) -> None:
    outcomes = await host.installer.converge((), (), only=[5])
    assert (outcomes[5].kind, outcomes[5].detail) == (UNCHANGED, "not on this host")
    assert host.installer.records == {}


async def test_the_history_lists_deployments(clock: MockClock, host: Host) -> None:
    await host.deliver(1)
    await host.deliver(1, asked_by="operator")
    host.installer.asked_by = "somebody"
    await host.deliver(1)
    first, second, third = host.installer._context.state.load_history()
    assert third["asked_by"] == "somebody", "of a whole run"
    assert (first["outcome"], first["from"], first["asked_by"]) == ("applied", "", "plane")
    assert (second["from"], second["to"], second["asked_by"]) == (first["to"], second["live"], "operator")
    assert second["fingerprint_sha256"] != third["fingerprint_sha256"] == host.live(1)


async def test_absent_certificates_get_no_records(clock: MockClock, host: Host) -> None:
    """Items may name a certificate that was never delivered; a refusal or failure creates no record for it."""
    items = [
        CopyAction(id="c", ob_id=9, sources=("combined.pem",), targets=("/not/allowed/a",)),
        ExecAction(id="r", cmd_argv=RELOAD, depends_on=("c", "d")),
        CopyAction(id="d", ob_id=1, sources=("combined.pem",), targets=(str(host.out / "a.pem"),)),
    ]
    host.allow(commands=commands(RELOAD))
    host.proc.does[RELOAD] = lambda: 1
    assert kinds(await host.deliver(1, items=items)) == {1: FAILED}
    assert await host.installer.converge((), items)
    host.proc.does.clear()
    host.clock += 60
    assert kinds(await host.installer.converge((), items)) == {1: APPLIED}
    assert list(host.installer.records) == [1] == list(host.start().records)


# --- groups -------------------------------------------------------------------------------------------------------


async def test_twenty_certificates_of_one_service_cost_one_reload(clock: MockClock, host: Host) -> None:
    ids = range(1, 21)
    items = reload(*ids)
    host.allow(commands=commands(RELOAD))
    services = [host.serve(RELOAD, n, 1000 + n) for n in ids]
    assert set(kinds(await host.deliver(*ids, items=items)).values()) == {APPLIED}
    assert {service.reloads for service in services} == {1}
    assert [service.served for service in services] == [host.live(n) for n in ids]


async def test_a_hanging_reload_does_not_delay_other_groups(clock: MockClock, host: Host) -> None:
    items = reload(1) + reload(2, argv=OTHER)
    host.allow(commands=commands(RELOAD, OTHER))
    host.serve(RELOAD, 1, 1001, seconds=50)
    host.serve(OTHER, 2, 1002)
    done: dict[int, float] = {}

    async def one(cert_id: int) -> None:
        assert kinds(await host.deliver(cert_id, items=items)) == {cert_id: APPLIED}
        done[cert_id] = trio.current_time()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, 1)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(one, 2)
    assert done == {1: 50.0, 2: 0.0}


async def test_groups_of_one_call_run_concurrently(clock: MockClock, host: Host) -> None:
    items = reload(1) + reload(2, argv=OTHER)
    host.allow(commands=commands(RELOAD, OTHER))
    host.serve(RELOAD, 1, 1001, seconds=50)
    host.serve(OTHER, 2, 1002, seconds=40)
    assert set(kinds(await host.deliver(1, 2, items=items)).values()) == {APPLIED}
    assert trio.current_time() == 50.0


async def test_calls_for_the_same_group_take_turns(clock: MockClock, host: Host) -> None:
    items = reload(1, 2)
    host.allow(commands=commands(RELOAD))
    first, second = host.serve(RELOAD, 1, 1001, seconds=10), host.serve(RELOAD, 2, 1002)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: host.deliver(1, items=items))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(lambda: host.deliver(2, items=items))
    assert trio.current_time() == 20.0
    assert (first.served, second.served) == (host.live(1), host.live(2))


async def test_a_cancelled_call_releases_its_group_and_the_next_call_finishes_the_work(
    clock: MockClock, host: Host
) -> None:
    items, service = await host.with_service()
    service.seconds = 60
    with trio.move_on_after(5):
        await host.deliver(1, items=items)
    service.seconds = 0
    assert service.served != host.live(1)
    assert kinds(await host.installer.converge((), items)) == {1: APPLIED}
    assert service.served == host.live(1) == host.installer.records[1].facts.fingerprint_sha256


async def test_a_disabled_item_between_two_keeps_their_order(clock: MockClock, host: Host) -> None:
    first, last = ("/bin/true", "first"), ("/bin/true", "last")
    host.allow(commands=commands(first, last, OTHER))
    ended: list[str] = []

    async def slow() -> int:
        await trio.sleep(5)
        ended.append("first")
        return 0

    host.proc.does |= {first: slow, last: lambda: ended.append("last") or 0}
    items = [
        ExecAction(id="a", ob_id=1, cmd_argv=first),
        ExecAction(id="b", ob_id=1, cmd_argv=OTHER, depends_on=("a",), enabled=False),
        ExecAction(id="c", ob_id=1, cmd_argv=last, depends_on=("b",)),
    ]
    await host.deliver(1, items=items)
    assert ended == ["first", "last"]


# --- names --------------------------------------------------------------------------------------------------------


async def test_two_certificates_for_one_domain_get_two_names(clock: MockClock, host: Host) -> None:
    name_for = host.installer.name_for
    assert [name_for(1, ("a.example",)), name_for(2, ("a.example",)), name_for(1, ("a.example",))] == [
        "a.example", "a.example+2", "a.example",
    ]  # fmt: skip
    await host.deliver(3)
    assert name_for(4, ("c3.example",)) == "c3.example+4"
    assert name_for(3, ("renamed.example",)) == "c3.example", "paths stay"
    await host.installer.withdraw(3, revoked=False, items=())
    assert name_for(5, ("c3.example",)) == "c3.example"
    assert name_for(6, ()) == "certificate+6"


@pytest.mark.parametrize("how", ["changed", "removed"])
async def test_a_plan_shows_that_a_keystore_is_made_again(clock: MockClock, host: Host, how: str) -> None:
    host.allow(commands=commands(RELOAD))
    target = str(host.out / "a.pfx")
    items = [CopyAction(id="c", ob_id=1, sources=("bundle.pfx",), targets=(target,)),
             ExecAction(id="r", ob_id=1, cmd_argv=RELOAD, depends_on=("c",))]  # fmt: skip
    await host.deliver(1, items=items)
    assert plan_lines(await host.installer.plan(items)) == ()
    (password,) = host.layout.passwords.iterdir()
    if how == "changed":
        password.write_text("given-by-the-operator")
    else:
        password.unlink()
    before = sorted(path.name for path in host.layout.passwords.iterdir())
    plan = await host.installer.plan(items)
    assert [(line.kind.value, line.what.split()[0]) for line in plan_lines(plan)] == [
        ("switch", "certs/.live/c1.example"), ("write", target), ("run", RELOAD[0]),
    ]  # fmt: skip
    reason = "has changed" if how == "changed" else "was removed, so it gets another one"
    assert plan_lines(plan)[0].why.endswith(f"-> a new generation: the password of bundle.pfx {reason}")
    assert sorted(path.name for path in host.layout.passwords.iterdir()) == before, "a plan changes nothing"
    calls = len(host.proc.calls)
    assert (await host.installer.converge_all(items)).kind is APPLIED
    assert len(host.proc.calls) == calls + 1
    assert plan_lines(await host.installer.plan(items)) == ()


async def test_a_plan_shows_a_format_that_is_to_be_made(clock: MockClock, host: Host) -> None:
    await host.deliver(1)
    items = [CopyAction(id="c", ob_id=1, sources=("bundle.pfx",), targets=(str(host.out / "a.pfx"),))]
    switch, write = plan_lines(await host.installer.plan(items))
    assert switch.why.endswith("-> a new generation: bundle.pfx does not exist yet") and write.why.endswith("new")
