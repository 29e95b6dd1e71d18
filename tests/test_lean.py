"""`certctrl.lean` makes classes that behave like those of attrs."""

from __future__ import annotations

import re
import weakref
from pathlib import Path
from typing import Any

import attrs
import cattrs
import pytest

import certctrl
from certctrl import lean


def classes(place: Any) -> dict[str, Any]:
    """Return the same classes, made by the decorators of attrs or by the lean ones."""

    @place.frozen
    class Point:
        x: int
        y: int = 0

    @place.frozen(kw_only=True)
    class Secret:
        name: str
        token: str = attrs.field(repr=False)
        sent_as: str = attrs.field(default="", eq=False, repr=False)

    @place.frozen
    class Nothing:
        pass

    @place.frozen
    class Further(Point):
        z: int = attrs.field(default=0, validator=attrs.validators.ge(0))

    @place.define
    class Counter:
        count: int = attrs.field(default=0, converter=int)

    @place.define(eq=False)
    class Task:
        name: str

    @place.frozen
    class Named:
        name: str

        def __repr__(self) -> str:
            return f"<{self.name}>"

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Named) and other.name.lower() == self.name.lower()

        def __hash__(self) -> int:
            return hash(self.name.lower())

    found = (Point, Secret, Nothing, Further, Counter, Task, Named)
    return {one.__name__: one for one in found}


LEAN, USUAL = classes(lean), classes(attrs)
VALUES: dict[str, tuple[str, dict[str, Any]]] = {
    "defaults": ("Point", {"x": 1}),
    "other values": ("Point", {"x": 1, "y": 2}),
    "a field that is not shown": ("Secret", {"name": "a", "token": "hunter2"}),
    "a field that is not compared": ("Secret", {"name": "a", "token": "hunter2", "sent_as": "b"}),
    "no fields": ("Nothing", {}),
    "inherited fields": ("Further", {"x": 1, "y": 2, "z": 3}),
    "a changeable value": ("Counter", {"count": 3}),
    "compared by identity": ("Task", {"name": "a"}),
    "own methods": ("Named", {"name": "a"}),
    "own methods, equal": ("Named", {"name": "A"}),
}


def made(kind: dict[str, Any]) -> list[Any]:
    return [kind[name](**fields) for name, fields in VALUES.values()]


def test_values_are_shown_as_by_attrs() -> None:
    assert [repr(one) for one in made(LEAN)] == [repr(one) for one in made(USUAL)]


def test_values_are_equal_when_those_of_attrs_are() -> None:
    def table(kind: dict[str, Any]) -> list[list[bool]]:
        return [[one == other for other in made(kind)] for one in made(kind)]

    assert table(LEAN) == table(USUAL)


@pytest.mark.parametrize("case", VALUES)
def test_values_are_hashed_when_those_of_attrs_are(case: str) -> None:
    name, fields = VALUES[case]
    if USUAL[name].__hash__ is None:
        with pytest.raises(TypeError, match="unhashable"):
            hash(LEAN[name](**fields))
        return
    one, other = LEAN[name](**fields), LEAN[name](**fields)
    assert (one in {other}) is (USUAL[name](**fields) in {USUAL[name](**fields)})


def test_a_value_is_not_equal_to_another_type_with_the_same_fields() -> None:
    assert LEAN["Point"](1, 2) != LEAN["Further"](1, 2)
    assert LEAN["Point"](1, 2) != USUAL["Point"](1, 2)


@pytest.mark.parametrize("name", ["Point", "Secret", "Nothing", "Further", "Named"])
def test_frozen_values_do_not_change(name: str) -> None:
    fields = next(fields for kind, fields in VALUES.values() if kind == name)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        LEAN[name](**fields).x = 5


def test_the_tools_of_attrs_and_cattrs_work() -> None:
    point = LEAN["Further"](1, z=2)
    assert attrs.evolve(point, y=5) == LEAN["Further"](1, 5, 2)
    assert attrs.asdict(point) == {"x": 1, "y": 0, "z": 2}
    assert list(attrs.fields_dict(LEAN["Further"])) == ["x", "y", "z"]
    assert LEAN["Counter"]("7").count == 7
    with pytest.raises(ValueError, match="z"):
        LEAN["Further"](1, z=-1)
    with pytest.raises(AttributeError):
        LEAN["Counter"]().other = 1  # slots
    assert cattrs.unstructure(point) == {"x": 1, "y": 0, "z": 2}
    assert LEAN["Further"].__match_args__ == ("x", "y", "z")


def test_generated_methods_share_their_code_and_global_names() -> None:
    @lean.frozen
    class Place:
        x: int
        y: int = 0

    one, other = LEAN["Point"].__init__, Place.__init__
    assert one.__code__ is other.__code__
    assert one.__globals__ is other.__globals__


def test_a_class_compared_by_its_base_ignores_its_own_fields() -> None:
    for place in (lean, attrs):
        base = classes(place)["Point"]
        further: Any = place.frozen(eq=False)(type("Further", (base,), {"__annotations__": {"z": "int"}, "z": 0}))
        assert further(1, 2, 3) == further(1, 2, 4)
        assert base(1, 2) == base(1, 2)
        assert base(1, 2) != base(1, 3)


def test_two_threads_may_compare_the_first_values_of_a_class() -> None:
    """The second one may find that the first has just made the function."""

    @lean.frozen
    class Base:
        x: int

    @lean.frozen
    class Derived(Base):
        y: int

    maker = vars(Derived)["__compared__"]
    for kind in (Derived, Base):
        for _ in range(2):
            assert maker.__get__(None, kind)(Derived(1, 2)) == ((1, 2) if kind is Derived else 1)
    assert Derived(1, 2) != Derived(1, 3)


def test_weak_references_are_made_on_request() -> None:
    @lean.frozen(weakref_slot=True)
    class Held:
        x: int

    held = Held(1)
    assert weakref.ref(held)() is held
    with pytest.raises(TypeError, match="weak reference"):
        weakref.ref(LEAN["Point"](1))


def test_every_class_of_the_project_is_lean() -> None:
    root = Path(certctrl.__file__).parent
    usual = re.compile(r"@attrs?\.(frozen|define|mutable|s|dataclass)\b")
    assert [path for path in root.rglob("*.py") if path.name != "lean.py" and usual.search(path.read_text())] == []
