"""Find the items that this host refuses, and the others that are left out with them. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import attrs

from certctrl.install.material.formats import is_virtual
from certctrl.install.plan.copy_items import is_whole
from certctrl.install.plan.inputs import PlanInputs
from certctrl.install.plan.policy import (
    MAX_TIMEOUT,
    AgentIdentity,
    Grant,
    Refusal,
    is_local,
    judge_command,
    judge_exec,
    refuse_owner,
    refuse_path,
)
from certctrl.install.plan.values import Destination, GivenRights
from certctrl.model.modes import KEY_MODES, has_key
from certctrl.model.plan import CA_FILES, CopyAction, ExecAction, InstallItem, ObjectType, VerifyCommand, WriteMethod
from certctrl.model.policy import HostPolicy, TrustStore
from certctrl.text import one_line

VERIFY_SECONDS = 60.0
"""Time limit in seconds of a check or verify command that the policy does not list."""


def argvs_of(item: InstallItem) -> list[tuple[str, ...]]:
    """Return all commands that an item requests."""
    argvs = [item.check] if isinstance(item, CopyAction) and item.check else []
    if isinstance(item, ExecAction):
        argvs.append(item.cmd_argv or ("/bin/sh", "-c", item.cmd or ""))
    verify = getattr(item, "verify", None)
    if isinstance(verify, VerifyCommand):
        argvs.append(verify.cmd_argv)
    return argvs


def refusal_of(inputs: PlanInputs, item: InstallItem) -> Refusal | None:
    """Return the refusal of an item; None if it is allowed."""
    found: Refusal | None = None
    if item.refused:
        found = Refusal(what=f"carry out item {one_line(item.id, 80)}", why=item.refused)
    elif isinstance(item, CopyAction):
        found = _refuse_copy(inputs, item)
    elif isinstance(item, ExecAction):
        found = _refuse_grant(inputs, judge_exec(inputs.policy, item, inputs.host.identity))
    elif inputs.policy.trust_store.directory is None:
        found = no_trust_store(inputs.host.trust_store)
    verify = getattr(item, "verify", None)
    if found is None and isinstance(verify, VerifyCommand):
        found = _refuse_grant(inputs, judge_argv(inputs.policy, item.id, verify.cmd_argv, inputs.host.identity))
    return None if found is None else attrs.evolve(found, item=item.id)


def no_trust_store(suggested: TrustStore) -> Refusal:
    """Return the refusal of a host whose policy names no trust store."""
    value = {"directory": suggested.directory, "command": list(suggested.command or ())}
    return Refusal(what="import a CA", why="no trust store is named", setting="trust_store", value=value)


def judge_argv(policy: HostPolicy, item: str, argv: Sequence[str], identity: AgentIdentity) -> Grant | Refusal:
    """Judge the command of a check or verify."""
    judged = judge_command(policy, argv, identity, timeout=MAX_TIMEOUT, local=is_local(item), item=item)
    if isinstance(judged, Grant) and not judged.listed:
        return attrs.evolve(judged, timeout=VERIFY_SECONDS)
    return judged


def _refuse_grant(inputs: PlanInputs, judged: Grant | Refusal) -> Refusal | None:
    if isinstance(judged, Refusal):
        return judged
    fault = inputs.host.executables.get(judged.argv[0]) or inputs.host.scripts.get(judged.argv)
    if not fault and judged.run_as in inputs.host.absent_users:
        fault = f"there is no user {one_line(judged.run_as or '')} on this host"
    return Refusal(what=f"run {one_line(' '.join(judged.argv))}", why=fault) if fault else None


def _refuse_copy(inputs: PlanInputs, item: CopyAction) -> Refusal | None:
    identity, policy = inputs.host.identity, inputs.policy
    for name in item.sources:
        if not (name in CA_FILES if item.ob_type is ObjectType.CA else is_virtual(name)):
            return Refusal(what=f"copy {one_line(name)}", why="there is no such virtual file")
    for path in item.targets:
        if refusal := refuse_path(policy, path, identity, local=is_local(item.id)):
            return refusal
        there = inputs.destinations.get(path, Destination())
        if fault := there.refusal or _other_rights(item, path, there.given):
            return Refusal(what=f"write {one_line(path)}", why=fault)
    if refusal := refuse_owner(policy, item, identity):
        return refusal
    for names, table in zip(item.accounts, (inputs.host.users, inputs.host.groups), strict=True):
        if absent := sorted(names - table.keys()):
            owner = absent[0]
            return Refusal(what=f"give files to {one_line(owner)}", why="there is no such user or group on this host")
    return _refuse_grant(inputs, judge_argv(policy, item.id, item.check, identity)) if item.check else None


def _other_rights(item: CopyAction, path: str, given: GivenRights | None) -> str:
    """Return how the rights that an item asks for differ from those that the root helper gives; empty: they do not."""
    if given is None:
        return ""
    if item.write is WriteMethod.IN_PLACE:
        return "the root helper writes no file in place"
    number = item.targets.index(path)
    owner, group, mode = item.owner_of(number), item.group_of(number), item.mode_of(number)
    gives = f"the root helper gives it {given.owner}:{given.group} {given.mode:04o}, but"
    if has_key(item.sources[number]) and given.mode & ~KEY_MODES:
        return f"{gives} a private key may have at most {KEY_MODES:04o}"
    if owner not in (None, given.owner, str(given.uid)):
        return f"{gives} the item wants owner {one_line(owner or '')}"
    if group not in (None, given.group, str(given.gid)):
        return f"{gives} the item wants group {one_line(group or '')}"
    return f"{gives} the item wants mode {mode:04o}" if mode not in (None, given.mode) else ""


def collisions(items: Sequence[InstallItem], refused: Collection[str]) -> list[Refusal]:
    """Refuse items whose target another item already writes: they would overwrite each other forever.

    Local items come first, so the plane cannot take over a target of the operator.
    """
    taken: dict[str, str] = {}
    found = []
    for item in sorted(items, key=lambda item: not is_local(item.id)):
        if not isinstance(item, CopyAction) or item.id in refused:
            continue
        mine: dict[str, str] = {}
        for path in item.targets:
            if (other := taken.get(path) or mine.get(path)) is not None:
                why = f"item {one_line(other)} writes it too"
                found.append(Refusal(item=item.id, what=f"write {one_line(path)}", why=why))
                break
            mine[path] = item.id
        else:
            taken |= mine
    return found


def blocked_items(inputs: PlanInputs, refused: Collection[str]) -> dict[str, str]:
    """Return allowed items that are left out because of a refused one: item id -> why.

    Local items form pairs only with each other, so that the plane cannot keep them from being written.
    """
    blocked: dict[str, str] = {}
    halves: dict[tuple[int, bool], list[CopyAction]] = {}
    for item in inputs.items.values():
        if isinstance(item, CopyAction) and not is_whole(item):
            for cert in inputs.bound[item.id].certs:
                halves.setdefault((cert, is_local(item.id)), []).append(item)
    for group in halves.values():
        missing = next((item.id for item in group if item.id in refused), None)
        for item in group if missing is not None else ():
            if item.id not in refused:
                blocked[item.id] = f"forms a pair with item {one_line(missing or '')}, which is refused"
    place = {name: number for number, name in enumerate(inputs.items)}
    users: dict[str, list[str]] = {}
    for item in inputs.items.values():
        for needed in item.depends_on:
            users.setdefault(needed, []).append(item.id)
    out = {*refused, *blocked}
    fresh = out.copy()
    while fresh:  # in rounds: each can only affect items that depend on the previous one
        affected = {user for name in fresh for user in users.get(name, ())} - out
        candidates = [inputs.items[name] for name in sorted(affected, key=place.__getitem__)]
        new = {item.id: why for item in candidates if (why := _left_out_with(inputs, item, out))}
        blocked |= new
        fresh = set(new)
        out |= fresh
    return blocked


def _left_out_with(inputs: PlanInputs, item: InstallItem, out: Collection[str]) -> str:
    """Return why an item is left out because of others; empty if it is not.

    A command after several copies still runs for the remaining ones: the refused target of one certificate must not
    keep nineteen others from being served.
    """
    needed = [inputs.items[name] for name in item.depends_on if name in inputs.items]
    gone = [one for one in needed if one.id in out and not one.continue_on_error]
    if isinstance(item, ExecAction) and any(isinstance(one, CopyAction) and one.id not in out for one in needed):
        gone = [one for one in gone if not isinstance(one, CopyAction)]
    return f"depends on item {one_line(gone[0].id)}, which is left out" if gone else ""
