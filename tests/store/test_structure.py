"""JSON is structured without coercion; mismatches are reported with their path."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import attrs
import pytest

from certctrl.store.structure import Mismatch, join, strict_converter, structure, tolerant_converter


class Color(StrEnum):
    RED = "red"
    GREEN = "green"


@attrs.frozen(kw_only=True)
class Facts:
    number: int
    share: float = attrs.field(default=0.5, metadata={"ge": 0, "le": 1})


def no_gap(instance: object, attribute: object, value: str) -> None:
    if "  " in value:
        raise ValueError("two spaces in a row")


@attrs.frozen(kw_only=True)
class Row:
    facts: Facts = attrs.field(metadata={"inline": True})
    color: Color = Color.RED
    on: bool = False
    name: str = attrs.field(default="", validator=no_gap)
    names: tuple[str, ...] = ()
    parts: Mapping[str, Facts] = attrs.field(factory=dict)
    from_: str | None = None
    pending: tuple[str, ...] = attrs.field(default=(), metadata={"key": "owed"})
    rest: dict[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Table:
    rows: tuple[Facts, ...] = ()
    limits: Mapping[str, float] = attrs.field(factory=dict, metadata={"ge": 1, "le": 10})


WRONG: list[tuple[Any, Any, str, str]] = [
    (int, "12", "", "expected a whole number, found text"),
    (int, 1.9, "", "expected a whole number, found a number with a fraction"),
    (int, True, "", "expected a whole number, found true or false"),
    (float, "1", "", "expected a number, found text"),
    (float, False, "", "expected a number, found true or false"),
    (float, float("nan"), "", "sensible size"),
    (float, 10**400, "", "sensible size"),
    (float, 1e300, "", "sensible size"),
    (float, -1e300, "", "sensible size"),
    (bool, 1, "", "expected true or false, found a whole number"),
    (bool, "true", "", "expected true or false, found text"),
    (str, 12, "", "expected text, found a whole number"),
    (str, "a\0", "", "expected text without NUL, found text"),
    (tuple[str, ...], "abc", "", "expected a list, found text"),
    (tuple[str, ...], {"a": 1}, "", "expected a list, found an object"),
    (tuple[int, ...], [1, "SECRET"], "[1]", "expected a whole number"),
    (Mapping[str, int], [["a", 1]], "", "expected an object, found a list"),
    (Mapping[str, int], {"a": 1, "b": None}, "b", "found null"),
    (Mapping[str, tuple[int, ...]], {"a": [1], "b": [1, "x"]}, "b[1]", "expected a whole number"),
    (dict[str, Any], None, "", "expected an object, found null"),
    (Color, "gren", "", "expected one of red, green"),
    (Color, 1, "", "expected text"),
    (Facts, [], "", "expected an object, found a list"),
    (Facts, {}, "number", "is missing"),
    (Facts, {"number": 1, "share": 1.5}, "share", "expected 0 to 1, found 1.5"),
    (Table, {"limits": {"a": 2, "b": 11}}, "limits.b", "expected 1 to 10"),
    (Table, {"rows": [{"number": 1}, {"number": "SECRET"}]}, "rows[1].number", "expected a whole number"),
    (Row, {"number": 1, "parts": {"x": {"number": None}}}, "parts.x.number", "found null"),
    (Row, {"number": 1, "from": 5}, "from", "expected text"),
    (Row, {"number": 1, "owed": 5}, "owed", "expected a list"),
    (Row, {"number": 1, "name": "SECRET  x"}, "", "two spaces in a row"),
    (Row, {"number": "SECRET"}, "number", "expected a whole number"),
    (Row, {}, "number", "is missing"),
]


@pytest.mark.parametrize(("kind", "raw", "path", "what"), WRONG, ids=[f"{w[2] or w[0]}: {w[3]}" for w in WRONG])
def test_a_mismatch_is_reported_with_its_path(kind: object, raw: object, path: str, what: str) -> None:
    with pytest.raises(Mismatch) as caught:
        structure(kind, raw, converter=tolerant_converter())
    assert caught.value.path == path
    assert what in caught.value.what
    assert "SECRET" not in str(caught.value)


def test_the_path_begins_with_the_callers() -> None:
    with pytest.raises(Mismatch) as caught:
        structure(tuple[int, ...], ["x"], "installs")
    assert caught.value.path == "installs[0]"


def test_unknown_keys_are_refused_first_and_only_by_the_strict_converter() -> None:
    raw = {"nmber": 1, "share": "x"}
    with pytest.raises(Mismatch) as caught:
        structure(Facts, raw)
    assert (caught.value.path, caught.value.what) == ("nmber", "unknown key")
    assert caught.value.fix == "did you mean 'number'?"
    assert structure(Facts, {"number": 1, "later": 2}, converter=tolerant_converter()) == Facts(number=1)


def test_a_value_round_trips() -> None:
    row = Row(
        facts=Facts(number=7), color=Color.GREEN, names=("a", "b"), on=True, parts={"x": Facts(number=1)}, from_="y", pending=("p",),
        rest={"any": [1, None, {"thing": "x"}]},
    )  # fmt: skip
    raw = tolerant_converter().unstructure(row)
    assert list(raw)[:3] == ["number", "share", "color"], "inline facts come first"
    assert (
        raw["from"] == "y"
        and raw["owed"] == ["p"]
        and raw["names"] == ["a", "b"]
        and raw["rest"] == {"any": [1, None, {"thing": "x"}]}
    )
    assert structure(Row, raw, converter=tolerant_converter()) == row


def test_the_strict_converter_is_built_once() -> None:
    assert strict_converter() is strict_converter()


# --- bounds, choices and unknown keys -----------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Bounds:
    low: int = attrs.field(default=1, metadata={"ge": 1})
    high: float = attrs.field(default=0.0, metadata={"le": 2.5})
    both: int = attrs.field(default=5, metadata={"ge": 5, "le": 5})
    word: str = attrs.field(default="red", metadata={"choices": ("red", "green")})
    words: Mapping[str, str] = attrs.field(factory=dict, metadata={"choices": ("red", "green")})
    maybe: float | None = attrs.field(default=None, metadata={"ge": 0})


@pytest.mark.parametrize(
    "raw",
    [
        {}, {"low": 1, "high": 2.5, "both": 5, "word": "green"}, {"low": 10**40, "high": -1e299}, {"maybe": None},
        {"words": {"a": "red", "b": "green"}}, {"maybe": 0},
    ],
)  # fmt: skip
def test_values_within_their_bounds(raw: dict[str, Any]) -> None:
    found = structure(Bounds, raw)
    assert {key: getattr(found, key) for key in raw} == raw


CHOICE = "expected one of red, green, found another text"


@pytest.mark.parametrize(
    ("raw", "path", "what", "fix"),
    [
        ({"low": 0}, "low", "expected at least 1, found 0", None),
        ({"high": 2.6}, "high", "expected at most 2.5, found 2.6", None),
        ({"both": 4}, "both", "expected 5 to 5, found 4", None),
        ({"both": 6}, "both", "expected 5 to 5, found 6", None),
        ({"low": -(10**40)}, "low", f"expected at least 1, found -1{'0' * 22}", None),
        ({"word": "gren"}, "word", CHOICE, "did you mean 'green'?"),
        ({"word": "blue-violet"}, "word", CHOICE, None),
        ({"words": {"a": "red", "b": "rod"}}, "words.b", CHOICE, "did you mean 'red'?"),
        ({"high": float("inf")}, "high", "expected a number of sensible size, found a number with a fraction", None),
        ({"high": -(10**301)}, "high", "expected a number of sensible size, found a whole number", None),
        ({"lows": 1}, "lows", "unknown key", "did you mean 'low'?"),
        ({"zzz": 1, "qqq": 2}, "qqq", "unknown key", "remove it; known keys: low, high, both, word, words, maybe"),
    ],
)
def test_a_value_beyond_its_bounds_is_named(raw: dict[str, Any], path: str, what: str, fix: str | None) -> None:
    with pytest.raises(Mismatch) as caught:
        structure(Bounds, raw)
    assert (caught.value.path, caught.value.what, caught.value.fix) == (path, what, fix)
    assert str(caught.value) == f"{path}: {what}"


def test_a_value_at_the_top_is_named_so() -> None:
    with pytest.raises(Mismatch) as caught:
        structure(int, "x")
    assert str(caught.value) == "top: expected a whole number, found text"


def test_a_missing_key_is_added() -> None:
    with pytest.raises(Mismatch) as caught:
        structure(Table, {"rows": [{"number": 1}, {}]}, "table")
    assert (caught.value.path, caught.value.what) == ("table.rows[1].number", "is missing")
    assert caught.value.fix == "add 'number'"


@pytest.mark.parametrize(
    ("path", "key", "shown"),
    [
        ("", "a", "a"), ("a", "b", "a.b"), ("a", "ä", "a.ä"), ("a", "b\n", r"a.'b\n'"), ("", "x" * 80, "x" * 80),
        ("", "x" * 81, "'" + "x" * 79), ("", "\u202e", r"'\u202e'"),
    ],
)  # fmt: skip
def test_a_path_is_printable_and_short(path: str, key: str, shown: str) -> None:
    assert join(path, key) == shown


def test_the_keys_of_inline_fields_are_refused_with_their_own_path() -> None:
    for raw, path in (({"number": 1, "color": "pink"}, "color"), ({"number": 1, "share": 2}, "share")):
        with pytest.raises(Mismatch) as caught:
            structure(Row, raw, "row", converter=tolerant_converter())
        assert caught.value.path == f"row.{path}"


def test_choices_are_found_in_lists_and_objects() -> None:
    assert structure(tuple[Color, ...], ["green", "red"]) == (Color.GREEN, Color.RED)
    assert structure(Mapping[str, Color], {"a": "green"}) == {"a": Color.GREEN}


@pytest.mark.parametrize("value", [(), {}, {"a": (1,)}])
def test_values_without_facts_round_trip(value: object) -> None:
    kind = tuple[str, ...] if value == () else Mapping[str, tuple[int, ...]]
    assert structure(kind, tolerant_converter().unstructure(value)) == value


def test_numbers_become_the_type_of_their_field() -> None:
    found = structure(Facts, {"number": 7, "share": 1})
    assert (type(found.number), type(found.share), found.share) == (int, float, 1.0)
    assert tolerant_converter().unstructure(Row(facts=found, color=Color.RED))["color"] == "red"
    assert type(tolerant_converter().unstructure(Color.RED)) is str
