"""The operator's client and the agent's calls against the reference plane, over real TLS."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
import trio
from nacl.public import PrivateKey, SealedBox

from certctrl.errors import BadAnswerError, PlaneError
from certctrl.model.answer import Answer
from certctrl.model.config import AgentConfig, ApplicationConfig, HttpClientConfig
from certctrl.net.control_plane import ControlPlane
from certctrl.net.operator import PAGE, Operator
from certctrl.net.transport import HttpcoreHttp
from certctrl.plane.serve import serve_plane
from certctrl.protocol import events
from certctrl.protocol.device_flow import GrantDenied, GrantPending, GrantReady
from certctrl.protocol.steps import Poll
from certctrl.protocol.wire.install_config import install_config_from_wire
from certctrl.protocol.wire.registration import key_proof

WALL = 1_790_000_000.0


wall = time.time


@attrs.frozen
class World:
    """A running plane, its operator, and an agent's client."""

    operator: Operator
    agent: ControlPlane
    http: HttpcoreHttp


@pytest.fixture
async def world(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[World]:
    address = await nursery.start(serve_plane, tmp_path / "plane")
    config = AgentConfig(
        application=ApplicationConfig(server_url=address.url),
        httpclient=HttpClientConfig(ca_files=(str(address.ca_file),)),
    )
    http = HttpcoreHttp(config, root=tmp_path, wall_now=wall)
    key = address.operator_key_file.read_text().strip()
    yield World(Operator(http, key, wall_now=wall), ControlPlane(http, config, wall_now=wall), http)
    await http.aclose()


SECRET = PrivateKey.generate()


async def enrolled(world: World, **credential: Any) -> Any:
    return await world.agent.register(
        device_public_id="23229bf7-5172-02c7-59a2-76d5b4a40090",
        public_key=bytes(SECRET.public_key),
        name="web-1",
        platform="linux",
        model="test",
        prove=lambda sealed: key_proof(SealedBox(SECRET).decrypt(sealed)),
        **credential,
    )


async def test_the_life_of_a_device(world: World) -> None:
    """Enrol, issue, assign, fetch, renew, ack, refresh, revoke: every call works against the reference plane."""
    operator, agent = world.operator, world.agent
    assert (await operator.call("GET", "/health"))["status"] == "ok"
    token = await operator.create_enrolment_token(1, label="test")
    done = await enrolled(world, enrolment_token=token["token"])
    assert [(row["id"], row["name"]) for row in await operator.fetch_devices(1)] == [(done.device_id, "web-1")]

    cert = await operator.issue(1, "app.example.com", sans=["www.example.com"])
    await operator.assign(1, done.device_id, cert["id"])
    assert [row["id"] for row in await operator.fetch_certificates(1)] == [cert["id"]]
    access = done.access_token
    (summary,) = await agent.fetch_certificates(access)
    assert set(summary.sans) == {"app.example.com", "www.example.com"}
    materials = await agent.fetch_materials(access, cert["id"])
    assert materials.enc_scheme == "aes256gcm"
    assert materials.certificate_pem is not None
    assert (await agent.fetch_certificate(access, cert["id"])).certificate_pem == materials.certificate_pem

    items = [{"id": "1", "type": "exec", "cmd_argv": ["/bin/true"]}]
    await operator.put_install_config(1, done.device_id, items)
    fetched = await agent.fetch_install_config(access, 1, done.device_id, None)
    assert fetched is not None
    etag, raw = fetched
    assert [item.id for item in install_config_from_wire(raw).items] == ["1"]
    assert await agent.fetch_install_config(access, 1, done.device_id, etag) is None
    assert (await operator.fetch_install_config(1, done.device_id))["version"] == raw["version"]

    before = await agent.poll(access, Poll(None, 20, 0))
    assert isinstance(before, events.Updates)
    assert "cert.renewed" in {signal.type for signal in before.signals}
    await operator.renew(1, cert["id"], "test")
    await agent.request_renewal(access, 1, cert["id"], "test")
    after = await agent.poll(access, Poll(before.cursor, 20, 5))
    assert isinstance(after, events.Updates)
    await agent.post_notify(access, [{"type": "agent_version", "agent": "cert-ctrl", "version": "0"}])
    device = f"/apiv1/users/1/devices/{done.device_id}"
    assert isinstance(await operator.call("GET", f"{device}/outcomes"), list)

    fresh = await agent.refresh(done.refresh_token, done.device_public_id)
    assert (await agent.fetch_certificates(fresh.access_token)) != []
    await operator.revoke_certificate(1, cert["id"], "test")
    assert (await agent.fetch_certificate(fresh.access_token, cert["id"])).status == "revoked"
    await operator.unassign(1, done.device_id, cert["id"])
    with pytest.raises(PlaneError) as caught:
        await agent.fetch_certificate(fresh.access_token, cert["id"])
    assert caught.value.status == 404
    await operator.call("DELETE", device, json={"reason": "stolen"})
    gone = await agent.poll(fresh.access_token, Poll(None, 20, 0))
    assert isinstance(gone, events.DeviceRevoked)
    assert abs(agent.server_skew or 9) < 2


@pytest.mark.parametrize("approve", [True, False])
async def test_a_grant_is_answered(world: World, approve: bool) -> None:
    grant = await world.agent.start_grant(["device"])
    assert grant.user_code in [row["user_code"] for row in await world.operator.call("GET", "/apiv1/device-grants")]
    assert isinstance(await world.agent.poll_grant(grant.device_code), GrantPending)
    await world.operator.answer_grant(grant.user_code, approve=approve)
    decided = await world.agent.poll_grant(grant.device_code)
    while isinstance(decided, GrantPending) or type(decided).__name__ == "GrantSlowDown":
        await trio.sleep(1)
        decided = await world.agent.poll_grant(grant.device_code)
    if not approve:
        assert isinstance(decided, GrantDenied)
        return
    assert isinstance(decided, GrantReady)
    done = await enrolled(world, user_id=decided.user_id, registration_code=decided.registration_code)
    assert done.user_id == 1


async def test_the_fix_for_a_wrong_key_names_the_key_file(world: World) -> None:
    stranger = Operator(world.http, "canary-key", wall_now=wall)
    with pytest.raises(PlaneError) as caught:
        await stranger.fetch_devices(1)
    assert caught.value.status in (401, 403)
    assert "operator.key" in (caught.value.fix or "")
    assert "canary" not in f"{caught.value!r}{stranger!r}"


@pytest.mark.parametrize("body", [b'{"data": []}', b'{"data": "x"}', b'{"data": null}'])
async def test_a_row_is_an_object(body: bytes) -> None:
    class Fixed:
        async def request(self, *args: object, **kwargs: object) -> Answer:
            return Answer(200, {"content-type": "application/json"}, body)

        async def aclose(self) -> None: ...

    operator = Operator(Fixed(), "key", wall_now=lambda: WALL)
    with pytest.raises(BadAnswerError):
        await operator.fetch_install_config(1, 2)
    if body != b'{"data": []}':
        with pytest.raises(BadAnswerError):
            await operator.fetch_devices(1)


JSON = {"content-type": "application/json"}


class Pages:
    """A plane with so many rows; an old one returns all of them, whatever is asked for."""

    def __init__(self, count: int, *, is_old: bool = False) -> None:
        self._rows = [{"id": 2 * number + 1} for number in range(count)]
        self._is_old = is_old
        self.queries: list[dict[str, str]] = []

    async def request(self, method: str, path: str, *, query: dict[str, str], **_: object) -> Answer:
        self.queries.append(query)
        after, limit = int(query.get("after_id", "0")), int(query["limit"])
        rows = self._rows if self._is_old else [row for row in self._rows if row["id"] > after][:limit]
        return Answer(200, {"content-type": "application/json"}, json.dumps({"data": rows}).encode())


@pytest.mark.parametrize("count", [0, 1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE])
@pytest.mark.parametrize("is_old", [False, True])
async def test_lists_are_read_by_page(count: int, is_old: bool) -> None:
    """One answer has a limit of bytes, which the list of a large fleet exceeds."""
    pages = Pages(count, is_old=is_old)
    rows = await Operator(pages, "key", wall_now=wall).fetch_devices(1)  # type: ignore[arg-type]
    assert [row["id"] for row in rows] == [2 * number + 1 for number in range(count)]
    assert len(pages.queries) == (min(2, count // PAGE + 1) if is_old else count // PAGE + 1)


@pytest.mark.parametrize("rows", [[{}] * PAGE, [{"id": "x"}] * PAGE, [{"id": None}] * PAGE])
async def test_a_page_of_rows_without_ids_is_no_answer(rows: list[dict[str, Any]]) -> None:
    class Fixed:
        async def request(self, *args: object, **kwargs: object) -> Answer:
            return Answer(200, {"content-type": "application/json"}, json.dumps({"data": rows}).encode())

    with pytest.raises(BadAnswerError, match="id"):
        await Operator(Fixed(), "key", wall_now=wall).fetch_devices(1)  # type: ignore[arg-type]


async def test_lists_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certctrl.net.operator.MAX_ROWS", 2 * PAGE)
    with pytest.raises(BadAnswerError, match="more than 1000"):
        await Operator(Pages(3 * PAGE), "key", wall_now=wall).fetch_devices(1)  # type: ignore[arg-type]
    assert len(await Operator(Pages(2 * PAGE), "key", wall_now=wall).fetch_devices(1)) == 2 * PAGE  # type: ignore[arg-type]


async def test_lists_by_tag() -> None:
    pages = Pages(1)
    operator = Operator(pages, "key", wall_now=wall)  # type: ignore[arg-type]
    await operator.fetch_list(1, "devices", ["web", "env=prod"])
    await operator.fetch_list(1, "devices", [""])
    await operator.fetch_list(1, "devices")
    assert [query.get("tag") for query in pages.queries] == ["web,env=prod", "", None]


@pytest.mark.parametrize("knows", [True, False])
async def test_an_older_plane_is_not_asked_to_try_anything(knows: bool) -> None:
    """It would ignore ``dry_run``, and change something; so dry runs have paths that it does not know."""
    sent: list[tuple[object, ...]] = []

    class Older:
        async def request(self, *args: object, **kwargs: object) -> Answer:
            sent.append(args)
            if args[0] == "GET" and knows:
                return Answer(200, JSON, b'{"data": {"who": "operator key", "dry_run": true}}')
            error = b'{"error": {"code": 4004, "what": "Not Found", "key": "NOT_FOUND", "params": {}}}'
            return Answer(404, JSON, error)

        async def aclose(self) -> None: ...

    operator = Operator(Older(), "key", wall_now=wall, dry_run=True)
    with pytest.raises(PlaneError, match="too old for --dry-run"):
        await operator.renew(1, 1)
    assert sent == [("POST", "/apiv1/dry-run/users/1/certificates/1/issues"), ("GET", "/apiv1/whoami")]
    sent.clear()
    with pytest.raises(PlaneError, match="too old for --dry-run"):
        await Operator(Older(), "key", wall_now=wall).call("POST", "/apiv1/users/1/rollouts", query={"dry_run": "1"})
    assert sent[0] == ("POST", "/apiv1/dry-run/users/1/rollouts")


async def test_what_is_missing_in_a_dry_run_is_said() -> None:
    class Plane:
        async def request(self, *args: object, **kwargs: object) -> Answer:
            if args[0] == "GET":
                return Answer(200, JSON, b'{"data": {"who": "operator key", "dry_run_paths": true}}')
            error = b'{"error": {"code": 4004, "what": "No such certificate", "key": "NOT_FOUND", "params": {}}}'
            return Answer(404, JSON, error)

        async def aclose(self) -> None: ...

    with pytest.raises(PlaneError, match="No such certificate"):
        await Operator(Plane(), "key", wall_now=wall, dry_run=True).renew(1, 99)


async def test_the_changes_of_a_large_fleet_are_one_answer() -> None:
    rows = [{"id": number, "name": f"web-{number}", "added": ["files"], "tags": ["a", "b"]} for number in range(20_000)]
    body = json.dumps({"data": {"changes": {"devices": rows, "note": "x" * 4_000_000}}}).encode()

    class One:
        async def request(self, *_: Any, cap: int, **__: Any) -> Answer:
            assert cap >= len(body)
            return Answer(200, {"content-type": "application/json"}, body)

    operator = Operator(cast(Any, One()), "key", wall_now=wall)
    assert len((await operator.call("POST", "/apiv1/users/1/rollouts"))["changes"]["devices"]) == 20_000
