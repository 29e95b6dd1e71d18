"""The state that is removed with a certificate or CA, or with its predecessor, and the state that stays."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from bundle_maker import Issuer
from install_host import APPLIED, FAILED, RELOAD, UNCHANGED, Host, commands, kinds, reload
from trio.testing import MockClock

from certctrl.errors import CommandError, DiskError, StateCorruptError
from certctrl.install.deploy.results import Results
from certctrl.install.plan.retries import Failure
from certctrl.model.plan import CopyAction, ExecAction, InstallItem, ObjectType, OutcomeKind
from certctrl.model.policy import TrustStore
from certctrl.model.records import CertRecord, RetryKind, Stage, Standing


def keystores(host: Host) -> list[InstallItem]:
    targets = (str(host.out / "a.pfx"), str(host.out / "a.jks"))
    return [CopyAction(id="c", ob_id=1, sources=("bundle.pfx", "bundle.jks"), targets=targets)]


def passwords(host: Host) -> dict[str, str]:
    return {path.name: path.read_text() for path in host.layout.passwords.iterdir()}


async def changed(host: Host, **changes: Any) -> CertRecord:
    """Change the record of certificate 1, as its life could have left it."""
    await host.installer.update([attrs.evolve(host.installer.records[1], **changes)])
    return host.installer.records[1]


@pytest.mark.parametrize("revoked", [True, False])
async def test_a_withdrawn_certificate_leaves_no_password(clock: MockClock, host: Host, revoked: bool) -> None:
    items = keystores(host)
    await host.deliver(1, items=items)
    before = passwords(host)
    assert before.keys() == {"c1.example.pfx", "c1.example.jks"}
    others = [host.layout.passwords / name for name in ("c1.pfx", "c1.example.com.pfx", "c1.example+2.jks")]
    for path in others:
        path.write_text("another's")
    await host.installer.withdraw(1, revoked=revoked, items=items)
    assert passwords(host) == {path.name: "another's" for path in others}
    await host.deliver(1, items=items)
    after = passwords(host)
    assert all(after[name] != password for name, password in before.items()), "its successor gets new ones"


@pytest.mark.parametrize("revoked", [True, False])
@pytest.mark.parametrize("unassigned_at", [0.0, 5.0])
async def test_a_withdrawn_certificate_is_neither_held_nor_staged_nor_failing(
    clock: MockClock, host: Host, revoked: bool, unassigned_at: float
) -> None:
    await host.deliver(1)
    await host.deliver(1)
    await host.installer.rollback("c1.example", None, ())
    await host.deliver(1)
    before = await changed(
        host, pending=("reload",), last_outcome=FAILED, revoked=True, alarmed=True, unassigned_at=unassigned_at
    )
    assert before.held and before.staged
    failure = Failure(resource="cert:1", kind=RetryKind.REFUSED, error="nginx: bad")
    host.installer.retries.failed(failure)
    assert (await host.installer.withdraw(1, revoked=revoked, items=())).kind is APPLIED
    after = host.start().records[1]
    assert (after.stage, after.generation, after.activated, after.staged) == (Stage.WITHDRAWN, "", "", "")
    assert (after.held, after.pending, after.targets, after.failing) == (False, (), (), False)
    assert (after.revoked, after.alarmed) == (revoked, False), "a revocation is alerted, whatever was alerted before"
    assert after.standing is (Standing.UNASSIGNED if unassigned_at else Standing.KNOWN)
    assert host.retry(1).failures == 0
    assert kinds(await host.deliver(1)) == {1: APPLIED}
    successor = host.installer.records[1]
    assert (successor.revoked, successor.alarmed, successor.held, successor.generation != "") == (
        False,
        False,
        False,
        True,
    )


async def test_failures_before_a_withdrawal_do_not_count_for_it(clock: MockClock, host: Host) -> None:
    items = reload(1)
    host.allow(commands=commands(RELOAD))
    host.serve(RELOAD, 1, 1001)
    await host.deliver(1, items=items)
    for _ in range(3):
        host.installer.retries.failed(Failure(resource="cert:1", kind=RetryKind.REFUSED, error="the renewal"))
    host.proc.does[RELOAD] = lambda: 0  # it keeps serving the old one
    assert (await host.installer.withdraw(1, revoked=True, items=items)).kind is FAILED
    assert (host.retry(1).attempts, host.retry(1).failures) == (1, 1)
    assert "the renewal" not in host.retry(1).last_error


async def test_items_of_a_renewal_are_not_pending_for_its_withdrawal(clock: MockClock, host: Host) -> None:
    items = [CopyAction(id="c", ob_id=1, sources=("private.key",), targets=(str(host.out / "a.key"),))]
    await host.deliver(1, items=items)
    await changed(host, pending=("c",))
    host.allow(write_roots=[])
    assert (await host.installer.withdraw(1, revoked=True, items=items)).kind is FAILED, "the copy stays"
    assert host.installer.records[1].pending == ()


async def test_the_successor_of_a_placeholder_is_not_held(clock: MockClock, host: Host) -> None:
    host.allow(on_revoked="placeholder")
    for _ in range(2):
        await host.deliver(1)
    await host.installer.rollback("c1.example", None, ())
    await host.deliver(1)
    assert host.installer.records[1].held and host.installer.records[1].staged
    await host.installer.withdraw(1, revoked=True, items=())
    record, stand_in = host.installer.records[1], host.live(1)
    assert (record.held, record.staged, record.revoked, record.alarmed) == (False, "", True, False)
    await host.installer.record_alert(1)
    assert kinds(await host.deliver(1)) == {1: APPLIED}
    record = host.installer.records[1]
    assert host.live(1) != stand_in and (record.revoked, record.alarmed) == (False, False)


async def test_another_format_of_a_revoked_certificate_is_not_a_new_one(clock: MockClock, host: Host) -> None:
    host.allow(on_revoked="keep")
    await host.deliver(1)
    await host.installer.withdraw(1, revoked=True, items=())
    await host.installer.record_alert(1)
    before = host.installer.records[1].generation
    await host.installer.converge_all(keystores(host))
    record = host.installer.records[1]
    assert record.generation != before and (record.revoked, record.alarmed) == (True, True)


async def test_a_release_forgets_when_the_hold_began(clock: MockClock, host: Host) -> None:
    for _ in range(2):
        await host.deliver(1)
    await host.installer.rollback("c1.example", None, ())
    assert host.installer.records[1].held_since == host.clock
    await host.installer.release("c1.example")
    assert (host.start().records[1].held, host.installer.records[1].held_since) == (False, 0.0)


async def test_a_removed_command_runs_again_when_it_returns(clock: MockClock, host: Host) -> None:
    items = [ExecAction(id="r", ob_id=1, cmd_argv=RELOAD)]
    host.allow(commands=commands(RELOAD))
    await host.deliver(1, items=items)
    for listed, runs in ((items, 1), ((), 1), (items, 2), (items, 2)):
        await host.installer.converge_all(listed)
        assert len(host.proc.calls) == runs


# --- CAs --------------------------------------------------------------------------------------------------------------


def of_ca(host: Host) -> list[InstallItem]:
    host.allow(commands=commands(RELOAD))
    target = (str(host.out / "ca.pem"),)
    return [
        CopyAction(id="c", ob_type=ObjectType.CA, ob_id=3, sources=("ca.pem",), targets=target),
        ExecAction(id="r", cmd_argv=RELOAD, depends_on=("c",)),
        ExecAction(id="own", ob_type=ObjectType.CA, ob_id=3, cmd_argv=(*RELOAD, "own")),
    ]


async def test_the_commands_of_a_ca_run_again_when_it_is_replaced(clock: MockClock, host: Host) -> None:
    items = of_ca(host)
    host.allow(commands=commands(RELOAD, (*RELOAD, "own")))
    for issuer, runs in ((Issuer("one"), 1), (Issuer("two"), 2)):
        for _ in range(2):
            assert (await host.installer.import_ca(3, "Private CA", issuer.chain_pem, items)).ok
        assert (host.out / "ca.pem").read_text() == issuer.chain_pem
        assert sorted(host.proc.calls) == sorted([RELOAD, (*RELOAD, "own")] * runs)
    assert (await host.installer.converge_all(items)).kind is UNCHANGED


async def test_a_command_about_a_ca_alone_runs_again_when_it_is_replaced(clock: MockClock, host: Host) -> None:
    """It has no file whose change could say so."""
    directory = host.root / "trust"
    directory.mkdir(mode=0o755)
    host.allow(commands=commands(RELOAD), trust_store=TrustStore(directory=str(directory)))
    items = [ExecAction(id="own", ob_type=ObjectType.CA, ob_id=3, cmd_argv=RELOAD)]
    for issuer, runs in ((Issuer("one"), 1), (Issuer("two"), 2)):
        for _ in range(2):
            await host.installer.import_ca(3, "Private CA", issuer.chain_pem, items)
            await host.installer.converge_all(items)
        assert host.proc.calls == [RELOAD] * runs


async def test_a_renamed_ca_keeps_its_one_file(clock: MockClock, host: Host) -> None:
    directory = host.root / "trust"
    directory.mkdir(mode=0o755)
    host.allow(trust_store=TrustStore(directory=str(directory)))
    assert (await host.installer.import_ca(3, "Old name", Issuer("one").chain_pem)).kind is APPLIED
    (file,) = directory.iterdir()
    assert (await host.installer.import_ca(3, "New name", Issuer("two").chain_pem)).kind is APPLIED
    assert [*directory.iterdir()] == [file], "a second file would keep the first CA trusted"
    assert host.installer.ca_name(3) == "New name"
    assert (await host.installer.remove_ca(3)).kind is APPLIED
    assert [*directory.iterdir()] == [] and host.installer.cas == frozenset()


@pytest.mark.parametrize("change", ["removed", "replaced"])
async def test_a_ca_whose_file_is_gone_is_imported_again(clock: MockClock, host: Host, change: str) -> None:
    directory = host.root / "trust"
    directory.mkdir(mode=0o755)
    host.allow(trust_store=TrustStore(directory=str(directory)))
    pem = Issuer("one").chain_pem
    await host.installer.import_ca(3, "Private CA", pem)
    (file,) = directory.iterdir()
    if change == "removed":
        file.unlink()
    else:
        file.write_text("something else")
    assert (await host.installer.import_ca(3, "Private CA", pem)).kind is APPLIED
    assert file.read_text() == pem


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind", "transient"),
    [
        (DiskError("disk full"), RetryKind.DISK, True),
        (StateCorruptError("damaged"), RetryKind.REFUSED, False),
        (CommandError("the check refuses it"), RetryKind.REFUSED, False),
        ("text", RetryKind.REFUSED, False),
    ],
)
async def test_damage_needs_an_operator(
    clock: MockClock, host: Host, error: Any, kind: RetryKind, transient: bool
) -> None:
    """A full disk passes; damaged material needs an operator, and counts as a failure."""
    await host.deliver(1)
    results = Results(context=host.installer._context, concerned=frozenset({1}))
    results.failed(1, error)
    assert (host.retry(1).kind, host.retry(1).attempts) == (kind, int(not transient))
    assert (results.outcomes[1].kind, results.outcomes[1].transient) == (OutcomeKind.FAILED, transient)


@pytest.mark.parametrize("what", ["link", "generation", "tree"])
async def test_a_certificate_is_lost_without_its_link_or_its_files(clock: MockClock, host: Host, what: str) -> None:
    await host.deliver(1, 2)
    assert await host.installer.lost() == []
    record = host.installer.records[1]
    if what == "link":
        (host.layout.live / record.name).unlink()
    else:
        files = host.layout.generation(record.name, record.generation)
        shutil.rmtree(files if what == "generation" else files.parent)
    assert [one.cert_id for one in await host.installer.lost()] == [1]
    await changed(host, generation="", activated="")
    assert await host.installer.lost() == []
    assert kinds(await host.deliver(1)) == {1: APPLIED} and host.live(1)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "emptied": lambda key: key.write_bytes(b""),
    "removed": lambda key: key.unlink(),
    "other bytes": lambda key: key.write_bytes(key.read_bytes().swapcase()),
}


@pytest.mark.parametrize("what", DAMAGES)
async def test_a_certificate_with_damaged_files_is_lost(clock: MockClock, host: Host, what: str) -> None:
    """Found by trying: with an empty key on disk, `status`, `plan` and `apply` said that all was well."""
    bundle = host.bundle(1)
    await host.installer.converge([await host.installer.stage(bundle, ())], ())
    record = host.installer.records[1]
    DAMAGES[what](host.layout.generation(record.name, record.generation) / "private.key")
    assert [one.cert_id for one in await host.installer.lost()] == [1]
    quick = [] if what == "other bytes" else [1]  # `status` may be asked every second
    assert [one.cert_id for one in await host.installer.lost(contents=False)] == quick
    await changed(host, generation="", activated="")
    await host.start().recover()
    await host.installer.converge((), ())
    assert not host.installer.records[1].generation, "it is not taken for whole again"
    prepared = [await host.installer.stage(bundle, ())]
    assert kinds(await host.installer.converge(prepared, ())) == {1: APPLIED}
    assert host.live(1) == bundle.facts.fingerprint_sha256 and await host.installer.lost() == []


def flatten(host: Host) -> Path:
    """Replace all links below ``certs/`` by copies, as some backups do; return the copy of certificate 1's directory."""
    flat = host.root / "flat"
    shutil.copytree(host.layout.certs, flat, symlinks=False)
    shutil.rmtree(host.layout.certs)
    flat.rename(host.layout.certs)
    return host.layout.live / host.installer.records[1].name


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_certificate_whose_links_were_flattened_is_deployed_again(
    clock: MockClock, host: Host, restarts: bool
) -> None:
    bundle = host.bundle(1)
    await host.installer.converge([await host.installer.stage(bundle, ())], ())
    copy = flatten(host)
    assert [one.cert_id for one in await host.installer.lost()] == [1]
    await changed(host, generation="", activated="")
    await host.start().recover()
    assert (copy / "private.key").exists(), "services read it until the certificate is here again"
    prepared = [await host.installer.stage(bundle, ())]
    assert kinds(await host.installer.converge(prepared, ())) == {1: APPLIED}
    assert host.live(1) == bundle.facts.fingerprint_sha256 and copy.is_symlink()
    if restarts:
        await host.start().recover()
    else:
        await host.installer.clear_up()
    assert [*host.layout.live.iterdir()] == [copy], "the copy of the key is gone"


async def test_a_withdrawn_certificate_leaves_no_flattened_copy(clock: MockClock, host: Host) -> None:
    await host.deliver(1)
    flatten(host)
    await host.installer.repair_links()
    await host.installer.withdraw(1, revoked=True, items=())
    assert not [path for path in host.layout.certs.rglob("*") if not path.is_dir()], "copies of the key, too"
