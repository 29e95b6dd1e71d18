"""A newly wanted derived format exists at the first try, regardless of events before, meanwhile or after."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import trio
import trio.testing
from install_host import APPLIED, CHECK, FAILED, RELOAD, ROLLED_BACK, Host, commands, kinds, leftovers, reload
from trio.testing import MockClock

from certctrl.errors import DiskError
from certctrl.install.deploy import staging
from certctrl.model.plan import CopyAction, InstallItem
from certctrl.model.policy import MaintenanceWindow
from certctrl.store.deployments.generations import GenerationStore
from certctrl.store.state.installed import InstalledState

FORMATS = ("combined.pem", "certificate.der", "bundle.pfx")
WITHOUT: list[InstallItem] = [*reload(1)]


def wanting(host: Host, *formats: str, **more: Any) -> list[InstallItem]:
    """Return items that copy these formats as well."""
    found = [
        CopyAction(id=f"c{n}", ob_id=1, sources=(name,), targets=(str(host.out / name),), **more)
        for n, name in enumerate(formats or FORMATS)
    ]
    return [*found, *WITHOUT]


async def delivered(host: Host) -> None:
    host.allow(commands=commands(RELOAD))
    host.serve(RELOAD, 1, 1001)
    assert kinds(await host.deliver(1, items=WITHOUT)) == {1: APPLIED}


def complete(host: Host) -> bool:
    """Return whether the formats are at their destinations, those of the live certificate."""
    live = (host.layout.certs / "c1.example.key").read_bytes()
    combined = host.out / "combined.pem"
    return all((host.out / name).exists() for name in FORMATS) and combined.read_bytes().startswith(live)


async def unchanged(host: Host) -> None:
    assert await host.installer.unfinished(wanting(host)) or complete(host)
    assert (await host.installer.converge_all(wanting(host))).kind is APPLIED


async def restarted(host: Host) -> None:
    await host.start().recover()
    await unchanged(host)


async def renewed_with_the_old_items(host: Host) -> None:
    """As when `cert.renewed` is handled before the `install.updated` of its page."""
    prepared = await host.installer.stage(host.bundle(1), WITHOUT)
    assert kinds(await host.installer.converge([prepared], wanting(host))) == {1: APPLIED}


async def renewed_after(host: Host) -> None:
    await unchanged(host)
    assert kinds(await host.deliver(1, items=wanting(host))) == {1: APPLIED}


async def renewed_before(host: Host) -> None:
    prepared = await host.installer.stage(host.bundle(1), WITHOUT)
    assert kinds(await host.installer.converge([prepared], WITHOUT)) == {1: APPLIED}
    await unchanged(host)


async def staged_for_the_window(host: Host) -> None:
    soon, later = (f"{datetime.fromtimestamp(host.clock + ahead, UTC):%H:%M}" for ahead in (600, 1200))
    host.allow(window=MaintenanceWindow(from_=soon, to=later))
    await host.deliver(1, items=WITHOUT)
    await unchanged(host)  # the live one has them now
    assert complete(host)
    host.clock = host.installer.window_times()[1]
    await unchanged(host)


async def asked_for(host: Host) -> None:
    assert kinds(await host.installer.converge((), wanting(host), only=[1], due_now=True)) == {1: APPLIED}


async def held(host: Host) -> None:
    await host.deliver(1, items=WITHOUT)
    assert (await host.installer.rollback("c1.example", None, WITHOUT)).kind is APPLIED
    await unchanged(host)
    assert complete(host)
    await host.installer.release("c1.example")
    await unchanged(host)


async def allowed_later(host: Host) -> None:
    """A policy that is reloaded allows the directory."""
    host.allow(write_roots=())
    assert not (await host.installer.converge_all(wanting(host))).ok
    host.allow(write_roots=(str(host.out),))
    assert (await host.installer.converge_all(wanting(host), due_now=True)).kind is APPLIED


async def two_formats_one_after_the_other(host: Host) -> None:
    assert (await host.installer.converge_all(wanting(host, "combined.pem"))).kind is APPLIED
    await unchanged(host)


ORDERS = [
    unchanged, restarted, renewed_with_the_old_items, renewed_after, renewed_before, staged_for_the_window, asked_for,
    held, allowed_later, two_formats_one_after_the_other,
]  # fmt: skip


@pytest.mark.parametrize("order", ORDERS, ids=lambda one: one.__name__)
async def test_a_format_is_there_at_the_first_try(
    clock: MockClock, host: Host, order: Callable[[Host], Awaitable[None]]
) -> None:
    await delivered(host)
    host.allow(write_roots=(str(host.out),))
    await order(host)
    assert complete(host) and leftovers(host) == []
    history = InstalledState(host.layout, host.fs).load_history()
    assert [one["detail"] for one in history if "missing" in one["detail"]] == []


async def test_a_format_of_a_certificate_whose_service_fails_does_not_hide_why(clock: MockClock, host: Host) -> None:
    """Tried again before it is due, it was said to fail because the live generation lacks the file."""
    await delivered(host)
    host.allow(write_roots=(str(host.out),))
    items = wanting(host)
    reload_now = host.proc.does[RELOAD]
    host.proc.does[RELOAD] = lambda: 1 if (host.out / "combined.pem").exists() else reload_now()
    assert (await host.installer.converge_all(items)).kind is ROLLED_BACK
    retry = host.retry(1)
    assert "exited with 1" in retry.last_error
    for restarts in (False, True):
        if restarts:
            await host.start().recover()
        await host.installer.converge_all(items)
        assert host.retry(1) == retry, "only waiting"
    host.proc.does[RELOAD] = reload_now
    host.clock = retry.next_try_at
    assert (await host.installer.converge_all(items)).kind is APPLIED
    assert complete(host)


@pytest.mark.parametrize("renewal", [False, True], ids=["unchanged", "renewal"])
@pytest.mark.parametrize("why", ["check", "disk"])
async def test_a_format_that_cannot_be_made_says_why_and_changes_nothing(
    clock: MockClock, host: Host, monkeypatch: pytest.MonkeyPatch, why: str, renewal: bool
) -> None:
    await delivered(host)
    host.allow(write_roots=(str(host.out),), commands=commands(RELOAD, CHECK))
    items = wanting(host, check=CHECK if why == "check" else ())
    old = host.live(1)
    prepared = [await host.installer.stage(host.bundle(1), WITHOUT)] if renewal else []
    with monkeypatch.context() as patch:
        if why == "check":
            real = host.proc.run
            patch.setattr(
                host.proc, "run", lambda argv, **how: real(("/bin/false",) if "check" in argv else argv, **how)
            )
            host.proc.does["/bin/false",] = lambda: 1
        else:
            patch.setattr(GenerationStore, "stage", no_space)
        outcome = (await host.installer.converge(prepared, items, only=[1]))[1]
    said = "the check refuses" if why == "check" else "No space left"
    assert outcome.kind is FAILED and said in outcome.detail and said in host.retry(1).last_error
    assert "missing" not in outcome.detail
    assert (host.live(1), [*host.out.iterdir()], leftovers(host)) == (old, [], [])
    retry = host.retry(1)
    assert not await host.installer.unfinished(items), "not due"
    await host.installer.converge_all(items)
    assert host.retry(1) == retry, "only waiting"
    host.clock = retry.next_try_at
    assert await host.installer.unfinished(items)
    assert kinds(await host.installer.converge((), items, only=[1])) == {1: APPLIED}
    assert complete(host) and (host.live(1) != old) == renewal


def no_space(*_: object, **__: object) -> None:
    raise DiskError("cannot create x: No space left on device", path="x", errno=28, fix="")


async def test_a_renewal_that_is_switched_meanwhile_is_not_undone(
    clock: MockClock, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The format is made from the certificate that is live when its turn comes, not from an older one."""
    await delivered(host)
    host.allow(write_roots=(str(host.out),))
    (service,) = host.served.values()
    prepared = await host.installer.stage(host.bundle(1), WITHOUT)
    real, calls = staging.stage, 0

    async with trio.open_nursery() as nursery:

        async def stage(*args: Any, **how: Any) -> Any:
            nonlocal calls
            calls += 1
            made = await real(*args, **how)
            if calls == 1:  # a slow check, for example
                nursery.start_soon(host.installer.converge, [prepared], wanting(host))
                await trio.testing.wait_all_tasks_blocked()
            return made

        monkeypatch.setattr(staging, "stage", stage)
        await host.installer.converge_all(wanting(host))
    assert calls > 0
    assert host.live(1) == prepared.facts.fingerprint_sha256 == service.served
    assert complete(host)
