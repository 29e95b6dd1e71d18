"""The class of each signal: named by the plane, or that of its type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from certctrl.model import priority
from certctrl.model.priority import Priority, derived_priority, priority_named, types_of
from certctrl.model.signals import (
    KNOWN_TYPES,
    CaAssigned,
    CertRenewed,
    CertRevoked,
    CertUnassigned,
    CsrWanted,
    InstallUpdated,
    MalformedSignal,
    ResyncRequired,
    UnknownSignal,
    priority_of,
)


def test_only_known_types_have_a_class_of_their_own() -> None:
    assert priority._BY_TYPE.keys() < KNOWN_TYPES
    assert KNOWN_TYPES - priority._BY_TYPE.keys() == {"cert.renewed"}


@pytest.mark.parametrize(
    ("signal", "wanted"),
    [
        (CertRevoked(1, 7), Priority.REVOCATION),
        (CertUnassigned(1, 7), Priority.REVOCATION),
        (CsrWanted(1, 7, 3), Priority.EXPIRING),
        (CertRenewed(1, 7), Priority.RENEWAL),
        (InstallUpdated(1), Priority.CONFIG),
        (CaAssigned(1, 7), Priority.CONFIG),
        (ResyncRequired(1), Priority.CONFIG),
        (UnknownSignal("x", 1, {}), Priority.RENEWAL),
        (MalformedSignal("cert.revoked", 1, {}, "why"), Priority.RENEWAL),
    ],
)
def test_without_a_name_the_type_decides(signal: Any, wanted: Priority) -> None:
    assert priority_of(signal) is wanted


@pytest.mark.parametrize("kind", [CertRenewed, CertUnassigned])
def test_the_named_class_counts(kind: Callable[..., Any]) -> None:
    for one in Priority:
        assert priority_of(kind(1, 7, sent_priority=one)) is one


def test_a_revocation_stays_one() -> None:
    assert priority_of(CertRevoked(1, 7, sent_priority=Priority.CONFIG)) is Priority.REVOCATION


@pytest.mark.parametrize("name", ["", "urgent", "REVOCATION", 1, None, True, [], {}, ["renewal"], "renewal\n"])
def test_other_names_and_types_are_none(name: object) -> None:
    assert priority_named(name) is None


def test_each_type_is_of_one_class() -> None:
    for one in Priority:
        assert all(derived_priority(name) is one for name in types_of(one))
    assert types_of(Priority.RENEWAL) == ()
    assert derived_priority("cert.renewed") is derived_priority("something.new") is Priority.RENEWAL
