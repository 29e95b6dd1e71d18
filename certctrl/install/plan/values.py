"""The values of a plan: what is wanted, what is there, and what would be done about it. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from certctrl.install.plan.policy import Grant, Refusal, explain
from certctrl.model.certificate import CertFacts
from certctrl.model.plan import VerifyCommand, VerifyTls
from certctrl.text import one_line


@attrs.frozen(kw_only=True)
class DesiredCert:
    """A certificate as this host shall have it."""

    facts: CertFacts
    generation: str = ""
    """Id that shall be live; empty: none (not delivered yet, or withdrawn)."""
    live: str = ""
    """Id that is live now."""
    files: Mapping[str, str] = attrs.field(factory=dict)
    """Virtual file -> SHA-256 of its bytes in that generation."""
    proven: bool = False
    """True when ``generation`` has passed its commands and probes before."""
    owed: tuple[str, ...] = ()
    """Items that failed for it when they were tried last: what they prove is owed still."""

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
        """Return its name among the things that hang together."""
        return f"cert:{self.cert_id}"


@attrs.frozen(kw_only=True)
class DesiredCa:
    """A CA that this host knows."""

    ca_id: int
    name: str
    files: Mapping[str, str] = attrs.field(factory=dict)
    fingerprint: str = ""
    imported: bool = False
    """True when the trust store has it."""


@attrs.frozen(kw_only=True)
class Destination:
    """What is at one destination."""

    sha256: str | None = None
    """Of the file's bytes; None: there is no file."""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    refusal: str = ""
    """Why nothing may be written there, whatever the policy says (symlinks, other-writable parents, …)."""


@attrs.frozen(kw_only=True)
class Write:
    """One file to put at an explicit destination."""

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
    file_group: str = ""
    """Files of one group are written together or not at all, where they may fail."""
    tolerant: bool = False
    """True when every item of the group says ``continue_on_error``."""

    @property
    def node(self) -> str:
        """Return whose file it is, among the things that hang together."""
        return f"ca:{self.ca_id}" if self.cert_id is None else f"cert:{self.cert_id}"


@attrs.frozen(kw_only=True)
class Run:
    """One command to run, for all items that ask for the same."""

    items: tuple[str, ...]
    grant: Grant
    cert_ids: tuple[int, ...]
    keys: Mapping[str, str]
    """Item id -> activation key to note when it succeeded."""
    tolerant: bool = False
    """True when every item says ``continue_on_error``."""
    why: str = ""
    stale_marker: bool = False
    """True when an item's marker on disk would call this done: it must go before the files change."""
    for_files: frozenset[str] = frozenset()
    """Whose files have to change (``cert:7``), when nothing else makes it due."""


@attrs.frozen(kw_only=True)
class Verification:
    """One check after the commands."""

    item: str
    verify: VerifyTls | VerifyCommand
    fingerprints: tuple[str, ...] = ()
    """Any of these leaves is right (TLS)."""
    cert_ids: tuple[int, ...] = ()
    grant: Grant | None = None
    """The command, as the host grants it."""
    tolerant: bool = False
    for_files: frozenset[str] = frozenset()
    """As for `Run`."""


@attrs.frozen
class Step:
    """What may be done side by side: first the files, then the commands."""

    writes: tuple[Write, ...] = ()
    runs: tuple[Run, ...] = ()


@attrs.frozen(kw_only=True)
class GroupPlan:
    """Certificates that hang together through what they share, and the work on them."""

    cert_ids: tuple[int, ...]
    """Every certificate of the set, changed or not."""
    switches: tuple[DesiredCert, ...] = ()
    steps: tuple[Step, ...] = ()
    verifications: tuple[Verification, ...] = ()
    imports: tuple[int, ...] = ()
    """CAs to put into the trust store."""
    items: tuple[str, ...] = ()
    unserved: frozenset[str] = frozenset()
    """Copy items whose command has never succeeded: no service uses their files yet."""

    @property
    def idle(self) -> bool:
        """True when there is nothing to do."""
        return not (self.switches or self.steps or self.verifications or self.imports)

    @property
    def due(self) -> frozenset[str]:
        """Return the items that have something to do."""
        found = {write.item for step in self.steps for write in step.writes}
        found |= {item for step in self.steps for run in step.runs for item in run.items}
        return frozenset(found | {one.item for one in self.verifications})


@attrs.frozen(kw_only=True)
class InstallPlan:
    """What converging this host would do, and why; printing it is `cert-ctrl plan`."""

    groups: tuple[GroupPlan, ...] = ()
    """Only those with work."""
    refusals: tuple[Refusal, ...] = ()
    """What the host's policy does not allow, with the line that would."""
    waiting: Mapping[str, str] = attrs.field(factory=dict)
    """Item id -> what it waits for."""
    blocked: Mapping[str, str] = attrs.field(factory=dict)
    """Item id -> why it is left out though allowed: it needs a refused one."""
    held: Mapping[int, str] = attrs.field(factory=dict)
    """Certificate id -> why its new material is staged but not switched (window, hold)."""
    concerns: Mapping[str, tuple[int, ...]] = attrs.field(factory=dict)
    """Item id -> certificates it is bound to."""
    targets: Mapping[int, tuple[str, ...]] = attrs.field(factory=dict)
    """Certificate id -> paths outside the agent's own tree where its files belong."""
    not_due: frozenset[int] = frozenset()
    """Certificates of which something failed that is left out because it is not due yet."""

    @property
    def left_out(self) -> dict[int, list[str]]:
        """Return certificate id -> what is not done for it and why, in one line each; 0: for no certificate."""
        found: dict[int, list[str]] = {}
        said = [(refusal.item, explain(refusal)) for refusal in self.refusals]
        said += [(item, f"item {one_line(item)} is left out: {why}") for item, why in self.blocked.items()]
        for item, text in said:
            for cert_id in self.concerns.get(item) or (0,):
                found.setdefault(cert_id, []).append(text)
        return found
