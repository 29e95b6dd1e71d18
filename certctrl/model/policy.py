"""HostPolicy: what the control plane may write and run on this host (safety.md §1.11, T1).

The host has the last word. Out of the box nothing outside ``certs/`` may be written and no command run.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import attrs


class OnRevoked(StrEnum):
    """What happens to a revoked certificate."""

    REMOVE = "remove"
    PLACEHOLDER = "placeholder"
    """Replace it by a self-signed certificate."""
    KEEP = "keep"


@attrs.frozen(kw_only=True)
class NamedCommand:
    """One command this host allows, by exact argv."""

    argv: tuple[str, ...]
    """Absolute path of the executable, then its arguments, compared word for word; ``{staged}`` may stand in one."""
    run_as: str | None = None
    timeout_seconds: float = 60.0
    """1 to 600."""
    sha256: str | None = None
    """Pin of the executable's bytes (lower-case hex); None: not pinned."""
    env: tuple[str, ...] = ()
    """Names of environment variables the plane may set for it, besides ``CERTCTRL_…``."""


@attrs.frozen(kw_only=True)
class MaintenanceWindow:
    """When new material may be swapped in; always staged at once."""

    days: tuple[str, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
    from_: str = "00:00"
    """Wire name ``from``: local time HH:MM."""
    to: str = "24:00"
    """Local time HH:MM; before ``from``: over midnight."""
    timezone: str = "UTC"
    override_when_life_below: float = 0.2
    """Fraction of the served certificate's life left below which the window is ignored."""


@attrs.frozen(kw_only=True)
class TrustStore:
    """Where CA imports go; ``directory`` None: CA imports are refused."""

    directory: str | None = None
    """E.g. /usr/local/share/ca-certificates (Debian), /etc/pki/ca-trust/source/anchors (Red Hat)."""
    command: tuple[str, ...] | None = None
    """Argv run after a change; e.g. /usr/sbin/update-ca-certificates."""


@attrs.frozen(kw_only=True)
class HostPolicy:
    """``policy.json``, root-owned, read at start and on SIGHUP."""

    write_roots: tuple[str, ...] = ()
    """Directories below which the plane may write, besides ``certs/``."""
    commands: Mapping[str, NamedCommand] = attrs.field(factory=dict)
    """Allowed commands by a name of the operator's choice."""
    remote_commands: str = "on"
    """``on`` or ``off``: the off switch for every command of the plane's."""
    run_as: tuple[str, ...] = ()
    """Users the plane's commands may run as, besides the agent's own."""
    owners: tuple[str, ...] = ()
    """Users and groups that the plane may give copied files to, besides root and the agent's own."""
    shell: bool = False
    plaintext_keys: bool = False
    trust_on_first_use: bool = False
    """Pin a listed script without ``sha256`` at its first run (in ``state/``)."""
    on_revoked: OnRevoked = OnRevoked.REMOVE
    on_alert: tuple[str, ...] | None = None
    """Argv of the operator's alert command (given ``CERTCTRL_ALERT`` as JSON file path)."""
    window: MaintenanceWindow | None = None
    trust_store: TrustStore = attrs.field(factory=TrustStore)
