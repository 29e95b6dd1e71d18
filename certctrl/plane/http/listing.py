"""Lists for operators: a page, or everything page by page, so that a long list does not hold up other requests."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import trio
from starlette.requests import Request
from starlette.responses import Response

from certctrl.plane.core import Plane
from certctrl.plane.devices.devices import MAX_PAGE
from certctrl.plane.http.answers import json_answer, json_of
from certctrl.plane.http.reading import whole_number
from certctrl.plane.http.routing import number
from certctrl.plane.http.scopes import tags_of

Page = Callable[[int, int, int], list[dict[str, Any]]]

SHORT_PAGE = 100
"""Rows of a page that is read on the event loop with SQLite: a thread takes longer to get its turns than to read them."""


async def listed(plane: Plane, request: Request, page_of: Page) -> Response:
    """Return what ``page_of(user_id, after_id, limit)`` reads, in order of id: a page with ``?limit=``, otherwise all."""
    user_id, asked = number(request, "uid"), request.query_params
    after_id = whole_number(asked.get("after_id", "0"), "after_id", 0)
    if "limit" in asked:
        limit = whole_number(asked["limit"], "limit", 1, MAX_PAGE)
        run = plane.database.work_read if limit <= SHORT_PAGE else plane.work_long
        _, text = await run(_read, page_of, user_id, after_id, limit)
        return json_answer(b'{"data":' + text + b"}")
    texts = []
    while True:
        page, text = await plane.work_long(_read, page_of, user_id, after_id, MAX_PAGE)
        if page:
            texts.append(text[1:-1])
            after_id = page[-1]["id"]
        if len(page) < MAX_PAGE:
            break
        await trio.lowlevel.checkpoint()
    return json_answer(b'{"data":[' + b",".join(texts) + b"]}")


async def listed_by_tag(plane: Plane, request: Request, page_of: Callable[..., list[dict[str, Any]]]) -> Response:
    """Return what ``listed`` returns, of devices that carry all tags of ``?tag=TAG,TAG`` and those of the caller's scope."""
    asked = request.query_params
    tags, scope = asked["tag"].split(",") if "tag" in asked else (), tags_of(request)
    return await listed(plane, request, partial(page_of, tags=tags, scope=scope))


def _read(page_of: Page, user_id: int, after_id: int, limit: int) -> tuple[list[dict[str, Any]], bytes]:
    """Return a page and its JSON text, which takes as long to make as the page takes to read."""
    page = page_of(user_id, after_id, limit)
    return page, json_of(page)
