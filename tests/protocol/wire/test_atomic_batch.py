"""The reference to an atomic batch in signals and in the list of certificates."""

from __future__ import annotations

from typing import Any

import pytest

from certctrl.model.plan import Outcome, OutcomeKind
from certctrl.model.signals import AtomicBatch, CertRenewed, MalformedSignal, identity, to_wire
from certctrl.protocol.wire.certificates import certificate_from_wire
from certctrl.protocol.wire.signals import ack_event, signal_from_wire


def wire(batch: object, **ref: object) -> dict[str, Any]:
    return {"type": "cert.renewed", "ts_ms": 5, "ref": {"cert_id": 3, "serial": "0A", "batch": batch} | ref}


@pytest.mark.parametrize("batch", [
    {"id": "b-1", "size": 2}, {"id": "x", "size": 100}, {"id": "A" * 64, "size": 3}, {"id": "a._-9", "size": 4},
])  # fmt: skip
def test_a_batch_is_read_kept_and_reported_unchanged(batch: dict[str, Any]) -> None:
    signal = signal_from_wire(wire(batch))
    assert signal == CertRenewed(5, 3, "0A", batch=AtomicBatch(**batch))
    assert to_wire(signal) == wire(batch) and signal_from_wire(to_wire(signal)) == signal
    assert ack_event(signal, Outcome(kind=OutcomeKind.APPLIED), 1)["signal"] == wire(batch)


def test_what_the_plane_adds_to_a_batch_is_repeated() -> None:
    raw = wire({"id": "b", "size": 2, "future": [1]})
    signal = signal_from_wire(raw)
    assert isinstance(signal, CertRenewed) and signal.batch == AtomicBatch(id="b", size=2)
    assert to_wire(signal) == raw


def test_a_batch_is_not_part_of_the_identity() -> None:
    plain = signal_from_wire({"type": "cert.renewed", "ts_ms": 5, "ref": {"cert_id": 3}})
    assert identity(signal_from_wire(wire({"id": "b", "size": 2}))) == identity(plain)


@pytest.mark.parametrize("batch", [
    {}, {"id": "b"}, {"size": 2}, {"id": "b", "size": 1}, {"id": "b", "size": 101}, {"id": "b", "size": True},
    {"id": "b", "size": "x"}, {"id": "b", "size": 2.5}, {"id": "", "size": 2}, {"id": "x" * 65, "size": 2},
    {"id": "a b", "size": 2}, {"id": "../x", "size": 2}, {"id": "b\n", "size": 2}, {"id": "é", "size": 2},
    {"id": 7, "size": 2}, {"id": None, "size": 2}, [], "b", 7, True,
])  # fmt: skip
def test_a_renewal_with_an_unreadable_batch_is_malformed(batch: object) -> None:
    """It must not be switched alone: the next comparison announces it again."""
    assert isinstance(signal_from_wire(wire(batch)), MalformedSignal)


def test_null_means_no_batch() -> None:
    signal = signal_from_wire(wire(None))
    assert isinstance(signal, CertRenewed) and signal.batch is None


@pytest.mark.parametrize(("batch", "read"), [
    ({"id": "b", "size": 2}, AtomicBatch(id="b", size=2)), (None, None), ({"id": "b", "size": 1}, None), ("b", None),
    ([], None), ({"size": 3}, None),
])  # fmt: skip
def test_the_list_has_batches_and_survives_unreadable_ones(batch: object, read: AtomicBatch | None) -> None:
    row = {"id": 3, "domain_name": "www.example", "batch": batch}
    assert certificate_from_wire(row).batch == read
