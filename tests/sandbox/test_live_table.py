"""The live table: one row per certificate, within the terminal, and what happened last below it."""

from __future__ import annotations

import io
import re

from rich.console import Console

from certctrl.sandbox.live_table import LINES, LiveTable

SERIAL = "27:7f:0e:fa:72:9d:22:06:da:8a:e2:30:22:09:f3:60:8c:62:32:35"


def terminal(height: int = 24) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=True, color_system=None, width=80, height=height, highlight=False), out


def last_frame(out: io.StringIO) -> list[str]:
    """Return the lines drawn last, without control sequences."""
    frame = re.split(r"\x1b\[1A\x1b\[2K|\r\x1b\[2K", out.getvalue())[-1]
    return [line.rstrip() for line in re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", frame).splitlines()]


def drawn(events: list[tuple[str, dict[str, object]]], *, height: int = 24) -> list[str]:
    console, out = terminal(height)
    with LiveTable(console) as table:
        table.title("Control plane, agent and nginx")
        for number, (event, facts) in enumerate(events):
            table.add(float(number), "plane", event, f"event {number}", facts)
        table.draw(9.0)
        return last_frame(out)


def row_of(lines: list[str], name: str) -> list[str]:
    return next(line.split() for line in lines if line.startswith(name))


def test_a_row_follows_its_certificate() -> None:
    issued = ("issued", {"name": "a.test", "serial": SERIAL})
    renewed = ("renewed", {"name": "a.test", "serial": "0a:0b:0c:0d:0e:0f:10:11"})
    served = ("served", {"name": "a.test", "serial": "0a:0b:0c:0d:0e:0f:10:11", "latency_ms": 391.7})
    assert row_of(drawn([issued]), "a.test") == ["a.test", "27:7f…32:35", "0", "issued"]
    assert row_of(drawn([issued, renewed]), "a.test")[-2:] == ["1", "renewing"]
    after = ["a.test", "0a:0b…10:11", "0a:0b…10:11", "1", "392", "ms", "served"]
    assert row_of(drawn([issued, renewed, served]), "a.test") == after
    gone = ("gone", {"name": "a.test"})
    assert row_of(drawn([issued, renewed, served, gone]), "a.test")[2:] == ["-", "1", "392", "ms", "revoked"]
    refused = ("not-served", {"name": "a.test"})
    assert " ".join(row_of(drawn([issued, refused]), "a.test")).endswith("not served")


def test_title_and_last_events_are_around_the_table() -> None:
    lines = drawn([("polled", {})] * 10)
    assert lines[0] == "9 s  Control plane, agent and nginx"
    assert [line.split()[-1] for line in lines[-LINES:]] == ["4", "5", "6", "7", "8", "9"]


def test_many_certificates_fit_the_terminal() -> None:
    events = [("issued", {"name": f"app{number}.sandbox.test", "serial": SERIAL}) for number in range(1, 201)]
    lines = drawn(events)
    assert len(lines) < 24
    assert all(len(line) <= 80 for line in lines)
    names = [line.split()[0] for line in lines if line.startswith("app")]
    assert names[-1] == "app200.sandbox.test", "the rows that changed last are shown"
    assert f"and {200 - len(names)} more" in "\n".join(lines)


def test_a_low_terminal_still_shows_a_row() -> None:
    assert row_of(drawn([("issued", {"name": "a.test", "serial": SERIAL})], height=5), "a.test")


def test_only_alerts_stay_below_the_table_at_the_end() -> None:
    console, out = terminal()
    with LiveTable(console) as table:
        table.add(1.0, "alert", "not-served", "a.test serves nothing", {"name": "a.test"})
        for _ in range(LINES):
            table.add(2.0, "agent", "polled", "polled: 204 No Content", {})
        table.draw(2.0)
    ended = out.getvalue()
    assert [line for line in last_frame(out) if line][-1] == "   1.00s  alert    a.test serves nothing"
    assert ended.endswith("\x1b[?25h"), "the cursor is shown again"
    table.draw(3.0)
    assert out.getvalue() == ended
