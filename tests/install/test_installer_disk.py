"""A disk failure at any call leaves the old or new state, which the next run repairs; a burst needs few syncs."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

import pytest
from install_host import (
    APPLIED,
    FAILED,
    RELOAD,
    ROLLED_BACK,
    UNCHANGED,
    Host,
    ScriptedFs,
    commands,
    kinds,
    leftovers,
    reload,
)
from trio.testing import MockClock

from certctrl.errors import DiskError
from certctrl.model.certificate import Bundle
from certctrl.model.plan import CopyAction, ExecAction, OutcomeKind
from certctrl.store.disk.fs import Fs, Handle, RealFs


@pytest.mark.parametrize("verb", ["syncfs", "rename", "symlink", "create", "fsync", "write", "unlink"])
async def test_a_disk_failure_leaves_the_old_or_the_new_state_and_is_repaired(
    clock: MockClock, host: Host, verb: str
) -> None:
    """The n-th call of one verb fails, for each n, until a run has no failure."""
    items = [CopyAction(id="c", ob_id=1, sources=("combined.pem",), targets=(str(host.out / "a.pem"),)), *reload(1)]
    host.allow(commands=commands(RELOAD))
    service, real = host.serve(RELOAD, 1, 1001), host.fs
    await host.deliver(1, items=items)
    old = host.live(1)

    async def run(fs: Fs, bundle: Bundle) -> OutcomeKind:
        host.fs = fs
        host.start()
        await host.installer.recover()
        prepared = await host.installer.stage(bundle, items)
        return (await host.installer.converge([prepared], items))[1].kind

    for number in range(1, 60):
        bundle, fs = host.bundle(1), ScriptedFs(real, verb, number)
        with contextlib.suppress(DiskError):
            assert await run(fs, bundle) in (APPLIED, FAILED, ROLLED_BACK)
        assert host.live(1) in (old, bundle.facts.fingerprint_sha256)
        host.clock += 7200
        assert await run(real, bundle) in (APPLIED, UNCHANGED), number
        assert host.live(1) == bundle.facts.fingerprint_sha256 == service.served
        assert (host.out / "a.pem").read_bytes().startswith((host.layout.certs / "c1.example.key").read_bytes())
        assert leftovers(host) == []
        old = bundle.facts.fingerprint_sha256
        if fs.counts.get(verb, 0) < number:
            print(f"{verb}: {number - 1} of {number - 1} recovered")
            return
    raise AssertionError("no run without a failure")


async def test_a_burst_needs_few_syncs(clock: MockClock, host: Host) -> None:
    """At most a tenth of a sync per certificate, counted at the `Fs`."""
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


async def test_a_permanent_disk_failure_at_the_switch_is_an_outcome(
    clock: MockClock, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by failing all syscalls from one on: the second failure propagated and ended the daemon."""

    def refuse(*_: object, **__: object) -> None:
        raise DiskError("cannot write: No space left on device", path="/x", errno=errno.ENOSPC, fix="free space")

    prepared = [await host.installer.stage(host.bundle(1), ())]
    with monkeypatch.context() as patch:
        patch.setattr(RealFs, "symlink", refuse)
        patch.setattr(RealFs, "create", refuse)
        assert kinds(await host.installer.converge(prepared, ())) == {1: FAILED}
    assert kinds(await host.installer.converge(prepared, ())) == {1: APPLIED}


class BrokenDirectory(RealFs):
    """A real disk that neither syncs nor removes files of one directory while it is ``broken``."""

    def __init__(self, path: Path) -> None:
        self.path, self.broken = path, True

    def fsync(self, handle: Handle) -> None:
        self._refuse(Path(handle.path).parent)
        super().fsync(handle)

    def unlink(self, path: str | Path, at: Handle | None = None) -> None:
        self._refuse(Path(path).parent if at is None else Path(at.path))
        super().unlink(path, at=at)

    def _refuse(self, directory: Path) -> None:
        if self.broken and directory == self.path:
            raise DiskError("Input/output error", path=str(directory), errno=errno.EIO, fix="replace the disk")


async def test_a_key_that_a_failing_disk_left_behind_is_removed_without_a_restart(clock: MockClock, host: Host) -> None:
    """Found by the simulation, histories 5 000 and 6 251: it stayed until the next start."""
    host.fs = disk = BrokenDirectory(host.out)
    host.start()
    items = [CopyAction(id="c", ob_id=1, sources=("combined.pem",), targets=(str(host.out / "a.pem"),))]
    prepared = [await host.installer.stage(host.bundle(1), items)]
    assert kinds(await host.installer.converge(prepared, items)) == {1: FAILED}
    left = sorted(host.out.iterdir())
    assert left and all(path.name.startswith(".a.pem.") for path in left)
    await host.installer.clear_up()
    assert sorted(host.out.iterdir()) == left, "the disk still fails"
    disk.broken = False
    await host.installer.clear_up()
    assert leftovers(host) == []
