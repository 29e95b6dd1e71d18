"""The endpoints of the console for alerts: what is wrong now, messages, and what operators do with dead ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.model.csv_rows import csv_lines
from certctrl.plane.alerts.outbox import DEAD
from certctrl.plane.alerts.present import groups_of, of_problems
from certctrl.plane.core import Plane
from certctrl.plane.errors import ErrorResponse, not_found
from certctrl.plane.http.alert_api import MAX_PAGE, known_state
from certctrl.plane.http.console import alerts as alerts_page
from certctrl.plane.http.console.exports import csv_answer, json_answer
from certctrl.plane.http.console.frame import ALERTS, Asked, Viewer, shell
from certctrl.plane.http.console.ids import number_in_path
from certctrl.plane.http.console.parts import link
from certctrl.plane.http.console.visits import Visits
from certctrl.plane.http.pages.html import redirect
from certctrl.plane.http.permissions import Permission, permission_of
from certctrl.plane.http.reading import clean_line, whole_number

LIVE_SECONDS = 30
_ROWS = 50
_NEWEST = 10
"""Messages below what is wrong now."""
_MAX_EXPORTED = 10_000
_NAMES = ("state", "channel", "before_id")
_MESSAGE = "/apiv1/alert-messages/{mid}"
_RESEND, _DISMISS = permission_of("POST", f"{_MESSAGE}/resend"), permission_of("POST", f"{_MESSAGE}/dismiss")


class ConsoleAlerts:
    """The pages, and the forms for messages."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._alerts = plane.alerts
        self._visits = Visits(plane)

    def routes(self) -> list[Route]:
        """Return the routes."""
        page = self._visits.page
        return [
            Route(f"{ALERTS}.json", page(self.alerts_json)),
            Route(f"{ALERTS}.csv", page(self.alerts_csv)),
            Route(ALERTS, page(self.alerts)),
            Route(f"{ALERTS}/now.json", page(self.now_json)),
            Route(f"{ALERTS}/now.csv", page(self.now_csv)),
            Route(f"{ALERTS}/dead/confirm", page(self.confirm_dead)),
            Route(f"{ALERTS}/dead/{{do}}", page(self.change_dead), methods=["POST"]),
            Route(f"{ALERTS}/{{mid}}.json", page(self.message_json)),
            Route(f"{ALERTS}/{{mid}}", page(self.message)),
            Route(f"{ALERTS}/{{mid}}/resend", page(self.resend), methods=["POST"]),
            Route(f"{ALERTS}/{{mid}}/dismiss", page(self.dismiss), methods=["POST"]),
        ]

    async def alerts(self, request: Request, viewer: Viewer) -> Response:
        """Show what is wrong now, the channels and the newest messages; with ``?state=&channel=&before_id=`` only messages."""
        asked = Asked(ALERTS, _query(request))
        done = request.query_params.get("done", "")

        def read() -> Response:
            channels, now = self._alerts.channels.show_all(), self._plane.wall_now()
            is_narrowed = any(asked.query.values())
            limit = _ROWS if is_narrowed else _NEWEST
            rows = self._page(asked.query, limit + 1)
            shown = rows[:limit]
            found = alerts_page.AlertsFound(
                messages=shown,
                following=shown[-1]["id"] if len(rows) > limit else None,
                counts=self._alerts.outbox.counts(asked.query["channel"]),
                channels=channels,
                groups=None if is_narrowed else self._groups(has_channels=bool(channels)),
            )
            body = alerts_page.alerts(found, asked, viewer, now)
            live = 0 if is_narrowed else LIVE_SECONDS
            return shell("Alerts", body, viewer, here=ALERTS, live=live, done=done)

        return await self._plane.work_long(read)

    def _page(self, query: Mapping[str, str], limit: int) -> list[dict[str, Any]]:
        """Return a page of messages; ErrorResponse 404 for an unknown channel."""
        if query["channel"]:
            self._alerts.channels.named(query["channel"])
        before_id = int(query["before_id"]) if query["before_id"] else None
        return self._alerts.outbox.page(
            state=query["state"], channel=query["channel"], before_id=before_id, limit=limit
        )

    def _groups(self, *, has_channels: bool) -> list[dict[str, Any]]:
        found = self._alerts.comparison.conditions.read()
        return groups_of(found if has_channels else [*found, *of_problems(self._plane.problems.now())])

    async def now_json(self, request: Request, viewer: Viewer) -> Response:
        """Return what is wrong now."""
        return await self._plane.work_long(lambda: json_answer(self._now()))

    async def now_csv(self, request: Request, viewer: Viewer) -> Response:
        """Return what is wrong now, a line for each group."""
        return await self._plane.work_long(lambda: csv_answer("alerts-now", csv_lines(map(_flat_group, self._now()))))

    def _now(self) -> list[dict[str, Any]]:
        return self._groups(has_channels=self._alerts.comparison.has_channels())

    # --- messages -------------------------------------------------------------------------------------------------

    async def alerts_json(self, request: Request, viewer: Viewer) -> Response:
        """Return the messages that fit, as ``plane alerts outbox --json``."""
        return json_answer(await self._messages(request))

    async def alerts_csv(self, request: Request, viewer: Viewer) -> Response:
        """Return the messages that fit."""
        return csv_answer("alert-messages", csv_lines(await self._messages(request)))

    async def _messages(self, request: Request) -> list[dict[str, Any]]:
        """Return the messages that fit, read page by page."""
        query, found = _query(request), list[dict[str, Any]]()
        while len(found) < _MAX_EXPORTED:
            some = await self._plane.work_long(partial(self._page, query, MAX_PAGE))
            found += some
            if len(some) < MAX_PAGE:
                break
            query = query | {"before_id": str(some[-1]["id"])}
        return found

    async def message(self, request: Request, viewer: Viewer) -> Response:
        """Show a message."""
        message_id, done = number_in_path(request, "mid"), request.query_params.get("done", "")

        def read() -> Response:
            row = self._alerts.outbox.show(message_id)
            body = alerts_page.message(row, viewer, self._plane.wall_now())
            return shell(f"Message {message_id}", body, viewer, here=ALERTS, done=done)

        return await self._plane.work_long(read)

    async def message_json(self, request: Request, viewer: Viewer) -> Response:
        """Return a message with its content."""
        message_id = number_in_path(request, "mid")
        return await self._plane.work_long(lambda: json_answer(self._alerts.outbox.show(message_id)))

    async def resend(self, request: Request, viewer: Viewer) -> Response:
        """Send a message again."""
        return await self._change(request, viewer, self._alerts.outbox.resend, "resent")

    async def dismiss(self, request: Request, viewer: Viewer) -> Response:
        """Give up a dead message."""
        return await self._change(request, viewer, self._alerts.outbox.dismiss, "dismissed")

    async def _change(self, request: Request, viewer: Viewer, change: Callable[[int], object], done: str) -> Response:
        message_id = number_in_path(request, "mid")
        form = await self._visits.form(request)
        with self._visits.acting(viewer, _RESEND if done == "resent" else _DISMISS, mid=message_id):
            await self._plane.work(change, message_id)
        self._alerts.runner.wake()
        if form.get("one"):
            return redirect(f"{ALERTS}/{message_id}?done={done}")
        return redirect(link(ALERTS, {name: clean_line(form.get(name, ""), 64) for name in _NAMES} | {"done": done}))

    # --- all dead messages ----------------------------------------------------------------------------------------

    async def confirm_dead(self, request: Request, viewer: Viewer) -> Response:
        """Ask before all dead messages, of ``?channel=`` or all, are sent again or dismissed: ``?do=``."""
        asked = request.query_params
        return await self._ask_dead(viewer, asked.get("do", ""), clean_line(asked.get("channel", ""), 64))

    async def _ask_dead(self, viewer: Viewer, do: str, channel: str, problem: str = "") -> Response:
        viewer.caller.require(_permission(do).role)

        def read() -> Response:
            rows = self._page(_dead(channel), MAX_PAGE)
            total = self._alerts.outbox.counts(channel).get(DEAD, 0)
            body = alerts_page.all_dead(rows, total, do, channel, viewer, problem)
            return shell("Dead messages", body, viewer, here=ALERTS, status=409 if problem else 200)

        return await self._plane.work_long(read)

    async def change_dead(self, request: Request, viewer: Viewer) -> Response:
        """Send the dead messages that were shown again, or dismiss them; nothing if others are dead now."""
        do, form = request.path_params["do"], await self._visits.form(request)
        permission = _permission(do)
        viewer.caller.require(permission.role)
        channel, last = clean_line(form.get("channel", ""), 64), whole_number(form.get("last", ""), "last", 1)
        shown = _dead(channel) | {"before_id": str(last + 1)}
        rows = await self._plane.work_long(self._page, shown, MAX_PAGE)
        if form.get("set") != alerts_page.digest_of(rows):
            return await self._ask_dead(viewer, do, channel, "Other messages are dead now: nothing was changed.")
        change = self._alerts.outbox.resend if do == "resend" else self._alerts.outbox.dismiss
        for row in reversed(rows):
            with self._visits.acting(viewer, permission, mid=row["id"]), contextlib.suppress(ErrorResponse):
                await self._plane.work(change, row["id"])  # one that was sent meanwhile needs nothing
        self._alerts.runner.wake()
        done = "resent-all" if do == "resend" else "dismissed-all"
        return redirect(link(ALERTS, {"channel": channel, "done": done}))


def _dead(channel: str) -> dict[str, str]:
    return {"state": DEAD, "channel": channel, "before_id": ""}


def _permission(do: str) -> Permission:
    """Return the permission for a change of dead messages; ErrorResponse 404."""
    found = {"resend": _RESEND, "dismiss": _DISMISS}.get(do)
    if found is None:
        raise not_found("There is no such page")
    return found


def _query(request: Request) -> dict[str, str]:
    """Return the parameters of the list; ErrorResponse 400."""
    asked = request.query_params
    before_id = whole_number(asked["before_id"], "before_id", 1) if asked.get("before_id") else ""
    return {
        "state": known_state(clean_line(asked.get("state", ""), 40)),
        "channel": clean_line(asked.get("channel", ""), 64),
        "before_id": str(before_id),
    }


def _flat_group(row: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: value for name, value in row.items() if name not in ("conditions", "more")}
    return plain | {"names": ", ".join(one["name"] for one in row["conditions"])}
