"""Ids in the paths of the console."""

from __future__ import annotations

from starlette.requests import Request

from certctrl.plane.errors import not_found


def number_in_path(request: Request, name: str) -> int:
    """Return an id from the path; ErrorResponse 404 for anything else: there is no such page."""
    text = request.path_params[name]
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise not_found("There is no such page")
    return int(text)
