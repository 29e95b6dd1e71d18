"""The agent's client against the plane, without sockets."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import pytest
from nacl.public import PrivateKey, SealedBox
from plane_world import World

from certctrl.errors import PlaneError
from certctrl.model.answer import Answer
from certctrl.model.config import AgentConfig, ApplicationConfig
from certctrl.model.features import PLANE_FEATURES
from certctrl.model.signals import CaAssigned, CertRenewed, CertRevoked, CertUnassigned, InstallUpdated, ResyncRequired
from certctrl.net.control_plane import ControlPlane
from certctrl.net.operator import Operator
from certctrl.plane.http.faults import Fault
from certctrl.protocol import events
from certctrl.protocol.device_flow import GrantDenied, GrantPending, GrantReady, GrantSlowDown
from certctrl.protocol.steps import Poll
from certctrl.protocol.wire.install_config import install_config_from_wire
from certctrl.protocol.wire.registration import key_proof
from certctrl.protocol.wire.signals import ack_event


@attrs.frozen
class InProcess:
    """The agent's ``Http`` over a test client."""

    client: Any

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        json: object = None,
        deadline: float,
        cap: int,
    ) -> Answer:
        target = path + ("?" + "&".join(f"{name}={value}" for name, value in query.items()) if query else "")
        reply = await self.client(method, target, json, headers=headers)
        assert len(reply.body) <= cap
        return Answer(status=reply.status, headers=reply.headers, body=reply.body)

    async def aclose(self) -> None:
        pass


@pytest.fixture
def agent(world: World) -> ControlPlane:
    config = AgentConfig(application=ApplicationConfig(server_url="https://plane.test"))
    return ControlPlane(InProcess(world.stranger), config, wall_now=lambda: world.clock.wall)


@pytest.fixture
def operator(world: World) -> Operator:
    return Operator(InProcess(world.stranger), world.plane.operator_key, wall_now=lambda: world.clock.wall)


async def registered(agent: ControlPlane, operator: Operator, public_id: str = "device-number-1") -> Any:
    token = (await operator.create_enrolment_token(1))["token"]
    return await agent.register(**described(public_id), enrolment_token=token)


def described(public_id: str) -> dict[str, Any]:
    """Return what a new device says of itself."""
    secret = PrivateKey.generate()
    return {
        "device_public_id": public_id,
        "public_key": bytes(secret.public_key),
        "name": "web-1",
        "platform": "linux",
        "model": "x",
        "prove": lambda sealed: key_proof(SealedBox(secret).decrypt(sealed)),
    }


async def test_the_device_grant_with_the_agents_client(world: World, agent: ControlPlane, operator: Operator) -> None:
    started = await agent.start_grant(["updates"], device_public_id="device-number-1")
    assert isinstance(await agent.poll_grant(started.device_code), GrantPending)
    assert isinstance(await agent.poll_grant(started.device_code), GrantSlowDown)
    await operator.answer_grant(started.user_code, approve=True)
    ready = await agent.poll_grant(started.device_code)
    assert isinstance(ready, GrantReady)
    done = await agent.register(
        **described("device-number-1"), user_id=ready.user_id, registration_code=ready.registration_code
    )
    assert done.device_id == 1
    denied = await agent.start_grant()
    await operator.answer_grant(denied.user_code, approve=False)
    assert isinstance(await agent.poll_grant(denied.device_code), GrantDenied)


async def test_every_kind_of_poll_answer_is_understood(world: World, agent: ControlPlane, operator: Operator) -> None:
    done = await registered(agent, operator)
    token = done.access_token
    empty = await agent.poll(token, Poll(None, 20, 0))
    assert isinstance(empty, events.NoUpdates)
    first = await operator.issue(1, "a.example", device_ids=[done.device_id])
    second = await operator.issue(1, "b.example", device_ids=[done.device_id])
    await operator.renew(1, first["id"])
    await operator.revoke_certificate(1, second["id"])
    await operator.unassign(1, done.device_id, second["id"])
    await operator.put_install_config(1, done.device_id, [{"id": 1, "type": "exec", "cmd_argv": ["/bin/true"]}])
    ca = await operator.call("POST", "/apiv1/users/1/cas", json={"name": "own"})
    await operator.call("POST", f"/apiv1/users/1/devices/{done.device_id}/cas", json={"ca_id": ca["id"]})
    await world.plane.resync(1, done.device_id)
    updates = await agent.poll(token, Poll(empty.cursor, 100, 0))
    assert isinstance(updates, events.Updates)
    assert [type(signal) for signal in updates.signals] == [
        CertRenewed, CertRenewed, CertRenewed, CertRevoked, CertUnassigned, InstallUpdated, CaAssigned, ResyncRequired,
    ]  # fmt: skip
    assert isinstance(await agent.poll(token, Poll(updates.cursor, 20, 0)), events.NoUpdates)
    assert isinstance(await agent.poll(token, Poll("1-1", 20, 0)), events.CursorExpired)
    world.faults.add(Fault(status=503, headers={"retry-after": "9"}))
    busy = await agent.poll(token, Poll(updates.cursor, 20, 0))
    assert isinstance(busy, events.ServerBusy)
    assert busy.retry_after == 9
    world.clock.advance(900)
    assert isinstance(await agent.poll(token, Poll(updates.cursor, 20, 0)), events.TokenExpired)
    await operator.call("DELETE", f"/apiv1/users/1/devices/{done.device_id}", json={"reason": "stolen"})
    assert isinstance(await agent.poll(token, Poll(updates.cursor, 20, 0)), events.DeviceRevoked)


async def test_too_many_polls_are_server_busy_with_retry_after(build: Callable[..., World]) -> None:
    world = build()
    device = await world.device()
    config = AgentConfig(application=ApplicationConfig(server_url="https://plane.test"))
    agent = ControlPlane(InProcess(world.stranger), config, wall_now=lambda: world.clock.wall)
    answers = [await agent.poll(device.token, Poll(None, 20, 0)) for _ in range(6)]
    assert isinstance(answers[-1], events.ServerBusy)
    assert answers[-1].retry_after == 1


async def test_every_resource_is_understood(world: World, agent: ControlPlane, operator: Operator) -> None:
    done = await registered(agent, operator)
    token, device_id = done.access_token, done.device_id
    row = await operator.issue(1, "a.example", sans=["www.a.example"], device_ids=[device_id])
    (summary,) = await agent.fetch_certificates(token)
    assert (summary.id, summary.sans, summary.status) == (row["id"], ("a.example", "www.a.example"), "active")
    detail = await agent.fetch_certificate(token, row["id"])
    materials = await agent.fetch_materials(token, row["id"])
    assert materials.certificate_pem == detail.certificate_pem
    assert materials.enc_scheme == "aes256gcm"
    assert len(base64.b64decode(materials.enc_data_key_b64 or "")) == 80
    await operator.put_install_config(1, device_id, [{"id": 1, "type": "exec", "cmd_argv": ["/bin/true"]}])
    fetched = await agent.fetch_install_config(token, 1, device_id, None)
    assert fetched is not None
    etag, data = fetched
    assert install_config_from_wire(data).version == 2
    assert await agent.fetch_install_config(token, 1, device_id, etag) is None
    ca = await operator.call("POST", "/apiv1/users/1/cas", json={"name": "own"})
    await operator.call("POST", f"/apiv1/users/1/devices/{device_id}/cas", json={"ca_id": ca["id"]})
    assert (await agent.fetch_ca(token, ca["id"])).ca_certificate_pem == world.plane.ca.root_pem
    await agent.request_renewal(token, 1, row["id"], "near its end")
    assert (await agent.fetch_certificate(token, row["id"])).serial_number != row["serial_number"]
    with pytest.raises(PlaneError) as caught:
        await agent.fetch_materials(token, 99)
    assert caught.value.status == 404


async def test_reports_and_refresh(world: World, agent: ControlPlane, operator: Operator) -> None:
    done = await registered(agent, operator)
    row = await operator.issue(1, "a.example", device_ids=[done.device_id])
    updates = await agent.poll(done.access_token, Poll(None, 20, 0))
    assert isinstance(updates, events.Updates)
    from certctrl.model.plan import Outcome, OutcomeKind

    notice = ack_event(updates.signals[0], Outcome(kind=OutcomeKind.APPLIED), 12)
    await agent.post_notify(done.access_token, [notice])
    (outcome,) = await operator.call("GET", f"/apiv1/users/1/devices/{done.device_id}/outcomes")
    assert (outcome["outcome"], outcome["signal"]["ref"]["cert_id"]) == ("applied", row["id"])
    refreshed = await agent.refresh(done.refresh_token, "device-number-1")
    assert refreshed.access_token != done.access_token
    assert agent.server_skew == pytest.approx(0.5)


async def test_the_plane_announces_its_features_with_each_session(agent: ControlPlane, operator: Operator) -> None:
    done = await registered(agent, operator)
    assert done.features == frozenset(PLANE_FEATURES) != frozenset()
    assert (await agent.refresh(done.refresh_token, "device-number-1")).features == done.features
