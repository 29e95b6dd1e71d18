"""Signing requests of devices that a CA refuses: the operator learns why, and the device makes another key, ever later."""

from __future__ import annotations

from typing import Any

import pytest
from csrs import csr
from device_key_site import NAMES, Site, refused
from scripted_issuer import ScriptedCa, scripted

from certctrl.errors import ExitStatus
from certctrl.plane.acme.problems import read_problem, refusal
from certctrl.plane.health.problems import ProblemName
from certctrl.plane.issuers.issuer import IssuerError
from certctrl.plane.issuers.registry import NewIssuer
from certctrl.plane.settings import DAY


def weak_key() -> IssuerError:
    return IssuerError("the CA refused the key", fix="use another key type", is_permanent=True, about_request=True)


@pytest.fixture
async def ca(site: Site) -> Any:
    with scripted(lambda: site.now) as kind:
        await site.plane.work(site.plane.issuers.put, NewIssuer(name="le", kind="scripted", settings={}))
        yield kind.ca


async def renewed(site: Site, ca: ScriptedCa, **options: object) -> tuple[int, int, int]:
    """Return device, certificate and the open order of its renewal, for which the device has sent a request."""
    device = await site.device()
    row = await site.issue(device, issuer="le", **options)
    await site.meets(device, row["id"])
    await site.plane.certificates.renew(1, row["id"])
    await site.sends(device, row["id"], csr(NAMES))
    return device, row["id"], (await site.shown(row["id"]))["order_id"]


async def order_of(site: Site, order_id: int) -> dict[str, Any]:
    return await site.plane.work(site.plane.orders.show, 1, order_id)


async def due(site: Site, order_id: int) -> float:
    row = await site.plane.work(site.db.one, "SELECT next_at FROM orders WHERE id = ?", order_id)
    assert row is not None
    return float(row["next_at"])


async def test_a_device_makes_another_key_for_a_renewal_that_was_refused(
    site: Site, ca: ScriptedCa, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("certctrl.plane.orders.problems.EVERY_SECONDS", 0.0)
    device, cert_id, order_id = await renewed(site, ca)
    before = await site.shown(cert_id)
    ca.script = [weak_key()]
    assert await site.plane.order_runner.run_once() == 1
    told = await order_of(site, order_id)
    assert (told["state"], told["problem"]) == ("ready", "the CA refused the key")
    assert told["fix"] == "the device makes another key for the next attempt; use another key type"
    await site.plane.order_runner._problems.update()
    (shown,) = [one for one in site.plane.problems.now() if one.name is ProblemName.ORDERS]
    assert "the CA refused the key" in shown.what

    assert await site.plane.order_runner.run_once() == 0, "not before its time"
    site.now = await due(site, order_id)
    assert await site.plane.order_runner.run_once() == 1
    ended, after = await order_of(site, order_id), await site.shown(cert_id)
    assert (ended["state"], ended["problem"]) == ("failed", "the CA refused the key")
    assert (after["order_id"] > order_id, after["order_state"]) == (True, "csr_wanted")
    assert (await order_of(site, after["order_id"]))["problem"] == "the CA refused the key"
    assert after["serial_number"] == before["serial_number"], "the certificate in use stays"
    assert (await site.signals(device))[-1][1]["order_id"] == after["order_id"]

    done = await site.meets(device, cert_id)
    assert (done["order_id"], done["serial_number"] != before["serial_number"]) == (None, True)
    assert len({request.csr_der for request in ca.requests}) == len(ca.requests) == 3
    await site.plane.certificates.renew(1, cert_id)
    await site.sends(device, cert_id, csr(NAMES))
    fresh = await site.plane.work(site.db.one, "SELECT max(refused_requests) AS n FROM orders WHERE state = 'ready'")
    assert fresh is not None and fresh["n"] == 0


async def test_new_keys_are_made_ever_later(site: Site, ca: ScriptedCa) -> None:
    device, cert_id, order_id = await renewed(site, ca, validity_seconds=90 * DAY)
    pauses = []
    for _ in range(6):
        ca.script = [weak_key()]
        assert await site.plane.order_runner.run_once() == 1
        pauses.append((await due(site, order_id) - site.now) / DAY)
        site.now = await due(site, order_id)
        assert await site.plane.order_runner.run_once() == 1
        await site.sends(device, cert_id, csr(NAMES))
        order_id = (await site.shown(cert_id))["order_id"]
    for number, pause in enumerate(pauses):
        expected = min(2.0**number, 7.0)
        assert expected * 0.5 <= pause <= expected, pauses


async def test_a_refused_request_cannot_be_sent_again(site: Site, ca: ScriptedCa) -> None:
    device, cert_id, order_id = await renewed(site, ca)
    ca.script = [weak_key()]
    assert await site.plane.order_runner.run_once() == 1
    assert await refused(site.sends(device, cert_id, csr(NAMES), order_id)) == (409, "ORDER_STATE", None)


async def test_an_operator_has_the_next_key_made_now(site: Site, ca: ScriptedCa) -> None:
    _, cert_id, order_id = await renewed(site, ca)
    ca.script = [weak_key()]
    assert await site.plane.order_runner.run_once() == 1
    await site.plane.work(site.plane.orders.retry, 1, order_id)
    assert await site.plane.order_runner.run_once() == 1
    assert (await site.shown(cert_id))["order_state"] == "csr_wanted"


async def test_a_key_that_is_kept_is_not_kept_once_it_is_refused(site: Site, ca: ScriptedCa) -> None:
    device = await site.device()
    row = await site.issue(device, issuer="le", reuse_key=True)
    await site.meets(device, row["id"])
    order_id = (await site.plane.certificates.renew(1, row["id"]))["order_id"]
    ca.script = [weak_key()]
    assert await site.plane.order_runner.run_once() == 1, "with the request of before"
    site.now = await due(site, order_id)
    assert await site.plane.order_runner.run_once() == 1
    assert (await site.shown(row["id"]))["order_state"] == "csr_wanted"


async def test_another_refusal_repeats_the_request(site: Site, ca: ScriptedCa) -> None:
    """A new key would not help: the operator has to change something, such as the profile."""
    _, cert_id, order_id = await renewed(site, ca)
    ca.script = [IssuerError("no such profile", is_permanent=True)]
    assert await site.plane.order_runner.run_once() == 1
    site.now = await due(site, order_id)
    assert await site.plane.order_runner.run_once() == 1
    assert (await site.shown(cert_id))["order_id"] is None
    assert ca.requests[-1].csr_der == ca.requests[-2].csr_der


async def test_a_device_that_never_answers_does_not_make_keys_sooner(site: Site, ca: ScriptedCa) -> None:
    *_, order_id = await renewed(site, ca)
    ca.script = [weak_key()]
    assert await site.plane.order_runner.run_once() == 1
    site.now = await due(site, order_id)
    assert await site.plane.order_runner.run_once() == 1
    site.now += 8 * DAY
    await site.plane.work(site.plane.device_keys.replace_expired)
    row = await site.plane.work(site.db.one, "SELECT refused_requests FROM orders WHERE state = 'csr_wanted'")
    assert row is not None and row["refused_requests"] == 1


@pytest.mark.parametrize(
    ("kind", "about_request"), [("badCSR", True), ("badPublicKey", True), ("malformed", False), ("dns", False)]
)
def test_a_problem_of_a_ca_says_whether_another_key_may_help(kind: str, about_request: bool) -> None:
    error = refusal("the order", read_problem({"type": f"urn:ietf:params:acme:error:{kind}", "detail": "no"}, 400))
    assert (error.about_request, error.exit_status) == (about_request, ExitStatus.UNAVAILABLE)
