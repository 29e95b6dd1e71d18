"""``history``: show past deployments from the audit log."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from certctrl.cli.invocation import invocation
from certctrl.cli.output import short_serial, table, write_json, write_line


def history(
    ctx: typer.Context,
    domain: Annotated[str | None, typer.Option("--domain", metavar="NAME", help="Show only this certificate.")] = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", help="Show the newest N; 0: all.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print all recorded facts as JSON.")] = False,
) -> None:
    """Show past deployments.

    Each line shows the time (UTC), the certificate, its old and new generation ("the same": only its commands ran
    again), who requested it (plane, operator, …) and the result. The newest is last.

    \b
    cert-ctrl -c /etc/cert-ctrl history
    cert-ctrl -c /etc/cert-ctrl history --domain www.example.com --limit 0
    """
    from certctrl.cli.facts import past_deployments

    entries = past_deployments(invocation(ctx).layout())
    if domain is not None:
        entries = [entry for entry in entries if _about(entry, domain)]
    entries = entries[-limit:] if limit > 0 else entries
    if as_json:
        write_json(entries)
    else:
        show_entries(entries)


def show_entries(entries: list[dict[str, Any]]) -> None:
    """Print deployments as a table."""
    if not entries:
        write_line("No deployments yet.")
        return
    heads = ("Time", "Certificate", "From", "To", "Serial", "Requested by", "Result")
    table(heads, [_cells(entry) for entry in entries])


def _about(entry: dict[str, Any], domain: str) -> bool:
    from certctrl.store.layout import safe_name
    from certctrl.text import ascii_name

    names = (domain, safe_name(domain), safe_name(ascii_name(domain.lower())))
    return entry.get("name") in names or str(entry.get("cert_id")) == domain


def _cells(entry: dict[str, Any]) -> tuple[str, ...]:
    result = str(entry.get("outcome", "-"))
    if entry.get("detail"):
        result = f"{result}: {entry['detail']}"
    before, after = (str(entry.get(key) or "-") for key in ("from", "to"))
    return (
        _moment(entry.get("at")),
        str(entry.get("name", "-")),
        before,
        "the same" if before == after != "-" else after,
        short_serial(str(entry.get("serial") or "-")),
        str(entry.get("asked_by", "-")),
        result,
    )


def _moment(at: Any) -> str:
    if not isinstance(at, int | float):
        return "-"
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")
