"""The documentation names only what exists: files, nox sessions, links, and every threat with its tests."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
SECURITY = ROOT / "docs" / "security.md"

TEST = re.compile(r"\btests/[\w/]+\.py\b")
SOURCE = re.compile(r"`((?:certctrl|deploy|docs)/[\w./@-]+)`")
MODULE = re.compile(r"`((?:model|protocol|store|net|logs|install|agent|cli|plane|sandbox)/[\w/]*(?:\.py)?)`")
SESSION = re.compile(r"nox -s (\w+)")
LINK = re.compile(r"\]\((?!https?:)([^)\s]+)\)")
HOP = re.compile(r"`([\w/]+\.py):([\w.]+)`")
PLACEHOLDER = re.compile(r"\b(?:NAME|test_service_NAME)\b")


def sessions() -> set[str]:
    return set(
        re.findall(r"@nox\.session[^\n]*\n(?:@[^\n]*\n)*def (\w+)", (ROOT / "noxfile.py").read_text(encoding="utf-8"))
    )


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def problems(text: str, page: Path) -> list[str]:
    """Return what the text of a page names that does not exist."""
    named = [*TEST.findall(text), *SOURCE.findall(text), *(f"certctrl/{name}" for name in MODULE.findall(text))]
    wrong = [f"no file {name}" for name in named if not PLACEHOLDER.search(name) and not (ROOT / name).exists()]
    wrong += [f"no session {name}" for name in SESSION.findall(text) if name not in sessions()]
    for link in LINK.findall(text):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(f"no target {link}")
    return wrong


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_only_what_exists(page: Path) -> None:
    assert problems(page.read_text(encoding="utf-8"), page) == []


QUOTED = (
    "the check refuses the new certificate", "exited with", "serves another certificate", "serves no certificate",
    "the previous state does not serve either", "placeholder put in its place", "still serves it from memory",
    "but kept in use", "not among owners", "refuses TLS (answered", "the SMTP server does not offer STARTTLS",
    "the SMTP server says", "the IMAP server refuses STARTTLS", "bundle.jks needs the package pyjks", "haproxy rejects",
    "holds another certificate", "private.key does not belong",
)  # fmt: skip
"""Messages that the recipes' pages explain."""


@pytest.mark.parametrize("message", QUOTED)
def test_a_message_that_the_recipes_quote_is_what_the_code_says(message: str) -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "services").glob("*.md"))
    sources = [*(ROOT / "certctrl").rglob("*.py"), *(ROOT / "deploy" / "services" / "lib").iterdir()]
    assert message in pages
    assert any(message in source.read_text(encoding="utf-8") for source in sources)


def test_every_threat_has_its_tests() -> None:
    rows = re.findall(r"^\| (T\d+) \|.*\| (.*) \|$", SECURITY.read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name, _ in rows] == [f"T{number}" for number in range(1, 26)]
    assert all(TEST.findall(evidence) for _, evidence in rows)


def test_every_bug_names_its_test() -> None:
    text = (ROOT / "docs" / "evidence" / "track-record.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| bug ")]
    assert len(rows) >= 20
    assert all(TEST.search(row) for row in rows)


def text_files() -> list[Path]:
    """Return the sources and documents of the project, except this file, whose examples do not exist."""
    folders = [folder for name in ("certctrl", "tests", "deploy", "docs", ".ci") for folder in (ROOT / name).rglob("*")]
    found = [*folders, *ROOT.glob("*.py"), *ROOT.glob("*.toml"), *ROOT.glob("*.md")]
    return [path for path in found if path.is_file() and path.suffix != ".pyc" and path != Path(__file__)]


def unknown_pages(text: str) -> list[str]:
    """Return the Markdown files that a text names and the project does not have."""
    known = {str(page.relative_to(ROOT)) for page in DOCUMENTS} | {page.name for page in DOCUMENTS}
    named = re.findall(r"(?:docs/)?(?:[\w-]+/)*[\w-]+\.md\b", text)
    unknown = [name for name in named if (name if name.startswith("docs/") else name.rpartition("/")[2]) not in known]
    return [name for name in unknown if not PLACEHOLDER.search(name)]


def test_every_page_that_is_named_exists() -> None:
    wrong = {str(path.relative_to(ROOT)): unknown_pages(path.read_text(encoding="utf-8")) for path in text_files()}
    assert {path: names for path, names in wrong.items() if names} == {}


def test_unknown_pages_are_found() -> None:
    text = "design.md docs/none.md docs/services/none.md docs/security.md security.md ../metrics.md services/README.md"
    assert unknown_pages(text) == ["design.md", "docs/none.md", "docs/services/none.md"]


@functools.cache
def module_names() -> set[str]:
    """Return the names of the project's modules, with none, some and all of their folders."""
    folders = [path for name in ("certctrl", "tests", "deploy", "docs") for path in (ROOT / name).rglob("*.py")]
    parts = [path.relative_to(ROOT).parts for path in (*folders, *ROOT.glob("*.py"))]
    return {"/".join(one[begin:]) for one in parts for begin in range(len(one))}


def unknown_files(text: str) -> list[str]:
    """Return the Python modules, and the files below ``deploy/``, that a text names and the project does not have."""
    unknown = [name for name in re.findall(r"(?<![\w/.])[a-z_][\w/]*\.py\b", text) if name not in module_names()]
    files = [name for name in re.findall(r"(?<![\w/])deploy/[\w./@-]*\w", text) if not name.endswith(".py")]
    return [
        name
        for name in (*unknown, *(name for name in files if not (ROOT / name).exists()))
        if not PLACEHOLDER.search(name)
    ]


def test_every_file_that_the_project_names_exists() -> None:
    files = [path for path in text_files() if path.relative_to(ROOT).parts[0] != "tests"]
    wrong = {str(path.relative_to(ROOT)): unknown_files(path.read_text(encoding="utf-8")) for path in files}
    assert {path: names for path, names in wrong.items() if names} == {}


def test_unknown_files_are_found() -> None:
    text = (
        "`none.py`, agent/none.py, install/run.py; deploy/none/items.json. /opt/x.py agent/run.py run.py deploy/fleet"
    )
    assert unknown_files(text) == ["none.py", "agent/none.py", "install/run.py", "deploy/none/items.json"]


def test_the_steps_for_additions_name_what_the_code_has() -> None:
    steps = re.findall(
        r"^\d\. (.*(?:\n   .*)*)", (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(steps) >= 15
    for step in steps:
        sources = [ROOT / name for name in re.findall(r"`(certctrl/[\w/]+\.py)`", step)]
        code = "".join(source.read_text(encoding="utf-8") for source in sources)
        names = re.findall(r"`([A-Za-z_]\w*)(?:\(\))?`", step) if sources else []
        assert [name for name in names if not re.search(rf"\b{name}\b", code)] == [], step


def missing_hops(text: str) -> list[str]:
    """Return the hops ``file:function`` and ``file:Class.method`` of a text that the code does not have."""
    missing = []
    for file, name in HOP.findall(text):
        nodes: list[ast.stmt] = ast.parse((ROOT / "certctrl" / file).read_text(encoding="utf-8")).body
        for part in name.split("."):
            found = [node for node in nodes if getattr(node, "name", None) == part]
            nodes = getattr(found[0], "body", []) if found else []
        if not found:
            missing.append(f"{file}:{name}")
    return missing


def test_each_hop_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert len(HOP.findall(text)) > 60
    assert missing_hops(text) == []
    assert missing_hops("`agent/run.py:walk` `agent/inbox.py:Inbox.eat`") == [
        "agent/run.py:walk",
        "agent/inbox.py:Inbox.eat",
    ]


def test_the_check_finds_problems() -> None:
    text = "tests/none.py `certctrl/none.py` `agent/none.py` nox -s nothing [a](none.md) [b](security.md#none)"
    assert len(problems(text, SECURITY)) == 6
    assert problems("tests/test_evidence.py `agent/run.py` nox -s lint [a](security.md#threats)", SECURITY) == []
