"""Alerts: what is wrong now, how messages about it fare per channel, and the messages themselves. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from certctrl import lean
from certctrl.plane.alerts.conditions import Event
from certctrl.plane.alerts.outbox import DEAD, DISMISSED, DUE, STATES
from certctrl.plane.health.problems import ProblemName
from certctrl.plane.http.console.confirm import ask_page
from certctrl.plane.http.console.devices import tabs
from certctrl.plane.http.console.frame import ALERTS, CERTIFICATES, DEVICES, ROLLOUTS, Asked, Viewer, head
from certctrl.plane.http.console.parts import (
    NOTHING,
    Column,
    ago,
    anchor,
    cut,
    exports,
    facts,
    hidden,
    joined,
    left,
    link,
    many,
    number,
    only_json,
    quoted,
    section,
    since,
    state,
    table,
)
from certctrl.plane.http.pages.html import Html, fill

_NAMED, _LISTED = 3, 20
_NOW, _SEND, _DISMISS = ("resend", "Send now"), ("resend", "Send again"), ("dismiss", "Dismiss")


@lean.frozen(kw_only=True)
class AlertsFound:
    """What the page shows."""

    messages: Sequence[Mapping[str, Any]]
    following: int | None
    """The id before which the next page begins."""
    counts: Mapping[str, int]
    channels: Sequence[Mapping[str, Any]]
    groups: Sequence[Mapping[str, Any]] | None
    """What is wrong now; None: only messages were asked for."""


def alerts(found: AlertsFound, asked: Asked, viewer: Viewer, now: float) -> Html:
    """Return the page: the state of affairs first, or only the messages that fit."""
    if found.groups is None:
        crumb = fill('<a href="{all}">Alerts</a> / messages', all=ALERTS)
        return joined([head(Html("Messages"), crumb=crumb), _messages(found, asked, viewer, now)])
    count = len(found.groups)
    title = fill(
        '<span id="need" data-live>{text}</span>',
        text=f"{many(count, 'problem')} now" if count else "Nothing is wrong now",
    )
    below = fill('<p class="soft" id="said" data-live>{said}</p>', said=_delivery(found))
    return joined(
        [
            head(title, below, live_at=now),
            _wrong(found.groups, viewer, now),
            _channels(found.channels, now),
            section("Messages", _messages(found, asked, viewer, now), part="messages"),
        ]
    )


def _delivery(found: AlertsFound) -> Html:
    if not found.channels:
        return Html("No channel is set up, so no alert is sent.")
    dead, due = found.counts.get(DEAD, 0), found.counts.get(DUE, 0)
    if dead:
        messages = anchor(many(dead, "message"), link(ALERTS, {"state": DEAD}))
        return fill("{messages} could not be delivered: send again or dismiss.", messages=messages)
    return fill("{messages} to be delivered, none dead.", messages=many(due, "message"))


# --- what is wrong now ------------------------------------------------------------------------------------------------

_WRONG = (
    Column("Problem", "why"), Column("Where", "why"), Column("Since", "nowrap"), Column("What to do", "do"),
)  # fmt: skip


def _wrong(groups: Sequence[Mapping[str, Any]], viewer: Viewer, now: float) -> Html:
    shown = Html('<p class="empty">Nothing that alerts are about lasts at this moment.</p>')
    if groups:
        rows = [_group(row, viewer, now) for row in groups]
        shown = table("What is wrong now, the worst first", _WRONG, rows, css="wide")
    more = fill(
        '<p class="cli">Same list: <a href="{path}.json">JSON</a> · <a href="{path}.csv">CSV</a></p>',
        path=f"{ALERTS}/now",
    )
    body = fill('<div id="now" data-live>{shown}</div><div class="foot">{more}</div>', shown=shown, more=more)
    return section("Wrong now", body, part="wrong", quiet=True)


def _group(row: Mapping[str, Any], viewer: Viewer, now: float) -> list[Html]:
    event = Event(row["event"]).words
    what = fill(
        '{state} {cause}<span class="sub">{event}</span>',
        state=state(row["severity"]),
        cause=row["cause"],
        event=event,
    )
    names = [one["name"] for one in row["conditions"]]
    said = cut(", ".join(names[:_NAMED]) + (", …" if row["count"] > _NAMED else ""), 160)
    where = fill("{name}", name=said)
    if row["count"] > 1:
        where = fill('{count}<span class="sub">{said}</span>', count=number(row["count"]), said=said)
    elif row["event"] == Event.PLANE_PROBLEM:
        where = fill('{name}<span class="sub mono">{what}</span>', name=said, what=cut(row["conditions"][0]["what"]))
    home = _home(row, viewer)
    if home:
        show = '{where}<span class="sub"><a href="{home}">Show<span class="away"> {event}</span></a></span>'
        where = fill(show, where=where, home=home, event=event)
    return [what, where, since(row["since"], now), fill("{fix}", fix=cut(row["fix"]))]


def _home(row: Mapping[str, Any], viewer: Viewer) -> str:
    """Return the page about a group; empty if none shows all of it."""
    if any(one["user_id"] not in (None, viewer.user_id) for one in row["conditions"]):
        return ""
    key = row["conditions"][0]["key"]
    match row["event"]:
        case Event.ROLLOUT_HALTED:
            return f"{ROLLOUTS}/{key}"
        case Event.DEVICE_SILENT:
            return link(DEVICES, {"state": "stale"})
        case Event.RENEWAL_FAILED:
            return link(CERTIFICATES, {"state": "failing,expired"})
        case Event.CERTIFICATE_ENDING:
            return link(CERTIFICATES, {"sort": "ends"})
        case Event.DEVICE_COPIES | Event.CERTIFICATE_STUCK if row["count"] == 1:
            return f"{DEVICES}/{key.partition('.')[0]}"
        case Event.CERTIFICATE_STUCK:
            return link(DEVICES, {"state": "degraded"})
        case Event.PLANE_PROBLEM if row["group"].endswith(f".{ProblemName.ALERTS}"):
            return link(ALERTS, {"state": DEAD})
    return ""


# --- channels ---------------------------------------------------------------------------------------------------------

_CHANNELS = (
    Column("Channel", "nowrap"), Column("Leads to", "why"), Column("Events", "why"), Column("To be sent", "num"), Column("Dead", "num"),
    Column("Last sent", "nowrap"), Column("Last problem", "why"),
)  # fmt: skip


def _channels(channels: Sequence[Mapping[str, Any]], now: float) -> Html:
    command = Html('<p class="cli"><code>cert-ctrl plane alerts list --json</code></p>')
    if not channels:
        text = Html('<p class="empty">No channel yet: <code>cert-ctrl plane alerts add</code> adds one.</p>')
        return section("Channels", text, part="channels")
    rows = [_channel(row, now) for row in channels]
    body = fill("{table}{more}", table=table("Channels", _CHANNELS, rows), more=command)
    return section("Channels", body, part="channels")


def _channel(row: Mapping[str, Any], now: float) -> list[Html]:
    def count(word: str) -> Html:
        if not row[word]:
            return Html("0")
        return anchor(number(row[word]), link(ALERTS, {"state": word, "channel": row["name"]}))

    problem = fill('<span class="mono">{text}</span>', text=cut(row["problem"])) if row["problem"] else NOTHING
    return [
        fill(
            '{name}<span class="sub">{kind}</span>',
            name=anchor(row["name"], link(ALERTS, {"channel": row["name"]}), "name"),
            kind=row["kind"],
        ),
        fill("{to}", to=cut(row["to"], 120)),
        fill("{events}", events=", ".join(row["settings"]["events"]) or "all"),
        count(DUE),
        count(DEAD),
        ago(row["last_sent_at"], now),
        problem,
    ]


# --- messages ---------------------------------------------------------------------------------------------------------

_MESSAGES = (
    Column("Message", "why"), Column("State", "nowrap"), Column("Channel"), Column("Attempts", "num"),
    Column("Last problem", "why"), Column("Created", "nowrap"), Column("Actions", "does"),
)  # fmt: skip


def _messages(found: AlertsFound, asked: Asked, viewer: Viewer, now: float) -> Html:
    first = Asked(asked.path, {**asked.query, "before_id": ""})
    body = [tabs(first, STATES, found.counts), _filters(asked, found.channels)]
    on = {name: value for name, value in asked.query.items() if value and name != "before_id"}
    if found.messages:
        columns = _MESSAGES if viewer.may_change else _MESSAGES[:-1]
        rows = [_message(row, asked, viewer, now)[: len(columns)] for row in found.messages]
        body.append(table("Messages, the newest first", columns, rows, css="wide"))
    elif on or asked.query.get("before_id"):
        text = '<p class="empty">No message fits all of these filters. <a href="{all}">Show all</a></p>'
        body.append(fill(text, all=asked.path))
    else:
        body.append(Html('<p class="empty">No message yet.</p>'))
    ways = []
    if asked.query.get("before_id"):
        ways.append(anchor("First page", asked.with_(before_id=""), "button"))
    if found.following is not None:
        ways.append(anchor("Older", asked.with_(before_id=str(found.following)), "button"))
    options = "".join(f" --{name} {quoted(value)}" for name, value in on.items())
    foot = fill(
        '<div class="foot"><p>{count}</p>{acts}{ways}{more}</div>',
        acts=_for_all(asked) if found.messages and viewer.may_change else NOTHING,
        count=many(len(found.messages), "message"),
        ways=fill('<nav aria-label="Pages">{ways}</nav>', ways=joined(ways, " ")) if ways else NOTHING,
        more=exports(ALERTS, on, f"cert-ctrl plane alerts outbox{options} --json"),
    )
    return joined([*body, foot])


def _for_all(asked: Asked) -> Html:
    """Return what can be done with all messages of a list of dead ones."""
    if asked.query.get("state") != DEAD:
        return NOTHING
    home, channel = f"{ALERTS}/dead/confirm", asked.query.get("channel", "")
    both = (
        anchor(text, link(home, {"do": do, "channel": channel}), "button")
        for do, text in (("resend", "Send all again…"), ("dismiss", "Dismiss all…"))
    )
    return fill('<div class="acts">{both}</div>', both=joined(both))


def _filters(asked: Asked, channels: Sequence[Mapping[str, Any]]) -> Html:
    chosen = asked.query.get("channel", "")
    options = joined(
        fill(
            '<option value="{name}"{chosen}>{text}</option>',
            name=name,
            text=name or "all",
            chosen=Html(" selected" if name == chosen else ""),
        )
        for name in ["", *(row["name"] for row in channels)]
    )
    return fill(
        '<form class="filters" action="{path}">{kept}<label for="channel">Channel<select id="channel" name="channel">{options}</select></label>'
        "<button>Show</button></form>\n",
        path=asked.path,
        kept=hidden(state=asked.query.get("state", "")),
        options=options,
    )


def _message(row: Mapping[str, Any], asked: Asked, viewer: Viewer, now: float) -> list[Html]:
    back = {name: asked.query.get(name, "") for name in ("state", "channel", "before_id")}
    problem = fill('<span class="mono">{text}</span>', text=cut(row["problem"], 160)) if row["problem"] else NOTHING
    again = NOTHING
    if row["next_at"]:
        again = fill('<span class="sub">again {left}</span>', left=left(row["next_at"], now, words=True))
    return [
        anchor(cut(row["title"], 160), f"{ALERTS}/{row['id']}", "name"),
        fill("{state}{again}", state=state(row["state"]), again=again),
        fill("{channel}", channel=row["channel"]),
        fill("{count}", count=number(row["attempts"])),
        problem,
        ago(row["created_at"], now),
        _buttons(row, viewer, back),
    ]


def _buttons(row: Mapping[str, Any], viewer: Viewer, back: Mapping[str, str]) -> Html:
    """Return what can be done with a message, for those who may."""
    acts = {DUE: (_NOW,), DEAD: (_SEND, _DISMISS), DISMISSED: (_SEND,)}.get(row["state"], ())
    if not viewer.may_change:
        return NOTHING
    return joined(
        fill(
            '<form method="post" action="{action}">{hidden}<button>{label}<span class="away"> message {id}</span></button></form>',
            action=f"{ALERTS}/{row['id']}/{do}",
            hidden=hidden(csrf=viewer.csrf, **back),
            label=label,
            id=row["id"],
        )
        for do, label in acts
    )


def digest_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what is the same as long as the same messages are dead."""
    return sha256(",".join(str(row["id"]) for row in rows).encode()).hexdigest()[:32]


def all_dead(
    rows: Sequence[Mapping[str, Any]], total: int, do: str, channel: str, viewer: Viewer, problem: str
) -> Html:
    """Ask before dead messages are sent again or dismissed; the answer is about these rows, or nothing."""
    is_send = do == "resend"
    whose = f" to {channel}" if channel else ""
    lines = [fill("<li>{id}: {title}</li>", id=row["id"], title=cut(row["title"], 120)) for row in rows[:_LISTED]]
    if len(rows) > _LISTED:
        lines.append(fill("<li>and {count} more</li>", count=number(len(rows) - _LISTED)))
    if is_send:
        does = ["Each is sent again, the oldest first, and retried for a day.", "The receiver gets them as they were."]
    else:
        does = [
            "They are no longer a problem of the control plane.",
            "What they are about is told again by the channel's next reminder, if it lasts.",
        ]
    if total > len(rows):
        does.append(f"These are the newest {number(len(rows))} of {number(total)}: repeat it for the others.")
    option = f" --channel {quoted(channel)}" if channel else ""
    return ask_page(
        title=f"{'Send' if is_send else 'Dismiss'} {many(len(rows), 'dead message')}{whose}{' again' if is_send else ''}?",
        action=f"{ALERTS}/dead/{do}",
        back=link(ALERTS, {"state": DEAD, "channel": channel}),
        does=does,
        undo="Those that fail for a day are dead again." if is_send else "Each can still be sent again.",
        ask=hidden(channel=channel, last=rows[0]["id"] if rows else 1, set=digest_of(rows)),
        command=f"cert-ctrl plane alerts {do} --dead{option}",
        label="Send them again" if is_send else "Dismiss them",
        viewer=viewer,
        danger=False,
        problem=problem,
        which=fill('<ul class="do">{lines}</ul>', lines=joined(lines)),
    )


def message(row: Mapping[str, Any], viewer: Viewer, now: float) -> Html:
    """Return the page of one message."""
    body = row["message"]
    crumb = fill('<a href="{all}">Alerts</a> / message {id}', all=ALERTS, id=row["id"])
    acts = fill('<div class="acts">{acts}</div>', acts=_buttons(row, viewer, {"one": "yes"}))
    title = fill("{title} {state}", title=cut(body["title"], 200), state=state(row["state"]))
    shown = facts(
        [
            ("Channel", anchor(row["channel"], link(ALERTS, {"channel": row["channel"]}))),
            ("Created", ago(row["created_at"], now)),
            ("Attempts", number(row["attempts"])),
            ("Next attempt", left(row["next_at"], now, words=True) if row["next_at"] else ""),
            ("Sent" if row["state"] == "sent" else "Given up", ago(row["ended_at"], now) if row["ended_at"] else ""),
            ("Dismissed", ago(row["dismissed_at"], now) if row["dismissed_at"] else ""),
            (
                "Last problem",
                fill('<span class="mono">{text}</span>', text=cut(row["problem"], 500)) if row["problem"] else "",
            ),
        ]
    )
    delivery = fill(
        '<section class="card" aria-labelledby="h-delivery"><h2 id="h-delivery">Delivery</h2>{facts}</section>{more}',
        facts=shown,
        more=only_json(f"{ALERTS}/{row['id']}", {}, f"cert-ctrl plane alerts outbox {row['id']} --json"),
    )
    return fill(
        '{head}<div class="side"><div>{told}</div><div>{delivery}</div></div>',
        head=head(title, crumb=crumb, acts=acts),
        told=_told(body),
        delivery=delivery,
    )


def _told(body: Mapping[str, Any]) -> Html:
    """Return what a message says."""
    lines = [fill("<li>{what}</li>", what=cut(one.get("what") or one["name"], 400)) for one in body["conditions"]]
    if body["more"]:
        lines.append(fill("<li>and {count} more</li>", count=number(body["more"])))
    says = [(name, cut(body[name.lower()], 400)) for name in ("Severity", "Cause", "Fix") if body.get(name.lower())]
    return section(
        "Text",
        fill('<div class="card">{facts}<ul class="do">{lines}</ul></div>', facts=facts(says), lines=joined(lines)),
        part="told",
    )
