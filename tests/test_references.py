"""The project's texts name no files outside of it: no design papers, no places on a developer's machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = ("certctrl", "tests", "docs", "deploy", ".ci")
KINDS = {".py", ".md", ".json", ".toml", ".yml", ".yaml", ".service", ".timer", ".conf", ".sql", ".sh", ""}
PAPERS = ("safety", "api", "numbers", "ecosystem", "moves", "language", "style")
DESIGN_PAPER = re.compile(rf"(?<![\w/-])({'|'.join(PAPERS)})\.md\b")
MACHINE = re.compile(r"(?<![\w.{}])/(home|Users|work|workspace|workspaces)/\w+")


def texts() -> list[Path]:
    """Return the project's text files."""
    found = [path for path in ROOT.iterdir() if path.is_file() and not path.name.startswith(".git")]
    for place in PLACES:
        found += [path for path in (ROOT / place).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return sorted(path for path in found if path.suffix in KINDS)


def references(text: str) -> list[str]:
    """Return the lines that name a design paper or a place on a machine, with their numbers."""
    return [
        f"line {number}: {line.strip()[:120]}"
        for number, line in enumerate(text.splitlines(), 1)
        if DESIGN_PAPER.search(line) or MACHINE.search(line)
    ]


@pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in texts()])
def test_a_file_names_nothing_outside_of_the_project(path: Path) -> None:
    assert not references(path.read_text(encoding="utf-8"))


def test_references_are_found() -> None:
    paper, folder, job = "api" + ".md", "/" + "home" + "/operator", "work" + "/3"
    assert references(f"as {paper} says (§4)") == [f"line 1: as {paper} says (§4)"]
    assert references(f"first\ncd {folder}/certctrl") == [f"line 2: cd {folder}/certctrl"]
    assert not references(f"see docs/protocol.md, wire-{paper} and GET /apiv1/{job}; https://plane.test/home/x")
