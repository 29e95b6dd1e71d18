"""Deployments through the root helper: written, rolled back, withdrawn and recovered like the agent's own copies."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from helper_world import Direct, direct, rule, write_policy
from install_host import APPLIED, FAILED, ROLLED_BACK, Host, commands, kinds, leftovers
from recording import Recording
from trio.testing import MockClock

from certctrl.errors import DiskError
from certctrl.helper.client import HelperClient
from certctrl.install.plan.render import plan_lines
from certctrl.model.plan import CopyAction, ExecAction, InstallItem, VerifyTls, WriteMethod
from certctrl.store.deployments import journal
from certctrl.store.deployments.file_set import FileSet, FileWrite
from certctrl.store.deployments.recovery import recover
from certctrl.store.disk.fs import RealFs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
NOBODY = 65534
RELOAD = ("/usr/bin/systemctl", "reload", "web.service")


@attrs.define
class Helped:
    """A host whose copies go through the root helper, and a service that reads them."""

    host: Host
    direct: Direct
    units: Recording
    key: Path
    chain: Path

    @property
    def items(self) -> list[InstallItem]:
        verify = VerifyTls(host="127.0.0.1", port=1001)
        return [self.copy(), ExecAction(id="r", cmd_argv=RELOAD, depends_on=("c",), verify=verify)]

    def copy(self, **more: Any) -> CopyAction:
        return CopyAction(
            id="c", ob_id=1, sources=("private.key", "fullchain.pem"), targets=(str(self.key), str(self.chain)), **more
        )

    def files(self) -> tuple[bytes, bytes]:
        return self.key.read_bytes(), self.chain.read_bytes()


@pytest.fixture
def helped(host: Host, tmp_path: Path) -> Helped:
    units = Recording()
    key, chain = host.out / "a.key", host.out / "a.pem"
    entry = {
        "files": [rule(key, str(NOBODY), str(NOBODY)), rule(host.out / "*.pem", mode="0640")],
        "units": {"web.service": ["reload"]},
    }
    made = direct(policy=write_policy(tmp_path / "helper.json", entry), units=units)
    host.helper = made.client
    host.allow(commands=commands(RELOAD), write_roots=(str(host.out),))
    host.start()
    service = host.serve(RELOAD, 1, 1001)
    service.certificate, service.key = chain, key
    real = units.act

    def act(verb: str, unit: str) -> None:
        real(verb, unit)
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes

        if not chain.exists():
            return
        leaf = x509.load_pem_x509_certificates(chain.read_bytes())[0].fingerprint(hashes.SHA256()).hex()
        service.reloads += 1
        service.served = leaf if leaf not in service.refuses else service.served

    units.act = act  # type: ignore[method-assign]
    return Helped(host, made, units, key, chain)


async def test_files_get_their_owner_and_units_are_reloaded(helped: Helped) -> None:
    host = helped.host
    assert kinds(await host.deliver(1, items=helped.items)) == {1: APPLIED}
    key, chain = helped.key.stat(), helped.chain.stat()
    assert (key.st_uid, key.st_gid, stat.S_IMODE(key.st_mode)) == (NOBODY, NOBODY, 0o600)
    assert (chain.st_uid, stat.S_IMODE(chain.st_mode)) == (0, 0o640)
    assert helped.units.calls == [("reload", "web.service")] and not host.proc.calls
    assert not leftovers(host)
    asked = [row["request"] for row in helped.direct.audit if row["request"] not in ("rules", "inspect")]
    assert asked == ["stage", "stage", "put", "put", "reload", "drop", "drop"]
    assert kinds(await host.deliver(1, items=helped.items)) == {1: APPLIED}, "a renewal"
    again = await host.installer.converge_all(helped.items)
    assert again.kind.value == "unchanged"


async def test_a_refused_renewal_restores_the_old_files(helped: Helped, autojump_clock: MockClock) -> None:
    host = helped.host
    await host.deliver(1, items=helped.items)
    before = helped.files(), helped.key.stat().st_uid
    service = host.served["127.0.0.1", 1001]
    prepared = await host.installer.stage(host.bundle(1), helped.items)
    service.refuses = {prepared.facts.fingerprint_sha256}
    assert kinds(await host.installer.converge([prepared], helped.items)) == {1: ROLLED_BACK}
    assert (helped.files(), helped.key.stat().st_uid) == before
    assert not leftovers(host)


async def test_an_earlier_file_of_the_operator_is_restored_with_the_rights_of_the_rule(
    helped: Helped, autojump_clock: MockClock
) -> None:
    host = helped.host
    await host.deliver(1, items=[])
    helped.key.write_bytes(b"operator's key")
    helped.chain.write_bytes(b"operator's chain")
    helped.key.chmod(0o640)
    helped.units.fault = "systemctl reload web.service exited with 1: broken"
    outcomes = await host.deliver(1, items=helped.items)
    assert kinds(outcomes) == {1: ROLLED_BACK} and "exited with 1: broken" in str(outcomes[1].detail)
    assert helped.files() == (b"operator's key", b"operator's chain")
    assert (helped.key.stat().st_uid, stat.S_IMODE(helped.key.stat().st_mode)) == (NOBODY, 0o600)
    assert not leftovers(host)


async def test_files_stay_if_the_helper_refuses_their_directory(helped: Helped) -> None:
    host = helped.host
    await host.deliver(1, items=helped.items)
    before, live = helped.files(), host.live(1)
    os.chown(host.out, NOBODY, NOBODY)
    outcomes = await host.deliver(1, items=helped.items)
    assert (helped.files(), host.live(1) == live) == (before, False), "the copies are refused, the rest is deployed"
    plan = await host.installer.plan(helped.items)
    assert ["belongs to user 65534" in one.why for one in plan.refusals] == [True]
    os.chown(host.out, 0, 0)
    assert kinds(outcomes) == {1: FAILED} and "belongs to user 65534" in outcomes[1].detail
    assert kinds(await host.deliver(1, items=helped.items)) == {1: APPLIED}


def failing(helped: Helped, verb: str, times: int = 1) -> None:
    """Have the helper die at the next requests of one kind."""
    asked = helped.direct.ask
    left = times

    def ask(request: Any, data: bytes | None, seconds: float) -> Any:
        nonlocal left
        if request.do == verb and left:
            left -= 1
            raise DiskError("the root helper ended before it answered", errno=32, fix="look")
        return asked(request, data, seconds)

    helped.host.helper = HelperClient(ask)
    helped.host.start()


@pytest.mark.parametrize("verb", ["stage", "put", "drop"])
async def test_a_helper_that_dies_once_costs_a_try(helped: Helped, verb: str) -> None:
    host = helped.host
    await host.deliver(1, items=helped.items)
    before = helped.files()
    failing(helped, verb)
    kind = kinds(await host.deliver(1, items=helped.items))[1]
    assert kind is {"stage": FAILED, "put": ROLLED_BACK, "drop": APPLIED}[verb]
    assert (helped.files() == before) is (verb != "drop")
    await host.installer.clear_up()
    assert kinds(await host.deliver(1, items=helped.items)) == {1: APPLIED}
    assert not leftovers(host)


async def test_a_helper_that_is_gone_during_a_rollback_is_waited_for(helped: Helped, autojump_clock: MockClock) -> None:
    host = helped.host
    await host.deliver(1, items=helped.items)
    before = helped.files()
    failing(helped, "restore", 99)
    helped.units.fault = "no"
    assert kinds(await host.deliver(1, items=helped.items)) == {1: FAILED}
    assert helped.files() != before and list(host.layout.journal.iterdir()), "the journal stays"
    helped.units.fault = ""
    host.helper = helped.direct.client
    host.start()
    await host.installer.recover()
    assert not leftovers(host)
    assert len(set(map(len, (os.listdir(host.out),)))) == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"owner": "root"}, "wants owner root"),
        ({"group": "root"}, "wants group root"),
        ({"mode": 0o640}, "wants mode 0640"),
        ({"write": WriteMethod.IN_PLACE}, "writes no file in place"),
    ],
)
async def test_an_item_that_wants_other_rights_is_refused(helped: Helped, change: dict[str, Any], why: str) -> None:
    await helped.host.deliver(1, items=[])
    plan = await helped.host.installer.plan([helped.copy(**change)])
    assert [why in one.why for one in plan.refusals] == [True]
    assert not helped.key.exists()


async def test_a_key_is_never_given_open_rights(helped: Helped) -> None:
    await helped.host.deliver(1, items=[])
    item = CopyAction(id="c", ob_id=1, sources=("combined.pem",), targets=(str(helped.host.out / "x.pem"),))
    write_policy(helped.direct.requests._policy, {"files": [rule(helped.host.out / "*.pem", mode="0644")]})
    plan = await helped.host.installer.plan([item])
    assert ["at most 0640" in one.why for one in plan.refusals] == [True]


async def test_the_plan_names_what_the_helper_writes(helped: Helped) -> None:
    await helped.host.deliver(1, items=[])
    lines = "\n".join(str(line) for line in plan_lines(await helped.host.installer.plan(helped.items)))
    assert str(helped.key) in lines and "0600" in lines


async def test_withdrawn_files_are_removed(helped: Helped) -> None:
    host = helped.host
    await host.deliver(1, items=helped.items)
    host.served["127.0.0.1", 1001].served = ""
    await host.installer.withdraw(1, revoked=True, items=helped.items)
    assert os.listdir(host.out) == []
    assert "remove" in [row["request"] for row in helped.direct.audit]


async def test_revoked_files_behind_an_unsafe_directory_do_not_count_as_removed(helped: Helped) -> None:
    host = helped.host
    await host.deliver(1, items=helped.items)
    host.served["127.0.0.1", 1001].served = ""
    os.chown(host.out, NOBODY, NOBODY)
    outcome = await host.installer.withdraw(1, revoked=True, items=helped.items)
    assert helped.key.exists() and str(helped.key) in outcome.detail and "belongs to user 65534" in outcome.detail


async def test_units_that_the_helper_does_not_name_are_commands_as_before(helped: Helped) -> None:
    other = ("/usr/bin/systemctl", "reload", "other.service")
    helped.host.allow(commands=commands(other))
    items = [ExecAction(id="r", ob_id=1, cmd_argv=other)]
    assert kinds(await helped.host.deliver(1, items=items)) == {1: APPLIED}
    assert helped.host.proc.calls == [other]


async def test_without_an_answer_of_the_helper_the_agent_does_what_it_can(helped: Helped) -> None:
    failing(helped, "rules", 99)
    host = helped.host
    outcomes = await host.deliver(1, items=helped.items)
    assert outcomes[1].ok and helped.key.stat().st_uid == 0, "this agent is root; another one would fail, and try again"


async def test_a_crash_between_any_two_requests_is_recovered(helped: Helped) -> None:
    """The agent is killed before each request of a renewal in turn."""

    class Killed(BaseException):
        """kill -9, as far as the agent can notice it."""

    host = helped.host
    await host.deliver(1, items=helped.items)
    total = await requests_of(helped, lambda: host.deliver(1, items=helped.items))
    for number in range(total):
        before = helped.files()
        asked, count = helped.direct.ask, 0

        def ask(request: Any, data: bytes | None, seconds: float, number: int = number, asked: Any = asked) -> Any:
            nonlocal count
            if request.do in ("rules", "inspect"):
                return asked(request, data, seconds)
            if count >= number:
                raise Killed
            count += 1
            return asked(request, data, seconds)

        host.helper = HelperClient(ask)
        host.start()
        try:
            await host.deliver(1, items=helped.items)
        except BaseException as error:
            assert isinstance(error, Killed) or (isinstance(error, BaseExceptionGroup) and error.subgroup(Killed))
        host.helper = helped.direct.client
        host.start()
        await host.installer.recover()
        assert not leftovers(host), number
        key, chain = helped.files()
        assert (key == before[0]) is (chain == before[1]), f"a mixed pair after {number}"
        assert (await host.installer.converge_all(helped.items)).ok
        assert not leftovers(host)


def test_a_rule_that_changed_during_a_crash_leaves_a_pair(helped: Helped, tmp_path: Path) -> None:
    """The file that the agent writes itself must not be new while the helper's stays old."""
    host, key, chain = helped.host, helped.key, helped.host.out / "own"
    layout, fs, helper = host.layout, RealFs(), helped.direct.client

    def begun(data: bytes) -> FileSet:
        mine = FileWrite(path=chain, data=data, mode=0o644, uid=0, gid=0)
        theirs = FileWrite(path=key, data=data, mode=0o600, uid=NOBODY, gid=NOBODY, helper=True)
        files = FileSet(layout, fs, helper=helper)
        files.begin([mine, theirs])
        return files

    first = begun(b"1")
    first.commit()
    first.close()
    begun(b"2")
    (one,) = journal.journals(fs, layout)
    one.arm()
    write_policy(tmp_path / "helper.json", {"files": [rule(key, str(NOBODY), str(NOBODY), mode="0640")]})
    report = recover(layout, fs, [str(host.out)], helper=helper)
    assert (report.failed, set(report.rolled_back)) == ((), {str(chain), str(key)})
    assert (chain.read_bytes(), key.read_bytes()) == (b"1", b"1")
    assert sorted(os.listdir(host.out)) == ["a.key", "own"] and not journal.journals(fs, layout)


async def requests_of(helped: Helped, act: Callable[[], Any]) -> int:
    before = len(helped.direct.audit)
    await act()
    return sum(row["request"] not in ("rules", "inspect") for row in helped.direct.audit[before:])
