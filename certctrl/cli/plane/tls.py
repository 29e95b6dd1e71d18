"""``plane tls``: the CA of the control plane's own certificate, and the switch of an older control plane to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

from certctrl.cli.output import table, write_error, write_line
from certctrl.cli.plane.connection import GROUP, OperatorApi, OperatorCommand, Yes, agreed, call_plane, show
from certctrl.errors import ExitStatus, PlaneError
from certctrl.text import counted

tls = typer.Typer(help="Show or switch the CA of the plane's own certificate.", **GROUP)

_PATH = "/apiv1/plane/tls"


@tls.command("show", cls=OperatorCommand)
def show_tls(ctx: typer.Context) -> None:
    """Show the CA of the control plane's own certificate.

    Lists the devices that do not trust the new one yet.

    \b
    cert-ctrl plane tls show --data /var/lib/plane
    """
    state = call_plane(ctx, _state)
    show(ctx, state, lambda: _print_state(state))


@tls.command("switch", cls=OperatorCommand)
def switch(
    ctx: typer.Context,
    force: Annotated[
        bool, typer.Option("--force", help="Switch even if devices are lost; they are listed first.")
    ] = False,
    yes: Yes = False,
) -> int:
    """Switch to a CA that issues nothing else.

    New control planes have one from the start. Agents get it with their next token refresh and confirm it with the one
    after that, within half an hour. Until all active devices have, this lists the others and refuses. With --force it
    lists those that can no longer connect: give them the new ca.pem by hand. Asks for confirmation on a terminal. Exit
    status: 0 switched, 1 refused or not confirmed.

    \b
    cert-ctrl plane tls switch --data /var/lib/plane
    """
    state = call_plane(ctx, _state)
    waiting = state["unconfirmed_devices"]
    for line in _named(waiting):
        write_error(line)
    question = f"Switch and lose {counted(len(waiting), 'device')}?" if waiting else "Switch to the new CA?"
    if (force or not waiting) and not state["switched"] and not agreed(ctx, question, yes=yes):
        return ExitStatus.FAILED

    async def request(api: OperatorApi) -> Any:
        try:
            return await api.call("POST", _PATH, {"force": force})
        except PlaneError as error:
            if error.key == "ANCHOR_UNCONFIRMED":
                error.fix = "wait for their next token refreshes, update or revoke these devices, or add --force"
            raise

    done = call_plane(ctx, request)
    text = f"the control plane serves its own CA {done['anchor_sha256'][:16]}…; operators and new agents need the new ca.pem"
    show(ctx, done, text)
    return ExitStatus.DONE


async def _state(api: OperatorApi) -> Any:
    return await api.call("GET", _PATH)


def _named(devices: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    for device in devices:
        seen = device["last_seen_at"] or "never"
        yield f"device {device['id']} ({device['name'] or 'unnamed'}) has not confirmed the new CA, last seen {seen}"


def _print_state(state: Mapping[str, Any]) -> None:
    served = "its own" if state["switched"] else "the CA that also issues certificates (cert-ctrl plane tls switch)"
    write_line(f"CA in use  {served}")
    write_line(f"own CA     {state['anchor_sha256']}")
    waiting = state["unconfirmed_devices"]
    if waiting:
        heads = ("id", "name", "version", "last seen")
        table(
            heads,
            [(str(row["id"]), row["name"], row["app_version"], row["last_seen_at"] or "never") for row in waiting],
        )
