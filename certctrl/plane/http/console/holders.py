"""Changes of one certificate from the console: which devices have it, and its revocation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.plane.audit.acts import note_request
from certctrl.plane.certificates.table import KEY_AT_DEVICE
from certctrl.plane.core import Plane
from certctrl.plane.errors import bad_request, conflict, not_found
from certctrl.plane.http import operator_bodies
from certctrl.plane.http.bodies import body_of
from certctrl.plane.http.console import holders_pages, undo
from certctrl.plane.http.console.frame import CERTIFICATES, Viewer, shell
from certctrl.plane.http.console.ids import number_in_path
from certctrl.plane.http.console.parts import link
from certctrl.plane.http.console.visits import Visits
from certctrl.plane.http.pages.html import redirect
from certctrl.plane.http.permissions import Permission, permission_of
from certctrl.plane.http.reading import clean_line
from certctrl.plane.http.routing import CERTIFICATE, DEVICE
from certctrl.text import nearest, one_line

_ASSIGN = permission_of("POST", f"{DEVICE}/certificates")
_UNASSIGN = permission_of("DELETE", f"{DEVICE}/certificates/{{cid}}")
_REVOKE = permission_of("POST", f"{CERTIFICATE}/revoke")
_MAX_NAME = 200
_MOST_NAMES = 500


class ConsoleHolders:
    """The forms of a certificate's page, and the page that asks before a revocation."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._visits = Visits(plane)

    def routes(self) -> list[Route]:
        """Return the routes."""
        page, home = self._visits.page, f"{CERTIFICATES}/{{cid}}"
        return [
            Route(f"{home}/assign", page(self.assign), methods=["POST"]),
            Route(f"{home}/unassign", page(self.unassign), methods=["POST"]),
            Route(f"{home}/confirm", page(self.confirm)),
            Route(f"{home}/revoke", page(self.revoke), methods=["POST"]),
        ]

    # --- devices ------------------------------------------------------------------------------------------------------

    async def assign(self, request: Request, viewer: Viewer) -> Response:
        """Assign a certificate to a device, by name or id."""
        return await self._change(request, viewer, _ASSIGN, undo.ASSIGN, self._plane.certificates.assign)

    async def unassign(self, request: Request, viewer: Viewer) -> Response:
        """Unassign a certificate from a device, by name or id."""
        return await self._change(request, viewer, _UNASSIGN, undo.UNASSIGN, self._plane.certificates.unassign)

    async def _change(
        self,
        request: Request,
        viewer: Viewer,
        permission: Permission,
        do: str,
        change: Callable[[int, int, int], Awaitable[object]],
    ) -> Response:
        cert_id, form = number_in_path(request, "cid"), await self._visits.form(request)
        viewer.caller.require(permission.role)
        named = clean_line(form.get("device", ""), _MAX_NAME)
        device_id = await self._plane.work_long(self._device, viewer.user_id, named)
        row = await self._plane.work(self._plane.certificates.show, viewer.user_id, cert_id)
        own_keys = row["key_origin"] == KEY_AT_DEVICE
        if not own_keys and do == undo.ASSIGN and device_id in row["device_ids"]:
            return redirect(link(f"{CERTIFICATES}/{cert_id}", {"done": "has-it"}))
        with self._visits.acting(viewer, permission, did=device_id, cid=cert_id):
            await change(viewer.user_id, device_id, cert_id)
        token = ""
        if not own_keys:  # otherwise, another assignment makes a new certificate
            at = await self._plane.work(self._plane.certificates.assigned_at, device_id, cert_id)
            takes_back = {"do": do, "device": device_id, "certificate": cert_id, "at": at}
            token = undo.signed(viewer, self._plane.wall_now(), takes_back)
        return redirect(link(f"{CERTIFICATES}/{cert_id}", {"done": f"{do}ed", "undo": token}))

    def _device(self, user_id: int, named: str) -> int:
        """Return the id of a device by name or id; ErrorResponse 400, 404, 409."""
        if not named:
            raise bad_request("No device is given: type its name or id")
        if named.isascii() and named.isdigit() and len(named) < 16:
            return int(self._plane.devices.row(user_id, int(named))["id"])
        same = self._plane.devices.named(user_id, named)
        if len(same) == 1:
            return int(same[0]["id"])
        if same:
            ids = ", ".join(str(row["id"]) for row in same[:20])
            raise conflict(f"{len(same)} devices are named {named}: use one of the ids {ids}")
        names: list[str] = [row["name"] for row in self._plane.devices.page(user_id, 0, _MOST_NAMES)]
        meant = nearest(named.lower(), sorted(names))
        raise not_found(f"No device is named {one_line(named, 60)!r}" + (f": did you mean {meant}?" if meant else ""))

    # --- revocation ---------------------------------------------------------------------------------------------------

    async def confirm(self, request: Request, viewer: Viewer) -> Response:
        """Ask before a certificate is revoked: ``?do=revoke``."""
        if request.query_params.get("do") != "revoke":
            raise bad_request("There is no such change: did you mean revoke?")
        return await self._ask(viewer, number_in_path(request, "cid"))

    async def _ask(
        self, viewer: Viewer, cert_id: int, form: Mapping[str, str] | None = None, problem: str = ""
    ) -> Response:
        viewer.caller.require(_REVOKE.role)
        row = await self._plane.work(self._plane.certificates.show, viewer.user_id, cert_id)
        body = holders_pages.ask_revocation(row, viewer, form or {}, problem)
        return shell("Revoke a certificate", body, viewer, here=CERTIFICATES, status=400 if problem else 200)

    async def revoke(self, request: Request, viewer: Viewer) -> Response:
        """Revoke a certificate, if its name was typed."""
        cert_id, form = number_in_path(request, "cid"), await self._visits.form(request)
        row: dict[str, Any] = await self._plane.work(self._plane.certificates.show, viewer.user_id, cert_id)
        typed = form.get("name", "").strip()
        if typed != row["domain_name"]:
            return await self._ask(viewer, cert_id, form, f"{one_line(typed, 60)!r} is not its name.")
        wanted = {name: form.get(name, "") for name in ("reason", "reason_code")}
        with self._visits.acting(viewer, _REVOKE, cid=cert_id):
            body = body_of(operator_bodies.Revocation, {**wanted, "replace": form.get("replace") == "yes"})
            note_request(body)
            await self._plane.certificates.revoke(
                viewer.user_id, cert_id, reason=body.reason, reason_code=body.reason_code, replace=body.replace
            )
        return redirect(link(f"{CERTIFICATES}/{cert_id}", {"done": "replacing" if body.replace else "cert-revoked"}))
