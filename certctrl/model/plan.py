"""The install config of a device, its items, and the outcomes of signals."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING

import attrs

from certctrl import lean

if TYPE_CHECKING:  # an idle daemon has no use for it
    from certctrl.model.causes import Cause

CERT_FILES = (
    "private.key",
    "private-traditional.key",
    "certificate.pem",
    "chain.pem",
    "fullchain.pem",
    "combined.pem",
    "combined-key-last.pem",
    "certificate.der",
    "bundle.pfx",
    "bundle-legacy.pfx",
    "bundle.jks",
    "meta.json",
)
"""Virtual files of a certificate."""
CA_FILES = ("ca.pem", "ca.der", "meta.json")
"""Virtual files of a CA."""
COMMAND_PREFIX = "CERTCTRL_"
"""Environment variables with this prefix are the agent's; no item may set one."""
COMMAND_VARIABLES = (
    "CERTCTRL_CONFIG_DIR", "CERTCTRL_LIVE_DIR", "CERTCTRL_STAGED_DIR", "CERTCTRL_NAME", "CERTCTRL_NAMES",
    "CERTCTRL_KEY_FILE", "CERTCTRL_CERTIFICATE_FILE", "CERTCTRL_CHAIN_FILE", "CERTCTRL_FULLCHAIN_FILE",
    "CERTCTRL_PFX_FILE", "CERTCTRL_PFX_PASSWORD_FILE", "CERTCTRL_JKS_FILE", "CERTCTRL_JKS_PASSWORD_FILE",
)  # fmt: skip
"""What the agent sets for every command of an item; empty where it does not apply."""
LOCAL_PREFIX = "local:"
"""Prefix of the ids of items from ``installs.local.json``."""


class StartTls(StrEnum):
    """The protocol that a connection speaks before TLS."""

    SMTP = "smtp"
    IMAP = "imap"
    POP3 = "pop3"
    FTP = "ftp"
    LDAP = "ldap"
    XMPP = "xmpp"
    MYSQL = "mysql"
    POSTGRES = "postgres"


class WriteMethod(StrEnum):
    """How a copy item writes files that exist."""

    REPLACE = "replace"
    IN_PLACE = "in_place"
    """Over their bytes: for files that cannot be replaced, such as a bind-mounted file."""


class ObjectType(StrEnum):
    """What an item refers to by its ``ob_id``."""

    CERT = "cert"
    CA = "ca"


@lean.frozen(kw_only=True)
class VerifyCommand:
    """Verify by running a command, which must exit with status 0."""

    cmd_argv: tuple[str, ...]


@lean.frozen(kw_only=True)
class VerifyTls:
    """Verify by connecting: the served leaf must be the deployed one."""

    host: str
    port: int
    server_name: str | None = None
    starttls: StartTls | None = None
    """None for plain TLS."""


Verify = VerifyCommand | VerifyTls


@lean.frozen(kw_only=True)
class _Item:
    id: str
    """``local:…`` for items of ``installs.local.json``."""
    enabled: bool = True
    continue_on_error: bool = False
    depends_on: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    ob_type: ObjectType | None = None
    ob_id: int | None = None
    ob_name: str | None = None
    refused: str = ""
    """Why this version cannot carry out the item; empty: it can. Not a field of the wire."""


@lean.frozen(kw_only=True)
class CopyAction(_Item):
    """Copy virtual files of one certificate or CA to absolute paths."""

    sources: tuple[str, ...]
    """Wire name ``from``: virtual file names, paired with ``targets``."""
    targets: tuple[str, ...]
    """Wire name ``to``: absolute paths; empty: the files are only made in the agent's own directory."""
    owner: str | None = None
    group: str | None = None
    mode: int | None = None
    """Permission bits; None: 0600 for files that contain a key, 0644 otherwise."""
    owners: tuple[str | None, ...] = ()
    """Owner of each file, if ``owner`` is a list on the wire; empty: ``owner`` for all."""
    groups: tuple[str | None, ...] = ()
    modes: tuple[int | None, ...] = ()
    write: WriteMethod = WriteMethod.REPLACE
    check: tuple[str, ...] | None = None
    """Command run on the staged files; ``{staged}`` is the staging directory."""
    verify: Verify | None = None

    def owner_of(self, number: int) -> str | None:
        """Return the owner of one file, by its number in ``sources``."""
        return self.owners[number] if self.owners else self.owner

    def group_of(self, number: int) -> str | None:
        """Return the group of one file."""
        return self.groups[number] if self.groups else self.group

    def mode_of(self, number: int) -> int | None:
        """Return the permission bits of one file."""
        return self.modes[number] if self.modes else self.mode

    @property
    def accounts(self) -> tuple[frozenset[str], frozenset[str]]:
        """All owners and all groups that the item names."""
        owners, groups = {self.owner, *self.owners}, {self.group, *self.groups}
        return frozenset(one for one in owners if one is not None), frozenset(one for one in groups if one is not None)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Each virtual file that is written somewhere, and its path."""
        return tuple(zip(self.sources, self.targets, strict=False))


@lean.frozen(kw_only=True)
class ExecAction(_Item):
    """Run one command after its dependencies changed."""

    cmd_argv: tuple[str, ...] | None = None
    cmd: str | None = None
    """A shell line; runs only if the host's policy allows a shell."""
    timeout_ms: int = 30_000
    run_as: str | None = None
    env: Mapping[str, str] = attrs.field(factory=dict)
    verify: Verify | None = None


@lean.frozen(kw_only=True)
class ImportCaAction(_Item):
    """Add a CA to the system trust store."""


@lean.frozen(kw_only=True)
class UnknownAction(_Item):
    """An item of a type that this version does not know; always ``refused``."""


InstallItem = CopyAction | ExecAction | ImportCaAction | UnknownAction


@lean.frozen(kw_only=True)
class InstallConfig:
    """The plane's install items for this device: hash verified, ids unique, no cycle."""

    id: int
    version: int
    items: tuple[InstallItem, ...]
    installs_hash_b64: str
    updated_at: str | None = None
    absent: bool = False
    """Whether the plane has no install config for this device."""


def named_cause(step: str, reason: str) -> Cause:
    """Return the cause with these codes of ``model/causes.py``."""
    from certctrl.model.causes import Cause, Reason, Step  # here and below: an idle daemon does without

    return Cause(Step(step), Reason(reason))


def cause_of(error: BaseException, step: str = "") -> Cause:
    """Return the cause that an error is; ``step``: the step in which it was raised, unless the error implies one."""
    from certctrl.model import causes

    return causes.cause_of(error, causes.Step(step) if step else None)


class OutcomeKind(StrEnum):
    """How the handling of a signal ended."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"
    IGNORED = "ignored"
    SUPERSEDED = "superseded"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"


@lean.frozen(kw_only=True)
class Deployed:
    """One certificate as served now, for the ack."""

    cert_id: int
    serial: str
    fingerprint_sha256: str
    targets: tuple[str, ...] = ()
    served: bool = False
    """Whether an endpoint was seen to serve it, in this attempt."""


@lean.frozen(kw_only=True)
class Outcome:
    """The result of handling one signal or deploying one certificate."""

    kind: OutcomeKind
    detail: str = ""
    """One line: why it failed, was refused or rolled back; never a secret."""
    deployed: tuple[Deployed, ...] = ()
    transient: bool = False
    """Whether the failure is the disk's, not the certificate's, so that a retry may succeed."""
    recorded: bool = False
    """Whether the installer recorded the retry of this failure."""
    waits: str = ""
    """What the new material, which is staged, waits for; empty: it does not wait."""
    cause: Cause | None = None
    """The code for a failure, or for what waits; None: there is none, or it is not known."""

    @property
    def ok(self) -> bool:
        """Whether nothing is left to do."""
        return self.kind not in (OutcomeKind.FAILED, OutcomeKind.ROLLED_BACK)
