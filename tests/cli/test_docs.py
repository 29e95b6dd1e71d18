"""The pages that `docs/generate.py` generates match the code."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = runpy.run_path(str(DOCS / "generate.py"))["PAGES"]


def test_five_pages_are_generated() -> None:
    assert PAGES.keys() == {"configuration.md", "logs.md", "metrics.md", "exit-statuses.md", "cli.md"}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_matches_the_code(page: str) -> None:
    assert (DOCS / page).read_text(encoding="utf-8") == PAGES[page]()
