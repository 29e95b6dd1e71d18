"""Render a plan, with the reason of each step, as text for the operator or as JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import attrs

from certctrl import lean
from certctrl.install.plan.policy import explain
from certctrl.install.plan.values import GroupPlan, InstallPlan, Run, Verification, Write
from certctrl.model.plan import VerifyTls
from certctrl.model.status import not_deployed
from certctrl.text import one_line


class LineKind(StrEnum):
    """The kind of one line."""

    SWITCH = "switch"
    WRITE = "write"
    IMPORT_CA = "import_ca"
    RUN = "run"
    VERIFY = "verify"


@lean.frozen(kw_only=True)
class PlanLine:
    """One line of a plan."""

    kind: LineKind
    what: str
    """Path, command line or endpoint."""
    why: str
    item: str = ""
    cert_ids: tuple[int, ...] = ()
    argv: tuple[str, ...] = ()


SIGNS: Mapping[LineKind, str] = {
    LineKind.SWITCH: "~ switch",
    LineKind.WRITE: "~ write ",
    LineKind.IMPORT_CA: "+ import",
    LineKind.RUN: "> run   ",
    LineKind.VERIFY: "? verify",
}


def plan_lines(plan: InstallPlan) -> tuple[PlanLine, ...]:
    """Return a line for each action, in order; empty if there is nothing to do."""
    return tuple(line for group_plan in plan.groups for line in _lines_of(group_plan))


def plan_text(plan: InstallPlan) -> str:
    """Return the plan as text for the operator."""
    lines = [f"{SIGNS[line.kind]}  {line.what}\n            {line.why}" for line in plan_lines(plan)]
    lines += [f"! refused  {explain(refusal)}" + _item_of(refusal.item) for refusal in plan.refusals]
    lines += [f"! left out item {one_line(item)}: {why}" for item, why in plan.blocked.items()]
    lines += [f". waiting  item {one_line(item)}: {why}" for item, why in plan.waiting.items()]
    lines += [f". staged   certificate {cert_id}: {why}" for cert_id, why in plan.held.items()]
    return "\n".join(lines) if lines else "Nothing to do."


def plan_json(plan: InstallPlan, awaited: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return the plan as plain JSON; ``diff`` is the text for the operator.

    ``awaited``: the certificates that the plane has not issued yet, each with ``cert_id``, ``name`` and ``order_id``.
    """
    lines = plan_lines(plan)
    coming = [f". awaited  certificate {one['cert_id']} ({one['name']}): {not_deployed(one)}" for one in awaited]
    return {
        "changes": bool(lines),
        "diff": "\n".join([plan_text(plan), *coming]),
        "awaited": [dict(one) for one in awaited],
        "steps": [attrs.asdict(line) for line in lines],
        "refusals": [attrs.asdict(refusal) | {"line": refusal.line} for refusal in plan.refusals],
        "blocked": dict(plan.blocked),
        "waiting": dict(plan.waiting),
        "held": {str(cert_id): why for cert_id, why in plan.held.items()},
    }


def _item_of(item: str) -> str:
    return f" (item {one_line(item)})" if item else ""


def _lines_of(group_plan: GroupPlan) -> list[PlanLine]:
    """Return the lines of one group, in order."""
    steps = [
        PlanLine(
            kind=LineKind.SWITCH,
            what=f"certs/.live/{cert.name}",
            why=f"certificate {cert.cert_id}: {cert.live or 'nothing'} -> {cert.made or cert.generation}",
            cert_ids=(cert.cert_id,),
        )
        for cert in group_plan.switches
    ]
    steps += [
        PlanLine(kind=LineKind.IMPORT_CA, what=f"CA {ca}", why="not in the trust store") for ca in group_plan.imports
    ]
    for step in group_plan.steps:
        steps += [_write_step(write) for write in step.writes]
        steps += [_run_step(run) for run in step.runs]
    return steps + [_verify_step(one) for one in group_plan.verifications]


def _write_step(write: Write) -> PlanLine:
    owner = "" if write.uid is None and write.gid is None else f" {_number(write.uid)}:{_number(write.gid)}"
    certs = () if write.cert_id is None else (write.cert_id,)
    return PlanLine(
        kind=LineKind.WRITE,
        what=f"{one_line(write.path)} {write.mode:04o}{owner}",
        why=f"item {one_line(write.item)}: {write.source}, {write.why}{', in place' if write.in_place else ''}",
        item=write.item,
        cert_ids=certs,
    )


def _number(number: int | None) -> str:
    return "-" if number is None else str(number)


def _run_step(run: Run) -> PlanLine:
    user = f" as {run.grant.run_as}" if run.grant.run_as else ""
    return PlanLine(
        kind=LineKind.RUN,
        what=one_line(" ".join(run.grant.argv)) + user,
        why=f"item {one_line(', '.join(run.items))}: {run.why}",
        item=run.items[0],
        cert_ids=run.cert_ids,
        argv=run.grant.argv,
    )


def _verify_step(one: Verification) -> PlanLine:
    if isinstance(one.verify, VerifyTls):
        name = f" for {one_line(one.verify.server_name)}" if one.verify.server_name else ""
        start = f" ({one.verify.starttls})" if one.verify.starttls else ""
        what, argv = f"{one_line(one.verify.host)}:{one.verify.port}{name}{start}", tuple[str, ...]()
        why = "serves " + " or ".join(f"{one_of[:16]}…" for one_of in one.fingerprints)
    else:
        argv = one.grant.argv if one.grant is not None else one.verify.cmd_argv
        what, why = one_line(" ".join(argv)), "exits with 0"
    return PlanLine(
        kind=LineKind.VERIFY,
        what=what,
        why=f"item {one_line(one.item)}: {why}",
        item=one.item,
        cert_ids=one.cert_ids,
        argv=argv,
    )
