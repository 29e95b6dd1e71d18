"""Undo: for a minute, a page offers to take back a change of a name, of tags or of an assignment.

What the form carries is signed for the session that made the change: the former value, and the one that it was changed to.
It is refused once the minute is over, and when the value has changed since. Nothing is stored.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from certctrl.plane.http.console.frame import HOME, Viewer
from certctrl.plane.http.console.parts import NOTHING, hidden
from certctrl.plane.http.pages.html import Html, fill

SECONDS = 60.0
URL = f"{HOME}/undo"
_MAX_TEXT = 4000
RENAME, TAGS, ASSIGN, UNASSIGN = "rename", "tags", "assign", "unassign"


def signed(viewer: Viewer, now: float, what: Mapping[str, Any]) -> str:
    """Return what takes a change back, for a URL; empty if it is too long for one."""
    text = json.dumps(
        {**what, "user": viewer.user_id, "until": now + SECONDS}, ensure_ascii=False, separators=(",", ":")
    )
    body = base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
    token = f"{body}.{_signature(viewer, body)}"
    return token if len(token) <= _MAX_TEXT else ""


def opened(viewer: Viewer, now: float, token: str) -> dict[str, Any] | None:
    """Return what takes a change back; None for a text of another session, and when the minute is over."""
    body, _, signature = token[:_MAX_TEXT].partition(".")
    if not hmac.compare_digest(signature.encode("utf-8", "replace"), _signature(viewer, body).encode()):
        return None
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return found if found["until"] > now else None


def form(viewer: Viewer, now: float, token: str) -> Html:
    """Return the button that takes a change back; nothing if that is over."""
    if not token or opened(viewer, now, token) is None:
        return NOTHING
    fields = hidden(csrf=viewer.csrf, undo=token)
    return fill('<form method="post" action="{url}">{fields}<button>Undo</button></form>', url=URL, fields=fields)


def _signature(viewer: Viewer, body: str) -> str:
    return hmac.new(viewer.csrf.encode(), f"undo {body}".encode("utf-8", "replace"), hashlib.sha256).hexdigest()
