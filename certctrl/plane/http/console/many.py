"""Changes of many devices or certificates: of those that a filtered list shows, some at a time.

A page asks first. What it shows is fixed by the filter; a form that comes back while other rows fit is asked again, and
changes nothing. Each row is changed by its own units of work, as by the API, so that other requests are answered in between,
and one that is refused does not stop the others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl import lean
from certctrl.errors import CertctrlError
from certctrl.plane.audit.acts import note_request
from certctrl.plane.core import Plane
from certctrl.plane.device_life import Decommissioning, previewed
from certctrl.plane.devices.tags import checked_tags
from certctrl.plane.errors import ErrorResponse, bad_request
from certctrl.plane.fleet.fleet import Query
from certctrl.plane.http import operator_bodies
from certctrl.plane.http.bodies import body_of
from certctrl.plane.http.console import many_pages
from certctrl.plane.http.console.chosen import NAMED, Chosen, asked_of, query_of_set
from certctrl.plane.http.console.frame import CERTIFICATES, DEVICES, Viewer, shell
from certctrl.plane.http.console.many_pages import (
    DECOMMISSION,
    OF_DEVICES,
    RENEW,
    RETRY,
    ROTATE,
    TAGS,
    Result,
    TagsWanted,
)
from certctrl.plane.http.console.parts import link, many
from certctrl.plane.http.console.visits import Visits
from certctrl.plane.http.middleware import error_response_of
from certctrl.plane.http.pages.html import Html, redirect
from certctrl.plane.http.permissions import Permission, permission_of
from certctrl.plane.http.routing import DEVICE, USER
from certctrl.plane.issuers.registry import IMPORT
from certctrl.text import nearest, one_line

_PERMISSION: Mapping[str, Permission] = {
    RETRY: permission_of("POST", f"{DEVICE}/resync"),
    TAGS: permission_of("POST", f"{USER}/device-tags"),
    ROTATE: permission_of("POST", f"{DEVICE}/key-rotation"),
    DECOMMISSION: permission_of("POST", f"{DEVICE}/decommission"),
    RENEW: permission_of("POST", f"{USER}/renewals"),
}
_MOST = {DECOMMISSION: 100}
MOST = 500
"""Rows of one request; a page offers to go on with the rest."""
_SECONDS = 20.0
"""After this time, a request changes no further rows."""
_REGISTERED = ("healthy", "degraded", "stale")

Change = Callable[[Mapping[str, Any]], Awaitable[object]]


@lean.frozen(kw_only=True)
class _Asked:
    """What a URL asks: the change, and the query of its rows."""

    do: str
    query: Query
    tags: TagsWanted

    @property
    def permission(self) -> Permission:
        return _PERMISSION[self.do]


class ConsoleMany:
    """The pages that ask before many change, and their forms."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._visits = Visits(plane)

    def routes(self) -> list[Route]:
        """Return the routes."""
        page = self._visits.page
        return [
            Route(f"{path}/confirm", page(partial(endpoint, path)), methods=[method])
            for path in (DEVICES, CERTIFICATES)
            for method, endpoint in (("GET", self.confirm), ("POST", self.change))
        ]

    async def confirm(self, path: str, request: Request, viewer: Viewer) -> Response:
        """Ask before many change: ``?do=``, the filter of the list, and for tags ``add`` and ``remove``."""
        asked = _asked(path, request)
        viewer.caller.require(asked.permission.role)
        return await self._ask(path, asked, await self._chosen(path, asked, viewer), viewer, done=request.query_params)

    async def change(self, path: str, request: Request, viewer: Viewer) -> Response:
        """Change many, if they are those that the page has shown."""
        form = await self._visits.form(request)
        asked = _asked(path, request)
        viewer.caller.require(asked.permission.role)
        chosen = await self._chosen(path, asked, viewer)
        problem = ""
        if form.get("set") != chosen.digest:
            problem = "Other rows fit the filter now: look at them again. Nothing was changed."
        elif asked.do == DECOMMISSION and form.get("count", "").strip() != str(len(chosen.rows)):
            problem = f"{one_line(form.get('count', ''), 20)!r} is not how many there are. Nothing was changed."
        if problem or not chosen.rows:
            return await self._ask(path, asked, chosen, viewer, problem)
        if asked.do == RENEW:
            result = await self._renew(viewer, chosen)
        else:
            result = await self._each(asked, viewer, chosen, form)
        if result.failed or result.stopped:
            body = many_pages.partial(asked.do, chosen, result, _rest(asked, chosen, result))
            return shell("Not all", body, viewer, here=path)
        return redirect(_next(asked, chosen, result))

    # --- which, and what becomes of them ------------------------------------------------------------------------------

    async def _chosen(self, path: str, asked: _Asked, viewer: Viewer) -> Chosen:
        """Return the rows of this request; read in one unit of work."""
        kind = "certificates" if path == CERTIFICATES else "devices"
        read = self._plane.fleet.certificates if path == CERTIFICATES else self._plane.fleet.devices
        answer = await self._plane.work_long(read, viewer.user_id, asked.query)
        found: Sequence[Mapping[str, Any]] = answer[kind]
        rows = [row for row in found if _can(asked.do, row)]
        return Chosen(
            asked=asked_of(path, asked.query),
            rows=rows,
            left_out=[row for row in found if not _can(asked.do, row)],
            later=answer["total"] - len(found),
            beyond=asked.query.beyond,
            last=found[-1]["id"] if found else 0,
        )

    async def _ask(
        self,
        path: str,
        asked: _Asked,
        chosen: Chosen,
        viewer: Viewer,
        problem: str = "",
        done: Mapping[str, str] | None = None,
    ) -> Response:
        status = 409 if problem else 200
        title = many_pages.WORDS[asked.do].label.format("many")
        if asked.do == TAGS and not (asked.tags.add or asked.tags.remove):
            total = len(chosen.rows) + chosen.later
            return shell(title, many_pages.ask_tags(chosen, total, problem), viewer, here=path, status=status)
        effects = await self._effects(asked, chosen, viewer)
        body = many_pages.ask(asked.do, chosen, effects, viewer, tags=asked.tags, problem=problem)
        return shell(title, body, viewer, here=path, status=status, said=said_of(done or {}))

    async def _effects(self, asked: _Asked, chosen: Chosen, viewer: Viewer) -> dict[int, Html]:
        """Return what becomes of the rows that the page names: where it depends on them, as tried and rolled back."""
        named, user_id = chosen.rows[:NAMED], viewer.user_id
        if asked.do == RETRY:
            return {row["id"]: many_pages.why_effect(row) for row in named}
        if asked.do == RENEW:
            return {row["id"]: many_pages.renew_effect(row) for row in named}
        if asked.do == DECOMMISSION:
            how, end = Decommissioning(), self._plane.life.decommission
            plans = [await end(user_id, row["id"], how, dry_run=True) for row in named]
            return {plan["id"]: many_pages.end_effect(plan) for plan in plans}
        if asked.do == ROTATE:
            return {row["id"]: await self._rotation(user_id, row["id"]) for row in named}
        if asked.do == TAGS and named:
            ids = [row["id"] for row in named]
            change = partial(self._plane.devices.tags.change, add=asked.tags.add, remove=asked.tags.remove)
            tried = await previewed(self._plane.database, lambda: {"rows": change(user_id, ids)}, dry_run=True)
            return {row["id"]: many_pages.tags_effect(row) for row in tried["rows"]}
        return {}

    async def _rotation(self, user_id: int, device_id: int) -> Html:
        try:
            return many_pages.rotate_effect(await self._plane.life.rotate_key(user_id, device_id, dry_run=True))
        except ErrorResponse as error:
            return many_pages.refused_effect(error.what)

    # --- the changes --------------------------------------------------------------------------------------------------

    async def _each(self, asked: _Asked, viewer: Viewer, chosen: Chosen, form: Mapping[str, str]) -> Result:
        """Change one row after the other, each with its own entry in the audit log."""
        change = self._change_of(asked, viewer, form)
        done, failed, stopped, last = 0, list[tuple[int, str, str]](), "", chosen.beyond
        end = trio.current_time() + _SECONDS
        for row in chosen.rows:
            try:
                with self._visits.acting(viewer, asked.permission, did=row["id"]):
                    await change(row)
                done += 1
            except CertctrlError as error:
                if not isinstance(error, ErrorResponse):
                    self._plane.storage_check.note_failure(error)
                answer = error_response_of(error)
                if (answer.status or 500) >= 500:
                    stopped = answer.what
                    break
                failed.append((row["id"], row["name"], answer.what))
            last = row["id"]
            if trio.current_time() > end:
                break
            await trio.lowlevel.checkpoint()
        untried = len(chosen.rows) - done - len(failed)
        return Result(done=done, failed=failed, stopped=stopped, untried=untried, last=last if untried else chosen.last)

    def _change_of(self, asked: _Asked, viewer: Viewer, form: Mapping[str, str]) -> Change:
        """Return what changes a device, as in the API; ErrorResponse 400 for a text that does not fit."""
        plane, user_id = self._plane, viewer.user_id
        if asked.do == RETRY:
            return lambda row: plane.resync(user_id, row["id"])
        if asked.do == ROTATE:
            return lambda row: plane.life.rotate_key(user_id, row["id"])
        if asked.do == DECOMMISSION:
            ending = body_of(operator_bodies.Decommission, {"reason": form.get("reason", "")})

            async def decommission(row: Mapping[str, Any]) -> None:
                note_request(ending)
                await plane.life.decommission(user_id, row["id"], Decommissioning(reason=ending.reason))

            return decommission

        async def tag(row: Mapping[str, Any]) -> None:
            wanted = {"device_ids": [row["id"]], "add": list(asked.tags.add), "remove": list(asked.tags.remove)}
            body = body_of(operator_bodies.TagChange, wanted)
            note_request(body)
            change = plane.devices.tags.change
            await plane.work_long(change, user_id, body.device_ids, add=body.add, remove=body.remove)

        return tag

    async def _renew(self, viewer: Viewer, chosen: Chosen) -> Result:
        names = {row["id"]: row["name"] for row in chosen.rows}
        body = body_of(operator_bodies.Renewals, {"cert_ids": list(names)})
        with self._visits.acting(viewer, _PERMISSION[RENEW]):
            note_request(body)
            ordered = await self._plane.bulk.renew(viewer.user_id, body.cert_ids, body.reason)
        failed = [(one["cert_id"], names[one["cert_id"]], one["problem"]) for one in ordered if one["problem"]]
        return Result(done=len(ordered) - len(failed), failed=failed, last=chosen.last)


def said_of(query: Mapping[str, str]) -> str:
    """Return what a page says after a change of many: ``?done=`` and ``n``."""
    words, count = many_pages.WORDS.get(query.get("done", "")), query.get("n", "")
    if words is None or not (count.isascii() and count.isdigit() and len(count) < 7):
        return ""
    noun = "certificate" if query["done"] == RENEW else "device"
    return words.done.format(many(int(count), noun))


def _asked(path: str, request: Request) -> _Asked:
    """Return what a URL asks; ErrorResponse 400 for an unknown change, and for a filter that does not fit."""
    do = request.query_params.get("do", "")
    known = (RENEW,) if path == CERTIFICATES else OF_DEVICES
    if do not in known:
        meant = nearest(do, known)
        hint = f"did you mean {meant}?" if meant else f"use {', '.join(known)}"
        raise bad_request(f"{one_line(do, 20)!r} is not a change of many: {hint}")
    query = query_of_set(request, _MOST.get(do, MOST))
    return _Asked(do=do, query=query, tags=_tags(request) if do == TAGS else TagsWanted())


def _tags(request: Request) -> TagsWanted:
    """Return the tags of a URL; ErrorResponse 400 for those that are none, or are both added and removed."""
    given = {name: request.query_params.get(name, "") for name in ("add", "remove")}
    words = {name: [word.strip() for word in text.split(",") if word.strip()] for name, text in given.items()}
    if not any(words.values()):
        return TagsWanted()
    body = body_of(operator_bodies.TagChange, {"device_ids": [1], **words})
    return TagsWanted(add=checked_tags(body.add, "add"), remove=checked_tags(body.remove, "remove"))


def _can(do: str, row: Mapping[str, Any]) -> bool:
    """Return whether a row can be changed so."""
    if do == RENEW:
        return bool(row["state"] != "revoked" and row["issuer"] != IMPORT)
    return do in (TAGS, DECOMMISSION) or row["state"] in _REGISTERED


def _rest(asked: _Asked, chosen: Chosen, result: Result, **more: object) -> str:
    """Return the page that asks for the rest of a list; empty: nothing is left."""
    if not (chosen.later or result.untried):
        return ""
    tags = {"add": ",".join(asked.tags.add), "remove": ",".join(asked.tags.remove)}
    return chosen.url(do=asked.do, **tags, beyond=result.last, **more)


def _next(asked: _Asked, chosen: Chosen, result: Result) -> str:
    """Return where to go after a change: to the rest of the list, or back to it."""
    done: dict[str, object] = {"done": asked.do, "n": result.done}
    return _rest(asked, chosen, result, **done) or link(chosen.asked.path, {**chosen.asked.filters(), **done})
