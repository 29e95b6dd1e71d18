"""The pages that `docs/generate.py` makes say what the code says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
MADE = runpy.run_path(str(DOCS / "generate.py"))


@pytest.mark.parametrize(
    ("page", "maker"),
    [("configuration", "configuration"), ("logs", "logs"), ("metrics", "metrics"),
     ("exit-statuses", "exit_statuses"), ("cli", "cli")],
)  # fmt: skip
def test_a_page_is_what_the_code_says(page: str, maker: str) -> None:
    assert (DOCS / f"{page}.md").read_text() == MADE[maker]()
