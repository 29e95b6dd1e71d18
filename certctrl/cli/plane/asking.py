"""``plane ask``: ask the live agent of a device about its host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from certctrl.cli.output import write_json, write_line, write_problems
from certctrl.cli.plane.connection import OperatorApi, call_plane, shared_options, show
from certctrl.errors import UsageError
from certctrl.model.questions import MAX_SECONDS, QuestionKind
from certctrl.text import counted, nearest


def ask(
    ctx: typer.Context,
    device: Annotated[str, typer.Argument(metavar="ID|NAME", help="The device.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help=f"One of {', '.join(QuestionKind)}.")],
    timeout: Annotated[
        int,
        typer.Option("--timeout", metavar="SECONDS", min=1, max=MAX_SECONDS, help="Time limit for the answer."),
    ] = 15,
) -> None:
    """Ask the live agent of a device about its host.

    Questions are status, doctor, plan and history. The answer is that of the command of this name on the host, where
    nothing changes. The agent must be connected by push ("poll_mode": "push"), and its policy.json may refuse questions
    ("remote_questions": "off"). The control plane records who asked what, and the host logs it.

    \b
    cert-ctrl plane ask --data /var/lib/plane web-1 status
    cert-ctrl plane ask --data /var/lib/plane web-1 doctor --json
    """
    if question not in tuple(QuestionKind):
        meant = nearest(question, tuple(QuestionKind))
        fix = f"did you mean {meant}?" if meant else f"ask for {', '.join(QuestionKind)}"
        raise UsageError(f"agents do not answer {question!r}", fix=fix)

    async def request(api: OperatorApi) -> Any:
        body = {"question": question, "timeout_seconds": timeout}
        return await api.call("POST", f"devices/{await api.device(device)}/questions", body)

    record = call_plane(ctx, request)
    if shared_options(ctx).as_json:
        show(ctx, record, "")
        return
    try:
        lines = _VIEWS[QuestionKind(question)](record["answer"])
    except (KeyError, TypeError, ValueError, AttributeError):  # an agent of another version
        write_json(record["answer"])
        return
    for line in lines:
        write_line(line)


def _status(answer: dict[str, Any]) -> Sequence[str]:
    from certctrl.cli.status_view import block, details

    return [*block(answer), *details(answer, answer.get("certificates"))]


def _doctor(answer: dict[str, Any]) -> Sequence[str]:
    lines: list[str] = []
    findings = answer["findings"]
    for one in findings:
        lines.append(f"{one['level']:<4}  {one['check']}: {one['what']}")
        lines += [f"      fix: {one['fix']}"] if one.get("fix") else []
    bad, odd = (sum(one["level"] == level for one in findings) for level in ("FAIL", "WARN"))
    return [*lines, "", f"{counted(len(findings), 'finding')}: {counted(bad, 'failure')}, {counted(odd, 'warning')}"]


def _plan(answer: dict[str, Any]) -> Sequence[str]:
    lines = list(answer["diff"].splitlines())
    write_problems(answer.get("problems") or ())
    return lines


def _history(answer: dict[str, Any]) -> Sequence[str]:
    from certctrl.cli.commands.history import show_entries

    show_entries(list(answer["entries"]))
    return ()


_VIEWS: dict[QuestionKind, Callable[[dict[str, Any]], Sequence[str]]] = {
    QuestionKind.STATUS: _status,
    QuestionKind.DOCTOR: _doctor,
    QuestionKind.PLAN: _plan,
    QuestionKind.HISTORY: _history,
}
