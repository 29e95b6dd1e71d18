"""The account of an issuer: key changes, deactivation, and what a check shows."""

from __future__ import annotations

import pytest
from acme_world import AcmeWorld, CrashError, once, refused
from scripted_ca import BASE, DIRECTORY_URL, ScriptedCa, problem
from trio.testing import MockClock

from certctrl.plane.issuers.issuer import IssuerError


@pytest.mark.parametrize("kind", ["malformed", "unauthorized"])
async def test_an_account_key_that_another_plane_has_changed_fails_no_order_for_good(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock, kind: str
) -> None:
    issuer = world.issuer()
    await issuer.issue(world.request("a.test"))
    await world.issuer().change_key()
    error = await refused(world, issuer=issuer)
    assert "JWS verification error" in str(error)
    assert (error.is_permanent, error.fix) == (False, "wait; the order is tried again with the present account")
    await issuer.issue(world.request("a.test"))
    ca.hooks.append(once("/newOrder", problem(kind, "really", 400)))
    assert (await refused(world, issuer=issuer)).is_permanent


async def test_a_new_account_key_also_after_a_crash(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    await world.issuer().issue(world.request("a.test"))
    before = ca.accounts[f"{BASE}/acct/1"]["key"]
    await world.issuer().change_key()
    second = ca.accounts[f"{BASE}/acct/1"]["key"]
    assert second != before
    for crash_after in (False, True):  # before the CA has changed it, and after

        def crash(method: str, path: str, payload: object, after: bool = crash_after) -> None:
            if path == "/keyChange":
                if after:
                    ca._key_change("", payload, {"kid": f"{BASE}/acct/1"})
                raise CrashError

        ca.hooks[:] = [crash]
        with pytest.raises(CrashError):
            await world.issuer().change_key()
        ca.hooks.clear()
        await world.issuer().issue(world.request("b.test"))
        assert (ca.accounts[f"{BASE}/acct/1"]["key"] != second) is crash_after
    assert len(ca.accounts) == 1


async def test_a_key_that_another_plane_has_changed(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    """The CA refuses the old key once; after that it is the new one."""
    ours, theirs = world.issuer(), world.issuer()
    await ours.issue(world.request("a.test"))
    await theirs.change_key()
    assert "JWS verification error" in str(await refused(world, issuer=ours))
    await ours.issue(world.request("a.test"))


async def test_urls_of_the_directory_that_have_changed(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    issuer = world.issuer()
    await issuer.issue(world.request("a.test"))
    ca.hooks.append(once("/newOrder", problem("malformed", "no such resource", 404)))
    await refused(world, issuer=issuer)
    await issuer.issue(world.request("a.test"))
    assert ca.count["directory"] == 2


async def test_the_end_of_an_account(world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock) -> None:
    issuer = world.issuer()
    await issuer.deactivate()
    error = await refused(world, issuer=issuer)
    assert error.is_permanent and "is deactivated" in str(error)


async def test_check_tells_what_an_operator_wants_to_know(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    ca.meta["profiles"] = {"classic": ""}
    issuer = world.issuer(budget="50/d")
    await issuer.issue(world.request("a.test"))
    assert await issuer.check() == {
        "directory": DIRECTORY_URL,
        "account": f"{BASE}/acct/1 (valid)",
        "orders left": "49 of 50 orders per 1d",
        "renewal information": "yes",
        "profiles": "classic",
    }
    ca.accounts[f"{BASE}/acct/1"]["status"] = "deactivated"
    with pytest.raises(IssuerError, match="the account is deactivated"):
        await issuer.check()
