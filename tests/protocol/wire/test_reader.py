"""Untrusted JSON: bounded, strict, and never answered with anything but our errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.errors import BadAnswerError
from certctrl.protocol.wire.reader import MAX_DEPTH, Misfit, Reader, integer_of, parse_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(st.binary(max_size=400) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_parse_or_are_a_bad_answer(body: bytes) -> None:
    try:
        parse_json(body)
    except BadAnswerError as error:
        assert "\n" not in str(error)


@given(JSON)
def test_valid_json_comes_back_as_it_was(value: Any) -> None:
    text = json.dumps(value)
    assert parse_json(text.encode()) == json.loads(text) or "\\ud" in text.lower()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[NaN]",
        b"[Infinity]",
        b"[-Infinity]",
        b'{"a":',
        b"\xff\xfe",
        '{"a":1}'.encode("utf-16"),
        b"[" + b"9" * 5000 + b"]",
        b"[" * 100_000,
        b"[" * 2000 + b"]" * 2000,
        b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1),
        b"\xef\xbb\xbf{}",
    ],
)
def test_what_is_no_json_of_ours(body: bytes) -> None:
    with pytest.raises(BadAnswerError):
        parse_json(body)


def test_depth_up_to_the_limit_is_fine() -> None:
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    with pytest.raises(BadAnswerError, match="deep"):
        parse_json(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))


def test_text_without_a_utf8_form_is_replaced_everywhere() -> None:
    value = parse_json(rb'{"a\ud800":["\udc00b",{"k":"\ud83d\ude00"}]}')
    assert value == {"a�": ["�b", {"k": "😀"}]}
    json.dumps(value, ensure_ascii=False).encode()


@pytest.mark.parametrize(("value", "number"), [(0, 0), (7, 7), ("7", 7), ("0007", 7), (2**63 - 1, 2**63 - 1)])
def test_integers(value: object, number: int) -> None:
    assert integer_of(value, "x") == number


@pytest.mark.parametrize(
    "value",
    [True, False, None, 1.0, 1.9, "1.0", "", " 1", "1 ", "+1", "1_0", "٣", "0x1", -1, "-1", 2**63, [], {}, "9" * 20],
)
def test_what_is_no_integer(value: object) -> None:
    with pytest.raises(Misfit, match=r"^x: expected an integer"):
        integer_of(value, "x")


@given(JSON)
def test_a_misfit_names_the_path_and_not_the_value(value: Any) -> None:
    reader = Reader({"secret": value}, "top")
    for read in (reader.integer, reader.text, reader.texts, reader.moment, reader.child, reader.maybe_integer):
        try:
            read("secret")
        except Misfit as misfit:
            assert str(misfit).startswith("top.secret")
            if isinstance(value, str) and len(value) > 3:
                assert value not in str(misfit).removeprefix("top.secret")


def test_reader() -> None:
    row = Reader({"a": "", "b": None, "c": "x", "n": "12", "l": ["p", "q"], "f": False, "o": {"z": 1}}, "row")
    assert row.maybe_text("a", "b") is None
    assert row.text("a", "c") == "x"
    assert row.integer("n") == 12
    assert row.maybe_integer("a") is None
    assert row.texts("l") == ("p", "q")
    assert row.texts("b") == ()
    assert row.flag("f", True) is False
    assert row.flag("b", True) is True
    assert row.child("o").integer("z") == 1
    for wrong in (
        lambda: row.text("a"),
        lambda: row.text("l"),
        lambda: row.texts("c"),
        lambda: row.flag("c", True),
        lambda: row.child("c"),
        lambda: row.text("c", limit=0),
        lambda: Reader([], "row"),
        lambda: Reader({"l": ["a", ""]}, "row").texts("l"),
        lambda: Reader({"l": ["a", 1]}, "row").texts("l"),
    ):
        with pytest.raises(Misfit, match=r"^row"):
            wrong()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("2025-10-03T05:45:56Z", "2025-10-03T05:45:56Z"),
        (0, "1970-01-01T00:00:00Z"),
        (1_700_000_000, "2023-11-14T22:13:20Z"),
        (1_700_000_000.9, "2023-11-14T22:13:20Z"),
        (None, ""),
        ("", ""),
    ],
)
def test_moments(value: object, text: str) -> None:
    assert Reader({"t": value}).moment("t") == text


@pytest.mark.parametrize("value", [True, -1, 1e300, float("inf"), 10**400, [], "x" * 65])
def test_what_is_no_moment(value: object) -> None:
    with pytest.raises(Misfit):
        Reader({"t": value}).moment("t")
