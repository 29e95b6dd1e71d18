"""What operators do with users, devices and enrolment (api.md §7, and what the command line needs beyond it)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.plane.core import Plane
from certctrl.plane.devices import FIRST_USER, DeviceFacts
from certctrl.plane.http.authentication import Caller
from certctrl.plane.http.bodies import (
    Fields,
    data_answer,
    empty_answer,
    public_id,
    read_fields,
    whole_number,
)
from certctrl.plane.http.routing import (
    DEVICE,
    USER,
    Endpoint,
    number,
    routes_of,
    user_and_device,
)
from certctrl.plane.settings import DAY

_USERS = "/apiv1/users"


class OperatorApi:
    """Endpoints of operators; each method is one."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._caller = Caller(plane)

    def routes(self) -> list[Route]:
        """Return the routes."""
        guarded: list[tuple[str, str, Endpoint]] = [
            ("GET", _USERS, self.users), ("POST", _USERS, self.add_user),
            ("GET", f"{USER}/devices", self.devices), ("POST", f"{USER}/devices", self.expect_device),
            ("GET", DEVICE, self.device), ("DELETE", DEVICE, self.revoke_device),
            ("GET", f"{DEVICE}/outcomes", self.outcomes), ("POST", f"{DEVICE}/resync", self.resync),
            ("GET", f"{USER}/enrolment-tokens", self.enrolment_tokens),
            ("POST", f"{USER}/enrolment-tokens", self.new_enrolment_token),
            ("DELETE", f"{USER}/enrolment-tokens/{{tid}}", self.end_enrolment_token),
            ("GET", "/apiv1/device-grants", self.grants), ("GET", "/apiv1/device-grants/{code}", self.grant),
            ("POST", "/apiv1/device-grants/{code}", self.decide_grant),
        ]  # fmt: skip
        return routes_of([(method, path, self._caller.operators_only(endpoint)) for method, path, endpoint in guarded])

    # --- users and devices -----------------------------------------------------------------------------------

    async def users(self, request: Request) -> Response:
        """List the users."""
        return data_answer(self._plane.devices.users())

    async def add_user(self, request: Request) -> Response:
        """Make a user: ``{"name"}``."""
        fields = await read_fields(request)
        return data_answer(self._plane.devices.add_user(fields.text("name", longest=100)), 201)

    async def devices(self, request: Request) -> Response:
        """List a user's devices: keys, versions, when last seen, outcomes by kind."""
        return data_answer(self._plane.devices.show_all(number(request, "uid")))

    async def expect_device(self, request: Request) -> Response:
        """Make a device row ahead of its registration: ``{"device_public_id", "name"?, "platform"?}``."""
        fields = await read_fields(request)
        facts = DeviceFacts(
            device_public_id=public_id(fields),
            name=fields.text("name", longest=100),
            platform=fields.text("platform", longest=100),
        )
        return data_answer(self._plane.devices.expect(number(request, "uid"), facts), 201)

    async def device(self, request: Request) -> Response:
        """Show one device."""
        return data_answer(self._plane.devices.show(*user_and_device(request)))

    async def revoke_device(self, request: Request) -> Response:
        """Throw a device out; ``?reason=`` or ``{"reason"?}`` is told to it."""
        has_body = request.headers.get("content-length", "0") != "0"
        fields = await read_fields(request) if has_body else Fields(request.query_params)
        reason = fields.text("reason")
        return data_answer(self._plane.devices.revoke(*user_and_device(request), reason))

    async def outcomes(self, request: Request) -> Response:
        """List what a device reported, newest first; ``?limit=`` 1 to 1000."""
        user_id, device_id = user_and_device(request)
        self._plane.devices.row(user_id, device_id)
        limit = whole_number(request.query_params.get("limit", "100"), "limit", 1, 1000)
        return data_answer(self._plane.reports.outcomes(device_id, limit))

    async def resync(self, request: Request) -> Response:
        """Have a device fetch everything anew: ``{"reason"?}``."""
        fields = await read_fields(request)
        await self._plane.resync(*user_and_device(request), fields.text("reason"))
        return empty_answer(202)

    # --- enrolment ----------------------------------------------------------------------------------------------

    async def enrolment_tokens(self, request: Request) -> Response:
        """List a user's enrolment tokens, without their texts."""
        return data_answer(self._plane.enrolment.tokens(number(request, "uid")))

    async def new_enrolment_token(self, request: Request) -> Response:
        """Make a token: ``{"label"?, "uses"? (null: no bound), "expires_in"?}``; its text is in this answer only."""
        fields = await read_fields(request)
        unbounded = "uses" in fields.values and fields.values["uses"] is None
        token = self._plane.enrolment.new_token(
            number(request, "uid"),
            label=fields.text("label", longest=100),
            max_uses=None if unbounded else fields.number("uses", 1),
            valid_seconds=fields.number("expires_in", DAY),
        )
        return data_answer(token, 201)

    async def end_enrolment_token(self, request: Request) -> Response:
        """Make a token useless."""
        self._plane.enrolment.end_token(number(request, "uid"), number(request, "tid"))
        return empty_answer()

    async def grants(self, request: Request) -> Response:
        """List the devices that wait for approval."""
        return data_answer(self._plane.grants.pending())

    async def grant(self, request: Request) -> Response:
        """Show which device shows a user code."""
        return data_answer(self._plane.grants.show(request.path_params["code"]))

    async def decide_grant(self, request: Request) -> Response:
        """Approve or deny: ``{"approve": bool, "user_id"?}``."""
        fields = await read_fields(request)
        approve, user_id = fields.flag("approve"), fields.number("user_id", FIRST_USER)
        self._plane.devices.require_user(user_id)
        return data_answer(self._plane.grants.decide(request.path_params["code"], approve=approve, user_id=user_id))
