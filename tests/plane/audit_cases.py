"""One successful request for every route that changes something, for the table test of the audit log."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import Any

from made_chains import made, pki
from page_browser import Browser
from plane_world import World

from certctrl.plane.access.roles import Role
from certctrl.plane.alerts.texts import test_message as message_of_test
from certctrl.plane.devices.grants import GrantRequest

Case = Callable[[World], Awaitable[Any]]

SECRET = "secret-of-an-issuer"
USER, DEVICE, CERTIFICATE = (
    "/apiv1/users/{uid}",
    "/apiv1/users/{uid}/devices/{did}",
    "/apiv1/users/{uid}/certificates/{cid}",
)
ISSUER = {"name": "le", "kind": "scripted", "secrets": {"eab": base64.b64encode(SECRET.encode()).decode()}}
ITEM = {"id": 1, "type": "exec", "cmd_argv": ["/bin/true"], "env": {"PASSWORD": SECRET}}


async def device_of(world: World) -> int:
    return (await world.device()).id


async def certificate(world: World, device_id: int | None = None, name: str = "a.example", issuer: str = "") -> int:
    ids = () if device_id is None else (device_id,)
    row = await world.plane.certificates.issue(1, [name], device_ids=ids, issuer=issuer)
    return int(row["id"])


async def issuer(world: World) -> None:
    from certctrl.plane.issuers.registry import NewIssuer

    await world.plane.work(world.plane.issuers.put, NewIssuer(name="le", kind="scripted", settings={}))


async def order(world: World) -> int:
    await issuer(world)
    row = await world.plane.certificates.issue(1, ["b.example"], issuer="le")
    return int(row["order_id"])


async def grant(world: World) -> str:
    started = await world.plane.work(world.plane.grants.start, GrantRequest(name="web-9"), "caller")
    assert isinstance(started, dict)
    return str(started["user_code"])


async def authority(world: World) -> int:
    return int((await world.plane.work(world.plane.authorities.add, 1, "own"))["id"])


# --- users and devices ------------------------------------------------------------------------------------------------


async def add_user(world: World) -> Any:
    return await world.operator("POST", "/apiv1/users", {"name": "web team"})


async def expect_device(world: World) -> Any:
    return await world.operator("POST", "/apiv1/users/1/devices", {"device_public_id": "f" * 36, "name": "web-7"})


async def revoke_device(world: World) -> Any:
    return await world.operator("DELETE", f"/apiv1/users/1/devices/{await device_of(world)}?reason=stolen")


async def rename_device(world: World) -> Any:
    return await world.operator("POST", f"/apiv1/users/1/devices/{await device_of(world)}/name", {"name": "shop-1"})


async def replace_device(world: World) -> Any:
    return await world.operator("POST", f"/apiv1/users/1/devices/{await device_of(world)}/replacement", {})


async def cancel_replacement(world: World) -> Any:
    device_id = await device_of(world)
    await world.plane.life.replace(1, device_id)
    return await world.operator("DELETE", f"/apiv1/users/1/devices/{device_id}/replacement")


async def rotate_key(world: World) -> Any:
    device_id = await device_of(world)
    world.plane.database.run("UPDATE devices SET features = ? WHERE id = ?", '["key-rotation"]', device_id)
    return await world.operator("POST", f"/apiv1/users/1/devices/{device_id}/key-rotation", {})


async def decommission_device(world: World) -> Any:
    return await world.operator("POST", f"/apiv1/users/1/devices/{await device_of(world)}/decommission", {})


async def resync(world: World) -> Any:
    return await world.operator("POST", f"/apiv1/users/1/devices/{await device_of(world)}/resync", {})


async def put_install_config(world: World) -> Any:
    path = f"/apiv1/users/1/devices/{await device_of(world)}/install-config"
    return await world.operator("PUT", path, {"installs": [ITEM]})


async def tag(world: World) -> Any:
    body = {"device_ids": [await device_of(world)], "add": ["web"]}
    return await world.operator("POST", "/apiv1/users/1/device-tags", body)


async def new_enrolment_token(world: World) -> Any:
    return await world.operator("POST", "/apiv1/users/1/enrolment-tokens", {"label": "rack 4"})


async def end_enrolment_token(world: World) -> Any:
    token = await world.plane.work(world.plane.enrolment.new_token, 1)
    return await world.operator("DELETE", f"/apiv1/users/1/enrolment-tokens/{token['id']}")


async def decide_grant(world: World) -> Any:
    return await world.operator("POST", f"/apiv1/device-grants/{await grant(world)}", {"approve": True})


# --- certificates and CAs ---------------------------------------------------------------------------------------------


async def assign(world: World) -> Any:
    path = f"/apiv1/users/1/devices/{await device_of(world)}/certificates"
    return await world.operator("POST", path, {"cert_id": await certificate(world)})


async def unassign(world: World) -> Any:
    device_id = await device_of(world)
    cert_id = await certificate(world, device_id)
    return await world.operator("DELETE", f"/apiv1/users/1/devices/{device_id}/certificates/{cert_id}")


async def assign_authority(world: World) -> Any:
    path = f"/apiv1/users/1/devices/{await device_of(world)}/cas"
    return await world.operator("POST", path, {"ca_id": await authority(world)})


async def unassign_authority(world: World) -> Any:
    device_id, ca_id = await device_of(world), await authority(world)
    await world.plane.authorities.assign(1, device_id, ca_id)
    return await world.operator("DELETE", f"/apiv1/users/1/devices/{device_id}/cas/{ca_id}")


async def issue(world: World) -> Any:
    body = {"domain_name": "a.example", "device_ids": [await device_of(world)]}
    return await world.operator("POST", "/apiv1/users/1/certificates", body)


async def change_certificate(world: World) -> Any:
    await issuer(world)
    return await world.operator("PATCH", f"/apiv1/users/1/certificates/{await certificate(world)}", {"issuer": "le"})


async def renew(world: World) -> Any:
    path = f"/apiv1/users/1/certificates/{await certificate(world)}/issues"
    return await world.operator("POST", path, {"action": "renew", "reason": "key rotation"})


async def revoke(world: World) -> Any:
    path = f"/apiv1/users/1/certificates/{await certificate(world)}/revoke"
    return await world.operator("POST", path, {"reason": "key lost", "replace": True})


async def add_import(world: World) -> Any:
    now = world.clock.wall
    root, middle = pki()
    leaf = made("leaf", middle, names=["c.example"], start=now - 100, end=now + 86_400)
    body = {"certificate_pem": leaf.pem, "private_key_pem": leaf.key_pem, "chain_pem": middle.pem + root.pem}
    return await world.operator("POST", "/apiv1/users/1/certificate-imports", body)


async def renew_many(world: World) -> Any:
    ids = [await certificate(world, name=f"{number}.example") for number in range(25)]  # in several units of work
    return await world.operator("POST", "/apiv1/users/1/renewals", {"cert_ids": ids})


async def put_set(world: World) -> Any:
    ids = [await certificate(world, name=f"{number}.example") for number in range(2)]
    return await world.operator("POST", "/apiv1/users/1/certificate-sets", {"name": "mail", "cert_ids": ids})


async def dissolve(world: World) -> Any:
    await issuer(world)
    ids = [await certificate(world, name=f"{number}.example") for number in range(2)]
    (batch, *_) = {row["batch"] for row in await world.plane.bulk.renew(1, ids, "", together=True)}
    return await world.operator("POST", f"/apiv1/users/1/batches/{batch}/dissolve", {})


async def add_authority(world: World) -> Any:
    return await world.operator("POST", "/apiv1/users/1/cas", {"name": "own"})


# --- profiles and rollouts --------------------------------------------------------------------------------------------

PROFILE = {"devices": "*", "installs": [ITEM]}


async def put_profile(world: World) -> Any:
    await device_of(world)
    return await world.operator("PUT", "/apiv1/users/1/profiles/web", PROFILE)


async def delete_profile(world: World) -> Any:
    await put_profile(world)
    forget(world)
    return await world.operator("DELETE", "/apiv1/users/1/profiles/web")


async def start_rollout(world: World) -> Any:
    await device_of(world)
    return await world.operator("POST", "/apiv1/users/1/rollouts", PROFILE | {"profile": "web"})


async def pause_rollout(world: World) -> Any:
    return await change_rollout(world, "pause")


async def resume_rollout(world: World) -> Any:
    rollout_id = (await start_rollout(world)).data["id"]
    await world.operator("POST", f"/apiv1/users/1/rollouts/{rollout_id}/pause", {})
    forget(world)
    return await world.operator("POST", f"/apiv1/users/1/rollouts/{rollout_id}/resume", {})


async def abort_rollout(world: World) -> Any:
    return await change_rollout(world, "abort")


async def change_rollout(world: World, change: str) -> Any:
    rollout_id = (await start_rollout(world)).data["id"]
    forget(world)
    return await world.operator("POST", f"/apiv1/users/1/rollouts/{rollout_id}/{change}", {})


async def put_renewal_plan(world: World) -> Any:
    return await world.operator("POST", "/apiv1/users/1/renewal-rollouts", {"over": 10})


async def freeze(world: World) -> Any:
    return await world.operator("POST", "/apiv1/users/1/rollout-freeze", {"reason": "the fair"})


# --- issuers and orders -----------------------------------------------------------------------------------------------


async def retry_order(world: World) -> Any:
    order_id = await order(world)
    await world.plane.work(world.plane.orders.cancel, 1, order_id)
    return await world.operator("POST", f"/apiv1/users/1/orders/{order_id}/retry", {})


async def cancel_order(world: World) -> Any:
    return await world.operator("POST", f"/apiv1/users/1/orders/{await order(world)}/cancel", {})


async def put_issuer(world: World) -> Any:
    return await world.operator("POST", "/apiv1/issuers", ISSUER)


async def remove_issuer(world: World) -> Any:
    await issuer(world)
    return await world.operator("DELETE", "/apiv1/issuers/le")


CHANNEL = {
    "name": "ops", "kind": "slack", "secrets": {"url": f"https://hooks.example.com/services/{SECRET}"},
}  # fmt: skip


async def put_channel(world: World) -> Any:
    return await world.operator("POST", "/apiv1/alert-channels", CHANNEL)


async def remove_channel(world: World) -> Any:
    await put_channel(world)
    forget(world)
    return await world.operator("DELETE", "/apiv1/alert-channels/ops")


async def test_channel(world: World) -> Any:
    mail = {"host": "localhost", "port": 9, "sender": "a@example.com", "recipients": ["b@example.com"]}
    await world.operator("POST", "/apiv1/alert-channels", {"name": "mail", "kind": "mail", "settings": mail})
    forget(world)
    return await world.operator("POST", "/apiv1/alert-channels/mail/test", {})


async def resend(world: World) -> Any:
    number = await dead_message(world)
    return await world.operator("POST", f"/apiv1/alert-messages/{number}/resend", {})


async def dismiss_message(world: World) -> Any:
    number = await dead_message(world)
    return await world.operator("POST", f"/apiv1/alert-messages/{number}/dismiss", {})


async def dead_message(world: World) -> int:
    await put_channel(world)
    alerts = world.plane.alerts
    channel = await world.plane.work(alerts.channels.named, "ops")
    number = await world.plane.work(alerts.outbox.add, channel.id, message_of_test("ops", world.clock.wall))
    await world.plane.work(world.plane.database.run, "UPDATE alert_messages SET state = 'dead'")
    forget(world)
    return number


async def put_rule(world: World) -> Any:
    await issuer(world)
    return await world.operator("POST", "/apiv1/issuer-rules", {"domain": "example.org", "issuer": "le"})


async def remove_rule(world: World) -> Any:
    await issuer(world)
    await world.plane.work(world.plane.issuers.put_rule, "example.org", "le")
    return await world.operator("DELETE", "/apiv1/issuer-rules?domain=example.org")


async def constrain(world: World) -> Any:
    return await world.operator("POST", "/apiv1/plane/ca/constraints", {"domains": ["example"]})


async def switch_tls(world: World) -> Any:
    world.plane.database.run("INSERT INTO settings VALUES ('tls_ca', 'shared')")
    world.plane.anchor.switched = False
    return await world.operator("POST", "/apiv1/plane/tls", {"force": True})


# --- operators and tokens ---------------------------------------------------------------------------------------------


async def operator(world: World, role: Role = Role.ADMIN) -> int:
    """Add an operator with a token; return the id of that."""
    accounts = world.plane.access.accounts
    await world.plane.work(accounts.add, "alice", role)
    return int((await world.plane.work(accounts.create_token, "alice", "ci", None, 3600))["id"])


async def add_operator(world: World) -> Any:
    return await world.operator("POST", "/apiv1/operators", {"name": "alice", "role": "viewer"})


async def change_operator(world: World) -> Any:
    await operator(world)
    return await world.operator("PATCH", "/apiv1/operators/alice", {"disabled": True})


async def delete_operator(world: World) -> Any:
    await operator(world)
    return await world.operator("DELETE", "/apiv1/operators/alice")


async def create_token(world: World) -> Any:
    await operator(world)
    body = {"operator": "alice", "name": "laptop", "expires_in": 3600}
    return await world.operator("POST", "/apiv1/operator-tokens", body)


async def revoke_token(world: World) -> Any:
    return await world.operator("DELETE", f"/apiv1/operator-tokens/{await operator(world)}")


async def turn_key_off(world: World) -> Any:
    await operator(world)
    return await world.operator("DELETE", "/apiv1/plane/operator-key")


# --- the approval page and POST /auth/device --------------------------------------------------------------------------


async def sign_in_by_page(world: World) -> Any:
    return await Browser(world.stranger).sign_in(world.plane.operator_key)


async def sign_out_by_page(world: World) -> Any:
    browser = Browser(world.stranger)
    await browser.sign_in(world.plane.operator_key)
    await browser.get("/device")
    forget(world)
    return await browser.post("/device/sign-out")


async def decide_by_page(world: World) -> Any:
    browser, code = Browser(world.stranger), await grant(world)
    await browser.sign_in(world.plane.operator_key)
    await browser.get(f"/device?user_code={code}")
    forget(world)
    return await browser.post("/device/decide", user_code=code, decision="approve")


async def decide_by_code(world: World) -> Any:
    body = {"action": "device_verify", "user_code": await grant(world), "approve": True}
    return await world.operator("POST", "/auth/device", body)


def forget(world: World) -> None:
    """Forget the entries of the preparation."""
    world.plane.database.run("DELETE FROM audit_objects")
    world.plane.database.run("DELETE FROM audit")


CASES: dict[tuple[str, str], Case] = {
    ("POST", "/apiv1/users"): add_user,
    ("POST", f"{USER}/devices"): expect_device,
    ("DELETE", DEVICE): revoke_device,
    ("POST", f"{DEVICE}/name"): rename_device,
    ("POST", f"{DEVICE}/replacement"): replace_device,
    ("DELETE", f"{DEVICE}/replacement"): cancel_replacement,
    ("POST", f"{DEVICE}/key-rotation"): rotate_key,
    ("POST", f"{DEVICE}/decommission"): decommission_device,
    ("POST", f"{DEVICE}/resync"): resync,
    ("PUT", f"{DEVICE}/install-config"): put_install_config,
    ("POST", f"{USER}/device-tags"): tag,
    ("POST", f"{USER}/enrolment-tokens"): new_enrolment_token,
    ("DELETE", f"{USER}/enrolment-tokens/{{tid}}"): end_enrolment_token,
    ("POST", "/apiv1/device-grants/{code}"): decide_grant,
    ("POST", f"{DEVICE}/certificates"): assign,
    ("DELETE", f"{DEVICE}/certificates/{{cid}}"): unassign,
    ("POST", f"{DEVICE}/cas"): assign_authority,
    ("DELETE", f"{DEVICE}/cas/{{caid}}"): unassign_authority,
    ("POST", f"{USER}/certificates"): issue,
    ("PATCH", CERTIFICATE): change_certificate,
    ("POST", f"{CERTIFICATE}/issues"): renew,
    ("POST", f"{CERTIFICATE}/revoke"): revoke,
    ("POST", f"{USER}/certificate-imports"): add_import,
    ("POST", f"{USER}/renewals"): renew_many,
    ("POST", f"{USER}/certificate-sets"): put_set,
    ("POST", f"{USER}/batches/{{name}}/dissolve"): dissolve,
    ("POST", f"{USER}/cas"): add_authority,
    ("PUT", f"{USER}/profiles/{{name}}"): put_profile,
    ("DELETE", f"{USER}/profiles/{{name}}"): delete_profile,
    ("POST", f"{USER}/rollouts"): start_rollout,
    ("POST", f"{USER}/rollouts/{{rid}}/pause"): pause_rollout,
    ("POST", f"{USER}/rollouts/{{rid}}/resume"): resume_rollout,
    ("POST", f"{USER}/rollouts/{{rid}}/abort"): abort_rollout,
    ("POST", f"{USER}/rollout-freeze"): freeze,
    ("POST", f"{USER}/renewal-rollouts"): put_renewal_plan,
    ("POST", f"{USER}/orders/{{oid}}/retry"): retry_order,
    ("POST", f"{USER}/orders/{{oid}}/cancel"): cancel_order,
    ("POST", "/apiv1/issuers"): put_issuer,
    ("DELETE", "/apiv1/issuers/{name}"): remove_issuer,
    ("POST", "/apiv1/issuer-rules"): put_rule,
    ("DELETE", "/apiv1/issuer-rules"): remove_rule,
    ("POST", "/apiv1/alert-channels"): put_channel,
    ("DELETE", "/apiv1/alert-channels/{channel}"): remove_channel,
    ("POST", "/apiv1/alert-channels/{channel}/test"): test_channel,
    ("POST", "/apiv1/alert-messages/{mid}/resend"): resend,
    ("POST", "/apiv1/alert-messages/{mid}/dismiss"): dismiss_message,
    ("POST", "/apiv1/plane/ca/constraints"): constrain,
    ("POST", "/apiv1/plane/tls"): switch_tls,
    ("POST", "/apiv1/operators"): add_operator,
    ("PATCH", "/apiv1/operators/{operator}"): change_operator,
    ("DELETE", "/apiv1/operators/{operator}"): delete_operator,
    ("POST", "/apiv1/operator-tokens"): create_token,
    ("DELETE", "/apiv1/operator-tokens/{ktid}"): revoke_token,
    ("DELETE", "/apiv1/plane/operator-key"): turn_key_off,
}  # fmt: skip
"""Route -> a request to it that changes something."""

ELSEWHERE = {
    ("POST", f"{DEVICE}/questions"): "tests/plane/push/test_questions.py",
    ("POST", "/apiv1/issuers/{name}/change-key"): "tests/plane/issuers/test_acme_account_commands.py",
    ("POST", "/apiv1/issuers/{name}/deactivate"): "tests/plane/issuers/test_acme_account_commands.py",
}  # fmt: skip
"""Routes that need an agent or a CA."""

OTHER_CASES: dict[str, tuple[str, Case]] = {
    "sign in": ("session.sign-in", sign_in_by_page),
    "sign out": ("session.sign-out", sign_out_by_page),
    "page": ("grant.decide", decide_by_page),
    "device_verify": ("grant.decide", decide_by_code),
}  # fmt: skip
"""Changes by the approval page and by ``POST /auth/device``."""
