"""Problems of a plane are reported once, keep their beginning, and end."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from certctrl.plane.health.problems import ProblemName, Problems


def test_a_problem_keeps_its_time_and_shows_its_last_text(caplog: pytest.LogCaptureFixture) -> None:
    clock = [100.0]
    problems = Problems(lambda: clock[0])
    with caplog.at_level(logging.INFO):
        problems.report(ProblemName.STORAGE, "disk full")
        clock[0] = 160.0
        problems.report(ProblemName.STORAGE, "disk still full")
        problems.report(ProblemName.OVERLOAD, "busy")
    assert [(problem.name, problem.what, problem.since) for problem in problems.now()] == [
        ("storage", "disk still full", 100.0), ("overload", "busy", 160.0),
    ]  # fmt: skip
    assert [record.message for record in caplog.records] == ["problem storage: disk full", "problem overload: busy"]


def test_a_cleared_problem_is_gone_and_may_return(caplog: pytest.LogCaptureFixture) -> None:
    problems = Problems(lambda: 1.0)
    with caplog.at_level(logging.INFO):
        problems.clear(ProblemName.STORAGE)
        assert not caplog.records, "there was none"
        problems.report(ProblemName.STORAGE, "disk full")
        problems.clear(ProblemName.STORAGE)
        assert not problems.now()
        problems.report(ProblemName.STORAGE, "disk full")
    assert [record.message for record in caplog.records][1:] == [
        "problem storage is over",
        "problem storage: disk full",
    ]


def test_a_stop_is_not_logged_as_an_error(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        Problems(lambda: 1.0).report(ProblemName.STOPPING, "asked to stop")
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_problems_that_prevent_readiness_come_first() -> None:
    clock = iter(range(10))
    problems = Problems(lambda: next(clock))
    for name in (ProblemName.DISK_LOW, ProblemName.STOPPING, ProblemName.DATABASE_AWAY):
        problems.report(name, "")
    shown = [problem.name for problem in problems.now()]
    assert shown == [ProblemName.STOPPING, ProblemName.DATABASE_AWAY, ProblemName.DISK_LOW]
    assert ProblemName.STOPPING in problems and ProblemName.STORAGE not in problems


def test_every_problem_has_a_summary_without_details() -> None:
    for name in ProblemName:
        assert name.summary[0].isupper() and "/" not in name.summary and len(name.summary) < 80


def test_the_protocol_lists_every_problem() -> None:
    page = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text(encoding="utf-8")
    listed = page.partition("Each of the `problems` has")[2].partition("\n\n")[0]
    unready, ready = listed.split("is not ready;")
    for name in ProblemName:
        assert f"`{name}`" in (unready if name.prevents_ready else ready)
