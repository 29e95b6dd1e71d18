"""A failure rolls back to the state that served before; a failed first delivery stays for its service."""

from __future__ import annotations

import errno
import hashlib
import importlib
import stat
import sys
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization.pkcs12 import load_pkcs12
from install_host import (
    APPLIED,
    FAILED,
    OTHER,
    RELOAD,
    ROLLED_BACK,
    UNCHANGED,
    Host,
    commands,
    kinds,
    leftovers,
    reload,
)
from trio.testing import MockClock

from certctrl.agent.package_guard import PackageChangedError
from certctrl.cli.runtime import flatten
from certctrl.errors import DiskError
from certctrl.model.plan import CopyAction, ExecAction, OutcomeKind, VerifyCommand
from certctrl.model.records import Stage
from certctrl.store.disk.fs import Handle, RealFs


async def test_a_failed_reload_rolls_back_to_the_old_pair(clock: MockClock, host: Host) -> None:
    items, service = await host.with_service()
    good, calls = host.live(1), len(host.proc.calls)
    bundle = host.bundle(1)
    service.refuses.add(bundle.facts.fingerprint_sha256)
    prepared = await host.installer.stage(bundle, items)
    outcome = (await host.installer.converge([prepared], items))[1]
    assert outcome.kind is ROLLED_BACK
    assert "exited with 3: it says no" in outcome.detail
    assert outcome.deployed[0].fingerprint_sha256 == good == host.live(1) == service.served
    assert len(host.proc.calls) == calls + 2
    record = host.installer.records[1]
    assert (record.stage, record.staged, host.retry(1).attempts) == (Stage.ACTIVATED, prepared.generation, 1)
    assert host.retry(1).next_try_at == host.clock + 5
    assert kinds(await host.installer.converge((), items)) == {}, "not before its next try"
    service.refuses.clear()
    host.clock += 31
    assert kinds(await host.installer.converge((), items)) == {1: APPLIED}
    assert host.live(1) == bundle.facts.fingerprint_sha256 == service.served


async def test_a_service_that_keeps_the_old_certificate_is_noticed_and_rolled_back(
    clock: MockClock, host: Host
) -> None:
    items, service = await host.with_service()
    good = host.live(1)
    service.deaf = True
    outcome = (await host.deliver(1, items=items))[1]
    assert (outcome.kind, host.live(1)) == (ROLLED_BACK, good)
    assert "serves another certificate" in outcome.detail
    assert trio.current_time() == host.config.application.verify_timeout_seconds


async def test_copies_are_rolled_back_with_the_links(clock: MockClock, host: Host) -> None:
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


async def test_after_a_failed_group_each_certificate_is_tried_alone(clock: MockClock, host: Host) -> None:
    ids, items = (1, 2, 3), reload(1, 2, 3)
    host.allow(commands=commands(RELOAD))
    services = {n: host.serve(RELOAD, n, 1000 + n) for n in ids}
    await host.deliver(*ids, items=items)
    bundles = {n: host.bundle(n) for n in ids}
    services[2].refuses.add(bundles[2].facts.fingerprint_sha256)
    before = {n: host.live(n) for n in ids}

    async def attempt() -> dict[int, OutcomeKind]:
        prepared = [await host.installer.stage(bundle, items) for bundle in bundles.values()]
        return kinds(await host.installer.converge(prepared, items))

    assert await attempt() == dict.fromkeys(ids, ROLLED_BACK)
    assert {n: host.live(n) for n in ids} == before
    assert await attempt() == {1: APPLIED, 2: ROLLED_BACK, 3: APPLIED}
    assert [services[n].served == bundles[n].facts.fingerprint_sha256 for n in ids] == [True, False, True]
    assert services[2].served == before[2] == host.live(2)
    assert await attempt() == {1: UNCHANGED, 2: ROLLED_BACK, 3: UNCHANGED}


async def test_if_the_previous_state_does_not_serve_either_the_rest_is_not_tried(clock: MockClock, host: Host) -> None:
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
    assert len(host.proc.calls) == calls + 1, "one reload shows that the service is at fault"
    services[0].broken = False
    host.clock += 7200
    assert set(kinds(await host.installer.converge((), items)).values()) == {APPLIED}
    assert [service.served for service in services] == [host.live(n) for n in ids]


async def test_a_failed_first_delivery_stays_for_its_service(clock: MockClock, host: Host) -> None:
    """A service that is not configured yet cannot reload, and cannot start without its files."""
    items = [CopyAction(id="c", ob_id=1, sources=("combined.pem",), targets=(str(host.out / "a.pem"),)), *reload(1)]
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001, broken=True)
    outcome = (await host.deliver(1, items=items))[1]
    assert outcome.kind is FAILED and "there is no earlier generation" in outcome.detail
    assert host.installer.records[1].stage is Stage.COMMITTED
    assert (host.out / "a.pem").exists() and host.live(1)
    service.broken = False
    host.clock += 60
    assert kinds(await host.installer.converge((), items)) == {1: APPLIED}
    assert host.installer.records[1].stage is Stage.ACTIVATED
    assert service.served == host.live(1)


async def test_the_first_files_for_a_service_stay_even_if_the_certificate_is_older(
    clock: MockClock, host: Host
) -> None:
    """The items came after the certificate: a stopped service needs the files to start."""
    target = host.out / "a.pem"
    items = [CopyAction(id="c", ob_id=1, sources=("combined.pem",), targets=(str(target),)), *reload(1)]
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001, broken=True)
    assert kinds(await host.deliver(1)) == {1: APPLIED}
    assert kinds(await host.installer.converge((), items))[1] in (FAILED, ROLLED_BACK)
    assert target.exists()
    service.broken = False
    host.clock += 60
    assert kinds(await host.installer.converge((), items)) == {1: APPLIED}
    assert service.served == host.live(1)
    service.broken = True
    target.unlink()
    assert kinds(await host.deliver(1, items=items)) == {1: ROLLED_BACK}
    assert not target.exists(), "once the command has succeeded, what fails is undone"


async def test_a_failed_first_delivery_restores_the_file_at_a_destination(clock: MockClock, host: Host) -> None:
    target = host.out / "combined.pem"
    target.write_bytes(b"the operator's own")
    items = [CopyAction(id="c", ob_id=1, sources=("combined.pem",), targets=(str(target),)), *reload(1)]
    host.allow(commands=commands(RELOAD))
    host.serve(RELOAD, 1, 1001, broken=True)
    outcome = (await host.deliver(1, items=items))[1]
    assert outcome.kind is FAILED and "the files that were replaced are back" in outcome.detail
    assert target.read_bytes() == b"the operator's own"


async def test_a_tolerated_failure_is_reported_and_does_not_stop_the_rest(clock: MockClock, host: Host) -> None:
    items = [ExecAction(id="t", ob_id=1, cmd_argv=OTHER, continue_on_error=True), *reload(1, depends_on=("t",))]
    host.allow(commands=commands(RELOAD, OTHER))
    host.proc.does[OTHER] = lambda: 9
    service = host.serve(RELOAD, 1, 1001)
    outcome = (await host.deliver(1, items=items))[1]
    assert outcome.kind is APPLIED and "tolerated" in outcome.detail
    assert service.served == host.live(1)
    host.proc.does[OTHER] = lambda: 0
    host.clock += 60
    assert kinds(await host.installer.converge((), items)) == {1: APPLIED}, "tried again until it sticks"


async def test_verify_by_command_is_tried_until_its_deadline(clock: MockClock, host: Host) -> None:
    verify = ("/bin/true", "verify")
    items = [ExecAction(id="r", ob_id=1, cmd_argv=RELOAD, verify=VerifyCommand(cmd_argv=verify))]
    host.allow(commands=commands(RELOAD, verify))
    answers = iter([1, 1, 0])
    host.proc.does[verify] = lambda: next(answers, 1)
    assert kinds(await host.deliver(1, items=items)) == {1: APPLIED}
    outcome = (await host.deliver(1, items=items))[1]
    assert outcome.kind is ROLLED_BACK and "verify exited with 1" in outcome.detail


def keystores(host: Host, *kinds: str) -> list[CopyAction]:
    return [CopyAction(id="k", ob_id=1, sources=tuple(f"bundle.{kind}" for kind in kinds),
                       targets=tuple(str(host.out / f"a.{kind}") for kind in kinds))]  # fmt: skip


def opened(host: Host, kind: str) -> str:
    """Return the fingerprint in a keystore at its destination, opened with the password of its commands."""
    data = (host.out / f"a.{kind}").read_bytes()
    password = (host.layout.passwords / f"c1.example.{kind}").read_bytes()
    if kind == "pfx":
        found = load_pkcs12(data, password).cert
        assert found is not None
        return found.certificate.fingerprint(hashes.SHA256()).hex()
    import jks

    (entry,) = jks.KeyStore.loads(data, password.decode()).private_keys.values()
    return hashlib.sha256(entry.cert_chain[0][1]).hexdigest()


@pytest.mark.parametrize("kind", ["pfx", "jks"])
async def test_keystores_of_an_earlier_generation_open_with_the_current_password(
    clock: MockClock, host: Host, kind: str
) -> None:
    items = keystores(host, kind)
    await host.deliver(1, items=items)
    first = host.live(1)
    (host.layout.passwords / f"c1.example.{kind}").unlink()
    host.clock += 60
    await host.deliver(1, items=items)
    assert opened(host, kind) == host.live(1) != first
    host.clock += 60
    assert (await host.installer.rollback("c1.example", None, items)).kind is APPLIED
    assert opened(host, kind) == host.live(1) == first


async def test_a_removed_password_is_replaced_without_a_renewal(clock: MockClock, host: Host) -> None:
    items = keystores(host, "pfx", "jks")
    await host.deliver(1, items=items)
    before = (host.out / "a.jks").read_bytes()
    (host.layout.passwords / "c1.example.pfx").unlink()
    assert kinds(await host.installer.converge((), items)) == {1: APPLIED}
    assert opened(host, "pfx") == opened(host, "jks") == host.live(1)
    assert (host.out / "a.jks").read_bytes() == before, "its password is the same"
    assert (await host.installer.converge_all(items)).kind is UNCHANGED


async def test_a_placeholder_stays_one_if_its_password_is_removed(clock: MockClock, host: Host) -> None:
    items = keystores(host, "pfx")
    host.allow(on_revoked="placeholder")
    await host.deliver(1, items=items)
    await host.installer.withdraw(1, revoked=True, items=items)
    (host.layout.passwords / "c1.example.pfx").unlink()
    await host.installer.converge((), items)
    assert opened(host, "pfx") == (stands := host.live(1))
    await host.installer.withdraw(1, revoked=True, items=items)
    assert host.live(1) == stands, "it is still known as one: none is put in its place"


async def test_a_rolled_back_keystore_gets_the_new_password_next(clock: MockClock, host: Host) -> None:
    items = [*keystores(host, "pfx"), *reload(1)]
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    await host.deliver(1, items=items)
    good = host.live(1)
    (host.layout.passwords / "c1.example.pfx").unlink()
    bundle = host.bundle(1)
    service.refuses.add(bundle.facts.fingerprint_sha256)
    prepared = await host.installer.stage(bundle, items)
    assert kinds(await host.installer.converge([prepared], items)) == {1: ROLLED_BACK}
    await host.installer.converge((), items)
    assert opened(host, "pfx") == host.live(1) == good
    service.refuses.clear()
    host.clock += 31
    await host.installer.converge((), items)
    assert opened(host, "pfx") == host.live(1) == bundle.facts.fingerprint_sha256


@pytest.mark.parametrize("how", ["its command fails", "its service is down", "a copy is refused", "the disk is full"])
async def test_a_failed_manual_rollback_changes_and_holds_nothing(clock: MockClock, host: Host, how: str) -> None:
    target = host.out / "a.key"
    items = [*reload(1), CopyAction(id="c", ob_id=1, sources=("private.key",), targets=(str(target),))]
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    await host.deliver(1, items=items)
    first = host.live(1)
    await host.deliver(1, items=items)
    newest = host.live(1)
    if how == "its command fails":
        service.refuses.add(first)
    elif how == "its service is down":
        service.broken = True
    elif how == "a copy is refused":
        target.unlink()
        target.mkdir()
    else:
        host.fill(host.out)
    assert not (await host.installer.rollback("c1.example", None, items)).ok
    record = host.installer.records[1]
    assert (host.live(1) == newest, record.held, record.staged) == (True, False, "")
    still_fails = how in ("its service is down", "a copy is refused")
    assert (record.failing, bool(host.retry(1).attempts)) == (still_fails, still_fails)


class FixedNames(RealFs):
    """A disk that renames nothing in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory: str | None = str(directory)

    def rename(self, old: str | Path, new: str | Path, at: Handle | None = None) -> None:
        if at is not None and at.path == self.directory:
            raise DiskError("no space left", path=str(new), errno=errno.ENOSPC)
        super().rename(old, new, at)


async def test_a_failed_first_delivery_names_the_files_that_stay(clock: MockClock, host: Host) -> None:
    items = [*reload(1), CopyAction(id="c", ob_id=1, sources=("private.key",), targets=(str(host.out / "a.key"),))]
    host.allow(commands=commands(RELOAD))
    host.serve(RELOAD, 1, 1001).broken = True
    host.fs = disk = FixedNames(host.out)
    host.start()
    outcome = (await host.deliver(1, items=items))[1]
    disk.directory = None
    assert outcome.kind is FAILED and "none of its copies was written" in outcome.detail
    assert not (host.out / "a.key").exists() and host.live(1)
    outcome = (await host.installer.converge((), items, only=[1], due_now=True))[1]
    assert outcome.kind is FAILED and "so the new files stay" in outcome.detail
    assert (host.out / "a.key").exists()


async def test_a_placeholder_that_fails_does_not_claim_that_nothing_came_before(clock: MockClock, host: Host) -> None:
    host.allow(commands=commands(RELOAD), on_revoked="placeholder")
    service = host.serve(RELOAD, 1, 1001)
    await host.deliver(1, items=reload(1))
    service.broken = True
    outcome = await host.installer.withdraw(1, revoked=True, items=reload(1))
    assert outcome.kind is FAILED and "must not return" in outcome.detail


class ReplacedPackage:
    """An import finder for which our package was replaced: it gives no module that is not loaded yet."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name.startswith("certctrl."):
            raise PackageChangedError(name)


LATE = ("certctrl.model.causes", "certctrl.install.process.child", "certctrl.install.probe.tls")


@pytest.mark.parametrize("late", [(), *((one,) for one in LATE), LATE])
async def test_a_package_that_was_replaced_never_ends_a_deployment_half_way(
    clock: MockClock, host: Host, monkeypatch: pytest.MonkeyPatch, late: tuple[str, ...]
) -> None:
    """Found by review: what the service had refused stayed in place, because the rollback needed a module."""
    items, service = await host.with_service()
    good, calls = host.live(1), len(host.proc.calls)
    refused = host.bundle(1)
    service.refuses.add(refused.facts.fingerprint_sha256)
    prepared = [await host.installer.stage(refused, items)]
    for name in LATE:
        importlib.import_module(name)
    for name in late:
        monkeypatch.delitem(sys.modules, name)
        package, _, module = name.rpartition(".")
        monkeypatch.delattr(sys.modules[package], module)
    monkeypatch.setattr(sys, "meta_path", [ReplacedPackage(), *sys.meta_path])
    if late:
        with pytest.raises((PackageChangedError, BaseExceptionGroup)) as caught:
            await host.installer.converge(prepared, items)
        assert [type(leaf) for leaf in flatten(caught.value)] == [PackageChangedError]
        assert len(host.proc.calls) == calls, "nothing was done"
    else:
        assert kinds(await host.installer.converge(prepared, items)) == {1: ROLLED_BACK}
    assert host.live(1) == service.served == good
