"""What a plane sends must not make the figures of one run grow."""

from __future__ import annotations

from certctrl.agent.counters import UNKNOWN_TYPE, Counters
from certctrl.model.plan import OutcomeKind
from certctrl.model.signals import KNOWN_TYPES, CertRenewed, MalformedSignal, UnknownSignal
from certctrl.protocol.wire.signals import signal_from_wire


def test_unknown_types_are_one_label() -> None:
    counters = Counters()
    for n in range(45_000):
        counters.signal_ended(UnknownSignal(f"x{n}", 1, {}), OutcomeKind.IGNORED, 0.0)
        counters.signal_ended(MalformedSignal(f"y{n}", 1, {}, "why"), OutcomeKind.FAILED, 0.0)
    counters.signal_ended(CertRenewed(1, 7), OutcomeKind.APPLIED, 0.0)
    counters.signal_ended(
        signal_from_wire({"type": "cert.updated", "ts_ms": 1, "ref": {"cert_id": 7}}), OutcomeKind.APPLIED, 0.0
    )
    counters.signal_ended(MalformedSignal("cert.renewed", 1, {}, "why"), OutcomeKind.FAILED, 0.0)
    assert counters.signals == {
        (UNKNOWN_TYPE, "ignored"): 45_000,
        (UNKNOWN_TYPE, "failed"): 45_000,
        ("cert.renewed", "applied"): 2,
        ("cert.renewed", "failed"): 1,
    }
    assert set(counters.signal_seconds) == {UNKNOWN_TYPE, "cert.renewed"}
    assert UNKNOWN_TYPE not in KNOWN_TYPES
