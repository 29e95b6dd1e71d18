"""Long commands show on a terminal what they are doing, and nothing in a pipe."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from certctrl.__main__ import main
from certctrl.cli import progress
from certctrl.cli.progress import WIDTH, Progress, line_of
from certctrl.store.layout import ConfigDir

from .conftest import Ran

Run = Callable[..., Ran]


class Terminal(io.StringIO):
    """Standard error that is a terminal, and tells when something was drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn = threading.Event()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        done = super().write(text)
        self.drawn.set()
        return done


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setattr(progress, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.01)
    return Terminal()


def test_the_line_is_drawn_again_and_disappears(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal)  # here: pytest replaces it after the fixtures
    with Progress("apply", shown=True, detail=lambda: "fetching\x1b[31m"):
        assert terminal.drawn.wait(60)
    text = terminal.getvalue()
    assert text.startswith("\r\x1b[Kapply, 0 s: fetching\\x1b[31m") and text.endswith("\r\x1b[K")


def test_a_short_command_draws_nothing(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST_SECONDS", 3600)
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("apply", shown=True):
        pass
    assert terminal.getvalue() == ""


def test_the_line_ends_with_an_error(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(KeyError):
        with Progress("apply", shown=True):
            assert terminal.drawn.wait(60)
            raise KeyError
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_the_line_fits_a_terminal() -> None:
    assert line_of("plan", "", 12.4) == "plan, 12 s"
    assert len(line_of("plan", "x" * 500, 1)) == WIDTH


@pytest.mark.parametrize(("options", "shows"), [([], True), (["-q"], False), (["-v"], False), (["--debug"], False)])
def test_a_command_shows_progress_unless_told_otherwise(
    options: list[str], shows: bool, layout: ConfigDir, ran: Run, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(_layout: object, op: str, **_how: object) -> Any:
        if op != "status":
            terminal.drawn.wait(60 if shows else 0.2)
        return type("Reply", (), {"data": {"queue_depth": 3, "poll": "204 No Content", "cursor": "1"}})

    monkeypatch.setattr("certctrl.cli.control.ask", slow)
    monkeypatch.setattr("certctrl.cli.progress.shown_here", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["-c", str(layout.root), *options, "poll-now"]) == 0
    assert ("poll-now: the daemon is working" in terminal.getvalue()) == shows


@pytest.mark.parametrize("where", ["before", "after"])
def test_the_options_are_accepted_on_both_sides_of_a_command(where: str, layout: ConfigDir, ran: Run) -> None:
    for option in ("-q", "--quiet", "-v", "--verbose"):
        words = [option, "policy", "show"] if where == "before" else ["policy", "show", option]
        assert ran("-c", layout.root, *words).status == 0
    assert ran("-c", layout.root, "-q", "-v", "policy", "show").status == 2
