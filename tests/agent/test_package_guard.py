"""Late imports from packages that were replaced while the process runs."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from handler_world import TS, World
from trio.testing import MockClock

from certctrl.agent.batches import Batches, ReadyCertificate
from certctrl.agent.dispatcher import Dispatcher
from certctrl.agent.package_guard import PackageChangedError, guarded_packages, raise_if_replaced
from certctrl.errors import BusyError, DiskError
from certctrl.model.plan import Outcome, OutcomeKind
from certctrl.model.records import InboxEntry
from certctrl.model.signals import CaAssigned, CertRenewed
from certctrl.model.status import StopReason

SIGNAL = CaAssigned(ts_ms=TS, ca_id=3)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the directory of a package that is in use, with a module that is not."""
    place = tmp_path / "guarded_by_test"
    place.mkdir()
    (place / "__init__.py").write_text('__version__ = "1.2"\n')
    (place / "late.py").write_text("")
    (place / "later.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("guarded_by_test")
    yield place
    for name in [name for name in sys.modules if name.startswith("guarded_by_test")]:
        del sys.modules[name]


def test_an_unchanged_package_is_imported_from(package: Path) -> None:
    with guarded_packages():
        importlib.import_module("guarded_by_test.late")
        raise_if_replaced(RuntimeError("a bug"))


@pytest.mark.parametrize("how", ["written", "replaced", "gone"])
def test_nothing_is_imported_from_a_changed_one(package: Path, how: str) -> None:
    init, found = package / "__init__.py", len(sys.meta_path)
    with guarded_packages():
        importlib.import_module("guarded_by_test.late")
        match how:
            case "written":
                init.write_text('__version__ = "1.3"\n# more\n')
            case "replaced":
                new = package / "new"
                new.write_bytes(init.read_bytes())
                os.utime(new, ns=(0, init.stat().st_mtime_ns))
                new.replace(init)
            case "gone":
                package.rename(package.with_name("~"))
        with pytest.raises(PackageChangedError, match=r"the installed package guarded_by_test changed \(was 1\.2\)"):
            importlib.import_module("guarded_by_test.later")
        importlib.import_module("guarded_by_test.late")  # what is in memory can be used
        with pytest.raises(PackageChangedError):
            raise_if_replaced(AttributeError("of another release"))
        raise_if_replaced(DiskError("not a bug"))
    assert len(sys.meta_path) == found
    raise_if_replaced(AttributeError("no daemon"))


def test_a_disk_that_does_not_answer_says_nothing_about_a_package(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: str) -> os.stat_result:
        raise OSError(errno.ESTALE, "stale file handle", path)

    with guarded_packages():
        with monkeypatch.context() as patch:
            patch.setattr("certctrl.agent.package_guard.os.stat", broken)
            raise_if_replaced(RuntimeError("a bug"))
        (package / "__init__.py").unlink()
        with pytest.raises(PackageChangedError):
            raise_if_replaced(RuntimeError("a bug"))


@pytest.mark.parametrize("grouped", [False, True])
def test_a_replacement_while_the_daemon_starts_or_ends_is_no_bug(*, grouped: bool) -> None:
    error: BaseException = PackageChangedError("the installed package changed (was 1)")
    with pytest.raises(BusyError, match="the installed package changed"), guarded_packages():
        raise BaseExceptionGroup("", [error]) if grouped else error
    with pytest.raises(BaseExceptionGroup), guarded_packages():
        raise BaseExceptionGroup("", [error, RuntimeError("a bug")])
    with pytest.raises(RuntimeError), guarded_packages():
        raise RuntimeError("a bug")


async def test_a_signal_that_fails_late_stops_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by review: what follows the handler of a signal imports, too."""
    agent = World(tmp_path / "agent").agent
    agent.admit([SIGNAL])
    dispatcher = Dispatcher(agent)

    async def changed(*_: object) -> None:
        raise PackageChangedError("changed")

    monkeypatch.setattr(dispatcher, "_conclude", changed)
    entry = next(iter(agent.inbox.entries()))
    await dispatcher._run(entry)
    assert agent.stop is not None and agent.stop.reason is StopReason.PACKAGE_CHANGED
    assert [one.signal for one in agent.inbox.entries()] == [SIGNAL]


async def test_a_batch_that_ends_by_it_leaves_the_others_running(autojump_clock: MockClock, tmp_path: Path) -> None:
    agent, applied = World(tmp_path / "agent").agent, Outcome(kind=OutcomeKind.APPLIED)
    signals = [CertRenewed(ts_ms=1, cert_id=cert_id) for cert_id in (1, 2)]
    done = list[int]()

    async def converge(prepared: Sequence[Any], ids: Collection[int], _: Mapping[int, str]) -> dict[int, Outcome]:
        await trio.sleep(10 if 1 in ids else 0)  # the first one is still reloading when the second one begins
        if 2 in ids:
            raise PackageChangedError("changed")
        return dict.fromkeys(ids, applied)

    async def finish(finished: Sequence[tuple[ReadyCertificate, Outcome | None]]) -> None:
        done.extend(one.prepared.cert_id for one, _ in finished)

    batches, dispatcher = Batches(converge, agent.burst), Dispatcher(agent)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batches.run_batches, finish, dispatcher.batch_interrupted)
        for signal in signals:
            staged: Any = SimpleNamespace(cert_id=signal.cert_id)
            entry = InboxEntry(signal=signal)
            dispatcher._busy.add(signal.resource)
            batches.add(ReadyCertificate(entry=entry, prepared=staged, started=0.0, deadline=300.0))
            await trio.sleep(6)
        await trio.sleep(6)
        nursery.cancel_scope.cancel()
    assert done == [1] and dispatcher._busy == {signals[0].resource}
    assert agent.stop is not None and agent.stop.reason is StopReason.PACKAGE_CHANGED


def test_it_is_no_failure_of_what_needed_the_module() -> None:
    assert not issubclass(PackageChangedError, Exception)
