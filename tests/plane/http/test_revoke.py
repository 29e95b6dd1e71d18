"""Revocation and the built-in CA through the HTTP API and the operator's commands."""

from __future__ import annotations

from typing import Any

import pytest
from issued import CERTIFICATES, issue, signals
from plane_world import World


async def revoke(world: World, cert_id: int, **body: object) -> Any:
    return await world.operator("POST", f"{CERTIFICATES}/{cert_id}/revoke", body)


async def test_a_revocation_with_a_reason_code(world: World) -> None:
    device = await world.device()
    row = await issue(world, "www.example.com", device_ids=[device.id])
    done = (await revoke(world, row["id"], reason="stolen laptop", reason_code="keyCompromise")).data
    assert (done["status"], done["revoke_reason"], done["revoke_code"]) == ("revoked", "stolen laptop", "keyCompromise")
    (one,) = done["revocations"]
    assert (one["serial_number"], one["state"], one["issuer"]) == (row["serial_number"], "done", "builtin")
    assert one["reason_code"] == "keyCompromise"
    assert [kind for kind, _ in await signals(device)][-1] == "cert.revoked"


async def test_a_replacement_keeps_the_device_served(world: World) -> None:
    device = await world.device()
    row = await issue(world, "www.example.com", device_ids=[device.id])
    done = (await revoke(world, row["id"], replace=True)).data
    assert (done["status"], done["serial_number"] == row["serial_number"]) == ("active", False)
    seen = await signals(device)
    assert "cert.revoked" not in [kind for kind, _ in seen]
    assert seen[-1] == ("cert.renewed", {"cert_id": row["id"], "serial": done["serial_number"]})


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"reason_code": "stolen"}, 400, "reason_code"),
        ({"reason_code": 1}, 400, "reason_code"),
        ({"serial_number": "x"}, 400, "serial_number"),
        ({"serial_number": "0a", "replace": True}, 400, "serial_number"),
        ({"replace": "yes"}, 400, "replace"),
        ({"serial_number": "0a:0b"}, 404, None),
    ],
)
async def test_bad_requests_change_nothing(world: World, body: dict[str, Any], status: int, field: str | None) -> None:
    row = await issue(world, "www.example.com")
    reply = await revoke(world, row["id"], **body)
    assert reply.status == status
    assert reply.json["error"]["params"].get("field") == field
    shown = (await world.operator("GET", f"{CERTIFICATES}/{row['id']}")).data
    assert (shown["status"], shown["revocations"]) == ("active", [])
