"""Line formats, handlers, escaping and redaction of logs."""

from __future__ import annotations

import json
import logging
import re
import sys
import unicodedata
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.agent.log_lines import Line, log_line
from certctrl.errors import ConfigError
from certctrl.logs.setup import JsonFormatter, Logs, TextFormatter, log_for_command
from certctrl.model.config import LogConfig
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir

AT = 1_759_470_356.75  # 2025-10-03 05:45:56.75 UTC


def made(
    message: Any, *args: Any, level: int = logging.INFO, name: str = "certctrl.Poll", **extra: Any
) -> logging.LogRecord:
    record = logging.LogRecord(name, level, __file__, 1, message, args, None)
    record.created = AT
    record.__dict__.update(extra)
    return record


def test_the_line_format_of_the_specification() -> None:
    line = TextFormatter().format(made("Request: cursor=%s, wait=0, limit=20", "1736900000-5"))
    assert line == "[2025-10-03 05:45:56] [INFO] [Poll] Request: cursor=1736900000-5, wait=0, limit=20"


@pytest.mark.parametrize(
    ("level", "word", "priority"),
    [(10, "DEBUG", 7), (20, "INFO", 6), (30, "WARN", 4), (40, "ERROR", 3), (50, "CRITICAL", 2), (35, "LEVEL35", 6)],
)
def test_level_words_and_journal_priorities(level: int, word: str, priority: int) -> None:
    record = made("x", level=level)
    assert f"] [{word}] [" in TextFormatter().format(record)
    assert TextFormatter(journald=True).format(record).startswith(f"<{priority}>[2025-")
    assert JsonFormatter(journald=True).format(record).startswith(f"<{priority}>{{")
    assert record.levelname != "WARN", "other handlers see the record unchanged"


@given(st.text(), st.text())
def test_any_record_is_one_line(message: str, name: str) -> None:
    record = made("%s", message, name=name)
    for formatter in (TextFormatter(), JsonFormatter()):
        line = formatter.format(record)
        assert len(line.splitlines()) == 1
        assert not any(unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") for c in line)
        line.encode("utf-8")


def test_a_server_cannot_forge_a_line() -> None:
    line = TextFormatter().format(
        made("refused: %s", "x\n[2025-10-03 05:45:57] [INFO] [Token] Token refresh successful")
    )
    assert line.count("\n") == 0 and "\\n[2025" in line


def test_secrets_are_masked_in_messages_and_fields() -> None:
    token = "rt_271f3eca9daa6b1a317a89cac16d38b0.OEftln9mNb7H"
    record = made("got %s", token, line_key="k", line_fields={"why": f"because {token}", "n": 3, "none": None})
    assert token not in TextFormatter().format(record)
    entry = json.loads(JsonFormatter().format(record))
    assert (entry["message"], entry["why"], entry["n"], entry["none"]) == ("got [secret]", "because [secret]", 3, None)


def test_json_lines_carry_key_and_fields() -> None:
    record = made("Response", line_key="poll-updates", line_fields={"count": 2, "cursor": "1-2", "time": "forged"})
    assert json.loads(JsonFormatter().format(record)) == {
        "time": "2025-10-03T05:45:56.750+00:00",
        "level": "INFO",
        "category": "Poll",
        "message": "Response",
        "key": "poll-updates",
        "count": 2,
        "cursor": "1-2",
    }


def test_an_exception_shows_type_and_place_but_no_value() -> None:
    try:
        raise KeyError("private value")
    except KeyError:
        record = made("Failed", exc_info=sys.exc_info())
    line = TextFormatter().format(record)
    assert re.search(r"Failed \(KeyError at .*test_setup:\d+\)$", line)
    assert "private value" not in line and "Traceback" not in line


def test_a_wrong_format_string_does_not_lose_the_line() -> None:
    assert TextFormatter().format(made("%d items", "many")).endswith("%d items (unprintable: TypeError)")


def test_a_long_message_is_cut() -> None:
    line = TextFormatter().format(made("x" * 100_000))
    assert len(line) < 4200 and line.endswith("… (96000 more characters)")


@pytest.fixture
def logs(layout: ConfigDir) -> Logs:
    return Logs(layout, RealFs())


def test_lines_go_to_stderr_and_file(logs: Logs, layout: ConfigDir, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogConfig(file="agent.log"))
    log_line(logging.getLogger("certctrl"), Line.POLL_NO_UPDATES, cursor="1-5")
    log_line(logging.getLogger("certctrl"), Line.POLL_SLOW_DOWN, seconds=30)
    logs.close()
    err, file = capsys.readouterr().err, (layout.logs / "agent.log").read_text()
    assert err == file
    assert re.fullmatch(r"\[[-\d]+ [:\d]+\] \[INFO\] \[Poll\] Response: 204 No Content, cursor=1-5\n", err)
    assert (layout.logs / "agent.log").stat().st_mode & 0o777 == 0o600


def test_reconfiguring_replaces_everything(logs: Logs, layout: ConfigDir, capsys: pytest.CaptureFixture[str]) -> None:
    before = logging.getLogger().handlers[:]
    logs.configure(LogConfig(file="a.log"))
    logs.configure(LogConfig(level="DEBUG", format="json", stderr=False, file="b.log"))
    log_line(logging.getLogger("certctrl"), Line.POLL_SLOW_DOWN, seconds=30)
    logs.close()
    assert capsys.readouterr().err == ""
    assert not (layout.logs / "a.log").exists()
    assert json.loads((layout.logs / "b.log").read_text())["seconds"] == 30
    assert logging.getLogger().handlers == before


def test_debug_overrides_the_configured_level(layout: ConfigDir, capsys: pytest.CaptureFixture[str]) -> None:
    logs = Logs(layout, RealFs(), debug=True)
    logs.configure(LogConfig(level="ERROR"))
    log_line(logging.getLogger("certctrl"), Line.POLL_SLOW_DOWN, seconds=30)
    logs.close()
    assert "[DEBUG] [Poll]" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["httpx", "httpcore", "h11"])
def test_chatty_libraries_are_quiet(name: str, logs: Logs, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogConfig(level="DEBUG"))
    logging.getLogger(f"{name}.client").info("HTTP Request: GET https://plane/?token=x")
    logging.getLogger(name).warning("trouble")
    logs.close()
    assert "trouble" in (err := capsys.readouterr().err) and "token=x" not in err


@pytest.mark.parametrize("file", ["/var/log/x.log", "../x.log", "sub/x.log"])
def test_a_log_file_stays_in_its_directory(file: str, logs: Logs) -> None:
    with pytest.raises(ConfigError, match="plain file name"):
        logs.configure(attrs.evolve(LogConfig(), file=file))


def test_a_closed_stderr_is_ignored(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        def write(self, _text: str) -> None:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    logs.configure(LogConfig())
    logging.getLogger("certctrl.Poll").error("x")
    logs.close()


def test_one_shot_commands_log_only_warnings_and_once(capsys: pytest.CaptureFixture[str]) -> None:
    log_for_command(debug=False)
    log_for_command(debug=False)
    logging.getLogger("certctrl.Install").info("done")
    logging.getLogger("certctrl.Install").warning("careful")
    assert [line[22:] for line in capsys.readouterr().err.splitlines()] == ["[WARN] [Install] careful"]


@pytest.mark.parametrize(
    ("verbosity", "written"), [(1, ["INFO", "WARN", "ERROR"]), (0, ["WARN", "ERROR"]), (-1, ["ERROR"])]
)
def test_a_command_logs_as_much_as_was_asked_for(
    verbosity: int, written: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    last = log_for_command(debug=False, verbosity=verbosity)
    log = logging.getLogger("certctrl.Install")
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        log.log(level, "step %d", level)
    lines = capsys.readouterr().err.splitlines()
    assert [line[22:].partition("]")[0].strip("[") for line in lines] == written
    assert last.text == "step 40", "what is not written is still shown as progress"


@pytest.mark.parametrize(("verbosity", "level"), [(1, logging.DEBUG), (0, logging.INFO), (-1, logging.ERROR)])
def test_the_daemon_logs_as_much_as_was_asked_for(logs: Logs, verbosity: int, level: int) -> None:
    made = Logs(logs._layout, logs._fs, verbosity=verbosity)
    made.configure(LogConfig())
    assert logging.getLogger("certctrl").level == level
    made.close()
