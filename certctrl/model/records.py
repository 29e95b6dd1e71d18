"""Records that this host keeps on disk: tokens, keys, inbox entries, acks, certificates and CAs."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import attrs

from certctrl import lean
from certctrl.model.certificate import CertFacts
from certctrl.model.plan import OutcomeKind
from certctrl.model.signals import CertRevoked, Signal


@lean.frozen(kw_only=True)
class Tokens:
    """Tokens of the device's session."""

    access_token: str = attrs.field(repr=False)
    refresh_token: str = attrs.field(repr=False)
    features: frozenset[str] = frozenset()
    """Features that the plane announced with this session."""


@lean.frozen(kw_only=True)
class DeviceKeys:
    """Raw X25519 key pair, 32 bytes each."""

    public: bytes
    secret: bytes = attrs.field(repr=False)


class RetryKind(StrEnum):
    """Why something failed; decides how soon it is retried."""

    WAITING = "waiting"
    """The network or the plane: only time helps."""
    DISK = "disk"
    """The disk: paced as waiting, but an operator has to make room or repair it."""
    GRACE = "grace"
    """Nothing failed: it is carried out later."""
    LAGGING = "lagging"
    """The plane does not yet show what it announced."""
    BATCH = "batch"
    """Others of its atomic batch are missing: it is due once they are ready."""
    REFUSED = "refused"
    """New material, a check, the policy, a rollback: retrying helps once the cause is removed."""
    PENDING = "pending"
    """Items that failed for what is already live."""
    DOWN = "down"
    """A service that is not running, or that fails with its previous files too: waiting may help."""


@lean.frozen(kw_only=True)
class Retry:
    """Something that failed and is to be retried."""

    resource: str
    """As `Signal.resource`: ``cert:7``, ``ca:3``, ``install``, …"""
    kind: RetryKind
    attempts: int = 0
    """Consecutive failures that waiting alone could not have prevented; too many mean quarantine."""
    failures: int = 1
    """All consecutive failures; the pause grows with them."""
    last_error: str = ""
    next_try_at: float = 0.0
    """Wall-clock seconds since the epoch; 0: immediately. A run that records the failure waits on a steady clock."""
    pause: float = 0.0
    """Seconds from the failure until then; 0: not known, from an earlier release."""
    signal: Signal | None = None
    """The signal to handle again; None: the installer retries what is staged or pending here."""
    reported: str = ""
    """The failure of ``signal`` that was last reported to the plane."""

    @property
    def key(self) -> str:
        """What identifies it: the resource. A revocation has its own key, so that nothing replaces it."""
        return retry_key(self.signal) if self.signal is not None else self.resource


def retry_key(signal: Signal) -> str:
    """Return the key under which a signal is retried."""
    return f"{signal.resource} revoked" if isinstance(signal, CertRevoked) else signal.resource


@lean.frozen(kw_only=True)
class InboxEntry:
    """A signal that is stored but not yet handled (durable state RECEIVED)."""

    signal: Signal
    retry: Retry | None = None
    """How it failed before; such an entry is not stored, but made when the retry is due."""

    @property
    def next_try_at(self) -> float:
        """Wall-clock seconds since the epoch; 0: immediately."""
        return self.retry.next_try_at if self.retry is not None else 0.0


@lean.frozen(kw_only=True)
class Ack:
    """An outcome to report to the plane, in the wire form of a notify event."""

    event: dict[str, Any]


class Stage(StrEnum):
    """How far the newest material of a certificate has been deployed."""

    STAGED = "staged"
    COMMITTED = "committed"
    ACTIVATED = "activated"
    WITHDRAWN = "withdrawn"


@lean.frozen(kw_only=True)
class KnownPlane:
    """The control plane and device whose signals this host follows."""

    origin: str
    """URL of the plane and ids of the device, to compare only."""
    since: float = 0.0
    """Wall-clock seconds since the epoch: signals from before are of a stream that this host did not follow."""


@lean.frozen
class Recommended:
    """Settings that the control plane recommended at the registration."""

    poll_mode: str
    """A value of ``poll_mode``, perhaps of a later version."""
    poll_wait_seconds: int | None = None
    """Seconds of a long poll; None: the default."""


class Standing(StrEnum):
    """The control plane's last statement about a certificate of this host."""

    KNOWN = "known"
    UNLISTED = "unlisted"
    """Its list lacks it, without an unassignment."""
    FOREIGN = "foreign"
    """It comes from another plane or device, which used this id for it."""
    UNASSIGNED = "unassigned"
    """Unassigned, and confirmed."""


@lean.frozen(kw_only=True)
class CertRecord:
    """The state of one certificate on this host, recorded at deploy time so that `list-certs` parses nothing."""

    facts: CertFacts = attrs.field(metadata={"inline": True})
    """Facts of the live generation; of one that is only staged, its id and name alone."""
    generation: str = ""
    """Id of the generation that ``.live/<name>`` points to; empty: none."""
    activated: str = ""
    """Id of the generation last proven in service (commands ran, endpoints probed); a failed deployment rolls back to it."""
    former: tuple[str, ...] | None = None
    """Ids of generations that were proven in service before, newest last; None: not known, from an earlier release."""
    staged: str = ""
    """Id of the generation that waits for its maintenance window; empty: none."""
    stage: Stage = Stage.STAGED
    targets: tuple[str, ...] = ()
    held: bool = False
    """Whether renewals are staged but not switched: after `rollback`, until `release`."""
    revoked: bool = False
    """Whether the last real certificate was revoked; its successor does not wait for a maintenance window."""
    alarmed: bool = False
    """Whether the revocation alert has been raised."""
    last_outcome: OutcomeKind | None = None
    last_apply_at: float = 0.0
    standing: Standing = Standing.KNOWN
    unassigned_at: float = 0.0
    """When the unassignment was confirmed (wall-clock seconds); 0: never, or assigned again since."""
    pending: tuple[str, ...] = attrs.field(default=(), metadata={"key": "owed"})
    """Items to retry for the live generation: failed, or not reached because another item failed."""
    held_since: float = 0.0
    """When the hold began; 0: not held, or held by an earlier release."""
    batch: str = ""
    """The atomic batch of a generation that is staged, or live and not proven: all with this id change together."""
    source: str = ""
    """A generation and the ETag of the plane's answer that it was made from, separated by a space."""

    @property
    def etag(self) -> str:
        """The ETag of the plane's answer that the live generation was made from; empty: not known."""
        generation, _, etag = self.source.partition(" ")
        return etag if generation and generation == self.generation else ""

    @property
    def cert_id(self) -> int:
        """The control plane's id of the certificate."""
        return self.facts.cert_id

    @property
    def name(self) -> str:
        """The directory name of the certificate."""
        return self.facts.name

    @property
    def outgoing(self) -> bool:
        """Whether others for the same domain have precedence: this one is revoked, unassigned, or of another plane."""
        return self.revoked or self.standing in (Standing.UNASSIGNED, Standing.FOREIGN)

    @property
    def withdrawal_incomplete(self) -> bool:
        """Whether the certificate was withdrawn, but a service or a copy still has it."""
        return self.stage is Stage.WITHDRAWN and self.failing

    @property
    def failing(self) -> bool:
        """Whether the last apply failed, or items are to be retried."""
        return self.last_outcome in (OutcomeKind.FAILED, OutcomeKind.ROLLED_BACK) or bool(self.pending)

    @property
    def alert_pending(self) -> bool:
        """Whether the certificate was withdrawn as revoked, but a crash prevented the alert."""
        return self.stage is Stage.WITHDRAWN and self.revoked and not self.alarmed


@lean.frozen(kw_only=True)
class CaRecord:
    """A CA that this host added to its trust store, with all that a clean removal needs."""

    ca_id: int
    name: str
    path: str
    """The file that was written; it is removed only if its hash is still ``sha256``."""
    sha256: str
    """Lower-case hex of the file's bytes."""
    fingerprint_sha256: str = ""
    """Lower-case hex of the CA certificate's DER."""
    not_after: float = 0.0
    pem: str = ""
    """The CA certificate, for copy items that use ``ca.pem``."""
