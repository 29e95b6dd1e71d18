"""Operator endpoints for profiles (docs/protocol.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.plane.core import Plane
from certctrl.plane.http import operator_bodies
from certctrl.plane.http.answers import data_answer
from certctrl.plane.http.authentication import Authenticator
from certctrl.plane.http.bodies import read_as
from certctrl.plane.http.reading import LARGE_BODY_CAP, whole_number
from certctrl.plane.http.routing import USER, Endpoint, is_dry_run, number, routes_of
from certctrl.plane.http.scopes import tags_of
from certctrl.plane.profiles.profiles import ProfileChange

_PROFILES = f"{USER}/profiles"
_PROFILE = f"{_PROFILES}/{{name}}"


async def put_profile(
    plane: Plane,
    user_id: int,
    name: str,
    body: operator_bodies.NewProfile,
    *,
    dry_run: bool,
    scope: Sequence[str] = (),
) -> dict[str, Any]:
    """Store a version of a profile, or return what would change; ``scope`` as for `Profiles.put`."""
    change = ProfileChange(devices=body.devices, order=body.order, installs=body.installs, note=body.note)
    put = plane.profiles.put
    return await put(user_id, name, change, expected=body.preview_id, dry_run=dry_run, scope=scope)


class ProfileApi:
    """The endpoints, one method each."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._authenticator = Authenticator(plane)

    def routes(self) -> list[Route]:
        """Return the routes."""
        guarded: list[tuple[str, str, Endpoint]] = [
            ("GET", _PROFILES, self.profiles),
            ("GET", _PROFILE, self.profile), ("PUT", _PROFILE, self.put), ("DELETE", _PROFILE, self.delete),
            ("GET", f"{_PROFILE}/history", self.history),
        ]  # fmt: skip
        only = self._authenticator.operators_only
        return routes_of([(method, path, only(endpoint)) for method, path, endpoint in guarded])

    async def profiles(self, request: Request) -> Response:
        """Return a user's profiles in order, without their items."""
        show_all, user_id = self._plane.profiles.show_all, number(request, "uid")
        return data_answer(await self._plane.work_long(show_all, user_id, tags_of(request)))

    async def profile(self, request: Request) -> Response:
        """Return a profile with its items; ``?version=`` for an earlier one."""
        asked = request.query_params.get("version")
        version = None if asked is None else whole_number(asked, "version", 1)
        shown = await self._plane.work_long(
            self._plane.profiles.show, number(request, "uid"), request.path_params["name"], version, tags_of(request)
        )
        return data_answer(shown)

    async def history(self, request: Request) -> Response:
        """Return the versions of a profile, newest first, without their items."""
        user_id, name = number(request, "uid"), request.path_params["name"]
        return data_answer(await self._plane.work_long(self._plane.profiles.history, user_id, name, tags_of(request)))

    async def put(self, request: Request) -> Response:
        """Store a version: ``{"devices"?, "order"?, "installs"?, "note"?}``; with ``?dry_run=1``, return what would change."""
        body = await read_as(operator_bodies.NewProfile, request, LARGE_BODY_CAP)
        user_id, name = number(request, "uid"), request.path_params["name"]
        dry_run, scope = is_dry_run(request), tags_of(request)
        return data_answer(await put_profile(self._plane, user_id, name, body, dry_run=dry_run, scope=scope))

    async def delete(self, request: Request) -> Response:
        """Delete a profile; ``?dry_run=1`` as for `put`."""
        user_id, name = number(request, "uid"), request.path_params["name"]
        delete, dry_run, scope = self._plane.profiles.delete, is_dry_run(request), tags_of(request)
        return data_answer(await delete(user_id, name, dry_run=dry_run, scope=scope))
