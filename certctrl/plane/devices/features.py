"""Features: those that each device's agent announced at its last start or registration, and the plane's own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache

from certctrl.model.features import MAX_FEATURE_NAME, MAX_FEATURES, PLANE_FEATURES
from certctrl.plane.storage.database import Row
from certctrl.text import one_line


def of_plane() -> list[str]:
    """Return the features that the plane announces with each session."""
    return sorted(PLANE_FEATURES)


def stored(features: Iterable[str]) -> str:
    """Return the text for the column ``devices.features``, cut to the limits."""
    names = dict.fromkeys(one_line(name, MAX_FEATURE_NAME) for name in features if name)
    return json.dumps(sorted(names)[:MAX_FEATURES])


def announced(device: Row) -> frozenset[str]:
    """Return the features of a device's row; an agent that has never announced any has none."""
    return _names(device["features"] or "[]")


@lru_cache(maxsize=64)  # the agents of a fleet are of a few versions
def _names(text: str) -> frozenset[str]:
    return frozenset(json.loads(text))
