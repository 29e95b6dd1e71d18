"""Request bodies of devices, one class each (docs/protocol.md)."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import attrs

from certctrl import lean
from certctrl.model.features import KEY_PROOF
from certctrl.plane.ca.csr import MAX_CSR_BYTES
from certctrl.plane.devices.devices import FIRST_USER, DeviceFacts
from certctrl.plane.devices.enrolment import Proof
from certctrl.plane.devices.key_rotation import BothProofs
from certctrl.plane.errors import bad_request
from certctrl.plane.http.structure import AtMost, Between, DeviceId, Id, Line, Name, Secret, Table, Text
from certctrl.plane.polls import DEFAULT_LIMIT, MAX_SIGNALS
from certctrl.protocol.wire.certificates import MAX_FETCHED


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


@lean.frozen(kw_only=True)
class NewKey:
    """The key that a device wants to have from now on, with the answers to the challenges of both keys."""

    dev_pk: Annotated[str, Text(100)]
    present_response: Annotated[str | None, Text(100, optional=True)] = None
    new_response: Annotated[str | None, Text(100, optional=True)] = None

    def proofs(self) -> BothProofs:
        """Return the answers."""
        return BothProofs(self.present_response or "", self.new_response or "")


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
class WantedMaterials:
    """Certificates that a device fetches together, and the ETags of what it has, by id."""

    cert_ids: Annotated[tuple[Id, ...], AtMost(MAX_FETCHED, required=True)]
    etags: Annotated[dict[str, Any], Table()] = attrs.field(factory=dict)

    def checked(self) -> list[tuple[int, str]]:
        """Return the ids with their ETags; ErrorResponse 400 if there are none, or one of them twice."""
        if not 0 < len(set(self.cert_ids)) == len(self.cert_ids):
            raise bad_request(f"cert_ids must be 1 to {MAX_FETCHED} different numbers", field="cert_ids")
        known = {key: etag for key, etag in self.etags.items() if isinstance(etag, str)}
        return [(cert_id, known.get(str(cert_id), "")) for cert_id in self.cert_ids]


@lean.frozen(kw_only=True)
class Hello:
    """Where an agent wants its push socket to begin; ``cursor`` None: at the oldest signal."""

    cursor: Annotated[str | None, Text(1024, optional=True)] = None
    limit: Annotated[int, Between(1, MAX_SIGNALS)] = DEFAULT_LIMIT


@lean.frozen
class FreshToken:
    """A further access token of the session of a push socket."""

    access_token: Annotated[str, Text(4096)] = attrs.field(repr=False)
