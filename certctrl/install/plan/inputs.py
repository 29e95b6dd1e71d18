"""What the planner looks at: the items, what is wanted, what is there, and what it is told of this host. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import attrs

from certctrl.install.plan.dependencies import Binding
from certctrl.install.plan.policy import AgentIdentity
from certctrl.install.plan.values import DesiredCa, DesiredCert, Destination, Write
from certctrl.model.plan import InstallItem
from certctrl.model.policy import HostPolicy, TrustStore

# without --fresh Debian's command leaves a dead link behind when a CA is taken out
DEBIAN = TrustStore(
    directory="/usr/local/share/ca-certificates", command=("/usr/sbin/update-ca-certificates", "--fresh")
)
RED_HAT = TrustStore(directory="/etc/pki/ca-trust/source/anchors", command=("/usr/bin/update-ca-trust",))


@attrs.frozen(kw_only=True)
class Host:
    """What the planner is told of this host besides its policy."""

    identity: AgentIdentity
    users: Mapping[str, int] = attrs.field(factory=dict)
    groups: Mapping[str, int] = attrs.field(factory=dict)
    executables: Mapping[str, str] = attrs.field(factory=dict)
    """Path of an executable -> why it will not be run; absent: nothing is known against it."""
    trust_store: TrustStore = DEBIAN
    """The system's own trust store: what to suggest while the policy names none."""


@attrs.frozen
class PlanInputs:
    """One planning, all it knows."""

    items: Mapping[str, InstallItem]
    certs: Mapping[int, DesiredCert]
    cas: Mapping[int, DesiredCa]
    destinations: Mapping[str, Destination]
    policy: HostPolicy
    activations: Mapping[str, str]
    host: Host
    bound: Mapping[str, Binding]
    examine: Collection[int] | None = None
    """Certificates whose files are compared; None: all."""
    writes: Mapping[str, tuple[Write, ...]] = attrs.field(factory=dict)
    """Item id -> files that are not as they should be; only of items that may be carried out."""
