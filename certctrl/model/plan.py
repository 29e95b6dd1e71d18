"""The install config of a device, and what became of its items (api.md §4)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import attrs

LOCAL_PREFIX = "local:"
"""Begins the ids of the items of ``installs.local.json``."""


class StartTls(StrEnum):
    """The protocol that a connection speaks before TLS."""

    SMTP = "smtp"
    IMAP = "imap"
    POSTGRES = "postgres"


class ObjectType(StrEnum):
    """What an item refers to by its ``ob_id``."""

    CERT = "cert"
    CA = "ca"


@attrs.frozen(kw_only=True)
class VerifyCommand:
    """Verify by running a command that must exit 0."""

    cmd_argv: tuple[str, ...]


@attrs.frozen(kw_only=True)
class VerifyTls:
    """Verify by connecting and requiring that the served leaf is the deployed one."""

    host: str
    port: int
    server_name: str | None = None
    starttls: StartTls | None = None
    """None for plain TLS."""


Verify = VerifyCommand | VerifyTls


@attrs.frozen(kw_only=True)
class _Item:
    id: str
    """Item id as text; ``local:…`` for items of ``installs.local.json``."""
    enabled: bool = True
    continue_on_error: bool = False
    depends_on: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    ob_type: ObjectType | None = None
    ob_id: int | None = None
    ob_name: str | None = None


@attrs.frozen(kw_only=True)
class CopyAction(_Item):
    """Copy virtual files of one certificate to absolute paths."""

    sources: tuple[str, ...]
    """Wire name ``from``: virtual file names, paired with ``targets``."""
    targets: tuple[str, ...]
    """Wire name ``to``: absolute paths."""
    owner: str | None = None
    group: str | None = None
    mode: int | None = None
    """Permission bits; None: 0600 for files that hold a key, else 0644."""
    check: tuple[str, ...] | None = None
    """Argv run on the staged files; ``{staged}`` is the staging directory."""
    verify: Verify | None = None


@attrs.frozen(kw_only=True)
class ExecAction(_Item):
    """Run one command after what it depends on changed."""

    cmd_argv: tuple[str, ...] | None = None
    cmd: str | None = None
    """A shell line; runs only where the host's policy allows shell."""
    timeout_ms: int = 30_000
    run_as: str | None = None
    env: Mapping[str, str] = attrs.field(factory=dict)
    verify: Verify | None = None


@attrs.frozen(kw_only=True)
class ImportCaAction(_Item):
    """Put a CA into the system trust store."""


InstallItem = CopyAction | ExecAction | ImportCaAction


@attrs.frozen(kw_only=True)
class InstallConfig:
    """The plane's document for this device, verified (hash, version, ids unique, no cycle)."""

    id: int
    version: int
    items: tuple[InstallItem, ...]
    installs_hash_b64: str
    updated_at: str | None = None


class OutcomeKind(StrEnum):
    """What became of a signal (api.md §5)."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"
    IGNORED = "ignored"
    SUPERSEDED = "superseded"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"


@attrs.frozen(kw_only=True)
class Deployed:
    """One certificate as it is served now, for the ack."""

    cert_id: int
    serial: str
    fingerprint_sha256: str
    targets: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Outcome:
    """The end of one attempt at one signal or certificate."""

    kind: OutcomeKind
    detail: str = ""
    """One line for a person: why it failed, was refused or rolled back; never a secret."""
    deployed: tuple[Deployed, ...] = ()
    transient: bool = False
    """True for a failure that is not this certificate's but the disk's: waiting may cure it."""

    @property
    def ok(self) -> bool:
        """True when nothing is left to do."""
        return self.kind not in (OutcomeKind.FAILED, OutcomeKind.ROLLED_BACK)
