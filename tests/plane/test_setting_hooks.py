"""How settings of issuers and challenges are structured: strictly as given, tolerantly as stored."""

from __future__ import annotations

import pytest

from certctrl import lean
from certctrl.errors import ConfigError
from certctrl.plane.setting_hooks import SettingsClass, line, texts, to_store, whole


@lean.frozen(kw_only=True)
class Part:
    name: str
    size: int = 1


@lean.frozen(kw_only=True)
class Whole:
    names: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()


PART = SettingsClass(Part, {"name": line(), "size": whole(1, 9)}, unknown="is unknown")
WHOLE = SettingsClass(Whole, {"names": texts}, unknown="is unknown")


def test_defaults_and_the_stored_form() -> None:
    found = WHOLE.given({"names": "one", "parts": [{"name": " a "}]})
    assert found == Whole(names=("one",), parts=(Part(name="a"),))
    assert to_store(found) == {"names": ["one"], "parts": [{"name": "a", "size": 1}]}
    assert WHOLE.stored(to_store(found)) == found


def test_fields_of_a_later_release_are_ignored_as_stored_and_refused_as_given() -> None:
    later = {"colour": "red", "parts": [{"name": "a", "colour": "red"}]}
    assert WHOLE.stored(later) == Whole(parts=(Part(name="a"),))
    with pytest.raises(ConfigError, match=r"^colour: is unknown$"):
        WHOLE.given(later)
    with pytest.raises(ConfigError, match=r"^parts\[0\].colour: is unknown$"):
        WHOLE.given({"parts": later["parts"]})


@pytest.mark.parametrize(
    ("given", "path", "what", "fix"),
    [
        ([], "x", "is a list", "use an object such as {}"),
        ({"name": []}, "x.name", "is unknown", "use 'names'"),
        ({"parts": {}}, "x.parts", "is an object", "use a list of at most 100 objects"),
        ({"parts": [{"name": "a"}, 7]}, "x.parts[1]", "is a whole number", "use an object such as {}"),
        ({"parts": [{"name": "a", "size": 10}]}, "x.parts[0].size", "is 10", "use a whole number from 1 to 9"),
        (
            {"parts": [{"name": "a", "size": 10**400}]},
            "x.parts[0].size",
            "is too large",
            "use a whole number from 1 to 9",
        ),
        ({"parts": [{}]}, "x.parts[0].name", "is not set", "set it"),
    ],
)
def test_a_mistake(given: object, path: str, what: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        WHOLE.given(given, "x")
    assert (caught.value.path, caught.value.reason, caught.value.fix) == (path, what, fix)
