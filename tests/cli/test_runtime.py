"""Errors become two lines and an exit status, even inside exception groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import typer

from certctrl.cli import runtime
from certctrl.cli.app import COMMANDS, Entry
from certctrl.cli.invocation import Invocation
from certctrl.errors import (
    BusyError,
    CertctrlError,
    ConfigError,
    DiskError,
    ExitStatus,
    NotRegisteredError,
    PlaneError,
    TransportError,
)

from .conftest import Ran

SECRET = "rt_271f3eca9daa6b1a317a89cac16d38b0.OEftln9mNb7HyYIwW8Qpv4oT"


def report(error: BaseException, *, debug: bool = False, config_dir: str | None = None) -> int:
    invoked = Invocation()
    invoked.debug, invoked.config_dir = debug, config_dir
    return runtime.report(error, invoked)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CertctrlError("x"), 1),
        (ConfigError("x"), 78),
        (NotRegisteredError("x"), 77),
        (BusyError("x"), 75),
        (DiskError("x"), 74),
        (TransportError("x"), 69),
        (PlaneError("x", status=500), 69),
        (KeyboardInterrupt(), 130),
        (RuntimeError("x"), 1),
        (OSError(24, "Too many open files"), 74),
        (ExceptionGroup("", [ExceptionGroup("", [NotRegisteredError("x")])]), 77),
        (ExceptionGroup("", [TransportError("x"), DiskError("y")]), 74),
        (ExceptionGroup("", [TransportError("x"), RuntimeError("y")]), 1),
        (BaseExceptionGroup("", [KeyboardInterrupt(), TransportError("x")]), 130),
    ],
    ids=repr,
)
def test_exit_statuses_of_errors(error: BaseException, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(error) == status
    out, err = capsys.readouterr()
    assert not out and "Traceback" not in err
    assert err.startswith("cert-ctrl: ")


def test_an_exception_group_prints_each_error_once(capsys: pytest.CaptureFixture[str]) -> None:
    same = [TransportError("no route", fix="plug it in") for _ in range(3)]
    report(ExceptionGroup("", [*same, ExceptionGroup("", [DiskError("full")])]))
    assert capsys.readouterr().err.splitlines() == [
        "cert-ctrl: error: no route",
        "fix: plug it in",
        "cert-ctrl: error: full",
    ]


def test_a_fix_names_the_actual_directory(capsys: pytest.CaptureFixture[str]) -> None:
    report(NotRegisteredError("no", fix="cert-ctrl -c DIR register"), config_dir="/etc/cc")
    assert "fix: cert-ctrl -c /etc/cc register\n" in capsys.readouterr().err


def test_a_bug_prints_type_and_place_but_no_value(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError(f"invalid token {SECRET}")
    except ValueError as error:
        assert report(error) == ExitStatus.FAILED
    err = capsys.readouterr().err
    assert "unexpected ValueError at " in err and "--debug" in err
    assert SECRET not in err and "invalid token" not in err


def test_debug_shows_the_traceback_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError(f"invalid token {SECRET}")
    except ValueError as error:
        report(error, debug=True)
    err = capsys.readouterr().err
    assert "Traceback" in err and "test_runtime.py" in err and "invalid token [secret]" in err
    assert SECRET not in err


def test_texts_cannot_forge_lines_or_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    report(CertctrlError("a\nfix: rm -rf /\x1b[31m\u202e", fix=f"use {SECRET}"))
    err = capsys.readouterr().err
    assert err == "cert-ctrl: error: a\\nfix: rm -rf /\\x1b[31m\\u202e\nfix: use [secret]\n"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """``command(function)`` replaces `list-certs` by a function."""

    def put(function: Callable[..., Any]) -> None:
        from certctrl.cli.commands import list_certs

        monkeypatch.setattr(list_certs, "list_certs", function)
        monkeypatch.setitem(COMMANDS, "list-certs", Entry("commands.list_certs", "x"))

    return put


def test_errors_from_inside_a_nursery(command: Callable[..., None], ran: Callable[..., Ran]) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:

            async def fail() -> None:
                raise BusyError("held by 12", fix="wait")

            nursery.start_soon(fail)
            await trio.sleep_forever()

    command(lambda: runtime.run(main))
    assert ran("--config-dir=x", "list-certs") == (75, "", "cert-ctrl: error: held by 12\nfix: wait\n")


def test_the_return_value_is_the_exit_status(command: Callable[..., None], ran: Callable[..., Ran]) -> None:
    def three() -> int:
        return 3

    command(three)
    assert ran("--config-dir=x", "list-certs").status == 3


def test_typer_exit_and_none_are_exit_statuses(command: Callable[..., None], ran: Callable[..., Ran]) -> None:
    def leave() -> None:
        raise typer.Exit(5)

    command(leave)
    assert ran("--config-dir=x", "list-certs").status == 5
    command(lambda: None)
    assert ran("--config-dir=x", "list-certs").status == 0


def test_interrupts(command: Callable[..., None], ran: Callable[..., Ran]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    command(interrupted)
    assert ran("--config-dir=x", "list-certs").status == 130


def test_an_aborted_prompt_is_an_interrupt(
    command: Callable[..., None], ran: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask() -> None:
        raise typer.Abort

    command(ask)
    done = ran("--config-dir=x", "list-certs")
    assert (done.status, done.err) == (130, "cert-ctrl: interrupted\n")
