"""Hostile answers against a real daemon: it lives, polls again, and its memory stays bounded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.mark.campaign
@pytest.mark.integration
@pytest.mark.timeout(3600)
def test_no_answer_of_the_plane_takes_much_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import hostile

    too_much = []
    for row in hostile.measure(tmp_path):
        print(f"{row['ours']:>6} MiB  {row['case']}: {row['note']}", file=sys.stderr, flush=True)
        if row["verdict"] == "MISSED":
            too_much.append(f"{row['case']}: {row['ours']} MiB")
    assert not too_much, too_much
