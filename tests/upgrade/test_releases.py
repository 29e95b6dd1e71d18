"""Every release has its fixture: what it leaves on the disks of its users, which later ones have to read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from upgrade.old_host import RELEASES

CHANGELOG = Path(__file__).parents[2] / "CHANGELOG.md"
FILES = ("disk.json", "facts.json", "plane.sql")


def releases(changelog: str) -> list[str]:
    """Return the releases of a changelog, newest first."""
    return re.findall(r"^## \[(\d+\.\d+\.\d+)\]", changelog, flags=re.MULTILINE)


def test_releases_are_the_numbered_sections() -> None:
    assert releases("# C\n\n## [Unreleased]\n\n## [0.2.0] - 2027-01-04\n\n## [0.1.0] - unreleased\n") == [
        "0.2.0",
        "0.1.0",
    ]


@pytest.mark.parametrize("release", releases(CHANGELOG.read_text(encoding="utf-8")))
def test_a_release_has_its_fixture(release: str) -> None:
    missing = [name for name in FILES if not (RELEASES / release / name).is_file()]
    assert not missing, (
        f"tests/upgrade/data/{release} lacks {', '.join(missing)}: copy tests/upgrade/data/present, which is what this"
        f" release leaves behind; tests/upgrade/test_present.py then starts later versions on it, too"
    )
