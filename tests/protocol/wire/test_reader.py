"""Untrusted JSON: bounded and strict, and refused with our errors only."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import tracemalloc
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.errors import BadAnswerError
from certctrl.protocol.wire.reader import (
    CONVERTER,
    MAX_DEPTH,
    MAX_VALUES,
    SAFE_INT,
    Misfit,
    alias,
    integer,
    moment,
    number,
    or_default,
    parse_json,
    text,
    wire_class,
)

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
def test_valid_json_comes_back_as_it_was(value: object) -> None:
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
def test_invalid_json(body: bytes) -> None:
    with pytest.raises(BadAnswerError):
        parse_json(body)


def test_depth_up_to_the_limit_is_accepted() -> None:
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    with pytest.raises(BadAnswerError, match="deep"):
        parse_json(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))


def test_only_brackets_and_commas_count_as_values() -> None:
    assert parse_json(b'"' + b"X" * (MAX_VALUES + 1) + b'"') == "X" * (MAX_VALUES + 1)


def test_as_many_values_as_the_limit_are_accepted() -> None:
    body = b"[" + b"0," * (MAX_VALUES - 1) + b"0]"
    assert len(parse_json(body)) == MAX_VALUES
    for more in (body[:-1] + b",0]", b'{"a":' + body + b"}"):
        with pytest.raises(BadAnswerError, match="more than 100000 values"):
            parse_json(more)


@pytest.mark.parametrize(
    "part", ["[]", "{}", "[[]]", '{"a":0}', '[{"":0}]', '{"a":{"b":{"c":[]}}}', "1.5", '"\\ud800"', '"\U0001f600"']
)
def test_a_megabyte_needs_less_than_twenty_megabytes_of_memory(part: str) -> None:
    """As many values as are allowed, or a megabyte that is refused."""
    marks = 1 + sum(map(part.count, "{[,"))
    for count in (MAX_VALUES // marks - 1, 1_048_000 // (len(part.encode()) + 1)):
        body = f"[{','.join([part] * count)}]".encode()
        tracemalloc.start()
        try:
            with contextlib.suppress(BadAnswerError):
                parse_json(body)
            assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
        finally:
            tracemalloc.stop()


def test_numbers_beyond_a_float_become_the_largest_one() -> None:
    """Infinity could not be written to the inbox or into an outcome."""
    value = parse_json(b"[1e999, -1e999, 1.5, 1E400]")
    assert value == [sys.float_info.max, -sys.float_info.max, 1.5, sys.float_info.max]
    assert parse_json(json.dumps(value, allow_nan=False)) == value


def test_text_without_a_utf8_form_is_replaced_everywhere() -> None:
    for body in (rb'{"a\ud800":["\udc00b",{"k":"\ud83d\ude00"}]}', '{"a\ud800":["\udc00b",{"k":"😀"}]}'):
        assert parse_json(body) == {"a�": ["�b", {"k": "😀"}]}
    value = parse_json(rb'{"a\ud800":["\udc00b",{"k":"\ud83d\ude00"}]}')
    assert value == {"a�": ["�b", {"k": "😀"}]}
    json.dumps(value, ensure_ascii=False).encode()


@pytest.mark.parametrize(("value", "number"), [(0, 0), (7, 7), ("7", 7), ("0007", 7), (2**63 - 1, 2**63 - 1)])
def test_integers(value: object, number: int) -> None:
    assert integer()(value, int) == number
    assert CONVERTER.structure(value, int) == number


@pytest.mark.parametrize(
    "value",
    [True, False, None, 1.0, 1.9, "1.0", "", " 1", "1 ", "+1", "1_0", "٣", "0x1", -1, "-1", 2**63, [], {}, "9" * 20],
)
def test_not_an_integer(value: object) -> None:
    with pytest.raises(Misfit, match=r"^expected an integer"):
        integer()(value, int)
    with pytest.raises(Misfit, match=r"^expected an integer"):
        CONVERTER.structure(value, int)


@pytest.mark.parametrize("value", [0, 1, -1, 1.5, -0.25, SAFE_INT, -SAFE_INT])
def test_numbers(value: float) -> None:
    found = number(value)
    assert (found, type(found)) == (value, float)
    assert CONVERTER.structure(value, float) == value


@pytest.mark.parametrize("value", [SAFE_INT + 1, -SAFE_INT - 1, 1e16, math.inf, -math.inf, math.nan])
def test_a_number_that_is_not_exact_everywhere_is_refused(value: float) -> None:
    with pytest.raises(Misfit, match=r"^expected a number from -9007199254740991 to 9007199254740991$"):
        number(value)


@pytest.mark.parametrize("value", [None, True, "1", [], {}])
def test_not_a_number(value: object) -> None:
    with pytest.raises(Misfit, match=r"^expected a number, got "):
        number(value)


@pytest.mark.parametrize(
    ("kind", "value"),
    [(str, 1), (str, True), (bool, 1), (bool, "yes"), (bool, None), (float, True), (float, "1"), (float, 10**400),
     (float, float("nan")), (tuple[str, ...], "abc"), (tuple[str, ...], {"a": 1})],
)  # fmt: skip
def test_the_converter_does_not_coerce(kind: Any, value: object) -> None:
    with pytest.raises(Misfit):
        CONVERTER.structure(value, kind)


@attrs.frozen
class Inner:
    z: int


@attrs.frozen
class Row:
    c: str
    n: int = 5
    l: tuple[str, ...] = ()  # noqa: E741
    f: bool = True
    t: str = ""
    o: Inner | None = None
    renamed: str = ""


wire_class(Inner)
read = wire_class(Row, {"c": text(9), "t": moment}, names={"renamed": "from"}, prepare=alias("n", "m"))


@given(st.sampled_from(["c", "n", "l", "f", "t", "o", "from"]), JSON)
def test_a_misfit_names_the_path_and_not_the_value(name: str, value: object) -> None:
    try:
        read({"c": "x", name: value}, "top")
    except Misfit as misfit:
        assert str(misfit).startswith(f"top.{name}")
        assert misfit.path.startswith(f"top.{name}")
        if isinstance(value, str) and len(value) > 3:
            assert value not in str(misfit).removeprefix(f"top.{name}")


def test_a_whole_row() -> None:
    raw = {"c": "x", "n": "12", "l": ["p", "q"], "f": False, "t": 0, "o": {"z": 1}, "from": "y", "unknown": [1]}
    assert read(raw) == Row("x", 12, ("p", "q"), False, "1970-01-01T00:00:00Z", Inner(1), "y")


@pytest.mark.parametrize("unset", [{}, dict.fromkeys("nlto", ""), dict.fromkeys("nlfto"), {"from": None}])
def test_absent_null_and_empty_text_are_unset(unset: dict[str, Any]) -> None:
    assert read({"c": "x"} | unset) == Row("x")


def test_an_alias_counts_if_the_name_is_unset() -> None:
    assert read({"c": "x", "n": "", "m": "7"}).n == 7
    assert read({"c": "x", "n": 1, "m": 7}).n == 1


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ([], "row: expected an object, got a list"),
        ({}, "row.c: missing"),
        ({"c": ""}, "row.c: missing"),
        ({"c": ["x"]}, "row.c: expected text, got a list"),
        ({"c": "x" * 10}, "row.c: longer than 9 characters"),
        ({"c": "x", "n": {}}, "row.n: expected an integer, got an object"),
        ({"c": "x", "l": "pq"}, "row.l: expected a list, got text"),
        ({"c": "x", "l": ["a", ""]}, "row.l[1]: empty"),
        ({"c": "x", "l": ["a", 1]}, "row.l[1]: expected text, got a whole number"),
        ({"c": "x", "l": ["a"] * 10_001}, "row.l: more than 10000 items"),
        ({"c": "x", "f": "x"}, "row.f: expected true or false, got text"),
        ({"c": "x", "f": ""}, "row.f: expected true or false, got empty text"),
        ({"c": "x", "o": "x"}, "row.o: expected an object, got text"),
        ({"c": "x", "o": {}}, "row.o.z: missing"),
        ({"c": "x", "o": {"z": None}}, "row.o.z: missing"),
        ({"c": "x", "from": 1}, "row.from: expected text, got a whole number"),
        ({"c": 1, "n": "x"}, "row.c: expected text, got a whole number"),
    ],
)
def test_a_row_that_does_not_fit(raw: object, why: str) -> None:
    with pytest.raises(Misfit) as caught:
        read(raw, "row")
    assert str(caught.value) == why
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("2025-10-03T05:45:56Z", "2025-10-03T05:45:56Z"),
        (0, "1970-01-01T00:00:00Z"),
        (1_700_000_000, "2023-11-14T22:13:20Z"),
        (1_700_000_000.9, "2023-11-14T22:13:20Z"),
        (253_402_300_799, "9999-12-31T23:59:59Z"),
        (253_402_300_800, "1978-01-11T21:31:40Z"),
        (253_402_300_799_000, "9999-12-31T23:59:59Z"),
        ("x" * 64, "x" * 64),
        (None, ""),
        ("", ""),
    ],
)
@pytest.mark.usefixtures("time_zone")
def test_moments(value: object, text: str) -> None:
    assert read({"c": "x", "t": value}).t == text


@pytest.mark.parametrize("value", [True, -1, 253_402_300_799_001, 1e300, float("inf"), 10**400, [], "x" * 65])
def test_not_a_moment(value: object) -> None:
    with pytest.raises(Misfit):
        read({"c": "x", "t": value})


@pytest.mark.parametrize(("value", "found"), [(7, 7), ("7", 0), (True, 0), (-1, 0), (10, 0), (None, 0), ([], 0)])
def test_a_value_that_does_not_fit_may_become_the_default(value: object, found: int) -> None:
    assert or_default(integer(le=9, digits=False), 0)(value) == found
