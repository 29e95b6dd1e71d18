"""What the documents on security and on found bugs name as evidence exists: files, tests, and nox sessions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "docs" / name for name in ("security.md", "track-record.md")]
NAMED = re.compile(r"(tests/[\w/]+\.py)(?:::(\w+))?")


def named(text: str) -> list[tuple[str, str]]:
    return NAMED.findall(text)


def problems(text: str) -> list[str]:
    """Return what a text names that is not there."""
    sessions = set(re.findall(r"@nox\.session[^\n]*\ndef (\w+)", (ROOT / "noxfile.py").read_text()))
    wrong = [f"no session {name}" for name in re.findall(r"nox -s (\w+)", text) if name not in sessions]
    for file, test in named(text):
        if not (ROOT / file).is_file():
            wrong.append(f"no file {file}")
        elif test and not re.search(rf"def {test}\(", (ROOT / file).read_text()):
            wrong.append(f"no test {test} in {file}")
    return wrong


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_evidence_is_there(document: Path) -> None:
    text = document.read_text()
    assert len(named(text)) >= 20
    assert problems(text) == []


def test_every_threat_has_its_evidence() -> None:
    rows = re.findall(r"^\| (T\d+) \|.*\| (.*) \|$", DOCUMENTS[0].read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == [f"T{number}" for number in range(1, 26)]
    assert all(named(evidence) for _, evidence in rows)


COMMAND = re.compile(r'`pytest (tests/[\w/]+\.py)(?: -k (?:"([^"]+)"|(\w+)))?`')


def runs_something(file: str, words: str) -> bool:
    """Return whether each alternative of ``-k`` is part of the name of a test in the file."""
    names = re.findall(r"def (test_\w+)", (ROOT / file).read_text())
    return all(any(word in name for name in names) for word in (words.split(" or ") if words else [""]))


def test_every_bug_has_a_command_that_runs_its_test() -> None:
    rows = [line for line in DOCUMENTS[1].read_text().splitlines() if line.startswith("| ") and "found by" not in line]
    assert len(rows) >= 20
    for row in rows:
        commands = COMMAND.findall(row)
        assert commands, row
        assert all(runs_something(file, quoted or word) for file, quoted, word in commands), row


def test_the_check_has_teeth() -> None:
    text = "tests/test_evidence.py::test_no_such_thing tests/none.py nox -s nothing tests/test_evidence.py"
    assert len(problems(text)) == 3
    assert not runs_something("tests/test_evidence.py", "teeth or nothing_of_the_kind")
