"""Signals: the control plane's notices that something changed (spec "Signal Types")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, get_args

import attrs

from certctrl import lean
from certctrl.model.challenges import ChallengeKind
from certctrl.model.priority import Priority, derived_priority


@lean.frozen(kw_only=True)
class SentAs:
    """The type and ``ref`` of a signal that the plane spells differently; its ack repeats them."""

    type: str
    ref: Mapping[str, Any]


MAX_IN_BATCH = 100
"""Certificates of an atomic batch."""


@lean.frozen(kw_only=True)
class AtomicBatch:
    """The batch of a renewal: its certificates are switched together on a host, or none of them is."""

    id: str
    size: int
    """How many certificates of the batch this host has."""


@lean.frozen
class InstallUpdated:
    """The device's install config changed."""

    type: ClassVar[str] = "install.updated"
    ts_ms: int
    config_id: int | None = None
    version: int | None = None
    installs_hash_b64: str | None = None
    sent_as: SentAs | None = attrs.field(default=None, eq=False, repr=False, kw_only=True)
    sent_priority: Priority | None = attrs.field(default=None, eq=False, repr=False, kw_only=True)

    @property
    def resource(self) -> str:
        """The same for every install config: a device has one."""
        return "install"

    def ref(self) -> dict[str, Any]:
        """Return the wire form of the reference."""
        ref = {"config_id": self.config_id, "version": self.version, "installs_hash_b64": self.installs_hash_b64}
        return {name: value for name, value in ref.items() if value is not None}


@lean.frozen
class _CertSignal:
    ts_ms: int
    cert_id: int
    serial: str | None = None
    sent_as: SentAs | None = attrs.field(default=None, eq=False, repr=False, kw_only=True)
    sent_priority: Priority | None = attrs.field(default=None, eq=False, repr=False, kw_only=True)

    @property
    def resource(self) -> str:
        return f"cert:{self.cert_id}"

    def ref(self) -> dict[str, Any]:
        """Return the wire form of the reference."""
        return {"cert_id": self.cert_id} | ({"serial": self.serial} if self.serial is not None else {})


@lean.frozen
class CertRenewed(_CertSignal):
    """New material exists for a certificate (live-service alias: ``cert.updated``)."""

    type: ClassVar[str] = "cert.renewed"
    batch: AtomicBatch | None = attrs.field(default=None, kw_only=True)
    """Not part of the signal's identity."""

    def ref(self) -> dict[str, Any]:
        """Return the wire form of the reference."""
        batch = {} if self.batch is None else {"batch": {"id": self.batch.id, "size": self.batch.size}}
        return _CertSignal.ref(self) | batch


@lean.frozen
class CertRevoked(_CertSignal):
    """A certificate must be taken out of use."""

    type: ClassVar[str] = "cert.revoked"


@lean.frozen
class CertUnassigned(_CertSignal):
    """A certificate is no longer assigned to this device: remove it, without the alert of a revocation."""

    type: ClassVar[str] = "cert.unassigned"


@lean.frozen
class CsrWanted:
    """The plane wants a signing request for a key that this host makes."""

    type: ClassVar[str] = "cert.csr_wanted"
    ts_ms: int
    cert_id: int
    order_id: int
    expires_ms: int | None = None
    sent_as: SentAs | None = attrs.field(default=None, eq=False, repr=False, kw_only=True)
    sent_priority: Priority | None = attrs.field(default=None, eq=False, repr=False, kw_only=True)

    @property
    def resource(self) -> str:
        """A separate resource: the request for the next key must not supersede a renewal that is being deployed."""
        return f"csr:{self.cert_id}"

    def ref(self) -> dict[str, Any]:
        """Return the wire form of the reference."""
        ref = {"cert_id": self.cert_id, "order_id": self.order_id, "expires_ms": self.expires_ms}
        return {name: value for name, value in ref.items() if value is not None}


@lean.frozen
class _CaSignal:
    ts_ms: int
    ca_id: int
    serial: str | None = None
    ca_name: str | None = None
    sent_as: SentAs | None = attrs.field(default=None, eq=False, repr=False, kw_only=True)
    sent_priority: Priority | None = attrs.field(default=None, eq=False, repr=False, kw_only=True)

    @property
    def resource(self) -> str:
        return f"ca:{self.ca_id}"

    def ref(self) -> dict[str, Any]:
        """Return the wire form of the reference."""
        ref: dict[str, Any] = {"ca_id": self.ca_id}
        if self.serial is not None:
            ref["serial"] = self.serial
        if self.ca_name is not None:
            ref["ca_name"] = self.ca_name
        return ref


@lean.frozen
class CaAssigned(_CaSignal):
    """A private CA must be added to the trust store."""

    type: ClassVar[str] = "ca.assigned"


@lean.frozen
class CaUnassigned(_CaSignal):
    """A private CA must be removed from the trust store."""

    type: ClassVar[str] = "ca.unassigned"


@lean.frozen
class ResyncRequired:
    """The plane requests a full resync, as after a 409."""

    type: ClassVar[str] = "state.resync_required"
    ts_ms: int
    reason: str | None = None
    sent_as: SentAs | None = attrs.field(default=None, eq=False, repr=False, kw_only=True)
    sent_priority: Priority | None = attrs.field(default=None, eq=False, repr=False, kw_only=True)

    @property
    def resource(self) -> str:
        """The same for every resync: it covers the whole host."""
        return "resync"

    def ref(self) -> dict[str, Any]:
        """Return the wire form of the reference."""
        return {} if self.reason is None else {"reason": self.reason}


@lean.frozen
class _ChallengeSignal:
    ts_ms: int
    token: str
    sent_as: SentAs | None = attrs.field(default=None, eq=False, repr=False, kw_only=True)
    sent_priority: Priority | None = attrs.field(default=None, eq=False, repr=False, kw_only=True)

    kind: ClassVar[ChallengeKind]

    @property
    def resource(self) -> str:
        return f"{self.kind}:{self.token}"

    def ref(self) -> dict[str, Any]:
        """Return the wire form of the reference."""
        return {"token": self.token}


@lean.frozen
class _ChallengeStart(_ChallengeSignal):
    key_authorization: str = attrs.field(kw_only=True, repr=False)
    identifier: str = attrs.field(kw_only=True)
    expires_ms: int = attrs.field(kw_only=True)

    def ref(self) -> dict[str, Any]:
        """Return the wire form of the reference."""
        names = ("token", "key_authorization", "identifier", "expires_ms")
        return {name: getattr(self, name) for name in names}


@lean.frozen
class AcmeHttp01Start(_ChallengeStart):
    """Answer an http-01 challenge: a certificate authority is about to check a name at this host."""

    type: ClassVar[str] = "acme.http01.start"
    kind: ClassVar[ChallengeKind] = ChallengeKind.HTTP_01


@lean.frozen
class AcmeHttp01Stop(_ChallengeSignal):
    """Withdraw the answer to an http-01 challenge, which has been decided or abandoned."""

    type: ClassVar[str] = "acme.http01.stop"
    kind: ClassVar[ChallengeKind] = ChallengeKind.HTTP_01


@lean.frozen
class AcmeTlsAlpn01Start(_ChallengeStart):
    """Answer a tls-alpn-01 challenge: a certificate authority is about to check a name or address at this host."""

    type: ClassVar[str] = "acme.tls_alpn01.start"
    kind: ClassVar[ChallengeKind] = ChallengeKind.TLS_ALPN_01


@lean.frozen
class AcmeTlsAlpn01Stop(_ChallengeSignal):
    """Withdraw the answer to a tls-alpn-01 challenge, which has been decided or abandoned."""

    type: ClassVar[str] = "acme.tls_alpn01.stop"
    kind: ClassVar[ChallengeKind] = ChallengeKind.TLS_ALPN_01


ChallengeStart = AcmeHttp01Start | AcmeTlsAlpn01Start
ChallengeStop = AcmeHttp01Stop | AcmeTlsAlpn01Stop


@lean.frozen
class UnknownSignal:
    """A signal of a type that this version does not know: logged once, acked ``ignored``."""

    type: str
    ts_ms: int
    raw_ref: Mapping[str, Any]

    @property
    def resource(self) -> str:
        return f"unknown:{self.type}"

    def ref(self) -> dict[str, Any]:
        """Return the wire form of the reference."""
        return dict(self.raw_ref)


@lean.frozen
class MalformedSignal:
    """A signal that does not fit its schema: acked ``failed``, without effect on others."""

    type: str
    ts_ms: int
    raw_ref: Mapping[str, Any]
    why: str

    @property
    def resource(self) -> str:
        return f"malformed:{self.type}"

    def ref(self) -> dict[str, Any]:
        """Return the wire form of the reference."""
        return dict(self.raw_ref)


KnownSignal = (
    InstallUpdated
    | CertRenewed
    | CertRevoked
    | CertUnassigned
    | CsrWanted
    | CaAssigned
    | CaUnassigned
    | AcmeHttp01Start
    | AcmeHttp01Stop
    | AcmeTlsAlpn01Start
    | AcmeTlsAlpn01Stop
    | ResyncRequired
)
Signal = KnownSignal | UnknownSignal | MalformedSignal

KNOWN_TYPES = frozenset(kind.type for kind in get_args(KnownSignal))
"""The types that this version knows, without aliases."""

IDENTITY_FIELDS = ("config_id", "version", "cert_id", "ca_id", "order_id", "token")
"""Fields of ``ref`` that, with type and ``ts_ms``, identify a signal."""


def identity(signal: Signal) -> str:
    """Return the identity of a signal: its type, the ids in ``ref`` and ``ts_ms``."""
    ref = signal.ref()
    ids = ",".join(f"{name}={ref[name]}" for name in IDENTITY_FIELDS if name in ref)
    return f"{signal.type}|{ids}|{signal.ts_ms}"


def priority_of(signal: Signal) -> Priority:
    """Return the class of a signal: the one that the plane named, otherwise the one of its type.

    A revocation keeps its class, even if the plane names another.
    """
    if isinstance(signal, CertRevoked):
        return Priority.REVOCATION
    if isinstance(signal, UnknownSignal | MalformedSignal):
        return Priority.RENEWAL
    return signal.sent_priority or derived_priority(signal.type)


def to_wire(signal: Signal) -> dict[str, Any]:
    """Return the signal as the plane sent it."""
    if not isinstance(signal, UnknownSignal | MalformedSignal) and (sent := signal.sent_as) is not None:
        return {"type": sent.type, "ts_ms": signal.ts_ms, "ref": dict(sent.ref)}
    return {"type": signal.type, "ts_ms": signal.ts_ms, "ref": signal.ref()}


def to_state(signal: Signal) -> dict[str, Any]:
    """Return the signal as this host keeps it: `to_wire`, and the priority that the plane named."""
    wire = to_wire(signal)
    if not isinstance(signal, UnknownSignal | MalformedSignal) and signal.sent_priority is not None:
        wire["priority"] = signal.sent_priority.value
    return wire
