"""The narrator reports the agent's log records, as text or as JSON."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from string import Formatter

import pytest

from certctrl.agent.log_lines import Line
from certctrl.sandbox.narrator import AGENT_LINES, Narrator, NarratorHandler, narrating


def narrated(as_json: bool) -> tuple[logging.Logger, Narrator, io.StringIO]:
    out = io.StringIO()
    narrator = Narrator(out, as_json=as_json, now=lambda: 5.0)
    log = logging.Logger("certctrl", logging.INFO)
    log.addHandler(NarratorHandler(narrator))
    return log, narrator, out


def record(log: logging.Logger, line: Line, **fields: object) -> None:
    """Log one catalogued line on ``log`` itself."""
    log.log(line.level, line.text, extra={"line_key": line.key, "line_fields": fields})


def test_every_reported_line_is_in_the_catalogue() -> None:
    lines = {line.key: line for line in Line}
    for key, (_, sentence) in AGENT_LINES.items():
        names = {name for _, name, _, _ in Formatter().parse(sentence) if name}
        assert names <= set(lines[key].fields()), key


def test_the_time_of_a_signal_is_kept() -> None:
    log, narrator, _ = narrated(as_json=False)
    record(log, Line.SIGNAL_PROCESSING, type="cert.renewed", ts=1_736_900_124_500)
    assert narrator.published_at("cert.renewed") == 1_736_900_124.5
    assert narrator.published_at("cert.revoked") is None


def test_json_lines_carry_the_fields() -> None:
    log, narrator, out = narrated(as_json=True)
    record(log, Line.POLL_UPDATES, count=2, cursor="1-0")
    narrator.title("text mode only")
    narrator.summary({"renewals": 1}, ["text mode only"])
    first, last = map(json.loads, out.getvalue().splitlines())
    assert first == {"at": 0.0, "who": "agent", "event": "polled", "count": "2", "cursor": "1-0"}
    assert last == {"event": "summary", "renewals": 1}


@pytest.mark.parametrize("as_json", [False, True])
def test_empty_polls_are_reported_in_json_only(as_json: bool) -> None:
    log, _, out = narrated(as_json)
    record(log, Line.POLL_NO_UPDATES, cursor="1-0")
    assert bool(out.getvalue()) is as_json


def test_warnings_are_reported_on_one_line() -> None:
    log, _, out = narrated(as_json=False)
    log.warning("the plane said \x1b[2J\nand more")
    log.info("unreported detail")
    assert out.getvalue() == "   0.00s  alert    the plane said \\x1b[2J\\nand more\n"


@pytest.mark.parametrize(
    ("who", "event", "routine", "reported"),
    [
        ("witness", "served", False, True),
        ("witness", "gone", False, True),
        ("agent", "reloaded", False, True),
        ("agent", "reloaded", True, False),
        ("plane", "renewed", False, False),
        ("agent", "polled", False, False),
        ("alert", "plan", False, True),
    ],
)
def test_only_results_and_failures_are_lines_of_text(who: str, event: str, routine: bool, reported: bool) -> None:
    _, narrator, out = narrated(as_json=False)
    narrator.write(who, event, "something", routine=routine)
    assert out.getvalue() == (f"   0.00s  {who:<8} something\n" if reported else "")
    _, narrator, out = narrated(as_json=True)
    narrator.write(who, event, "something", routine=routine, fact=1)
    assert json.loads(out.getvalue()) == {"fact": 1, "at": 0.0, "who": who, "event": event}


class Terminal(io.StringIO):
    """An output that says it is a terminal."""

    def isatty(self) -> bool:
        """Return that it is one."""
        return True


@pytest.mark.parametrize(
    ("out", "as_json", "term", "live"),
    [
        (Terminal(), False, "xterm", True),
        (Terminal(), False, "dumb", False),
        (Terminal(), True, "xterm", False),
        (io.StringIO(), False, "xterm", False),
    ],
)
def test_a_table_is_drawn_on_a_terminal_that_can_redraw(
    out: io.StringIO, as_json: bool, term: str, live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    with narrating(out, as_json=as_json, now=lambda: 5.0) as narrator:
        narrator.write("witness", "served", "a.test serves 01", name="a.test", serial="01", latency_ms=None)
        narrator.redraw()
        narrator.summary({}, ["the verdict"])
        narrator.redraw()
    assert ("\x1b[?25l" in out.getvalue()) is live
    last = out.getvalue().splitlines()[-1]
    assert last == ('{"event": "summary"}' if as_json else "the verdict")
    assert ("certificate" in out.getvalue()) is live


def test_rich_is_not_imported_for_a_pipe() -> None:
    code = (
        "import sys, time; from certctrl.sandbox.engine import narrating\n"
        "with narrating(sys.stdout, as_json=False, now=time.monotonic) as narrator: narrator.title('x')\n"
        "assert 'rich' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "x\n"), done.stderr
