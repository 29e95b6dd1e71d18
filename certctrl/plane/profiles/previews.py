"""Ids of previews, with which a change is made only if it would still do what its preview said. Pure."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

from certctrl.plane.errors import conflict

STALE = "PREVIEW_STALE"


def preview_id(*parts: Any) -> str:
    """Return the id of a preview: of all that the change consists of, and all that it would do."""
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def refuse_other(expected: str, present: str) -> None:
    """Raise ErrorResponse 409 unless the ids of both previews are equal; an empty expected one fits all."""
    if expected not in ("", present):
        raise conflict("The preview is out of date, so nothing was changed: check what the change would do now", STALE)
