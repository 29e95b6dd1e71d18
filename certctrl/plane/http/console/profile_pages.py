"""The endpoints of the console for profiles: the list, one profile, and a new version of it, which is previewed first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.model.csv_rows import csv_lines
from certctrl.plane.audit.acts import note_request
from certctrl.plane.core import Plane
from certctrl.plane.errors import ErrorResponse, bad_request
from certctrl.plane.http.console import change_forms, previews
from certctrl.plane.http.console import profiles as profiles_page
from certctrl.plane.http.console.change_forms import Problem
from certctrl.plane.http.console.exports import csv_answer, json_answer
from certctrl.plane.http.console.forms import FORM_CAP, NEW, Fields, fields_of, profile_body, profile_command
from certctrl.plane.http.console.frame import PROFILES, Viewer, shell
from certctrl.plane.http.console.profiles import ProfileFound, home_of
from certctrl.plane.http.console.visits import Visits
from certctrl.plane.http.pages.html import redirect
from certctrl.plane.http.permissions import permission_of
from certctrl.plane.http.profile_api import put_profile
from certctrl.plane.http.reading import clean_line, whole_number
from certctrl.plane.http.routing import USER
from certctrl.plane.profiles.previews import STALE
from certctrl.plane.profiles.profiles import check_name
from certctrl.plane.rollouts.rollouts import OPEN
from certctrl.protocol.wire.install_items import unknown_keys

_ROWS = 50
_PUT = permission_of("PUT", f"{USER}/profiles/{{name}}")
_MAX_NAME = 100


class ConsoleProfiles:
    """The pages and the form of profiles."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._profiles = plane.profiles
        self._visits = Visits(plane)

    def routes(self) -> list[Route]:
        """Return the routes."""
        page, one = self._visits.page, f"{PROFILES}/{{name}}"
        return [
            Route(f"{PROFILES}.json", page(self.profiles_json)),
            Route(f"{PROFILES}.csv", page(self.profiles_csv)),
            Route(PROFILES, page(self.profiles)),
            Route(f"{one}/export.json", page(self.profile_json)),
            Route(f"{one}/change", page(self.form)),
            Route(f"{one}/change", page(self.change), methods=["POST"]),
            Route(one, page(self.profile)),
        ]

    # --- pages ----------------------------------------------------------------------------------------------------

    async def profiles(self, request: Request, viewer: Viewer) -> Response:
        """Show the profiles in their order; ``?state=problems`` or ``rollout``; ``?new=NAME`` leads to a new one."""
        asked, chosen = request.query_params.get("new", "").strip(), request.query_params.get("state", "")
        if asked:
            check_name(asked)
            return redirect(f"{home_of(asked)}/change")

        def read() -> Response:
            rows, open_ones = self._profiles.show_all(viewer.user_id), self._open(viewer)
            kind = chosen if chosen in profiles_page.KINDS else ""
            body = profiles_page.profiles(rows, open_ones, kind, viewer, self._plane.wall_now())
            return shell("Profiles", body, viewer, here=PROFILES)

        return await self._plane.work_long(read)

    def _open(self, viewer: Viewer) -> dict[str, Mapping[str, Any]]:
        """Return the open rollout of each profile."""
        rows = self._plane.rollouts.show_all(viewer.user_id, OPEN)
        return {row["profile"]: row for row in rows if row["profile"]}

    async def profiles_json(self, request: Request, viewer: Viewer) -> Response:
        """Return the profiles, as ``plane profile list --json``."""
        return await self._plane.work_long(lambda: json_answer(self._profiles.show_all(viewer.user_id)))

    async def profiles_csv(self, request: Request, viewer: Viewer) -> Response:
        """Return the profiles as CSV."""
        return await self._plane.work_long(
            lambda: csv_answer("profiles", csv_lines(self._profiles.show_all(viewer.user_id)))
        )

    async def profile(self, request: Request, viewer: Viewer) -> Response:
        """Show a profile: its present version, or ``?version=``."""
        name, asked = request.path_params["name"], _version(request)
        after = whole_number(request.query_params.get("after", "0"), "after", 0)
        done = request.query_params.get("done", "")

        def read() -> Response:
            body = profiles_page.profile(self._found(viewer, name, asked, after), viewer, self._plane.wall_now())
            return shell(f"Profile {name}", body, viewer, here=PROFILES, done=done)

        return await self._plane.work_long(read)

    def _found(self, viewer: Viewer, name: str, asked: int | None, after: int) -> ProfileFound:
        versions = self._profiles.history(viewer.user_id, name)
        present = next(row for row in versions if row["current"])
        is_gone = present["deleted"] and asked in (None, present["version"])
        return ProfileFound(
            name=name,
            shown=None if is_gone else self._profiles.show(viewer.user_id, name, asked),
            asked=None if asked == present["version"] else asked,
            versions=versions,
            devices=self._profiles.devices(viewer.user_id, name, after, _ROWS),
            after=after,
            rollout=self._open(viewer).get(name),
        )

    async def profile_json(self, request: Request, viewer: Viewer) -> Response:
        """Return a profile, as ``plane profile show --json``."""
        name, asked = request.path_params["name"], _version(request)
        return await self._plane.work_long(lambda: json_answer(self._profiles.show(viewer.user_id, name, asked)))

    # --- a new version --------------------------------------------------------------------------------------------

    async def form(self, request: Request, viewer: Viewer) -> Response:
        """Show the form for a new version, filled in with the present one or that of ``?version=``."""
        viewer.caller.require(_PUT.role)
        name, asked = request.path_params["name"], _version(request)
        check_name(name)
        fields = await self._plane.work_long(self.stored_fields, viewer, name, asked)
        return self._form(name, NEW if fields is None else fields, viewer, is_new=fields is None)

    def stored_fields(self, viewer: Viewer, name: str, asked: int | None) -> dict[str, str] | None:
        """Return the fields for a profile as it is stored; None if there is none, or no longer."""
        try:
            shown = self._profiles.show(viewer.user_id, name, asked)
        except ErrorResponse as error:
            if error.status != 404 or asked is not None:
                raise
            return None
        return fields_of(shown) | ({"note": f"back to version {asked}"} if asked is not None else {})

    def _form(
        self,
        name: str,
        fields: Fields,
        viewer: Viewer,
        *,
        is_new: bool,
        problem: Problem | None = None,
        status: int = 200,
    ) -> Response:
        body = change_forms.profile_form(name, fields, viewer, is_new=is_new, problem=problem)
        return shell(f"Change profile {name}", body, viewer, here=PROFILES, status=status)

    async def change(self, request: Request, viewer: Viewer) -> Response:
        """Show what a version would change, or store it if it does what was shown."""
        name = request.path_params["name"]
        form = await large_form(self._visits, request)
        viewer.caller.require(_PUT.role)
        check_name(name)
        try:
            return await self._changed(name, form, viewer)
        except ErrorResponse as error:
            if error.status not in (400, 404, 409):
                raise
            is_new = await self._plane.work_long(self.stored_fields, viewer, name, None) is None
            return self._form(name, form, viewer, is_new=is_new, problem=problem_of(error), status=error.status)

    async def _changed(self, name: str, form: Fields, viewer: Viewer) -> Response:
        match form.get("do", ""):
            case "edit":
                is_new = await self._plane.work_long(self.stored_fields, viewer, name, None) is None
                return self._form(name, form, viewer, is_new=is_new)
            case "preview":
                return await self._preview(name, form, viewer)
            case "store":
                try:
                    return await self._store(name, form, viewer)
                except ErrorResponse as error:
                    if error.key != STALE:
                        raise
                    return await self._preview(name, form, viewer, problem=f"{error.what}.")
        raise bad_request("There is no such change")

    async def _preview(self, name: str, form: Fields, viewer: Viewer, problem: str = "") -> Response:
        body = profile_body(form)
        planned = await put_profile(self._plane, viewer.user_id, name, body, dry_run=True)
        if planned["unchanged"]:
            raise bad_request(f"Profile {name} is already so: nothing would change")
        await self._plane.work(self._profiles.refuse_rollout_of, viewer.user_id, name)
        page = previews.profile_preview(
            planned,
            form,
            viewer,
            present=await self._plane.work(self._present, viewer, name),
            command=profile_command(name, body),
            notes=notes_of(body.installs),
            problem=problem,
        )
        return shell(f"Preview of profile {name}", page, viewer, here=PROFILES, status=409 if problem else 200)

    def _present(self, viewer: Viewer, name: str) -> int | None:
        """Return the present version of a profile; None if it is new, or was deleted."""
        try:
            versions = self._profiles.history(viewer.user_id, name)
        except ErrorResponse:
            return None
        present = (int(row["version"]) for row in versions if row["current"] and not row["deleted"])
        return next(present, None)

    async def _store(self, name: str, form: Fields, viewer: Viewer) -> Response:
        body = profile_body(form)
        require_preview(body.preview_id)
        with self._visits.acting(viewer, _PUT, name=name):
            note_request(body)
            await put_profile(self._plane, viewer.user_id, name, body, dry_run=False)
        return redirect(f"{home_of(name)}?done=stored")


async def large_form(visits: Visits, request: Request) -> dict[str, str]:
    """Return a posted form that may have the items of a profile; ErrorResponse 413 says what to use instead."""
    try:
        return await visits.form(request, FORM_CAP)
    except ErrorResponse as error:
        if error.status != 413:
            raise
        error.what = (
            f"This form has more than {FORM_CAP // 1024} KiB: use cert-ctrl plane profile or rollout with a file"
        )
        raise


def problem_of(error: ErrorResponse) -> Problem:
    """Return what a form that is shown again says."""
    return Problem(text=error.what, field=str(error.params.get("field", "")).partition("[")[0])


def require_preview(preview_id: str) -> None:
    """Raise ErrorResponse 400 for a change of which no preview was shown."""
    if not preview_id:
        raise bad_request("Look at the preview first")


def notes_of(items: Any) -> list[str]:
    """Return what a preview says about keys that this version does not know."""
    return [
        f"{one_path} is unknown to this version; it is stored for newer agents."
        for one_path in unknown_keys(items)[:10]
    ]


def _version(request: Request) -> int | None:
    asked = clean_line(request.query_params.get("version", ""), _MAX_NAME)
    return whole_number(asked, "version", 1) if asked else None
