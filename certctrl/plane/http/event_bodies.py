"""The events that devices report (docs/protocol.md). Fields that do not fit become empty: the outcome matters more."""

from __future__ import annotations

from typing import Annotated, Any

import attrs
from cattrs import Converter

from certctrl import lean
from certctrl.model.causes import PROBE_REASONS, Reason
from certctrl.model.plan import OutcomeKind
from certctrl.plane.devices.endpoints import MAX_ENDPOINTS, SeenEndpoint
from certctrl.plane.devices.older_texts import cause_of_report
from certctrl.plane.devices.reports import Ack, AgentVersion, EndpointsReport, Event, OtherEvent
from certctrl.plane.http.structure import AtMost, Loose, LooseLine
from certctrl.protocol.wire.signals import ReportSchema


@lean.frozen
class Report:
    """A batch of events, oldest first."""

    schema: ReportSchema
    events: Annotated[tuple[Event, ...], AtMost(100, required=True)]


@lean.frozen
class _EventHead:
    type: str


@lean.frozen(kw_only=True)
class _AckSignal:
    type: Annotated[str, LooseLine(100)] = ""
    ts_ms: Annotated[int, Loose(int)] = 0
    ref: Annotated[dict[str, Any], Loose(dict)] = attrs.field(factory=dict)


@lean.frozen(kw_only=True)
class _AckBody:
    signal: _AckSignal
    outcome: OutcomeKind
    detail: Annotated[str, LooseLine(500)] = ""
    step: Annotated[str, LooseLine(40)] = ""
    reason: Annotated[str, LooseLine(40)] = ""
    deployed: Annotated[list[Any], Loose(list)] = attrs.field(factory=list)
    duration_ms: Annotated[int, Loose(int)] = 0


@lean.frozen
class _VersionBody:
    version: Annotated[str, LooseLine(100)] = ""
    features: Annotated[list[Any], Loose(list)] = attrs.field(factory=list)


@lean.frozen(kw_only=True)
class _EndpointBody:
    endpoint: Annotated[str, LooseLine(300)] = ""
    serial: Annotated[str, LooseLine(128)] = ""
    fingerprint_sha256: Annotated[str, LooseLine(64)] = ""
    not_after_ms: Annotated[int, Loose(int)] = 0
    reason: Annotated[str, LooseLine(40)] = ""


@lean.frozen(kw_only=True)
class _EndpointsBody:
    cert_id: Annotated[int, Loose(int)] = 0
    deployed: Annotated[str, LooseLine(128)] = ""
    endpoints: Annotated[list[Any], Loose(list)] = attrs.field(factory=list)


_MAX_MS = 253_402_300_800_000
"""The end of the last year that times can be shown of."""
_REASONS = frozenset(reason.value for reason in PROBE_REASONS)


def _seen(body: _EndpointBody) -> SeenEndpoint:
    known = not body.reason or body.reason in _REASONS
    return SeenEndpoint(
        endpoint=body.endpoint,
        serial=body.serial.lower(),
        fingerprint_sha256=body.fingerprint_sha256.lower(),
        not_after=body.not_after_ms / 1000 if body.serial and 0 < body.not_after_ms < _MAX_MS else None,
        reason=body.reason if known else Reason.OTHER.value,
    )


def structure_events(converter: Converter) -> None:
    """Register how a converter structures an ``Event``."""

    def event(value: Any, _: Any) -> Event:
        match converter.structure(value, _EventHead).type:
            case "signal.ack":
                body = converter.structure(value, _AckBody)
                signal = body.signal
                return Ack(
                    type=signal.type,
                    ts_ms=signal.ts_ms,
                    ref=signal.ref,
                    outcome=body.outcome,
                    detail=body.detail,
                    cause=cause_of_report(body.outcome, body.step, body.reason, body.detail),
                    deployed=body.deployed,
                    duration_ms=body.duration_ms,
                )
            case "agent_version":
                agent = converter.structure(value, _VersionBody)
                return AgentVersion(agent.version, tuple(name for name in agent.features if isinstance(name, str)))
            case "endpoints":
                of = converter.structure(value, _EndpointsBody)
                listed = [one for one in of.endpoints if isinstance(one, dict)][:MAX_ENDPOINTS]
                seen = tuple(_seen(converter.structure(one, _EndpointBody)) for one in listed)
                return EndpointsReport(cert_id=of.cert_id, deployed=of.deployed.lower(), endpoints=seen)
            case other:
                return OtherEvent(other)

    converter.register_structure_hook(Event, event)
