"""The mutants that the lists accept are still changes of the present code, each for a reason."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENTRIES = [
    pytest.param(one, id=f"{file.stem}-{number}")
    for file in sorted(HERE.glob("*.toml"))
    for number, one in enumerate(tomllib.loads(file.read_text(encoding="utf-8"))["equivalent"])
]


def module_of(function: str) -> Path:
    """Return the module of ``install.plan.window._open`` or ``protocol.session.Session.step``."""
    place = ROOT / "certctrl"
    for part in function.split("."):
        place /= part
        if place.with_suffix(".py").exists():
            return place.with_suffix(".py")
    raise FileNotFoundError(function)


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_accepted_mutant_changes_the_present_code(entry: dict[str, str]) -> None:
    assert set(entry) == {"function", "before", "after", "reason"}
    assert entry["before"] != entry["after"] and " " in entry["reason"]
    lines = [line.strip() for line in module_of(entry["function"]).read_text(encoding="utf-8").splitlines()]
    assert [line for line in entry["before"].splitlines() if line not in lines] == []
    assert f"def {entry['function'].rpartition('.')[2]}(" in "\n".join(lines)
