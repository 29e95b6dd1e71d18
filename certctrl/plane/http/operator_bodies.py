"""Request bodies of operators, one class each (docs/protocol.md)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import attrs

from certctrl import lean
from certctrl.plane.access.roles import Role
from certctrl.plane.certificates.bulk import MAX_CHECKED, MAX_RENEWED
from certctrl.plane.certificates.imports import MAX_BYTES
from certctrl.plane.certificates.table import KEY_AT_PLANE
from certctrl.plane.devices.tags import MAX_CHANGED
from certctrl.plane.http.structure import AtMost, Between, Id, Line, Name, Raw, Reason, Table, Tags, Text, Whole
from certctrl.plane.rollouts.plan import DEFAULT_WAVES
from certctrl.plane.settings import DAY


@lean.frozen
class NewUser:
    """A user to add."""

    name: Name = ""


@lean.frozen(kw_only=True)
class NewOperator:
    """An operator to add."""

    name: Annotated[str, Text(100)]
    role: Role


@lean.frozen(kw_only=True)
class OperatorChange:
    """A change of an operator."""

    role: Role | None = None
    disabled: bool | None = None


@lean.frozen(kw_only=True)
class NewToken:
    """A token to create, for some seconds; without a role, it has that of its operator.

    With ``tags``, only for devices that carry all of them.
    """

    operator: Annotated[str, Text(100)]
    name: Annotated[str, Line(100)]
    expires_in: Id
    role: Role | None = None
    tags: Tags = ()


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


@lean.frozen
class NewDeviceName:
    """Another name of a device."""

    name: Name = ""


@lean.frozen
class Nothing:
    """A request without fields."""


@lean.frozen
class NewReplacement:
    """A token for the new hardware of a device."""

    expires_in: Id = DAY
    """Seconds."""


@lean.frozen(kw_only=True)
class Decommission:
    """A request to decommission a device."""

    reason: Reason = ""
    revoke: bool = False
    """Whether certificates that only this device has are revoked."""
    reason_code: Name = ""


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

    device_ids: Annotated[tuple[Id, ...], AtMost(MAX_CHANGED, required=True)]
    add: Tags = ()
    remove: Tags = ()


@lean.frozen(kw_only=True)
class NewProfile:
    """A version of a profile; what is left out stays as it is."""

    devices: Annotated[str | None, Text(1000, optional=True)] = None
    """A tag expression."""
    order: Annotated[int | None, Whole(nullable=True, least=0)] = None
    installs: Annotated[Any, Raw()] = attrs.field(default=None, repr=False)
    """May contain secrets, in environment variables."""
    note: Reason = ""
    preview_id: Annotated[str, Line(64)] = attrs.field(default="", repr=False)
    """That of a dry run; empty: the change is made whatever it does by now."""


Texts = Annotated[tuple[Annotated[str, Text(100)], ...], AtMost(20)]


@lean.frozen(kw_only=True, slots=False)
class Rules:
    """The rules of a rollout; without slots, so that a body can have another base."""

    waves: Texts = DEFAULT_WAVES
    canary: Annotated[str | None, Text(1000, optional=True)] = None
    max_failures: Annotated[int, Between(0, 1_000_000)] = 0
    pause_seconds: Annotated[int, Between(0, 2_592_000)] = 0
    windows: Texts = ()
    serial: Name = ""


@lean.frozen(kw_only=True)
class Abort:
    """How a rollout ends."""

    forward: bool = False
    """Whether all devices get what is new."""


@lean.frozen(kw_only=True)
class Freeze:
    """Whether rollouts release nothing; without a reason, they do."""

    reason: Reason = ""


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

    certificate_pem: Annotated[str, Text(MAX_BYTES)] = attrs.field(repr=False)
    """It may contain other blocks, such as the key."""
    private_key_pem: Annotated[str, Text(MAX_BYTES)] = attrs.field(repr=False)
    """Not encrypted."""
    chain_pem: Annotated[str | None, Text(MAX_BYTES, optional=True)] = attrs.field(default=None, repr=False)
    cert_id: Annotated[int | None, Whole()] = None
    """The certificate that it renews; without one, an imported certificate for the same names."""
    device_ids: Annotated[tuple[Id, ...], AtMost(10_000)] = ()


@lean.frozen(kw_only=True)
class NewRollout(NewProfile, Rules):
    """A version of a profile, or certificates to renew or to import, and the rules of the rollout."""

    profile: Name = ""
    cert_ids: Annotated[tuple[Id, ...], AtMost(MAX_RENEWED)] = ()
    together: Annotated[tuple[Id, ...], AtMost(MAX_RENEWED)] = ()
    """Certificates to renew, of which each device gets all in one batch."""
    imported: CertificateImport | None = attrs.field(default=None, repr=False)


@lean.frozen(kw_only=True)
class RenewalPlan(Rules):
    """The rules of the rollouts of renewals that are due."""

    over: Annotated[int | None, Whole(nullable=True, least=1)] = None
    """They are for certificates on more devices; None: none has a rollout."""


@lean.frozen
class CertificateChecks:
    """Certificates to check."""

    certificates: Annotated[tuple[NewCertificate, ...], AtMost(MAX_CHECKED, required=True)]


@lean.frozen
class Renewals:
    """Certificates to renew."""

    cert_ids: Annotated[tuple[Id, ...], AtMost(MAX_RENEWED, required=True)]
    reason: Reason = ""
    together: bool = False
    """Whether devices receive all of them in one batch."""


@lean.frozen
class CertificateSet:
    """Certificates that are always renewed together; none: the set ends."""

    name: Annotated[str, Line(64)]
    cert_ids: Annotated[tuple[Id, ...], AtMost(MAX_RENEWED)] = ()


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
class NewAlertChannel:
    """An alert channel to add or replace."""

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
    ca_certificate_pem: Annotated[str | None, Text(65_536, optional=True)] = attrs.field(default=None, repr=False)
    """It may contain other blocks, such as a key."""
