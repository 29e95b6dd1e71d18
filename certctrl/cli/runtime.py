"""Run async code from a command, and report an error that ends it.

The only ``trio.run`` of the project. Exception groups are flattened; each error is printed as ``cert-ctrl: error: …``
and ``fix: …``. ``--debug`` adds the traceback, with secrets masked.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar, assert_never

from certctrl.cli.invocation import Invocation
from certctrl.errors import CertctrlError, ExitStatus

T = TypeVar("T")
PROGRAM = "cert-ctrl"


def run(async_fn: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Run an async function; the only ``trio.run`` of the project."""
    import trio

    gc.enable()
    return trio.run(async_fn, *args)


def report(error: BaseException, invoked: Invocation) -> ExitStatus:
    """Print the error that ended a command and return its exit status."""
    leaves = list(flatten(error))
    if any(isinstance(leaf, KeyboardInterrupt) or type(leaf).__name__ == "Abort" for leaf in leaves):
        from certctrl.cli.output import write_error  # here and below: a daemon prints errors only as it ends

        write_error(f"{PROGRAM}: interrupted")
        return ExitStatus.INTERRUPTED
    if invoked.debug:
        _print_traceback(error)
    status = max((_report_one(leaf, invoked) for leaf in leaves), key=_rank)
    sys.stderr.flush()
    return status


def flatten(error: BaseException) -> Iterable[BaseException]:
    """Yield the exceptions of a group without duplicates; a plain exception yields itself."""
    if not isinstance(error, BaseExceptionGroup):
        yield error
        return
    seen: set[tuple[type, str]] = set()
    for inner in error.exceptions:
        for leaf in flatten(inner):
            mark = (type(leaf), str(leaf))
            if mark not in seen:
                seen.add(mark)
                yield leaf


def _rank(status: ExitStatus) -> int:
    """Rank exit statuses: of several errors the most specific one wins, and a bug wins over all."""
    match status:
        case ExitStatus.DONE:
            return 0
        case ExitStatus.UNAVAILABLE:
            return 1
        case ExitStatus.BUSY:
            return 2
        case (
            ExitStatus.USAGE
            | ExitStatus.CHANGES
            | ExitStatus.NOT_RUNNING
            | ExitStatus.DISK
            | ExitStatus.NOT_REGISTERED
            | ExitStatus.CONFIG
            | ExitStatus.INTERRUPTED
        ):
            return 3
        case ExitStatus.FAILED:
            return 4
        case _:
            assert_never(status)


def _report_one(error: BaseException, invoked: Invocation) -> ExitStatus:
    if isinstance(error, CertctrlError):
        return print_failure(str(error), invoked.with_directory(error.fix or ""), error.exit_status)
    if hasattr(error, "format_message") and hasattr(error, "ctx"):
        return _report_usage(error)
    if isinstance(error, OSError) and error.strerror:  # unexpected, but a host problem, not a bug
        where = f"{error.filename}: " if error.filename else ""
        return print_failure(
            f"{where}{error.strerror}", f"run `{PROGRAM} --debug …` to see where it happened", ExitStatus.DISK
        )
    place = _place(error)
    hint = "" if invoked.debug else f"run `{PROGRAM} --debug …` and report the traceback"
    return print_failure(f"unexpected {type(error).__name__} at {place}", hint, ExitStatus.FAILED)


def print_failure(what: str, fix: str, status: ExitStatus) -> ExitStatus:
    """Print an error and its fix; return ``status``."""
    from certctrl.cli.output import write_error
    from certctrl.logs.redact import redact

    write_error(f"{PROGRAM}: error: {redact(what)}")
    if fix:
        write_error(f"fix: {redact(fix)}")
    return status


def _report_usage(error: Any) -> ExitStatus:
    """Print a usage error; a group without a subcommand prints its help."""
    path = error.ctx.command_path if error.ctx is not None else PROGRAM
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(error.format_message() + "\n")
    else:
        print_failure(error.format_message(), f"run `{path} --help`", ExitStatus.USAGE)
    return ExitStatus.USAGE


def _place(error: BaseException) -> str:
    """Return ``module:line`` of the innermost frame of the project; no values."""
    place = "?"
    trace = error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "?")
        if place == "?" or module.startswith("certctrl"):
            place = f"{module}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _print_traceback(error: BaseException) -> None:
    import traceback

    from certctrl.cli.output import write_error
    from certctrl.logs.redact import redact

    for text in traceback.format_exception(error):
        for line in redact(text).splitlines():
            write_error(line)
