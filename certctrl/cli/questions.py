"""Answer the control plane's questions to the daemon, as the commands of these names do with ``--json``.

Each runs in a thread, like a separate process: it asks the daemon through the control socket and reads files, while the
daemon continues.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, assert_never

import trio

from certctrl.model.questions import QuestionKind

if TYPE_CHECKING:
    from certctrl.cli.invocation import Invocation
    from certctrl.store.layout import ConfigDir

DOCTOR_SECONDS = 25.0
PLAN_SECONDS = 25.0
NEWEST = 100
"""Entries of `history`."""


_one_thread = trio.CapacityLimiter(1)


async def answer_of(invoked: Invocation, layout: ConfigDir, question: QuestionKind) -> Any:
    """Return the answer to a question as plain JSON. Raises CertctrlError."""
    made = partial(_answer, invoked, layout, question)
    return await trio.to_thread.run_sync(made, abandon_on_cancel=True, limiter=_one_thread)


def _answer(invoked: Invocation, layout: ConfigDir, question: QuestionKind) -> Any:
    match question:
        case QuestionKind.STATUS:
            return _status(layout)
        case QuestionKind.PLAN:
            return _plan(layout)
        case QuestionKind.DOCTOR:
            return {"findings": _findings(invoked, layout)}
        case QuestionKind.HISTORY:
            from certctrl.cli.facts import past_deployments

            return {"entries": past_deployments(layout)[-NEWEST:]}
        case other:
            assert_never(other)


def _status(layout: ConfigDir) -> dict[str, Any]:
    from certctrl.cli.facts import certificates, gather
    from certctrl.cli.status_view import status_json

    return status_json(gather(layout), certificates(layout))


def _plan(layout: ConfigDir) -> Any:
    from certctrl.cli.control import ask
    from certctrl.errors import BusyError

    reply = ask(layout, "plan", seconds=PLAN_SECONDS)
    if reply is None:
        raise BusyError("the daemon is stopping")
    return reply.data


def _findings(invoked: Invocation, layout: ConfigDir) -> list[dict[str, Any]]:
    from certctrl.cli.doctor.examine import context_of, examine, findings_json
    from certctrl.cli.runtime import run
    from certctrl.errors import BusyError

    async def within_limit() -> list[dict[str, Any]]:
        with trio.move_on_after(DOCTOR_SECONDS):
            return findings_json(invoked, await examine(context_of(layout)))
        raise BusyError(f"the checks take more than {DOCTOR_SECONDS:g} s")

    return run(within_limit)
