"""The endpoints of the console: each reads what a page shows in one unit of work, and makes the page in the same thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.model.csv_rows import (
    CAUSE_COLUMNS,
    CERTIFICATE_COLUMNS,
    DEVICE_COLUMNS,
    csv_lines,
    flat_cause,
    flat_device,
)
from certctrl.plane.audit.log import Filter
from certctrl.plane.core import Plane
from certctrl.plane.fleet.fleet import MAX_PAGE, Query
from certctrl.plane.http.console import certificates as certificates_page
from certctrl.plane.http.console import device as device_page
from certctrl.plane.http.console import devices as devices_page
from certctrl.plane.http.console import undo
from certctrl.plane.http.console.exports import csv_answer, json_answer
from certctrl.plane.http.console.frame import CERTIFICATES, DEVICES, HOME, Asked, Viewer, shell
from certctrl.plane.http.console.ids import number_in_path
from certctrl.plane.http.console.many import ConsoleMany, said_of
from certctrl.plane.http.console.many_pages import OF_DEVICES, RENEW, buttons
from certctrl.plane.http.console.overview import ENDS_DAYS, Overview, overview
from certctrl.plane.http.console.visits import Visits
from certctrl.plane.http.fleet_api import query_of
from certctrl.plane.http.pages.html import Html, asset_of
from certctrl.plane.http.reading import clean_line, whole_number
from certctrl.plane.http.routing import Endpoint
from certctrl.plane.rollouts.rollouts import OPEN

T = TypeVar("T")


class Notice(TypedDict):
    """What `shell` shows after a change."""

    done: str
    undo: Html


_ROWS = 50
_FAILING = 5
MAX_EXPORTED = 100_000
"""Rows of an export."""
OVERVIEW_SECONDS = 30
_MAX_TEXT = 200


class Console:
    """The pages that only read, and what is done with many of the rows of a list."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._fleet = plane.fleet
        self._visits = Visits(plane)
        self._many = ConsoleMany(plane)

    def routes(self) -> list[Route]:
        """Return the routes."""
        page = self._visits.page
        return [
            *self._many.routes(),  # before those of one device or certificate
            Route(HOME, page(self.overview)),
            Route(f"{HOME}/console.css", _asset("console.css", "text/css; charset=utf-8")),
            Route(f"{HOME}/console.js", _asset("console.js", "text/javascript; charset=utf-8")),
            Route(f"{HOME}/causes.json", page(self.causes_json)),
            Route(f"{HOME}/causes.csv", page(self.causes_csv)),
            Route(f"{DEVICES}.json", page(self.devices_json)),
            Route(f"{DEVICES}.csv", page(self.devices_csv)),
            Route(DEVICES, page(self.devices)),
            Route(f"{DEVICES}/{{did}}.json", page(self.device_json)),
            Route(f"{DEVICES}/{{did}}", page(self.device)),
            Route(f"{CERTIFICATES}.json", page(self.certificates_json)),
            Route(f"{CERTIFICATES}.csv", page(self.certificates_csv)),
            Route(CERTIFICATES, page(self.certificates)),
            Route(f"{CERTIFICATES}/{{cid}}.json", page(self.certificate_json)),
            Route(f"{CERTIFICATES}/{{cid}}", page(self.certificate)),
        ]

    async def _read(self, read: Callable[[], T]) -> T:
        """Read in a thread, and make the answer there."""
        return await self._plane.work_long(read)

    # --- overview -------------------------------------------------------------------------------------------------

    async def overview(self, request: Request, viewer: Viewer) -> Response:
        """Show what needs a person."""
        return await self._read(partial(self._overview, viewer, request.query_params.get("done", "")))

    def _overview(self, viewer: Viewer, done: str) -> Response:
        user_id, plane = viewer.user_id, self._plane
        found = Overview(
            causes=self._fleet.causes(user_id),
            summary=self._fleet.summary(user_id, ENDS_DAYS),
            failing=self._fleet.certificates(user_id, Query(states=("failing", "expired"), limit=_FAILING)),
            rollouts=plane.rollouts.show_all(user_id, OPEN),
            frozen=plane.rollouts.frozen(user_id),
            grants=plane.grants.pending(),
        )
        return shell("Overview", overview(found, plane.wall_now()), viewer, here=HOME, live=OVERVIEW_SECONDS, done=done)

    async def causes_json(self, request: Request, viewer: Viewer) -> Response:
        """Return all causes, as ``plane causes --json``."""
        return await self._read(lambda: json_answer(self._fleet.causes(viewer.user_id)))

    async def causes_csv(self, request: Request, viewer: Viewer) -> Response:
        """Return all causes, as ``plane causes --csv``."""
        rows = self._fleet.causes
        return await self._read(
            lambda: csv_answer("causes", csv_lines(map(flat_cause, rows(viewer.user_id)["causes"]), CAUSE_COLUMNS))
        )

    # --- devices --------------------------------------------------------------------------------------------------

    async def devices(self, request: Request, viewer: Viewer) -> Response:
        """Show a page of devices."""
        query = _query(request)

        def read() -> Response:
            answer = self._fleet.devices(viewer.user_id, query)
            tags = self._plane.devices.tags.used(viewer.user_id)
            asked = _asked(DEVICES, query)
            acts = buttons(asked, answer["total"], viewer, OF_DEVICES)
            body = devices_page.devices(answer, asked, tags, self._plane.wall_now(), acts)
            said = said_of(request.query_params)
            return shell("Devices", body, viewer, here=DEVICES, search=query.search, said=said)

        return await self._read(read)

    async def devices_json(self, request: Request, viewer: Viewer) -> Response:
        """Return a page of devices, as ``plane devices --json``."""
        return await self._read(lambda: json_answer(self._fleet.devices(viewer.user_id, _query(request))))

    async def devices_csv(self, request: Request, viewer: Viewer) -> Response:
        """Return all devices that fit, as ``plane devices --csv``."""
        return await self._all_rows(request, viewer, "devices", self._fleet.devices, flat_device)

    async def device(self, request: Request, viewer: Viewer) -> Response:
        """Show a device."""
        device_id = number_in_path(request, "did")
        shown = whole_number(
            request.query_params.get("history", str(device_page.HISTORY)), "history", 1, device_page.MOST_HISTORY
        )

        def read() -> Response:
            found = self._device(viewer.user_id, device_id, shown)
            body = device_page.device(found, viewer, self._plane.wall_now())
            return shell(found.row["name"] or "Device", body, viewer, here=DEVICES, **self._notice(request, viewer))

        return await self._read(read)

    def _device(self, user_id: int, device_id: int, history: int) -> device_page.DeviceFound:
        plane = self._plane
        answer = self._fleet.device(user_id, device_id)
        why = answer["device"]["why"]
        outcomes = plane.reports.outcomes(device_id, history + 1)
        return device_page.DeviceFound(
            row=answer["device"],
            copies=answer["copies"],
            others=answer["others"],
            shown=plane.devices.show(user_id, device_id),
            outcomes=outcomes[:history],
            has_more=len(outcomes) > history,
            entries=plane.audit.page(Filter(device_id=device_id), 0, 5),
            alike=self._fleet.alike(user_id, why["copy"], why["step"], why["reason"]) if why else 0,
        )

    async def device_json(self, request: Request, viewer: Viewer) -> Response:
        """Return what the page of a device shows."""
        device_id = number_in_path(request, "did")

        def read() -> Response:
            found = self._device(viewer.user_id, device_id, device_page.MOST_HISTORY)
            more = {"copies": found.copies, "others": found.others, "outcomes": found.outcomes, "shown": found.shown}
            return json_answer({"device": found.row, **more})

        return await self._read(read)

    # --- certificates ---------------------------------------------------------------------------------------------

    async def certificates(self, request: Request, viewer: Viewer) -> Response:
        """Show a page of certificates."""
        query = _query(request)

        def read() -> Response:
            answer = self._fleet.certificates(viewer.user_id, query)
            asked = _asked(CERTIFICATES, query)
            acts = buttons(asked, answer["total"], viewer, (RENEW,))
            body = certificates_page.certificates(answer, asked, self._plane.wall_now(), acts)
            return shell("Certificates", body, viewer, here=CERTIFICATES, said=said_of(request.query_params))

        return await self._read(read)

    async def certificates_json(self, request: Request, viewer: Viewer) -> Response:
        """Return a page of certificates, as ``plane certificates --sort worst --json``."""
        return await self._read(lambda: json_answer(self._fleet.certificates(viewer.user_id, _query(request))))

    async def certificates_csv(self, request: Request, viewer: Viewer) -> Response:
        """Return all certificates that fit, as ``plane certificates --csv``."""
        return await self._all_rows(request, viewer, "certificates", self._fleet.certificates, dict)

    async def certificate(self, request: Request, viewer: Viewer) -> Response:
        """Show a certificate."""
        return await self._certificate(request, viewer, as_page=True)

    async def certificate_json(self, request: Request, viewer: Viewer) -> Response:
        """Return what the page of a certificate shows."""
        return await self._certificate(request, viewer, as_page=False)

    async def _certificate(self, request: Request, viewer: Viewer, *, as_page: bool) -> Response:
        cert_id = number_in_path(request, "cid")
        after = whole_number(request.query_params.get("after", "0"), "after", 0)

        def read() -> Response:
            answer = self._fleet.certificate(viewer.user_id, cert_id, after, _ROWS)
            if not as_page:
                return json_answer(answer)
            shown = self._plane.certificates.show(viewer.user_id, cert_id)
            found = certificates_page.CertificateFound(answer=answer, shown=shown, after=after)
            body = certificates_page.certificate(found, viewer, self._plane.wall_now())
            notice = self._notice(request, viewer)
            return shell(answer["certificate"]["name"], body, viewer, here=CERTIFICATES, **notice)

        return await self._read(read)

    def _notice(self, request: Request, viewer: Viewer) -> Notice:
        """Return what a page says after a change, and how that is taken back."""
        asked, now = request.query_params, self._plane.wall_now()
        return {"done": asked.get("done", ""), "undo": undo.form(viewer, now, asked.get("undo", ""))}

    # --- exports --------------------------------------------------------------------------------------------------

    async def _all_rows(
        self,
        request: Request,
        viewer: Viewer,
        kind: str,
        read: Callable[[int, Query], dict[str, Any]],
        flat: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    ) -> Response:
        """Return all rows that fit as CSV; read page by page, so that it does not hold up other requests."""
        query = _query(request, limit=MAX_PAGE)
        rows: list[Mapping[str, Any]] = []
        while len(rows) < MAX_EXPORTED:
            answer = await self._read(partial(read, viewer.user_id, query))
            rows += [flat(row) for row in answer[kind]]
            if answer["next"] is None:
                break
            query = Query(
                states=query.states,
                reason=query.reason,
                tags=query.tags,
                search=query.search,
                sort=query.sort,
                after=answer["next"],
                limit=MAX_PAGE,
            )
        columns = DEVICE_COLUMNS if kind == "devices" else CERTIFICATE_COLUMNS
        return await self._read(lambda: csv_answer(kind, csv_lines(rows, columns)))


def _query(request: Request, limit: int = _ROWS) -> Query:
    """Return the query of a list, as in the API; ``user`` and what concerns the page only are no filters.

    ``after`` stays as it is: it may contain a long name, and a shortened one would begin no page.
    """
    asked = {
        name: value if name == "after" else clean_line(value, _MAX_TEXT)
        for name, value in request.query_params.items()
        if name not in ("user", "done", "n")
    }
    return query_of({"limit": str(limit)} | {name: value for name, value in asked.items() if value})


def _asked(path: str, query: Query) -> Asked:
    return Asked(
        path,
        {
            "state": ",".join(query.states),
            "reason": query.reason,
            "tag": ",".join(query.tags),
            "q": query.search,
            "sort": query.sort,
            "after": query.after,
        },
    )


def _asset(name: str, media_type: str) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        return asset_of(Path(__file__).with_name(name), media_type)

    return endpoint
