"""Parts that the pages of the console share: states, times, numbers, links, tables. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from certctrl import lean
from certctrl.plane.http.pages.html import Html, fill
from certctrl.text import one_line

NOTHING = Html("")
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400

MARKS = {
    "healthy": ("check", "good"), "degraded": ("alert", "bad"), "stale": ("clock", "warn"), "expected": ("ring", "off"),
    "revoked": ("slash", "off"), "served": ("check", "good"), "deployed": ("dot", "off"), "waiting": ("ring", "off"),
    "stuck": ("alert", "bad"), "still served": ("stop", "bad"), "expired": ("stop", "bad"), "withdrawn": ("slash", "off"),
    "not served": ("alert", "bad"), "expiring": ("clock", "warn"), "valid": ("check", "good"), "renewing": ("half", "info"), "failing": ("alert", "bad"),
    "running": ("half", "info"), "paused": ("pause", "warn"), "halted": ("alert", "bad"), "done": ("check", "good"),
    "aborted": ("slash", "off"), "held": ("ring", "off"), "skipped": ("skip", "off"), "released": ("half", "info"),
    "proven": ("check", "good"), "failed": ("alert", "bad"), "accepted": ("skip", "off"), "settled": ("check", "good"),
    "applied": ("check", "good"), "unchanged": ("check", "off"), "rolled_back": ("alert", "bad"),
    "superseded": ("skip", "off"),
    "due": ("clock", "info"), "sent": ("check", "good"), "dead": ("stop", "bad"), "dismissed": ("slash", "off"),
    "critical": ("stop", "bad"), "warning": ("alert", "warn"), "active": ("check", "good"), "disabled": ("slash", "off"),
}  # fmt: skip
"""Word -> its shape and its colour. The shape says the same as the colour."""

_SHAPES = {
    "check": '<path d="M3 8.6 6.5 12 13 4.6" class="l2"/>',
    "alert": '<path d="M8 1.4 15.4 14.4H.6z" class="f"/><path d="M8 6.2v3.7" class="k"/><circle cx="8" cy="12" r="1" class="kf"/>',
    "stop": '<path d="M5.2 1h5.6L15 5.2v5.6L10.8 15H5.2L1 10.8V5.2z" class="f"/><path d="m5.6 5.6 4.8 4.8m0-4.8-4.8 4.8" class="k"/>',
    "clock": '<circle cx="8" cy="8" r="6.2" class="l" stroke-dasharray="2.9 1.97"/><path d="M8 4.6v3.7l2.4 1.3" class="l"/>',
    "ring": '<circle cx="8" cy="8" r="5.6" class="l"/>',
    "dot": '<circle cx="8" cy="8" r="5.6" class="l"/><circle cx="8" cy="8" r="2.1" class="f"/>',
    "half": '<circle cx="8" cy="8" r="5.6" class="l"/><path d="M8 4.5a3.5 3.5 0 0 1 0 7z" class="f"/>',
    "slash": '<circle cx="8" cy="8" r="5.6" class="l"/><path d="m4.2 11.8 7.6-7.6" class="l"/>',
    "pause": '<path d="M3.8 3h3v10h-3zm5.4 0h3v10h-3z" class="f"/>',
    "skip": '<path d="m3 3.5 4.5 4.5L3 12.5m5.5-9L13 8l-4.5 4.5" class="l"/>',
}  # fmt: skip
SYMBOLS = Html(
    '<svg class="away" aria-hidden="true" focusable="false">'
    + "".join(f'<symbol id="m-{name}" viewBox="0 0 16 16">{shape}</symbol>' for name, shape in _SHAPES.items())
    + "</svg>"
)
"""The shapes, once in each page."""


def joined(parts: Iterable[Html], between: str = "") -> Html:
    """Return parts one after the other."""
    return Html(between.join(parts))


def shape(word: str) -> Html:
    """Return the shape of a word."""
    return Html(f'<svg class="m" aria-hidden="true"><use href="#m-{MARKS.get(word, ("ring", "off"))[0]}"/></svg>')


def tone(word: str) -> str:
    """Return the colour of a word."""
    return MARKS.get(word, ("ring", "off"))[1]


def state(word: str, href: str = "") -> Html:
    """Return a state: its shape and its word, which leads to ``href``."""
    text = (
        fill('<a href="{href}">{word}</a>', href=href, word=_read(word)) if href else fill("{word}", word=_read(word))
    )
    return fill('<span class="st {tone}">{shape}{text}</span>', tone=tone(word), shape=shape(word), text=text)


def _read(word: str) -> str:
    return word.replace("_", " ")


def number(value: int) -> str:
    """Return a number with narrow spaces between thousands."""
    return f"{value:,}".replace(",", "\u202f")


def many(count: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number(count)} {noun}{'' if count == 1 else 's'}"


def link(path: str, query: Mapping[str, object] | None = None) -> str:
    """Return a path with the parameters that are not empty."""
    asked = {name: value for name, value in (query or {}).items() if value not in ("", None)}
    return f"{path}?{urlencode(asked)}" if asked else path


def anchor(text: object, href: str, css: str = "") -> Html:
    """Return a link."""
    return fill(
        '<a href="{href}"{css}>{text}</a>',
        href=href,
        css=fill(' class="{css}"', css=css) if css else NOTHING,
        text=text,
    )


def cut(text: str, most: int = 240) -> str:
    """Return a text of a device as one line that fits a page."""
    return one_line(text, most)


# --- times ------------------------------------------------------------------------------------------------------------


def seconds_of(at: str) -> float:
    """Return an RFC 3339 time in seconds since the epoch."""
    return datetime.fromisoformat(at).timestamp()


def span(seconds: float) -> str:
    """Return a length of time, rounded down: ``41 min``, ``1 h 25 min``, ``9 d``."""
    whole = int(abs(seconds))
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min"
    if whole < _DAY:
        minutes = whole % _HOUR // _MINUTE
        return f"{whole // _HOUR} h" + (f" {minutes} min" if minutes and whole < 10 * _HOUR else "")
    return f"{whole // _DAY} d"


def clock(at: str) -> str:
    """Return a time in full: ``Sat 2026-11-28 03:11:46 UTC``."""
    return f"{datetime.fromisoformat(at):%a %Y-%m-%d %H:%M:%S} UTC"


def time_tag(at: str, text: str, kind: str = "") -> Html:
    """Return a time, with the full one as its title; ``kind`` lets the script count on."""
    counts = fill(' data-t="{kind}"', kind=kind) if kind else NOTHING
    return fill(
        '<time datetime="{at}" title="{full}"{counts}>{text}</time>', at=at, full=clock(at), counts=counts, text=text
    )


def ago(at: str | None, now: float) -> Html:
    """Return how long ago a time was, as ``14 s ago``."""
    return Html("never") if at is None else time_tag(at, f"{span(now - seconds_of(at))} ago", "ago")


def since(at: str | None, now: float) -> Html:
    """Return how long something has lasted."""
    return NOTHING if at is None else time_tag(at, span(now - seconds_of(at)), "for")


def left(at: str | None, now: float, *, words: bool = False) -> Html:
    """Return how much time is left, as ``9 d`` or, with ``words``, ``in 9 d``; what has ended is said in words."""
    if at is None:
        return NOTHING
    seconds = seconds_of(at) - now
    if seconds < 0:
        return fill('<span class="bad">{time}</span>', time=time_tag(at, f"ended {span(seconds)} ago"))
    return time_tag(at, f"in {span(seconds)}" if words else span(seconds))


def at_clock(at: str, now: float) -> str:
    """Return a time for a history, without what goes without saying: ``02:41:00``, ``24 Nov 03:12``, ``30 Apr 2025``."""
    then, today = datetime.fromisoformat(at), datetime.fromtimestamp(now, UTC)
    if then.date() == today.date():
        return f"{then:%H:%M:%S} UTC"
    return f"{then.day} {then:%b %H:%M}" if (today - then).days < 300 else f"{then.day} {then:%b %Y}"


# --- tables -----------------------------------------------------------------------------------------------------------


@lean.frozen
class Column:
    """A column of a table."""

    title: str
    css: str = ""
    sort: str = ""
    """Name of the order by this column; empty: there is none."""


def table(
    caption: str,
    columns: Sequence[Column],
    rows: Iterable[Sequence[Html]],
    *,
    part: str = "",
    css: str = "",
    sorted_by: str = "",
    sort_links: Mapping[str, str] | None = None,
) -> Html:
    """Return a table, which is cards on a narrow screen; the first cell of a row is its head.

    ``part``: its id, by which the script replaces the rows. Roles are written out, because cards would lose them.
    """
    heads = joined(_head(column, sorted_by, sort_links or {}) for column in columns)
    body = joined(_row(columns, cells) for cells in rows)
    return fill(
        '<table class="list {css}" role="table"><caption class="away">{caption}</caption>\n'
        '<thead role="rowgroup"><tr role="row">{heads}</tr></thead>\n<tbody role="rowgroup"{part}>\n{body}</tbody></table>',
        css=css,
        caption=caption,
        heads=heads,
        part=fill(' id="{part}" data-live', part=part) if part else NOTHING,
        body=body,
    )


def _head(column: Column, sorted_by: str, links: Mapping[str, str]) -> Html:
    title = fill("{title}", title=column.title)
    order = NOTHING
    if column.sort in links:
        is_order = column.sort == sorted_by
        order = Html(' aria-sort="ascending"' if is_order else "")
        text = fill(
            "{title}{down}", title=column.title, down=Html(' <span aria-hidden="true">↓</span>' if is_order else "")
        )
        title = anchor(text, links[column.sort])
    css = fill(' class="{css}"', css=column.css) if column.css else NOTHING
    return fill('<th scope="col" role="columnheader"{order}{css}>{title}</th>', order=order, css=css, title=title)


def _row(columns: Sequence[Column], cells: Sequence[Html]) -> Html:
    first = fill('<th scope="row" role="rowheader" class="{css}">{cell}</th>', css=columns[0].css, cell=cells[0])
    others = joined(
        fill(
            '<td role="cell" class="{css}" data-label="{title}">{cell}</td>',
            css=column.css,
            title=column.title,
            cell=cell,
        )
        for column, cell in zip(columns[1:], cells[1:], strict=True)
    )
    return fill('<tr role="row">{first}{others}</tr>\n', first=first, others=others)


def section(title: str, body: Html, *, part: str, quiet: bool = False) -> Html:
    """Return a section with a heading; ``quiet``: only for readers of the page's outline."""
    css = Html(' class="away"') if quiet else NOTHING
    return fill(
        '<section aria-labelledby="h-{part}"><h2 id="h-{part}"{css}>{title}</h2>\n{body}</section>\n',
        part=part,
        css=css,
        title=title,
        body=body,
    )


def facts(rows: Iterable[tuple[str, object]]) -> Html:
    """Return names with values; those without a value are left out."""
    shown = [(name, value) for name, value in rows if value not in ("", None)]
    return fill(
        '<dl class="facts">{rows}</dl>',
        rows=joined(fill("<dt>{name}</dt><dd>{value}</dd>", name=name, value=value) for name, value in shown),
    )


def exports(path: str, query: Mapping[str, object], command: str) -> Html:
    """Return where the same list is as JSON and CSV, and the command for it."""
    return fill(
        '<p class="cli">Same list: <a href="{json}">JSON</a> · <a href="{csv}">CSV</a> · <code>{command}</code></p>',
        json=link(f"{path}.json", query),
        csv=link(f"{path}.csv", query),
        command=command,
    )


def only_json(path: str, query: Mapping[str, object], command: str) -> Html:
    """Return where what a page shows is as JSON, and the command for it."""
    text = '<p class="cli"><a href="{json}">JSON</a> · <code>{command}</code></p>'
    return fill(text, json=link(f"{path}.json", query), command=command)


def tags_of(tags: Sequence[str], most: int = 32) -> Html:
    """Return tags, each of which leads to its devices; of many only the first, and how many more there are."""
    shown = [anchor(tag, link("/fleet/devices", {"tag": tag}), "tag") for tag in tags[:most]]
    more = [fill('<span class="soft">+{count}</span>', count=len(tags) - most)] if len(tags) > most else []
    return joined([*shown, *more])


def hidden(**values: Any) -> Html:
    """Return hidden fields of a form, those that are not empty."""
    fields = (
        fill('<input type="hidden" name="{name}" value="{value}">', name=name, value=value)
        for name, value in values.items()
        if value not in ("", None)
    )
    return joined(fields)


def quoted(text: str) -> str:
    """Return an argument for a shell."""
    plain = all(char.isalnum() or char in "-_.=:/@" for char in text)
    return text if plain else "'" + text.replace("'", "'\\''") + "'"
