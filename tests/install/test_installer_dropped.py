"""Material that was staged and then dropped, because its signal failed later or newer material came, does not stay."""

from __future__ import annotations

import gc

import pytest
from install_host import APPLIED, Host, kinds, leftovers
from trio.testing import MockClock


@pytest.mark.parametrize("live", [True, False], ids=["a renewal", "a new certificate"])
async def test_material_of_a_failed_signal_is_removed_by_the_next_renewal(
    clock: MockClock, host: Host, live: bool
) -> None:
    if live:
        await host.deliver(1)
    await host.installer.stage(host.bundle(1), [])
    assert leftovers(host), "a retry of the signal stages it again"
    newer = host.bundle(1)
    assert kinds(await host.installer.converge([await host.installer.stage(newer, [])], [])) == {1: APPLIED}
    assert (leftovers(host), host.live(1)) == ([], newer.facts.fingerprint_sha256)


async def test_of_two_renewals_in_a_batch_only_the_newer_stays(clock: MockClock, host: Host) -> None:
    older, newer = [await host.installer.stage(host.bundle(1), []) for _ in range(2)]
    assert kinds(await host.installer.converge([older, newer], [])) == {1: APPLIED}
    assert host.live(1) == newer.facts.fingerprint_sha256
    del older, newer
    gc.collect()
    await host.installer.clear_up()
    assert leftovers(host) == []


async def test_material_of_a_certificate_that_never_comes_again_is_removed_without_a_restart(
    clock: MockClock, host: Host
) -> None:
    held = await host.installer.stage(host.bundle(2), [])
    await host.installer.stage(host.bundle(1), [])
    gc.collect()
    await host.installer.clear_up()
    assert [path.parent.name for path in leftovers(host)] == [held.name]
    assert kinds(await host.installer.converge([held], [])) == {2: APPLIED}, "what is in use stays"
    assert leftovers(host) == []
