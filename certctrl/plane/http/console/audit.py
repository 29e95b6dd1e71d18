"""The audit log: who changed what, when, and how it was before. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from certctrl.plane.http.console.frame import AUDIT, CERTIFICATES, DEVICES, ROLLOUTS, Asked, head
from certctrl.plane.http.console.parts import (
    NOTHING,
    Column,
    ago,
    anchor,
    at_clock,
    cut,
    exports,
    joined,
    many,
    quoted,
    table,
)
from certctrl.plane.http.pages.html import Html, fill

_COLUMNS = (
    Column("When", "nowrap"), Column("Who", ""), Column("Did", "nowrap"), Column("To", ""), Column("What changed", "why"),
)  # fmt: skip
_HOMES = {"device": DEVICES, "certificate": CERTIFICATES, "rollout": ROLLOUTS}
_SHOWN_OBJECTS, _SHOWN_FIELDS = 3, 6


def audit(
    entries: Sequence[Mapping[str, Any]], asked: Asked, actions: Collection[str], following: int | None, now: float
) -> Html:
    """Return the page; ``following``: the id before which the next page begins."""
    body = [
        head(
            Html("Audit"),
            Html('<p class="soft">Every change, by whom, and how it was before. No entry can be changed.</p>'),
        ),
        _filters(asked, actions),
    ]
    on = {name: value for name, value in asked.query.items() if value and name != "before_id"}
    if entries:
        body.append(table("Changes, the newest first", _COLUMNS, (_row(one, now) for one in entries), css="audit wide"))
    elif on:
        text = '<p class="empty">No change fits all of these filters. <a href="{all}">Show all</a></p>'
        body.append(fill(text, all=asked.path))
    else:
        body.append(Html('<p class="empty">Nothing has been changed yet.</p>'))
    ways = []
    if asked.query.get("before_id"):
        ways.append(anchor("First page", asked.with_(before_id=""), "button"))
    if following is not None:
        ways.append(anchor("Older", asked.with_(before_id=str(following)), "button"))
    options = "".join(f" --{name} {quoted(value)}" for name, value in on.items())
    body.append(
        fill(
            '<div class="foot"><p>{count}</p>{ways}{more}</div>',
            count=many(len(entries), "change"),
            more=exports(AUDIT, on, f"cert-ctrl plane audit{options} --json"),
            ways=fill('<nav aria-label="Pages">{ways}</nav>', ways=joined(ways, " ")) if ways else NOTHING,
        )
    )
    return joined(body)


def _filters(asked: Asked, actions: Collection[str]) -> Html:
    groups = sorted({action.partition(".")[0] for action in actions})
    options = joined(fill('<option value="{name}"></option>', name=name) for name in [*groups, *sorted(actions)])
    return fill(
        """<form class="filters" action="{path}">
<label class="wide" for="who">Who<input id="who" name="who" value="{who}" maxlength="100" placeholder="alice" spellcheck="false" autocapitalize="none"
 autocomplete="off"></label>
<label class="wide" for="what">Did<input id="what" name="what" value="{what}" list="actions" maxlength="60" placeholder="device or device.revoke" spellcheck="false"
 autocapitalize="none" autocomplete="off"></label><datalist id="actions">{options}</datalist>
<label for="device">Device id<input id="device" name="device" value="{device}" inputmode="numeric" maxlength="15" size="6" autocomplete="off"></label>
<button>Show</button></form>
""",
        path=asked.path,
        who=asked.query.get("who", ""),
        what=asked.query.get("what", ""),
        device=asked.query.get("device", ""),
        options=options,
    )


def _row(entry: Mapping[str, Any], now: float) -> list[Html]:
    via = ", ".join(part for part in (entry["via"], entry["address"]) if part)
    return [
        fill('{ago}<span class="sub">{clock}</span>', ago=ago(entry["at"], now), clock=at_clock(entry["at"], now)),
        fill('{who}<span class="sub">{via}</span>', who=cut(entry["who"], 60), via=cut(via, 80)),
        fill("{action}", action=entry["action"]),
        _objects(entry["objects"]),
        _changes(entry),
    ]


def _objects(objects: Sequence[Mapping[str, Any]]) -> Html:
    lines = [fill('<span class="line">{object}</span>', object=_object(one)) for one in objects[:_SHOWN_OBJECTS]]
    if len(objects) > _SHOWN_OBJECTS:
        lines.append(fill('<span class="soft">and {count} more</span>', count=len(objects) - _SHOWN_OBJECTS))
    return joined(lines)


def _object(one: Mapping[str, Any]) -> Html:
    name = f"{one['kind']} {cut(one['name'] or one['id'], 60)}"
    home = _HOMES.get(one["kind"])
    return anchor(name, f"{home}/{one['id']}") if home and str(one["id"]).isdigit() else fill("{name}", name=name)


def _changes(entry: Mapping[str, Any]) -> Html:
    """Return the fields that changed, with the values before and after; without objects, what was asked for."""
    lines = []
    for one in entry["objects"][:_SHOWN_OBJECTS]:
        for name in list(dict.fromkeys([*one["before"], *one["after"]]))[:_SHOWN_FIELDS]:
            before, after = _value(one["before"].get(name)), _value(one["after"].get(name))
            text = "{name}: <del>{before}</del> → {after}" if before and after else "{name}: {after}{before}"
            lines.append(fill(f'<span class="line">{text}</span>', name=name, before=before, after=after))
    lines = lines or [
        fill('<span class="line">{name}: {value}</span>', name=name, value=_value(value))
        for name, value in list(entry["detail"].items())[:_SHOWN_FIELDS]
    ]
    return joined(lines[: 2 * _SHOWN_FIELDS])


def _value(value: Any) -> str:
    if value in (None, "", [], {}):
        return ""
    return cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 120)
