"""The list of rollouts, and one: what the next wave waits for, how far each wave is, who has failed. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from certctrl.plane.http.console.frame import CERTIFICATES, DEVICES, ROLLOUTS, Viewer, head
from certctrl.plane.http.console.parts import (
    NOTHING,
    Column,
    ago,
    anchor,
    cut,
    exports,
    facts,
    joined,
    link,
    many,
    number,
    section,
    shape,
    state,
    table,
    tone,
)
from certctrl.plane.http.pages.html import Html, fill

WORDS = ("running", "paused", "halted", "done", "aborted")
MEMBERS = ("proven", "accepted", "failed", "released", "skipped", "held")
"""States of devices, in the order of the bar."""
_FILLS = {"proven": "f-good", "accepted": "f-soft", "failed": "f-bad", "released": "f-info", "skipped": "f-soft"}
_MEANINGS = (
    ("proven", "it reports that it serves the change"), ("failed", "it reports a failure"),
    ("released", "it has the change, and has not reported yet"), ("skipped", "not heard from; gets it when it is back"),
    ("accepted", "failed, and an operator went on"), ("held", "not yet its turn"),
)  # fmt: skip
MAX_DEVICES = 200
"""Devices that a page lists."""
_LISTED = 5
"""Certificates that the rules name."""
_COLUMNS = (
    Column("Rollout"), Column("State", "nowrap"), Column("Progress", "progress"), Column("Waits for", "why"),
    Column("Started", "nowrap"), Column("Ended", "nowrap"),
)  # fmt: skip


def rollouts(rows: Sequence[Mapping[str, Any]], chosen: str, frozen: str, viewer: Viewer, now: float) -> Html:
    """Return the page of the list; ``chosen``: only those in this state."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["state"]] = counts.get(row["state"], 0) + 1
    fitting = [row for row in rows if chosen in ("", row["state"])]
    ice = _frozen(frozen)
    said = fill('<p class="soft">{said}</p>', said=_said(counts))
    acts = anchor("New rollout…", f"{ROLLOUTS}/new", "button") if viewer.may_change else NOTHING
    body = [head(Html("Rollouts"), said, acts=acts), ice, _tabs(counts, chosen)]
    if fitting:
        body.append(table("Rollouts, the newest first", _COLUMNS, (_row(row, now) for row in fitting), css="rollouts"))
    else:
        text = "No rollout is like this." if rows else "No rollout yet: cert-ctrl plane rollout start begins one."
        body.append(fill('<p class="empty">{text}</p>', text=text))
    option = f" --state {chosen}" if chosen else ""
    more = exports(ROLLOUTS, {"state": chosen}, f"cert-ctrl plane rollout list{option} --json")
    body.append(fill('<div class="foot"><p>{count}</p>{more}</div>', count=many(len(fitting), "rollout"), more=more))
    return joined(body)


def _said(counts: Mapping[str, int]) -> str:
    if counts.get("halted"):
        return f"{many(counts['halted'], 'rollout')} halted: read the reasons, then resume or abort."
    if counts.get("running"):
        return f"{many(counts['running'], 'rollout')} running."
    return "None is under way."


def _frozen(reason: str) -> Html:
    if not reason:
        return NOTHING
    text = '<section class="need need-warn"><h2>All rollouts are frozen</h2><p>{reason}</p></section>'
    return fill(text, reason=reason)


def _tabs(counts: Mapping[str, int], chosen: str) -> Html:
    entries = [("", sum(counts.values())), *((word, counts.get(word, 0)) for word in WORDS)]
    return fill(
        '<nav class="tabs" aria-label="By state">{tabs}</nav>\n',
        tabs=joined(
            fill(
                '<a href="{href}"{current}>{shape}{word} <span>{count}</span></a>',
                href=link(ROLLOUTS, {"state": word}),
                current=Html(' aria-current="true"' if word == chosen else ""),
                shape=shape(word) if word else NOTHING,
                word=word or "all",
                count=number(count),
            )
            for word, count in entries
        ),
    )


def _row(row: Mapping[str, Any], now: float) -> list[Html]:
    totals = totals_of(row)
    name = fill(
        '{link}<span class="sub">{note}</span>',
        link=anchor(f"{row['id']} · {title_of(row)}", f"{ROLLOUTS}/{row['id']}", "name"),
        note=cut(row["note"], 80),
    )
    return [
        name,
        state(row["state"]),
        fill("{bar}{words}", bar=bar(totals), words=_words(totals)),
        fill("{text}", text=cut(row["reason"] or row["waits"])),
        ago(row["created_at"], now),
        ago(row["finished_at"], now) if row["finished_at"] else NOTHING,
    ]


def title_of(row: Mapping[str, Any]) -> str:
    """Return what a rollout brings."""
    if row.get("kind") == "renewal":
        return str(row["what"]).removeprefix("the ")
    return f"{row['profile']} v{row['version']}"


def heading_of(row: Mapping[str, Any]) -> str:
    """Return what a rollout brings, as the beginning of a line; the name of a profile is left as it is."""
    title = title_of(row)
    return title[:1].upper() + title[1:] if row.get("kind") == "renewal" else title


def brought_by(row: Mapping[str, Any]) -> str:
    """Return what devices get by a rollout."""
    if row.get("kind") != "renewal":
        return "the new version"
    return "the renewed certificate" if len(row.get("certificates", ())) == 1 else "the renewed certificates"


def totals_of(row: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of devices in each state, over all waves."""
    found: dict[str, int] = {}
    for wave in row["waves"]:
        for word, count in wave["states"].items():
            found[word] = found.get(word, 0) + count
    return found


def bar(states: Mapping[str, int]) -> Html:
    """Return devices by state as a bar; the words below it say the same."""
    total, x, parts = sum(states.values()) or 1, 0.0, []
    for word in MEMBERS:
        wide = 1000 * states.get(word, 0) / total
        if wide and word in _FILLS:
            parts.append(
                fill(
                    '<rect class="{css}" x="{x}" y="0" width="{wide}" height="10"/>',
                    css=_FILLS[word],
                    x=f"{x:.1f}",
                    wide=f"{wide:.1f}",
                )
            )
        x += wide
    text = '<svg class="bar" viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true">{parts}</svg>'
    return fill(text, parts=joined(parts))


def _words(states: Mapping[str, int]) -> Html:
    parts = [
        fill(
            '<span class="{tone}">{count} {word}</span>',
            tone=tone(word) if word == "failed" else "",
            count=number(states[word]),
            word=word,
        )
        for word in MEMBERS
        if states.get(word)
    ]
    return joined(parts, " · ")


# --- one rollout ------------------------------------------------------------------------------------------------------


def rollout(row: Mapping[str, Any], viewer: Viewer, now: float) -> Html:
    """Return the page."""
    totals = totals_of(row)
    below = fill(
        '<p class="soft" id="below" data-live>{proven} of {all} proven · started {ago}{ended}{note}</p>',
        proven=number(totals.get("proven", 0)),
        all=many(sum(totals.values()), "device"),
        ago=ago(row["created_at"], now),
        ended=fill(" · ended {ago}", ago=ago(row["finished_at"], now)) if row["finished_at"] else NOTHING,
        note=f" · {row['note']}" if row["note"] else "",
    )
    title = fill('{title} <span id="state" data-live>{state}</span>', title=heading_of(row), state=state(row["state"]))
    crumb = fill('<a href="{all}">Rollouts</a> / {id}', all=ROLLOUTS, id=row["id"])
    return fill(
        '{head}{say}{waves}<div class="side"><div id="devices" data-live>{devices}</div><div>{rules}</div></div>',
        head=head(title, below, crumb=crumb, acts=_acts(row, viewer), live_at=now),
        say=_say(row, totals),
        waves=_waves(row),
        devices=_devices(row, now),
        rules=_rules(row),
    )


def actions_of(word: str) -> tuple[str, ...]:
    """Return what an operator can do with a rollout in a state."""
    return {"running": ("pause", "abort"), "paused": ("resume", "abort"), "halted": ("resume", "abort")}.get(word, ())


def _acts(row: Mapping[str, Any], viewer: Viewer) -> Html:
    if not viewer.may_change:
        return NOTHING
    home = f"{ROLLOUTS}/{row['id']}/confirm"
    buttons = joined(
        anchor(f"{do.capitalize()}…", link(home, {"do": do}), "button danger" if do == "abort" else "button")
        for do in actions_of(row["state"])
    )
    return fill('<div class="acts" id="acts" data-live>{buttons}</div>', buttons=buttons)


def _say(row: Mapping[str, Any], totals: Mapping[str, int]) -> Html:
    """Return the one sentence that counts: what happens now, or what the next wave waits for."""
    left = sum(totals.get(word, 0) for word in ("held", "released", "skipped"))
    match row["state"]:
        case "running":
            css, title = "need-info", f"Waits for {row['waits']}" if row["waits"] else "Releases the next devices"
            said = (
                _next(row["rules"]) if totals.get("held") else "No device is held: it is done when these have reported."
            )
        case "halted":
            css, title = "need-bad", f"Halted: {row['reason']}"
            said = f"Nothing more is released. {_failures(totals.get('failed', 0))}"
        case "paused":
            css, title = "need-warn", "Paused by an operator"
            said = "Nothing more is released. Devices that are released go on; if too many fail, it halts."
        case "aborted":
            css, title = "need-calm", f"Aborted, with {many(left, 'device')} left"
            said = f"Devices that were released keep {brought_by(row)}, all others the former. The states are those of that moment."
        case _:
            css, title = "need-good", "Done"
            said = _ended(totals, left)
    return fill(
        '<section class="need {css}" id="say" data-live><h2><span role="status">{title}</span></h2><p>{said}</p></section>\n',
        css=css,
        title=title,
        said=said,
    )


def _failures(count: int) -> str:
    """Return what to do about a halt; the title says how many had failed then, this how many fail now."""
    if not count:
        return "No device fails at present: resume, or abort."
    fail = f"{many(count, 'device')} {'fails' if count == 1 else 'fail'} at present: read the reasons below."
    repaired = "One that is repaired, and reports success, has proven the change."
    return f"{fail} {repaired} Then resume, which accepts the other failures, or abort."


def _next(rules: Mapping[str, Any]) -> str:
    """Return when the next wave goes out."""
    limit = f", or have failed within the limit of {number(rules['max_failures'])}" if rules.get("max_failures") else ""
    return f"The next wave goes out when all before it have proven the change{limit}. Nothing goes by time alone."


def _ended(totals: Mapping[str, int], left: int) -> str:
    """Return how a rollout has ended, with those that have not proven the change."""
    said = [f"{many(totals.get('proven', 0), 'device')} proved the change"]
    if failed := totals.get("failed", 0):
        said.append(f"{number(failed)} failed, which the rules allow")
    if accepted := totals.get("accepted", 0):
        said.append(f"{number(accepted)} failed and {'was' if accepted == 1 else 'were'} accepted")
    if left:
        said.append(f"{number(left)} {'gets it when it is' if left == 1 else 'get it when they are'} heard from")
    return f"{', '.join(said)}."


_WAVES = (
    Column("Wave", "nowrap"), Column("State", "nowrap"), Column("Devices", "num"), Column("Progress", "progress"),
    Column("What", "why"),
)  # fmt: skip


def _waves(row: Mapping[str, Any]) -> Html:
    waves = row["waves"]
    rows = []
    for place, wave in enumerate(waves):
        states, word = wave["states"], _word_of(wave["states"], row["state"])
        what = {
            "proven": "all its devices",
            "settled": "not all have proven it",
            "released": "under way",
            "halted": "devices have failed",
            "held": "waits for the waves before it" if place else "not begun",
        }[word]
        canary = place == 0 and row["rules"].get("canary")
        last = place == len(waves) - 1 and place > 0
        rows.append(
            [
                fill(
                    "Wave {number}{what}",
                    number=wave["wave"],
                    what=", canary" if canary else ", the rest" if last else "",
                ),
                state(word),
                fill("{count}", count=number(wave["devices"])),
                fill("{bar}{words}", bar=bar(states), words=_words(states)),
                fill("{what}", what=what),
            ]
        )
    shown = table("Waves", _WAVES, rows, part="waves", css="waves")
    return section("Waves", fill("{table}{key}", table=shown, key=_key(totals_of(row))), part="w")


def _key(totals: Mapping[str, int]) -> Html:
    """Return what the colours of the bars mean."""
    parts = joined(
        fill(
            '<li><svg viewBox="0 0 12 12" aria-hidden="true"><rect class="{css}" width="12" height="12" rx="2"/></svg>{word}: {meaning}</li>',
            css=_FILLS[word],
            word=word,
            meaning=meaning,
        )
        for word, meaning in _MEANINGS
        if word in _FILLS and totals.get(word)
    )
    return fill('<ul class="key" id="key" data-live>{parts}</ul>', parts=parts)


def _word_of(states: Mapping[str, int], of_rollout: str) -> str:
    """Return the state of a wave."""
    if set(states) <= {"held", "skipped"} and states.get("held"):
        return "held"
    if states.get("failed") and of_rollout == "halted":
        return "halted"
    if states.get("held") or states.get("released"):
        return "released"
    return "proven" if set(states) <= {"proven"} else "settled"


_DEVICES = (
    Column("Device"), Column("State", "nowrap"), Column("Wave", "num"), Column("What it reports", "why"),
    Column("Released", "nowrap"),
)  # fmt: skip


def _devices(row: Mapping[str, Any], now: float) -> Html:
    order = {"failed": 0, "released": 1, "skipped": 2, "accepted": 3}
    notable = sorted(row["devices"], key=lambda one: (order.get(one["state"], 9), one["wave"], one["id"]))
    if not notable:
        text = "None has failed, is under way or skipped."
        return section("Devices to look at", fill('<p class="empty">{text}</p>', text=text), part="notable")
    rows = [
        [
            anchor(one["name"] or f"device {one['id']}", f"{DEVICES}/{one['id']}", "name"),
            state(one["state"]),
            fill("{wave}", wave=one["wave"]),
            fill('<span class="mono">{detail}</span>', detail=cut(one["detail"])) if one["detail"] else NOTHING,
            ago(one["released_at"], now) if one["released_at"] else NOTHING,
        ]
        for one in notable[:MAX_DEVICES]
    ]
    end = NOTHING
    if len(notable) > MAX_DEVICES:
        end = fill('<p class="foot">{count} more, in JSON</p>', count=number(len(notable) - MAX_DEVICES))
    shown = table("Devices that have failed, are under way or skipped", _DEVICES, rows)
    body = fill("{table}{end}", table=shown, end=end)
    return section(f"Devices to look at: {number(len(notable))}", body, part="notable")


def _certificates(rows: Sequence[Mapping[str, Any]]) -> Html:
    """Return links to what is renewed."""
    links = [anchor(one["name"], f"{CERTIFICATES}/{one['id']}") for one in rows[:_LISTED]]
    if len(rows) > _LISTED:
        links.append(fill("{count} more", count=number(len(rows) - _LISTED)))
    return joined(links, ", ")


def _rules(row: Mapping[str, Any]) -> Html:
    rules = row["rules"]
    pause = rules.get("pause_seconds", 0)
    shown = facts(
        [
            ("Certificates", _certificates(row.get("certificates", ()))),
            ("Profile", row["profile"]),
            ("Version", row["version"] if row["profile"] else ""),
            ("Waves", f"{', '.join(rules.get('waves', ()))}, the rest"),
            ("Canary", rules.get("canary", "")),
            ("May fail", many(rules.get("max_failures", 0), "device") if rules.get("max_failures") else "none"),
            ("Pause", f"{pause // 60} min between waves" if pause else ""),
            ("Windows", ", ".join(rules.get("windows", ())) + " UTC" if rules.get("windows") else ""),
            ("One by one", rules.get("serial", "")),
            ("Id", row["id"]),
        ]
    )
    more = exports(f"{ROLLOUTS}/{row['id']}", {}, f"cert-ctrl plane rollout status {row['id']} --json")
    text = '<section class="card" aria-labelledby="h-rules"><h2 id="h-rules">Rules</h2>{facts}</section>{more}'
    return fill(text, facts=shown, more=more)
