"""The words for states, and for each reason what is wrong and what to do. A word means the same wherever it is shown."""

from __future__ import annotations

from certctrl.model.causes import Reason

DEVICE_WORDS = ("degraded", "stale", "expected", "healthy", "revoked")
"""Of devices, the worst first."""
COPY_WORDS = (
    "expired", "still served", "not served", "stuck", "expiring", "waiting", "deployed", "served", "withdrawn",
)  # fmt: skip
"""Of a certificate on a device, the worst first."""
CERTIFICATE_WORDS = ("expired", "failing", "not served", "expiring", "renewing", "valid", "revoked")
"""Of certificates, the worst first."""
STALE = "stale"
NOT_HEARD = "not-heard"
"""The reason for which a device is stale."""
EXPIRING = "expiring"
"""The reason for which a certificate is expiring, if no newer one is known to wait for anything."""

REASONS: dict[str, tuple[str, str]] = {
    NOT_HEARD: ("the device does not contact the control plane", "check the host, its network, and cert-ctrl doctor there"),
    EXPIRING: ("it ends soon, and no newer one is in place", "renew it: cert-ctrl plane renew; check its order"),
    Reason.MALFORMED: ("the agent cannot read a signal", "update the agent"),
    Reason.ITEM_REFUSED: ("the host refuses an install item", "correct the item, or allow it in the host's policy.json"),
    Reason.CONFIG_INVALID: ("the install config cannot be used", "correct it: cert-ctrl plane install-config put"),
    Reason.CONFIG_OLDER: ("the install config is older than the active one", "set it again, which raises its version"),
    Reason.HOST_CONFIG: ("a file of the host's operator is invalid", "correct the file that the message names"),
    Reason.POLICY: ("the host's policy forbids it", "allow it in the host's policy.json, or change the item"),
    Reason.PLANE_UNREACHABLE: ("the agent cannot reach the control plane", "check the network between them"),
    Reason.PLANE_TLS: ("the agent does not trust the control plane's certificate", "check the CA on the host"),
    Reason.PLANE_TIMEOUT: ("the control plane answers too slowly", "check its load: cert-ctrl plane status"),
    Reason.PLANE_ANSWER: ("an answer of the control plane is unusable", "check proxies before the control plane"),
    Reason.PLANE_BUSY: ("the control plane is overloaded, or has an error", "check cert-ctrl plane status"),
    Reason.PLANE_REFUSED: ("the control plane refuses a request of the agent", "read the message"),
    Reason.PLANE_LAGGING: ("the control plane does not show the change yet", "nothing: it is retried"),
    Reason.NOT_OFFERED: ("the control plane does not offer the certificate", "assign it to the device"),
    Reason.PENDING: ("the certificate is not issued yet", "check its order: cert-ctrl plane orders list"),
    Reason.NOT_YET_VALID: ("the certificate is not valid yet", "nothing; or check the host's clock"),
    Reason.EXPIRED: ("the certificate has expired", "renew it: cert-ctrl plane renew"),
    Reason.OLDER: ("the control plane offers an older certificate than the deployed one", "renew it"),
    Reason.WRONG_NAMES: ("the certificate has other names than assigned", "issue it with the assigned names"),
    Reason.KEY_MISSING: ("the key that the host made is gone", "renew it, which makes a new key"),
    Reason.KEY_REFUSED: ("the host refuses this kind of key or how it was sent", "order another, or allow it in policy.json"),
    Reason.NOT_OURS: ("the host has another certificate or CA with this id", "cert-ctrl forget on the host"),
    Reason.UNSEALABLE: ("the host cannot open the sealed key", "register the host again"),
    Reason.MATERIAL_INVALID: ("certificate, chain or key are damaged or do not fit", "renew it; check its issuer"),
    Reason.FORMAT: ("a file format cannot be made", "change the item, or install the package that the message names"),
    Reason.DISK_FULL: ("the host's disk is full", "make room on the host"),
    Reason.DISK_READ_ONLY: ("the host's file system is read-only", "mount it writable, and check the disk"),
    Reason.PERMISSION: ("the agent may not write a file", "correct owner or mode on the host, or use the root helper"),
    Reason.DISK_FAULT: ("the host's disk fails", "check the disk"),
    Reason.DAMAGED: ("the agent's own files are damaged", "run cert-ctrl doctor on the host"),
    Reason.COMMAND_FAILED: ("a command of an item fails", "run it by hand on the host; check the service's configuration"),
    Reason.COMMAND_TIMEOUT: ("a command of an item takes too long", "run it by hand on the host, or raise its timeout"),
    Reason.COMMAND_NOT_RUN: ("a command of an item cannot be run", "check the program on the host"),
    Reason.SERVICE_DOWN: ("the service is not running", "start the service"),
    Reason.OTHER_CERTIFICATE: ("the endpoint serves another certificate", "check which file the service reads, and its reload"),
    Reason.OLDER_SERVED: ("the endpoint serves an older certificate than the deployed one", "restart the service"),
    Reason.NO_TLS: ("the endpoint does not complete a TLS handshake", "check the service and its log"),
    Reason.ENDPOINT_REFUSES: ("the endpoint refuses connections", "start the service, or correct the port"),
    Reason.ENDPOINT_SILENT: ("the endpoint does not answer", "check the service and its firewall"),
    Reason.ENDPOINT_UNRESOLVED: ("the endpoint's name cannot be resolved", "correct the host of the item's verify"),
    Reason.ENDPOINT_FOREIGN: ("the endpoint is not on the host", "name an endpoint of the host"),
    Reason.BATCH_INCOMPLETE: ("others of its atomic batch are missing", "see why those are stuck"),
    Reason.BATCH_REFUSED: ("another certificate of its atomic batch failed", "see why that one is stuck"),
    Reason.WINDOW: ("it waits for the host's maintenance window", "nothing; or cert-ctrl apply --now on the host"),
    Reason.HELD: ("an operator of the host holds it back", "cert-ctrl rollback --domain NAME --release on the host"),
    Reason.KEPT: ("it is revoked or unassigned, but the host keeps it", "change on_revoked or on_unassigned in policy.json"),
    Reason.STILL_SERVED: ("a service still serves a withdrawn certificate", "restart the service"),
    Reason.FILE_STAYS: ("a file of a withdrawn certificate stays", "remove it by hand"),
    Reason.NO_TRUST_STORE: ("the host's policy names no trust store", "set trust_store in policy.json"),
    Reason.TIMEOUT: ("the agent did not finish in time", "check the host's load and the commands of its items"),
    Reason.INTERNAL: ("the agent failed unexpectedly", "report the lines of its log"),
    Reason.OTHER: ("it failed", "read the message"),
}  # fmt: skip
"""Reason -> what is wrong, and what to do."""


def cause_id(word: str, step: str, reason: str) -> str:
    """Return the id of a cause, the same as long as it lasts."""
    return ".".join(part.replace(" ", "-") for part in (word, step or "-", reason or "-"))


def meaning(reason: str) -> tuple[str, str]:
    """Return what is wrong and what to do."""
    return REASONS.get(reason, REASONS[Reason.OTHER])
