"""The planner's inputs: items, desired and observed state, policy and host. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import attrs

from certctrl import lean
from certctrl.install.plan.dependencies import Binding
from certctrl.install.plan.policy import AgentIdentity
from certctrl.install.plan.values import DesiredCa, DesiredCert, Destination, Write
from certctrl.model.plan import InstallItem
from certctrl.model.policy import HostPolicy, TrustStore

# without --fresh, Debian's command leaves a dangling link when a CA is removed
DEBIAN = TrustStore(
    directory="/usr/local/share/ca-certificates", command=("/usr/sbin/update-ca-certificates", "--fresh")
)
RED_HAT = TrustStore(directory="/etc/pki/ca-trust/source/anchors", command=("/usr/bin/update-ca-trust",))


@lean.frozen(kw_only=True)
class Host:
    """Facts about this host that the planner needs."""

    identity: AgentIdentity
    users: Mapping[str, int] = attrs.field(factory=dict)
    groups: Mapping[str, int] = attrs.field(factory=dict)
    executables: Mapping[str, str] = attrs.field(factory=dict)
    """Path of an executable -> why it may not be run; absent: it may."""
    scripts: Mapping[tuple[str, ...], str] = attrs.field(factory=dict)
    """Command -> why its program may not run its script; absent: it may."""
    absent_users: Collection[str] = ()
    """Users that commands should run as, but this host does not have."""
    trust_store: TrustStore = DEBIAN
    """The system's trust store, suggested while the policy names none."""


@lean.frozen
class PlanInputs:
    """All inputs of one plan."""

    items: Mapping[str, InstallItem]
    certs: Mapping[int, DesiredCert]
    cas: Mapping[int, DesiredCa]
    destinations: Mapping[str, Destination]
    policy: HostPolicy
    activations: Mapping[str, str]
    host: Host
    bound: Mapping[str, Binding]
    copies_below: Mapping[str, tuple[str, ...]]
    """Item id -> the copy items that it depends on, directly or indirectly."""
    examine: Collection[int] | None = None
    """Certificates whose files are compared; None: all."""
    writes: Mapping[str, tuple[Write, ...]] = attrs.field(factory=dict)
    """Item id -> files to write, for items that may be carried out."""
