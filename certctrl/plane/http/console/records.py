"""The endpoints of the console for rollouts and the audit log."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.model.csv_rows import csv_lines
from certctrl.plane.audit.log import MAX_PAGE, Filter
from certctrl.plane.core import Plane
from certctrl.plane.http.audit_api import known_action
from certctrl.plane.http.console import audit as audit_page
from certctrl.plane.http.console import rollouts as rollouts_page
from certctrl.plane.http.console.exports import csv_answer, json_answer
from certctrl.plane.http.console.frame import AUDIT, ROLLOUTS, Asked, Viewer, shell
from certctrl.plane.http.console.ids import number_in_path
from certctrl.plane.http.console.visits import Visits
from certctrl.plane.http.permissions import actions
from certctrl.plane.http.reading import clean_line, whole_number
from certctrl.plane.rollouts.rollouts import OPEN

LIVE_SECONDS = 5
"""How often the page of an open rollout is read again."""
_ENTRIES = 50
_MAX_EXPORTED = 10_000


class ConsoleRecords:
    """The pages; all only read."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._visits = Visits(plane)

    def routes(self) -> list[Route]:
        """Return the routes."""
        page = self._visits.page
        return [
            Route(f"{ROLLOUTS}.json", page(self.rollouts_json)),
            Route(f"{ROLLOUTS}.csv", page(self.rollouts_csv)),
            Route(ROLLOUTS, page(self.rollouts)),
            Route(f"{ROLLOUTS}/{{rid}}.json", page(self.rollout_json)),
            Route(f"{ROLLOUTS}/{{rid}}.csv", page(self.rollout_csv)),
            Route(f"{ROLLOUTS}/{{rid}}", page(self.rollout)),
            Route(f"{AUDIT}.json", page(self.audit_json)),
            Route(f"{AUDIT}.csv", page(self.audit_csv)),
            Route(AUDIT, page(self.audit)),
        ]

    # --- rollouts -------------------------------------------------------------------------------------------------

    async def rollouts(self, request: Request, viewer: Viewer) -> Response:
        """Show the rollouts, the newest first; ``?state=``: only those in this state."""
        chosen = request.query_params.get("state", "")

        def read() -> Response:
            rows, frozen = self._plane.rollouts.show_recent(viewer.user_id), self._plane.rollouts.frozen(viewer.user_id)
            word = chosen if chosen in rollouts_page.WORDS else ""
            body = rollouts_page.rollouts(rows, word, frozen, viewer, self._plane.wall_now())
            return shell("Rollouts", body, viewer, here=ROLLOUTS)

        return await self._plane.work_long(read)

    async def rollouts_json(self, request: Request, viewer: Viewer) -> Response:
        """Return the rollouts, as ``plane rollout list --json``; ``?state=`` as for the page."""
        return await self._plane.work_long(lambda: json_answer(self._chosen(request, viewer)))

    async def rollouts_csv(self, request: Request, viewer: Viewer) -> Response:
        """Return the rollouts, without their waves but with the number of devices in each state."""

        def read() -> Response:
            return csv_answer("rollouts", csv_lines(_flat(row) for row in self._chosen(request, viewer)))

        return await self._plane.work_long(read)

    def _chosen(self, request: Request, viewer: Viewer) -> list[dict[str, Any]]:
        word = request.query_params.get("state", "")
        if word in rollouts_page.WORDS:
            return self._plane.rollouts.show_all(viewer.user_id, (word,))
        return self._plane.rollouts.show_recent(viewer.user_id)

    async def rollout(self, request: Request, viewer: Viewer) -> Response:
        """Show a rollout."""
        rollout_id, done = number_in_path(request, "rid"), request.query_params.get("done", "")

        def read() -> Response:
            row = self._plane.rollouts.show(viewer.user_id, rollout_id)
            body = rollouts_page.rollout(row, viewer, self._plane.wall_now())
            live = LIVE_SECONDS if row["state"] in OPEN else 0
            title = f"{rollouts_page.heading_of(row)}, {row['state']}"
            return shell(title, body, viewer, here=ROLLOUTS, live=live, done=done)

        return await self._plane.work_long(read)

    async def rollout_json(self, request: Request, viewer: Viewer) -> Response:
        """Return a rollout, as ``plane rollout status --json``."""
        rollout_id = number_in_path(request, "rid")
        return await self._plane.work_long(lambda: json_answer(self._plane.rollouts.show(viewer.user_id, rollout_id)))

    async def rollout_csv(self, request: Request, viewer: Viewer) -> Response:
        """Return the devices that have failed, are under way or skipped."""
        rollout_id = number_in_path(request, "rid")

        def read() -> Response:
            rows = self._plane.rollouts.show(viewer.user_id, rollout_id)["devices"]
            return csv_answer(f"rollout-{rollout_id}", csv_lines(rows))

        return await self._plane.work_long(read)

    # --- audit ----------------------------------------------------------------------------------------------------

    async def audit(self, request: Request, viewer: Viewer) -> Response:
        """Show changes, the newest first: ``?who=&what=&device=&before_id=``."""
        asked = request.query_params
        chosen, before_id = _filter(asked), whole_number(asked.get("before_id") or "0", "before_id", 0)
        names = ("who", "what", "device", "before_id")
        query = Asked(AUDIT, {name: clean_line(asked.get(name, ""), 100) for name in names})

        def read() -> Response:
            entries = self._plane.audit.page(chosen, before_id, _ENTRIES + 1)
            shown = entries[:_ENTRIES]
            following = shown[-1]["id"] if len(entries) > _ENTRIES else None
            body = audit_page.audit(shown, query, actions(), following, self._plane.wall_now())
            return shell("Audit", body, viewer, here=AUDIT)

        return await self._plane.work_long(read)

    async def audit_json(self, request: Request, viewer: Viewer) -> Response:
        """Return the changes that fit, as ``plane audit --json``."""
        return json_answer(await self._entries(request))

    async def audit_csv(self, request: Request, viewer: Viewer) -> Response:
        """Return the changes that fit."""
        entries = await self._entries(request)
        return csv_answer("audit", csv_lines(_flat_entry(entry) for entry in entries))

    async def _entries(self, request: Request) -> list[dict[str, Any]]:
        """Return the entries that fit, read page by page."""
        chosen, found, before_id = _filter(request.query_params), list[dict[str, Any]](), 0
        while len(found) < _MAX_EXPORTED:
            some = await self._plane.work_long(partial(self._plane.audit.page, chosen, before_id, MAX_PAGE))
            found += some
            if len(some) < MAX_PAGE:
                break
            before_id = some[-1]["id"]
        return found


def _filter(asked: Mapping[str, str]) -> Filter:
    return Filter(
        who=clean_line(asked.get("who", ""), 100),
        what=known_action(clean_line(asked.get("what", ""), 60)),
        device_id=whole_number(asked["device"], "device", 1) if asked.get("device") else None,
    )


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    totals = rollouts_page.totals_of(row)
    plain = {name: value for name, value in row.items() if name != "waves"}
    return plain | {word: totals.get(word, 0) for word in rollouts_page.MEMBERS}


def _flat_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: entry[name] for name in ("id", "at", "who", "via", "address", "action")}
    objects = " ".join(f"{one['kind']}={one['name'] or one['id']}" for one in entry["objects"])
    return plain | {"objects": objects}
