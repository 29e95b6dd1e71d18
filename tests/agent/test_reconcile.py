"""The differences that a comparison with the plane finds, as a table."""

from __future__ import annotations

import attrs
import pytest

from certctrl.agent.reconcile import compare, compare_cas
from certctrl.model.certificate import CertFacts, CertificateSummary
from certctrl.model.records import CertRecord, Stage, Standing
from certctrl.model.signals import CaAssigned, CertRenewed, CertRevoked

HERE = CertRecord(
    facts=CertFacts(
        cert_id=1,
        name="a.example",
        serial="04:ab",
        fingerprint_sha256="aa",
        not_before=1_700_000_000.0,
        not_after=1_800_000_000.0,
    ),
    generation="g1",
    stage=Stage.ACTIVATED,
)
NEGATIVE = attrs.evolve(HERE, facts=attrs.evolve(HERE.facts, serial="-04:ab"))
UNKNOWN = attrs.evolve(HERE, facts=attrs.evolve(HERE.facts, serial=""))
NAMED = attrs.evolve(HERE, facts=attrs.evolve(HERE.facts, domains=("a.example",)))
THERE = CertificateSummary(id=1, domain_name="a.example", fingerprint_sha256="AA", serial_number="4AB", status="active")
NEWER = attrs.evolve(THERE, fingerprint_sha256="bb", not_before="2026-01-01T00:00:00Z")
OLDER = attrs.evolve(THERE, fingerprint_sha256="bb", not_before="2020-01-01T00:00:00Z")


@pytest.mark.parametrize(
    ("listed", "record", "expected"),
    [
        (THERE, HERE, None),
        (attrs.evolve(THERE, fingerprint_sha256=""), HERE, None),
        (attrs.evolve(THERE, fingerprint_sha256="", serial_number="1195"), HERE, None),
        (attrs.evolve(THERE, fingerprint_sha256="", serial_number="4ac"), HERE, CertRenewed),
        (attrs.evolve(THERE, fingerprint_sha256="", serial_number="-4ab"), NEGATIVE, None),
        (attrs.evolve(THERE, fingerprint_sha256="", serial_number="fb:55"), NEGATIVE, None),
        (attrs.evolve(THERE, fingerprint_sha256="", serial_number="4ab"), NEGATIVE, CertRenewed),
        (attrs.evolve(THERE, fingerprint_sha256="", serial_number=""), UNKNOWN, None),
        (attrs.evolve(THERE, fingerprint_sha256=""), UNKNOWN, CertRenewed),
        (NEWER, HERE, CertRenewed),
        (THERE, None, CertRenewed),
        (THERE, attrs.evolve(HERE, generation=""), CertRenewed),
        (THERE, attrs.evolve(HERE, stage=Stage.COMMITTED), CertRenewed),
        (attrs.evolve(THERE, status="revoked"), HERE, CertRevoked),
        (attrs.evolve(THERE, status="revoked"), None, None),
        (attrs.evolve(THERE, status="pending"), None, None),
        (attrs.evolve(THERE, status="expired"), HERE, None),
        (None, HERE, None),
        (attrs.evolve(NEWER, domain_name="b.example"), NAMED, None),
        (attrs.evolve(NEWER, domain_name="b.example", sans=("A.example",)), NAMED, CertRenewed),
        (attrs.evolve(THERE, domain_name="b.example", status="revoked"), NAMED, None),
        (OLDER, attrs.evolve(HERE, standing=Standing.FOREIGN), CertRenewed),
        (None, attrs.evolve(HERE, generation=""), None),
        (OLDER, HERE, None),
    ],
)
def test_each_difference_becomes_one_signal(
    listed: CertificateSummary | None, record: CertRecord | None, expected: type | None
) -> None:
    found = compare([listed] if listed else [], {1: record} if record else {}, 5)
    assert [type(signal) for signal in found.signals] == ([expected] if expected else [])


def test_a_missing_certificate_is_unlisted_unless_the_plane_is_behind() -> None:
    gone = attrs.evolve(HERE, facts=attrs.evolve(HERE.facts, cert_id=2, name="b.example"))
    found = compare([OLDER], {1: HERE, 2: gone}, 5)
    assert found.signals == ()
    assert len(found.behind) == 1
    assert found.standings == {1: Standing.KNOWN}
    assert compare([THERE], {1: HERE, 2: gone}, 5, behind=["install config"]).standings == {1: Standing.KNOWN}
    found = compare([THERE], {1: HERE, 2: gone}, 5)
    assert (found.signals, found.standings) == ((), {1: Standing.KNOWN, 2: Standing.UNLISTED})


@pytest.mark.parametrize(
    ("listed", "before", "after"),
    [
        (THERE, Standing.UNLISTED, Standing.KNOWN),
        (THERE, Standing.UNASSIGNED, Standing.KNOWN),
        (THERE, Standing.FOREIGN, Standing.KNOWN),
        (NEWER, Standing.FOREIGN, None),
        (attrs.evolve(THERE, domain_name="b.example"), Standing.KNOWN, Standing.FOREIGN),
        (None, Standing.KNOWN, Standing.UNLISTED),
        (None, Standing.UNASSIGNED, None),
        (None, Standing.FOREIGN, None),
        (None, Standing.UNLISTED, None),
    ],
)
def test_the_list_decides_what_the_plane_knows(
    listed: CertificateSummary | None, before: Standing, after: Standing | None
) -> None:
    found = compare([listed] if listed else [], {1: attrs.evolve(NAMED, standing=before)}, 5)
    assert found.standings == ({1: after} if after else {})


def test_cas_are_compared_by_id_and_only_if_the_plane_has_a_list() -> None:
    assert compare_cas(None, {1, 2}, 5) == ()
    assert compare_cas({1: "a"}, {1}, 5) == ()
    assert compare_cas({1: "a", 3: ""}, {1, 2}, 5) == (CaAssigned(ts_ms=5, ca_id=3, ca_name=None),)
