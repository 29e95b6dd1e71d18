"""``cert-ctrl`` and ``python -m certctrl``; ``--version`` is answered before anything is imported."""

import os
import sys


def main(argv: "list[str] | None" = None) -> int:
    """Run the command line and return its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments == ["--version"]:
        from certctrl import __version__

        sys.stdout.write(f"cert-ctrl {__version__}\n")
        return 0
    from certctrl.cli.runtime import run_command

    return run_command(arguments)


def program() -> None:
    """Run as the program: end the process with the status.

    A command that never started Trio has no threads, no open work and nothing to clean up: it leaves without the
    interpreter's own teardown, which would be a seventh of all that `status` costs.
    """
    status = main()
    if "trio" not in sys.modules and not _flushing_failed():
        os._exit(status)
    sys.exit(status)


def _flushing_failed() -> bool:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return True
    return False


if __name__ == "__main__":
    program()
