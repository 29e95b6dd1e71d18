"""The values of a plan: desired state, observed state, and the work between them. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from certctrl import lean
from certctrl.install.plan.policy import Grant, Refusal, explain
from certctrl.model.certificate import CertFacts
from certctrl.model.plan import VerifyCommand, VerifyTls
from certctrl.text import one_line


@lean.frozen(kw_only=True)
class DesiredCert:
    """A certificate as this host should have it."""

    facts: CertFacts
    generation: str = ""
    """Id that should be live; empty: none (not delivered yet, or withdrawn)."""
    live: str = ""
    """Id that is live now."""
    files: Mapping[str, str] = attrs.field(factory=dict)
    """Virtual file -> SHA-256 in that generation."""
    proven: bool = False
    """Whether ``generation`` has already passed its commands and probes."""
    pending: tuple[str, ...] = ()
    """Items that failed on its last try; their verification is pending."""
    made: str = ""
    """In a preview: why ``generation`` still has to be made from the one on disk; empty: it is on disk."""
    outgoing: bool = False
    """As `CertRecord.outgoing`."""

    @property
    def cert_id(self) -> int:
        """The control plane's id of the certificate."""
        return self.facts.cert_id

    @property
    def name(self) -> str:
        """The directory name of the certificate."""
        return self.facts.name

    @property
    def node(self) -> str:
        """Its name in a group: ``cert:7``."""
        return f"cert:{self.cert_id}"


@lean.frozen(kw_only=True)
class DesiredCa:
    """A CA of this host."""

    ca_id: int
    name: str
    files: Mapping[str, str] = attrs.field(factory=dict)
    fingerprint: str = ""
    imported: bool = False
    """Whether it is in the trust store."""


@lean.frozen(kw_only=True)
class GivenRights:
    """Rights of a file by the policy of the root helper."""

    owner: str
    group: str
    uid: int
    gid: int
    mode: int


@lean.frozen(kw_only=True)
class Destination:
    """The state of one destination path."""

    sha256: str | None = None
    """SHA-256 of the file; None: there is none."""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    has_acl: bool = False
    """Whether the file has an access control list; the group bits of ``mode`` are then its mask."""
    refusal: str = ""
    """Why nothing may be written there even if the policy allows it (symlinks, other-writable parents, …)."""
    given: GivenRights | None = None
    """The rights that the root helper gives the file; None if the agent writes it."""


@lean.frozen(kw_only=True)
class Write:
    """One file to write to a destination."""

    item: str
    cert_id: int | None
    ca_id: int | None = None
    source: str
    """Virtual file name."""
    path: str
    mode: int
    uid: int | None
    gid: int | None
    why: str
    is_new: bool
    """Whether the destination has no file yet."""
    file_group: str = ""
    """Files of one group that may fail are written together or not at all."""
    tolerant: bool = False
    """Whether all items of the group say ``continue_on_error``."""
    in_place: bool = False
    """Whether an existing file is written over, not replaced."""
    helper: bool = False
    """Whether the root helper writes it."""

    @property
    def node(self) -> str:
        """The certificate or CA that the file belongs to: ``cert:7``, ``ca:3``."""
        return f"ca:{self.ca_id}" if self.cert_id is None else f"cert:{self.cert_id}"


@lean.frozen(kw_only=True)
class Run:
    """One command to run, for all items that request it."""

    items: tuple[str, ...]
    grant: Grant
    cert_ids: tuple[int, ...]
    keys: Mapping[str, str]
    """Item id -> activation key to record after success."""
    tolerant: bool = False
    """Whether all items say ``continue_on_error``."""
    why: str = ""
    stale_marker: bool = False
    """Whether an activation marker says that it has run; the marker must be removed before the files change."""
    for_files: frozenset[str] = frozenset()
    """Certificates (``cert:7``) whose changed files are the only reason to run it; empty if it is due anyway."""


@lean.frozen(kw_only=True)
class Verification:
    """One check after the commands."""

    item: str
    verify: VerifyTls | VerifyCommand
    fingerprints: tuple[str, ...] = ()
    """Accepted leaves (TLS)."""
    cert_ids: tuple[int, ...] = ()
    grant: Grant | None = None
    """The command, as the host allows it."""
    tolerant: bool = False
    for_files: frozenset[str] = frozenset()
    """As for `Run`."""


@lean.frozen
class Step:
    """Work that may be done concurrently: first all files, then all commands."""

    writes: tuple[Write, ...] = ()
    runs: tuple[Run, ...] = ()


@lean.frozen(kw_only=True)
class GroupPlan:
    """The work on one group: certificates that are connected through shared items."""

    cert_ids: tuple[int, ...]
    """All certificates of the group, changed or not."""
    switches: tuple[DesiredCert, ...] = ()
    steps: tuple[Step, ...] = ()
    verifications: tuple[Verification, ...] = ()
    imports: tuple[int, ...] = ()
    """CAs to import into the trust store."""
    items: tuple[str, ...] = ()
    unserved: frozenset[str] = frozenset()
    """Copy items whose command has never succeeded, so that no service uses their files yet."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.switches or self.steps or self.verifications or self.imports)

    @property
    def due(self) -> frozenset[str]:
        """The items with work."""
        found = {write.item for step in self.steps for write in step.writes}
        found |= {item for step in self.steps for run in step.runs for item in run.items}
        return frozenset(found | {one.item for one in self.verifications})


@lean.frozen(kw_only=True)
class InstallPlan:
    """The work of a `converge` on this host, with reasons; `cert-ctrl plan` prints it."""

    groups: tuple[GroupPlan, ...] = ()
    """Groups with work."""
    refusals: tuple[Refusal, ...] = ()
    """Actions that the host's policy does not allow."""
    waiting: Mapping[str, str] = attrs.field(factory=dict)
    """Item id -> why it waits."""
    blocked: Mapping[str, str] = attrs.field(factory=dict)
    """Item id -> why it is left out although allowed: it needs a refused item."""
    held: Mapping[int, str] = attrs.field(factory=dict)
    """Certificate id -> why its new material is staged but not switched to (window, hold)."""
    concerns: Mapping[str, tuple[int, ...]] = attrs.field(factory=dict)
    """Item id -> certificates that it is about."""
    targets: Mapping[int, tuple[str, ...]] = attrs.field(factory=dict)
    """Certificate id -> destinations of its files."""
    not_due: frozenset[int] = frozenset()
    """Certificates with failed items that are left out because they are not due yet."""

    @property
    def left_out(self) -> dict[int, list[str]]:
        """Certificate id -> the items left out for it and why, one line each; 0: for no certificate."""
        found: dict[int, list[str]] = {}
        said = [(refusal.item, explain(refusal)) for refusal in self.refusals]
        said += [(item, f"item {one_line(item)} is left out: {why}") for item, why in self.blocked.items()]
        for item, text in said:
            for cert_id in self.concerns.get(item) or (0,):
                found.setdefault(cert_id, []).append(text)
        return found
