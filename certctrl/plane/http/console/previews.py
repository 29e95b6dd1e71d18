"""What a change of a profile or a rollout would do, shown before it is done. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from certctrl.model.change_texts import by_change, plan_summary, profile_summary, time_of
from certctrl.plane.http.console.change_forms import NEW_ROLLOUT, listed
from certctrl.plane.http.console.forms import CONTENTS, RULES, Fields
from certctrl.plane.http.console.frame import DEVICES, PROFILES, ROLLOUTS, Viewer, head
from certctrl.plane.http.console.parts import NOTHING, Column, anchor, cut, hidden, joined, many, number, section, table
from certctrl.plane.http.console.profiles import home_of
from certctrl.plane.http.pages.html import Html, fill

_SHOWN_GROUPS = 50
_SHOWN_DEVICES = 5
_CHANGES = (Column("Devices"), Column("Names", "why"), Column("What changes", "why"))
_WAVES = (Column("Wave", "nowrap"), Column("Devices", "num"), Column("First", "why"), Column("Goes out", "why"))

Row = Mapping[str, Any]


def profile_preview(
    planned: Row,
    fields: Fields,
    viewer: Viewer,
    *,
    present: int | None,
    command: str,
    notes: Sequence[str],
    problem: str = "",
) -> Html:
    """Return what a new version of a profile would do, with the buttons that store it or give it out in waves.

    ``present``: the version that devices have; None: the profile is new.
    """
    name, changes = planned["name"], planned["changes"]
    changed = len(changes["devices"]) - changes["problems"]
    buttons = [] if changes["problems"] else _ways(changed)
    does = []
    if changed and buttons:
        does = [
            f"At once: {many(changed, 'device')} are notified together. The policy of each host has the last word.",
            "In waves: the next ones are notified when those before have proven the change.",
            "All other devices notice nothing.",
        ]
    return _preview(
        title=f"Version {planned['version']} of profile {name}?",
        crumb=fill("{all} / {one}", all=anchor("Profiles", PROFILES), one=anchor(name, home_of(name))),
        summary=profile_summary(planned),
        does=[*does, *notes],
        undo=f"The way back: put version {present} back." if buttons and present else "",
        action=f"{home_of(name)}/change",
        fields={key: fields.get(key, "") for key in CONTENTS} | {"profile": name, "preview_id": planned["preview_id"]},
        buttons=buttons,
        back=home_of(name) if present else PROFILES,
        command=command,
        viewer=viewer,
        problem=problem or _refused(changes),
        tables=_changes(changes),
    )


def _ways(changed: int) -> list[Html]:
    """Return the buttons that give a version to so many devices."""
    if not changed:
        return [_button("store", "Store it", css="primary")]
    at_once = f"Give it to {'all ' if changed > 1 else ''}{many(changed, 'device')} at once"
    return [
        _button("edit", "Give it out in waves…", css="primary", to=NEW_ROLLOUT),
        _button("store", at_once),
    ]


def rollout_preview(
    planned: Row, fields: Fields, viewer: Viewer, command: str, notes: Sequence[str], problem: str = ""
) -> Html:
    """Return the plan of a rollout, with the button that starts it."""
    name, changes = planned.get("profile", ""), planned.get("changes")
    refused = _refused(changes) if changes else ""
    what = (
        f"version {planned['version']} of profile {name}"
        if name
        else f"renew {many(len(planned['certificates']), 'certificate')}"
    )
    total = sum(wave["devices"] for wave in planned["waves"])
    does = [
        f"{many(total, 'device')} in {many(len(planned['waves']), 'wave')}; the first one is released {_when(fields)}.",
        "Each other wave waits until all before it have proven the change. Nothing goes by time alone.",
        f"It halts by itself {_halts(fields)}.",
    ]
    undo = "Abort, before the first wave is released, leaves all as it is; later, what is released stays."
    tables = _waves(planned["waves"], fields)
    if changes:
        tables = fill("{waves}{changes}", waves=tables, changes=_changes(changes))
    else:
        renewed = section("Certificates", listed(planned["certificates"]), part="renewed")
        tables = fill("{waves}{renewed}", waves=tables, renewed=renewed)
    kept = (*CONTENTS, *RULES, "profile") if name else ("certificates", "note", *RULES)
    return _preview(
        title=f"Start a rollout: {what}?",
        crumb=anchor("Rollouts", ROLLOUTS),
        summary=plan_summary(planned),
        does=[*does, *notes],
        undo=undo,
        action=NEW_ROLLOUT,
        fields={key: fields.get(key, "") for key in kept} | {"preview_id": planned["preview_id"]},
        buttons=[] if refused else [_button("start", "Start it", css="primary")],
        back=home_of(name) if name else ROLLOUTS,
        command=command,
        viewer=viewer,
        problem=problem or refused,
        tables=tables,
    )


def _when(fields: Fields) -> str:
    return "when the time comes" if fields.get("windows", "").strip() else "at once"


def _halts(fields: Fields) -> str:
    most = fields.get("max_failures", "").strip()
    allowed = int(most) if most.isdigit() else 0
    return (
        f"when more than {many(allowed, 'device')} {'fails' if allowed == 1 else 'fail'}"
        if allowed
        else "when a device fails"
    )


def _refused(changes: Row) -> str:
    count = changes["problems"]
    return f"{many(count, 'device')} would get a config that is not valid, so nothing can be stored." if count else ""


def _button(do: str, label: str, *, css: str = "", to: str = "") -> Html:
    return fill(
        '<button name="do" value="{do}"{css}{to}>{label}</button>',
        do=do,
        label=label,
        css=fill(' class="{css}"', css=css) if css else NOTHING,
        to=fill(' formaction="{to}"', to=to) if to else NOTHING,
    )


def _preview(
    *,
    title: str,
    crumb: Html,
    summary: str,
    does: Sequence[str],
    undo: str,
    action: str,
    fields: Mapping[str, str],
    buttons: Sequence[Html],
    back: str,
    command: str,
    viewer: Viewer,
    problem: str,
    tables: Html,
) -> Html:
    return fill(
        """{head}<section class="need {css} preview">{problem}<h2>{summary}</h2><ul class="do">{does}</ul><p class="soft">{undo}</p>
<form method="post" action="{action}">{hidden}<div class="acts">{buttons}{edit}{back}</div></form>
<p class="cli">The same on a terminal: <code>{command}</code></p></section>{tables}""",
        head=head(fill("{title}", title=title), crumb=crumb),
        css="need-info" if buttons else "need-bad",
        problem=fill('<p class="alert" role="alert">{text}</p>', text=problem) if problem else NOTHING,
        summary=f"{summary[:1].upper()}{summary[1:]}",
        does=joined(fill("<li>{text}</li>", text=text) for text in does),
        undo=undo,
        action=action,
        hidden=hidden(csrf=viewer.csrf, **fields),
        buttons=joined(buttons),
        edit=_button("edit", "Change it"),
        back=anchor("Leave it", back, "button"),
        command=command,
        tables=tables,
    )


def _changes(changes: Row) -> Html:
    """Return what changes, for devices with the same changes together, as ``plane profile diff`` does."""
    groups = by_change(changes)
    if not groups:
        return section("What changes", Html('<p class="empty">The config of no device changes.</p>'), part="changes")
    rows = [
        [
            fill("{count}", count=many(len(devices), "device")),
            _names(devices),
            _bad(change)
            if devices[0]["problem"]
            else fill('<span class="mono">{change}</span>', change=cut(change, 400)),
        ]
        for change, devices in groups[:_SHOWN_GROUPS]
    ]
    end = NOTHING
    if len(groups) > _SHOWN_GROUPS:
        end = fill('<p class="foot">and {count} other kinds of changes</p>', count=number(len(groups) - _SHOWN_GROUPS))
    body = fill('{table}{end}<p class="hint">{key}</p>', table=table("What changes", _CHANGES, rows), end=end, key=_KEY)
    return section("What changes", body, part="changes")


_KEY = "+ an item that is new, - one that goes, ~ one that changes, with its keys."


def _bad(change: str) -> Html:
    return fill('<span class="bad">{change}</span>', change=cut(change, 400))


def _names(devices: Sequence[Row]) -> Html:
    shown = joined(
        (
            anchor(cut(row["name"] or f"device {row['id']}", 60), f"{DEVICES}/{row['id']}")
            for row in devices[:_SHOWN_DEVICES]
        ),
        ", ",
    )
    more = f" and {number(len(devices) - _SHOWN_DEVICES)} more" if len(devices) > _SHOWN_DEVICES else ""
    return fill("{shown}{more}", shown=shown, more=more)


def _waves(waves: Sequence[Row], fields: Fields) -> Html:
    pause = fields.get("pause", "").strip()
    rows = []
    for place, wave in enumerate(waves):
        last, canary = place == len(waves) - 1 and place > 0, place == 0 and fields.get("canary", "").strip()
        first = ", ".join(cut(name, 60) for name in wave["first"])
        more = wave["devices"] - len(wave["first"])
        later = f"when wave {wave['wave'] - 1} has proven it"
        if pause and pause != time_of(0):
            later += f", {pause} later"
        rows.append(
            [
                fill("{number}{what}", number=wave["wave"], what=" canary" if canary else " rest" if last else ""),
                fill("{count}", count=number(wave["devices"])),
                fill("{first}{more}", first=first, more=f" and {number(more)} more" if more > 0 else ""),
                fill("{when}", when=later if place else _when(fields)),
            ]
        )
    return section("Waves", table("Waves", _WAVES, rows), part="waves")
