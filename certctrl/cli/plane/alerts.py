"""``plane alerts``: the channels that the control plane sends alerts to, and the messages it sends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import quote

import typer

from certctrl.cli.output import table, write_error, write_line
from certctrl.cli.plane.alert_options import (
    AllowLocal,
    DryRun,
    Event,
    Interval,
    Kind,
    NewName,
    QuietHours,
    ReceiverCa,
    Repeat,
    Replace,
    RoutingKeyFile,
    Sender,
    SigningSecretFile,
    SilentAfter,
    Smtp,
    SmtpPasswordFile,
    SmtpTls,
    SmtpUser,
    TimeZone,
    To,
    Url,
    UrlFile,
    Wait,
    checked_options,
    one_of,
)
from certctrl.cli.plane.connection import GROUP, OperatorApi, OperatorCommand, Yes, agreed, call_plane, show
from certctrl.cli.plane.paging import ListCommand, show_list
from certctrl.errors import ExitStatus, UsageError
from certctrl.text import counted, one_line

alerts = typer.Typer(help="Send alerts by webhook and mail, and see what was sent.", **GROUP)

_CHANNELS, _MESSAGES = "/apiv1/alert-channels", "/apiv1/alert-messages"
_STATES = ("due", "sent", "dead", "dismissed")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The channel.")]
Id = Annotated[int, typer.Argument(metavar="ID", min=1, help="The message.")]


@alerts.command("add", cls=OperatorCommand)
def add(
    ctx: typer.Context,
    name: NewName,
    kind: Kind,
    url: Url = "",
    url_file: UrlFile = "",
    signing_secret_file: SigningSecretFile = "",
    routing_key_file: RoutingKeyFile = "",
    smtp: Smtp = "",
    smtp_tls: SmtpTls = "",
    smtp_user: SmtpUser = "",
    smtp_password_file: SmtpPasswordFile = "",
    sender: Sender = "",
    to: To = None,
    receiver_ca: ReceiverCa = "",
    event: Event = None,
    quiet_hours: QuietHours = None,
    time_zone: TimeZone = "",
    wait: Wait = "",
    interval: Interval = "",
    repeat: Repeat = "",
    silent_after: SilentAfter = "",
    allow_local: AllowLocal = False,
    replace: Replace = False,
    dry_run: DryRun = False,
) -> None:
    """Add a channel.

    docs/plane-alerts.md has the events and the form of messages. Secrets are read from files, never from options. What
    is wrong already is told by the first message.

    \b
    cert-ctrl plane alerts add --data /var/lib/plane on-call \\
        --kind slack --url-file url
    cert-ctrl plane alerts add --data /var/lib/plane mail --kind mail \\
        --smtp mail.example.com --from certctrl@example.com --to ops@example.com
    """
    body = {"name": name, "kind": kind, "replace": replace} | checked_options(ctx.params)

    async def request(api: OperatorApi) -> Any:
        return await api.call("POST", _CHANNELS, body, query={"dry_run": "1"} if dry_run else None)

    row = call_plane(ctx, request)
    show(ctx, row, lambda: _print_added(row))


def _print_added(row: Mapping[str, Any]) -> None:
    if row["dry_run"]:
        write_line(f"channel {row['name']} ({row['kind']}) would lead to {row['to']}")
        return
    write_line(f"channel {row['name']} ({row['kind']}) leads to {row['to']}")
    if "signing_secret" in row:
        write_error("its messages are signed with this secret, which is not shown again:")
        write_line(row["signing_secret"])
    write_error(f"next: cert-ctrl plane alerts test {row['name']}")


@alerts.command("list", cls=ListCommand)
def list_channels(ctx: typer.Context) -> None:
    """List the channels.

    \b
    cert-ctrl plane alerts list --data /var/lib/plane
    cert-ctrl plane alerts list --data /var/lib/plane --match slack
    """

    async def request(api: OperatorApi) -> Any:
        return await api.call("GET", _CHANNELS)

    def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
        return (
            row["name"],
            row["kind"],
            row["to"],
            ", ".join(row["settings"]["events"]) or "all",
            str(row["due"]),
            str(row["dead"]),
            row["last_sent_at"] or "never",
            one_line(row["problem"]),
        )

    heads = ("name", "kind", "to", "events", "due", "dead", "last sent", "problem")
    show_list(ctx, call_plane(ctx, request), heads, cells, none="no alert channels: nothing is sent")


@alerts.command("show", cls=OperatorCommand)
def show_channel(ctx: typer.Context, name: Name) -> None:
    """Show the settings of a channel, and the names of its secrets.

    \b
    cert-ctrl plane alerts show --data /var/lib/plane on-call
    """

    async def request(api: OperatorApi) -> Any:
        return await api.call("GET", _path(name))

    row = call_plane(ctx, request)

    def text() -> None:
        for key in ("name", "kind", "to", "due", "dead", "last_sent_at", "problem", "updated_at"):
            if row[key] not in ("", None):
                write_line(f"{key.replace('_at', '').replace('_', ' ')}: {row[key]}")
        settings = row["settings"]
        settings["ca_pem"] = "set" if settings["ca_pem"] else ""
        unused = {"tls": row["kind"] != "mail", "time_zone": not settings["quiet"]}
        for key, value in settings.items():
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            if shown not in ("", None, False) and not unused.get(key):
                write_line(f"{key} = {shown}")
        for secret in row["secrets"]:
            write_line(f"secret {secret} is set")

    show(ctx, row, text)


@alerts.command("remove", cls=OperatorCommand)
def remove(ctx: typer.Context, name: Name, yes: Yes = False) -> int:
    """Remove a channel with its secrets and messages.

    Asks for confirmation on a terminal. Exit status: 0 removed, 1 not confirmed.

    \b
    cert-ctrl plane alerts remove --data /var/lib/plane on-call
    """

    async def question(api: OperatorApi) -> str:
        row = await api.call("GET", _path(name))
        waiting = row["due"] + row["dead"]
        unsent = f", and {counted(waiting, 'undelivered message')}" if waiting else ""
        return f"Remove alert channel {name}{unsent}?"

    if not agreed(ctx, question, yes=yes):
        return ExitStatus.FAILED

    async def request(api: OperatorApi) -> Any:
        await api.call("DELETE", _path(name))
        return {"name": name, "status": "removed"}

    show(ctx, call_plane(ctx, request), f"removed alert channel {one_line(name)}")
    return ExitStatus.DONE


@alerts.command("test", cls=OperatorCommand)
def test_channel(ctx: typer.Context, name: Name) -> int:
    """Send a test message now.

    It is not stored or retried. Exit status: 0 delivered, 69 not delivered.

    \b
    cert-ctrl plane alerts test --data /var/lib/plane on-call
    """

    async def request(api: OperatorApi) -> Any:
        return await api.call("POST", f"{_path(name)}/test", {})

    row = call_plane(ctx, request)
    show(ctx, row, f"channel {row['name']}: {'delivered to' if row['ok'] else 'not delivered to'} {row['to']}")
    if row["ok"]:
        return ExitStatus.DONE
    write_error(f"problem: {row['problem']}")
    if row["fix"]:
        write_error(f"fix: {row['fix']}")
    return ExitStatus.UNAVAILABLE


@alerts.command("outbox", cls=OperatorCommand)
def outbox(
    ctx: typer.Context,
    message_id: Annotated[int | None, typer.Argument(metavar="[ID]", min=1, help="Only this message.")] = None,
    state: Annotated[
        str, typer.Option("--state", metavar="STATE", help="Only due, sent, dead or dismissed messages.")
    ] = "",
    channel: Annotated[str, typer.Option("--channel", metavar="NAME", help="Only messages to this channel.")] = "",
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, max=500, help="At most so many messages.")] = 50,
    before: Annotated[
        int | None, typer.Option("--before", metavar="ID", min=1, help="Only messages before this one.")
    ] = None,
) -> None:
    """List the messages, the newest first, or show one.

    due: it waits, or is retried. sent: the receiver has accepted it. dead: retried for a day without success.
    dismissed: dead, and given up by an operator.

    \b
    cert-ctrl plane alerts outbox --data /var/lib/plane --state dead
    """
    one_of(state, _STATES, "a state of messages")

    async def request(api: OperatorApi) -> Any:
        if message_id is not None:
            return await api.call("GET", f"{_MESSAGES}/{message_id}")
        query = {"limit": str(limit), "state": state, "channel": channel, "before_id": str(before or "")}
        return await api.call("GET", _MESSAGES, query={key: value for key, value in query.items() if value})

    found = call_plane(ctx, request)
    show(ctx, found, lambda: _print_messages(found, limit) if message_id is None else _print_message(found))


def _print_messages(rows: Sequence[Mapping[str, Any]], limit: int) -> None:
    if not rows:
        write_line("no messages")
        return
    heads = ("id", "channel", "state", "attempts", "created", "next attempt", "message", "problem")
    names = ("id", "channel", "state", "attempts", "created_at", "next_at", "title", "problem")
    table(heads, [[one_line(str("" if row[name] is None else row[name])) for name in names] for row in rows])
    if len(rows) == limit:
        write_line(f"more: --before {rows[-1]['id']}")
    if any(row["state"] == "dead" for row in rows):
        write_line(
            "send dead ones again: cert-ctrl plane alerts resend ID, or --dead for all; give up: plane alerts dismiss"
        )


def _print_message(row: Mapping[str, Any]) -> None:
    for key in ("id", "channel", "state", "attempts", "created_at", "next_at", "ended_at", "dismissed_at", "problem"):
        if row.get(key) not in ("", None):
            write_line(f"{key.replace('_at', '')}: {row[key]}")
    message = row["message"]
    write_line(f"title: {message['title']}")
    for key in ("severity", "cause", "fix"):
        if message[key]:
            write_line(f"{key}: {message[key]}")
    for one in message["conditions"]:
        write_line(f"- {one.get('what') or one['name']}")
    if message["more"]:
        write_line(f"- and {message['more']} more")


@alerts.command("resend", cls=OperatorCommand)
def resend(
    ctx: typer.Context,
    message_id: Annotated[int | None, typer.Argument(metavar="[ID]", min=1, help="The message.")] = None,
    dead: Annotated[bool, typer.Option("--dead", help="All dead messages, the oldest first.")] = False,
    channel: Annotated[str, typer.Option("--channel", metavar="NAME", help="With --dead: only to this channel.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be sent again.")] = False,
) -> None:
    """Send dead messages again, or one that is due without waiting.

    They are retried for another day.

    \b
    cert-ctrl plane alerts resend --data /var/lib/plane 17
    cert-ctrl plane alerts resend --data /var/lib/plane --dead --dry-run
    """
    _check_chosen(message_id, channel, dead=dead)

    async def request(api: OperatorApi) -> Any:
        found = [await api.call("GET", f"{_MESSAGES}/{message_id}")] if message_id else await _dead(api, channel)
        if dry_run:
            return found
        return [await api.call("POST", f"{_MESSAGES}/{row['id']}/resend", {}) for row in found]

    rows = call_plane(ctx, request)

    def text() -> None:
        for row in rows:
            write_line(f"{'would send' if dry_run else 'sends'} message {row['id']} again: {row['title']}")
        if not rows:
            write_line("no dead messages")

    show(ctx, rows, text)


@alerts.command("dismiss", cls=OperatorCommand)
def dismiss(
    ctx: typer.Context,
    message_id: Annotated[int | None, typer.Argument(metavar="[ID]", min=1, help="The message.")] = None,
    dead: Annotated[bool, typer.Option("--dead", help="All dead messages, the oldest first.")] = False,
    channel: Annotated[str, typer.Option("--channel", metavar="NAME", help="With --dead: only to this channel.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be dismissed.")] = False,
) -> None:
    """Give up dead messages.

    They are no longer a problem of the control plane. They stay visible for 90 days, and can still be sent again. What
    lasts is told again by the channel's next reminder.

    \b
    cert-ctrl plane alerts dismiss --data /var/lib/plane 17
    cert-ctrl plane alerts dismiss --data /var/lib/plane --dead --dry-run
    """
    _check_chosen(message_id, channel, dead=dead)

    async def request(api: OperatorApi) -> Any:
        found = [await api.call("GET", f"{_MESSAGES}/{message_id}")] if message_id else await _dead(api, channel)
        query = {"dry_run": "1"} if dry_run else None
        done = [await api.call("POST", f"{_MESSAGES}/{row['id']}/dismiss", {}, query=query) for row in found]
        return found if dry_run else done

    rows = call_plane(ctx, request)

    def text() -> None:
        for row in rows:
            write_line(f"{'would dismiss' if dry_run else 'dismissed'} message {row['id']}: {row['title']}")
        if not rows:
            write_line("no dead messages")

    show(ctx, rows, text)


def _check_chosen(message_id: int | None, channel: str, *, dead: bool) -> None:
    """Raise UsageError unless either a message or all dead ones are chosen."""
    if (message_id is None) != dead:
        raise UsageError("give either the ID of a message or --dead", fix="cert-ctrl plane alerts outbox --state dead")
    if channel and not dead:
        raise UsageError("--channel belongs to --dead", fix="leave it out")


async def _dead(api: OperatorApi, channel: str) -> list[Any]:
    """Return all dead messages, the oldest first."""
    found: list[Any] = []
    query = {"state": "dead", "limit": "500"} | ({"channel": channel} if channel else {})
    while True:
        page = await api.call("GET", _MESSAGES, query=query)
        found += page
        if len(page) < 500:
            return found[::-1]
        query["before_id"] = str(page[-1]["id"])


def _path(name: str) -> str:
    return f"{_CHANNELS}/{quote(name, safe='')}"
