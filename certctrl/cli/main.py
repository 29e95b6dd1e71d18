"""Run one command line: parse it, run the command, return the exit status.

Commands return an exit status or raise a `CertctrlError`. Frequent command lines skip the parser (`fast_path`).
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from certctrl.cli.fast_path import recognised
from certctrl.cli.invocation import Invocation
from certctrl.cli.runtime import PROGRAM, report
from certctrl.errors import ExitStatus


def run_command(argv: list[str]) -> int:
    """Run a command line and return its exit status; errors are printed."""
    collecting = gc.isenabled()
    gc.disable()  # a short command makes no garbage worth a collection; `runtime.run` enables it again
    invoked = Invocation()
    try:
        return _run(recognised(argv, invoked) or partial(_parsed, argv, invoked), invoked)
    finally:
        if collecting:
            gc.enable()


def _parsed(argv: list[str], invoked: Invocation) -> Any:
    """Parse and run with Typer."""
    from certctrl.cli.app import root_command

    return root_command(argv).main(args=argv, prog_name=PROGRAM, standalone_mode=False, obj=invoked)


def _run(command: Callable[[], Any], invoked: Invocation) -> int:
    try:
        status = command()
        sys.stdout.flush()
        return int(status) if isinstance(status, int) else ExitStatus.DONE
    except SystemExit as end:  # raised by Typer: shell completion, a closed pipe
        return end.code if isinstance(end.code, int) else ExitStatus.FAILED
    except BaseException as error:
        return report(error, invoked)
