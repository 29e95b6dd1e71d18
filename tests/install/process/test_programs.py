"""Programs that run for an operator who waits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import certctrl
from certctrl.errors import CommandError
from certctrl.install.process import programs
from certctrl.install.process.programs import find_program, own_program, run_program


def sh(text: str) -> list[str]:
    return ["/bin/sh", "-c", text]


def test_status_input_and_lines() -> None:
    lines: list[str] = []
    assert run_program(sh("cat; printf 'no newline'; exit 3"), given=b"one\ntwo\n", on_line=lines.append) == 3
    assert lines == ["one", "two", "no newline"]
    assert run_program(sh("kill -9 $$")) == -9


def test_input_that_is_not_read_is_no_error() -> None:
    assert run_program(["/bin/true"], given=b"x" * 1_000_000) == 0


def test_errors_reach_the_terminal_unless_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    run_program(sh("echo shown >&2; echo discarded"))
    run_program(sh("echo hidden >&2"), quiet=True)
    assert capfd.readouterr() == ("", "shown\n")


def test_the_environment_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SECRET", "x")
    lines: list[str] = []
    run_program(sh("echo ${SOME_SECRET-none} $OTHER"), environ={"OTHER": "y"}, on_line=lines.append)
    assert lines == ["none y"]


def test_a_program_that_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="cannot run /missing: No such file"):
        run_program(["/missing"])
    (tmp_path / "text").touch(0o600)
    with pytest.raises(CommandError, match="Permission denied"):
        run_program([str(tmp_path / "text")])


def test_another_program_has_the_libraries_of_this_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A package has them where no other Python looks; a folder of the working directory must not replace them."""
    (tmp_path / "certctrl").mkdir()
    (tmp_path / "certctrl" / "__init__.py").write_text("raise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)
    lines: list[str] = []
    assert run_program(own_program("--version"), environ={}, on_line=lines.append) == 0
    assert lines == [f"cert-ctrl {certctrl.__version__}"]


def interrupt(_line: str) -> None:
    raise KeyboardInterrupt


def test_an_interrupt_waits_for_the_program_and_takes_its_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(programs, "_OWN_END_SECONDS", 0.05)
    ended = tmp_path / "ended"
    handles = f"trap 'touch {ended}; exit 130' TERM; echo ready; while :; do sleep 0.05; done"
    assert run_program(sh(handles), on_line=interrupt) == 130
    assert ended.exists()


@pytest.mark.parametrize("text", ["echo ready; exec sleep 60", "echo ready"])
def test_an_interrupt_that_the_program_does_not_report_goes_on(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(programs, "_OWN_END_SECONDS", 0.05)
    with pytest.raises(KeyboardInterrupt):
        run_program(sh(text), on_line=interrupt)


def test_a_program_that_ignores_its_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_OWN_END_SECONDS", 0.05)
    monkeypatch.setattr(programs, "_TERM_SECONDS", 0.05)
    with pytest.raises(KeyboardInterrupt):
        run_program(sh("trap '' TERM; echo ready; while :; do sleep 0.05; done"), on_line=interrupt)


def test_programs_of_administrators_are_found_with_any_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "sh"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_program("sh") == str(own), "the operator's path comes first"
    assert os.path.basename(find_program("env") or "") == "env"
    monkeypatch.delenv("PATH")
    assert find_program("env") and find_program("no-such-program") is None
