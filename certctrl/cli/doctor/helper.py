"""Check whether the root helper does what this agent's user cannot, and name the lines that its policy needs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence

from certctrl.cli.doctor.finding import CheckContext, Finding, fail, ok, warn
from certctrl.errors import CertctrlError
from certctrl.helper.client import HelperClient
from certctrl.helper.messages import POLICY
from certctrl.install.deploy.observe import gid_of, uid_of
from certctrl.install.plan.policy import AgentIdentity, is_local, refuse_path
from certctrl.install.process.proc import own_names
from certctrl.model.commands import unit_of
from certctrl.model.modes import has_key
from certctrl.model.plan import CopyAction, ExecAction, InstallItem
from certctrl.model.policy import HostPolicy
from certctrl.store.disk.helper import rule_for
from certctrl.text import counted, one_line

POLKIT = "/usr/share/dbus-1/system-services/org.freedesktop.PolicyKit1.service"
"""It is there if polkit is installed; minimal servers have none."""


def helper_findings(context: CheckContext) -> Iterator[Finding]:
    """Yield a warning for each file and unit that needs the root helper and does not have it."""
    if os.geteuid() == 0 or context.config is None:
        return
    from certctrl.agent.install_config import active_items
    from certctrl.store.config.files import load_policy

    items = [item for item in active_items(context.layout, context.store.installed) if item.enabled]
    policy = load_policy(context.layout)
    identity = AgentIdentity(config_dir=str(context.layout.root))
    files = {
        path: (item, number)
        for one in items
        for item, number, path in _needing(one)
        if not refuse_path(policy, path, identity, local=is_local(item.id))  # root must not allow what the host refuses
    }
    units = {unit: (item, verb) for one in items for item, verb, unit in _units(one, policy)}
    socket = context.config.application.helper_socket
    client = HelperClient.at(socket)
    if not (files or units) and not client.is_there:
        return
    try:
        rules, allowed = client.rules(), client.units()
    except CertctrlError as error:
        if not (files or units):  # it is for another agent of this host
            return
        yield fail("helper", str(error), error.fix or "systemctl status cert-ctrl-helper")
        return
    start = "" if client.is_there else _start(socket)
    missing = [
        *(_missing_file(*files[path], path, start) for path in files if rule_for(rules, path) is None),
        *(_missing_unit(*units[unit], unit, start) for unit in units if units[unit][1] not in allowed.get(unit, ())),
    ]
    yield from missing
    if not missing:
        kinds = f"{counted(len(rules), 'rule')} for files, {counted(len(allowed), 'unit')}"
        yield ok("helper", f"the root helper has what the items need ({kinds})")


def _start(socket: str) -> str:
    """Return what lets this user ask the helper."""
    if os.path.exists(socket):
        return f"let {own_names()[0]} connect to {socket} (SupplementaryGroups=cert-ctrl in its unit), and "
    return "systemctl enable --now cert-ctrl-helper.socket, and "


def _needing(item: InstallItem) -> Iterator[tuple[CopyAction, int, str]]:
    """Yield the targets of an item that this user cannot write, or cannot give the rights that they should have."""
    if not isinstance(item, CopyAction) or item.refused:
        return
    for number, path in enumerate(item.targets):
        owner, group, directory = item.owner_of(number), item.group_of(number), os.path.dirname(path)
        foreign = owner is not None and uid_of(owner) != os.geteuid()
        foreign = foreign or (group is not None and gid_of(group) not in {os.getegid(), *os.getgroups()})
        if foreign or (os.path.isdir(directory) and not os.access(directory, os.W_OK, effective_ids=True)):
            yield item, number, path


def _units(item: InstallItem, policy: HostPolicy) -> Iterator[tuple[ExecAction, str, str]]:
    """Yield verb and unit, if an item calls systemctl for them; `cert-ctrl-reload@` needs none where polkit is installed."""
    if not isinstance(item, ExecAction) or item.refused or not item.cmd_argv:
        return
    named = policy.commands.get(item.cmd_argv[0])
    argv: Sequence[str] = named.argv if named is not None and len(item.cmd_argv) == 1 else item.cmd_argv
    found = unit_of(argv)
    if found is not None and (argv[1] != "start" or not os.path.exists(POLKIT)):
        yield item, *found


def _missing_file(item: CopyAction, number: int, path: str, start: str) -> Finding:
    mode = item.mode_of(number) or (0o600 if has_key(item.sources[number]) else 0o644)
    owner, group = item.owner_of(number) or "root", item.group_of(number) or "root"
    line = {"path": path, "owner": owner, "group": group, "mode": f"{mode:04o}"}
    what = f"item {one_line(item.id)}: this agent's user cannot write {path}, or not with the rights that it needs"
    return warn("helper", what, _fix(start, f'"files": [{json.dumps(line)}]'))


def _missing_unit(item: ExecAction, verb: str, unit: str, start: str) -> Finding:
    what = f"item {one_line(item.id)}: this agent's user may not {verb} {unit}, unless polkit allows it"
    return warn("helper", what, _fix(start, f'"units": {json.dumps({unit: [verb]})}'))


def _fix(start: str, line: str) -> str:
    return f"{start}in {POLICY}, below {json.dumps(own_names()[0])}: {line}"
