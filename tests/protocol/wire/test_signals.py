"""Signals in, acks out: reading never raises, and a signal survives the inbox."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.model.plan import Deployed, Outcome, OutcomeKind
from certctrl.model.priority import Priority
from certctrl.model.signals import (
    AcmeHttp01Start,
    AcmeHttp01Stop,
    AcmeTlsAlpn01Start,
    AcmeTlsAlpn01Stop,
    CaAssigned,
    CaUnassigned,
    CertRenewed,
    CertRevoked,
    CertUnassigned,
    CsrWanted,
    InstallUpdated,
    MalformedSignal,
    ResyncRequired,
    Signal,
    UnknownSignal,
    identity,
    priority_of,
    to_state,
    to_wire,
)
from certctrl.protocol.wire.signals import ack_event, signal_from_wire

TS = 1736900123421
TOKEN = "LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDfowyjxAjEuX0"
CHALLENGE: dict[str, Any] = {
    "token": TOKEN, "key_authorization": f"{TOKEN}.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI",
    "identifier": "www.example.com", "expires_ms": TS + 600_000,
}  # fmt: skip
KNOWN = [
    "install.updated", "cert.renewed", "cert.updated", "cert.revoked", "cert.unassigned", "ca.assigned",
    "ca.unassigned", "state.resync_required", "acme.http01.start", "acme.http01.stop", "acme.tls_alpn01.start",
    "cert.csr_wanted",
]  # fmt: skip
VALUE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
ANY = st.recursive(VALUE, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner))
REF = st.dictionaries(
    st.sampled_from(
        [
            "config_id",
            "version",
            "cert_id",
            "ca_id",
            "order_id",
            "serial",
            "ca_name",
            "reason",
            "installs_hash_b64",
            *CHALLENGE,
        ]
    ),
    st.integers(0, 2**40) | st.integers(0, 2**40).map(str) | ANY,
)
RAW = ANY | st.fixed_dictionaries(
    {}, optional={"type": st.sampled_from(KNOWN) | ANY, "ts_ms": st.integers(0, 2**60) | ANY, "ref": REF | ANY}
)


def raw(kind: str, ref: object, ts_ms: object = TS) -> dict[str, Any]:
    return {"type": kind, "ts_ms": ts_ms, "ref": ref}


@pytest.mark.parametrize(
    ("wire", "signal"),
    [
        (raw("install.updated", {"config_id": 1234, "version": 6, "installs_hash_b64": "W7=="}),
         InstallUpdated(TS, 1234, 6, "W7==")),
        (raw("install.updated", {"config_id": "1234", "version": "6"}), InstallUpdated(TS, 1234, 6)),
        (raw("install.updated", {"config_id": 1, "version": 0, "installs_hash": "W7"}), InstallUpdated(TS, 1, 0, "W7")),
        (raw("cert.renewed", {"cert_id": 9981, "serial": "04:ab"}), CertRenewed(TS, 9981, "04:ab")),
        (raw("cert.renewed", {"cert_id": 9981, "serial": None}), CertRenewed(TS, 9981)),
        (raw("cert.renewed", {"cert_id": 9981, "serial": "", "more": [1]}), CertRenewed(TS, 9981)),
        (raw("cert.updated", {"cert_id": "9981"}), CertRenewed(TS, 9981)),
        (raw("cert.revoked", {"cert_id": 9982}, str(TS)), CertRevoked(TS, 9982)),
        (raw("cert.unassigned", {"cert_id": 9982}), CertUnassigned(TS, 9982)),
        (raw("cert.csr_wanted", {"cert_id": 7, "order_id": "12", "expires_ms": TS}), CsrWanted(TS, 7, 12, TS)),
        (raw("cert.csr_wanted", {"cert_id": 7, "order_id": 12, "names": ["a.example"]}), CsrWanted(TS, 7, 12)),
        (raw("ca.assigned", {"ca_id": 3, "serial": "01", "ca_name": "in"}), CaAssigned(TS, 3, "01", "in")),
        (raw("ca.unassigned", {"ca_id": 3}), CaUnassigned(TS, 3)),
        (raw("acme.http01.start", CHALLENGE), AcmeHttp01Start(TS, **CHALLENGE)),
        (raw("acme.http01.stop", {"token": TOKEN, "more": 1}), AcmeHttp01Stop(TS, TOKEN)),
        (raw("acme.tls_alpn01.start", {**CHALLENGE, "identifier": "2001:db8::1"}),
         AcmeTlsAlpn01Start(TS, **(CHALLENGE | {"identifier": "2001:db8::1"}))),
        (raw("acme.tls_alpn01.stop", {"token": TOKEN}), AcmeTlsAlpn01Stop(TS, TOKEN)),
        (raw("state.resync_required", {"reason": "restore"}), ResyncRequired(TS, "restore")),
        (raw("state.resync_required", {}), ResyncRequired(TS)),
        (raw("state.resync_required", None), ResyncRequired(TS)),
        (raw("state.resync_required", {"reason": 5}), ResyncRequired(TS)),
        (raw("cert.on_fire", {"cert_id": [1]}), UnknownSignal("cert.on_fire", TS, {"cert_id": [1]})),
        (raw("cert.on_fire", "x"), UnknownSignal("cert.on_fire", TS, {})),
        (raw("x" * 128, {"a": 1}), UnknownSignal("x" * 128, TS, {"a": 1})),
    ],
)  # fmt: skip
def test_signals(wire: dict[str, Any], signal: Signal) -> None:
    assert signal_from_wire(wire) == signal
    assert signal_from_wire(to_wire(signal)) == signal


@pytest.mark.parametrize(
    ("wire", "why"),
    [
        (None, "expected an object"),
        ([], "expected an object"),
        ("cert.renewed", "expected an object"),
        ({}, "type"),
        (raw("", {}), "type"),
        (raw("x" * 129, {}), "type"),
        (raw("a\nb", {}), "type"),
        ({"type": 5, "ts_ms": TS}, "type"),
        (raw("cert.renewed", {"cert_id": 1}, None), "ts_ms"),
        (raw("cert.renewed", {"cert_id": 1}, 0), "ts_ms"),
        (raw("cert.renewed", {"cert_id": 1}, 1.5), "ts_ms"),
        (raw("cert.renewed", {"cert_id": 1}, True), "ts_ms"),
        (raw("cert.renewed", {"cert_id": 1}, 10**15), "ts_ms"),
        (raw("cert.on_fire", {}, "soon"), "ts_ms"),
        (raw("cert.renewed", {}), "ref.cert_id"),
        (raw("cert.renewed", None), "ref.cert_id"),
        (raw("cert.renewed", [7]), "ref.cert_id"),
        (raw("cert.renewed", {"cert_id": 0}), "ref.cert_id"),
        (raw("cert.renewed", {"cert_id": -7}), "ref.cert_id"),
        (raw("cert.renewed", {"cert_id": 7.0}), "ref.cert_id"),
        (raw("cert.renewed", {"cert_id": True}), "ref.cert_id"),
        (raw("cert.renewed", {"cert_id": 2**63}), "ref.cert_id"),
        (raw("cert.renewed", {"cert_id": 7, "serial": 4}), "ref.serial"),
        (raw("install.updated", {"config_id": 1, "version": 2**53}), "ref.version"),
        (raw("ca.assigned", {"cert_id": 1}), "ref.ca_id: missing"),
        (raw("ca.assigned", {"ca_id": 0}), "ref.ca_id: expected an integer from 1"),
        (raw("ca.unassigned", {"ca_id": 0}), "ref.ca_id: expected an integer from 1"),
        (raw("cert.renewed", {"cert_id": 7, "serial": "x" * 257}), "ref.serial: longer than 256 characters"),
        (raw("cert.revoked", {"cert_id": 7, "serial": "x" * 257}), "ref.serial: longer than 256 characters"),
        (raw("ca.assigned", {"ca_id": 3, "serial": "x" * 257}), "ref.serial: longer than 256 characters"),
        (raw("ca.assigned", {"ca_id": 3, "ca_name": "x" * 257}), "ref.ca_name: longer than 256 characters"),
        (raw("acme.http01.start", {**CHALLENGE, "token": f"../../{TOKEN}"}), "ref.token: expected 16 to 128"),
        (raw("acme.http01.start", {**CHALLENGE, "token": None}), "ref.token: missing"),
        (
            raw("acme.http01.start", {**CHALLENGE, "key_authorization": TOKEN}),
            "ref.key_authorization: expected the token",
        ),
        (raw("acme.tls_alpn01.start", {**CHALLENGE, "identifier": "*.example.com"}), "ref.identifier: expected a DNS"),
        (raw("acme.tls_alpn01.start", {**CHALLENGE, "identifier": "a" * 254}), "ref.identifier: longer than 253"),
        (raw("acme.http01.start", {**CHALLENGE, "expires_ms": 0}), "ref.expires_ms: expected an integer from 1"),
        (raw("acme.http01.stop", {}), "ref.token: missing"),
        (raw("acme.tls_alpn01.stop", {"token": "." * 43}), "ref.token: expected 16 to 128"),
    ],
)
def test_malformed_signals(wire: object, why: str) -> None:
    signal = signal_from_wire(wire)
    assert isinstance(signal, MalformedSignal)
    assert signal.why.startswith(why)
    if not isinstance(wire, dict):
        assert (signal.type, signal.ts_ms, signal.raw_ref) == ("", 0, {})


LARGE: list[dict[str, Any]] = [
    {"x": "y" * 5000}, {"x" * 5000: 0}, {f"k{n}": n for n in range(100)}, {"x": [[]] * 100}, {"x": {"y": "z" * 5000}},
    {"x": 10**4200},
]  # fmt: skip


def test_a_malformed_signal_keeps_its_small_reference() -> None:
    why = "ref.cert_id: expected an integer from 1 to 9223372036854775807"
    assert signal_from_wire(raw("cert.renewed", {"cert_id": 0})) == MalformedSignal(
        "cert.renewed", TS, {"cert_id": 0}, why
    )


@pytest.mark.parametrize(
    ("ref", "kept"),
    [
        ({"x": "y" * 4087}, True),  # 4 096 characters of JSON
        ({"x": "y" * 4088}, False),
        ({"x": "X" * 100}, True),
        ({"x": [1] * 31}, True),  # 32 brackets and commas
        ({"x": [1] * 32}, False),
    ],
)
def test_a_reference_is_kept_up_to_a_size(ref: dict[str, Any], kept: bool) -> None:
    assert signal_from_wire(raw("cert.on_fire", ref)) == UnknownSignal("cert.on_fire", TS, ref if kept else {})


@pytest.mark.parametrize("large", LARGE)
def test_of_a_large_reference_only_known_fields_are_kept(large: dict[str, Any]) -> None:
    """A thousand signals, and later their acks, are in memory at a time."""
    unknown = signal_from_wire(raw("cert.on_fire", {"cert_id": 7} | large))
    assert unknown == UnknownSignal("cert.on_fire", TS, {"cert_id": 7})
    renewed = signal_from_wire(raw("cert.updated", {"cert_id": 7} | large))
    assert to_wire(renewed) == raw("cert.renewed", {"cert_id": 7})


@pytest.mark.parametrize("large", LARGE)
@pytest.mark.parametrize("wire", [raw("cert.renewed", {"cert_id": 0}), raw("x", {}, 0), raw("", {}),
                                  raw("install.updated", {"version": -1})])  # fmt: skip
def test_a_malformed_signal_without_its_large_reference_stays_malformed(wire: Any, large: dict[str, Any]) -> None:
    signal = signal_from_wire(wire | {"ref": wire["ref"] | large})
    assert isinstance(signal, MalformedSignal) and not signal.raw_ref
    again = signal_from_wire(to_wire(signal))
    assert isinstance(again, MalformedSignal) and identity(again) == identity(signal)


def test_an_unknown_signal_cannot_have_a_large_identity() -> None:
    assert signal_from_wire(raw("x", {"cert_id": "y" * 5000})) == UnknownSignal("x", TS, {})


@pytest.mark.parametrize("sent_as", [5, "x", {}, {"type": "cert.revoked", "ref": {"cert_id": 8}}])
@pytest.mark.parametrize(
    ("name", "ref"),
    [
        ("install.updated", {"config_id": 1, "version": 2}),
        ("cert.renewed", {"cert_id": 7, "serial": "x" * 256}),
        ("cert.revoked", {"cert_id": 7}),
        ("ca.assigned", {"ca_id": 3, "serial": "x" * 256, "ca_name": "x" * 256}),
        ("ca.unassigned", {"ca_id": 3}),
        ("state.resync_required", {"reason": "restore"}),
    ],
)
def test_the_plane_cannot_choose_the_contents_of_an_ack(name: str, ref: dict[str, Any], sent_as: object) -> None:
    """``sent_as`` is the agent's own note: in a reference it is an unknown field, which does not refuse the signal."""
    wire = raw(name, ref | {"sent_as": sent_as})
    signal = signal_from_wire(wire)
    assert signal == signal_from_wire(raw(name, ref)) and not isinstance(signal, MalformedSignal)
    assert to_wire(signal) == wire


@pytest.mark.parametrize("name", ["cert.renewed", "install.updated", "cert.revoked", "ca.assigned"])
@pytest.mark.parametrize("priority", list(Priority))
def test_the_class_of_a_signal_is_kept_on_disk_and_not_reported(name: str, priority: Priority) -> None:
    wire = raw(name, {"cert_id": 7, "ca_id": 7})
    signal = signal_from_wire(wire | {"priority": priority.value})
    assert isinstance(signal, CertRevoked) or priority_of(signal) is priority
    assert signal == signal_from_wire(wire) and identity(signal) == identity(signal_from_wire(wire))
    again = signal_from_wire(json.loads(json.dumps(to_state(signal))))
    assert priority_of(again) is priority_of(signal)
    assert ack_event(signal, Outcome(kind=OutcomeKind.APPLIED), 1)["signal"] == wire


@pytest.mark.parametrize("priority", ["", "urgent", "RENEWAL", 1, 1.5, True, None, [], {}, ["config"], "x" * 100_000])
def test_an_unknown_class_counts_as_absent(priority: object) -> None:
    signal = signal_from_wire(raw("cert.renewed", {"cert_id": 7}) | {"priority": priority})
    assert signal == CertRenewed(TS, 7)
    assert priority_of(signal) is Priority.RENEWAL
    assert "priority" not in to_state(signal)


def test_a_reference_cannot_name_the_class() -> None:
    for name in ("priority", "sent_priority"):
        signal = signal_from_wire(raw("cert.renewed", {"cert_id": 7, name: "revocation"}))
        assert priority_of(signal) is Priority.RENEWAL


@given(RAW)
def test_any_signal_survives_the_inbox(wire: object) -> None:
    signal = signal_from_wire(wire)
    kept = signal_from_wire(json.loads(json.dumps(to_wire(signal))))
    assert type(kept) is type(signal)
    assert identity(kept) == identity(signal)
    assert kept.resource == signal.resource


@given(RAW, st.sampled_from(OutcomeKind), st.integers(-5, 10**9))
def test_every_signal_can_be_acked(wire: object, kind: OutcomeKind, duration: int) -> None:
    signal = signal_from_wire(wire)
    event = json.loads(json.dumps(ack_event(signal, Outcome(kind=kind, detail="why"), duration)))
    assert event["outcome"] == kind.value
    assert event["signal"].keys() == {"type", "ts_ms", "ref"}
    assert event["duration_ms"] >= 0


def test_an_ack() -> None:
    served = Deployed(cert_id=7, serial="04:ab", fingerprint_sha256="00ff", targets=("/etc/x.pem",))
    outcome = Outcome(kind=OutcomeKind.ROLLED_BACK, detail="probe failed", deployed=(served,))
    assert ack_event(CertRenewed(TS, 7, "04:ab"), outcome, 12) == {
        "type": "signal.ack",
        "signal": {"type": "cert.renewed", "ts_ms": TS, "ref": {"cert_id": 7, "serial": "04:ab"}},
        "outcome": "rolled_back",
        "detail": "probe failed",
        "deployed": [{"cert_id": 7, "serial": "04:ab", "fingerprint_sha256": "00ff", "targets": ["/etc/x.pem"]}],
        "duration_ms": 12,
    }
    bare = ack_event(CertRevoked(TS, 7), Outcome(kind=OutcomeKind.APPLIED), 0)
    assert bare.keys() == {"type", "signal", "outcome", "duration_ms"}
    assert bare["duration_ms"] == 0
