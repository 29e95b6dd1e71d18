"""Signals in, acks out (spec "Signal Types")."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, TypeVar

import attrs

from certctrl.model.challenges import MAX_IDENTIFIER, identifier_fault, key_authorization_fault, token_fault
from certctrl.model.plan import Outcome
from certctrl.model.priority import priority_named
from certctrl.model.signals import (
    IDENTITY_FIELDS,
    MAX_IN_BATCH,
    AcmeHttp01Start,
    AcmeHttp01Stop,
    AcmeTlsAlpn01Start,
    AcmeTlsAlpn01Stop,
    AtomicBatch,
    CaAssigned,
    CaUnassigned,
    CertRenewed,
    CertRevoked,
    CertUnassigned,
    ChallengeStart,
    ChallengeStop,
    CsrWanted,
    InstallUpdated,
    KnownSignal,
    MalformedSignal,
    ResyncRequired,
    SentAs,
    Signal,
    UnknownSignal,
    to_wire,
)
from certctrl.protocol.wire.reader import SAFE_INT, Misfit, Read, alias, integer, or_default, text, wire_class
from certctrl.text import kind_of

MAX_TS_MS = 253_402_300_799_999
_TYPE_LIMIT = 128
_NAME_LIMIT = 256
_REF_LIMIT = 4096
"""Characters of a ``ref`` as JSON that an ack repeats exactly; of a larger ``ref`` it repeats the known fields only."""
_REF_VALUES = 32
"""Likewise: values, about."""

_timestamp = integer(ge=1, le=MAX_TS_MS)  # 0 marks a malformed signal and must stay malformed when read back
_id = integer(ge=1)
_name = text(_NAME_LIMIT)
_NEVER_READ = ("sent_as", "sent_priority")
_BATCH_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_Challenge = TypeVar("_Challenge", bound=ChallengeStart | ChallengeStop)


def _cert(cls: type[CertRevoked | CertUnassigned]) -> Read[KnownSignal]:
    return wire_class(cls, {"cert_id": _id, "serial": _name}, omit=_NEVER_READ)


def _batch_id(value: Any, _: Any = None) -> str:
    if not isinstance(value, str) or not _BATCH_ID.fullmatch(value):
        raise Misfit("expected 1 to 64 of the characters A-Z a-z 0-9 . _ -")
    return value


atomic_batch = wire_class(AtomicBatch, {"id": _batch_id, "size": integer(ge=2, le=MAX_IN_BATCH)})
"""Reads the reference to a batch; strict: a renewal of a batch that cannot be read must not be switched alone."""


def _ca(cls: type[CaAssigned | CaUnassigned]) -> Read[KnownSignal]:
    return wire_class(cls, {"ca_id": _id, "serial": _name, "ca_name": _name}, omit=_NEVER_READ)


def _start(cls: type[ChallengeStart]) -> Read[KnownSignal]:
    fields = {"key_authorization": _name, "identifier": text(MAX_IDENTIFIER), "expires_ms": _timestamp}
    return wire_class(cls, {"token": _name, **fields}, omit=_NEVER_READ, check=_checked)


def _stop(cls: type[ChallengeStop]) -> Read[KnownSignal]:
    return wire_class(cls, {"token": _name}, omit=_NEVER_READ, check=_checked_token)


def _checked(signal: ChallengeStart) -> ChallengeStart:
    """Refuse values that cannot be a challenge's, because the token becomes a file name."""
    _checked_token(signal)
    if fault := key_authorization_fault(signal.token, signal.key_authorization):
        raise Misfit(fault, ".key_authorization")
    if fault := identifier_fault(signal.identifier):
        raise Misfit(fault, ".identifier")
    return signal


def _checked_token(signal: _Challenge) -> _Challenge:
    if fault := token_fault(signal.token):
        raise Misfit(fault, ".token")
    return signal


_renewed = wire_class(CertRenewed, {"cert_id": _id, "serial": _name}, omit=_NEVER_READ)
_BY_TYPE: dict[str, Read[KnownSignal]] = {
    InstallUpdated.type: wire_class(
        InstallUpdated,
        {"config_id": integer(), "version": integer(le=SAFE_INT), "installs_hash_b64": _name},
        omit=_NEVER_READ,
        prepare=alias("installs_hash_b64", "installs_hash"),
    ),
    CertRenewed.type: _renewed,
    "cert.updated": _renewed,
    CertRevoked.type: _cert(CertRevoked),
    CertUnassigned.type: _cert(CertUnassigned),
    CsrWanted.type: wire_class(
        CsrWanted, {"cert_id": _id, "order_id": _id, "expires_ms": integer(le=MAX_TS_MS)}, omit=_NEVER_READ
    ),
    CaAssigned.type: _ca(CaAssigned),
    CaUnassigned.type: _ca(CaUnassigned),
    AcmeHttp01Start.type: _start(AcmeHttp01Start),
    AcmeHttp01Stop.type: _stop(AcmeHttp01Stop),
    AcmeTlsAlpn01Start.type: _start(AcmeTlsAlpn01Start),
    AcmeTlsAlpn01Stop.type: _stop(AcmeTlsAlpn01Stop),
    ResyncRequired.type: wire_class(ResyncRequired, {"reason": or_default(text())}, omit=_NEVER_READ),
}


def signal_from_wire(raw: object) -> Signal:
    """Return a signal from one element of a page or of the inbox; never raises.

    One that does not fit its schema becomes a ``MalformedSignal``, one of an unknown type an ``UnknownSignal``.
    ``signal_from_wire(to_wire(signal)) == signal``, except for the reason of a malformed one; `to_state` also keeps the
    priority. An unknown priority counts as absent.
    """
    if not isinstance(raw, dict):
        return MalformedSignal("", 0, {}, f"expected an object, got {kind_of(raw)}")
    name, ref = raw.get("type"), raw.get("ref")
    raw_ref: dict[str, Any] = ref if isinstance(ref, dict) else {}
    if not isinstance(name, str) or not 0 < len(name) <= _TYPE_LIMIT or not name.isprintable():
        return _malformed("", 0, raw_ref, f"type: expected 1 to {_TYPE_LIMIT} printable characters")
    try:
        ts_ms = _timestamp(raw.get("ts_ms"))
    except Misfit as misfit:
        return _malformed(name, 0, raw_ref, f"ts_ms: {misfit}")
    read = _BY_TYPE.get(name)
    if read is None:
        return UnknownSignal(name, ts_ms, raw_ref if _is_small(raw_ref) else _ids(raw_ref))
    try:
        found = read(raw_ref | {"ts_ms": ts_ms}, "ref")
    except Misfit as misfit:
        return _malformed(name, ts_ms, raw_ref, str(misfit))
    priority = priority_named(raw.get("priority"))
    as_usual = (name, raw_ref) == (found.type, found.ref()) or not _is_small(raw_ref)
    if as_usual and priority is None:
        return found
    return attrs.evolve(found, sent_as=None if as_usual else SentAs(type=name, ref=raw_ref), sent_priority=priority)


def _malformed(name: str, ts_ms: int, ref: dict[str, Any], why: str) -> MalformedSignal:
    """Return a malformed signal; if its large reference is dropped, without its time, so that it stays malformed."""
    return MalformedSignal(name, ts_ms, ref, why) if _is_small(ref) else MalformedSignal(name, 0, {}, why)


def _is_small(ref: dict[str, Any]) -> bool:
    """Return whether a reference is kept as it was sent: a thousand signals and their acks may be in memory."""
    text = json.dumps(ref)
    return len(text) <= _REF_LIMIT and sum(map(text.count, "{[,")) <= _REF_VALUES


def _ids(ref: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a reference that identify its signal."""
    return {name: ref[name] for name in IDENTITY_FIELDS if name in ref and _is_small({name: ref[name]})}


class ReportSchema(StrEnum):
    """The version of a report, which both sides check."""

    V1 = "certctrl.device.notify.v1"


def report_body(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the body of a report with events, oldest first."""
    return {"schema": ReportSchema.V1.value, "events": [dict(event) for event in events]}


def ack_event(signal: Signal, outcome: Outcome, duration_ms: int) -> dict[str, Any]:
    """Return the notify event that reports the outcome of a signal."""
    event: dict[str, Any] = {"type": "signal.ack", "signal": to_wire(signal), "outcome": outcome.kind.value}
    if outcome.detail:
        event["detail"] = outcome.detail
    if outcome.cause is not None:
        event |= {"step": outcome.cause.step.value, "reason": outcome.cause.reason.value}
    if outcome.deployed:
        event["deployed"] = [
            {
                "cert_id": one.cert_id,
                "serial": one.serial,
                "fingerprint_sha256": one.fingerprint_sha256,
                "targets": list(one.targets),
            }
            | ({"served": True} if one.served else {})
            for one in outcome.deployed
        ]
    event["duration_ms"] = max(0, int(duration_ms))
    return event
