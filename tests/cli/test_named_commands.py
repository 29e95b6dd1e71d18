"""Commands that pages and messages of the control plane name exist, with their options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from certctrl.cli.app import root_command
from certctrl.plane.fleet.words import REASONS

CONSOLE = Path(__file__).parents[2] / "certctrl" / "plane" / "http" / "console"
_OF_REASONS = sorted({fix for _, fix in REASONS.values() if "cert-ctrl" in fix})
_LITERAL = re.compile(r"<(?:code|pre)>cert-ctrl ([^<{]+)</(?:code|pre)>")


def unknown(text: str) -> str:
    """Return the command or option of a command line that does not exist; empty: all do."""
    command: Any = root_command([])
    context = command.context_class(command, info_name="cert-ctrl")
    for word in text.split():
        if hasattr(command, "get_command"):
            command = command.get_command(context, word)
            if command is None:
                return word
            context = command.context_class(command, parent=context, info_name=word)
        elif word.startswith("-") and not any(word in (*one.opts, *one.secondary_opts) for one in command.params):
            return word
    return ""


def named_by_pages() -> list[str]:
    """Return the command lines in the pages of the console that need no filling in."""
    return sorted(
        {line for path in CONSOLE.glob("*.py") for line in _LITERAL.findall(path.read_text(encoding="utf-8"))}
    )


@pytest.mark.parametrize("fix", _OF_REASONS)
def test_commands_against_reasons_exist(fix: str) -> None:
    assert unknown(fix.partition("cert-ctrl ")[2].partition(";")[0].partition(" on the host")[0]) == ""


@pytest.mark.parametrize("line", named_by_pages())
def test_commands_of_pages_exist(line: str) -> None:
    assert unknown(line) == ""


@pytest.mark.parametrize(
    ("line", "found"),
    [("plane install-config set", "set"), ("register --plane x", "--plane"), ("released", "released")],
)
def test_what_does_not_exist_is_found(line: str, found: str) -> None:
    assert unknown(line) == found
