"""The push endpoint of devices, and the questions that operators ask through it (docs/protocol.md, "Push")."""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.plane.access.roles import BY_KEY, Caller
from certctrl.plane.core import Plane
from certctrl.plane.devices.sessions import DeviceSession
from certctrl.plane.errors import ErrorResponse, unavailable
from certctrl.plane.http import operator_bodies
from certctrl.plane.http.answers import data_answer, error_answer
from certctrl.plane.http.authentication import Authenticator, ForDevices, address_of
from certctrl.plane.http.bodies import read_as
from certctrl.plane.http.connection import Connection
from certctrl.plane.http.conversation import Conversation
from certctrl.plane.http.reading import bearer_token, clean_line, whole_number
from certctrl.plane.http.routing import DEVICE, OPERATOR, Endpoint, routes_of, user_and_device
from certctrl.plane.http.upgrade import VERSION, Upgrade, check_handshake
from certctrl.plane.http.websocket import WebSocket
from certctrl.protocol.wire.push import STREAM_PATH, SUBPROTOCOL

_QUESTIONS = f"{DEVICE}/questions"


class StreamApi:
    """The endpoints, one method each."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._authenticator = Authenticator(plane)
        self._opens = ForDevices(plane, plane.polls.take_sockets, plane.read_alike)

    def device_routes(self) -> list[Route]:
        """Return the routes of devices."""
        return [Route(STREAM_PATH, self.stream)]

    def operator_routes(self) -> list[Route]:
        """Return the routes of operators."""
        guarded: list[tuple[str, str, Endpoint]] = [
            ("GET", _QUESTIONS, self.questions), ("POST", _QUESTIONS, self.ask),
        ]  # fmt: skip
        only = self._authenticator.operators_only
        return routes_of([(method, path, only(endpoint)) for method, path, endpoint in guarded])

    async def stream(self, request: Request) -> Response:
        """Open the push socket of a device."""
        plane = self._plane
        try:
            check_handshake(request, SUBPROTOCOL)
        except ErrorResponse as error:
            answer = error_answer(error)
            answer.headers["sec-websocket-version"] = VERSION
            return answer
        if plane.polls.draining:
            raise unavailable("The control plane is stopping", plane.polls.pace.return_seconds())
        token = bearer_token(request)
        session, _ = await self._authenticator.as_device_alike(request, self._opens, None)
        copied = await plane.clones.note(session, clean_line(request.headers.get("cert-ctrl-instance", ""), 64))
        run = partial(_converse, plane, session, plane.sessions.expires_at(token), address_of(request))
        return Upgrade(request, SUBPROTOCOL, run, {"cert-ctrl-copies": "suspected"} if copied else {})

    async def questions(self, request: Request) -> Response:
        """Return the last questions to a device, the newest first, without answers; ``?limit=`` 1 to 1000."""
        user_id, device_id = user_and_device(request)

        def read() -> list[dict[str, Any]]:
            self._plane.devices.row(user_id, device_id)
            limit = whole_number(request.query_params.get("limit", "100"), "limit", 1, 1000)
            return self._plane.push.questions.recent(device_id, limit)

        return data_answer(await self._plane.work_long(read))

    async def ask(self, request: Request) -> Response:
        """Ask the agent of a device: ``{"question", "timeout_seconds"?}``."""
        user_id, device_id = user_and_device(request)
        body = await read_as(operator_bodies.NewQuestion, request)
        caller: Caller = request.scope[OPERATOR]
        name = "operator" if caller.who == BY_KEY else caller.who
        asked_by = f"{name} at {caller.address or 'an unknown address'}"
        record = await self._plane.push.ask(
            user_id, device_id, body.question, seconds=body.timeout_seconds, asked_by=asked_by
        )
        return data_answer(record)


async def _converse(
    plane: Plane, session: DeviceSession, expires_at: float, address: str, connection: Connection
) -> None:
    """Speak the push protocol on a connection that has switched to it."""
    socket = WebSocket(connection, connection.take_rest())
    await Conversation(plane, socket, session, expires_at, address).run()
