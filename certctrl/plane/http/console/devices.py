"""The list of devices: which hosts, in what state, and why. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from certctrl.plane.fleet.words import DEVICE_WORDS, REASONS
from certctrl.plane.http.console.frame import DEVICES, Asked, head
from certctrl.plane.http.console.parts import (
    NOTHING,
    Column,
    ago,
    anchor,
    cut,
    exports,
    hidden,
    joined,
    left,
    link,
    many,
    number,
    quoted,
    shape,
    since,
    state,
    table,
    tags_of,
)
from certctrl.plane.http.pages.html import Html, fill

SORTS = {
    "worst": "worst first",
    "ends": "ends first",
    "name": "name",
    "contact": "longest silent",
    "id": "oldest first",
}
_COLUMNS = (
    Column("Device", "", "name"), Column("State", "nowrap", "worst"), Column("Why", "why"), Column("Ends first", "num", "ends"),
    Column("Last contact", "nowrap", "contact"), Column("Agent", "minor nowrap"), Column("Tags", "tags"),
)  # fmt: skip
MAX_TAGS = 200
"""Tags that the form offers."""


def devices(
    answer: Mapping[str, Any], asked: Asked, tags: Sequence[Mapping[str, Any]], now: float, acts: Html = NOTHING
) -> Html:
    """Return the page of a list; ``acts``: what can be done with what it shows."""
    rows = answer["devices"]
    body = [
        head(Html("Devices"), fill('<p class="soft">{said}</p>', said=_said(answer)), acts=acts),
        tabs(asked, DEVICE_WORDS, answer["counts"]),
        _filters(asked, tags),
        chips(asked, DEVICE_WORDS),
    ]
    if rows:
        links = {name: asked.with_(sort=name) for name in SORTS}
        caption = f"{many(answer['total'], 'device')}, {SORTS[asked.query['sort']]}"
        body.append(
            table(
                caption,
                _COLUMNS,
                (_row(row, now) for row in rows),
                css="devices",
                sorted_by=asked.query["sort"],
                sort_links=links,
            )
        )
    else:
        body.append(_none(answer, asked))
    body.append(foot(answer, asked, len(rows), "devices"))
    return joined(body)


def _said(answer: Mapping[str, Any]) -> str:
    counts = answer["counts"]
    needing = counts.get("degraded", 0) + counts.get("stale", 0)
    total = sum(counts.values())
    return (
        f"{number(needing)} of {many(total, 'device')} need you."
        if needing
        else f"{many(total, 'device')}, none needs you."
    )


def _row(row: Mapping[str, Any], now: float) -> list[Html]:
    why, first, home = row["why"], row["ends_first"], f"{DEVICES}/{row['id']}"
    reason = NOTHING
    if why:
        about = f"{why['certificate']}: " if why["certificate"] else ""
        message = (
            fill('<span class="sub mono">{text}</span>', text=cut(why["message"], 160)) if why["message"] else NOTHING
        )
        reason = fill("{what}{message}", what=f"{about}{why['what']}", message=message)
    lasting = fill(' <span class="soft">{since}</span>', since=since(row["since"], now)) if row["since"] else NOTHING
    ends = NOTHING
    if first:
        ends = fill(
            '{left}<span class="sub">{name}</span>', left=left(first["at"], now), name=cut(first["certificate"], 40)
        )
    return [
        anchor(row["name"] or f"device {row['id']}", home, "name"),
        fill("{state}{since}", state=state(row["state"]), since=lasting if row["state"] != "healthy" else NOTHING),
        reason,
        ends,
        ago(row["last_contact_at"], now),
        fill("{agent}", agent=cut(row["agent"], 20)),
        tags_of(row["tags"], 3),
    ]


def _none(answer: Mapping[str, Any], asked: Asked) -> Html:
    if not sum(answer["counts"].values()):
        return Html('<p class="empty">No device yet. <a href="/fleet">How to add the first one</a></p>')
    if asked.query.get("after"):
        return fill(
            '<p class="empty">No further devices. <a href="{first}">Back to the first page</a></p>', first=asked.with_()
        )
    return fill(
        '<p class="empty">No device fits all of these filters. <a href="{all}">Show all {count}</a></p>',
        all=asked.path,
        count=many(sum(answer["counts"].values()), "device"),
    )


# --- what lists share -------------------------------------------------------------------------------------------------


def tabs(asked: Asked, words: Sequence[str], counts: Mapping[str, int]) -> Html:
    """Return the states with their numbers, each a link."""
    chosen = asked.query.get("state", "")
    entries = [("", "all", sum(counts.values()))] + [(word, word, counts.get(word, 0)) for word in words]
    return fill(
        '<nav class="tabs" aria-label="By state">{tabs}</nav>\n',
        tabs=joined(
            fill(
                '<a href="{href}"{current}>{shape}{word} <span>{count}</span></a>',
                href=asked.with_(state=value),
                current=Html(' aria-current="true"' if value == chosen else ""),
                shape=shape(word) if value else NOTHING,
                word=word,
                count=number(count),
            )
            for value, word, count in entries
        ),
    )


def _filters(asked: Asked, tags: Sequence[Mapping[str, Any]]) -> Html:
    return search_form(asked, "Name, address or certificate", "web-* or 10.12.", tags_field(asked, tags), SORTS)


def tags_field(asked: Asked, tags: Sequence[Mapping[str, Any]]) -> Html:
    """Return the field for tags, which offers some."""
    options = joined(
        fill('<option value="{tag}">{count}</option>', tag=one["tag"], count=many(one["devices"], "device"))
        for one in tags[:MAX_TAGS]
    )
    return fill(
        """<label for="tag">Tags<input id="tag" name="tag" value="{tag}" list="tags" placeholder="web,env=prod" maxlength="200"
 spellcheck="false" autocomplete="off" autocapitalize="none"></label><datalist id="tags">{options}</datalist>""",
        tag=asked.query.get("tag", ""),
        options=options,
    )


def search_form(asked: Asked, label: str, example: str, more: Html, sorts: Mapping[str, str]) -> Html:
    """Return the form by which a list is searched and sorted; what else was asked stays."""
    options = joined(
        fill(
            '<option value="{name}"{chosen}>{text}</option>',
            name=name,
            text=text,
            chosen=Html(" selected" if name == asked.query["sort"] else ""),
        )
        for name, text in sorts.items()
    )
    return fill(
        """<form class="filters" action="{path}">{kept}
<label class="wide" for="q">{label}<input id="q" name="q" type="search" value="{q}" placeholder="{example}" maxlength="100" spellcheck="false"
 autocomplete="off"></label>{more}
<label for="sort">Sort by<select id="sort" name="sort">{options}</select></label>
<button>Show</button></form>
""",
        path=asked.path,
        kept=hidden(state=asked.query.get("state", ""), reason=asked.query.get("reason", "")),
        label=label,
        example=example,
        q=asked.query.get("q", ""),
        more=more,
        options=options,
    )


def chips(asked: Asked, words: Collection[str]) -> Html:
    """Return the filters that are on, each a link that takes it off, except a state of ``words``: that is a tab."""
    names = {"reason": "cause", "q": "search"}
    on = {name: value for name, value in asked.filters().items() if name != "state" or value not in words}
    if not on:
        return NOTHING
    shown = joined(
        fill(
            '<a class="chip" href="{off}">{name}: {value} <span aria-hidden="true">×</span><span class="away">, remove</span></a>',
            off=asked.with_(**{name: ""}),
            name=names.get(name, name),
            value=_filter_text(name, value),
        )
        for name, value in on.items()
    )
    return fill('<p class="active">Only: {shown} <a href="{all}">Clear all</a></p>\n', shown=shown, all=asked.path)


def _filter_text(name: str, value: str) -> str:
    if name == "reason" and value in REASONS:
        return REASONS[value][0]
    return cut(value, 60).replace(",", ", ")


def foot(answer: Mapping[str, Any], asked: Asked, shown: int, kind: str) -> Html:
    """Return how many rows there are, the way to the next, and the same list in other forms."""
    total, following = answer["total"], answer["next"]
    noun = kind.removesuffix("s")
    said = f"{number(shown)} of {many(total, noun)}" if shown < total else many(total, noun)
    ways = []
    if asked.query.get("after"):
        ways.append(anchor("First page", asked.with_(), "button"))
    if following is not None:
        ways.append(anchor("Next page", asked.with_(after=following), "button"))
    given = options_of(asked)
    given += [f"--sort {asked.query['sort']}"] if asked.query["sort"] != "worst" else []
    command = " ".join(["cert-ctrl plane", kind, *(given or ["--limit 50"]), "--json"])
    query = {**asked.filters(), "sort": asked.query["sort"] if asked.query["sort"] != "worst" else ""}
    return fill(
        '<div class="foot"><p>{said}</p>{ways}{exports}</div>\n',
        said=said,
        exports=exports(asked.path, query, command),
        ways=fill('<nav aria-label="Pages">{ways}</nav>', ways=joined(ways, " ")) if ways else NOTHING,
    )


def options_of(asked: Asked) -> list[str]:
    """Return the filters of a list as options of its command."""
    options = {"state": "--state", "reason": "--reason", "tag": "--tag", "q": "--search"}
    return [
        f"{options[name]} {quoted(one)}"
        for name, value in asked.filters().items()
        for one in (value.split(",") if name in ("state", "tag") else [value])
    ]


def of_reason(reason: str) -> str:
    """Return the URL of the devices with a reason."""
    return link(DEVICES, {"state": "stale"} if reason == "not-heard" else {"reason": reason})
