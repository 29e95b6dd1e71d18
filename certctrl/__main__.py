"""``cert-ctrl`` and ``python -m certctrl``; ``--version`` is answered before anything is imported."""

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


if __name__ == "__main__":
    sys.exit(main())
