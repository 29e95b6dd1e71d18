"""Lines, durations, tables, redaction: what reaches a terminal or a pipe."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.cli import output
from certctrl.logs.redact import _PATTERNS, _SUSPECT, MASK, redact


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 seconds"), (-3, "0 seconds"), (1, "1 second"), (5.4, "5 seconds"), (59.4, "59 seconds"),
        (60, "1m 0s"), (863, "14m 23s"), (8100, "2h 15m"), (2 * 86_400 + 14 * 3600 + 32 * 60, "2d 14h 32m"),
    ],
)  # fmt: skip
def test_durations_read_as_in_the_spec(seconds: float, shown: str) -> None:
    assert output.duration(seconds) == shown


def test_ago_and_remaining() -> None:
    assert output.ago(100, 105) == "5 seconds ago"
    assert output.ago(500, 100) == "in 6m 40s", "a clock that was set back is told, not hidden"
    assert output.remaining(863) == "14m 23s"
    assert output.remaining(-60) == "expired 1m 0s ago"


@given(st.floats(allow_nan=False))
def test_a_bar_always_has_its_width(share: float) -> None:
    assert len(output.bar(share, 10)) == 10


def test_bars_end_to_end() -> None:
    assert (output.bar(0), output.bar(0.5), output.bar(1)) == ("░" * 10, "█" * 5 + "░" * 5, "█" * 10)


def test_a_table_in_a_pipe_is_plain_and_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("Name", "State"), [("a\x1b[31m", "ok"), ("longer-name", "")])
    assert capsys.readouterr().out == "NAME         STATE\na\\x1b[31m    ok\nlonger-name\n"


def test_a_table_on_a_terminal_is_drawn(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    output.table(("Name", "State"), [("[bold]x", "failed: why")], title="T")
    out = capsys.readouterr().out
    assert "[bold]x" in out, "markup in data is data"
    assert "─" in out


def test_a_dumb_terminal_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    assert not output.on_terminal()
    monkeypatch.setenv("TERM", "xterm")
    assert output.on_terminal()


JWT = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxNCJ9.c2lnbmF0dXJl-_x"
KEY = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMG\nByqGSM49\n-----END PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (f"token {JWT} end", f"token {MASK} end"),
        (f"cut {JWT[:40]}", f"cut {MASK}"),
        ("x rt_271f3eca9daa6b1a.OEftln9mNb7H-_y x", f"x {MASK} x"),
        ("et_mNCLTgVblu4jMZEGF ok_abcdefgh12", f"{MASK} {MASK}"),
        (f"a {KEY} b", f"a {MASK} b"),
        (f"half {KEY[:40]}", f"half {MASK}"),
        ("-----BEGIN RSA PRIVATE KEY-----\nx", MASK),
        ("http://user:pa%40ss@proxy:3128/", f"http://{MASK}@proxy:3128/"),
        ("Authorization: Bearer abcdef123456", f"Authorization: Bearer {MASK}"),
        ("{'refresh_token': 'opaque-value', 'n': 1}", f"{{'refresh_token': '{MASK}', 'n': 1}}"),
        ('{"device_code":"abc def"}', f'{{"device_code":"{MASK}"}}'),
    ],
)
def test_secrets_are_masked(raw: str, shown: str) -> None:
    assert redact(raw) == shown


@pytest.mark.parametrize(
    "text",
    [
        "Certificate 9981 updated: www.example.com, serial=04:ab",
        "cert_id=7, cert_renewed, export_policy_value, start_date",
        "https://plane.example:8443/device?user_code=ABCD-EFGH",
        "-----BEGIN CERTIFICATE-----",
        "Response: 204 No Content, cursor=1736900000-5",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert redact(text) == text


@given(st.text(), st.text())
def test_a_token_never_comes_through(before: str, after: str) -> None:
    body = "271f3eca9daa6b1a317a89cac16d38b0"
    assert body not in redact(f"{before} rt_{body}.OEftln9m {after}")


@pytest.mark.parametrize("pattern", _PATTERNS, ids=lambda pattern: pattern.pattern[:20])
@given(data=st.data())
def test_what_a_pattern_finds_is_looked_for(pattern: re.Pattern[str], data: st.DataObject) -> None:
    """The quick look before the patterns lets nothing through that one of them would mask."""
    text = data.draw(st.from_regex(pattern))
    if pattern.search(text):
        assert _SUSPECT.search(text)


@pytest.mark.parametrize(
    ("cell", "style"),
    [("expired 2d 0h 0m ago", "red"), ("░░░░░░░░░░ expired 2d 0h 0m ago", "red"), ("██████████ 80d 0h 0m", "")],
)
def test_what_has_expired_is_red_behind_its_bar_too(cell: str, style: str) -> None:
    assert style in output._colour(cell) and bool(output._colour(cell)) == bool(style)
