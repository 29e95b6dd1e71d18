"""HostPolicy: the files that the control plane may write and the commands it may run on this host.

The host has the last word. By default, nothing outside ``certs/`` is written and no command runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum

import attrs

from certctrl import lean

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class RemoteCommands(StrEnum):
    """Whether the plane may run the listed commands."""

    ON = "on"
    OFF = "off"


class RemoteQuestions(StrEnum):
    """Whether the plane's questions are answered."""

    ON = "on"
    OFF = "off"


class Retirement(StrEnum):
    """What happens to a certificate that was revoked or is no longer assigned."""

    REMOVE = "remove"
    PLACEHOLDER = "placeholder"
    """Replace it by a self-signed certificate."""
    KEEP = "keep"


class KeyType(StrEnum):
    """The kinds of private keys that this host can make for its certificates."""

    P256 = "ecdsa-p256"
    P384 = "ecdsa-p384"
    RSA_2048 = "rsa-2048"
    RSA_3072 = "rsa-3072"
    RSA_4096 = "rsa-4096"
    ED25519 = "ed25519"


@lean.frozen(kw_only=True)
class NamedCommand:
    """A command that this host allows, by its exact argv."""

    argv: tuple[str, ...]
    """Absolute path of the executable and its arguments, compared exactly; one may contain ``{staged}``."""
    run_as: str | None = None
    timeout_seconds: float = 60.0
    """1 to 600."""
    sha256: str | None = None
    """Hash of the executable (lower-case hex); None: not pinned."""
    script_sha256: str | None = None
    """Hash of the script that an interpreter is to run, which ``argv`` names (lower-case hex); None: not pinned."""
    env: tuple[str, ...] = ()
    """Environment variables that the plane may set for it; never ``CERTCTRL_…``, which are the agent's."""


FULL_DAY = 24 * 60
"""Minutes."""
_TIME = re.compile(r"([0-9]{2}):([0-5][0-9])")


def minutes_of(time: str) -> int | None:
    """Return the minutes since midnight of HH:MM, at most 24:00; None if it is not such a time."""
    match = _TIME.fullmatch(time)
    minutes = int(match[1]) * 60 + int(match[2]) if match else FULL_DAY + 1
    return minutes if minutes <= FULL_DAY else None


@lean.frozen(kw_only=True)
class MaintenanceWindow:
    """When new material may be switched to; it is staged at any time."""

    days: tuple[str, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
    from_: str = "00:00"
    """Wire name ``from``: local time HH:MM."""
    to: str = "24:00"
    """Local time HH:MM; earlier than ``from``: past midnight."""
    timezone: str = "UTC"
    override_when_life_below: float = 0.2
    """Remaining fraction of the served certificate's life below which the window is ignored."""


@lean.frozen(kw_only=True)
class TrustStore:
    """The system trust store; without a ``directory``, CA imports are refused."""

    directory: str | None = None
    """/usr/local/share/ca-certificates (Debian), /etc/pki/ca-trust/source/anchors (Red Hat)."""
    command: tuple[str, ...] | None = None
    """Argv to run after a change, such as /usr/sbin/update-ca-certificates."""


@lean.frozen(kw_only=True)
class AcmeAnswers:
    """Challenges of certificate authorities that this host may answer, and how; by default none."""

    http01_directory: str | None = None
    """Existing directory that the web server serves as ``/.well-known/acme-challenge/``; takes precedence over
    ``http01_listen``."""
    http01_listen: str | None = None
    """``ADDRESS:PORT`` for a listener while there is a challenge; authorities connect to port 80."""
    tls_alpn01_listen: str | None = None
    """``ADDRESS:PORT`` for a listener while there is a challenge; authorities connect to port 443."""
    names: tuple[str, ...] = ()
    """Names that challenges may be for: a name, an address or ``*.example.com``; empty: all."""


@lean.frozen(kw_only=True)
class HostPolicy:
    """``policy.json``: owned by root, read at start and on SIGHUP."""

    write_roots: tuple[str, ...] = ()
    """Directories below which the plane may write, in addition to ``certs/``."""
    commands: Mapping[str, NamedCommand] = attrs.field(factory=dict)
    """Allowed commands, by names that the operator chooses."""
    remote_commands: RemoteCommands = attrs.field(default=RemoteCommands.ON, converter=RemoteCommands)
    """``on``, or ``off`` to run no command of the plane."""
    remote_questions: RemoteQuestions = attrs.field(default=RemoteQuestions.ON, converter=RemoteQuestions)
    """``on``, or ``off`` to answer no question of the plane about status, plan, history and findings of `doctor`."""
    run_as: tuple[str, ...] = ()
    """Users that the plane's commands may run as, in addition to the agent's own."""
    owners: tuple[str, ...] = ()
    """Users and groups that may own copied files, in addition to root and the agent's own."""
    probe: tuple[str, ...] = ()
    """Hosts (``HOST`` or ``HOST:PORT``) that the plane's items may probe, in addition to this host's own addresses."""
    shell: bool = False
    plaintext_keys: bool = False
    brainpool: bool = False
    """Whether keys of certificates and CAs may be on brainpool curves, which browsers do not know."""
    key_types: tuple[KeyType, ...] = tuple(KeyType)
    """The kinds of keys that this host makes when the plane asks for them; the first one if it asks for none."""
    trust_on_first_use: bool = False
    """Pin a listed script without ``sha256`` on its first run (stored in ``state/``)."""
    on_revoked: Retirement = Retirement.REMOVE
    on_unassigned: Retirement = Retirement.REMOVE
    unassign_grace: float = 3600.0
    """Seconds, 0 to 2 592 000, between a confirmed unassignment and what ``on_unassigned`` says."""
    on_alert: tuple[str, ...] | None = None
    """Argv of the alert command; ``CERTCTRL_ALERT`` is the path of the alert as JSON."""
    window: MaintenanceWindow | None = None
    trust_store: TrustStore = attrs.field(factory=TrustStore)
    acme: AcmeAnswers = attrs.field(factory=AcmeAnswers)

    @property
    def argvs(self) -> tuple[tuple[str, ...], ...]:
        """Every command that the policy names: the listed ones, that of alerts and that of the trust store."""
        others = filter(None, (self.on_alert, self.trust_store.command))
        return (*(command.argv for command in self.commands.values()), *others)
