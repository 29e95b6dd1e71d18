"""Read the body of a request as a class of ``device_bodies``, ``event_bodies`` or ``operator_bodies``."""

from __future__ import annotations

from typing import Any, TypeVar

from starlette.requests import Request

from certctrl.plane.audit.acts import note_request
from certctrl.plane.http.event_bodies import structure_events
from certctrl.plane.http.reading import BODY_CAP, read_object
from certctrl.plane.http.structure import new_converter, structured

T = TypeVar("T")


async def read_as(kind: type[T], request: Request, cap: int = BODY_CAP) -> T:
    """Return the body of a request as ``kind``; ErrorResponse 400, 413 or 415 if it is not one."""
    body = body_of(kind, await read_object(request, cap))
    note_request(body)
    return body


def body_of(kind: type[T], value: Any) -> T:
    """Return a JSON value as ``kind``; ErrorResponse 400 with the JSON path of the first field that does not fit."""
    return structured(_CONVERTER, value, kind)


_CONVERTER = new_converter()
structure_events(_CONVERTER)
