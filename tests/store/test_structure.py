"""JSON is structured without coercion; mismatches are reported with their path."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import attrs
import pytest

from certctrl.store.structure import Mismatch, strict_converter, structure, tolerant_converter


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
    (bool, 1, "", "expected true or false, found a whole number"),
    (bool, "true", "", "expected true or false, found text"),
    (str, 12, "", "expected text, found a whole number"),
    (str, "a\0", "", "without NUL"),
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
    (Row, {"number": 1, "name": "SECRET  x"}, "", "two spaces in a row"),
    (Row, {"number": "SECRET"}, "number", "expected a whole number"),
    (Row, {}, "number", "is missing"),
]


@pytest.mark.parametrize(("kind", "raw", "path", "what"), WRONG, ids=[f"{w[2] or w[0]}: {w[3]}" for w in WRONG])
def test_a_mismatch_is_reported_with_its_path(kind: Any, raw: Any, path: str, what: str) -> None:
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
        facts=Facts(number=7), color=Color.GREEN, names=("a", "b"), parts={"x": Facts(number=1)}, from_="y",
        rest={"any": [1, None, {"thing": "x"}]},
    )  # fmt: skip
    raw = tolerant_converter().unstructure(row)
    assert list(raw)[:3] == ["number", "share", "color"], "inline facts come first"
    assert raw["from"] == "y" and raw["names"] == ["a", "b"] and raw["rest"] == {"any": [1, None, {"thing": "x"}]}
    assert structure(Row, raw, converter=tolerant_converter()) == row


def test_the_strict_converter_is_built_once() -> None:
    assert strict_converter() is strict_converter()
