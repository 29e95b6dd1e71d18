"""``sandbox``: plane, agent and a TLS service on this machine, for a person to watch."""

from pathlib import Path
from typing import Annotated

import typer

from certctrl.cli.runtime import run


def sandbox(
    service: Annotated[
        str, typer.Option("--service", metavar="NAME", help="nginx, builtin, or auto: nginx where it is installed.")
    ] = "auto",
    duration: Annotated[
        float, typer.Option("--duration", metavar="SECONDS", help="Renew for this long; 0: until Ctrl-C.")
    ] = 30.0,
    certs: Annotated[int, typer.Option("--certs", metavar="N", help="Certificates.")] = 3,
    every: Annotated[float, typer.Option("--every", metavar="SECONDS", help="From one renewal to the next.")] = 3.0,
    directory: Annotated[
        Path | None, typer.Option("--dir", metavar="DIR", help="Work in DIR and keep it; default: a temporary one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line; the last is the summary.")] = False,
) -> int:
    """Watch plane, agent and a TLS service work together here.

    Starts a control plane, registers an agent, issues certificates, renews them every few seconds and revokes
    one, while a TLS service serves them and a witness looks from outside. Everything listens on loopback.
    With --dir, other commands can be pointed at DIR/agent while it runs.

    Exit status: 0 only when everything that was issued was also served.

    \b
    cert-ctrl sandbox
    cert-ctrl sandbox --duration 300 --certs 5 --dir /tmp/box
    """
    from certctrl.errors import UsageError

    try:
        from certctrl.sandbox.engine import SandboxOptions, run_sandbox
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("certctrl"):
            raise
        raise UsageError(
            f"the sandbox needs the control plane's libraries ({error.name} is missing)",
            fix="pip install 'certctrl[plane]'",
        ) from None
    options = SandboxOptions(
        service=service, duration=duration, certs=certs, directory=directory, as_json=as_json, every=every
    )
    return int(run(run_sandbox, options))
