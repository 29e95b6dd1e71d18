"""Operator endpoints for the life of devices (docs/protocol.md)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.plane.core import Plane
from certctrl.plane.device_life import Decommissioning
from certctrl.plane.http import operator_bodies
from certctrl.plane.http.answers import data_answer
from certctrl.plane.http.authentication import Authenticator
from certctrl.plane.http.bodies import read_as
from certctrl.plane.http.routing import DEVICE, Endpoint, is_dry_run, routes_of, user_and_device


class LifeApi:
    """The endpoints, one method each; ``?dry_run=1`` returns what would change."""

    def __init__(self, plane: Plane) -> None:
        self._life = plane.life
        self._authenticator = Authenticator(plane)

    def routes(self) -> list[Route]:
        """Return the routes."""
        guarded: list[tuple[str, str, Endpoint]] = [
            ("POST", f"{DEVICE}/name", self.rename),
            ("POST", f"{DEVICE}/replacement", self.replace), ("DELETE", f"{DEVICE}/replacement", self.cancel_replacement),
            ("POST", f"{DEVICE}/key-rotation", self.rotate_key),
            ("POST", f"{DEVICE}/decommission", self.decommission),
        ]  # fmt: skip
        only = self._authenticator.operators_only
        return routes_of([(method, path, only(endpoint)) for method, path, endpoint in guarded])

    async def rename(self, request: Request) -> Response:
        """Give a device another name: ``{"name"}``."""
        body = await read_as(operator_bodies.NewDeviceName, request)
        dry_run = is_dry_run(request)
        return data_answer(await self._life.rename(*user_and_device(request), body.name, dry_run=dry_run))

    async def replace(self, request: Request) -> Response:
        """Return a token by which new hardware registers as a device: ``{"expires_in"?}``; only here is its text."""
        body = await read_as(operator_bodies.NewReplacement, request)
        ids, dry_run = user_and_device(request), is_dry_run(request)
        made = await self._life.replace(*ids, valid_seconds=body.expires_in, dry_run=dry_run)
        return data_answer(made, 200 if dry_run else 201)

    async def cancel_replacement(self, request: Request) -> Response:
        """Void the token of a replacement."""
        ids, dry_run = user_and_device(request), is_dry_run(request)
        return data_answer(await self._life.cancel_replacement(*ids, dry_run=dry_run))

    async def rotate_key(self, request: Request) -> Response:
        """Have a device replace its key: ``{}``."""
        await read_as(operator_bodies.Nothing, request)
        ids, dry_run = user_and_device(request), is_dry_run(request)
        return data_answer(await self._life.rotate_key(*ids, dry_run=dry_run), 200 if dry_run else 202)

    async def decommission(self, request: Request) -> Response:
        """Decommission a device: ``{"reason"?, "revoke"?, "reason_code"?}``."""
        body = await read_as(operator_bodies.Decommission, request)
        how = Decommissioning(reason=body.reason, revoke=body.revoke, reason_code=body.reason_code)
        ids, dry_run = user_and_device(request), is_dry_run(request)
        return data_answer(await self._life.decommission(*ids, how, dry_run=dry_run))
