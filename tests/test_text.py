"""Foreign text on one line (``certctrl/text.py``)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.text import LINE_LIMIT, ascii_name, counted, is_name, one_line, same_serial


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


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("a.example", "a.example"),
        ("straße.example", "xn--strae-oqa.example"),
        ("Bücher.Example", "xn--bcher-kva.Example"),
        ("*.bücher.example", "*.xn--bcher-kva.example"),
        ("例え。テスト", "xn--r8jz45g.xn--zckzah"),
        ("i❤.example", "xn--i-7iq.example"),
        ("ü ü", "ü ü"),
        ("ü..example", "ü..example"),
        ("ä" * 70, "ä" * 70),
    ],
)
def test_international_names(typed: str, name: str) -> None:
    assert ascii_name(typed) == name


@given(st.text())
def test_any_text_may_be_given_as_a_name(text: str) -> None:
    assert ascii_name(ascii_name(text)) == ascii_name(text)
    if is_name(text):
        assert text.isprintable() and " " not in text and len(text) <= 255


@given(st.integers(-(2**160), 2**160))
def test_serial_numbers_in_every_notation(serial: int) -> None:
    hexa = f"{serial:x}"
    for told in (hexa, hexa.upper(), str(serial), f"00{hexa}" if serial >= 0 else f"-00{hexa[1:]}"):
        assert same_serial(told, serial)
    size = serial.bit_length() // 8 + 1
    assert same_serial(serial.to_bytes(size, "big", signed=True).hex(":"), serial)
    assert not same_serial(f"{serial * 256 + 10:x}f", serial)
    assert not same_serial("", serial) or serial == 0


@pytest.mark.parametrize(("count", "text"), [(0, "0 devices"), (1, "1 device"), (12, "12 devices"), ("?", "? devices")])
def test_a_noun_follows_its_number(count: object, text: str) -> None:
    assert counted(count, "device") == text
