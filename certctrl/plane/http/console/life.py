"""Changes of one device from the console: name, tags, hardware, key, end; and what takes some of them back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.plane.audit.acts import note_request
from certctrl.plane.core import Plane
from certctrl.plane.device_life import Decommissioning
from certctrl.plane.errors import bad_request, conflict
from certctrl.plane.http import operator_bodies
from certctrl.plane.http.bodies import body_of
from certctrl.plane.http.console import life_pages, undo
from certctrl.plane.http.console.frame import CERTIFICATES, DEVICES, Viewer, shell
from certctrl.plane.http.console.ids import number_in_path
from certctrl.plane.http.console.life_pages import DECOMMISSION, REPLACE, ROTATE
from certctrl.plane.http.console.parts import link
from certctrl.plane.http.console.visits import Visits
from certctrl.plane.http.pages.html import redirect
from certctrl.plane.http.permissions import permission_of
from certctrl.plane.http.routing import DEVICE, USER
from certctrl.text import nearest, one_line

_RENAME, _TAG = permission_of("POST", f"{DEVICE}/name"), permission_of("POST", f"{USER}/device-tags")
_REPLACE = permission_of("POST", f"{DEVICE}/replacement")
_CANCEL = permission_of("DELETE", f"{DEVICE}/replacement")
_ROTATE = permission_of("POST", f"{DEVICE}/key-rotation")
_DECOMMISSION = permission_of("POST", f"{DEVICE}/decommission")
_ASSIGN = permission_of("POST", f"{DEVICE}/certificates")
_UNASSIGN = permission_of("DELETE", f"{DEVICE}/certificates/{{cid}}")
_ASKED = {REPLACE: _REPLACE, ROTATE: _ROTATE, DECOMMISSION: _DECOMMISSION}


class ConsoleLife:
    """The forms of a device's page, the pages that ask before, and Undo."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._life = plane.life
        self._visits = Visits(plane)

    def routes(self) -> list[Route]:
        """Return the routes; the page that asks is `ask`, for the route of all questions about a device."""
        page, home = self._visits.page, f"{DEVICES}/{{did}}"
        forms = {
            "rename": self.rename,
            "tags": self.tags,
            REPLACE: self.replace,
            "cancel-replacement": self.cancel_replacement,
            ROTATE: self.rotate_key,
            DECOMMISSION: self.decommission,
        }
        posted = [Route(f"{home}/{name}", page(endpoint), methods=["POST"]) for name, endpoint in forms.items()]
        return [*posted, Route(undo.URL, page(self.undo), methods=["POST"])]

    async def ask(self, viewer: Viewer, device_id: int, do: str, problem: str = "") -> Response:
        """Ask before a device is replaced, gets another key or is decommissioned. ErrorResponse 400, 403, 404, 409."""
        permission = _ASKED.get(do)
        if permission is None:
            meant = nearest(do, _ASKED)
            hint = f": did you mean {meant}?" if meant else ""
            raise bad_request(f"There is no such change{hint}")
        viewer.caller.require(permission.role)
        ids = viewer.user_id, device_id
        if do == REPLACE:
            body = life_pages.ask_replacement(await self._life.replace(*ids, dry_run=True), viewer)
        elif do == ROTATE:
            body = life_pages.ask_rotation(await self._life.rotate_key(*ids, dry_run=True), viewer)
        else:
            plan = await self._life.decommission(*ids, Decommissioning(), dry_run=True)
            body = life_pages.ask_end(plan, viewer, problem)
        return shell("Change a device", body, viewer, here=DEVICES, status=400 if problem else 200)

    async def rename(self, request: Request, viewer: Viewer) -> Response:
        """Give a device another name."""
        device_id, form = number_in_path(request, "did"), await self._visits.form(request)
        with self._visits.acting(viewer, _RENAME, did=device_id):
            body = body_of(operator_bodies.NewDeviceName, {"name": form.get("name", "").strip()})
            note_request(body)
            done = await self._life.rename(viewer.user_id, device_id, body.name)
        if not done["changed"]:
            return _to(device_id, "same-name")
        takes_back = {"do": undo.RENAME, "device": device_id, "was": done["former_name"], "now": done["name"]}
        return _to(device_id, "renamed", self._signed(viewer, takes_back) if done["former_name"] else "")

    async def tags(self, request: Request, viewer: Viewer) -> Response:
        """Add tags to a device, and remove others."""
        device_id, form = number_in_path(request, "did"), await self._visits.form(request)
        given = {
            name: [word.strip() for word in form.get(name, "").split(",") if word.strip()] for name in ("add", "remove")
        }
        if not any(given.values()):
            viewer.caller.require(_TAG.role)
            raise bad_request("No tag is given: name one to add, such as web or env=prod, or one to remove")
        with self._visits.acting(viewer, _TAG):
            body = body_of(operator_bodies.TagChange, {"device_ids": [device_id], **given})
            note_request(body)
            change = self._plane.devices.tags.change
            rows = await self._plane.work_long(
                change, viewer.user_id, body.device_ids, add=body.add, remove=body.remove
            )
        added, removed = rows[0]["added"], rows[0]["removed"]
        if not (added or removed):
            return _to(device_id, "same-tags")
        takes_back = {"do": undo.TAGS, "device": device_id, "added": added, "removed": removed}
        return _to(device_id, "tagged", self._signed(viewer, takes_back))

    async def replace(self, request: Request, viewer: Viewer) -> Response:
        """Show the token by which new hardware becomes a device; no other page has it, so there is none to go to."""
        device_id = number_in_path(request, "did")
        await self._visits.form(request)
        with self._visits.acting(viewer, _REPLACE, did=device_id):
            made = await self._life.replace(viewer.user_id, device_id)
        return shell("New hardware", life_pages.replacement(made), viewer, here=DEVICES)

    async def cancel_replacement(self, request: Request, viewer: Viewer) -> Response:
        """Void the token of a replacement."""
        device_id = number_in_path(request, "did")
        await self._visits.form(request)
        with self._visits.acting(viewer, _CANCEL, did=device_id):
            done = await self._life.cancel_replacement(viewer.user_id, device_id)
        return _to(device_id, "voided" if done["changed"] else "no-token")

    async def rotate_key(self, request: Request, viewer: Viewer) -> Response:
        """Have a device replace its key."""
        device_id = number_in_path(request, "did")
        await self._visits.form(request)
        with self._visits.acting(viewer, _ROTATE, did=device_id):
            await self._life.rotate_key(viewer.user_id, device_id)
        return _to(device_id, "rotating")

    async def decommission(self, request: Request, viewer: Viewer) -> Response:
        """Decommission a device, if its name was typed."""
        device_id, form = number_in_path(request, "did"), await self._visits.form(request)
        row = await self._plane.work(self._plane.devices.show, viewer.user_id, device_id)
        typed = form.get("name", "").strip()
        if typed != (row["name"] or str(row["id"])):
            return await self.ask(viewer, device_id, DECOMMISSION, f"{one_line(typed, 60)!r} is not its name.")
        with self._visits.acting(viewer, _DECOMMISSION, did=device_id):
            body = body_of(operator_bodies.Decommission, {"reason": form.get("reason", "")})
            note_request(body)
            await self._life.decommission(viewer.user_id, device_id, Decommissioning(reason=body.reason))
        return _to(device_id, "decommissioned")

    # --- Undo ---------------------------------------------------------------------------------------------------------

    def _signed(self, viewer: Viewer, what: Mapping[str, Any]) -> str:
        return undo.signed(viewer, self._plane.wall_now(), what)

    async def undo(self, request: Request, viewer: Viewer) -> Response:
        """Take a change back, unless it was more than a minute ago or the value has changed since. ErrorResponse 409."""
        form = await self._visits.form(request)
        found = undo.opened(viewer, self._plane.wall_now(), form.get("undo", ""))
        if found is None or found["user"] != viewer.user_id:
            raise conflict("This can no longer be undone: Undo is for the minute after a change. Nothing was changed")
        user_id, device_id = viewer.user_id, int(found["device"])
        home = f"{DEVICES}/{device_id}"
        if found["do"] == undo.RENAME:
            with self._visits.acting(viewer, _RENAME, did=device_id):
                await self._life.rename(user_id, device_id, found["was"], expected=found["now"])
        elif found["do"] == undo.TAGS:
            with self._visits.acting(viewer, _TAG, did=device_id):
                await self._plane.work_long(self._tags_back, user_id, device_id, found["added"], found["removed"])
        else:
            cert_id = int(found["certificate"])
            home, certificates = f"{CERTIFICATES}/{cert_id}", self._plane.certificates
            is_assigned = found["do"] == undo.ASSIGN
            with self._visits.acting(viewer, _UNASSIGN if is_assigned else _ASSIGN, did=device_id, cid=cert_id):
                if is_assigned:
                    await certificates.unassign(user_id, device_id, cert_id, since=found["at"])
                else:
                    await certificates.assign(user_id, device_id, cert_id)
        return redirect(link(home, {"done": "undone"}))

    def _tags_back(self, user_id: int, device_id: int, added: list[str], removed: list[str]) -> None:
        tags = self._plane.devices.tags
        self._plane.devices.locked(device_id, user_id)
        present = set(tags.of([device_id]).get(device_id, []))
        if not present.issuperset(added) or present.intersection(removed):
            raise conflict("Its tags have changed since: look at them. Nothing was changed")
        tags.change(user_id, [device_id], add=removed, remove=added)


def _to(device_id: int, done: str, token: str = "") -> Response:
    """Return to the page of a device."""
    return redirect(link(f"{DEVICES}/{device_id}", {"done": done, "undo": token}))
