"""What this host remembers: inbox entries, acks, and one record per certificate."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import attrs

from certctrl.model.certificate import CertFacts
from certctrl.model.plan import OutcomeKind
from certctrl.model.signals import Signal


@attrs.frozen(kw_only=True)
class Tokens:
    """The session of one device."""

    access_token: str = attrs.field(repr=False)
    refresh_token: str = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class DeviceKeys:
    """Raw X25519 key pair, 32 bytes each."""

    public: bytes
    secret: bytes = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class InboxEntry:
    """A signal that is safe on disk and not done yet (durable state RECEIVED)."""

    signal: Signal
    attempts: int = 0
    last_error: str = ""
    next_try_at: float = 0.0
    """Wall-clock seconds since the epoch; 0: at once."""


@attrs.frozen(kw_only=True)
class Ack:
    """One outcome on its way to the plane: exactly the wire form of a notify event (api.md §5)."""

    event: dict[str, Any]


class Stage(StrEnum):
    """How far a certificate's newest material has come on this host."""

    STAGED = "staged"
    COMMITTED = "committed"
    ACTIVATED = "activated"
    WITHDRAWN = "withdrawn"


@attrs.frozen(kw_only=True)
class CertRecord:
    """Facts of one certificate on this host, recorded at deploy time: `list-certs` parses nothing."""

    facts: CertFacts = attrs.field(metadata={"inline": True})
    """Facts of the live generation; of one that is only staged, its id and name alone."""
    generation: str = ""
    """Id that ``.live/<name>`` points at; empty: none."""
    activated: str = ""
    """Id last proven in service (commands ran, endpoints probed): where a failed deployment goes back to."""
    staged: str = ""
    """Id staged and waiting for its window; empty: none."""
    stage: Stage = Stage.STAGED
    targets: tuple[str, ...] = ()
    held: bool = False
    """True after `rollback`: renewals are staged, not switched, until released."""
    revoked: bool = False
    """True when what was here last was revoked, whatever stands in for it now: its successor waits for no window."""
    alarmed: bool = False
    """True once the alarm about that has been raised."""
    last_outcome: OutcomeKind | None = None
    last_error: str = ""
    last_apply_at: float = 0.0
    attempts: int = 0
    """Failed applies in a row."""
    next_try_at: float = 0.0
    owed: tuple[str, ...] = ()
    """Items that failed for what is live, or were not reached because another one failed: to be tried again."""

    @property
    def cert_id(self) -> int:
        """The control plane's id of the certificate."""
        return self.facts.cert_id

    @property
    def name(self) -> str:
        """The directory name of the certificate."""
        return self.facts.name

    @property
    def withdrawal_incomplete(self) -> bool:
        """True when it was taken out of use, but a service or a copy that had to stay has it yet."""
        return self.stage is Stage.WITHDRAWN and self.attempts > 0

    @property
    def alert_pending(self) -> bool:
        """True when it was revoked and taken out of use, and a crash came before anybody was told."""
        return self.stage is Stage.WITHDRAWN and self.revoked and not self.alarmed


@attrs.frozen(kw_only=True)
class CaRecord:
    """A CA that this host put into its trust store, so that it can be taken out again cleanly."""

    ca_id: int
    name: str
    path: str
    """The file that was written; it is removed only while its bytes still have this hash."""
    sha256: str
    """Lower-case hex of the file's bytes."""
    fingerprint_sha256: str = ""
    """Lower-case hex of the CA certificate's DER."""
    not_after: float = 0.0
    imported_at: float = 0.0
    pem: str = ""
    """The CA certificate, for copy items that want ``ca.pem``."""
