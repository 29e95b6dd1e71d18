"""The catalogue of log lines: complete rows, and callers that pass every field."""

from __future__ import annotations

import ast
import logging
from pathlib import Path

import pytest

import certctrl
from certctrl.agent.log_lines import Line, log_line

SOURCES = sorted(Path(certctrl.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("line", Line, ids=lambda line: line.key)
def test_each_row_is_complete(line: Line) -> None:
    assert line.level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)
    assert line.category.isalpha() and line.category[0].isupper()
    assert line.meaning.endswith((".", "`.")) and line.action.endswith((".", "`."))
    assert line.text[0].isupper() or line.text.startswith("{")
    assert line.fields() == tuple(dict.fromkeys(line.fields())), "a field is named twice"
    if line.level >= logging.ERROR:
        assert line.action != "Nothing.", "an error without anything to do is no error"


def test_rows_are_distinct() -> None:
    assert len(Line) == len(Line.__members__)


def calls_of_log_line() -> list[tuple[str, str, set[str]]]:
    """Return (place, member, keywords) of every ``log_line(log, Line.X, …)`` in the package."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id != "log_line":
                continue
            member = node.args[1] if len(node.args) > 1 else None
            if isinstance(member, ast.Attribute) and isinstance(member.value, ast.Name) and member.value.id == "Line":
                keywords = {keyword.arg for keyword in node.keywords if keyword.arg}
                found.append((f"{path.name}:{node.lineno}", member.attr, keywords))
    return found


def test_callers_give_every_field() -> None:
    calls = calls_of_log_line()
    assert len(calls) > 30, "the walk no longer finds the calls"
    wrong = [
        f"{place}: {name} lacks {sorted(set(Line[name].fields()) - given)}"
        for place, name, given in calls
        if set(Line[name].fields()) - given
    ]
    assert not wrong


def test_every_row_is_used() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES if path.name != "log_lines.py")
    unused = [line.name for line in Line if f"Line.{line.name}" not in text]
    assert not unused, "remove the row, or write the line where it happens"


def test_the_category_is_the_logger(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="certctrl"):
        log_line(logging.getLogger("certctrl"), Line.POLL_REQUEST, cursor="1-5", wait=0, limit=20)
        log_line(logging.getLogger("certctrl.Poll"), Line.POLL_NO_UPDATES, cursor="1-5")
    assert [record.name for record in caplog.records] == ["certctrl.Poll", "certctrl.Poll"]
    assert caplog.records[0].getMessage() == "Request: cursor=1-5, wait=0, limit=20"
    assert caplog.records[0].line_key == "poll-request"
    assert caplog.records[0].line_fields == {"cursor": "1-5", "wait": 0, "limit": 20}


@pytest.mark.parametrize(("count", "text"), [(0, "0 outcomes"), (1, "1 outcome"), (2, "2 outcomes")])
def test_a_noun_agrees_with_its_number(caplog: pytest.LogCaptureFixture, count: int, text: str) -> None:
    with caplog.at_level(logging.DEBUG, logger="certctrl"):
        log_line(logging.getLogger("certctrl"), Line.ACKS_FAILED, count=count, why="503")
        log_line(logging.getLogger("certctrl"), Line.ACKS_SENT)
    assert caplog.messages == [f"{text} not reported: 503", "? outcomes reported"]


def test_a_missing_field_or_a_brace_never_raises(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="certctrl"):
        log_line(logging.getLogger("certctrl"), Line.TOKEN_EXPIRING)
        log_line(logging.getLogger("certctrl"), Line.ALERT, what="100% {of} them")
    assert caplog.messages == ["Access token expires in ? seconds", "100% {of} them"]


def test_a_disabled_level_formats_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Touchy:
        def __str__(self) -> str:
            raise AssertionError("formatted though switched off")

    with caplog.at_level(logging.WARNING, logger="certctrl"):
        log_line(logging.getLogger("certctrl"), Line.POLL_REQUEST, cursor=Touchy(), wait=0, limit=20)
    assert not caplog.records


SPEC_LINES = [
    (Line.POLL_REQUEST, {"cursor": "1736900000-5", "wait": 0, "limit": 20},
     "INFO", "Poll", "Request: cursor=1736900000-5, wait=0, limit=20"),
    (Line.POLL_NO_UPDATES, {"cursor": "1736900000-5"}, "INFO", "Poll", "Response: 204 No Content, cursor=1736900000-5"),
    (Line.POLL_UPDATES, {"count": 2, "cursor": "1736900123-42"},
     "INFO", "Poll", "Response: 200 OK, 2 signals, cursor=1736900123-42"),
    (Line.SIGNAL_PROCESSING, {"type": "install.updated", "ts": 1736900123421},
     "INFO", "Signal", "Processing: type=install.updated, ts=1736900123421"),
    (Line.INSTALL_FETCHING, {"config_id": 1234, "version": 6},
     "INFO", "Signal", "Fetching install config: config_id=1234, version=6"),
    (Line.INSTALL_APPLIED, {"version": 6, "changed": 0}, "INFO", "Signal", "Install config applied successfully"),
    (Line.CERT_UPDATED, {"cert_id": 9981, "name": "a", "serial": "04"}, "INFO", "Signal", "Certificate 9981 updated"),
    (Line.TOKEN_EXPIRING, {"seconds": 60}, "WARNING", "Token", "Access token expires in 60 seconds"),
    (Line.TOKEN_REFRESHED, {"expires_in": 900}, "INFO", "Token", "Token refresh successful, expires in 900s"),
    (Line.POLL_SLOW_DOWN, {"seconds": 30},
     "DEBUG", "Poll", "Server requested slow-down (Retry-After=30s); deferring next poll"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "fields", "level", "category", "text"), SPEC_LINES, ids=lambda value: str(value)[:30])
def test_the_specs_example_lines(
    line: Line, fields: dict[str, object], level: str, category: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="certctrl"):
        log_line(logging.getLogger("certctrl"), line, **fields)
    record = caplog.records[0]
    assert (record.levelname, record.name) == (level, f"certctrl.{category}")
    assert record.getMessage().startswith(text)
