"""Sort tests by their time, so that most mutants are noticed within milliseconds; a plugin for pytest under mutmut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by the durations that mutmut measured; without them, keep the order."""
    stats = Path("mutmut-stats.json")
    if stats.exists():
        took = json.loads(stats.read_text())["duration_by_test"]
        items.sort(key=lambda item: took.get(item.nodeid, 0.0))
