"""Changing the account of an issuer through the operator API."""

from __future__ import annotations

from plane_world import World
from scripted_ca import BASE, DIRECTORY_URL, ScriptedCa, problem

from certctrl.plane.audit.log import Filter

ISSUER = {
    "name": "le", "kind": "acme",
    "settings": {"directory_url": DIRECTORY_URL, "terms_agreed": True, "challenges": [{"type": "plane-http"}]},
}  # fmt: skip


async def test_a_new_key_and_the_end_of_an_account(world: World, ca: ScriptedCa) -> None:
    made = await world.operator("POST", "/apiv1/issuers", ISSUER)
    assert made.status < 300, made.body
    assert (await world.operator("POST", "/apiv1/issuers/le/check", {})).data["ok"]
    before = ca.accounts[f"{BASE}/acct/1"]["key"]
    assert (await world.operator("POST", "/apiv1/issuers/le/change-key", {})).data["ok"]
    assert ca.accounts[f"{BASE}/acct/1"]["key"] != before
    assert (await world.operator("POST", "/apiv1/issuers/le/check", {})).data["ok"]
    assert (await world.operator("POST", "/apiv1/issuers/le/deactivate", {})).data["ok"]
    answer = (await world.operator("POST", "/apiv1/issuers/le/check", {})).data
    assert not answer["ok"] and "deactivated" in answer["problem"]
    changes = [entry["action"] for entry in world.plane.audit.page(Filter(), 0, 9)]
    assert changes == ["issuer.deactivate", "issuer.change-key", "issuer.put"], "a check changes nothing"


async def test_a_ca_that_refuses(world: World, ca: ScriptedCa) -> None:
    made = await world.operator("POST", "/apiv1/issuers", ISSUER)
    assert made.status < 300, made.body
    ca.hooks.append(
        lambda method, path, payload: problem("serverInternal", "busy", 500) if path == "/keyChange" else None
    )
    answer = (await world.operator("POST", "/apiv1/issuers/le/change-key", {})).data
    assert answer["problem"] == "the CA refused the new key of the account: busy (serverInternal)" and answer["fix"]
    assert (await world.operator("POST", "/apiv1/issuers/le/check", {})).data["ok"], "the old key stays"


async def test_issuers_without_an_account(world: World) -> None:
    answer = await world.operator("POST", "/apiv1/issuers/builtin/deactivate", {})
    assert (answer.status, answer.key) == (409, "NO_ACCOUNT")
    answer = await world.operator("POST", "/apiv1/issuers/none/deactivate", {})
    assert answer.status == 404
