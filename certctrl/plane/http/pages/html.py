"""Write HTML, read forms, and set security headers."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import Response

from certctrl.plane.errors import bad_request
from certctrl.plane.http.reading import read_body

FORM_CAP = 8 * 1024
_MAX_FIELDS = 20

HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; frame-ancestors 'none';"
        " base-uri 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Html(str):
    """Text that is already HTML."""


def fill(template: str, **values: Any) -> Html:
    """Return the template with its ``{names}`` filled in; values other than ``Html`` are escaped."""
    safe = {name: value if isinstance(value, Html) else escape(str(value)) for name, value in values.items()}
    return Html(template.format_map(safe))


def page(title: str, body: Html, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a complete page."""
    text = fill(_PAGE, title=title, style="/device/style.css", body=body)
    return Response(text, status, HEADERS | dict(headers or {}), "text/html; charset=utf-8")


def asset(name: str, media_type: str) -> Response:
    """Return a file next to this module."""
    return asset_of(Path(__file__).with_name(name), media_type)


def asset_of(path: Path, media_type: str) -> Response:
    """Return a file of the program."""
    headers = HEADERS | {"cache-control": "max-age=3600"}
    return Response(path.read_bytes(), 200, headers, media_type)


def redirect(target: str) -> Response:
    """Return 303 to ``target``."""
    return Response(None, 303, HEADERS | {"location": target})


async def read_form(request: Request, cap: int = FORM_CAP) -> dict[str, str]:
    """Return the fields of a posted form, the last of each name; ErrorResponse 400 or 413."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise bad_request("This is not a form")
    body = await read_body(request, cap)
    try:
        fields = parse_qs(body.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS)
    except ValueError:
        raise bad_request("This form cannot be read") from None
    return {name: values[-1] for name, values in fields.items()}


HEAD = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="robots" content="noindex">
<title>{title} – certctrl</title>
<link rel="icon" href="/device/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="{style}">
"""
"""The beginning of every page, to fill."""
_PAGE = (
    HEAD
    + """\
</head>
<body>
<header><img src="/device/icon.svg" alt="" width="28" height="28"><span>certctrl</span></header>
<main>
{body}
</main>
</body>
</html>
"""
)
