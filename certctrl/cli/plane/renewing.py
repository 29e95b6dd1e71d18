"""``plane renew``: renew one certificate, or many, and wait for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from certctrl.cli.output import write_error, write_line
from certctrl.cli.plane.bar import Bar
from certctrl.cli.plane.connection import OperatorApi, Yes, agreed, call_plane, shared_options, show
from certctrl.cli.plane.orders import NoWait, wait_for_order
from certctrl.cli.plane.rollouts import (
    Canary,
    InWaves,
    MaxFailures,
    Pause,
    Serial,
    Windows,
    print_started,
    refuse_rules,
    rules_of,
)
from certctrl.cli.plane.tags import require_known
from certctrl.errors import ExitStatus, UsageError
from certctrl.text import counted

MAX_CERTIFICATES = 100
"""Certificates of one request."""
POLL_SECONDS = 1.0
MAX_STALL_SECONDS = 120.0
"""How long to wait while no order makes progress."""
_PAGE = 500
_SHOWN = 20
_SELECTABLE = ("active", "expired")

Certificates = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID|DOMAIN...", help="The certificates; not with --all, --due, --issuer or --tag."),
]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Reason, stored with the certificate.")]
Every = Annotated[bool, typer.Option("--all", help="Renew all certificates.")]
Due = Annotated[bool, typer.Option("--due", help="Renew those that are due.")]
Tagged = Annotated[
    list[str] | None,
    typer.Option(
        "--tag", metavar="TAG", help="Renew those of devices with this tag; if repeated, with all of the tags."
    ),
]
Together = Annotated[
    bool,
    typer.Option("--together", help="Deliver them once all are issued; hosts switch to all of them or to none."),
]
WouldRenew = Annotated[bool, typer.Option("--dry-run", help="Show what would change, or the waves; renew nothing.")]
FromIssuer = Annotated[str, typer.Option("--issuer", metavar="NAME", help="Renew those of this issuer.")]


def renew(
    ctx: typer.Context,
    certificates: Certificates = None,
    every: Every = False,
    due: Due = False,
    issuer: FromIssuer = "",
    tag: Tagged = None,
    together: Together = False,
    rollout: InWaves = "",
    canary: Canary = "",
    max_failures: MaxFailures = 0,
    pause: Pause = "0s",
    window: Windows = None,
    serial: Serial = "",
    dry_run: WouldRenew = False,
    reason: Reason = "",
    no_wait: NoWait = False,
    yes: Yes = False,
) -> int:
    """Replace keys and certificates, and notify their devices.

    Waits until they are issued; an interrupt ends the wait, not the orders. For several certificates, prints their
    number and asks for confirmation on a terminal; imported ones are left out. --due, --issuer and
    --tag together renew certificates that match all of them. With --rollout, devices get theirs in waves, each released by
    the proof of the one before, and nothing is waited for: see plane rollout status. Exit status: 0 renewed, or the rollout
    has started; 1 not confirmed, or some are not renewed yet.

    \b
    cert-ctrl plane renew --data /var/lib/plane www.example.com
    cert-ctrl plane renew --data /var/lib/plane 3 4 5 --together
    cert-ctrl plane renew --data /var/lib/plane --issuer le --due
    cert-ctrl plane renew --data /var/lib/plane --tag web
    cert-ctrl plane renew --data /var/lib/plane 3 --rollout 1,10%,50%
    cert-ctrl plane renew --data /var/lib/plane 3 4 5 --together --rollout 1,10%
    """
    named, rules = certificates or [], rules_of(rollout, canary, max_failures, pause, window, serial)
    _check(rules, is_rollout=bool(rollout))
    if bool(named) == (every or due or bool(issuer) or bool(tag)):
        raise UsageError("name certificates, or use --all, --due, --issuer or --tag", fix="cert-ctrl plane renew ID")
    shared_options(ctx).dry_run = dry_run and not rollout
    if len(named) == 1 and not together and not rollout:
        _renew_one(ctx, named[0], reason, no_wait)
        return ExitStatus.DONE
    ids = _own(call_plane(ctx, lambda api: _selected(api, named, due=due, issuer=issuer, tags=tag)))
    if not ids:
        show(ctx, [], "no certificate to renew")
        return ExitStatus.DONE
    if not dry_run and not agreed(ctx, f"Renew {counted(len(ids), 'certificate')}?", yes=yes):
        return ExitStatus.FAILED
    if rollout:
        _roll_out(ctx, {"together" if together else "cert_ids": ids} | rules | {"note": reason}, dry_run)
        return ExitStatus.DONE
    return _renew_many(ctx, ids, reason, no_wait, together=together)


def _own(rows: Sequence[dict[str, Any]]) -> list[int]:
    """Return the ids of the certificates that are not imported, after a note about those that are."""
    imported = [row for row in rows if row["issuer"] == "import"]
    if imported:
        left_out = counted(len(imported), "imported certificate")
        write_error(f"note: left out {left_out}, which the owner renews: cert-ctrl plane import")
    return [row["id"] for row in rows if row["issuer"] != "import"]


def _check(rules: dict[str, Any], *, is_rollout: bool) -> None:
    """Raise UsageError for options that do not go together."""
    if is_rollout and not rules["waves"]:
        raise UsageError("--rollout names no size of a wave", fix="cert-ctrl plane renew ID --rollout 1,10%")
    if not is_rollout:
        refuse_rules(rules, "cert-ctrl plane renew ID --rollout 1,10%")


def _roll_out(ctx: typer.Context, body: dict[str, Any], dry_run: bool) -> None:
    query = {"dry_run": "1"} if dry_run else None
    done = call_plane(ctx, lambda api: api.call("POST", "rollouts", body, query=query))
    what = f"the renewal of {counted(len(done['certificates']), 'certificate')}"
    show(ctx, done, lambda: print_started(done, what))


def _renew_one(ctx: typer.Context, named: str, reason: str, no_wait: bool) -> None:
    async def request(api: OperatorApi) -> Any:
        return await api.operator.renew(api.user, await api.certificate(named), reason)

    done = call_plane(ctx, request)
    if done["status"] == "pending":
        if no_wait:
            show(ctx, done, f"ordered a renewal of certificate {done['cert_id']}: order {done['order_id']}")
            return
        wait_for_order(ctx, done["order_id"])
        cert_id = done["cert_id"]
        row = call_plane(ctx, lambda api: api.call("GET", f"certificates/{cert_id}"))
        done |= {"status": "done", "serial_number": row["serial_number"]}
    show(ctx, done, f"renewed certificate {done['cert_id']}, serial {done['serial_number']}")


async def _selected(
    api: OperatorApi, named: Sequence[str], *, due: bool, issuer: str, tags: Sequence[str] | None
) -> list[dict[str, Any]]:
    """Return the certificates that are named, or that the options select."""
    await require_known(api, tags or ())
    rows: list[dict[str, Any]] = await api.operator.fetch_list(api.user, "certificates", tags)
    if named:
        wanted = {await api.certificate(name) for name in named}
        return [row for row in rows if row["id"] in wanted]
    now = await api.time() if due else ""
    return [
        row
        for row in rows
        if row["status"] in _SELECTABLE
        and (not issuer or row["issuer"] == issuer)
        and (not due or (row["renew_at"] is not None and row["renew_at"] <= now))
    ]


def _renew_many(ctx: typer.Context, ids: Sequence[int], reason: str, no_wait: bool, *, together: bool = False) -> int:
    if together and not 2 <= len(ids) <= MAX_CERTIFICATES:
        what = f"--together needs 2 to {MAX_CERTIFICATES} certificates that can be renewed, not {len(ids)}"
        raise UsageError(what, fix="cert-ctrl plane renew ID ID... --together")

    async def request(api: OperatorApi) -> list[dict[str, Any]]:
        ordered: list[dict[str, Any]] = []
        with Bar("renewals ordered", len(ids)) as bar:
            for begin in range(0, len(ids), MAX_CERTIFICATES):
                body: dict[str, Any] = {"cert_ids": list(ids[begin : begin + MAX_CERTIFICATES]), "reason": reason}
                body |= {"together": True} if together else {}
                ordered += await api.call("POST", "renewals", body)
                bar.reached(len(ordered))
        if together and not all("batch" in row for row in ordered):
            write_error("note: this control plane is too old for --together: each certificate is delivered separately")
        return ordered if no_wait else await _waited(api, ordered)

    done = call_plane(ctx, request)
    failed = [row for row in done if row["problem"]]
    renewed = sum(row.get("state") == "done" for row in done)
    show(ctx, done, lambda: _print(done, failed, renewed, no_wait))
    return ExitStatus.FAILED if failed or (not no_wait and renewed < len(done)) else ExitStatus.DONE


def _print(done: Sequence[dict[str, Any]], failed: Sequence[dict[str, Any]], renewed: int, no_wait: bool) -> None:
    for row in failed[:_SHOWN]:
        write_error(f"certificate {row['cert_id']}: {row['problem']}")
    if len(failed) > _SHOWN:
        write_error(f"… and {len(failed) - _SHOWN} more: cert-ctrl plane orders list")
    if no_wait:
        ordered = counted(len(done) - len(failed), "renewal")
        write_line(f"ordered {ordered}; follow with: cert-ctrl plane orders list")
    else:
        left = len(done) - renewed
        more = f"; {left} not renewed yet: cert-ctrl plane orders list" if left else ""
        write_line(f"renewed {counted(renewed, 'certificate')}{more}")


async def _waited(api: OperatorApi, ordered: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Wait until each order is done or was tried once; return them with ``state`` and ``problem``."""
    import trio

    waiting = {row["order_id"]: row for row in ordered if row["order_id"] is not None}
    total, moved = len(waiting), trio.current_time()
    with Bar("certificates renewed", total) as bar:
        while waiting and trio.current_time() < moved + MAX_STALL_SECONDS:
            for order in await _orders(api, min(waiting) - 1, max(waiting)):
                row = waiting.get(order["id"])
                if row is None:
                    continue
                row["state"] = order["state"]
                if order["state"] in ("done", "failed", "blocked") or order["problem"]:
                    row["problem"] = "" if order["state"] == "done" else order["problem"]
                    del waiting[order["id"]]
                    moved = trio.current_time()
            bar.reached(total - len(waiting))
            if waiting:
                await trio.sleep(POLL_SECONDS)
    return ordered


async def _orders(api: OperatorApi, after_id: int, last_id: int) -> list[dict[str, Any]]:
    """Return the orders between two ids."""
    found: list[dict[str, Any]] = []
    while after_id < last_id:
        query = {"after_id": str(after_id), "limit": str(_PAGE)}
        page = await api.call("GET", "orders", query=query)
        found += page
        if len(page) < _PAGE:
            break
        after_id = page[-1]["id"]
    return found
