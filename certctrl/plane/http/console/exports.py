"""Lists of the console as files, in the forms of the command line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from starlette.responses import Response

from certctrl.plane.http.pages.html import HEADERS


def json_answer(value: Any) -> Response:
    """Return a value as JSON that people can read."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    return Response(f"{text}\n", 200, HEADERS, "application/json")


def csv_answer(name: str, lines: Iterable[str]) -> Response:
    """Return lines as a file to save."""
    headers = HEADERS | {"content-disposition": f'attachment; filename="{name}.csv"'}
    return Response("".join(lines), 200, headers, "text/csv; charset=utf-8")
