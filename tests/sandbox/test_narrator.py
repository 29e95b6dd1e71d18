"""The narrator reports the agent's log records, as text or as JSON."""

from __future__ import annotations

import io
import json
import logging
from string import Formatter

import pytest

from certctrl.agent.log_lines import Line
from certctrl.sandbox.narrator import AGENT_LINES, Narrator, NarratorHandler


def narrated(as_json: bool, *, colour: bool = False) -> tuple[logging.Logger, Narrator, io.StringIO]:
    out = io.StringIO()
    narrator = Narrator(out, as_json=as_json, colour=colour, now=lambda: 5.0)
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


def test_a_signal_is_reported_and_its_time_kept() -> None:
    log, narrator, out = narrated(as_json=False)
    record(log, Line.SIGNAL_PROCESSING, type="cert.renewed", ts=1_736_900_124_500)
    assert out.getvalue() == "   0.00s  agent    signal cert.renewed\n"
    assert narrator.published_at("cert.renewed") == 1_736_900_124.5
    assert narrator.published_at("cert.revoked") is None


def test_json_lines_carry_the_fields() -> None:
    log, narrator, out = narrated(as_json=True, colour=True)
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


def test_colour_marks_the_source() -> None:
    _, narrator, out = narrated(as_json=False, colour=True)
    narrator.write("plane", "issued", "issued")
    assert "\x1b[35m" in out.getvalue()
