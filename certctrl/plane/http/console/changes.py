"""What operators change from the console: by forms, with the roles and entries in the audit log of the API."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.plane.core import Plane
from certctrl.plane.errors import ErrorResponse, bad_request, conflict
from certctrl.plane.http.console import confirm
from certctrl.plane.http.console.frame import CERTIFICATES, DEVICES, ROLLOUTS, Viewer, shell
from certctrl.plane.http.console.holders import ConsoleHolders
from certctrl.plane.http.console.ids import number_in_path
from certctrl.plane.http.console.life import ConsoleLife
from certctrl.plane.http.console.rollouts import actions_of
from certctrl.plane.http.console.visits import Visits
from certctrl.plane.http.pages.html import redirect
from certctrl.plane.http.permissions import Permission, permission_of
from certctrl.plane.http.reading import clean_line
from certctrl.plane.http.routing import CERTIFICATE, DEVICE, USER
from certctrl.text import one_line

_NOTICE = {"pause": "paused", "resume": "resumed", "abort": "aborted"}
_DO = {do: permission_of("POST", f"{USER}/rollouts/{{rid}}/{do}") for do in _NOTICE}
_RESYNC, _REVOKE = permission_of("POST", f"{DEVICE}/resync"), permission_of("DELETE", DEVICE)
_RENEW = permission_of("POST", f"{CERTIFICATE}/issues")
_MAX_REASON = 200
_Change = Callable[[int, int], dict[str, Any]]


class _UnreadError(ErrorResponse):
    """Failures of a rollout were not read before it is resumed."""

    def __init__(self, what: str) -> None:
        super().__init__(what, status=400, key="UNREAD", code=4000)


class ConsoleChanges:
    """The forms, and the pages that ask before."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._visits = Visits(plane)
        self._life, self._holders = ConsoleLife(plane), ConsoleHolders(plane)

    def routes(self) -> list[Route]:
        """Return the routes."""
        page = self._visits.page
        return [
            Route(f"{ROLLOUTS}/{{rid}}/confirm", page(self.confirm_rollout)),
            Route(f"{ROLLOUTS}/{{rid}}/{{do}}", page(self.change_rollout), methods=["POST"]),
            Route(f"{DEVICES}/{{did}}/resync", page(self.resync), methods=["POST"]),
            Route(f"{DEVICES}/{{did}}/confirm", page(self.confirm_device)),
            Route(f"{DEVICES}/{{did}}/revoke", page(self.revoke_device), methods=["POST"]),
            Route(f"{CERTIFICATES}/{{cid}}/renew", page(self.renew), methods=["POST"]),
            *self._life.routes(),
            *self._holders.routes(),
        ]

    # --- rollouts -------------------------------------------------------------------------------------------------

    async def confirm_rollout(self, request: Request, viewer: Viewer) -> Response:
        """Ask before a rollout changes: ``?do=pause``, ``resume`` or ``abort``."""
        return await self._ask(viewer, number_in_path(request, "rid"), request.query_params.get("do", ""))

    async def _ask(self, viewer: Viewer, rollout_id: int, do: str, problem: str = "") -> Response:
        _permission(do, viewer)

        def read() -> Response:
            row = self._plane.rollouts.show(viewer.user_id, rollout_id)
            if do not in actions_of(row["state"]):
                raise conflict(f"Rollout {rollout_id} is {row['state']}: there is nothing to {do}")
            body = confirm.rollout_change(row, do, viewer, problem)
            return shell(
                f"{do.capitalize()} rollout {rollout_id}", body, viewer, here=ROLLOUTS, status=400 if problem else 200
            )

        return await self._plane.work_long(read)

    async def change_rollout(self, request: Request, viewer: Viewer) -> Response:
        """Pause, resume or abort a rollout."""
        rollout_id, do = number_in_path(request, "rid"), request.path_params["do"]
        form = await self._visits.form(request)
        permission = _permission(do, viewer)
        rollouts = self._plane.rollouts
        resume = partial(rollouts.resume, check=partial(_require_read, form))
        changes: dict[str, _Change] = {"pause": rollouts.pause, "resume": resume, "abort": rollouts.abort}
        try:
            with self._visits.acting(viewer, permission, rid=rollout_id):
                await self._plane.work_long(changes[do], viewer.user_id, rollout_id)
        except _UnreadError as unread:
            return await self._ask(viewer, rollout_id, do, unread.what)
        return redirect(f"{ROLLOUTS}/{rollout_id}?done={_NOTICE[do]}")

    # --- devices and certificates ---------------------------------------------------------------------------------

    async def resync(self, request: Request, viewer: Viewer) -> Response:
        """Make a device compare everything again."""
        device_id = number_in_path(request, "did")
        await self._visits.form(request)
        with self._visits.acting(viewer, _RESYNC, did=device_id):
            await self._plane.resync(viewer.user_id, device_id, "")
        return redirect(f"{DEVICES}/{device_id}?done=asked")

    async def confirm_device(self, request: Request, viewer: Viewer) -> Response:
        """Ask before a device is shut out, replaced, gets another key or is decommissioned: ``?do=``."""
        device_id, do = number_in_path(request, "did"), request.query_params.get("do", "")
        if do != "revoke":
            return await self._life.ask(viewer, device_id, do)
        return await self._ask_device(viewer, device_id)

    async def _ask_device(self, viewer: Viewer, device_id: int, problem: str = "") -> Response:
        viewer.caller.require(_REVOKE.role)

        def read() -> Response:
            answer = self._plane.fleet.device(viewer.user_id, device_id)
            body = confirm.device_revocation(answer["device"], len(answer["copies"]), viewer, problem)
            return shell("Shut out a device", body, viewer, here=DEVICES, status=400 if problem else 200)

        return await self._plane.work_long(read)

    async def revoke_device(self, request: Request, viewer: Viewer) -> Response:
        """Shut a device out, if its name was typed."""
        device_id = number_in_path(request, "did")
        form = await self._visits.form(request)
        row = await self._plane.work(self._plane.devices.show, viewer.user_id, device_id)
        typed = form.get("name", "").strip()
        if typed != (row["name"] or str(row["id"])):
            viewer.caller.require(_REVOKE.role)
            return await self._ask_device(viewer, device_id, f"{one_line(typed, 60)!r} is not its name.")
        reason = clean_line(form.get("reason", ""), _MAX_REASON)
        with self._visits.acting(viewer, _REVOKE, did=device_id):
            await self._plane.work(self._plane.devices.revoke, viewer.user_id, device_id, reason)
        return redirect(f"{DEVICES}/{device_id}?done=revoked")

    async def renew(self, request: Request, viewer: Viewer) -> Response:
        """Renew a certificate now."""
        cert_id = number_in_path(request, "cid")
        await self._visits.form(request)
        with self._visits.acting(viewer, _RENEW, cid=cert_id):
            await self._plane.certificates.renew(viewer.user_id, cert_id)
        return redirect(f"{CERTIFICATES}/{cert_id}?done=renewing")


def _require_read(form: Mapping[str, str], row: Mapping[str, Any]) -> None:
    """Raise _UnreadError if devices of a rollout have failed, unless a form says that these were read."""
    failures = confirm.failures_of(row)
    if failures and form.get("read") != "yes":
        raise _UnreadError("Read why devices failed, and tick that you have.")
    if failures and form.get("seen", failures) != failures:
        raise _UnreadError("Other devices have failed since. Nothing was done yet.")


def _permission(do: str, viewer: Viewer) -> Permission:
    """Return the permission for a change of a rollout, which the viewer has; ErrorResponse 400 and 403."""
    permission = _DO.get(do)
    if permission is None:
        raise _unknown(do)
    viewer.caller.require(permission.role)
    return permission


def _unknown(do: str) -> ErrorResponse:
    return bad_request(f"{one_line(do, 20)!r} is not a change of a rollout: use pause, resume or abort")
