"""``plane orders``: certificates that were ordered from issuers; wait for an order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from certctrl.cli.output import table, write_error, write_line
from certctrl.cli.plane.connection import GROUP, OperatorApi, OperatorCommand, call_plane, show
from certctrl.errors import CertctrlError, ExitStatus
from certctrl.net.operator import PAGE
from certctrl.text import nearest, one_line

orders = typer.Typer(help="Show, retry and cancel orders of certificates.", **GROUP)

POLL_SECONDS = 0.5
SLOWEST_POLL_SECONDS = 5.0
MAX_PAUSE_SECONDS = 600.0
"""Longest pause before an attempt that is waited for."""
MAX_CSR_SECONDS = 120.0
"""Longest wait for a device's signing request."""
MAX_ANSWER_SECONDS = 600.0
"""Longest wait for an issuer's answer to an attempt."""
NOTE_SECONDS = 5.0
"""A wait that lasts longer is explained, unless its progress is shown."""
NoWait = Annotated[bool, typer.Option("--no-wait", help="Do not wait until the issuer has issued the certificate.")]
Order = Annotated[int, typer.Argument(metavar="ID", help="The order.", min=1)]


class OrderError(CertctrlError):
    """An order that has failed or takes long."""

    def __init__(self, what: str, *, fix: str | None = None, ended: bool) -> None:
        super().__init__(what, fix=fix)
        self.exit_status = ExitStatus.FAILED if ended else ExitStatus.UNAVAILABLE


@orders.command("list", cls=OperatorCommand)
def list_orders(
    ctx: typer.Context,
    every: Annotated[bool, typer.Option("--all", help="Include orders that have ended.")] = False,
    issuer: Annotated[str, typer.Option("--issuer", metavar="NAME", help="Only orders from this issuer.")] = "",
    certificate: Annotated[
        str, typer.Option("--certificate", metavar="ID|NAME", help="Only orders of this certificate.")
    ] = "",
    problems: Annotated[bool, typer.Option("--problems", help="Only orders with a problem.")] = False,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=0, help="At most N orders; 0: all.")] = 0,
    after_id: Annotated[
        int, typer.Option("--after-id", metavar="ID", min=0, help="Only orders after this one: the next page.")
    ] = 0,
) -> None:
    """List the orders that have not ended, the oldest first.

    \b
    cert-ctrl plane orders list --data /var/lib/plane
    cert-ctrl plane orders list --data /var/lib/plane --all --problems --limit 50
    """

    seen: set[str] = set()

    def fits(row: dict[str, Any]) -> bool:
        seen.update((row["issuer"], row["domain_name"]))
        names = (str(row["cert_id"]), row["domain_name"])
        return issuer in ("", row["issuer"]) and certificate in ("", *names) and bool(row["problem"] or not problems)

    async def request(api: OperatorApi) -> list[dict[str, Any]]:
        return await pages(api, {} if every else {"open": "1"}, fits, limit, after_id)

    rows = call_plane(ctx, request)
    for wanted in filter(None, (issuer, certificate)):
        if not rows and wanted not in seen and (meant := nearest(wanted, seen)):
            write_error(f"note: no order has {one_line(wanted)!r}; did you mean {one_line(meant)}?")
    show(ctx, rows, lambda: _table(rows))
    if limit and len(rows) == limit:
        write_error(f"note: there may be more: add --after-id {rows[-1]['id']}")


async def pages(
    api: OperatorApi, chosen: dict[str, str], fits: Callable[[dict[str, Any]], bool], limit: int, after_id: int
) -> list[dict[str, Any]]:
    """Return the orders that fit, up to ``limit``, page by page: those of a fleet exceed one answer."""
    found: list[dict[str, Any]] = []
    while True:
        query = chosen | {"limit": str(PAGE), "after_id": str(after_id)}
        page = await api.call("GET", "orders", query=query)
        found += [row for row in page if fits(row)]
        if limit and len(found) >= limit:
            return found[:limit]
        if len(page) < PAGE or page[-1]["id"] <= after_id:
            return found
        after_id = page[-1]["id"]


def _table(rows: Sequence[dict[str, Any]]) -> None:
    cells = [
        (
            str(row["id"]),
            str(row["cert_id"]),
            row["domain_name"],
            row["issuer"],
            row["action"],
            _state(row),
            str(row["attempts"]),
            row["next_at"] or row["finished_at"] or "",
            row["problem"],
        )
        for row in rows
    ]
    table(("id", "cert", "domain", "issuer", "action", "state", "tries", "next or end", "problem"), cells)


@orders.command("show", cls=OperatorCommand)
def show_order(ctx: typer.Context, order: Order) -> None:
    """Show an order, its last problem and what to do about it.

    \b
    cert-ctrl plane orders show --data /var/lib/plane 7
    """

    async def request(api: OperatorApi) -> Any:
        return await api.call("GET", f"orders/{order}")

    row = call_plane(ctx, request)

    def text() -> None:
        write_line(
            f"order {row['id']}: certificate {row['cert_id']} ({row['domain_name']}) from issuer {row['issuer']}"
        )
        write_line(f"state: {_state(row)}")
        for key in ("action", "reason", "attempts", "problem", "fix", "created_at", "next_at", "finished_at"):
            if row[key]:
                write_line(f"{key.replace('_at', '')}: {row[key]}")

    show(ctx, row, text)


@orders.command("retry", cls=OperatorCommand)
def retry(ctx: typer.Context, order: Order, no_wait: NoWait = False) -> None:
    """Retry an order now, or repeat a failed one.

    Waits for the certificate.

    \b
    cert-ctrl plane orders retry --data /var/lib/plane 7
    """

    async def request(api: OperatorApi) -> Any:
        return await api.call("POST", f"orders/{order}/retry")

    row = call_plane(ctx, request)
    if no_wait:
        show(ctx, row, f"order {row['id']} is retried now")
        return
    done = wait_for_order(ctx, row["id"], since=row["attempts"])
    show(ctx, done, f"order {done['id']} is done: certificate {done['cert_id']} ({done['domain_name']}) is issued")


@orders.command("cancel", cls=OperatorCommand)
def cancel(ctx: typer.Context, order: Order) -> None:
    """Cancel an order; the certificate in use stays.

    \b
    cert-ctrl plane orders cancel --data /var/lib/plane 7
    """

    async def request(api: OperatorApi) -> Any:
        return await api.call("POST", f"orders/{order}/cancel")

    row = call_plane(ctx, request)
    show(ctx, row, f"order {row['id']} for {row['domain_name']} is cancelled")


def wait_for_order(ctx: typer.Context, order_id: int, *, since: int = 0) -> dict[str, Any]:
    """Return an order that is done, showing its progress; problems of attempts after the first ``since`` are noted.

    Raises OrderError if it fails or takes long. An interrupt ends the wait, not the order.
    """
    from certctrl.cli.progress import Progress, shown_here
    from certctrl.cli.runtime import flatten

    shown = {"text": ""}

    def note(text: str) -> None:
        shown["text"] = text

    async def request(api: OperatorApi) -> dict[str, Any]:
        return await _follow(api, order_id, since, note, is_explained=not shown_here())

    try:
        with Progress(f"Waiting for order {order_id}", shown=shown_here(), detail=lambda: shown["text"]):
            return call_plane(ctx, request)
    except BaseException as error:
        if any(isinstance(leaf, KeyboardInterrupt) for leaf in flatten(error)):
            write_error(f"note: order {order_id} continues; see cert-ctrl plane orders show {order_id}")
        raise


async def _follow(
    api: OperatorApi, order_id: int, since: int, note: Callable[[str], None], *, is_explained: bool
) -> dict[str, Any]:
    """Return an order once it is done; ``is_explained``: say what it waits for."""
    import trio

    noted, pause, began = since, POLL_SECONDS, trio.current_time()
    step: object = None
    explained: object = None
    while True:
        row: dict[str, Any] = await api.call("GET", f"orders/{order_id}")
        if step != (row["state"], row["attempts"]):
            step, began = (row["state"], row["attempts"]), trio.current_time()
        if row["state"] == "done":
            return row
        if row["state"] == "failed":
            raise OrderError(_problem_of(row), fix=row["fix"] or None, ended=True)
        note(f"{_state(row)}, issuer {row['issuer']}")
        waited = trio.current_time() - began
        _require_progress(row, waited)
        if is_explained and waited >= NOTE_SECONDS and explained != step and not row["problem"]:
            explained = step
            write_error(f"note: {await _explanation(api, row)}")
        if row["problem"] and row["attempts"] > noted:
            noted = row["attempts"]
            write_error(f"note: {_problem_of(row)}; next attempt at {row['next_at']}")
            if row["fix"]:
                write_error(f"fix: {one_line(row['fix'], None)}")
        await trio.sleep(pause)
        pause = min(pause * 1.2, SLOWEST_POLL_SECONDS)


async def _explanation(api: OperatorApi, row: dict[str, Any]) -> str:
    """Return what an order waits for, for how long, and what to do about it."""
    see = f"cert-ctrl plane orders show {row['id']}"
    what = f"order {row['id']} for {row['domain_name']} waits"
    if row["state"] == "csr_wanted":
        holders = (await api.call("GET", f"certificates/{row['cert_id']}"))["device_ids"]
        device = await api.call("GET", f"devices/{holders[0]}") if holders else {}
        name, seen = (
            one_line(f"device {device['name']}" if device.get("name") else "its device"),
            device.get("last_seen_at"),
        )
        last = f"last seen {seen}" if seen else "never seen"
        what += f" up to {MAX_CSR_SECONDS:.0f} s for the key of {name} ({last}); check that its agent runs"
    elif row["attempts"]:
        check = f"cert-ctrl plane issuers check {row['issuer']}"
        what += f" up to {MAX_ANSWER_SECONDS / 60:.0f} min for an answer of issuer {row['issuer']}; {check}"
    else:
        what += " for its turn"
    return f"{what}; {see}"


def _require_progress(row: dict[str, Any], waited: float) -> None:
    """Raise OrderError for an order that will not be done soon."""
    see = f"cert-ctrl plane orders show {row['id']}"
    if row["state"] == "blocked":
        raise OrderError(_problem_of(row), fix=row["fix"] or see, ended=False)
    if row["state"] == "csr_wanted" and waited > MAX_CSR_SECONDS:
        what = f"order {row['id']} for {row['domain_name']} waits for the key of a device"
        raise OrderError(what, fix=f"check that the device is online; {see}", ended=False)
    if row["state"] == "ready" and not row["problem"] and waited > MAX_ANSWER_SECONDS:
        what = f"order {row['id']} for {row['domain_name']} still waits for issuer {row['issuer']}, and continues"
        raise OrderError(what, fix=f"cert-ctrl plane issuers check {row['issuer']}; {see}", ended=False)
    if row["problem"] and row["next_at"] and _seconds_until(row["next_at"]) > MAX_PAUSE_SECONDS:
        what = f"{_problem_of(row)}; next attempt at {row['next_at']}"
        raise OrderError(what, fix=row["fix"] or see, ended=False)


def _seconds_until(moment: str) -> float:
    from datetime import datetime

    from certctrl.agent.clock import wall_now

    return datetime.fromisoformat(moment).timestamp() - wall_now()


def _problem_of(row: dict[str, Any]) -> str:
    return one_line(f"order {row['id']} for {row['domain_name']} from issuer {row['issuer']}: {row['problem']}", None)


def _state(row: dict[str, Any]) -> str:
    """Return the state of an order in words."""
    if row["state"] == "ready":
        return "retried" if row["problem"] else "in progress" if row["attempts"] else "queued"
    return {"csr_wanted": "waits for the device's key"}.get(row["state"], str(row["state"]))
