"""All requests: body limits, JSON limits, structured bodies, error objects, headers, hostile clients."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Annotated, Any

import attrs
import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from plane_world import World

from certctrl.errors import DiskError
from certctrl.plane.core import Plane
from certctrl.plane.errors import ErrorResponse
from certctrl.plane.http import bodies, device_bodies, event_bodies, operator_bodies
from certctrl.plane.http.app import make_app
from certctrl.plane.http.reading import clean_line, whole_number
from certctrl.plane.http.structure import AtMost, Line, Text, Whole, new_converter, structured

TOKENS = "/apiv1/users/1/enrolment-tokens"
SCHEMA = "certctrl.device.notify.v1"
JSON = {"content-type": "application/json"}


async def test_bodies_beyond_their_limit_are_413_declared_or_not(world: World) -> None:
    large = json.dumps({"label": "x" * 70_000}).encode()
    for headers in (JSON, JSON | {"content-length": "9" * 30}, JSON | {"transfer-encoding": "chunked"}):
        reply = await world.operator("POST", TOKENS, body=large, headers=headers)
        assert (reply.status, reply.key) == (413, "TOO_LARGE")
        assert reply.json["error"]["params"] == {"limit_bytes": 65_536}


async def test_install_configs_may_be_larger(world: World) -> None:
    device = await world.device()
    items = [{"id": n, "type": "exec", "cmd_argv": ["/bin/true", "x" * 1000]} for n in range(500)]
    assert (await world.operator("PUT", f"{device.home}/install-config", {"installs": items})).status == 200
    items = [{"id": n, "type": "exec", "cmd_argv": ["/bin/true", "x" * 3000]} for n in range(500)]
    assert (await world.operator("PUT", f"{device.home}/install-config", {"installs": items})).status == 413


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
async def test_other_media_types_are_415(world: World, kind: str) -> None:
    reply = await world.operator("POST", TOKENS, body=b"{}", headers={"content-type": kind})
    assert (reply.status, reply.key) == (415, "UNSUPPORTED_MEDIA_TYPE")


async def test_a_body_of_very_many_values_is_refused_before_it_is_parsed(world: World) -> None:
    """A megabyte of them would need thirty in memory, on the loop that serves all devices."""
    device = await world.device()
    body = b'{"installs": [' + b"[]," * 60_000 + b"[]]}"
    reply = await world.operator("PUT", f"{device.home}/install-config", body=body, headers=JSON)
    assert (reply.status, reply.key) == (400, "BAD_REQUEST") and "100000 values" in reply.what
    reply = await device("POST", "/apiv1/devices/self/notify", body=body, headers=JSON)
    assert reply.status == 400 and "100000 values" in reply.what


async def test_the_json_media_type_may_have_parameters_and_any_case(world: World) -> None:
    for kind in ("application/json", "Application/JSON; charset=utf-8"):
        assert (await world.operator("POST", TOKENS, body=b"{}", headers={"content-type": kind})).status == 201


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"nul", b"[]", b'"x"', b"7", b"NaN", b'{"a": Infinity}', b'{"a": 1e999}', b"\xff\xfe", b'{"a": "\xff"}',
        b'{"a": 1} x',
        b"[" * 40 + b"]" * 40, b'{"a":' * 40 + b"1" + b"}" * 40, b"[" * 30_000, b'{"label": "\\ud800"}',
        b'{"\\udfff": 1}', b'{"uses": ' + b"9" * 5000 + b"}", "\ufeff{}".encode(),
    ],
    ids=lambda body: repr(body[:20]),
)  # fmt: skip
async def test_anything_but_a_plain_json_object_is_400(world: World, body: bytes) -> None:
    reply = await world.operator("POST", TOKENS, body=body, headers=JSON)
    assert (reply.status, reply.key) == (400, "BAD_REQUEST")


@given(st.binary(max_size=200))
def test_any_bytes_as_body_are_400(body: bytes) -> None:
    async def main() -> None:
        app = make_app(plane)
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        for path in ("/auth/device", "/auth/token/refresh", "/apiv1/device/registration"):
            scope = {
                "type": "http", "http_version": "1.1", "method": "POST", "scheme": "https", "path": path,
                "raw_path": path.encode(), "query_string": b"", "root_path": "",
                "headers": [(b"content-type", b"application/json"), (b"host", b"x")], "client": None, "server": None,
            }  # fmt: skip
            await app(scope, receive, send)
            assert sent[-2]["status"] == 400

    with Plane.open() as plane:
        trio.run(main)


async def test_a_body_that_does_not_arrive_times_out(build: Callable[..., Any], autojump_clock: trio.abc.Clock) -> None:
    world = build(virtual=True)
    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "scheme": "https", "path": "/auth/device",
        "raw_path": b"/auth/device", "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"content-length", b"20")], "client": None, "server": None,
    }  # fmt: skip
    sent: list[dict[str, Any]] = []

    async def drip() -> dict[str, Any]:
        await trio.sleep(4)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await world.app(scope, drip, send)
    assert sent[0]["status"] == 400
    assert trio.current_time() < 25


# --- responses --------------------------------------------------------------------------------------------------------


async def test_all_responses_are_dated_by_the_planes_clock_and_not_cacheable(world: World) -> None:
    device = await world.device()
    for reply in (
        await device.poll(), await world.stranger("GET", "/health"), await world.stranger("GET", "/nothing"),
        await world.operator("GET", "/apiv1/users"), await world.stranger("GET", "/device"),
    ):  # fmt: skip
        assert reply.headers["date"] == "Mon, 21 Sep 2026 14:13:20 GMT"
        assert reply.headers["cache-control"] == "no-store"
        assert "connection" not in reply.headers


async def test_an_unexpected_error_is_a_500_with_an_id_and_no_detail(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.plane.devices, "users", lambda: 1 / 0)
    with caplog.at_level(logging.ERROR):
        reply = await world.operator("GET", "/apiv1/users")
    assert (reply.status, reply.key) == (500, "SERVER_ERROR")
    request_id = reply.json["error"]["params"]["request_id"]
    assert request_id.startswith("req_")
    assert "ZeroDivision" not in reply.body.decode()
    assert request_id in caplog.text


async def test_a_full_disk_is_a_503(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> int:
        raise DiskError("/data/plane.db: database or disk is full")

    monkeypatch.setattr(world.plane.database, "insert", full)
    reply = await world.operator("POST", TOKENS, {})
    assert (reply.status, reply.key, reply.headers["retry-after"]) == (503, "SERVICE_UNAVAILABLE", "30")
    assert "/data" not in reply.body.decode()


async def test_http_2_is_refused(world: World) -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "http_version": "2", "method": "GET", "path": "/health", "headers": []}
    await world.app(scope, trio.sleep_forever, send)
    assert sent[0]["status"] == 505


async def test_an_unread_body_is_drained_so_that_the_response_is_sent(world: World) -> None:
    """A server passes the body through a short queue; an early response must not leave that queue full."""
    queue_in, queue_out = trio.open_memory_channel[dict[str, Any]](2)
    sent: list[dict[str, Any]] = []

    async def server() -> None:
        for _ in range(50):
            await queue_in.send({"type": "http.request", "body": b"x" * 9000, "more_body": True})
        await queue_in.send({"type": "http.disconnect"})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            await delivered.wait()  # as some servers do: the end of the response waits for space in a queue

    delivered = trio.Event()
    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "scheme": "https", "path": "/auth/device",
        "raw_path": b"/auth/device", "query_string": b"", "root_path": "", "client": None, "server": None,
        "headers": [(b"content-type", b"application/json"), (b"transfer-encoding", b"chunked")],
    }  # fmt: skip
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await server()
            delivered.set()

        nursery.start_soon(run)
        with trio.fail_after(60):
            await world.app(scope, queue_out.receive, send)
    assert sent[0]["status"] == 413
    assert (b"connection", b"close") in sent[0]["headers"]


async def test_lifespan_events_are_completed(world: World) -> None:
    inbox = [{"type": "lifespan.shutdown"}, {"type": "lifespan.startup"}]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return inbox.pop()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message["type"])

    await world.app({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


# --- pure functions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "-1", "+1", "1.0", "１", " 1", "1_0", "9" * 17, "31", "0x1"])
def test_whole_numbers_are_plain_digits_within_bounds(text: str) -> None:
    with pytest.raises(ErrorResponse):
        whole_number(text, "wait", 0, 30)
    assert whole_number("30", "wait", 0, 30) == 30


@attrs.frozen(kw_only=True)
class Sample:
    number: Annotated[int, Whole()] = 3
    flag: bool = False
    line: Annotated[str, Line(20)] = ""
    secret: Annotated[str, Text(2)] = "s"
    texts: Annotated[tuple[str, ...], AtMost(2)] = ()
    ids: Annotated[tuple[int, ...], AtMost(2)] = ()


def sample(value: dict[str, Any]) -> Sample:
    return structured(new_converter(), value, Sample)


def test_bodies_are_structured_strictly() -> None:
    assert sample({}) == sample({"line": None, "texts": None, "ids": None, "unknown": 1}) == Sample()
    given = sample({"number": 5, "flag": True, "line": "a\nb", "secret": "xy", "texts": ["x"], "ids": [1]})
    assert given == Sample(number=5, flag=True, line="a b", secret="xy", texts=("x",), ids=(1,))


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"number": True}, "number"), ({"number": "5"}, "number"), ({"number": None}, "number"),
        ({"number": 2**60}, "number"), ({"number": 0}, "number"), ({"number": 1.0}, "number"),
        ({"flag": 5}, "flag"), ({"flag": None}, "flag"), ({"line": 5}, "line"), ({"line": ["x"]}, "line"),
        ({"secret": ""}, "secret"), ({"secret": "xyz"}, "secret"), ({"secret": None}, "secret"),
        ({"texts": 5}, "texts"), ({"texts": ["x"] * 3}, "texts"), ({"texts": ["x", 5]}, "texts[1]"),
        ({"ids": ["x"]}, "ids[0]"), ({"ids": [True]}, "ids[0]"), ({"ids": {}}, "ids"),
    ],
)  # fmt: skip
def test_a_field_that_does_not_fit_is_named_by_its_path(value: dict[str, Any], path: str) -> None:
    with pytest.raises(ErrorResponse) as caught:
        sample(value)
    assert (caught.value.status, caught.value.key) == (400, "BAD_REQUEST")
    assert caught.value.params == {"field": path}
    assert caught.value.what.startswith(f"{path}: expected ")


@pytest.mark.parametrize(
    ("kind", "value", "what"),
    [
        (device_bodies.GrantPoll, {}, "device_code: expected a text of 1 to 1024 characters"),
        (device_bodies.Grant, {"action": {}}, "action: expected device_start, device_poll or device_verify"),
        (operator_bodies.Renewal, {"action": "revoke"}, "action: expected renew"),
        (device_bodies.GrantDecision, {"approve": 1}, "approve: expected true or false"),
        (device_bodies.ExpectedDevice, {"device_public_id": "x"}, "device_public_id: expected a UUID"),
        (operator_bodies.NewEnrolmentToken, {"uses": 0}, "uses: expected a whole number from 1 to 9007199254740992"),
        (event_bodies.Report, {"schema": "v0", "events": []}, "schema: expected certctrl.device.notify.v1"),
        (event_bodies.Report, {"schema": SCHEMA, "events": None}, "events: expected a list of at most 100 items"),
        (event_bodies.Report, {"schema": SCHEMA, "events": [{}]}, "events[0].type: expected a text"),
        (
            event_bodies.Report,
            {"schema": SCHEMA, "events": [{"type": "news"}, {"type": "signal.ack", "outcome": "applied"}]},
            "events[1].signal: expected an object",
        ),
        (
            event_bodies.Report,
            {"schema": SCHEMA, "events": [{"type": "signal.ack", "outcome": "applied", "signal": "x"}]},
            "events[0].signal: expected an object",
        ),
    ],
)  # fmt: skip
def test_an_error_says_what_was_expected(kind: Any, value: dict[str, Any], what: str) -> None:
    with pytest.raises(ErrorResponse) as caught:
        bodies.body_of(kind, value)
    assert caught.value.what == what


def test_a_null_number_of_uses_means_unlimited() -> None:
    assert bodies.body_of(operator_bodies.NewEnrolmentToken, {"uses": None}).uses is None
    assert bodies.body_of(operator_bodies.NewEnrolmentToken, {}).uses == 1


@given(st.text(max_size=300))
@example("0\r\x1b\r0")  # removing a character between two spaces leaves one space
def test_a_line_is_one_clean_line(text: str) -> None:
    cleaned = clean_line(text, 50)
    assert len(cleaned) <= 50
    assert cleaned.isprintable()
    assert clean_line(cleaned, 50) == cleaned
    cleaned.encode()
