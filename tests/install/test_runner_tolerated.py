"""What an item that says ``continue_on_error`` fails at is noted, named and tried again; nothing else suffers."""

from __future__ import annotations

from typing import Any

import pytest
from runner_host import APPLIED, RELOAD, ROLLED_BACK, commands, kinds, leftovers, reload
from trio.testing import MockClock

from certctrl.errors import DiskError
from certctrl.install.units import units_of
from certctrl.model.plan import CopyAction, InstallItem


def refuse(host: Any, *names: str, verb: str = "create") -> None:
    """Let the disk refuse the files of these names from now on; with none, let it be."""
    real = getattr(host.fs, "real", host.fs)

    class Refusing:
        def __init__(self) -> None:
            self.real = real

        def __getattr__(self, attribute: str) -> Any:
            act = getattr(real, attribute)
            if attribute != verb:
                return act

            def refusing(name: Any, *args: Any, **how: Any) -> Any:
                if any(f"{one}." in f"{name} {args}" for one in names):
                    raise DiskError(f"cannot {verb}", path=str(name), errno=30)
                return act(name, *args, **how)

            return refusing

    host.fs = Refusing()
    host.start()


def copied(host: Any, name: str, *sources: str, tolerant: bool = True, **more: Any) -> CopyAction:
    targets = tuple(str(host.out / f"{name}.{number}") for number in range(len(sources)))
    return CopyAction(id=name, ob_id=1, sources=sources, targets=targets, continue_on_error=tolerant, **more)


async def test_a_tolerated_copy_that_cannot_be_written_stops_nothing(clock: MockClock, host: Any) -> None:
    items = [copied(host, "bad", "combined.pem"), copied(host, "good", "combined.pem"), *reload(1)]
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    await host.deliver(1, items=items)
    old = (host.out / "bad.0").read_bytes()
    refuse(host, "bad")
    outcome = (await host.deliver(1, items=items))[1]
    assert outcome.kind is APPLIED and "tolerated: item bad: cannot create" in outcome.detail
    assert service.served == host.live(1)
    assert ((host.out / "bad.0").read_bytes() == old) and ((host.out / "good.0").read_bytes() != old)
    assert leftovers(host) == []


@pytest.mark.parametrize("together", [True, False], ids=["one-item", "two-items"])
async def test_a_tolerated_pair_is_written_whole_or_not_at_all(clock: MockClock, host: Any, together: bool) -> None:
    pair: list[InstallItem] = [copied(host, "pair", "private.key", "fullchain.pem")]
    if not together:
        pair = [copied(host, "key", "private.key"), copied(host, "pair", "fullchain.pem")]
    items = [*pair, copied(host, "other", "combined.pem"), *reload(1)]
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    await host.deliver(1, items=items)
    targets = [host.out / "pair.0", host.out / ("pair.1" if together else "key.0")]
    old = [target.read_bytes() for target in targets]
    other = (host.out / "other.0").read_bytes()
    refuse(host, "pair.1" if together else "pair.0", verb="rename")  # the second half
    assert kinds(await host.deliver(1, items=items)) == {1: APPLIED}
    assert [target.read_bytes() for target in targets] == old
    assert (host.out / "other.0").read_bytes() != other and service.served == host.live(1)
    refuse(host)
    host.clock += 60
    await host.installer.converge((), items)
    assert all(target.read_bytes() != before for target, before in zip(targets, old, strict=True))
    assert service.served == host.live(1) and leftovers(host) == []


async def test_a_pair_of_which_one_half_may_not_fail_may_not_fail(clock: MockClock, host: Any) -> None:
    items = [copied(host, "key", "private.key"), copied(host, "cert", "fullchain.pem", tolerant=False)]
    await host.deliver(1, items=items)
    old = [(host.out / name).read_bytes() for name in ("key.0", "cert.0")]
    refuse(host, "key")
    assert kinds(await host.deliver(1, items=items)) == {1: ROLLED_BACK}
    assert [(host.out / name).read_bytes() for name in ("key.0", "cert.0")] == old


async def test_what_was_tolerated_goes_back_with_the_rest(clock: MockClock, host: Any) -> None:
    """A tolerated copy that was written is undone when the set fails for another reason."""
    items = [copied(host, "c", "private.key", "fullchain.pem"), *reload(1)]
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    await host.deliver(1, items=items)
    old = (host.out / "c.0").read_bytes()
    service.deaf = True
    assert kinds(await host.deliver(1, items=items)) == {1: ROLLED_BACK}
    assert (host.out / "c.0").read_bytes() == old and leftovers(host) == []


def test_a_pair_at_two_levels_may_not_fail() -> None:
    """Between the levels commands run: what is written before them cannot be taken back quietly."""
    key = CopyAction(id="key", ob_id=1, sources=("private.key",), targets=("/a",), continue_on_error=True)
    late = CopyAction(
        id="cert", ob_id=1, sources=("fullchain.pem",), targets=("/b",), continue_on_error=True, depends_on=("key",)
    )
    beside = CopyAction(id="cert", ob_id=1, sources=("fullchain.pem",), targets=("/b",), continue_on_error=True)
    about = {"key": (1,), "cert": (1,)}
    assert {unit.tolerant for unit in units_of([key, late], about).values()} == {False}
    assert {unit.tolerant for unit in units_of([key, beside], about).values()} == {True}
    assert len({unit.name for unit in units_of([key, beside], about).values()}) == 1
