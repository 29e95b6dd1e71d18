"""The expiry guard's rules as tables."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from certctrl.agent.expiry import RenewalRequests, Urgency, find_expiring, next_check, time_left, warn_below
from certctrl.model.certificate import CertFacts
from certctrl.model.config import ApplicationConfig
from certctrl.model.records import CertRecord, Stage

DAY = 86_400.0
CONFIG = ApplicationConfig()


def record(life_days: float, *, generation: str = "g1", stage: Stage = Stage.ACTIVATED) -> CertRecord:
    return CertRecord(
        facts=CertFacts(cert_id=1, name="a.example", serial="01", not_before=0.0, not_after=life_days * DAY),
        generation=generation,
        stage=stage,
    )


@pytest.mark.parametrize(
    ("life", "now", "urgency"),
    [
        (90, 59.9, None),
        (90, 60.1, Urgency.DUE),
        (90, 74.9, Urgency.DUE),
        (90, 75.1, Urgency.LATE),
        (90, 90.1, Urgency.EXPIRED),
        (10, 4.9, None),
        (10, 5.1, Urgency.DUE),
        (1, 0.4, None),
        (1, 0.6, Urgency.DUE),
    ],
)
def test_urgency_by_remaining_lifetime(life: float, now: float, urgency: Urgency | None) -> None:
    found = find_expiring([record(life)], CONFIG, now * DAY)
    assert [finding.urgency for finding in found] == ([] if urgency is None else [urgency])


def test_certificates_out_of_use_are_not_watched() -> None:
    idle = [record(1, generation=""), record(1, stage=Stage.WITHDRAWN)]
    assert find_expiring(idle, CONFIG, 5 * DAY) == []
    assert next_check(idle, CONFIG, 0.0) == 3600.0


@given(st.floats(0.01, 400), st.floats(0, 500))
@example(0.01, 0.005)  # the very moment
def test_the_next_check_is_in_time_and_never_a_busy_loop(life: float, now: float) -> None:
    certificate = record(life)
    pause = next_check([certificate], CONFIG, now * DAY)
    assert 1.0 <= pause <= 3600.0
    before = find_expiring([certificate], CONFIG, now * DAY)
    just_before = find_expiring([certificate], CONFIG, now * DAY + pause - 1.0)
    assert [f.urgency for f in before] == [f.urgency for f in just_before] or pause == 1.0


def test_the_warning_covers_at_most_half_of_a_short_lifetime() -> None:
    assert warn_below(record(2), CONFIG) == DAY


def test_a_renewal_is_requested_once_and_again_only_later() -> None:
    requests = RenewalRequests()
    finding = find_expiring([record(90)], CONFIG, 61 * DAY)[0]
    assert requests.due(finding, 61 * DAY)
    requests.record(finding, 61 * DAY)
    assert not requests.due(finding, 61 * DAY + 60)
    assert requests.due(finding, 61 * DAY + 6 * 3600)


def test_a_renewal_that_ends_with_the_same_issuer_is_not_requested_immediately() -> None:
    """Otherwise hosts would request renewals as fast as the CA issues them, until its certificate has ended."""
    requests = RenewalRequests()
    (finding,) = find_expiring([record(90)], CONFIG, 89 * DAY)
    requests.record(finding, 0.0)
    no_better = attrs.evolve(finding.record, facts=attrs.evolve(finding.record.facts, serial="02"))
    assert not requests.due(attrs.evolve(finding, record=no_better), 60.0)
    assert requests.due(attrs.evolve(finding, record=no_better), 6 * 3600.0)
    later = attrs.evolve(no_better, facts=attrs.evolve(no_better.facts, not_after=91 * DAY))
    assert requests.due(attrs.evolve(finding, record=later), 60.0)


def test_a_renewal_requested_while_the_clock_was_ahead_is_requested_again() -> None:
    requests = RenewalRequests()
    (finding,) = find_expiring([record(90)], CONFIG, 80 * DAY)
    requests.record(finding, 3650 * DAY)
    assert requests.due(finding, 80 * DAY)


def test_a_refused_request_is_repeated_sooner() -> None:
    requests = RenewalRequests()
    (finding,) = find_expiring([record(90)], CONFIG, 80 * DAY)
    requests.record(finding, 80 * DAY, accepted=False)
    assert not requests.due(finding, 80 * DAY + 60)
    assert requests.due(finding, 80 * DAY + 3600)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(30 * DAY, "30.0 days"), (1.5 * DAY, "36.0 hours"), (3600, "60 minutes"), (100, "2 minutes"), (-5, "0 minutes")],
)
def test_a_remaining_lifetime_has_a_suitable_unit(seconds: float, text: str) -> None:
    assert time_left(seconds) == text
