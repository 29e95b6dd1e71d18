"""Operator endpoints for rollouts (docs/protocol.md)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.plane.audit.acts import note_request
from certctrl.plane.core import Plane
from certctrl.plane.errors import bad_request
from certctrl.plane.http import operator_bodies
from certctrl.plane.http.answers import data_answer
from certctrl.plane.http.authentication import Authenticator
from certctrl.plane.http.bodies import read_as
from certctrl.plane.http.lifecycle_api import import_of
from certctrl.plane.http.reading import LARGE_BODY_CAP, whole_number
from certctrl.plane.http.routing import USER, Endpoint, is_dry_run, number, routes_of
from certctrl.plane.profiles.profiles import ProfileChange
from certctrl.plane.rollouts.rollouts import MAX_LISTED, RolloutRules
from certctrl.plane.storage.database import Row

_ROLLOUTS = f"{USER}/rollouts"
_ROLLOUT = f"{_ROLLOUTS}/{{rid}}"
_FREEZE = f"{USER}/rollout-freeze"
_DUE = f"{USER}/renewal-rollouts"


async def start_rollout(
    plane: Plane, user_id: int, body: operator_bodies.NewRollout, *, dry_run: bool
) -> dict[str, Any]:
    """Start a rollout, or return its plan; ErrorResponse 400 unless it is for one thing."""
    if [bool(body.profile), bool(body.cert_ids), bool(body.together), body.imported is not None].count(True) != 1:
        what = "Give either the profile or the certificates to renew: profile, cert_ids, together or imported"
        raise bad_request(what, field="profile")
    rules, expected = _rules(body), body.preview_id
    if body.imported is not None:
        if expected:
            raise bad_request("An import has no preview to compare with: leave out preview_id", field="preview_id")
        return await _import(plane, user_id, body, body.imported, dry_run)
    if cert_ids := body.cert_ids or body.together:
        start = partial(plane.renewal_rollouts.start, together=bool(body.together), note=body.note, expected=expected)
        return await plane.work_long(partial(start, dry_run=dry_run), user_id, cert_ids, rules)
    change = ProfileChange(devices=body.devices, order=body.order, installs=body.installs, note=body.note)
    return await plane.rollouts.start(user_id, body.profile, change, rules, expected=expected, dry_run=dry_run)


async def _import(
    plane: Plane,
    user_id: int,
    body: operator_bodies.NewRollout,
    imported: operator_bodies.CertificateImport,
    is_plan: bool,
) -> dict[str, Any]:
    """Start the rollout of an import; the changes of a dry run are taken back by the caller's trial."""

    def roll_out(certificate: Row) -> dict[str, Any]:
        return plane.renewal_rollouts.begin_import(certificate, _rules(body), body.note)

    note_request(imported)
    row = await plane.imports.add(
        user_id, import_of(imported), cert_id=imported.cert_id, device_ids=imported.device_ids, roll_out=roll_out
    )
    found = row.pop("rollout") or {"id": None, "waves": []}
    return found | {"certificate": row, "dry_run": is_plan} | ({"id": None} if is_plan else {})


class RolloutApi:
    """The endpoints, one method each."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._authenticator = Authenticator(plane)

    def routes(self) -> list[Route]:
        """Return the routes."""
        guarded: list[tuple[str, str, Endpoint]] = [
            ("GET", _ROLLOUTS, self.rollouts), ("POST", _ROLLOUTS, self.start), ("GET", _ROLLOUT, self.rollout),
            ("POST", f"{_ROLLOUT}/pause", self.pause), ("POST", f"{_ROLLOUT}/resume", self.resume),
            ("POST", f"{_ROLLOUT}/abort", self.abort), ("GET", _FREEZE, self.frozen), ("POST", _FREEZE, self.freeze),
            ("GET", _DUE, self.due), ("POST", _DUE, self.put_due),
        ]  # fmt: skip
        only = self._authenticator.operators_only
        return routes_of([(method, path, only(endpoint)) for method, path, endpoint in guarded])

    async def rollouts(self, request: Request) -> Response:
        """Return a user's rollouts, the newest first, without their devices; ``?state=&before_id=&limit=``."""
        asked = request.query_params
        states = [word for word in asked.get("state", "").split(",") if word]
        before_id = whole_number(asked.get("before_id", "0"), "before_id", 0)
        limit = whole_number(asked.get("limit", str(MAX_LISTED)), "limit", 1, MAX_LISTED)
        show_all = self._plane.rollouts.show_all
        return data_answer(await self._plane.work_long(show_all, number(request, "uid"), states, before_id, limit))

    async def start(self, request: Request) -> Response:
        """Start a rollout; the body is an ``operator_bodies.NewRollout``. With ``?dry_run=1``, return its plan."""
        body = await read_as(operator_bodies.NewRollout, request, LARGE_BODY_CAP)
        is_plan = is_dry_run(request)
        started = await start_rollout(self._plane, number(request, "uid"), body, dry_run=is_plan)
        return data_answer(started, 200 if is_plan else 201)

    async def rollout(self, request: Request) -> Response:
        """Return one rollout, with the devices that are under way, are skipped or have failed."""
        return await self._of_one(request, self._plane.rollouts.show)

    async def pause(self, request: Request) -> Response:
        """Pause a rollout."""
        return await self._of_one(request, self._plane.rollouts.pause)

    async def resume(self, request: Request) -> Response:
        """Resume a rollout, and accept its failures."""
        return await self._of_one(request, self._plane.rollouts.resume)

    async def abort(self, request: Request) -> Response:
        """Abort a rollout: ``{"forward"?}``."""
        body = await read_as(operator_bodies.Abort, request)
        return await self._of_one(request, partial(self._plane.rollouts.abort, forward=body.forward))

    async def _of_one(self, request: Request, function: Callable[[int, int], dict[str, Any]]) -> Response:
        return data_answer(await self._plane.work_long(function, number(request, "uid"), number(request, "rid")))

    async def frozen(self, request: Request) -> Response:
        """Return whether rollouts are frozen, and why."""
        reason = await self._plane.work(self._plane.rollouts.frozen, number(request, "uid"))
        return data_answer({"frozen": bool(reason), "reason": reason})

    async def freeze(self, request: Request) -> Response:
        """Freeze all rollouts: ``{"reason"}``; without a reason, end that."""
        body = await read_as(operator_bodies.Freeze, request)
        return data_answer(await self._plane.work(self._plane.rollouts.freeze, number(request, "uid"), body.reason))

    async def due(self, request: Request) -> Response:
        """Return the plan of renewals that are due."""
        return data_answer(await self._plane.work(self._plane.renewal_rollouts.default, number(request, "uid")))

    async def put_due(self, request: Request) -> Response:
        """Set the plan of renewals that are due: an ``operator_bodies.RenewalPlan``."""
        body, user_id = await read_as(operator_bodies.RenewalPlan, request), number(request, "uid")
        put = self._plane.renewal_rollouts.set_default
        return data_answer(await self._plane.work(put, user_id, body.over, _rules(body)))


def _rules(body: operator_bodies.Rules) -> RolloutRules:
    return RolloutRules(
        waves=body.waves,
        canary=body.canary or "",
        max_failures=body.max_failures,
        pause_seconds=body.pause_seconds,
        windows=body.windows,
        serial=body.serial,
    )
