"""``cert-ctrl`` and ``python -m certctrl``; ``--version`` imports no other module."""

import io
import os
import stat
import sys
import warnings

DISK_STATUS = 74
"""`ExitStatus.DISK`, without its import."""

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would slow down every start
    from typing import Any, TextIO


def main(argv: "list[str] | None" = None) -> int:
    """Run the command line and return its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments == ["--version"]:
        from certctrl import __version__

        sys.stdout.write(f"cert-ctrl {__version__}\n")
        return 0
    if arguments[:1] == ["helper"]:  # runs as root, and so without all that it does not need
        from certctrl.helper.serve import main as serve

        return serve(arguments[1:])
    from certctrl.cli.main import run_command

    return run_command(arguments)


def program() -> None:
    """Run the program and end the process with its exit status.

    Without Trio there are no threads and nothing to clean up: the process exits without the interpreter's teardown,
    which would add a sixth to the cost of `status` (docs/decisions.md).
    """
    _catch_signals(sys.argv[1:])
    if sys.stdin is None or sys.stdout is None or sys.stderr is None:
        _open_missing()
    if not sys.warnoptions:  # libraries warn about the form of certificates; not for our users
        warnings.simplefilter("ignore")
    # A locale may lack characters; a reader of a pipe sees each line immediately, such as the code that `register` waits with.
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    sys.stdout, sys.stderr = _forgiving(sys.stdout), _forgiving(sys.stderr)
    try:
        status = main()
    except OSError:  # a stream for messages cannot be written; all other errors are reported
        status = DISK_STATUS
    if not (_flushed(sys.stdout) and _flushed(sys.stderr)):
        status = status or DISK_STATUS
    if "trio" not in sys.modules:
        os._exit(status)
    sys.exit(status)


def _catch_signals(arguments: "list[str]") -> None:
    """Catch the signals of a service that is started, the daemon or the plane."""
    if "--keep-running" in arguments:
        from certctrl.agent.early_signals import catch_early_signals

        catch_early_signals()
    elif "plane" in arguments and "serve" in arguments:
        from certctrl.agent.early_signals import PLANE, catch_early_signals

        catch_early_signals(PLANE)


class _Pipe(io.FileIO):
    """A pipe that discards what is written after its reader has gone: the command ends with its own status."""

    def write(self, data: "Any") -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


def _forgiving(stream: "TextIO") -> "TextIO":
    """Return the stream, or one that ignores a missing reader if it is a pipe."""
    if not stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode):
        return stream
    pipe = io.BufferedWriter(_Pipe(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(pipe, encoding=stream.encoding, errors=stream.errors, line_buffering=True)


def _open_missing() -> None:
    """Open /dev/null for closed standard streams, so that no other file gets their descriptors."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdin = sys.stdin or os.fdopen(0)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w", errors="backslashreplace")


def _flushed(stream: "TextIO") -> bool:
    """Flush a stream; if that fails, discard its output, so that the interpreter does not fail again at its end."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False
    return True


if __name__ == "__main__":
    program()
