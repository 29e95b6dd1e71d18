"""Several planes on one database are one plane to devices and operators, whichever of them answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import attrs
import pytest
from engine_plane import plane_on
from nacl.public import PrivateKey
from page_browser import Browser
from plane_world import PUBLIC_ID, REGISTER, UPDATES, Client, Clock, Reply
from proving import answered, registration

from certctrl.plane.core import Plane
from certctrl.plane.http.app import make_app
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring


@attrs.define
class Balanced(Client):
    """A client whose requests go to one plane after the other."""

    apps: Iterator[Any] = attrs.field(kw_only=True)

    async def __call__(self, *args: Any, **kwargs: Any) -> Reply:
        self.app = next(self.apps)
        return await Client.__call__(self, *args, **kwargs)


@pytest.fixture
def planes(open_database: Callable[[], Database], clock: Clock) -> list[Plane]:
    keyring = Keyring.open(None)
    return [plane_on(open_database(), keyring, lambda: clock.wall) for _ in range(2)]


@pytest.fixture
def client(planes: list[Plane]) -> Client:
    """A client whose requests go to the planes in turn."""
    apps = [make_app(plane) for plane in planes]
    return Balanced(apps[0], apps=cycle(apps))


@pytest.fixture
def clients(planes: list[Plane]) -> list[Client]:
    """A client of each plane."""
    return [Client(make_app(plane)) for plane in planes]


async def token(plane: Plane, **more: Any) -> dict[str, str]:
    return {"enrolment_token": (await plane.work(plane.enrolment.new_token, 1, **more))["token"]}


async def registered(client: Client, body: dict[str, Any]) -> int:
    challenge = (await client("POST", REGISTER, body)).data
    data = (await client("POST", REGISTER, answered(body, challenge))).data
    client.token = data["session"]["access_token"]
    return int(data["device"]["id"])


async def test_a_registration_begins_at_one_and_ends_at_the_other(planes: list[Plane], client: Client) -> None:
    body = registration(PUBLIC_ID, PrivateKey.generate()) | await token(planes[0])
    answer = answered(body, (await client("POST", REGISTER, body)).data)
    first, again = [await client("POST", REGISTER, answer) for _ in range(2)]
    assert (first.status, again.key) == (200, "KEY_PROOF_FAILED")
    assert len(await planes[0].work(planes[0].devices.show_all, 1)) == 1


async def test_a_challenge_of_a_plane_whose_clock_is_ahead_counts(
    planes: list[Plane], clients: list[Client], clock: Clock
) -> None:
    body = registration(PUBLIC_ID, PrivateKey.generate()) | await token(planes[0])
    clock.wall += 4
    challenge = (await clients[0]("POST", REGISTER, body)).data
    clock.wall -= 4
    assert (await clients[1]("POST", REGISTER, answered(body, challenge))).status == 200


async def test_a_sign_in_and_a_sign_out_count_at_all(planes: list[Plane], clients: list[Client]) -> None:
    browser = Browser(clients[0])
    await browser.get("/device")
    browser.client = clients[1]
    assert (await browser.post("/device/sign-in", key=planes[0].operator_key)).status == 303
    browser.client = clients[0]
    assert b"Enter the code" in (await browser.get("/device")).body
    browser.client, cookies = clients[1], dict(browser.cookies)
    assert (await browser.post("/device/sign-out")).status == 303
    for browser.client in clients:
        browser.cookies = dict(cookies)
        assert b"Operator key" in (await browser.get("/device")).body


async def test_a_device_is_approved_at_one_and_registers_at_the_other(
    planes: list[Plane], clients: list[Client]
) -> None:
    here, there = clients
    start = {"action": "device_start", "name": "web-1", "device_public_id": PUBLIC_ID}
    grant = (await here("POST", "/auth/device", start)).data
    browser = Browser(there)
    await browser.sign_in(planes[0].operator_key)
    await browser.get(f"/device?user_code={grant['user_code']}")
    browser.client = here
    done = await browser.post("/device/decide", user_code=grant["user_code"], decision="approve")
    assert b"web-1 is approved" in done.body
    poll = {"action": "device_poll", "device_code": grant["device_code"]}
    ready = (await there("POST", "/auth/device", poll)).data
    code = {"user_id": 1, "registration_code": ready["registration_code"]}
    body = registration(PUBLIC_ID, PrivateKey.generate()) | code
    challenge = (await here("POST", REGISTER, body)).data
    done = await there("POST", REGISTER, answered(body, challenge))
    assert done.data["device"]["name"] == "web-1"
    assert (await here("POST", REGISTER, answered(body, challenge))).key == "INVALID_TOKEN", "a code is for one device"


async def test_wrong_keys_at_any_plane_lock_an_address_out(planes: list[Plane], client: Client) -> None:
    browser = Browser(client)
    statuses = [(await browser.sign_in("ok_wrong")).status for _ in range(6)]
    assert statuses == [403] * 5 + [429]
    assert (await Browser(client).sign_in(planes[0].operator_key)).status == 303
    assert (await Browser(client).sign_in("ok_wrong")).status == 403, "its failures are forgotten"


@pytest.mark.parametrize("path", ["/device", "/device/decide"])
async def test_wrong_codes_at_any_plane_count_for_their_session(planes: list[Plane], client: Client, path: str) -> None:
    browser = Browser(client)
    await browser.sign_in(planes[0].operator_key)
    await browser.get("/device")

    async def enter() -> int:
        if path == "/device":
            return int((await browser.get("/device?user_code=ZZZZ-ZZZZ")).status)
        fields = {"user_code": "ZZZZ-ZZZZ", "decision": "approve", "csrf": csrf}
        return int((await browser.post(path, **fields)).status)

    csrf = browser.csrf
    assert [await enter() for _ in range(11)] == [404] * 10 + [429]


async def test_an_address_starts_as_many_grants_as_at_one_plane(client: Client) -> None:
    start = {"action": "device_start", "name": "web-1"}
    statuses = [(await client("POST", "/auth/device", start)).status for _ in range(21)]
    assert statuses == [200] * 20 + [429]


async def test_a_device_requests_as_many_renewals_as_at_one_plane(planes: list[Plane], client: Client) -> None:
    body = registration(PUBLIC_ID, PrivateKey.generate()) | await token(planes[0])
    device_id = await registered(client, body)
    certificate = await planes[0].certificates.issue(1, ["a.example"], device_ids=[device_id])
    path = f"/apiv1/users/1/certificates/{certificate['id']}/issues"
    statuses = [(await client("POST", path, {"action": "renew"})).status for _ in range(6)]
    assert statuses == [202] * 5 + [429]


async def test_copies_that_poll_different_planes_are_noticed_by_both(
    planes: list[Plane], clients: list[Client]
) -> None:
    body = registration(PUBLIC_ID, PrivateKey.generate()) | await token(planes[0])
    device_id = await registered(clients[0], body)
    clients[1].token = clients[0].token
    found = []
    for _ in range(2):
        for number, client in enumerate(clients):
            reply = await client("GET", UPDATES, headers={"cert-ctrl-instance": f"agent-{number}"})
            found.append(reply.headers.get("cert-ctrl-copies"))
    assert found == [None, None, "suspected", "suspected"]
    for plane in planes:
        assert (await plane.work(plane.devices.show, 1, device_id))["copies_suspected"]
    await registered(clients[1], body)
    for plane in planes:
        assert not (await plane.work(plane.devices.show, 1, device_id))["copies_suspected"]


async def test_the_latest_poll_counts_whichever_plane_saves_last(
    planes: list[Plane], clients: list[Client], clock: Clock
) -> None:
    body = registration(PUBLIC_ID, PrivateKey.generate()) | await token(planes[0])
    device_id = await registered(clients[0], body)
    here, there = planes
    here.devices.seen(device_id, "192.0.2.1", "1-0")
    clock.wall += 20
    there.devices.seen(device_id, "192.0.2.2", "2-0")
    await there.work(there.housekeeping.tidy)
    shown = await here.work(here.devices.show, 1, device_id)
    await here.work(here.housekeeping.tidy)
    assert await here.work(here.devices.show, 1, device_id) == shown
    assert shown["last_address"] == "192.0.2.2"
    clock.wall -= 3600
    here.devices.seen(device_id, "192.0.2.3", "3-0")
    await here.work(here.housekeeping.tidy)
    row = await here.work(here.devices.row, 1, device_id)
    assert row["last_address"] == "192.0.2.3", "a clock that was set back stops no sightings"


async def test_an_agent_that_restarts_and_changes_planes_is_no_copy(planes: list[Plane], client: Client) -> None:
    await registered(client, registration(PUBLIC_ID, PrivateKey.generate()) | await token(planes[0]))
    for name in ("first", "first", "second", "second", "second", "third"):
        reply = await client("GET", UPDATES, headers={"cert-ctrl-instance": name})
        assert (reply.status, reply.headers.get("cert-ctrl-copies")) == (204, None)


async def test_a_plane_follows_the_switch_of_another_to_its_own_ca(planes: list[Plane]) -> None:
    here, there = planes
    await here.work(here.database.run, "INSERT INTO settings VALUES ('tls_ca', 'shared')")
    switched: list[str] = []

    async def on_switch() -> None:
        switched.append(there.anchor.ca.root_fingerprint)

    for plane in planes:
        plane.anchor.switched = False
    there.anchor.on_switch = on_switch
    await there.anchor.follow_switch()
    assert switched == []
    await here.anchor.switch(force=False)
    for _ in range(2):
        await there.anchor.follow_switch()
    assert switched == [here.anchor.own.root_fingerprint]
