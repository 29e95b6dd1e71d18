"""The sandbox's verdict: everything issued was served, no mixed pair, revoked certificates gone."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.sandbox.report import Report, percentile

VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=50)


@given(VALUES, st.floats(0.01, 1))
def test_a_percentile_is_a_value_with_enough_below(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= math.ceil(share * len(values))
    assert sum(value < found for value in values) < math.ceil(share * len(values))


def test_no_values_have_no_percentile() -> None:
    assert percentile([], 0.5) is None


def successful() -> Report:
    both = {(1, "a"), (2, "b")}
    return Report(issued=set(both), served=set(both), revocations=1, withdrawn=1, pair_checks=10, service="nginx")


def test_a_successful_run_has_no_problem() -> None:
    assert successful().problems() == []
    assert successful().as_json()["latency_ms"] == {"count": 0, "p50": None, "p99": None, "max": None}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"issued": {(1, "a"), (2, "b"), (2, "0c")}}, "serial 0c, was issued but never served"),
        ({"issued": set(), "served": set()}, "nothing was served"),
        ({"withdrawn": 0}, "still served"),
        ({"mismatches": 1, "first_mismatch": "app1: torn"}, "app1: torn"),
        ({"pair_checks": 0}, "never compared"),
    ],
)
def test_each_failure_is_named(change: dict[str, object], problem: str) -> None:
    report = successful()
    for name, value in change.items():
        setattr(report, name, value)
    assert any(problem in sentence for sentence in report.problems())
    assert any(problem in sentence for sentence in report.sentences())


def test_the_verdict_is_last() -> None:
    report = successful()
    assert report.sentences()[-1] == "PASSED, every certificate that was issued was also served."
    assert report.sentences(interrupted=True)[-1].startswith("Interrupted. Until then: PASSED")
    report.withdrawn = 0
    assert report.sentences()[-1] == "FAILED, 1 problem."
    assert report.sentences(interrupted=True)[-1] == "Interrupted. Until then: FAILED, 1 problem."


def test_many_problems_are_cut_in_text_only() -> None:
    report = successful()
    report.issued |= {(number, "ab" * 20) for number in range(3, 103)}
    assert len(report.problems()) == 100
    assert all("ab" * 20 in problem for problem in report.problems())
    problems = [sentence for sentence in report.sentences() if sentence.startswith("Problem: ")]
    assert problems[0] == "Problem: certificate 3, serial ab:ab…ab:ab, was issued but never served."
    assert len(problems) == 5
    assert report.sentences()[-1] == "FAILED, 100 problems, the first 5 above."


def test_latencies_are_reported() -> None:
    report = successful()
    report.latencies_ms = [10.0, 20.0, 400.0]
    assert report.as_json()["latency_ms"] == {"count": 3, "p50": 20.0, "p99": 400.0, "max": 400.0}
    assert any("p50 20 ms, p99 400 ms (3 renewals)" in sentence for sentence in report.sentences())


def test_the_baseline_is_reported_too() -> None:
    report = successful()
    report.latencies_ms, report.baseline_ms = [30.0], [5.0, 6.0, 7.0]
    assert report.as_json()["floor_ms"] == {"count": 3, "p50": 6.0, "p99": 7.0, "max": 7.0}
    assert any("Baseline" in sentence and "p50 6 ms, p99 7 ms" in sentence for sentence in report.sentences())
