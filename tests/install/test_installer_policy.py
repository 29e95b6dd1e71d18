"""The host's policy: refusals name the line that allows them, and alerts reach the operator's command."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import attrs
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from install_host import APPLIED, CHECK, FAILED, OTHER, RELOAD, ROLLED_BACK, Host, commands, kinds, leftovers
from trio.testing import MockClock

from certctrl.errors import CommandError, PolicyRefusedError, ProbeError, ProbeFault
from certctrl.install.plan.render import plan_lines
from certctrl.install.probe.looked import Look
from certctrl.model.certificate import KeyKind, Wanted
from certctrl.model.plan import CopyAction, ExecAction, InstallItem, VerifyTls
from certctrl.model.policy import HostPolicy, NamedCommand, TrustStore
from certctrl.model.records import Stage
from certctrl.store.disk.path_walk import steps_to

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
    assert not await host.installer.unfinished(items), "it has been reported"
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


async def test_a_plan_examines_the_program_of_many_commands_once(
    clock: MockClock, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    walked: list[str] = []
    monkeypatch.setattr("certctrl.install.process.vetting.steps_to", lambda path: walked.append(path) or steps_to(path))
    argvs = [("/bin/true", str(n)) for n in range(5)]
    host.allow(commands=commands(*argvs))
    await host.installer.plan([ExecAction(id=f"r{n}", ob_id=1, cmd_argv=argv) for n, argv in enumerate(argvs)])
    assert walked == ["/bin/true"]


async def test_remote_commands_off_does_not_apply_to_local_items(clock: MockClock, host: Host) -> None:
    items = [ExecAction(id="p", ob_id=1, cmd_argv=RELOAD), ExecAction(id="local:o", ob_id=1, cmd_argv=OTHER)]
    host.allow(commands=commands(RELOAD), remote_commands="off")
    outcome = (await host.deliver(1, items=items))[1]
    assert outcome.kind is FAILED and '"remote_commands": "on"' in outcome.detail
    assert host.proc.calls == [OTHER]


def test_the_policies_of_the_tests_are_valid_files() -> None:
    assert HostPolicy().commands == {}
    assert attrs.fields_dict(HostPolicy)["remote_commands"].default == "on"


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


# --- what is probed -----------------------------------------------------------------------------------------------


class NotingProbe:
    """A probe that records its calls, and fails on request."""

    def __init__(self) -> None:
        self.asked: list[tuple[VerifyTls, dict[str, KeyKind | None], bool]] = []
        self.fails: ProbeError | None = None

    async def probe(self, verify: VerifyTls, wanted: Wanted, *, deadline: float, anywhere: bool = False) -> None:
        self.asked.append((verify, dict(wanted), anywhere))
        if self.fails is not None:
            raise self.fails

    async def after_removal(
        self, verify: VerifyTls, fingerprint: str, *, deadline: float, anywhere: bool = False
    ) -> tuple[bool, str]:
        self.asked.append((verify, {fingerprint: None}, anywhere))
        return False, ""

    async def is_down(self, host: str, port: int) -> bool:
        return False

    async def look(self, verify: VerifyTls, wanted: Wanted, *, anywhere: bool = False) -> Look:
        self.asked.append((verify, dict(wanted), anywhere))
        return Look(fault=self.fails.fault) if self.fails is not None else Look(right=frozenset(wanted))


@pytest.fixture
def probe(host: Host) -> NotingProbe:
    noting = NotingProbe()
    host.probe = noting
    host.allow(commands=commands(RELOAD))
    host.start()
    return noting


def reload_of(*certs: int, item: str = "r", where: str = "www.example") -> list[InstallItem]:
    verify = VerifyTls(host=where, port=443)
    return [ExecAction(id=f"{item}{n}", ob_id=n, cmd_argv=RELOAD, verify=verify) for n in certs]


async def test_the_probe_gets_the_kinds_of_keys(
    clock: MockClock, host: Host, probe: NotingProbe, an_rsa_key: rsa.RSAPrivateKey
) -> None:
    made = [host.bundle(1, "c1.example", key=an_rsa_key), host.bundle(2)]
    items = [ExecAction(id="r", cmd_argv=RELOAD, verify=VerifyTls(host="127.0.0.1", port=443))]
    prepared = [await host.installer.stage(bundle, items) for bundle in made]
    assert kinds(await host.installer.converge(prepared, items)) == {1: APPLIED, 2: APPLIED}
    rsa_leaf, ec_leaf = (bundle.facts.fingerprint_sha256 for bundle in made)
    assert [wanted for _, wanted, _ in probe.asked] == [{rsa_leaf: KeyKind.RSA, ec_leaf: KeyKind.ECDSA}]


async def test_only_the_operator_aims_the_probe_elsewhere(clock: MockClock, host: Host, probe: NotingProbe) -> None:
    async def aimed(item: str, where: str, *allowed: str) -> list[bool]:
        host.allow(probe=allowed)
        probe.asked.clear()
        items = reload_of(1, item=item, where=where)
        await host.deliver(1, items=items)
        await host.installer.withdraw(1, revoked=False, items=items)
        return [anywhere for _, _, anywhere in probe.asked]

    assert await aimed("r", "www.example") == [False, False]
    assert await aimed("r", "www.example", "other.example", "www.example:444") == [False, False]
    assert await aimed("r", "www.example", "www.example") == [True, True]
    assert await aimed("r", "www.example", "WWW.example:443") == [True, True]
    assert await aimed("r", "2001:db8::1", "[2001:db8::1]:443") == [True, True]
    assert await aimed("r", "2001:db8::1", "2001:db8::1") == [True, True]
    assert await aimed("local:r", "www.example") == [True, True]


async def test_an_endpoint_elsewhere_is_reported_and_nothing_is_rolled_back(
    clock: MockClock, host: Host, probe: NotingProbe
) -> None:
    items = reload_of(1)
    await host.deliver(1, items=items)
    fix = 'to allow it, policy.json needs "probe": ["www.example:443"]'
    probe.fails = ProbeError("canary", fault=ProbeFault.NOT_OURS, fix=fix)
    outcome = (await host.deliver(1, items=items))[1]
    assert outcome.kind is APPLIED
    assert outcome.detail == f"tolerated: item r1: not probed: www.example:443 is not an address of this host; {fix}"
    record = host.installer.records[1]
    assert record.failing and record.facts.fingerprint_sha256 == host.live(1) == outcome.deployed[0].fingerprint_sha256
    probe.fails = None
    assert (await host.installer.converge_all(items, due_now=True)).ok
    assert not host.installer.records[1].failing


async def test_the_plane_gets_the_class_of_a_failed_probe_and_the_log_the_rest(
    clock: MockClock, host: Host, probe: NotingProbe, caplog: pytest.LogCaptureFixture
) -> None:
    items = reload_of(1)
    await host.deliver(1, items=items)
    probe.fails = ProbeError("www.example:443: SSH-2.0-canary", fault=ProbeFault.NO_TLS)
    outcome = (await host.deliver(1, items=items))[1]
    assert outcome.kind is ROLLED_BACK
    assert "www.example:443 does not complete a TLS handshake" in outcome.detail
    assert "canary" not in outcome.detail + host.retry(1).last_error
    assert "SSH-2.0-canary" in caplog.text


@pytest.mark.parametrize("role", ["commands", "on_alert", "trust_store", "local item"])
@pytest.mark.parametrize("form", ["file", "bind mount", "missing"])
async def test_a_file_that_an_allowed_program_leads_to_is_not_overwritten(
    role: str, form: str, clock: MockClock, host: Host
) -> None:
    """The policy lists a link elsewhere; its target is below a write root."""
    program, target = host.root / "bin" / "reload", host.out / "reload-2.1"
    program.parent.mkdir()
    (host.root / "bin" / "current").symlink_to(target)
    if form == "bind mount":  # as if: the same device and inode under another name
        target.write_text("#!/bin/sh\n")
        program.hardlink_to(target)
    else:
        program.symlink_to("current")
    if form == "file":
        target.write_text("#!/bin/sh\n")
    argv = (str(program), "now")
    given: dict[str, Any] = {
        "commands": {"commands": {"r": NamedCommand(argv=argv)}},
        "on_alert": {"on_alert": argv},
        "trust_store": {"trust_store": TrustStore(directory="/x", command=argv)},
        "local item": {},
    }[role]
    host.allow(write_roots=(str(host.out),), **given)
    items: list[InstallItem] = [CopyAction(id="c", ob_id=1, sources=("fullchain.pem",), targets=(str(target),))]
    items += [ExecAction(id="local:r", ob_id=1, cmd_argv=argv)] if role == "local item" else []
    before = target.read_bytes() if target.exists() else None
    outcome = (await host.deliver(1, items=items))[1]
    assert f"it is the program of the allowed command {program}" in outcome.detail
    assert (target.read_bytes() if target.exists() else None) == before
    free = attrs.evolve(items[0], targets=(str(host.out / "reload-2.0"),))
    plan = await host.installer.plan([free])
    assert not plan.refusals


async def test_a_script_that_is_not_there_yet_is_not_written(clock: MockClock, host: Host) -> None:
    """The policy lists an interpreter with a link to a file below a write root, which may appear later."""
    link, target = host.root / "run.sh", host.out / "run-2.sh"
    link.symlink_to(target)
    host.allow(write_roots=(str(host.out),), commands=commands(("/bin/sh", str(link))))
    item = CopyAction(id="c", ob_id=1, sources=("fullchain.pem",), targets=(str(target),))
    assert "it is the program of the allowed command" in (await host.deliver(1, items=[item]))[1].detail
    assert not target.exists()


# --- files ---


async def test_each_file_of_an_item_gets_its_own_mode(clock: MockClock, host: Host) -> None:
    key, pem = host.out / "a.key", host.out / "a.pem"
    item = CopyAction(id="c", ob_id=1, sources=("private.key", "fullchain.pem"), targets=(str(key), str(pem)),
                      modes=(0o640, 0o604))  # fmt: skip
    assert (await host.deliver(1, items=[item]))[1].kind is APPLIED
    assert [stat.S_IMODE(path.stat().st_mode) for path in (key, pem)] == [0o640, 0o604]
    changed = attrs.evolve(item, modes=(0o600, None))
    assert (await host.installer.converge_all([changed])).ok
    assert [stat.S_IMODE(path.stat().st_mode) for path in (key, pem)] == [0o600, 0o604], "None: as it is"
    (refusal,) = (await host.installer.plan([attrs.evolve(item, modes=(0o644, 0o644))])).refusals
    assert "a private key at most 0640" in refusal.why
    absent = attrs.evolve(item, owners=("no-such-user", None), id="local:c")
    (refusal,) = (await host.installer.plan([absent])).refusals
    assert "no such user" in refusal.why


async def test_a_keystore_with_an_alias_is_copied(clock: MockClock, host: Host) -> None:
    names = ("bundle.pfx", "bundle.pfx?alias=tomcat", "bundle-legacy.pfx")
    targets = tuple(str(host.out / f"{number}.pfx") for number in range(3))
    items = [CopyAction(id="c", ob_id=1, sources=names, targets=targets)]
    assert (await host.deliver(1, items=items))[1].kind is APPLIED
    before = [Path(path).read_bytes() for path in targets]
    assert len(set(before)) == 3
    assert (await host.installer.converge_all(items)).ok
    assert [Path(path).read_bytes() for path in targets] == before, "unchanged material makes unchanged files"
    assert all(stat.S_IMODE(Path(path).stat().st_mode) == 0o600 for path in targets)
