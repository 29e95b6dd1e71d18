"""Request bodies of the JSON API, one class each (docs/protocol.md)."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, TypeVar

import attrs
from starlette.requests import Request

from certctrl import lean
from certctrl.model.features import KEY_PROOF
from certctrl.model.plan import OutcomeKind
from certctrl.plane.ca.csr import MAX_CSR_BYTES
from certctrl.plane.certificates.bulk import MOST_CHECKED, MOST_RENEWED
from certctrl.plane.certificates.imports import MAX_BYTES
from certctrl.plane.certificates.table import KEY_AT_PLANE
from certctrl.plane.core import DEFAULT_LIMIT, MAX_SIGNALS
from certctrl.plane.devices.devices import FIRST_USER, DeviceFacts
from certctrl.plane.devices.enrolment import Proof
from certctrl.plane.devices.reports import Ack, AgentVersion, Event, OtherEvent
from certctrl.plane.devices.tags import MOST_CHANGED
from certctrl.plane.errors import bad_request
from certctrl.plane.http.reading import BODY_CAP, read_object
from certctrl.plane.http.structure import (
    AtMost,
    Between,
    DeviceId,
    Line,
    Loose,
    LooseLine,
    Table,
    Text,
    Whole,
    new_converter,
    structured,
)
from certctrl.plane.settings import DAY
from certctrl.protocol.wire.certificates import MOST_FETCHED

T = TypeVar("T")

Name = Annotated[str, Line(100)]
Reason = Annotated[str, Line(200)]
Secret = Annotated[str, Text(1024)]
Id = Annotated[int, Whole()]
Tags = Annotated[tuple[Annotated[str, Text(200)], ...], AtMost(100)]


async def read_as(kind: type[T], request: Request, cap: int = BODY_CAP) -> T:
    """Return the body of a request as ``kind``; ErrorResponse 400, 413 or 415 if it is not one."""
    return body_of(kind, await read_object(request, cap))


def body_of(kind: type[T], value: Any) -> T:
    """Return a JSON value as ``kind``; ErrorResponse 400 with the JSON path of the first field that does not fit."""
    return structured(_CONVERTER, value, kind)


# --- devices --------------------------------------------------------------------------------------------------


class GrantAction(StrEnum):
    """The actions of ``POST /auth/device``."""

    START = "device_start"
    POLL = "device_poll"
    VERIFY = "device_verify"


@lean.frozen
class Grant:
    """The part of a device grant request that selects its body."""

    action: GrantAction


@lean.frozen(kw_only=True)
class GrantStart:
    """``device_start``: a device requests approval."""

    name: Name = ""
    platform: Name = ""
    device_public_id: Annotated[str, DeviceId(optional=True)] = ""
    scopes: Annotated[tuple[Annotated[str, Line(50)], ...], AtMost(20)] = ()


@lean.frozen
class GrantPoll:
    """``device_poll``: a device requests the decision."""

    device_code: Secret


@lean.frozen(kw_only=True)
class GrantDecision:
    """An operator's decision on a device grant."""

    approve: bool
    user_id: Id = FIRST_USER


@lean.frozen(kw_only=True)
class GrantVerify(GrantDecision):
    """``device_verify``: a decision that names the grant by its user code."""

    user_code: Annotated[str, Text(100)]


@lean.frozen(kw_only=True)
class ExpectedDevice:
    """A device to add ahead of its registration."""

    device_public_id: Annotated[str, DeviceId()]
    name: Name = ""
    platform: Name = ""


@lean.frozen(kw_only=True)
class Device(ExpectedDevice):
    """A device's description of itself."""

    model: Name = ""
    app_version: Name = ""
    user_agent: Annotated[str, Line(200)] = ""
    features: Annotated[tuple[Annotated[str, Line(50)], ...], AtMost(50)] = ()

    def facts(self) -> DeviceFacts:
        """Return the description as the plane stores it."""
        return DeviceFacts(
            device_public_id=self.device_public_id,
            name=self.name,
            platform=self.platform,
            model=self.model,
            app_version=self.app_version,
            user_agent=self.user_agent,
            features=self.features,
        )


@lean.frozen(kw_only=True)
class Registration(Device):
    """A device with its key and the features of its agent."""

    dev_pk: Annotated[str, Text(100)]
    challenge_response: Annotated[str | None, Text(100, optional=True)] = None

    def proof(self) -> Proof:
        """Return the proof that the device has its key."""
        return Proof(offered=KEY_PROOF in self.features, answer=self.challenge_response or "")


@lean.frozen(kw_only=True)
class ApprovedRegistration(Registration):
    """A registration with the code of an approved grant."""

    user_id: Id
    registration_code: Secret


@lean.frozen(kw_only=True)
class UnattendedRegistration(Registration):
    """A registration with an enrolment token."""

    enrolment_token: Secret


@lean.frozen
class Refresh:
    """A request for a new access token."""

    refresh_token: Secret
    device_public_id: Annotated[str, Text(100)]
    plane_anchors_sha256: Annotated[tuple[Annotated[str, Line(64)], ...], AtMost(100)] = ()
    """The CA certificates by which the agent verifies the plane."""


@lean.frozen(kw_only=True)
class SigningRequest:
    """A signing request for an order; ``csr_pem`` is checked where it is used."""

    order_id: Id
    csr_pem: Annotated[str, Text(2 * MAX_CSR_BYTES)]


@lean.frozen
class Report:
    """A batch of events, oldest first."""

    schema: Literal["certctrl.device.notify.v1"]
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
    deployed: Annotated[list[Any], Loose(list)] = attrs.field(factory=list)
    duration_ms: Annotated[int, Loose(int)] = 0


@lean.frozen
class _VersionBody:
    version: Annotated[str, LooseLine(100)] = ""
    features: Annotated[list[Any], Loose(list)] = attrs.field(factory=list)


@lean.frozen(kw_only=True)
class Hello:
    """Where an agent wants its push socket to begin; ``cursor`` None: at the oldest signal."""

    cursor: Annotated[str | None, Text(1024, optional=True)] = None
    limit: Annotated[int, Between(1, MAX_SIGNALS)] = DEFAULT_LIMIT


@lean.frozen
class FreshToken:
    """A further access token of the session of a push socket."""

    access_token: Annotated[str, Text(4096)] = attrs.field(repr=False)


# --- operators ------------------------------------------------------------------------------------------------


@lean.frozen
class NewUser:
    """A user to add."""

    name: Name = ""


@lean.frozen
class NewQuestion:
    """A question to the agent of a device."""

    question: Annotated[str, Text(100)]
    timeout_seconds: Id = 15


@lean.frozen(kw_only=True)
class Switch:
    """A request to switch to the plane's own CA; ``force``: even if devices can no longer connect."""

    force: bool = False


@lean.frozen
class WithReason:
    """A request that may give its reason."""

    reason: Reason = ""


@lean.frozen(kw_only=True)
class Revocation:
    """A request to revoke a certificate."""

    reason: Reason = ""
    reason_code: Name = ""
    """A name of RFC 5280, section 5.3.1."""
    serial_number: Name = ""
    """Empty: the serial number of the current certificate."""
    replace: bool = False
    confirmed: bool = False
    """Whether an operator has revoked it at its CA."""


@lean.frozen
class Constraints:
    """The names that the built-in CA may issue for."""

    domains: Annotated[tuple[str, ...], AtMost(200)] = ()
    networks: Annotated[tuple[str, ...], AtMost(200)] = ()


@lean.frozen(kw_only=True)
class NewEnrolmentToken:
    """An enrolment token to create; ``uses`` None: unlimited."""

    label: Name = ""
    uses: Annotated[int | None, Whole(nullable=True)] = 1
    expires_in: Id = DAY
    """Seconds."""
    tags: Tags = ()


@lean.frozen(kw_only=True)
class TagChange:
    """Tags to add to devices, and to remove."""

    device_ids: Annotated[tuple[Id, ...], AtMost(MOST_CHANGED, required=True)]
    add: Tags = ()
    remove: Tags = ()


@lean.frozen(kw_only=True)
class NewCertificate:
    """A certificate to issue."""

    domain_name: Annotated[str, Text(300)]
    sans: Annotated[tuple[str, ...], AtMost(200)] = ()
    key_type: Annotated[str, Line(200)] = ""
    """Empty: the default type."""
    validity_seconds: Annotated[int | None, Whole()] = None
    device_ids: Annotated[tuple[Id, ...], AtMost(10_000)] = ()
    issuer: Name = ""
    """Empty: by rule, otherwise the plane's own CA."""
    profile: Name = ""
    must_staple: bool = False
    reuse_key: bool = False
    key_origin: Annotated[str, Line(20)] = KEY_AT_PLANE
    """``plane``, ``device``, or ``auto``: at the devices if there are any and all of them make keys."""


@lean.frozen(kw_only=True)
class CertificateImport:
    """A certificate with its key to import."""

    certificate_pem: Annotated[str, Text(MAX_BYTES)]
    private_key_pem: Annotated[str, Text(MAX_BYTES)] = attrs.field(repr=False)
    """Not encrypted."""
    chain_pem: Annotated[str | None, Text(MAX_BYTES, optional=True)] = None
    cert_id: Annotated[int | None, Whole()] = None
    """The certificate that it renews; without one, an imported certificate for the same names."""
    device_ids: Annotated[tuple[Id, ...], AtMost(10_000)] = ()


@lean.frozen
class CertificateChecks:
    """Certificates to check."""

    certificates: Annotated[tuple[NewCertificate, ...], AtMost(MOST_CHECKED, required=True)]


@lean.frozen
class Renewals:
    """Certificates to renew."""

    cert_ids: Annotated[tuple[Id, ...], AtMost(MOST_RENEWED, required=True)]
    reason: Reason = ""
    together: bool = False
    """Whether devices receive all of them in one batch."""


@lean.frozen
class CertificateSet:
    """Certificates that are always renewed together; none: the set ends."""

    name: Annotated[str, Line(64)]
    cert_ids: Annotated[tuple[Id, ...], AtMost(MOST_RENEWED)] = ()


@lean.frozen
class WantedMaterials:
    """Certificates that a device fetches together, and the ETags of what it has, by id."""

    cert_ids: Annotated[tuple[Id, ...], AtMost(MOST_FETCHED, required=True)]
    etags: Annotated[dict[str, Any], Table()] = attrs.field(factory=dict)

    def checked(self) -> list[tuple[int, str]]:
        """Return the ids with their ETags; ErrorResponse 400 if there are none, or one of them twice."""
        if not 0 < len(set(self.cert_ids)) == len(self.cert_ids):
            raise bad_request(f"cert_ids must be 1 to {MOST_FETCHED} different numbers", field="cert_ids")
        known = {key: etag for key, etag in self.etags.items() if isinstance(etag, str)}
        return [(cert_id, known.get(str(cert_id), "")) for cert_id in self.cert_ids]


@lean.frozen
class CertificateChange:
    """A change of a certificate's record."""

    issuer: Annotated[str, Line(100)]


@lean.frozen(kw_only=True)
class Renewal:
    """A request to renew a certificate."""

    action: Literal["renew"]
    reason: Reason = ""
    key_lost: bool = False
    """Whether the device no longer has the key that it made for the certificate or its open order."""


@lean.frozen(kw_only=True)
class NewIssuer:
    """An issuer to add or replace; secrets are in base64."""

    name: Annotated[str, Text(100)]
    kind: Annotated[str, Text(100)]
    settings: Annotated[dict[str, Any], Table()] = attrs.field(factory=dict)
    secrets: Annotated[dict[str, Any], Table()] = attrs.field(factory=dict, repr=False)
    replace: bool = False


@lean.frozen(kw_only=True)
class IssuerRule:
    """The issuer for a domain."""

    domain: Annotated[str, Text(300)]
    issuer: Annotated[str, Text(100)]


@lean.frozen
class CertificateAssignment:
    """A certificate to assign to a device."""

    cert_id: Id


@lean.frozen
class AuthorityAssignment:
    """A CA to assign to a device."""

    ca_id: Id


@lean.frozen(kw_only=True)
class NewAuthority:
    """A CA to store; without a certificate, the plane's own root."""

    name: Name = ""
    ca_certificate_pem: Annotated[str | None, Text(65_536, optional=True)] = None


def _event(value: Any, _: Any) -> Event:
    match _CONVERTER.structure(value, _EventHead).type:
        case "signal.ack":
            body = _CONVERTER.structure(value, _AckBody)
            signal = body.signal
            return Ack(
                type=signal.type,
                ts_ms=signal.ts_ms,
                ref=signal.ref,
                outcome=body.outcome,
                detail=body.detail,
                deployed=body.deployed,
                duration_ms=body.duration_ms,
            )
        case "agent_version":
            agent = _CONVERTER.structure(value, _VersionBody)
            return AgentVersion(agent.version, tuple(name for name in agent.features if isinstance(name, str)))
        case other:
            return OtherEvent(other)


_CONVERTER = new_converter()
_CONVERTER.register_structure_hook(Event, _event)
