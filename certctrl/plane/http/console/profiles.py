"""The list of profiles, and one: its items, which devices have it, its versions, its problems. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from certctrl import lean
from certctrl.plane.http.console.frame import DEVICES, PROFILES, ROLLOUTS, Viewer, head
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
    only_json,
    quoted,
    section,
    state,
    table,
)
from certctrl.plane.http.pages.html import Html, fill
from certctrl.plane.profiles.placeholders import used_in

KINDS = ("problems", "rollout")
"""What the list can be reduced to."""
_SHOWN_PROBLEMS = 20
_SHOWN_VERSIONS = 50
_MAX_ITEMS = 200
"""Items that a page lists."""
_COLUMNS = (
    Column("Profile"), Column("For devices with", "why"), Column("Devices", "num"), Column("Items", "num"),
    Column("Problems", "num"), Column("Rollout", "nowrap"), Column("Order", "num"), Column("Version", "num"),
    Column("Changed", "nowrap"),
)  # fmt: skip
_ITEMS = (Column("Item"), Column("Type", "nowrap"), Column("Does", "why"), Column("For", ""))
_DEVICES = (Column("Device"), Column("Version", "num"), Column("Problem", "why"))

Row = Mapping[str, Any]


def home_of(name: str) -> str:
    """Return the path of a profile's page."""
    return f"{PROFILES}/{quote(name, safe='')}"


def profiles(rows: Sequence[Row], rollouts: Mapping[str, Row], chosen: str, viewer: Viewer, now: float) -> Html:
    """Return the page of the list; ``rollouts``: the open one of each profile."""
    kinds = {
        "": list(rows),
        "problems": [row for row in rows if row["problem_count"]],
        "rollout": [row for row in rows if row["name"] in rollouts],
    }
    said = f"{many(len(rows), 'profile')}: install items for all devices with certain tags."
    if kinds["problems"]:
        said = (
            f"{many(len(kinds['problems']), 'profile')} of {number(len(rows))} cannot be given to all of their devices."
        )
    body = [head(Html("Profiles"), fill('<p class="soft">{said}</p>', said=said)), _tabs(kinds, chosen)]
    fitting = kinds[chosen]
    if fitting:
        cells = (_row(row, rollouts.get(row["name"]), now) for row in fitting)
        body.append(table("Profiles, in their order", _COLUMNS, cells, css="profiles"))
    elif rows:
        body.append(fill('<p class="empty">No profile is like this. <a href="{all}">Show all</a></p>', all=PROFILES))
    else:
        text = "No profile yet. A profile gives all hosts with a tag the same files, reloads and checks."
        body.append(fill('<p class="empty">{text}</p>', text=text))
    more = exports(PROFILES, {}, "cert-ctrl plane profile list --json")
    body.append(fill('<div class="foot"><p>{count}</p>{more}</div>', count=many(len(fitting), "profile"), more=more))
    return fill("{body}{new}", body=joined(body), new=_new() if viewer.may_change else NOTHING)


def _tabs(kinds: Mapping[str, Sequence[Row]], chosen: str) -> Html:
    words = {"": "all", "problems": "with problems", "rollout": "in a rollout"}
    tabs = (
        fill(
            '<a href="{href}"{current}>{word} <span>{count}</span></a>',
            href=link(PROFILES, {"state": kind}),
            current=Html(' aria-current="true"' if kind == chosen else ""),
            word=words[kind],
            count=number(len(rows)),
        )
        for kind, rows in kinds.items()
    )
    return fill('<nav class="tabs" aria-label="By state">{tabs}</nav>\n', tabs=joined(tabs))


def _new() -> Html:
    return fill(
        '<form class="filters short" action="{path}"><label class="wide" for="new">Name of a new profile'
        '<input id="new" name="new" required maxlength="64" placeholder="nginx" autocomplete="off" autocapitalize="none"'
        ' spellcheck="false"></label><button>New profile…</button></form>\n',
        path=PROFILES,
    )


def _row(row: Row, rollout: Row | None, now: float) -> list[Html]:
    pinned = row["pinned_count"]
    other = fill('<span class="sub">{count} with another version</span>', count=number(pinned)) if pinned else NOTHING
    note = fill('<span class="sub">{note}</span>', note=cut(row["note"], 80)) if row["note"] else NOTHING
    home = home_of(row["name"])
    return [
        fill("{link}{note}", link=anchor(row["name"], home, "name"), note=note),
        fill("<code>{devices}</code>", devices=cut(row["devices"])),
        fill("{count}{other}", count=number(row["device_count"]), other=other),
        fill("{count}", count=number(row["items"])),
        anchor(number(row["problem_count"]), home, "bad") if row["problem_count"] else NOTHING,
        state(rollout["state"], f"{ROLLOUTS}/{rollout['id']}") if rollout else NOTHING,
        fill("{order}", order=row["order"]),
        fill("{version}", version=row["version"]),
        ago(row["updated_at"], now),
    ]


# --- one profile ------------------------------------------------------------------------------------------------------


@lean.frozen(kw_only=True)
class ProfileFound:
    """What the page of a profile shows."""

    name: str
    shown: Row | None
    """As ``Profiles.show``; None: it was deleted, or its first rollout is under way."""
    asked: int | None
    """The earlier version that is shown; None: the present one."""
    versions: Sequence[Row]
    """As ``Profiles.history``."""
    devices: Row
    """As ``Profiles.devices``."""
    after: int
    """The id of the device after which the list begins; 0: from the first one."""
    rollout: Row | None
    """Its open rollout."""


def profile(found: ProfileFound, viewer: Viewer, now: float) -> Html:
    """Return the page."""
    shown, total = found.shown, found.devices["total"]
    crumb = fill('<a href="{all}">Profiles</a>', all=PROFILES)
    below = "on no device" if shown is None else f"version {shown['version']}, on {many(total, 'device')}"
    if found.asked is not None:
        below = f"Version {found.asked}, which is not the present one"
    parts = [
        head(
            fill("{name}", name=found.name),
            fill('<p class="soft">{below}{note}</p>', below=below, note=_note(shown)),
            crumb=crumb,
            acts=_acts(found) if viewer.may_change else NOTHING,
        ),
        _need(found),
        Html('<div class="side"><div>'),
        _items(shown) if shown is not None else NOTHING,
        _devices(found) if found.asked is None and shown is not None else NOTHING,
        Html("</div><div>"),
        _facts(found, now),
        _versions(found, now),
        Html("</div></div>"),
    ]
    return joined(parts)


def _note(shown: Row | None) -> str:
    return f" · {shown['note']}" if shown is not None and shown["note"] else ""


def _acts(found: ProfileFound) -> Html:
    home, asked = home_of(found.name), {"version": found.asked}
    if found.shown is None or not found.shown["devices"] or found.rollout is not None:
        return NOTHING
    words = "Put this version back" if found.asked is not None else "Change"
    more = {"profile": found.name, **asked}
    return fill(
        '<div class="acts">{at_once}{waves}</div>',
        at_once=anchor(f"{words}…", link(f"{home}/change", asked), "button"),
        waves=anchor(f"{words} in waves…", link(f"{ROLLOUTS}/new", more), "button"),
    )


def _need(found: ProfileFound) -> Html:
    """Return what needs a person, or explains what is to be seen."""
    parts = []
    rollout, problems = found.rollout, () if found.shown is None or found.asked else found.shown["problems"]
    if rollout is not None:
        text = "Until it has ended, the profile cannot be changed, and new devices get the present version."
        title = anchor(f"Rollout {rollout['id']} brings version {rollout['version']}", f"{ROLLOUTS}/{rollout['id']}")
        parts.append(_panel("need-info", fill("{title} {state}", title=title, state=state(rollout["state"])), text))
    elif found.shown is None:
        parts.append(
            _panel("need-calm", Html("Deleted"), "Its versions are kept: show one, and put it back from there.")
        )
    if problems:
        rows = (
            fill("<li>{device}: <code>{why}</code></li>", device=_device_of(row), why=cut(row["problem"]))
            for row in problems[:_SHOWN_PROBLEMS]
        )
        title = fill("{count} cannot be given it", count=many(len(problems), "device"))
        more = number(len(problems) - _SHOWN_PROBLEMS)
        rest = fill("<li>and {more} more</li>", more=more) if len(problems) > _SHOWN_PROBLEMS else NOTHING
        text = "Each keeps its former config. Change the profile, or the tags, name or certificates of the device."
        list_ = fill('<ul class="do">{rows}{rest}</ul>', rows=joined(rows), rest=rest)
        parts.append(_panel("need-bad", title, text, list_))
    return joined(parts)


def _panel(css: str, title: Html, text: str, more: Html = NOTHING) -> Html:
    return fill(
        '<section class="need {css}"><h2>{title}</h2><p>{text}</p>{more}</section>\n',
        css=css,
        title=title,
        text=text,
        more=more,
    )


def _device_of(row: Row) -> Html:
    return anchor(row.get("name") or f"device {row['id']}", f"{DEVICES}/{row['id']}")


def _items(shown: Row) -> Html:
    items = shown["installs"]
    if not items:
        return section("Items", Html('<p class="empty">It has no items.</p>'), part="items")
    rows = [_item(item) for item in items[:_MAX_ITEMS]]
    end = NOTHING
    if len(items) > _MAX_ITEMS:
        end = fill('<p class="foot">{count} more, in JSON</p>', count=number(len(items) - _MAX_ITEMS))
    text = json.dumps(list(map(_without_values, items[:_MAX_ITEMS])), ensure_ascii=False, indent=2)
    body = fill(
        '{table}{end}<details class="json"><summary>As JSON</summary>'
        '<pre tabindex="0" aria-label="The items as JSON">{text}</pre></details>',
        table=table("Items, in their order", _ITEMS, rows),
        end=end,
        text=text,
    )
    return section(f"Items: {number(len(items))}", body, part="items")


def _item(item: Row) -> list[Html]:
    placeholders = sorted(used_in(item))
    needs = ", ".join(map(str, item.get("depends_on") or ()))
    subs = [f"after {needs}" if needs else "", "switched off" if item.get("enabled") is False else ""]
    lines = joined(fill('<span class="line mono">{line}</span>', line=cut(line, 160)) for line in _does(item))
    return [
        fill(
            '<span class="name">{id}</span>{subs}',
            id=cut(str(item["id"]), 80),
            subs=joined(fill('<span class="sub">{text}</span>', text=cut(text, 120)) for text in subs if text),
        ),
        fill("{type}", type=item.get("type", "")),
        lines,
        joined(fill("<code>{{{name}}}</code>", name=name) for name in placeholders) or _bound(item),
    ]


def _bound(item: Row) -> Html:
    """Return the certificate or CA that an item without placeholders is for."""
    name = item.get("ob_name") or item.get("ob_id")
    return fill("{name}", name=cut(str(name), 80)) if name else NOTHING


def _does(item: Row) -> list[str]:
    """Return what an item does, in a few lines."""
    lines = [f"→ {target}" for target in item.get("to") or ()]
    argv = item.get("cmd_argv")
    if isinstance(argv, list):
        lines.append(" ".join(map(str, argv)))
    elif item.get("cmd"):
        lines.append(str(item["cmd"]))
    verify = item.get("verify")
    if isinstance(verify, Mapping):
        where = ":".join(str(verify[key]) for key in ("host", "port") if key in verify)
        lines.append(f"verify {verify.get('type', '')} {where}".rstrip())
    return lines[:6] + ([f"and {len(lines) - 6} more"] if len(lines) > 6 else [])


def _without_values(value: Any) -> Any:
    """Return an item without the values of environment variables, which may be secrets."""
    if isinstance(value, Mapping):
        return {
            key: dict.fromkeys(one, "…") if key == "env" and isinstance(one, Mapping) else _without_values(one)
            for key, one in value.items()
        }
    return list(map(_without_values, value)) if isinstance(value, list) else value


def _devices(found: ProfileFound) -> Html:
    rows, total = found.devices["devices"], found.devices["total"]
    title = f"Devices that have it: {number(total)}"
    if not rows:
        text = "No device has tags that fit. cert-ctrl plane tag gives it some."
        return section(title, fill('<p class="empty">{text}</p>', text=text), part="devices")
    cells = [
        [
            anchor(row["name"] or f"device {row['id']}", f"{DEVICES}/{row['id']}", "name"),
            fill("{version}", version=row["version"]),
            fill('<span class="mono">{problem}</span>', problem=cut(row["problem"])) if row["problem"] else NOTHING,
        ]
        for row in rows
    ]
    home, ways = home_of(found.name), []
    if found.after:
        ways.append(anchor("First page", home, "button"))
    if found.devices["next"] is not None:
        ways.append(anchor("Next page", link(home, {"after": found.devices["next"]}), "button"))
    body = fill(
        '{table}<div class="foot"><p>{shown} of {all}</p>{ways}</div>',
        table=table("Devices that have the profile", _DEVICES, cells),
        shown=number(len(rows)),
        all=many(total, "device"),
        ways=fill('<nav aria-label="Pages">{ways}</nav>', ways=joined(ways, " ")) if ways else NOTHING,
    )
    return section(title, body, part="devices")


def _facts(found: ProfileFound, now: float) -> Html:
    shown = found.shown
    if shown is None:
        return NOTHING
    rows: list[tuple[str, object]] = [
        ("Devices with", fill("<code>{devices}</code>", devices=shown["devices"]) if shown["devices"] else "none"),
        ("Version", shown["version"]),
        ("Order", shown["order"]),
        ("Since", ago(shown["updated_at"], now)),
        ("Note", cut(shown["note"])),
    ]
    asked = "" if found.asked is None else f" --version {found.asked}"
    return fill(
        '<section class="card" aria-labelledby="h-facts"><h2 id="h-facts">Facts</h2>{facts}{more}</section>',
        facts=facts(rows),
        more=only_json(
            f"{home_of(found.name)}/export",
            {"version": found.asked},
            f"cert-ctrl plane profile show {quoted(found.name)}{asked} --json",
        ),
    )


def _versions(found: ProfileFound, now: float) -> Html:
    home = home_of(found.name)
    lines = (
        fill(
            '<li><span class="two">{link}{mark}<span class="sub">{what}{note}</span></span><span class="soft nowrap">{ago}</span></li>',
            link=anchor(
                f"version {row['version']}", link(home, {} if _is_present(row) else {"version": row["version"]})
            ),
            mark=Html(" <strong>present</strong>") if row["current"] else NOTHING,
            what="deleted" if row["deleted"] else f"{many(row['items'], 'item')}, {cut(row['devices'], 80)}",
            note=f" · {cut(row['note'], 80)}" if row["note"] else "",
            ago=ago(row["created_at"], now),
        )
        for row in found.versions[:_SHOWN_VERSIONS]
    )
    more = len(found.versions) - _SHOWN_VERSIONS
    end = fill('<p class="soft">{count} older ones</p>', count=number(more)) if more > 0 else NOTHING
    return fill(
        '<section class="card" aria-labelledby="h-versions"><h2 id="h-versions">Versions</h2>'
        '<ul class="counts">{lines}</ul>{end}<p class="cli"><code>cert-ctrl plane profile history {name}</code></p></section>',
        lines=joined(lines),
        end=end,
        name=quoted(found.name),
    )


def _is_present(row: Row) -> bool:
    return bool(row["current"])
