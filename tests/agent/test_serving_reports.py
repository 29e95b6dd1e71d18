"""What the plane is told of endpoints: what is new, what must be repeated, how much at once."""

from __future__ import annotations

from typing import Any

import trio
from trio.testing import MockClock

from certctrl.agent.serving_reports import ENDPOINTS_PER_REQUEST, HEARTBEAT_SECONDS, ServingReports


def event(cert_id: int = 1, *reasons: str) -> dict[str, Any]:
    return {"cert_id": cert_id, "deployed": "0a", "endpoints": [{"endpoint": "e", "reason": one} for one in reasons]}


def told(reports: ServingReports) -> list[dict[str, Any]]:
    """Send all that is due."""
    found = []
    while events := reports.next(100):
        reports.sent(events)
        found += events
    return found


async def test_the_same_is_told_once_and_then_once_a_day(autojump_clock: MockClock) -> None:
    reports = ServingReports()
    for _ in range(3):
        reports.note(1, event(1, ""), 5.0)
    assert len(told(reports)) == 1
    reports.note(1, event(1, ""), 5.0)
    assert told(reports) == []
    await trio.sleep(HEARTBEAT_SECONDS)
    reports.note(1, event(1, ""), 5.0)
    assert len(told(reports)) == 1


async def test_a_change_and_a_deployment_are_told(autojump_clock: MockClock) -> None:
    reports = ServingReports()
    for one, applied in ((event(1, ""), 5.0), (event(1, "no-tls"), 5.0), (event(1, ""), 5.0), (event(1, ""), 6.0)):
        reports.note(1, one, applied)
        assert told(reports) == [one]


async def test_what_goes_back_before_it_was_told_is_not_told(autojump_clock: MockClock) -> None:
    reports = ServingReports()
    reports.note(1, event(1, ""), 5.0)
    told(reports)
    reports.note(1, event(1, "no-tls"), 5.0)
    reports.note(1, event(1, ""), 5.0)
    assert told(reports) == []


async def test_what_changes_while_it_is_sent_is_told_again(autojump_clock: MockClock) -> None:
    reports = ServingReports()
    reports.note(1, event(1, ""), 5.0)
    sending = reports.next(100)
    reports.note(1, event(1, "no-tls"), 5.0)
    reports.sent(sending)
    assert [one["endpoints"][0]["reason"] for one in told(reports)] == ["no-tls"]


async def test_what_goes_back_while_it_is_sent_is_told_again(autojump_clock: MockClock) -> None:
    for answered in (True, False):
        reports = ServingReports()
        reports.note(1, event(1, ""), 5.0)
        told(reports)
        reports.note(1, event(1, "no-tls"), 5.0)
        sending = reports.next(100)
        reports.note(1, event(1, ""), 5.0)
        if answered:
            reports.sent(sending)
        assert [one["endpoints"][0]["reason"] for one in told(reports)] == [""]
        reports.note(1, event(1, ""), 5.0)
        assert told(reports) == []


async def test_an_end_is_told_once_and_only_of_what_was_told(autojump_clock: MockClock) -> None:
    reports = ServingReports()
    reports.note(1, event(1), None)
    assert told(reports) == []
    reports.note(1, event(1, ""), 5.0)
    told(reports)
    for _ in range(3):
        reports.note(1, event(1), None)
        assert reports.known() == {1}
    assert len(told(reports)) == 1 and reports.known() == frozenset()
    reports.note(1, event(1), None)
    assert told(reports) == []


async def test_a_request_has_a_bounded_number_of_endpoints(autojump_clock: MockClock) -> None:
    reports = ServingReports()
    for cert_id in range(30):
        reports.note(cert_id, event(cert_id, *["no-tls"] * 64), 5.0)
    sizes = []
    while events := reports.next(100):
        sizes.append(sum(len(one["endpoints"]) for one in events))
        reports.sent(events)
    assert sum(sizes) == 30 * 64 and max(sizes) <= ENDPOINTS_PER_REQUEST
    for cert_id in range(250):
        reports.note(cert_id, event(cert_id), None)
    assert len(reports.next(10)) == 10


async def test_all_is_told_again_to_a_plane_that_learns_to_listen(autojump_clock: MockClock) -> None:
    reports = ServingReports()
    reports.note(1, event(1, ""), 5.0)
    told(reports)
    reports.forget()
    reports.note(1, event(1, ""), 5.0)
    assert len(told(reports)) == 1
