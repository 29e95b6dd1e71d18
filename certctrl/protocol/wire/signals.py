"""Signals in, acks out (spec "Signal Types"; api.md §3 and §5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from certctrl.model.plan import Outcome
from certctrl.model.signals import (
    CaAssigned,
    CaUnassigned,
    CertRenewed,
    CertRevoked,
    CertUnassigned,
    InstallUpdated,
    MalformedSignal,
    ResyncRequired,
    Signal,
    UnknownSignal,
    to_wire,
)
from certctrl.protocol.wire.reader import SAFE_INT, Misfit, Reader, integer_of, kind_of

MAX_TS_MS = 253_402_300_799_999
_TYPE_LIMIT = 128
_SERIAL_LIMIT = 256


def _install_updated(ts_ms: int, ref: Reader) -> Signal:
    return InstallUpdated(
        ts_ms,
        ref.integer("config_id", ge=1),
        ref.integer("version", le=SAFE_INT),
        ref.maybe_text("installs_hash_b64", "installs_hash", limit=_SERIAL_LIMIT),
    )


def _cert(cls: type[CertRenewed | CertRevoked | CertUnassigned]) -> Callable[[int, Reader], Signal]:
    def build(ts_ms: int, ref: Reader) -> Signal:
        return cls(ts_ms, ref.integer("cert_id", ge=1), ref.maybe_text("serial", limit=_SERIAL_LIMIT))

    return build


def _ca(cls: type[CaAssigned | CaUnassigned]) -> Callable[[int, Reader], Signal]:
    def build(ts_ms: int, ref: Reader) -> Signal:
        return cls(
            ts_ms,
            ref.integer("ca_id", ge=1),
            ref.maybe_text("serial", limit=_SERIAL_LIMIT),
            ref.maybe_text("ca_name", limit=_SERIAL_LIMIT),
        )

    return build


def _resync(ts_ms: int, ref: Reader) -> Signal:
    reason = ref.raw.get("reason")  # a comment for people: no reason to refuse the order itself
    return ResyncRequired(ts_ms, reason if isinstance(reason, str) and reason else None)


_BUILDERS: dict[str, Callable[[int, Reader], Signal]] = {
    InstallUpdated.type: _install_updated,
    CertRenewed.type: _cert(CertRenewed),
    "cert.updated": _cert(CertRenewed),
    CertRevoked.type: _cert(CertRevoked),
    CertUnassigned.type: _cert(CertUnassigned),
    CaAssigned.type: _ca(CaAssigned),
    CaUnassigned.type: _ca(CaUnassigned),
    ResyncRequired.type: _resync,
}


def signal_from_wire(raw: object) -> Signal:
    """Return a signal from one element of a page or of the inbox; never raises.

    What does not fit its schema becomes a ``MalformedSignal``, an unknown type an ``UnknownSignal``.
    ``signal_from_wire(to_wire(signal)) == signal`` for everything but the reason of a malformed one.
    """
    if not isinstance(raw, dict):
        return MalformedSignal("", 0, {}, f"expected an object, got {kind_of(raw)}")
    name, ref = raw.get("type"), raw.get("ref")
    raw_ref: dict[str, Any] = ref if isinstance(ref, dict) else {}
    if not isinstance(name, str) or not 0 < len(name) <= _TYPE_LIMIT or not name.isprintable():
        return MalformedSignal("", 0, raw_ref, f"type: expected 1 to {_TYPE_LIMIT} printable characters")
    try:
        # 0 is no time: a malformed one is kept as 0 and must stay malformed when read back
        ts_ms = integer_of(raw.get("ts_ms"), "ts_ms", ge=1, le=MAX_TS_MS)
    except Misfit as misfit:
        return MalformedSignal(name, 0, raw_ref, str(misfit))
    build = _BUILDERS.get(name)
    if build is None:
        return UnknownSignal(name, ts_ms, raw_ref)
    try:
        return build(ts_ms, Reader(raw_ref, "ref"))
    except Misfit as misfit:
        return MalformedSignal(name, ts_ms, raw_ref, str(misfit))


def ack_event(signal: Signal, outcome: Outcome, duration_ms: int) -> dict[str, Any]:
    """Return the notify event that reports the outcome of a signal (api.md §5)."""
    event: dict[str, Any] = {"type": "signal.ack", "signal": to_wire(signal), "outcome": outcome.kind.value}
    if outcome.detail:
        event["detail"] = outcome.detail
    if outcome.deployed:
        event["deployed"] = [
            {
                "cert_id": one.cert_id,
                "serial": one.serial,
                "fingerprint_sha256": one.fingerprint_sha256,
                "targets": list(one.targets),
            }
            for one in outcome.deployed
        ]
    event["duration_ms"] = max(0, int(duration_ms))
    return event
