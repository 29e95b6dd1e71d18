"""Renewal information (ARI), replaced orders and revocation."""

from __future__ import annotations

import pytest
import trio
from acme_world import AcmeWorld, always
from cryptography import x509
from plane_world import WALL
from scripted_ca import ScriptedCa, problem
from trio.testing import MockClock

from certctrl.plane.issuers.issuer import IssuerError


async def test_an_order_replaces_the_certificate_before(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    issuer = world.issuer()
    first = await issuer.issue(world.request("a.test"))
    await issuer.issue(world.request("a.test", replaces_pem=first.certificate_pem))
    replaced = list(ca.orders.values())[-1]["payload"]["replaces"]
    window = await issuer.renewal_window(first.certificate_pem, first.chain_pem)
    assert ca.requests[-1][:2] == ("GET", f"/renewalInfo/{replaced}")
    assert window is not None and (window.start, window.end) == (WALL + 864_000, WALL + 1_036_800)
    assert window.check_again_at == pytest.approx(WALL + trio.current_time() + 7200)


@pytest.mark.parametrize("kind", ["alreadyReplaced", "malformed", "unauthorized"])
async def test_what_cannot_be_replaced_is_ordered_without(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock, kind: str
) -> None:
    first = await world.issuer().issue(world.request("a.test"))
    ca.hooks.append(
        lambda method, path, payload: problem(kind, "no", 409) if payload and "replaces" in payload else None
    )
    await world.issuer().issue(world.request("a.test", replaces_pem=first.certificate_pem))
    assert "replaces" not in list(ca.orders.values())[-1]["payload"]


async def test_without_ari_nothing_is_replaced_and_no_window_known(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    ca.with_ari = False
    issuer = world.issuer()
    first = await issuer.issue(world.request("a.test"))
    await issuer.issue(world.request("a.test", replaces_pem=first.certificate_pem))
    assert all("replaces" not in one["payload"] for one in ca.orders.values())
    assert await issuer.renewal_window(first.certificate_pem, first.chain_pem) is None


async def test_a_certificate_that_ari_does_not_know(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    first = await world.issuer().issue(world.request("a.test"))
    ca.hooks.append(always("/renewalInfo/", problem("malformed", "not ours", 404)))
    assert await world.issuer().renewal_window(first.certificate_pem, first.chain_pem) is None


@pytest.mark.parametrize(
    "body",
    [b"no", [], {}, {"suggestedWindow": {}}, {"suggestedWindow": {"start": "2026-01-02T00:00:00Z", "end": 5}},
     {"suggestedWindow": {"start": "2026-01-02T00:00:00Z", "end": "2026-01-01T00:00:00Z"}},
     {"suggestedWindow": {"start": "2026-01-02T00:00:00", "end": "2026-01-03T00:00:00"}}],
)  # fmt: skip
async def test_renewal_information_that_cannot_be_used(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock, body: object
) -> None:
    first = await world.issuer().issue(world.request("a.test"))
    ca.hooks.append(always("/renewalInfo/", (200, {}, body)))
    with pytest.raises(IssuerError, match="renewal information cannot be used"):
        await world.issuer().renewal_window(first.certificate_pem, first.chain_pem)


async def test_revocation_with_a_reason_twice(world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock) -> None:
    first = await world.issuer().issue(world.request("a.test"))
    for _ in range(2):
        await world.issuer().revoke(first.certificate_pem, first.chain_pem, "superseded")
    serial = x509.load_pem_x509_certificate(first.certificate_pem.encode()).serial_number
    assert ca.revoked == {serial: 4}
