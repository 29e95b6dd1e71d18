"""``trust show`` and ``trust reset``: minimum install config versions and script pins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from certctrl.cli.app import GROUP
from certctrl.cli.daemon_or_local import confirmed, daemon_or_local
from certctrl.cli.invocation import invocation
from certctrl.cli.output import write_error, write_json, write_line
from certctrl.errors import ExitStatus, UsageError

trust = typer.Typer(help="Show or reset minimum versions and script pins.", **GROUP)
SECONDS = 60.0


@trust.command("show")
def show(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print versions and pins as JSON.")] = False,
) -> None:
    """Show minimum versions and script pins.

    This host rejects an install config below its minimum version, and a script that changed after its first run.

    \b
    cert-ctrl -c /etc/cert-ctrl trust show
    """
    from certctrl.store.disk.fs import RealFs
    from certctrl.store.state.installed import InstalledState

    store = InstalledState(invocation(ctx).layout(), RealFs())
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
        write_line("none yet")


@trust.command("reset")
def reset(
    ctx: typer.Context,
    install_config: Annotated[
        bool, typer.Option("--install-config", help="Accept the next install config, even with a lower version.")
    ] = False,
    scripts: Annotated[
        bool, typer.Option("--scripts", help="Pin scripts again at their next run (trust_on_first_use).")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the removed versions and pins as JSON.")] = False,
) -> int:
    """Reset minimum versions of install configs, or script pins.

    Use it after the control plane lost its database and restarted its version numbers, or after scripts were changed
    on purpose. The current install config stays active until the next one arrives. This lifts a protection against
    an attacker, so it asks for confirmation.

    Exit status: 0 reset, 1 not confirmed.

    \b
    cert-ctrl -c /etc/cert-ctrl trust reset --install-config
    cert-ctrl -c /etc/cert-ctrl trust reset --scripts --yes
    """
    if not (install_config or scripts):
        raise UsageError("nothing to reset", fix="add --install-config, --scripts or both")
    invoked = invocation(ctx)
    if not (yes or confirmed("Reset it?")):
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
        write_line(f"reset: install config {config_id} (minimum version was {version})")
    for path in sorted(result["scripts"]):
        write_line(f"reset: pin of {path}")
    if not result["install_configs"] and not result["scripts"]:
        write_line("nothing to reset")
    if result.get("plane"):
        write_error(f"warning: control plane not reached: {result['plane']}")
    return ExitStatus.DONE
