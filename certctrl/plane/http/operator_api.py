"""Operator endpoints for users, devices and enrolment (docs/protocol.md)."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.plane.audit.acts import aside
from certctrl.plane.core import Plane
from certctrl.plane.devices.devices import DeviceFacts
from certctrl.plane.health.status import running_status
from certctrl.plane.http import device_bodies, operator_bodies
from certctrl.plane.http.answers import data_answer, empty_answer
from certctrl.plane.http.authentication import Authenticator
from certctrl.plane.http.bodies import body_of, read_as
from certctrl.plane.http.listing import listed_by_tag
from certctrl.plane.http.reading import read_object, whole_number
from certctrl.plane.http.routing import (
    DEVICE,
    OPERATOR,
    USER,
    Endpoint,
    number,
    routes_of,
    user_and_device,
)
from certctrl.plane.http.scopes import tags_of
from certctrl.plane.token_scope import refuse_own_tags

_USERS = "/apiv1/users"
_TAGS = f"{USER}/device-tags"
_TLS = "/apiv1/plane/tls"
_STATUS = "/apiv1/plane/status"


class OperatorApi:
    """The endpoints, one method each."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._authenticator = Authenticator(plane)

    def routes(self) -> list[Route]:
        """Return the routes."""
        guarded: list[tuple[str, str, Endpoint]] = [
            ("GET", _USERS, self.users), ("POST", _USERS, self.add_user),
            ("GET", f"{USER}/devices", self.devices), ("POST", f"{USER}/devices", self.expect_device),
            ("GET", DEVICE, self.device), ("DELETE", DEVICE, self.revoke_device),
            ("GET", f"{DEVICE}/outcomes", self.outcomes), ("POST", f"{DEVICE}/resync", self.resync),
            ("GET", _TAGS, self.tags), ("POST", _TAGS, self.change_tags),
            ("GET", f"{USER}/enrolment-tokens", self.enrolment_tokens),
            ("POST", f"{USER}/enrolment-tokens", self.new_enrolment_token),
            ("DELETE", f"{USER}/enrolment-tokens/{{tid}}", self.end_enrolment_token),
            ("GET", "/apiv1/device-grants", self.grants), ("GET", "/apiv1/device-grants/{code}", self.grant),
            ("POST", "/apiv1/device-grants/{code}", self.decide_grant),
            ("GET", _TLS, self.tls), ("POST", _TLS, self.switch_tls), ("GET", _STATUS, self.status),
        ]  # fmt: skip
        return routes_of(
            [(method, path, self._authenticator.operators_only(endpoint)) for method, path, endpoint in guarded]
        )

    # --- users and devices -----------------------------------------------------------------------------------

    async def users(self, request: Request) -> Response:
        """Return the users."""
        return data_answer(await self._plane.work_long(self._plane.devices.users))

    async def add_user(self, request: Request) -> Response:
        """Add a user: ``{"name"}``."""
        body = await read_as(operator_bodies.NewUser, request)
        return data_answer(await self._plane.work(self._plane.devices.add_user, body.name), 201)

    async def devices(self, request: Request) -> Response:
        """Return a user's devices: keys, versions, last poll, outcomes by kind; ``?after_id=&limit=`` for a page.

        With ``?tag=web,env=prod``, those that carry all of these tags.
        """
        return await listed_by_tag(self._plane, request, self._plane.devices.page)

    async def expect_device(self, request: Request) -> Response:
        """Add a device ahead of its registration: ``{"device_public_id", "name"?, "platform"?}``."""
        body = await read_as(device_bodies.ExpectedDevice, request)
        facts = DeviceFacts(device_public_id=body.device_public_id, name=body.name, platform=body.platform)
        return data_answer(await self._plane.work(self._plane.devices.expect, number(request, "uid"), facts), 201)

    async def device(self, request: Request) -> Response:
        """Return one device."""
        return data_answer(await self._plane.work(self._plane.devices.show, *user_and_device(request)))

    async def revoke_device(self, request: Request) -> Response:
        """Revoke a device; it is sent the reason in ``?reason=`` or ``{"reason"?}``."""
        has_body = request.headers.get("content-length", "0") != "0"
        fields = await read_object(request) if has_body else dict(request.query_params)
        reason = body_of(operator_bodies.WithReason, fields).reason
        return data_answer(await self._plane.work(self._plane.devices.revoke, *user_and_device(request), reason))

    async def outcomes(self, request: Request) -> Response:
        """Return the outcomes of a device, newest first; ``?limit=`` 1 to 1000."""
        user_id, device_id = user_and_device(request)

        def read() -> list[dict[str, Any]]:
            self._plane.devices.row(user_id, device_id)
            limit = whole_number(request.query_params.get("limit", "100"), "limit", 1, 1000)
            return self._plane.reports.outcomes(device_id, limit)

        return data_answer(await self._plane.work_long(read))

    async def resync(self, request: Request) -> Response:
        """Make a device fetch everything again: ``{"reason"?}``."""
        body = await read_as(operator_bodies.WithReason, request)
        await self._plane.resync(*user_and_device(request), body.reason)
        return empty_answer(202)

    async def tags(self, request: Request) -> Response:
        """Return the tags of a user's devices, with the number of devices that carry each."""
        devices, user_id, scope = self._plane.devices, number(request, "uid"), tags_of(request)

        def read() -> list[dict[str, Any]]:
            devices.require_user(user_id)
            return devices.tags.used(user_id, scope)

        return data_answer(await self._plane.work_long(read))

    async def change_tags(self, request: Request) -> Response:
        """Change the tags of devices, of all or none: ``{"device_ids", "add"?, "remove"?}``."""
        body = await read_as(operator_bodies.TagChange, request)
        refuse_own_tags(request.scope[OPERATOR], {*body.add, *body.remove})
        change = self._plane.devices.tags.change
        user_id = number(request, "uid")
        changed = await self._plane.work_long(change, user_id, body.device_ids, add=body.add, remove=body.remove)
        return data_answer(changed)

    # --- enrolment ----------------------------------------------------------------------------------------------

    async def enrolment_tokens(self, request: Request) -> Response:
        """Return a user's enrolment tokens, without their texts."""
        return data_answer(await self._plane.work_long(self._plane.enrolment.tokens, number(request, "uid")))

    async def new_enrolment_token(self, request: Request) -> Response:
        """Create a token: ``{"label"?, "uses"? (null: unlimited), "expires_in"?, "tags"?}``.

        Only this response has its text.
        """
        body = await read_as(operator_bodies.NewEnrolmentToken, request)
        token = await self._plane.work(
            self._plane.enrolment.new_token,
            number(request, "uid"),
            label=body.label,
            max_uses=body.uses,
            valid_seconds=body.expires_in,
            tags=body.tags,
        )
        return data_answer(token, 201)

    async def end_enrolment_token(self, request: Request) -> Response:
        """Void a token."""
        await self._plane.work(self._plane.enrolment.end_token, number(request, "uid"), number(request, "tid"))
        return empty_answer()

    async def grants(self, request: Request) -> Response:
        """Return the devices that wait for approval."""
        return data_answer(await self._plane.work_long(self._plane.grants.pending))

    async def grant(self, request: Request) -> Response:
        """Return the device that shows a user code, and the devices that have its id or name (``known_devices``)."""

        def read() -> dict[str, Any]:
            grant = self._plane.grants.show(request.path_params["code"])
            return grant | {"known_devices": self._plane.devices.similar(grant["device_public_id"], grant["name"])}

        return data_answer(await self._plane.work(read))

    async def decide_grant(self, request: Request) -> Response:
        """Approve or deny: ``{"approve": bool, "user_id"?}``."""
        body = await read_as(device_bodies.GrantDecision, request)
        code = request.path_params["code"]
        decided = await self._plane.work(self._plane.decide, code, approve=body.approve, user_id=body.user_id)
        return data_answer(decided)

    # --- the plane itself ---------------------------------------------------------------------------------------

    async def status(self, request: Request) -> Response:
        """Return the status of the plane and the counts of its database."""
        return data_answer(await running_status(self._plane))

    async def tls(self, request: Request) -> Response:
        """Return the CA of the plane's own certificate, and the devices that do not trust it yet."""

        def read() -> dict[str, Any]:
            self._plane.devices.save_sightings()
            return self._plane.anchor.show()

        return data_answer(await self._plane.work_long(read))

    async def switch_tls(self, request: Request) -> Response:
        """Switch to the plane's own CA: ``{"force"?}``."""
        body = await read_as(operator_bodies.Switch, request)
        with aside():
            await self._plane.work_long(self._plane.devices.save_sightings)
        return data_answer(await self._plane.anchor.switch(force=body.force))
