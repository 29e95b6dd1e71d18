"""Render a plan: what each step does and why, as text for the operator or as JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import attrs

from certctrl.install.plan.policy import explain
from certctrl.install.plan.values import InstallPlan, PlanSet, Run, Verification, Write
from certctrl.model.plan import VerifyTls
from certctrl.text import one_line


class StepKind(StrEnum):
    """What a step does."""

    SWITCH = "switch"
    WRITE = "write"
    IMPORT_CA = "import_ca"
    RUN = "run"
    VERIFY = "verify"


@attrs.frozen(kw_only=True)
class Step:
    """One line of a plan."""

    kind: StepKind
    what: str
    """Path, command line or endpoint."""
    why: str
    item: str = ""
    cert_ids: tuple[int, ...] = ()
    argv: tuple[str, ...] = ()


SIGNS: Mapping[StepKind, str] = {
    StepKind.SWITCH: "~ switch",
    StepKind.WRITE: "~ write ",
    StepKind.IMPORT_CA: "+ import",
    StepKind.RUN: "> run   ",
    StepKind.VERIFY: "? verify",
}


def plan_lines(plan: InstallPlan) -> tuple[Step, ...]:
    """Return everything that would be done, in order; empty: nothing to do."""
    return tuple(line for plan_set in plan.sets for line in _lines_of(plan_set))


def plan_text(plan: InstallPlan) -> str:
    """Return the plan as text for the operator."""
    lines = [f"{SIGNS[line.kind]}  {line.what}\n            {line.why}" for line in plan_lines(plan)]
    lines += [f"! refused  {explain(refusal)}" + _item_of(refusal.item) for refusal in plan.refusals]
    lines += [f"! left out item {one_line(item)}: {why}" for item, why in plan.blocked.items()]
    lines += [f". waiting  item {one_line(item)}: {why}" for item, why in plan.waiting.items()]
    lines += [f". staged   certificate {cert_id}: {why}" for cert_id, why in plan.held.items()]
    return "\n".join(lines) if lines else "Nothing to do."


def plan_json(plan: InstallPlan) -> dict[str, Any]:
    """Return the plan as plain JSON; ``diff`` is the text for the operator."""
    lines = plan_lines(plan)
    return {
        "changes": bool(lines),
        "diff": plan_text(plan),
        "steps": [attrs.asdict(line) for line in lines],
        "refusals": [attrs.asdict(refusal) | {"line": refusal.line} for refusal in plan.refusals],
        "blocked": dict(plan.blocked),
        "waiting": dict(plan.waiting),
        "held": {str(cert_id): why for cert_id, why in plan.held.items()},
    }


def _item_of(item: str) -> str:
    return f" (item {one_line(item)})" if item else ""


def _lines_of(plan_set: PlanSet) -> list[Step]:
    """Return the lines of one group, in order."""
    steps = [
        Step(
            kind=StepKind.SWITCH,
            what=f"certs/.live/{cert.name}",
            why=f"certificate {cert.cert_id}: {cert.live or 'nothing'} -> {cert.generation}",
            cert_ids=(cert.cert_id,),
        )
        for cert in plan_set.switches
    ]
    steps += [Step(kind=StepKind.IMPORT_CA, what=f"CA {ca}", why="not in the trust store") for ca in plan_set.imports]
    for level in plan_set.levels:
        steps += [_write_step(write) for write in level.writes]
        steps += [_run_step(run) for run in level.runs]
    return steps + [_verify_step(one) for one in plan_set.verifications]


def _write_step(write: Write) -> Step:
    owner = "" if write.uid is None and write.gid is None else f" {_number(write.uid)}:{_number(write.gid)}"
    certs = () if write.cert_id is None else (write.cert_id,)
    return Step(
        kind=StepKind.WRITE,
        what=f"{one_line(write.path)} {write.mode:04o}{owner}",
        why=f"item {one_line(write.item)}: {write.source}, {write.why}",
        item=write.item,
        cert_ids=certs,
    )


def _number(number: int | None) -> str:
    return "-" if number is None else str(number)


def _run_step(run: Run) -> Step:
    user = f" as {run.grant.run_as}" if run.grant.run_as else ""
    return Step(
        kind=StepKind.RUN,
        what=one_line(" ".join(run.grant.argv)) + user,
        why=f"item {one_line(', '.join(run.items))}: {run.why}",
        item=run.items[0],
        cert_ids=run.cert_ids,
        argv=run.grant.argv,
    )


def _verify_step(one: Verification) -> Step:
    if isinstance(one.verify, VerifyTls):
        name = f" for {one_line(one.verify.server_name)}" if one.verify.server_name else ""
        start = f" ({one.verify.starttls})" if one.verify.starttls else ""
        what, argv = f"{one_line(one.verify.host)}:{one.verify.port}{name}{start}", tuple[str, ...]()
        why = "serves " + " or ".join(f"{one_of[:16]}…" for one_of in one.fingerprints)
    else:
        argv = one.grant.argv if one.grant is not None else one.verify.cmd_argv
        what, why = one_line(" ".join(argv)), "exits with 0"
    return Step(
        kind=StepKind.VERIFY,
        what=what,
        why=f"item {one_line(one.item)}: {why}",
        item=one.item,
        cert_ids=one.cert_ids,
        argv=argv,
    )
