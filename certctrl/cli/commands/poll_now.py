"""``poll-now``: poll immediately, with or without a daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from certctrl.cli.daemon_or_local import daemon_or_local
from certctrl.cli.invocation import invocation
from certctrl.cli.output import write_error, write_json, write_line
from certctrl.errors import ExitStatus

POLL_SECONDS = 75.0


def poll_now(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Poll immediately, print the result, and close an open breaker.

    With a running daemon, the daemon polls and this command waits for the answer. Without one, this command polls,
    handles every signal, retries what failed and is due, and reports the outcomes.

    Exit status: 0 polled and done, 1 polled but something fails, 69 no usable answer.

    \b
    cert-ctrl -c /etc/cert-ctrl poll-now
    """
    result: dict[str, Any] = daemon_or_local(invocation(ctx), "poll-now", _here, seconds=POLL_SECONDS)
    text = str(result.get("poll") or "no answer")
    if as_json:
        write_json(result)
    else:
        write_line(f"Polled: {text}")
        write_line(f"Cursor: {result.get('cursor') or 'none'}")
        if "queue_depth" in result:
            write_line(f"Queue Depth: {result['queue_depth']} pending signals")
        for reason in result.get("failed", ()):
            write_error(f"failed: {reason}")
    if not text.startswith(("200", "204")):
        return ExitStatus.UNAVAILABLE
    return ExitStatus.FAILED if result.get("failed") else ExitStatus.DONE


async def _here(root: Path) -> dict[str, Any]:
    from certctrl.agent.oneshot import poll_once

    return await poll_once(root)
