"""The pages that `docs/generate.py` generates match the code."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

from certctrl.model.plan import CA_FILES, CERT_FILES, StartTls
from certctrl.protocol.wire.install_config import items_from_operator
from certctrl.protocol.wire.install_items import unknown_keys
from certctrl.protocol.wire.item_fields import ITEM_KEYS, VERIFY_KEYS

DOCS = Path(__file__).parents[2] / "docs"
GENERATE = runpy.run_path(str(DOCS / "generate.py"))
PAGES = GENERATE["PAGES"]


def test_which_pages_are_generated() -> None:
    assert PAGES.keys() == {
        "configuration.md", "logs.md", "metrics.md", "exit-statuses.md", "cli.md", "items.md", "items.schema.json",
    }  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_a_page_matches_the_code(page: str) -> None:
    assert (DOCS / page).read_text(encoding="utf-8") == PAGES[page]()


def screens(*words: str) -> Iterator[tuple[str, str]]:
    """Yield each command below ``words`` with its help, 80 columns wide."""
    screen = GENERATE["help_of"](*words)
    yield " ".join(words), screen
    for line in screen.partition("\nCommands:\n")[2].splitlines():
        if line.startswith("  ") and not line.startswith("   "):
            yield from screens(*words, line.split()[0])


def too_wide(screen: str) -> list[str]:
    """Return the lines of a help that are cut or do not fit."""
    lines = screen.splitlines()[1:]  # the first one is the usage
    return [line for line in lines if len(line) > 80 or line.endswith("...")]


def test_every_help_fits_80_columns() -> None:
    found = dict(screens())
    assert {"plane issuers add", "plane ca constrain", "policy allow"} <= found.keys()
    assert {name: too_wide(screen) for name, screen in found.items() if too_wide(screen)} == {}


@pytest.mark.parametrize("line", ["  add  Add an issuer, check it, and...", "x" * 81])
def test_a_line_that_does_not_fit_is_found(line: str) -> None:
    assert too_wide(f"Usage: cert-ctrl ...\n{line}\n") == [line]


def test_the_page_of_items_names_every_key_file_and_form() -> None:
    page = (DOCS / "items.md").read_text(encoding="utf-8")
    keys = {key for known in (*ITEM_KEYS.values(), *VERIFY_KEYS.values()) for key in known}
    words = {*keys, *ITEM_KEYS, *VERIFY_KEYS, *CERT_FILES, *CA_FILES, *StartTls}
    assert {word for word in words if f"`{word}`" not in page and f'"{word}"' not in page} == set()


def test_the_example_of_items_is_valid() -> None:
    page = (DOCS / "items.md").read_text(encoding="utf-8")
    items = json.loads(page.partition("```json\n")[2].partition("```")[0])
    assert [item.id for item in items_from_operator(items)] == ["files", "reload"]
    assert unknown_keys(items) == []
