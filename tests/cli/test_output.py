"""Lines, durations, bars and tables on a terminal and in a pipe."""

from __future__ import annotations

import contextlib
import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.__main__ import _forgiving
from certctrl.cli import output


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 seconds"), (-3, "0 seconds"), (1, "1 second"), (5.4, "5 seconds"), (59.4, "59 seconds"),
        (60, "1m 0s"), (863, "14m 23s"), (8100, "2h 15m"), (2 * 86_400 + 14 * 3600 + 32 * 60, "2d 14h 32m"),
    ],
)  # fmt: skip
def test_durations_have_the_format_of_the_specification(seconds: float, shown: str) -> None:
    assert output.duration(seconds) == shown


def test_ago_and_remaining() -> None:
    assert output.ago(100, 105) == "5 seconds ago"
    assert output.ago(500, 100) == "in 6m 40s", "a clock that was set back is visible"
    assert output.remaining(863) == "14m 23s"
    assert output.remaining(-60) == "expired 1m 0s ago"


@given(st.floats(allow_nan=False))
def test_a_bar_always_has_its_width(share: float) -> None:
    assert len(output.bar(share, 10)) == 10


def test_bars_empty_half_and_full() -> None:
    assert (output.bar(0), output.bar(0.5), output.bar(1)) == ("░" * 10, "█" * 5 + "░" * 5, "█" * 10)


def test_a_table_in_a_pipe_is_plain_and_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("Name", "State"), [("a\x1b[31m", "ok"), ("longer-name", "")])
    assert capsys.readouterr().out == "NAME         STATE\na\\x1b[31m    ok\nlonger-name\n"


@given(
    st.lists(
        st.lists(st.text(st.characters(codec="ascii", exclude_categories=("C",))), min_size=9, max_size=9), max_size=5
    )
)
def test_a_table_in_a_pipe_fits_eighty_columns(rows: list[list[str]]) -> None:
    heads = ("id", "name", "status", "platform", "version", "last seen", "address", "waiting", "last day")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        output.table(heads, rows)
    lines = out.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    given_text = [head.upper() for head in heads] + [cell for row in rows for cell in row]
    assert sorted("".join("".join(lines).split())) == sorted("".join("".join(given_text).split())), "nothing is cut off"


def test_a_long_cell_is_broken_at_spaces_and_slashes(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("Name", "Where"), [("www.example.com", f"/etc/nginx/tls/{'x' * 50}/www.pem, /srv/www.pem ok")])
    assert capsys.readouterr().out.splitlines() == [
        "NAME             WHERE",
        "www.example.com  /etc/nginx/tls/",
        f"                 {'x' * 50}/www.pem,",
        "                 /srv/www.pem ok",
    ]


def test_serials_are_short_in_tables() -> None:
    assert output.short_serial("04:ab:00:11:22:33:44:55:66") == "04:ab:00…55:66"
    assert output.short_serial("0a:0b") == "0a:0b"


def test_a_table_on_a_terminal_is_drawn(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    output.table(("Name", "State"), [("[bold]x", "failed: why")], title="T")
    out = capsys.readouterr().out
    assert "[bold]x" in out, "data are not interpreted as markup"
    assert "─" in out


def test_a_dumb_terminal_is_not_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    assert not output.on_terminal()
    monkeypatch.setenv("TERM", "xterm")
    assert output.on_terminal()


@pytest.mark.parametrize(
    ("cell", "style"),
    [("expired 2d 0h 0m ago", "red"), ("░░░░░░░░░░ expired 2d 0h 0m ago", "red"), ("██████████ 80d 0h 0m", "")],
)
def test_expired_is_red_even_after_a_bar(cell: str, style: str) -> None:
    assert style in output._colour(cell) and bool(output._colour(cell)) == bool(style)


def test_the_reader_of_a_pipe_sees_each_line_at_once() -> None:
    """`cert-ctrl register | tee log` prints a code and waits for its approval."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with open(reader, "rb") as pipe, open(writer, "w", encoding="utf-8") as stdout:
        stream = _forgiving(stdout)
        stream.write("Code     ABCD-EFGH\n")
        assert pipe.read() == b"Code     ABCD-EFGH\n"
