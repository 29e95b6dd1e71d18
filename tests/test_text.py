"""Foreign text on one line (``certctrl/text.py``)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.text import LINE_LIMIT, one_line


@given(st.text(), st.integers(1, 300), st.booleans())
def test_any_text_becomes_one_printable_line(text: str, limit: int, ascii_only: bool) -> None:
    line = one_line(text, limit, ascii_only=ascii_only)
    assert line.isprintable()
    assert len(line) <= limit
    assert not ascii_only or line.rstrip("…").isascii()
    assert one_line(line, limit) == line


@given(st.text())
def test_without_a_limit_nothing_is_cut(text: str) -> None:
    assert len(one_line(text, None)) >= len(text)


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        ("plain ünïcode ✓", "plain ünïcode ✓"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x1b[2J\x07\x9b", "\\x1b[2J\\x07\\x9b"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
        ("\u2028", "\\u2028"),
        ("\udcff", "\\udcff"),
        ("x" * 999, "x" * (LINE_LIMIT - 1) + "…"),
    ],
)
def test_escapes(raw: str, line: str) -> None:
    assert one_line(raw) == line


def test_a_replacement_instead_of_escapes() -> None:
    assert one_line("a\x1b\u202eb", replacement="?") == "a??b"
    assert one_line("a\x1bb", replacement="") == "ab"
    assert one_line("é", ascii_only=True) == "\\xe9"
