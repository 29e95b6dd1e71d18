"""``plane ca show`` and ``plane ca constrain``: the control plane's own CA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from certctrl.cli.output import table, write_error, write_line
from certctrl.cli.plane.connection import OperatorApi, Yes, agreed, call_plane, show
from certctrl.errors import ExitStatus, UsageError
from certctrl.text import counted

_PATH = "/apiv1/plane/ca"


def show_ca(ctx: typer.Context) -> None:
    """Show the control plane's own CA.

    Lists its intermediates, their domains, and the URLs of their revocation lists.

    \b
    cert-ctrl plane ca show --data /var/lib/plane
    """

    async def request(api: OperatorApi) -> Any:
        return await api.call("GET", _PATH)

    state = call_plane(ctx, request)
    show(ctx, state, lambda: _print(state))


def constrain(
    ctx: typer.Context,
    domain: Annotated[
        list[str] | None,
        typer.Option("--domain", metavar="DOMAIN", help="Issue for this domain and all names below; may be repeated."),
    ] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(
            "--network", metavar="CIDR", help="Issue for addresses of this network; may be repeated. Default: for none."
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--any", help="Issue for all names again.")] = False,
    yes: Yes = False,
) -> int:
    """Restrict the control plane's own CA to some domains.

    Clients check that by name constraints. A new intermediate issues from now on; existing certificates keep theirs
    until they are renewed. Those with other names can no longer be renewed and are listed. Asks for confirmation on a
    terminal. Exit status: 0 done, 1 not confirmed.

    \b
    cert-ctrl plane ca constrain --data /var/lib/plane --domain corp.example \\
        --network 10.0.0.0/8
    """
    if everything == bool(domain) or (everything and network):
        raise UsageError("give --domain, or --any alone", fix="add for example --domain corp.example")
    names = ", ".join([*(domain or ()), *(network or ())])
    question = "Let the CA issue for all names?" if everything else f"Let the CA issue only for {names}?"
    if not agreed(ctx, question, yes=yes):
        return ExitStatus.FAILED

    async def request(api: OperatorApi) -> Any:
        body = {"domains": domain or [], "networks": network or []}
        return await api.call("POST", f"{_PATH}/constraints", body)

    done = call_plane(ctx, request)
    if done["outside"]:
        ids = ", ".join(map(str, done["outside"])) + (", …" if done["outside_count"] > len(done["outside"]) else "")
        outside = counted(done["outside_count"], "certificate")
        write_error(f"note: {outside} with other names, whose renewals will fail: {ids}")
    text = "the CA issues for all names" if everything else f"the CA issues only for {names}"
    show(ctx, done, f"{text}, by intermediate {done['intermediates'][0]['key_id'][:16]}…")
    return ExitStatus.DONE


def _print(state: Mapping[str, Any]) -> None:
    write_line(f"root {state['root_sha256']}")
    cells = [
        (
            row["key_id"][:16],
            "issues" if number == 0 else "former",
            row["not_after"],
            ", ".join([*row["domains"], *row["networks"]]) or "all names",
            row["crl_url"] or "none",
        )
        for number, row in enumerate(state["intermediates"])
    ]
    table(("intermediate", "state", "not after", "issues for", "revocation list"), cells)
    if not state["crl_url"]:
        write_error(
            "note: certificates contain no URL of a revocation list; plane serve --crl-url sets where clients find it"
        )
