"""The endpoints of the console that start a rollout: form, preview, start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.plane.audit.acts import note_request
from certctrl.plane.certificates.bulk import MAX_RENEWED
from certctrl.plane.core import Plane
from certctrl.plane.errors import ErrorResponse, bad_request, not_found
from certctrl.plane.http.console import change_forms, previews
from certctrl.plane.http.console.change_forms import NEW_ROLLOUT, Problem
from certctrl.plane.http.console.forms import DEFAULT_RULES, NEW, Fields, rollout_body, rollout_command, words_of
from certctrl.plane.http.console.frame import ROLLOUTS, Viewer, shell
from certctrl.plane.http.console.profile_pages import ConsoleProfiles, large_form, notes_of, problem_of, require_preview
from certctrl.plane.http.console.visits import Visits
from certctrl.plane.http.pages.html import redirect
from certctrl.plane.http.permissions import permission_of
from certctrl.plane.http.reading import clean_line, whole_number
from certctrl.plane.http.rollout_api import start_rollout
from certctrl.plane.http.routing import USER
from certctrl.plane.profiles.previews import STALE
from certctrl.plane.profiles.profiles import check_name
from certctrl.text import one_line

_START = permission_of("POST", f"{USER}/rollouts")
_MAX_NAME = 100
_SHOWN_IDS = 5
_MAX_LIST = 100_000
"""Characters of names of certificates, more than a URL may have: none is cut off."""


class ConsoleStarts:
    """The form of a new rollout, of a profile or of renewals."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._visits = Visits(plane)
        self._of_profiles = ConsoleProfiles(plane)

    def routes(self) -> list[Route]:
        """Return the routes; they come before that of one rollout."""
        page = self._visits.page
        return [
            Route(NEW_ROLLOUT, page(self.form)),
            Route(NEW_ROLLOUT, page(self.start), methods=["POST"]),
        ]

    async def form(self, request: Request, viewer: Viewer) -> Response:
        """Show the form: ``?profile=&version=`` or ``?certificates=``; without them, ask what the rollout is to bring."""
        viewer.caller.require(_START.role)
        asked = request.query_params
        name = clean_line(asked.get("profile", ""), _MAX_NAME)
        certificates = clean_line(asked.get("certificates", ""), _MAX_LIST)
        version = whole_number(asked["version"], "version", 1) if asked.get("version") else None
        if name:
            check_name(name)
            stored = self._of_profiles.stored_fields
            fields = await self._plane.work_long(stored, viewer, name, version)
            return await self._form(viewer, {**DEFAULT_RULES, **(fields or NEW), "profile": name})
        if certificates:
            try:
                ids = await self._plane.work_long(self._ids, viewer, certificates)
            except ErrorResponse as error:
                return await self._choice(viewer, certificates, problem_of(error), error.status)
            return await self._form(viewer, {**DEFAULT_RULES, "certificates": ",".join(map(str, ids))})
        return await self._choice(viewer)

    async def _choice(
        self, viewer: Viewer, asked: str = "", problem: Problem | None = None, status: int = 200
    ) -> Response:
        rows = await self._plane.work_long(self._plane.profiles.show_all, viewer.user_id)
        body = change_forms.choice([row["name"] for row in rows], asked, problem)
        return shell("New rollout", body, viewer, here=ROLLOUTS, status=status)

    def _ids(self, viewer: Viewer, text: str) -> list[int]:
        """Return the ids of certificates that are named by id or by name; ErrorResponse 400, and 404 for one that is not."""
        words = words_of(text)
        if len(words) > MAX_RENEWED:
            raise bad_request(f"Name up to {MAX_RENEWED} certificates, not {len(words)}", field="certificates")
        return list(dict.fromkeys(self._id(viewer, word) for word in words))

    def _id(self, viewer: Viewer, word: str) -> int:
        if word.isascii() and word.isdigit() and len(word) < 16:
            try:
                return int(self._plane.certificates.show(viewer.user_id, int(word))["id"])
            except ErrorResponse as error:
                raise not_found(f"No such certificate: {word}") if error.status == 404 else error from None
        named = self._plane.certificates.named(viewer.user_id, word.lower())
        if not named:
            raise not_found(f"No such certificate: {one_line(word, 80)}")
        if len(named) > 1:
            ids = ", ".join(map(str, named[:_SHOWN_IDS]))
            raise bad_request(f"Several certificates are called {one_line(word, 80)}: use an id, such as {ids}")
        return named[0]

    def _certificates(self, viewer: Viewer, fields: Fields) -> list[dict[str, Any]]:
        ids = self._ids(viewer, fields.get("certificates", ""))
        rows = [self._plane.certificates.show(viewer.user_id, cert_id) for cert_id in ids]
        return [{"id": row["id"], "name": row["domain_name"]} for row in rows]

    async def _form(
        self, viewer: Viewer, fields: Fields, problem: Problem | None = None, status: int = 200
    ) -> Response:
        certificates: Sequence[dict[str, Any]] = ()
        if not fields.get("profile"):
            try:
                certificates = await self._plane.work_long(self._certificates, viewer, fields)
            except ErrorResponse as error:  # one is gone since the form was shown
                return await self._choice(viewer, fields.get("certificates", ""), problem_of(error), error.status)
            if not certificates:
                return await self._choice(viewer, problem=problem, status=status)
        body = change_forms.rollout_form(fields, viewer, certificates=certificates, problem=problem)
        return shell("New rollout", body, viewer, here=ROLLOUTS, status=status)

    # --- posted ---------------------------------------------------------------------------------------------------

    async def start(self, request: Request, viewer: Viewer) -> Response:
        """Show the plan of a rollout, or start it if it does what was shown."""
        form = await large_form(self._visits, request)
        viewer.caller.require(_START.role)
        if form.get("profile"):
            check_name(form["profile"])
        try:
            return await self._posted(form, viewer)
        except ErrorResponse as error:
            if error.status not in (400, 404, 409):
                raise
            return await self._form(viewer, form, problem_of(error), error.status)

    async def _posted(self, form: Fields, viewer: Viewer) -> Response:
        match form.get("do", ""):
            case "edit":
                return await self._form(viewer, {**DEFAULT_RULES, **form})
            case "preview":
                return await self._preview(form, viewer)
            case "start":
                try:
                    return await self._start(form, viewer)
                except ErrorResponse as error:
                    if error.key != STALE:
                        raise
                    return await self._preview(form, viewer, problem=f"{error.what}.")
        raise bad_request("There is no such change")

    async def _preview(self, form: Fields, viewer: Viewer, problem: str = "") -> Response:
        body = rollout_body(form)
        planned = await start_rollout(self._plane, viewer.user_id, body, dry_run=True)
        frozen = await self._plane.work(self._plane.rollouts.frozen, viewer.user_id)
        notes = notes_of(body.installs or [])
        if frozen:
            notes.append(f"All rollouts are frozen: it releases nothing until that ends. Why: {one_line(frozen)}")
        page = previews.rollout_preview(planned, form, viewer, rollout_command(body), notes, problem)
        return shell("Preview of a rollout", page, viewer, here=ROLLOUTS, status=409 if problem else 200)

    async def _start(self, form: Fields, viewer: Viewer) -> Response:
        body = rollout_body(form)
        require_preview(body.preview_id)
        with self._visits.acting(viewer, _START):
            note_request(body)
            started = await start_rollout(self._plane, viewer.user_id, body, dry_run=False)
        return redirect(f"{ROLLOUTS}/{started['id']}?done=started")
