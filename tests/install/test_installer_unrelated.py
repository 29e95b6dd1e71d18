"""A command that fails concerns the certificates that it is about, and no others."""

from __future__ import annotations

import attrs
import pytest
from install_host import APPLIED, FAILED, OTHER, RELOAD, ROLLED_BACK, Host, commands, kinds
from trio.testing import MockClock

from certctrl.model.plan import CopyAction, ExecAction, ImportCaAction, InstallItem, ObjectType
from certctrl.model.policy import TrustStore
from certctrl.model.records import Stage

NOTIFY = ("/bin/true", "notify")


def connected() -> list[InstallItem]:
    """Return a command for each of two certificates, and one for both, which makes them one group."""
    return [
        ExecAction(id="first", ob_id=1, cmd_argv=RELOAD),
        ExecAction(id="second", ob_id=2, cmd_argv=OTHER),
        ExecAction(id="both", cmd_argv=NOTIFY),
    ]


@pytest.fixture
async def pair(clock: MockClock, host: Host) -> Host:
    """Two certificates of one group, both in service."""
    host.allow(commands=commands(RELOAD, OTHER, NOTIFY))
    await host.deliver(1, 2, items=connected())
    assert {record.stage for record in host.installer.records.values()} == {Stage.ACTIVATED}
    return host


async def test_a_command_for_a_certificate_that_is_not_here_does_not_run(clock: MockClock, host: Host) -> None:
    host.allow(commands=commands(RELOAD, OTHER))
    host.proc.does[OTHER] = lambda: 1
    copies = [
        CopyAction(id=name, ob_name=of, sources=("fullchain.pem",), targets=(str(host.out / f"{name}.pem"),))
        for name, of in (("a", "c1.example"), ("b", "typo.example"))
    ]
    items: list[InstallItem] = [
        *copies,
        ExecAction(id="reload a", cmd_argv=RELOAD, depends_on=("a",)),
        ExecAction(id="reload b", cmd_argv=OTHER, depends_on=("b",)),
    ]
    for _ in range(2):
        assert kinds(await host.deliver(1, items=items)) == {1: APPLIED}
    assert host.proc.calls == [RELOAD, RELOAD]


async def test_a_pending_command_of_another_certificate_does_not_roll_back_a_renewal(pair: Host) -> None:
    items = [*connected(), ExecAction(id="later", ob_id=2, cmd_argv=(*OTHER, "later"))]
    pair.allow(commands=commands(RELOAD, OTHER, NOTIFY, (*OTHER, "later")))
    pair.proc.does[*OTHER, "later"] = lambda: 1
    before = pair.live(1)
    outcomes = await pair.deliver(1, items=items, due_now=True)
    assert kinds(outcomes) == {1: APPLIED, 2: FAILED}
    assert "item later" in outcomes[2].detail and "item later" not in outcomes[1].detail
    assert pair.live(1) == pair.installer.records[1].facts.fingerprint_sha256 != before
    assert pair.retry(1).attempts == 0
    assert (pair.retry(2).attempts, pair.installer.records[2].pending) == (1, ("later",))
    pair.proc.does.clear()
    pair.clock = pair.installer.retry_times()[2]
    assert kinds(await pair.installer.converge((), items)) == {2: APPLIED}


async def test_work_that_depends_on_the_failed_command_of_another_certificate_is_left(pair: Host) -> None:
    items = [
        *connected(),
        ExecAction(id="later", ob_id=2, cmd_argv=(*OTHER, "later")),
        ExecAction(id="last", ob_id=2, cmd_argv=(*OTHER, "last"), depends_on=("later",)),
        CopyAction(id="c", ob_id=2, sources=("chain.pem",), targets=(str(pair.out / "c.pem"),), depends_on=("later",)),
    ]
    pair.allow(commands=commands(RELOAD, OTHER, NOTIFY, (*OTHER, "later"), (*OTHER, "last")))
    pair.proc.does[*OTHER, "later"] = lambda: 1
    assert kinds(await pair.deliver(1, items=items)) == {1: APPLIED, 2: FAILED}
    assert (*OTHER, "last") not in pair.proc.calls
    assert not (pair.out / "c.pem").exists()


async def test_two_concurrent_renewals_if_one_command_fails(pair: Host) -> None:
    before = {1: pair.live(1), 2: pair.live(2)}
    pair.proc.does[OTHER] = lambda: int(pair.live(2) != before[2])
    outcomes = await pair.deliver(1, 2, items=connected())
    assert kinds(outcomes) == {1: APPLIED, 2: ROLLED_BACK}
    assert "item second" in outcomes[2].detail and "item second" not in outcomes[1].detail
    assert pair.live(1) == pair.installer.records[1].facts.fingerprint_sha256 != before[1]
    assert pair.live(2) == before[2]
    assert pair.retry(1).attempts == 0


async def test_a_stopped_service_does_not_mark_the_certificate_of_another(pair: Host) -> None:
    pair.proc.does[OTHER] = lambda: 1
    outcomes = await pair.deliver(1, 2, items=connected())
    assert kinds(outcomes) == {1: APPLIED, 2: ROLLED_BACK}
    assert "does not serve either" in outcomes[2].detail
    assert pair.retry(2).attempts == 1
    assert not pair.installer.records[1].failing and pair.retry(1).attempts == 0
    assert (await pair.deliver(1, items=connected()))[1].kind is APPLIED


async def test_a_failure_that_is_about_both_rolls_back_both(pair: Host) -> None:
    before = {1: pair.live(1), 2: pair.live(2)}
    pair.proc.does[NOTIFY] = lambda: 1
    assert set(kinds(await pair.deliver(1, 2, items=connected())).values()) == {ROLLED_BACK}
    assert {1: pair.live(1), 2: pair.live(2)} == before


def with_ca(host: Host) -> list[InstallItem]:
    """Return items for a certificate and a CA of one group: the same file is checked by a common command."""
    return [
        ExecAction(id="first", ob_id=1, cmd_argv=RELOAD),
        CopyAction(id="ca", ob_type=ObjectType.CA, ob_id=3, sources=("ca.pem",), targets=(str(host.out / "ca.pem"),)),
        ExecAction(id="trust", cmd_argv=OTHER, depends_on=("ca",)),
        ExecAction(id="both", cmd_argv=NOTIFY, depends_on=("first", "trust")),
    ]


@pytest.fixture
async def beside_a_ca(pair: Host) -> Host:
    """A certificate in service, in one group with a CA."""
    assert (await pair.installer.import_ca(3, "Private", str(pair.maker.issuer.chain_pem), with_ca(pair))).ok
    await pair.deliver(1, items=with_ca(pair))
    assert pair.installer.records[1].stage is Stage.ACTIVATED
    pair.proc.calls.clear()
    return pair


async def test_a_command_about_a_ca_does_not_roll_back_a_renewal(beside_a_ca: Host) -> None:
    host, later = beside_a_ca, (*OTHER, "later")
    host.allow(commands=commands(RELOAD, OTHER, NOTIFY, later))
    items = [*with_ca(host), ExecAction(id="later", cmd_argv=later, depends_on=("ca",))]
    items[3] = attrs.evolve(items[3], depends_on=("first", "ca"))
    host.proc.does[later] = lambda: 1
    outcomes = await host.deliver(1, items=items)
    assert kinds(outcomes) == {1: APPLIED, 0: FAILED}
    assert "item later" in outcomes[0].detail and host.retry(1).attempts == 0
    assert host.live(1) == host.installer.records[1].facts.fingerprint_sha256


async def test_a_ca_that_cannot_be_imported_does_not_roll_back_a_renewal(beside_a_ca: Host) -> None:
    host, store, update = beside_a_ca, beside_a_ca.out / "trust", ("/bin/true", "update")
    store.mkdir()
    host.allow(trust_store=TrustStore(directory=str(store), command=update))
    host.proc.does[update] = lambda: 1
    items = [*with_ca(host), ImportCaAction(id="import", ob_id=3)]
    outcomes = await host.deliver(1, items=items)
    assert kinds(outcomes) == {1: APPLIED, 0: FAILED}
    assert "CA 3 is not in the trust store" in outcomes[0].detail
    assert host.live(1) == host.installer.records[1].facts.fingerprint_sha256


def to_disk(host: Host, directory: str, cert_id: int) -> CopyAction:
    target = str(host.out / directory / "c.pem")
    return CopyAction(id=f"c{cert_id}", ob_id=cert_id, sources=("fullchain.pem",), targets=(target,))


async def test_a_file_that_cannot_be_written_delays_its_certificate_only(pair: Host) -> None:
    for name in ("good", "bad"):
        (pair.out / name).mkdir()
    items = [*connected(), to_disk(pair, "good", 1), to_disk(pair, "bad", 2)]
    await pair.deliver(1, 2, items=items)
    before = {1: pair.live(1), 2: pair.live(2)}
    pair.fill(pair.out / "bad")
    outcomes = await pair.deliver(1, 2, items=items)
    assert kinds(outcomes) == {1: APPLIED, 2: FAILED}
    assert pair.live(1) != before[1] and pair.live(2) == before[2]
    assert (pair.out / "good" / "c.pem").read_bytes() == (pair.layout.certs / "c1.example.crt").read_bytes()


async def test_a_file_of_another_certificate_that_cannot_be_written_delays_no_renewal(pair: Host) -> None:
    for name in ("good", "bad"):
        (pair.out / name).mkdir()
    pair.fill(pair.out / "bad")
    items = [*connected(), to_disk(pair, "good", 1), to_disk(pair, "bad", 2)]
    assert kinds(await pair.deliver(1, items=items)) == {1: APPLIED}
    assert kinds(await pair.installer.converge((), items)) == {2: FAILED}
    assert (pair.out / "good" / "c.pem").read_bytes() == (pair.layout.certs / "c1.example.crt").read_bytes()
    assert (pair.retry(1).attempts, pair.installer.records[1].failing) == (0, False)
    assert pair.installer.records[2].pending
