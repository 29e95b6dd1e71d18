"""``cert-ctrl`` and ``python -m certctrl``; ``--version`` imports no other module."""

import os
import sys


def main(argv: "list[str] | None" = None) -> int:
    """Run the command line and return its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments == ["--version"]:
        from certctrl import __version__

        sys.stdout.write(f"cert-ctrl {__version__}\n")
        return 0
    from certctrl.cli.main import run_command

    return run_command(arguments)


def program() -> None:
    """Run the program and end the process with its exit status.

    Without Trio there are no threads and nothing to clean up: the process exits without the interpreter's teardown,
    which would add a sixth to the cost of `status` (docs/decisions.md).
    """
    status = main()
    if "trio" not in sys.modules and not _flush_fails():
        os._exit(status)
    sys.exit(status)


def _flush_fails() -> bool:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return True
    return False


if __name__ == "__main__":
    program()
