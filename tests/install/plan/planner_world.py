"""Short constructors of certificates, items and a policy, and a world that a plan changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from certctrl.install.plan.inputs import Host
from certctrl.install.plan.planner import plan_for
from certctrl.install.plan.policy import AgentIdentity
from certctrl.install.plan.values import DesiredCa, DesiredCert, Destination, GroupPlan, InstallPlan
from certctrl.model.certificate import CertFacts
from certctrl.model.plan import CopyAction, ExecAction, InstallItem, VerifyTls
from certctrl.model.policy import HostPolicy, NamedCommand

HOST = Host(
    identity=AgentIdentity(config_dir="/etc/cc", user="root", group="root"),
    users={"root": 0, "www": 33},
    groups={"ssl": 44},
)
RELOAD = ("/usr/sbin/nginx", "-s", "reload")
POLICY = HostPolicy(
    write_roots=("/ssl",),
    commands={"nginx": NamedCommand(argv=RELOAD), "other": NamedCommand(argv=("/bin/other",))},
    owners=("www", "ssl"),
)
TLS = VerifyTls(host="a1.example", port=443)


def cert(n: int, generation: str = "g1", *, live: str | None = None, proven: bool = True) -> DesiredCert:
    return DesiredCert(
        facts=CertFacts(
            cert_id=n, name=f"a{n}.example", domains=(f"a{n}.example",), fingerprint_sha256=f"leaf{n}{generation}"
        ),
        generation=generation,
        live=generation if live is None else live,
        files={name: f"{name}@{n}@{generation}" for name in ("private.key", "fullchain.pem", "chain.pem")},
        proven=proven,
    )


def copy(n: str, ob: int | None, *, names: Sequence[str] = ("fullchain.pem", "private.key"), **more: Any) -> CopyAction:
    targets = tuple(f"/ssl/{n}/{name}" for name in names)
    return CopyAction(**{"id": n, "ob_id": ob, "sources": tuple(names), "targets": targets} | more)


def run(n: str, *needs: str, argv: tuple[str, ...] | None = RELOAD, **more: Any) -> ExecAction:
    return ExecAction(id=n, depends_on=needs, cmd_argv=argv, **more)


def plan(
    items: Sequence[InstallItem],
    *certs: DesiredCert,
    destinations: Mapping[str, Destination] | None = None,
    activations: Mapping[str, str] | None = None,
    policy: HostPolicy = POLICY,
    host: Host = HOST,
    **more: Any,
) -> InstallPlan:
    wanted = {one.cert_id: one for one in certs}
    return plan_for(items, wanted, destinations or {}, policy, activations or {}, host=host, **more)


@attrs.define
class World:
    """A disk and its markers, changed as a plan says."""

    destinations: dict[str, Destination] = attrs.field(factory=dict)
    activations: dict[str, str] = attrs.field(factory=dict)

    def apply(
        self, done: InstallPlan, certs: Sequence[DesiredCert], cas: Mapping[int, DesiredCa] | None = None
    ) -> None:
        by_id = {one.cert_id: one for one in certs}
        for one in done.groups:
            for step in one.steps:
                for write in step.writes:
                    files = (
                        by_id[write.cert_id].files if write.cert_id is not None else (cas or {})[write.ca_id or 0].files
                    )
                    self.destinations[write.path] = Destination(
                        sha256=files.get(write.source, ""), mode=write.mode, uid=write.uid or 0, gid=write.gid or 0
                    )
                for due in step.runs:
                    self.activations |= due.keys

    def settled(self, certs: Sequence[DesiredCert]) -> list[DesiredCert]:
        return [attrs.evolve(one, live=one.generation, proven=True) for one in certs]


def only_set(found: InstallPlan) -> GroupPlan:
    (one,) = found.groups
    return one


def runs(found: InstallPlan) -> list[tuple[str, ...]]:
    return [due.items for one in found.groups for step in one.steps for due in step.runs]


def writes(found: InstallPlan) -> list[str]:
    return [write.path for one in found.groups for step in one.steps for write in step.writes]
