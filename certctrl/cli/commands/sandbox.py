"""``sandbox``: run a control plane, an agent and a TLS service on this machine."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from certctrl.cli.app import SETTINGS
from certctrl.cli.owner import become_owner
from certctrl.cli.runtime import run


class OptionalCa(TyperCommand):
    """Allows ``--acme`` without a value, for Pebble."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Add the missing value."""
        for index in [index for index, word in enumerate(args) if word == "--acme"][::-1]:
            if index + 1 == len(args) or args[index + 1].startswith("-"):
                args.insert(index + 1, "pebble")
        return super().parse_args(ctx, args)


sandbox = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=SETTINGS)


@sandbox.command("sandbox", cls=OptionalCa)
def run_sandbox_command(
    service: Annotated[
        str, typer.Option("--service", metavar="NAME", help="nginx, builtin, or auto (nginx if installed).")
    ] = "auto",
    duration: Annotated[
        float, typer.Option("--duration", metavar="SECONDS", help="Run this long; 0: until Ctrl-C.")
    ] = 30.0,
    certs: Annotated[int, typer.Option("--certs", metavar="N", help="Number of certificates.")] = 3,
    every: Annotated[float, typer.Option("--every", metavar="SECONDS", help="Time between renewals.")] = 3.0,
    directory: Annotated[
        Path | None, typer.Option("--dir", metavar="DIR", help="Use and keep DIR; default: a temporary directory.")
    ] = None,
    acme: Annotated[
        str,
        typer.Option(
            "--acme", metavar="[CA]", help="Order from an ACME CA: pebble, the default, or ari (acme2certifier)."
        ),
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line; the last one is the summary.")
    ] = False,
) -> int:
    """Run a control plane, an agent and a TLS service on this machine.

    Starts a control plane, registers an agent, issues certificates, renews them every few seconds and revokes one. A
    TLS service serves them, and a witness checks the endpoint as a client. Everything listens on loopback. With
    --dir, try other commands on the agent while it runs: cert-ctrl -c DIR/agent status.

    With --acme, certificates come from Pebble, a test CA that asks the agent to prove each name, and the
    control plane renews them when half of their life is over; with --acme ari, from acme2certifier, in the window
    that it names. That takes up to three minutes.

    Exit status: 0 only if every issued certificate was served.

    \b
    cert-ctrl sandbox
    cert-ctrl sandbox --acme
    cert-ctrl sandbox --duration 300 --certs 5 --dir /tmp/box
    """
    from certctrl.errors import UsageError, install_extra

    try:
        from certctrl.sandbox.engine import SandboxOptions, run_sandbox
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("certctrl"):
            raise
        raise UsageError(
            f"the sandbox needs the control plane's libraries: {error.name} is not installed",
            fix=install_extra("plane"),
        ) from None
    if directory is not None:
        become_owner(directory)
    options = SandboxOptions(
        service=service, duration=duration, certs=certs, directory=directory, as_json=as_json, every=every, acme=acme
    )
    return int(run(run_sandbox, options))
