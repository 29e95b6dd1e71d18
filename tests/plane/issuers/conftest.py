"""Fixture: a CA in this process, at which ACME issuers order."""

from __future__ import annotations

import pytest
from acme_world import connect_to
from plane_world import WALL
from scripted_ca import ScriptedCa


@pytest.fixture
def ca(monkeypatch: pytest.MonkeyPatch) -> ScriptedCa:
    return connect_to(ScriptedCa(WALL), monkeypatch)
