"""Operator endpoints for alert channels and their messages (docs/protocol.md)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.plane.alerts.channels import NewChannel
from certctrl.plane.alerts.outbox import STATES
from certctrl.plane.audit.acts import done_elsewhere
from certctrl.plane.core import Plane
from certctrl.plane.errors import bad_request
from certctrl.plane.http import operator_bodies
from certctrl.plane.http.answers import data_answer, empty_answer
from certctrl.plane.http.authentication import Authenticator
from certctrl.plane.http.bodies import read_as
from certctrl.plane.http.reading import LARGE_BODY_CAP, whole_number
from certctrl.plane.http.routing import Endpoint, is_dry_run, number, routes_of
from certctrl.text import nearest, one_line

_CHANNELS, _MESSAGES = "/apiv1/alert-channels", "/apiv1/alert-messages"
_CHANNEL, _MESSAGE = f"{_CHANNELS}/{{channel}}", f"{_MESSAGES}/{{mid}}"
_PAGE, MAX_PAGE = 100, 500


class AlertApi:
    """The endpoints, one method each."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._alerts = plane.alerts
        self._authenticator = Authenticator(plane)

    def routes(self) -> list[Route]:
        """Return the routes."""
        guarded: list[tuple[str, str, Endpoint]] = [
            ("GET", _CHANNELS, self.channels), ("POST", _CHANNELS, self.put_channel),
            ("GET", _CHANNEL, self.channel), ("DELETE", _CHANNEL, self.remove_channel),
            ("POST", f"{_CHANNEL}/test", self.test_channel),
            ("GET", _MESSAGES, self.messages), ("GET", _MESSAGE, self.message),
            ("POST", f"{_MESSAGE}/resend", self.resend), ("POST", f"{_MESSAGE}/dismiss", self.dismiss),
        ]  # fmt: skip
        only = self._authenticator.operators_only
        return routes_of([(method, path, only(endpoint)) for method, path, endpoint in guarded])

    # --- channels -------------------------------------------------------------------------------------------------

    async def channels(self, request: Request) -> Response:
        """Return the channels, without their secrets."""
        return data_answer(await self._plane.work(self._alerts.channels.show_all))

    async def put_channel(self, request: Request) -> Response:
        """Add a channel: ``{"name", "kind", "settings"?, "secrets"?, "replace"?}``; ``?dry_run=1``: only check it.

        Only this response has a signing secret that was made for it.
        """
        body = await read_as(operator_bodies.NewAlertChannel, request, LARGE_BODY_CAP)
        for name, value in body.secrets.items():
            if not isinstance(value, str):
                raise bad_request(f"secrets.{one_line(name, 40)}: expected a text", field="secrets")
        new = NewChannel(
            name=body.name, kind=body.kind, settings=body.settings, secrets=body.secrets, replace=body.replace
        )
        is_check = is_dry_run(request)
        shown = await self._plane.work(self._alerts.channels.put, new, dry_run=is_check)
        self._alerts.runner.wake()
        return data_answer(shown, 200 if is_check else 201)

    async def channel(self, request: Request) -> Response:
        """Return one channel."""
        return data_answer(await self._plane.work(self._alerts.channels.show, request.path_params["channel"]))

    async def remove_channel(self, request: Request) -> Response:
        """Remove a channel with its messages."""
        await self._plane.work(self._alerts.channels.remove, request.path_params["channel"])
        return empty_answer()

    async def test_channel(self, request: Request) -> Response:
        """Send a test message now; the answer has ``ok`` and the problem."""
        shown = await self._alerts.runner.test(request.path_params["channel"])
        await done_elsewhere(self._plane.database)
        return data_answer(shown)

    # --- messages -------------------------------------------------------------------------------------------------

    async def messages(self, request: Request) -> Response:
        """Return a page of messages, the newest first: ``?state=&channel=&before_id=&limit=``."""
        asked = request.query_params
        state, channel = known_state(asked.get("state", "")), asked.get("channel", "")
        before_id = whole_number(asked["before_id"], "before_id", 1) if "before_id" in asked else None
        limit = whole_number(asked.get("limit", str(_PAGE)), "limit", 1, MAX_PAGE)

        def read() -> list[dict[str, object]]:
            if channel:
                self._alerts.channels.named(channel)
            return self._alerts.outbox.page(state=state, channel=channel, before_id=before_id, limit=limit)

        return data_answer(await self._plane.work_long(read))

    async def message(self, request: Request) -> Response:
        """Return one message with its content."""
        return data_answer(await self._plane.work(self._alerts.outbox.show, number(request, "mid")))

    async def resend(self, request: Request) -> Response:
        """Send a message that was not delivered again, for a day."""
        shown = await self._plane.work(self._alerts.outbox.resend, number(request, "mid"))
        self._alerts.runner.wake()
        return data_answer(shown, 202)

    async def dismiss(self, request: Request) -> Response:
        """Give up a dead message: it is no longer a problem."""
        shown = await self._plane.work(self._alerts.outbox.dismiss, number(request, "mid"))
        self._alerts.runner.wake()
        return data_answer(shown)


def known_state(state: str) -> str:
    """Return a state of messages, or the empty text for all; ErrorResponse 400 for another one."""
    if state not in ("", *STATES):
        meant = nearest(state, STATES)
        hint = f"did you mean {meant}?" if meant else f"use {', '.join(STATES)}"
        raise bad_request(f"{one_line(state, 40)!r} is not a state of messages: {hint}", field="state")
    return state
