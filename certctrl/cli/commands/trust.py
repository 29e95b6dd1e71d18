"""``trust show`` and ``trust reset``: what this host has learnt to hold its control plane and its scripts to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from certctrl.cli.app import GROUP
from certctrl.cli.daemon_or_local import confirmed, daemon_or_local
from certctrl.cli.invocation import invocation
from certctrl.cli.output import write_error, write_json, write_line
from certctrl.errors import ExitStatus, UsageError

trust = typer.Typer(help="Show or forget what this host has learnt to insist on.", **GROUP)
SECONDS = 60.0


@trust.command("show")
def show(
    ctx: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False
) -> None:
    """Show the versions and scripts that this host insists on.

    Below its version no install config is taken; a script that was pinned at its first run must not change.

    \b
    cert-ctrl -c /etc/cert-ctrl trust show
    """
    from certctrl.store.disk.fs import RealFs
    from certctrl.store.state.session import StateStore

    store = StateStore(invocation(ctx).layout(), RealFs())
    stored, pins = store.load_install_config(), store.load_pins()
    marks = dict(stored.high_water) if stored is not None else {}
    if as_json:
        write_json({"install_configs": marks, "scripts": pins})
        return
    for config_id, version in sorted(marks.items()):
        write_line(f"install config {config_id}: version {version} or higher")
    for path, digest in sorted(pins.items()):
        write_line(f"script {path}: sha256 {digest}")
    if not marks and not pins:
        write_line("nothing yet")


@trust.command("reset")
def reset(
    ctx: typer.Context,
    install_config: Annotated[
        bool, typer.Option("--install-config", help="Take the next install config whatever its version.")
    ] = False,
    scripts: Annotated[
        bool, typer.Option("--scripts", help="Pin listed scripts anew at their next run (trust_on_first_use).")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was forgotten as JSON.")] = False,
) -> int:
    """Forget versions of install configs or pins of scripts.

    For a control plane that lost its database and counts from the beginning, and for scripts that were changed on
    purpose. What is in force stays until something newer comes. Asks first: an attacker would like this, too.

    \b
    cert-ctrl -c /etc/cert-ctrl trust reset --install-config
    cert-ctrl -c /etc/cert-ctrl trust reset --scripts --yes
    """
    if not (install_config or scripts):
        raise UsageError("nothing to forget", fix="give --install-config, --scripts or both")
    invoked = invocation(ctx)
    if not (yes or confirmed("Forget it?")):
        return ExitStatus.FAILED

    async def local(root: Path) -> dict[str, Any]:
        from certctrl.agent import oneshot

        return await oneshot.reset_trust(root, install_config=install_config, scripts=scripts)

    result = daemon_or_local(
        invoked, "trust-reset", local, seconds=SECONDS, install_config=install_config, scripts=scripts
    )
    if as_json:
        write_json(result)
        return ExitStatus.DONE
    for config_id, version in sorted(result["install_configs"].items()):
        write_line(f"forgotten: install config {config_id} had version {version}")
    for path in sorted(result["scripts"]):
        write_line(f"forgotten: the pin of {path}")
    if not result["install_configs"] and not result["scripts"]:
        write_line("there was nothing to forget")
    if result.get("plane"):
        write_error(f"warning: the control plane was not asked: {result['plane']}")
    return ExitStatus.DONE
