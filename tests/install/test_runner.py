"""From a checked bundle to "served": switched as one set, reloaded once, proven; or as it was before."""

from __future__ import annotations

import contextlib
import errno
import json
import stat
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from certctrl.errors import CommandError, DiskError, PolicyRefusedError, UsageError
from certctrl.model.plan import CopyAction, ExecAction, InstallItem, OutcomeKind, VerifyCommand, VerifyTls
from certctrl.model.policy import HostPolicy, MaintenanceWindow, NamedCommand
from certctrl.model.records import Stage
from certctrl.store.fs import RealFs
from certctrl.store.state import StateStore
from certctrl.store.walk import SIZE_LIMIT

RELOAD = ("/bin/true", "reload")
OTHER = ("/bin/true", "other")
CHECK = ("/bin/true", "check", "{staged}")

APPLIED, UNCHANGED = OutcomeKind.APPLIED, OutcomeKind.UNCHANGED
FAILED, ROLLED_BACK = OutcomeKind.FAILED, OutcomeKind.ROLLED_BACK


def commands(*argvs: tuple[str, ...]) -> dict[str, NamedCommand]:
    return {f"n{i}": NamedCommand(argv=argv) for i, argv in enumerate(argvs)}


def reload(*certs: int, argv: tuple[str, ...] = RELOAD, **more: Any) -> list[InstallItem]:
    """One command per certificate, as a plane writes them, each proven at its own port."""
    return [
        ExecAction(id=f"r{n}", ob_id=n, cmd_argv=argv, verify=VerifyTls(host="127.0.0.1", port=1000 + n), **more)
        for n in certs
    ]


def kinds(outcomes: dict[int, Any]) -> dict[int, OutcomeKind]:
    return {cert_id: outcome.kind for cert_id, outcome in outcomes.items()}


def leftovers(host: Any) -> list[Path]:
    found = [path for path in host.layout.root.rglob("*") if ".tmp" in path.name]
    found += host.layout.journal.iterdir()
    found += (path for path in host.out.rglob("*") if path.name.startswith("."))
    return found


# --- the way through ----------------------------------------------------------------------------------------------


async def test_a_first_delivery_is_live_under_the_specs_names(clock: MockClock, host: Any) -> None:
    outcome = (await host.deliver(1))[1]
    record = host.installer.records[1]
    assert outcome.kind is APPLIED
    assert host.live(1) == record.fingerprint_sha256 == outcome.deployed[0].fingerprint_sha256
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


async def test_a_renewal_is_reloaded_once_and_proven(clock: MockClock, host: Any) -> None:
    items = reload(1)
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    await host.deliver(1, items=items)
    outcome = (await host.deliver(1, items=items))[1]
    assert outcome.kind is APPLIED
    assert service.served == host.live(1)
    assert service.reloads == 2


async def test_the_same_material_again_changes_nothing_and_reloads_nothing(clock: MockClock, host: Any) -> None:
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
    assert not (await host.installer.plan(items)).steps
    assert not await host.installer.unfinished(items)


async def test_explicit_destinations_get_bytes_mode_and_a_reload(clock: MockClock, host: Any) -> None:
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
    assert [step.what.split()[0] for step in (await host.installer.plan(items)).steps] == [str(key), "/bin/true"]
    assert kinds(await host.installer.converge((), items)) == {1: APPLIED}
    assert key.read_bytes() == (host.layout.certs / "c1.example.key").read_bytes()
    assert host.proc.calls == [RELOAD, RELOAD]
    assert leftovers(host) == []


async def test_commands_are_told_paths_and_no_secrets(clock: MockClock, host: Any) -> None:
    items = [CopyAction(id="c", ob_id=1, sources=("bundle.pfx",), targets=(str(host.out / "a.pfx"),), check=CHECK),
             ExecAction(id="r", cmd_argv=RELOAD, depends_on=("c",), env={"CERTCTRL_NOTE": "x"})]  # fmt: skip
    host.allow(commands=commands(RELOAD, CHECK))
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
    assert env["CERTCTRL_NOTE"] == "x" and env["CERTCTRL_NAMES"] == "c1.example"
    assert password.decode() not in repr(run["env_paths"])


async def test_a_command_about_several_certificates_cannot_show_a_line_of_their_keys(
    clock: MockClock, host: Any
) -> None:
    host.allow(commands=commands(RELOAD))
    await host.deliver(1, 2, items=[ExecAction(id="r", cmd_argv=RELOAD)])
    keys = [(host.layout.certs / f"c{number}.example.key").read_bytes().splitlines()[1:-1] for number in (1, 2)]
    assert set(host.proc.asked[-1]["secrets"]) == {line for key in keys for line in key}


async def test_a_new_item_that_wants_another_format_needs_no_fetch(clock: MockClock, host: Any) -> None:
    await host.deliver(1)
    fingerprint = host.live(1)
    items = [CopyAction(id="c", ob_id=1, sources=("bundle.pfx",), targets=(str(host.out / "a.pfx"),))]
    assert kinds(await host.installer.converge((), items)) == {1: APPLIED}
    assert (host.out / "a.pfx").stat().st_size > 500
    assert host.live(1) == fingerprint
    assert (await host.installer.converge_all(items)).kind is UNCHANGED


async def test_named_certificates_that_are_not_here(clock: MockClock, host: Any) -> None:
    outcomes = await host.installer.converge((), (), only=[5])
    assert (outcomes[5].kind, outcomes[5].detail) == (UNCHANGED, "not on this host")
    assert host.installer.records == {}


async def test_history_tells_what_was_done(clock: MockClock, host: Any) -> None:
    await host.deliver(1)
    await host.deliver(1, asked_by="operator")
    first, second = host.installer._site.state.load_history()
    assert (first["outcome"], first["from"], first["asked_by"]) == ("applied", "", "plane")
    assert (second["from"], second["to"], second["asked_by"]) == (first["to"], second["live"], "operator")
    assert second["fingerprint_sha256"] == host.live(1)


# --- sets ---------------------------------------------------------------------------------------------------------


async def test_twenty_certificates_of_one_service_cost_one_reload(clock: MockClock, host: Any) -> None:
    ids = range(1, 21)
    items = reload(*ids)
    host.allow(commands=commands(RELOAD))
    services = [host.serve(RELOAD, n, 1000 + n) for n in ids]
    assert set(kinds(await host.deliver(*ids, items=items)).values()) == {APPLIED}
    assert {service.reloads for service in services} == {1}
    assert [service.served for service in services] == [host.live(n) for n in ids]


async def test_a_hanging_reload_holds_up_nobody_else(clock: MockClock, host: Any) -> None:
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


async def test_sets_of_one_call_run_side_by_side(clock: MockClock, host: Any) -> None:
    items = reload(1) + reload(2, argv=OTHER)
    host.allow(commands=commands(RELOAD, OTHER))
    host.serve(RELOAD, 1, 1001, seconds=50)
    host.serve(OTHER, 2, 1002, seconds=40)
    assert set(kinds(await host.deliver(1, 2, items=items)).values()) == {APPLIED}
    assert trio.current_time() == 50.0


async def test_calls_about_the_same_set_take_turns(clock: MockClock, host: Any) -> None:
    items = reload(1, 2)
    host.allow(commands=commands(RELOAD))
    first, second = host.serve(RELOAD, 1, 1001, seconds=10), host.serve(RELOAD, 2, 1002)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: host.deliver(1, items=items))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(lambda: host.deliver(2, items=items))
    assert trio.current_time() == 20.0
    assert (first.served, second.served) == (host.live(1), host.live(2))


async def test_a_cancelled_call_frees_its_set_and_the_next_one_finishes_the_work(clock: MockClock, host: Any) -> None:
    items = reload(1)
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    await host.deliver(1, items=items)
    service.seconds = 60
    with trio.move_on_after(5):
        await host.deliver(1, items=items)
    service.seconds = 0
    assert service.served != host.live(1)
    assert kinds(await host.installer.converge((), items)) == {1: APPLIED}
    assert service.served == host.live(1) == host.installer.records[1].fingerprint_sha256


# --- going back ---------------------------------------------------------------------------------------------------


async def test_a_failed_reload_brings_the_old_pair_back_into_service(clock: MockClock, host: Any) -> None:
    items = reload(1)
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    await host.deliver(1, items=items)
    good, calls = host.live(1), len(host.proc.calls)
    bundle = host.bundle(1)
    service.refuses.add(bundle.fingerprint_sha256)
    prepared = await host.installer.stage(bundle, items)
    outcome = (await host.installer.converge([prepared], items))[1]
    assert outcome.kind is ROLLED_BACK
    assert "exited with 3: it says no" in outcome.detail
    assert outcome.deployed[0].fingerprint_sha256 == good == host.live(1) == service.served
    assert len(host.proc.calls) == calls + 2
    record = host.installer.records[1]
    assert (record.stage, record.staged, record.attempts) == (Stage.ACTIVATED, prepared.generation, 1)
    assert record.next_try_at == host.clock + 30
    assert kinds(await host.installer.converge((), items)) == {}, "not before its next try"
    service.refuses.clear()
    host.clock += 31
    assert kinds(await host.installer.converge((), items)) == {1: APPLIED}
    assert host.live(1) == bundle.fingerprint_sha256 == service.served


async def test_a_service_that_does_not_take_it_up_is_noticed_and_taken_back(clock: MockClock, host: Any) -> None:
    items = reload(1)
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    await host.deliver(1, items=items)
    good = host.live(1)
    service.deaf = True
    outcome = (await host.deliver(1, items=items))[1]
    assert (outcome.kind, host.live(1)) == (ROLLED_BACK, good)
    assert "serves another certificate" in outcome.detail
    assert trio.current_time() == host.config.application.verify_timeout_seconds


async def test_copies_go_back_with_the_links(clock: MockClock, host: Any) -> None:
    target = host.out / "combined.pem"
    copy = CopyAction(id="c", ob_id=1, sources=("combined.pem",), targets=(str(target),), mode=0o640)
    items = [copy, *reload(1)]
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    service.certificate = service.key = target
    await host.deliver(1, items=items)
    good = target.read_bytes()
    service.deaf = True
    assert kinds(await host.deliver(1, items=items)) == {1: ROLLED_BACK}
    assert target.read_bytes() == good and stat.S_IMODE(target.stat().st_mode) == 0o640
    assert leftovers(host) == []


async def test_after_a_failed_set_each_certificate_is_tried_alone(clock: MockClock, host: Any) -> None:
    ids, items = (1, 2, 3), reload(1, 2, 3)
    host.allow(commands=commands(RELOAD))
    services = {n: host.serve(RELOAD, n, 1000 + n) for n in ids}
    await host.deliver(*ids, items=items)
    bundles = {n: host.bundle(n) for n in ids}
    services[2].refuses.add(bundles[2].fingerprint_sha256)
    before = {n: host.live(n) for n in ids}

    async def attempt() -> dict[int, OutcomeKind]:
        prepared = [await host.installer.stage(bundle, items) for bundle in bundles.values()]
        return kinds(await host.installer.converge(prepared, items))

    assert await attempt() == dict.fromkeys(ids, ROLLED_BACK)
    assert {n: host.live(n) for n in ids} == before
    assert await attempt() == {1: APPLIED, 2: ROLLED_BACK, 3: APPLIED}
    assert [services[n].served == bundles[n].fingerprint_sha256 for n in ids] == [True, False, True]
    assert services[2].served == before[2] == host.live(2)
    assert await attempt() == {1: UNCHANGED, 2: ROLLED_BACK, 3: UNCHANGED}


async def test_when_the_old_state_does_not_serve_either_the_rest_is_not_tried(clock: MockClock, host: Any) -> None:
    ids, items = (1, 2, 3), reload(1, 2, 3)
    host.allow(commands=commands(RELOAD))
    services = [host.serve(RELOAD, n, 1000 + n) for n in ids]
    await host.deliver(*ids, items=items)
    services[0].broken = True
    outcomes = await host.deliver(*ids, items=items)
    assert all("does not serve either" in outcome.detail for outcome in outcomes.values())
    calls = len(host.proc.calls)
    outcomes = await host.installer.converge((), items, only=ids)
    assert [outcomes[n].detail.startswith("not tried") for n in ids] == [True, True, True]
    assert len(host.proc.calls) == calls + 1, "one reload tells that the service is at fault"
    services[0].broken = False
    host.clock += 7200
    assert set(kinds(await host.installer.converge((), items)).values()) == {APPLIED}
    assert [service.served for service in services] == [host.live(n) for n in ids]


async def test_a_first_delivery_that_fails_stays_for_the_service_to_find(clock: MockClock, host: Any) -> None:
    """A service that is not configured yet cannot reload; without its files it could never be started."""
    items = [CopyAction(id="c", ob_id=1, sources=("combined.pem",), targets=(str(host.out / "a.pem"),)), *reload(1)]
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001, broken=True)
    outcome = (await host.deliver(1, items=items))[1]
    assert outcome.kind is FAILED and "nothing to go back to" in outcome.detail
    assert host.installer.records[1].stage is Stage.COMMITTED
    assert (host.out / "a.pem").exists() and host.live(1)
    service.broken = False
    assert kinds(await host.installer.converge((), items)) == {1: APPLIED}
    assert host.installer.records[1].stage is Stage.ACTIVATED
    assert service.served == host.live(1)


async def test_first_files_for_a_service_stay_although_the_certificate_was_here_before(
    clock: MockClock, host: Any
) -> None:
    """The certificate came first, its items later: a service that is down needs the files before it can be started."""
    target = host.out / "a.pem"
    items = [CopyAction(id="c", ob_id=1, sources=("combined.pem",), targets=(str(target),)), *reload(1)]
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001, broken=True)
    assert kinds(await host.deliver(1)) == {1: APPLIED}
    assert kinds(await host.installer.converge((), items))[1] in (FAILED, ROLLED_BACK)
    assert target.exists()
    service.broken = False
    assert kinds(await host.installer.converge((), items)) == {1: APPLIED}
    assert service.served == host.live(1)
    service.broken = True
    target.unlink()
    assert kinds(await host.deliver(1, items=items)) == {1: ROLLED_BACK}
    assert not target.exists(), "once the command has succeeded, what fails is undone"


async def test_a_first_delivery_does_not_destroy_what_stood_at_a_destination(clock: MockClock, host: Any) -> None:
    target = host.out / "combined.pem"
    target.write_bytes(b"the operator's own")
    items = [CopyAction(id="c", ob_id=1, sources=("combined.pem",), targets=(str(target),)), *reload(1)]
    host.allow(commands=commands(RELOAD))
    host.serve(RELOAD, 1, 1001, broken=True)
    assert kinds(await host.deliver(1, items=items)) == {1: FAILED}
    assert target.read_bytes() == b"the operator's own"


async def test_a_tolerated_failure_is_told_and_does_not_stop_the_rest(clock: MockClock, host: Any) -> None:
    items = [ExecAction(id="t", ob_id=1, cmd_argv=OTHER, continue_on_error=True), *reload(1, depends_on=("t",))]
    host.allow(commands=commands(RELOAD, OTHER))
    host.proc.does[OTHER] = lambda: 9
    service = host.serve(RELOAD, 1, 1001)
    outcome = (await host.deliver(1, items=items))[1]
    assert outcome.kind is APPLIED and "tolerated" in outcome.detail
    assert service.served == host.live(1)
    host.proc.does[OTHER] = lambda: 0
    assert kinds(await host.installer.converge((), items)) == {1: APPLIED}, "tried again until it sticks"


async def test_verify_by_command_is_tried_until_its_deadline(clock: MockClock, host: Any) -> None:
    verify = ("/bin/true", "verify")
    items = [ExecAction(id="r", ob_id=1, cmd_argv=RELOAD, verify=VerifyCommand(cmd_argv=verify))]
    host.allow(commands=commands(RELOAD, verify))
    answers = iter([1, 1, 0])
    host.proc.does[verify] = lambda: next(answers, 1)
    assert kinds(await host.deliver(1, items=items)) == {1: APPLIED}
    outcome = (await host.deliver(1, items=items))[1]
    assert outcome.kind is ROLLED_BACK and "verify exited with 1" in outcome.detail


# --- what the host allows -----------------------------------------------------------------------------------------


async def test_a_refused_item_is_told_with_its_line_and_nothing_of_it_is_done(clock: MockClock, host: Any) -> None:
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
    assert (record.stage, record.attempts) == (Stage.COMMITTED, 1)
    found = await host.installer.plan(items)
    assert [refusal.item for refusal in found.refusals] == ["c", "r"] and found.steps == ()
    bad.parent.mkdir(parents=True)
    host.allow(write_roots=(str(host.out), str(bad.parent)), commands=commands(RELOAD))
    assert kinds(await host.installer.converge((), items)) == {1: APPLIED}
    assert good.exists() and bad.exists() and host.proc.calls == [RELOAD]
    record = host.installer.records[1]
    assert (record.stage, record.attempts, record.last_error) == (Stage.ACTIVATED, 0, "")


async def test_a_check_that_refuses_leaves_everything_as_it_was(clock: MockClock, host: Any) -> None:
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


async def test_a_check_that_may_not_run_keeps_unchecked_material_from_going_live(clock: MockClock, host: Any) -> None:
    items = [CopyAction(id="c", ob_id=1, sources=("combined.pem",), targets=(str(host.out / "a.pem"),), check=CHECK)]
    with pytest.raises(PolicyRefusedError) as caught:
        await host.deliver(1, items=items)
    assert '"commands"' in (caught.value.fix or "")
    assert host.installer.records == {} and leftovers(host) == []


async def test_scripts_are_pinned_on_first_use_where_the_host_wants_it(
    clock: MockClock, host: Any, tmp_path: Path
) -> None:
    script = tmp_path / "hook"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    argv = (str(script),)
    items = [ExecAction(id="r", ob_id=1, cmd_argv=argv)]
    host.allow(commands=commands(argv), trust_on_first_use=True)
    await host.deliver(1, items=items)
    await host.deliver(1, items=items)
    assert [asked["sha256"] for asked in host.proc.asked] == [None, host.installer._site.state.load_pins()[str(script)]]
    host.allow(trust_on_first_use=False)
    await host.deliver(1, items=items)
    assert host.proc.asked[-1]["sha256"] is None


async def test_remote_commands_off_spares_the_hosts_own_rows(clock: MockClock, host: Any) -> None:
    items = [ExecAction(id="p", ob_id=1, cmd_argv=RELOAD), ExecAction(id="local:o", ob_id=1, cmd_argv=OTHER)]
    host.allow(commands=commands(RELOAD), remote_commands="off")
    outcome = (await host.deliver(1, items=items))[1]
    assert outcome.kind is FAILED and '"remote_commands": "on"' in outcome.detail
    assert host.proc.calls == [OTHER]


# --- disks --------------------------------------------------------------------------------------------------------


class ScriptedFs:
    """The real one, counting; the n-th call of one verb may fail."""

    def __init__(self, fs: Any, verb: str = "", fails_at: int = 0) -> None:
        self.fs, self.verb, self.fails_at, self.counts = fs, verb, fails_at, dict[str, int]()

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.fs, name)

        def call(*args: Any, **how: Any) -> Any:
            self.counts[name] = self.counts.get(name, 0) + 1
            if name == self.verb and self.counts[name] == self.fails_at:
                raise DiskError(f"cannot {name}", path="x", errno=28)
            return real(*args, **how)

        return call


@pytest.mark.parametrize("verb", ["syncfs", "rename", "symlink", "create", "fsync", "write", "unlink"])
async def test_a_disk_that_fails_leaves_the_old_or_the_new_and_heals(clock: MockClock, host: Any, verb: str) -> None:
    """One call of one verb fails, each in turn, until a run meets no failure any more."""
    items = [CopyAction(id="c", ob_id=1, sources=("combined.pem",), targets=(str(host.out / "a.pem"),)), *reload(1)]
    host.allow(commands=commands(RELOAD))
    service, real = host.serve(RELOAD, 1, 1001), host.fs
    await host.deliver(1, items=items)
    old = host.live(1)

    async def run(fs: Any, bundle: Any) -> OutcomeKind:
        host.fs = fs
        host.start()
        await host.installer.recover()
        prepared = await host.installer.stage(bundle, items)
        return (await host.installer.converge([prepared], items))[1].kind  # type: ignore[no-any-return]

    for number in range(1, 60):
        bundle, fs = host.bundle(1), ScriptedFs(real, verb, number)
        with contextlib.suppress(DiskError):
            assert await run(fs, bundle) in (APPLIED, FAILED, ROLLED_BACK)
        assert host.live(1) in (old, bundle.fingerprint_sha256)
        host.clock += 7200
        assert await run(real, bundle) in (APPLIED, UNCHANGED), number
        assert host.live(1) == bundle.fingerprint_sha256 == service.served
        assert (host.out / "a.pem").read_bytes().startswith((host.layout.certs / "c1.example.key").read_bytes())
        assert leftovers(host) == []
        old = bundle.fingerprint_sha256
        if fs.counts.get(verb, 0) < number:
            print(f"{verb}: {number - 1} of {number - 1} recovered")
            return
    raise AssertionError("no run without a failure")


async def test_a_burst_costs_next_to_no_syncs(clock: MockClock, host: Any) -> None:
    """At most a tenth of a sync per certificate, counted at the door to the disk."""
    ids = range(1, 121)
    items = [ExecAction(id="r", cmd_argv=RELOAD)]
    host.allow(commands=commands(RELOAD))
    await host.deliver(*ids, items=items)
    host.fs = counting = ScriptedFs(host.fs)
    records = host.installer.records
    host.start()
    assert host.installer.records == records
    bundles = [host.bundle(n) for n in ids]
    prepared = [await host.installer.stage(bundle, items) for bundle in bundles]
    counting.counts.clear()
    assert set(kinds(await host.installer.converge(prepared, items)).values()) == {APPLIED}
    syncs = counting.counts.get("fsync", 0) + counting.counts.get("syncfs", 0)
    print(f"{syncs} syncs for {len(ids)} certificates, {host.proc.calls.count(RELOAD)} reloads in two bursts")
    assert syncs <= len(ids) / 10
    assert host.proc.calls == [RELOAD, RELOAD]
    counting.counts.clear()
    await host.deliver(1, items=items)
    single = counting.counts.get("fsync", 0) + counting.counts.get("syncfs", 0)
    print(f"{single} syncs for one certificate")
    assert single <= 8


def test_policies_of_the_tests_are_those_of_the_field() -> None:
    assert HostPolicy().commands == {}
    assert attrs.fields(HostPolicy).remote_commands.default == "on"


# --- after a crash ------------------------------------------------------------------------------------------------


class PowerCut(BaseException):
    """The process is gone: nothing of ours runs after this."""


async def crashed(host: Any, where: tuple[str, ...], items: list[InstallItem]) -> None:
    """Deliver certificate 1 and die when a command runs; begin a new run."""
    real = host.proc.does.get(where)

    def die() -> int:
        raise PowerCut

    host.proc.does[where] = die
    with pytest.raises(BaseExceptionGroup):
        await host.deliver(1, items=items)
    host.proc.does.pop(where)
    if real is not None:
        host.proc.does[where] = real
    host.start()


async def test_what_was_owed_at_a_crash_is_done_at_the_next_start(clock: MockClock, host: Any) -> None:
    items = reload(1)
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    await host.deliver(1, items=items)
    await crashed(host, RELOAD, items)
    assert host.installer.records[1].fingerprint_sha256 != host.live(1), "the record was not written any more"
    await host.installer.recover()
    record = host.installer.records[1]
    assert (record.fingerprint_sha256, record.stage) == (host.live(1), Stage.COMMITTED)
    assert service.served != host.live(1)
    assert await host.installer.unfinished(items)
    assert kinds(await host.installer.converge((), items)) == {1: APPLIED}
    assert service.served == host.live(1)
    assert host.installer.records[1].stage is Stage.ACTIVATED
    assert (await host.installer.converge_all(items)).kind is UNCHANGED


async def test_a_crash_does_not_take_away_the_way_back(clock: MockClock, host: Any) -> None:
    items = reload(1)
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    await host.deliver(1, items=items)
    good = host.live(1)
    await crashed(host, RELOAD, items)
    await host.installer.recover()
    service.refuses.add(host.live(1))
    outcome = (await host.installer.converge((), items))[1]
    assert (outcome.kind, host.live(1), service.served) == (ROLLED_BACK, good, good)
    assert host.installer.records[1].fingerprint_sha256 == good


async def test_the_way_back_includes_files_that_an_earlier_run_left(clock: MockClock, host: Any) -> None:
    target = host.out / "combined.pem"
    items = [CopyAction(id="c", ob_id=1, sources=("combined.pem",), targets=(str(target),)), *reload(1)]
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    service.certificate = service.key = target
    await host.deliver(1, items=items)
    good, before = host.live(1), target.read_bytes()
    await crashed(host, RELOAD, items)
    await host.installer.recover()
    assert target.read_bytes() != before and leftovers(host) == []
    service.refuses.add(host.live(1))
    assert kinds(await host.installer.converge((), items)) == {1: ROLLED_BACK}
    assert (host.live(1), service.served, target.read_bytes()) == (good, good, before)
    host.clock += 7200
    assert kinds(await host.installer.converge((), items)) == {1: ROLLED_BACK}
    assert (host.live(1), service.served, target.read_bytes()) == (good, good, before)


async def test_certificates_that_are_not_here_get_no_records(clock: MockClock, host: Any) -> None:
    """Items may name a certificate that was never delivered; a refusal or a failure about it is not its own."""
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
    assert kinds(await host.installer.converge((), items)) == {1: APPLIED}
    assert list(host.installer.records) == [1] == list(host.start().records)


async def test_a_crash_while_going_back_reloads_the_old_pair(clock: MockClock, host: Any) -> None:
    items = reload(1)
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    await host.deliver(1, items=items)
    good, taken = host.live(1), service.reload
    steps: list[int] = []

    async def reload_then_die() -> int:
        steps.append(1)
        if len(steps) == 1:
            await taken()  # the new one is in service,
            return 1  # and yet it is called a failure
        raise PowerCut

    host.proc.does[RELOAD] = reload_then_die
    with pytest.raises(BaseExceptionGroup):
        await host.deliver(1, items=items)
    assert host.live(1) == good != service.served
    host.proc.does[RELOAD] = taken
    service.refuses.add(service.served)
    host.start()
    await host.installer.recover()
    assert kinds(await host.installer.converge((), items)) == {1: ROLLED_BACK}, "staged, so it is tried once more"
    assert service.served == good == host.live(1)


async def test_markers_go_before_the_old_pair_comes_back(clock: MockClock, host: Any) -> None:
    """Else a crash between the way back and its reload would leave the new pair in service for ever."""
    items = reload(1)
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    await host.deliver(1, items=items)
    marks = dict(host.installer._site.book.activations)
    service.broken = True
    real, seen = host.installer._site.generations.switch, list[dict[str, str]]()

    def switch(to: dict[str, str]) -> Any:
        seen.append(StateStore(host.layout, host.fs).load_activations())
        return real(to)

    host.installer._site.generations.switch = switch
    await host.deliver(1, items=items)
    assert seen == [marks, {}]


async def test_what_is_live_without_a_record_gets_one(clock: MockClock, host: Any) -> None:
    await host.deliver(1, 2)
    host.layout.certificates.unlink()
    host.start()
    await host.installer.recover()
    assert {n: record.fingerprint_sha256 for n, record in host.installer.records.items()} == {
        n: host.live(n) for n in (1, 2)
    }


async def test_a_generation_that_cannot_be_read_counts_as_absent_and_holds_up_nobody(
    clock: MockClock, host: Any
) -> None:
    items = [
        CopyAction(id=f"c{n}", ob_id=n, sources=("combined.pem",), targets=(str(host.out / f"{n}"),)) for n in (1, 2)
    ]
    await host.deliver(1, 2, items=items)
    record = host.installer.records[1]
    (host.layout.generation(record.name, record.generation) / "manifest.json").write_bytes(b"\0\0\0")
    (host.out / "2").unlink()
    host.start()
    await host.installer.recover()
    outcomes = await host.installer.converge((), items)
    assert (outcomes[1].kind, outcomes[2].kind) == (FAILED, APPLIED)
    assert host.installer.records[1].generation == ""
    assert kinds(await host.deliver(1, items=items)) == {1: APPLIED}
    assert host.live(1)


# --- windows and holds --------------------------------------------------------------------------------------------


def night(host: Any) -> None:
    hour = int(host.clock // 3600) % 24
    host.allow(window=MaintenanceWindow(from_=f"{(hour + 2) % 24:02}:00", to=f"{(hour + 3) % 24:02}:00"))


async def test_new_material_waits_staged_for_the_window(clock: MockClock, host: Any) -> None:
    items = reload(1)
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    night(host)
    assert kinds(await host.deliver(1, items=items)) == {1: APPLIED}, "a first delivery has nothing to disturb"
    old = host.live(1)
    outcome = (await host.deliver(1, items=items))[1]
    assert outcome.kind is APPLIED and "waits for the window" in outcome.detail
    assert host.live(1) == old == service.served
    record = host.start().records[1]
    assert record.staged and record.staged != record.generation, "staged and durable"
    assert list((await host.installer.plan(items)).held) == [1]
    opening = host.installer.next_window()
    assert 3600 <= opening - host.clock <= 7200
    assert (await host.installer.converge_all(items)).kind is APPLIED and host.live(1) == old
    host.clock = opening
    assert kinds(await host.installer.converge((), items)) == {1: APPLIED}
    assert host.live(1) == service.served != old
    assert host.installer.records[1].staged == "" and host.installer.next_window() is None


async def test_apply_now_ignores_the_window(clock: MockClock, host: Any) -> None:
    await host.deliver(1)
    night(host)
    await host.deliver(1)
    old = host.live(1)
    assert (await host.installer.converge_all((), ignore_window=True)).kind is APPLIED
    assert host.live(1) != old


async def test_rollback_by_hand_holds_until_released(clock: MockClock, host: Any) -> None:
    items = reload(1)
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    for _ in range(2):
        await host.deliver(1, items=items)
        host.clock += 60
    old, new = host.installer._site.generations.ids("c1.example")
    outcome = await host.installer.rollback("c1.example", None, items)
    assert outcome.kind is APPLIED
    assert host.installer.records[1].generation == old and service.served == host.live(1)
    renewed = (await host.deliver(1, items=items))[1]
    assert "held" in renewed.detail and host.installer.records[1].generation == old
    assert (await host.installer.converge_all(items)).kind is APPLIED, "nothing but the hold to tell"
    assert host.installer.records[1].generation == old
    await host.installer.release("c1.example")
    assert kinds(await host.installer.converge((), items)) == {1: APPLIED}
    assert host.installer.records[1].generation not in (old, new)
    assert service.served == host.live(1)
    assert (await host.installer.rollback("c1.example", new, items)).kind is APPLIED
    assert host.installer.records[1].generation == new


async def test_rollback_that_does_not_serve_stays_where_it_was(clock: MockClock, host: Any) -> None:
    items = reload(1)
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    await host.deliver(1, items=items)
    service.refuses.add(host.live(1))
    await host.deliver(1, items=items)
    now = host.live(1)
    assert (await host.installer.rollback("c1.example", None, items)).kind is ROLLED_BACK
    record = host.installer.records[1]
    assert (host.live(1), service.served, record.held, record.staged) == (now, now, False, "")


async def test_rollback_to_nothing_is_a_usage_error(clock: MockClock, host: Any) -> None:
    await host.deliver(1)
    with pytest.raises(UsageError, match="no earlier generation"):
        await host.installer.rollback("c1.example", None, ())
    with pytest.raises(UsageError, match="has no generation"):
        await host.installer.rollback("c1.example", "../../x", ())
    with pytest.raises(UsageError, match="no certificate"):
        await host.installer.rollback("other", None, ())
    with pytest.raises(UsageError, match="no certificate"):
        await host.installer.release("other")
    assert not host.installer.records[1].held


async def test_previous_generations_are_kept_and_older_ones_go(clock: MockClock, host: Any) -> None:
    for _ in range(6):
        await host.deliver(1)
    assert len(host.installer._site.generations.ids("c1.example")) == 1 + host.config.application.keep_generations


# --- taking out of use --------------------------------------------------------------------------------------------


def with_copies(host: Any) -> list[InstallItem]:
    host.allow(commands=commands(RELOAD))
    return [
        CopyAction(
            id="c", ob_id=1, sources=("private.key", "fullchain.pem"),
            targets=(str(host.out / "a.key"), str(host.out / "a.pem")),
        ),
        ExecAction(id="r", cmd_argv=RELOAD, depends_on=("c",)),
    ]  # fmt: skip


async def test_a_revoked_certificate_is_removed_everywhere_and_its_commands_run(clock: MockClock, host: Any) -> None:
    items = with_copies(host)
    await host.deliver(1, 2, items=items)
    outcome = await host.installer.withdraw(1, revoked=True, items=items)
    assert (outcome.kind, outcome.detail) == (APPLIED, "removed")
    assert host.proc.calls == [RELOAD, RELOAD]
    assert list(host.out.iterdir()) == []
    assert not (host.layout.certs / "c1.example.key").is_symlink()
    assert host.installer._site.generations.ids("c1.example") == []
    assert host.live(2)
    record = host.start().records[1]
    assert (record.stage, record.generation) == (Stage.WITHDRAWN, "")
    assert (await host.installer.withdraw(1, revoked=True, items=items)).kind is UNCHANGED
    assert (await host.installer.converge_all(items)).kind is UNCHANGED
    assert kinds(await host.deliver(1, items=items)) == {1: APPLIED}, "and it may come back"


async def test_what_somebody_else_put_there_is_not_removed(clock: MockClock, host: Any) -> None:
    items = with_copies(host)
    await host.deliver(1, items=items)
    (host.out / "a.pem").write_bytes(b"the operator's own")
    outcome = await host.installer.withdraw(1, revoked=False, items=items)
    assert outcome.kind is FAILED and "is not the file that was put there" in outcome.detail
    assert [path.name for path in host.out.iterdir()] == ["a.pem"]
    assert host.installer.records[1].stage is Stage.WITHDRAWN


async def test_a_copy_of_a_revoked_key_that_cannot_be_read_is_not_taken_for_gone(clock: MockClock, host: Any) -> None:
    items = with_copies(host)
    await host.deliver(1, items=items)
    real = host.fs

    def unreadable(path: Any, at: Any = None) -> Any:
        if path == "a.key":
            raise DiskError("Input/output error", path=path, errno=5)
        return real.open_file(path, at=at)

    host.fs = ScriptedFs(real)
    host.fs.open_file = unreadable
    for _ in range(2):
        assert (await host.start().withdraw(1, revoked=True, items=items)).kind is FAILED
    host.fs = real
    assert (await host.start().withdraw(1, revoked=True, items=items)).kind is APPLIED
    assert list(host.out.iterdir()) == []


async def test_a_huge_foreign_file_in_a_copys_place_holds_up_no_removal(clock: MockClock, host: Any) -> None:
    items = with_copies(host)
    await host.deliver(1, items=items)
    with open(host.out / "a.key", "wb") as foreign:
        foreign.truncate(SIZE_LIMIT + 1)
    outcome = await host.installer.withdraw(1, revoked=True, items=items)
    assert outcome.kind is FAILED and "is not the file that was put there" in outcome.detail
    assert [path.name for path in host.out.iterdir()] == ["a.key"]
    assert host.installer.records[1].stage is Stage.WITHDRAWN


async def test_a_copy_that_may_no_longer_be_written_is_named_when_its_certificate_goes(
    clock: MockClock, host: Any
) -> None:
    items = with_copies(host)
    await host.deliver(1, items=items)
    host.allow(write_roots=[])
    outcome = await host.installer.withdraw(1, revoked=True, items=items)
    assert outcome.kind is FAILED and "below no directory of write_roots" in outcome.detail
    assert list(host.out.iterdir()) != []


async def test_a_removal_does_not_come_back_because_a_reload_fails(clock: MockClock, host: Any) -> None:
    items = with_copies(host)
    await host.deliver(1, items=items)
    host.proc.does[RELOAD] = lambda: 1
    outcome = await host.installer.withdraw(1, revoked=True, items=items)
    assert outcome.kind is FAILED and "exited with 1" in outcome.detail
    assert list(host.out.iterdir()) == []
    host.proc.does.clear()
    assert host.installer.records[1].attempts == 1
    await host.installer.converge_all(items)
    assert host.proc.calls == [RELOAD] * 3, "the reload was still owed"
    assert host.installer.records[1].attempts == 0
    await host.installer.converge_all(items)
    assert host.proc.calls == [RELOAD] * 3


async def test_a_placeholder_keeps_the_service_able_to_start(clock: MockClock, host: Any) -> None:
    items = with_copies(host)
    host.allow(on_revoked="placeholder")
    await host.deliver(1, items=items)
    revoked, not_before = host.live(1), host.installer.records[1].not_before
    assert (await host.installer.withdraw(1, revoked=True, items=items)).kind is APPLIED
    assert host.live(1) != revoked
    assert (host.out / "a.key").read_bytes() == (host.layout.certs / "c1.example.key").read_bytes()
    assert len(host.installer._site.generations.ids("c1.example")) == 1, "the revoked key is gone"
    assert host.installer.records[1].not_before <= not_before, "any renewal counts as newer"
    assert (await host.installer.withdraw(1, revoked=True, items=items)).kind is UNCHANGED
    assert kinds(await host.deliver(1, items=items)) == {1: APPLIED}


async def test_a_revoked_key_that_was_left_beside_its_placeholder_goes_the_next_time(
    clock: MockClock, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by kill -9: with the placeholder in place the next run saw nothing to do."""
    items = [ExecAction(id="r", ob_id=1, cmd_argv=RELOAD)]
    host.allow(on_revoked="placeholder", commands=commands(RELOAD))
    await host.deliver(1, items=items)
    host.proc.calls.clear()

    def refuse(*_: Any, **__: Any) -> int:
        raise DiskError("cannot remove", path="/x", errno=errno.EIO, fix="check the disk")

    with monkeypatch.context() as patch:
        patch.setattr(host.installer._site.generations, "prune", refuse)
        assert (await host.installer.withdraw(1, revoked=True, items=items)).kind is FAILED
    assert len(host.installer._site.generations.ids("c1.example")) == 2
    host.start()
    await host.installer.recover()
    assert (await host.installer.withdraw(1, revoked=True, items=items)).kind is APPLIED
    assert len(host.installer._site.generations.ids("c1.example")) == 1
    assert host.proc.calls == [RELOAD]
    assert (await host.installer.withdraw(1, revoked=True, items=items)).kind is UNCHANGED


async def test_a_placeholder_stays_although_its_service_does_not_like_it(clock: MockClock, host: Any) -> None:
    items = reload(1)
    host.allow(commands=commands(RELOAD), on_revoked="placeholder")
    service = host.serve(RELOAD, 1, 1001)
    await host.deliver(1, items=items)
    revoked = host.live(1)
    service.broken = True
    assert (await host.installer.withdraw(1, revoked=True, items=items)).kind is FAILED
    assert host.live(1) != revoked
    assert len(host.installer._site.generations.ids("c1.example")) == 1


async def test_keep_keeps(clock: MockClock, host: Any) -> None:
    host.allow(on_revoked="keep")
    await host.deliver(1)
    before = host.live(1)
    assert (await host.installer.withdraw(1, revoked=True, items=())).kind is APPLIED
    assert host.live(1) == before
    assert (await host.installer.withdraw(1, revoked=False, items=())).kind is APPLIED
    assert host.installer.records[1].stage is Stage.WITHDRAWN, "unassigned is another matter"


# --- names --------------------------------------------------------------------------------------------------------


async def test_two_certificates_for_one_domain_get_two_names(clock: MockClock, host: Any) -> None:
    name_for = host.installer.name_for
    assert [name_for(1, ("a.example",)), name_for(2, ("a.example",)), name_for(1, ("a.example",))] == [
        "a.example", "a.example-2", "a.example",
    ]  # fmt: skip
    await host.deliver(3)
    assert name_for(4, ("c3.example",)) == "c3.example-4"
    assert name_for(3, ("renamed.example",)) == "c3.example", "paths stay"
    await host.installer.withdraw(3, revoked=False, items=())
    assert name_for(5, ("c3.example",)) == "c3.example"
    assert name_for(6, ()) == "certificate-6"


# --- alerts -------------------------------------------------------------------------------------------------------


async def test_alerts_reach_the_operators_command_as_a_file(clock: MockClock, host: Any) -> None:
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


async def test_what_a_killed_writer_left_in_the_state_is_removed_at_start(clock: MockClock, host: Any) -> None:
    left = [place / ".access_token.txt.00ff.tmp" for place in (host.layout.state, host.layout.keys)]
    for path in left:
        path.write_bytes(b"half a secret")
    host.start()
    await host.installer.recover()
    assert not [path for path in left if path.exists()]


async def test_a_disk_that_fails_for_good_at_the_switch_is_an_outcome(
    clock: MockClock, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by failing every syscall from one on: the second failure went through everybody and ended the daemon."""

    def refuse(*_: Any, **__: Any) -> None:
        raise DiskError("cannot write: No space left on device", path="/x", errno=errno.ENOSPC, fix="free space")

    prepared = [await host.installer.stage(host.bundle(1), ())]
    with monkeypatch.context() as patch:
        patch.setattr(RealFs, "symlink", refuse)
        patch.setattr(RealFs, "create", refuse)
        assert kinds(await host.installer.converge(prepared, ())) == {1: FAILED}
    assert kinds(await host.installer.converge(prepared, ())) == {1: APPLIED}
