"""Causes: how far work came, and why it came no further, as two closed sets of codes (docs/protocol.md).

They group failures of many hosts; the text of an outcome has the details. Imported before a service is
touched, or where something has failed: an idle daemon does without.
"""

from __future__ import annotations

import errno
from enum import StrEnum

from certctrl import lean
from certctrl.errors import (
    BadAnswerError,
    BatchRefusedError,
    CertctrlError,
    CommandError,
    ConfigError,
    DeadlineError,
    DiskError,
    LaggingError,
    MaterialError,
    PlaneError,
    PlanError,
    PolicyRefusedError,
    ProbeError,
    ProbeFault,
    StateCorruptError,
    TlsError,
    TransportError,
    VersionRollbackError,
)


class Step(StrEnum):
    """The steps from a signal to a served certificate, in order; then those of other work."""

    RECEIVE = "receive"
    PLAN = "plan"
    ORDER = "order"
    FETCH = "fetch"
    VERIFY = "verify"
    CHECK = "check"
    WRITE = "write"
    SWITCH = "switch"
    RUN = "run"
    PROBE = "probe"
    WITHDRAW = "withdraw"
    TRUST = "trust"
    ANSWER = "answer"
    HANDLE = "handle"
    OTHER = "other"
    """Of a peer of another version."""


class Reason(StrEnum):
    """Why work came no further."""

    MALFORMED = "malformed"
    ITEM_REFUSED = "item-refused"
    CONFIG_INVALID = "config-invalid"
    CONFIG_OLDER = "config-older"
    HOST_CONFIG = "host-config"
    POLICY = "policy"
    PLANE_UNREACHABLE = "plane-unreachable"
    PLANE_TLS = "plane-tls"
    PLANE_TIMEOUT = "plane-timeout"
    PLANE_ANSWER = "plane-answer"
    PLANE_BUSY = "plane-busy"
    PLANE_REFUSED = "plane-refused"
    PLANE_LAGGING = "plane-lagging"
    NOT_OFFERED = "not-offered"
    PENDING = "pending"
    NOT_YET_VALID = "not-yet-valid"
    EXPIRED = "expired"
    OLDER = "older"
    WRONG_NAMES = "wrong-names"
    KEY_MISSING = "key-missing"
    KEY_REFUSED = "key-refused"
    NOT_OURS = "not-ours"
    UNSEALABLE = "unsealable"
    MATERIAL_INVALID = "material-invalid"
    FORMAT = "format"
    DISK_FULL = "disk-full"
    DISK_READ_ONLY = "disk-read-only"
    PERMISSION = "permission"
    DISK_FAULT = "disk-fault"
    DAMAGED = "damaged"
    COMMAND_FAILED = "command-failed"
    COMMAND_TIMEOUT = "command-timeout"
    COMMAND_NOT_RUN = "command-not-run"
    SERVICE_DOWN = "service-down"
    OTHER_CERTIFICATE = "other-certificate"
    OLDER_SERVED = "older-served"
    NO_TLS = "no-tls"
    ENDPOINT_REFUSES = "endpoint-refuses"
    ENDPOINT_SILENT = "endpoint-silent"
    ENDPOINT_UNRESOLVED = "endpoint-unresolved"
    ENDPOINT_FOREIGN = "endpoint-foreign"
    BATCH_INCOMPLETE = "batch-incomplete"
    BATCH_REFUSED = "batch-refused"
    WINDOW = "window"
    HELD = "held"
    KEPT = "kept"
    STILL_SERVED = "still-served"
    FILE_STAYS = "file-stays"
    NO_TRUST_STORE = "no-trust-store"
    TIMEOUT = "timeout"
    INTERNAL = "internal"
    OTHER = "other"


@lean.frozen
class Cause:
    """How far work came, and why it came no further."""

    step: Step
    reason: Reason


_MATERIAL = {
    "not-yet-valid": Reason.NOT_YET_VALID,
    "server-behind": Reason.OLDER,
    "host-key-missing": Reason.KEY_MISSING,
    "expired": Reason.EXPIRED,
    "chain-expired": Reason.EXPIRED,
    "san": Reason.WRONG_NAMES,
    "key-type": Reason.KEY_REFUSED,
    "key-weak": Reason.KEY_REFUSED,
    "brainpool-refused": Reason.KEY_REFUSED,
    "plaintext-refused": Reason.KEY_REFUSED,
    "other-ca": Reason.NOT_OURS,
    "other-certificate": Reason.NOT_OURS,
    "scheme": Reason.UNSEALABLE,
    "unknown-scheme": Reason.UNSEALABLE,
    "device-key": Reason.UNSEALABLE,
    "unsealing": Reason.UNSEALABLE,
    "sealed-for-another-device": Reason.UNSEALABLE,
    "key-format": Reason.FORMAT,
    "pkcs12": Reason.FORMAT,
    "jks-missing": Reason.FORMAT,
    "jks-password": Reason.FORMAT,
}
"""Reason of a MaterialError -> code; all others say that the material is invalid."""
_DISK = {
    errno.ENOSPC: Reason.DISK_FULL,
    errno.EDQUOT: Reason.DISK_FULL,
    errno.EROFS: Reason.DISK_READ_ONLY,
    errno.EACCES: Reason.PERMISSION,
    errno.EPERM: Reason.PERMISSION,
}
_PROBE = {
    ProbeFault.OTHER: Reason.OTHER_CERTIFICATE,
    ProbeFault.NO_TLS: Reason.NO_TLS,
    ProbeFault.NO_STARTTLS: Reason.NO_TLS,
    ProbeFault.REFUSED: Reason.ENDPOINT_REFUSES,
    ProbeFault.NO_ANSWER: Reason.ENDPOINT_SILENT,
    ProbeFault.UNRESOLVED: Reason.ENDPOINT_UNRESOLVED,
    ProbeFault.NOT_OURS: Reason.ENDPOINT_FOREIGN,
}

PROBE_REASONS = frozenset(_PROBE.values())
"""The reasons of failed probes."""


def cause_of(error: BaseException, step: Step | None = None) -> Cause:
    """Return the cause that an error is; ``step``: the step in which it was raised, unless the error implies one."""
    match error:
        case BatchRefusedError():
            return Cause(Step.SWITCH, Reason.BATCH_REFUSED)
        case LaggingError() | PlaneError() | TransportError():
            return Cause(Step.FETCH, _of_plane(error))
        case ProbeError():
            return Cause(Step.PROBE, _PROBE[error.fault])
        case CommandError():
            return Cause(step or Step.RUN, _of_command(error))
        case PolicyRefusedError():
            return Cause(step or Step.PLAN, Reason.POLICY)
        case MaterialError():
            reason = _MATERIAL.get(error.reason, Reason.MATERIAL_INVALID)
            return Cause(step or Step.VERIFY, reason)
        case StateCorruptError():
            return Cause(step or Step.WRITE, Reason.DAMAGED)
        case DiskError():
            return Cause(step or Step.WRITE, _DISK.get(error.errno, Reason.DISK_FAULT))
        case PlanError():
            older = isinstance(error, VersionRollbackError)
            return Cause(Step.PLAN, Reason.CONFIG_OLDER if older else Reason.CONFIG_INVALID)
        case ConfigError():
            return Cause(step or Step.PLAN, Reason.HOST_CONFIG)
    return Cause(step or Step.HANDLE, Reason.OTHER if isinstance(error, CertctrlError) else Reason.INTERNAL)


def probe_reason(fault: ProbeFault) -> Reason:
    """Return the code of a failed probe."""
    return _PROBE[fault]


def _of_plane(error: LaggingError | PlaneError | TransportError) -> Reason:
    match error:
        case LaggingError():
            return Reason.PLANE_LAGGING
        case TlsError():
            return Reason.PLANE_TLS
        case DeadlineError():
            return Reason.PLANE_TIMEOUT
        case BadAnswerError():
            return Reason.PLANE_ANSWER
        case PlaneError(status=409):
            return Reason.PENDING
        case PlaneError(status=404 | 410):
            return Reason.NOT_OFFERED
        case PlaneError():
            return Reason.PLANE_BUSY if error.status == 429 or error.status >= 500 else Reason.PLANE_REFUSED
    return Reason.PLANE_UNREACHABLE


def _of_command(error: CommandError) -> Reason:
    if error.timed_out:
        return Reason.COMMAND_TIMEOUT
    return Reason.COMMAND_NOT_RUN if error.status is None else Reason.COMMAND_FAILED
