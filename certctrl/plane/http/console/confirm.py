"""Pages that ask before a change: what it does, what it does not, the command that does the same. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from certctrl.plane.http.console.frame import DEVICES, ROLLOUTS, Viewer, head
from certctrl.plane.http.console.parts import NOTHING, anchor, cut, hidden, joined, many, number
from certctrl.plane.http.console.rollouts import brought_by, title_of, totals_of
from certctrl.plane.http.pages.html import Html, fill

_LISTED = 20


def rollout_change(row: Mapping[str, Any], do: str, viewer: Viewer, problem: str = "") -> Html:
    """Ask before a rollout is paused, resumed or aborted."""
    failed = [one for one in row["devices"] if one["state"] == "failed"]
    does, undo = _effects(row, do)
    tick = NOTHING
    if do == "resume" and failed:
        tick = fill(
            '{seen}<p>{failed} failed:</p><ul class="do">{list}</ul>'
            '<label for="read"><input id="read" name="read" type="checkbox" value="yes" required>I have read why</label>',
            seen=hidden(seen=failures_of(row)),
            failed=many(len(failed), "device"),
            list=_failed(failed),
        )
    home = f"{ROLLOUTS}/{row['id']}"
    return ask_page(
        title=f"{do.capitalize()} rollout {row['id']}, {title_of(row)}?",
        action=f"{home}/{do}",
        back=home,
        does=does,
        undo=undo,
        ask=tick,
        command=f"cert-ctrl plane rollout {do} {row['id']}",
        label=f"{do.capitalize()} it",
        viewer=viewer,
        danger=do == "abort",
        problem=problem,
    )


def failures_of(row: Mapping[str, Any]) -> str:
    """Return what stands for the failures of a rollout: others have another text; empty: there are none."""
    failed = sorted(one["id"] for one in row["devices"] if one["state"] == "failed")
    return sha256(repr(failed).encode()).hexdigest()[:32] if failed else ""


def _effects(row: Mapping[str, Any], do: str) -> tuple[Sequence[str], str]:
    """Return what a change does, and how it is undone."""
    totals = totals_of(row)
    left = totals.get("held", 0) + totals.get("skipped", 0)
    rest, has = many(left, "device"), many(sum(totals.values()) - left, "device")
    if do == "pause":
        held = f"Nothing more is released: {rest} keep the former version until it is resumed."
        return (held, "Devices that are released go on, and their reports count."), "Resume undoes this at any time."
    if do == "resume":
        accepted = "The failures until now are accepted: they no longer count, and the next one beyond the limit halts it again."
        are, get = ("is", "gets") if left == 1 else ("are", "get")
        return (f"{rest} {are} left and {get} {brought_by(row)}, wave by wave.", accepted), "Pause stops it again."
    if row.get("kind") == "renewal":
        kept = f"{has} that have the renewed certificates keep them; {rest} keep the former ones until these are near their end."
        back = f"There is no way back to the former ones. All get the renewed ones by: cert-ctrl plane rollout abort {row['id']} --forward"
        return (kept, "What is not issued yet is not issued. The rollout ends, and cannot be resumed."), back
    kept = f"{has} that have the new version keep it; {rest} stay at the former one."
    back = "The way back: cert-ctrl plane profile put with the former version, or another rollout."
    return (kept, "The rollout ends. It cannot be resumed."), back


def _failed(failed: Sequence[Mapping[str, Any]]) -> Html:
    lines = [
        fill("<li>{name}: <code>{detail}</code></li>", name=one["name"], detail=cut(one["detail"] or "no detail"))
        for one in failed[:_LISTED]
    ]
    if len(failed) > _LISTED:
        lines.append(fill("<li>and {count} more</li>", count=number(len(failed) - _LISTED)))
    return joined(lines)


def device_revocation(row: Mapping[str, Any], copies: int, viewer: Viewer, problem: str = "") -> Html:
    """Ask before a device is shut out."""
    name = row["name"] or str(row["id"])
    home = f"{DEVICES}/{row['id']}"
    ask = fill(
        '<label for="reason">Reason, which the device is told<input id="reason" name="reason" type="text" maxlength="200" autocomplete="off"></label>'
        '<label for="name">To be sure, type its name: <strong>{name}</strong>'
        '<input id="name" name="name" type="text" required maxlength="200" autocomplete="off" autocapitalize="none" spellcheck="false"></label>',
        name=name,
    )
    return ask_page(
        title=f"Shut out {name}?",
        action=f"{home}/revoke",
        back=home,
        does=[
            "All its requests are refused from now on; it gets no further renewal.",
            f"What it has deployed stays on the host: {many(copies, 'certificate')} until they end.",
            "Its certificates are not revoked: for that, cert-ctrl plane revoke.",
        ],
        undo="There is no undo here. Approving the device at /device lets it in again.",
        ask=ask,
        command=f"cert-ctrl plane revoke-device {row['id']}",
        label="Shut it out",
        viewer=viewer,
        danger=True,
        problem=problem,
    )


def ask_page(
    *,
    title: str,
    action: str,
    back: str,
    does: Sequence[str],
    undo: str,
    ask: Html,
    command: str,
    label: str,
    viewer: Viewer,
    danger: bool,
    problem: str,
    which: Html = NOTHING,
) -> Html:
    """Return a page that asks; ``which``: the rows that change, and how."""
    return fill(
        """{head}<section class="need {css} confirm">{problem}<h2>What it does</h2><ul class="do">{does}</ul><p class="soft">{undo}</p>{which}
<form method="post" action="{action}">{csrf}{ask}<div class="acts"><button class="{button}">{label}</button>{back}</div></form>
<p class="cli">The same on a terminal: <code>{command}</code></p></section>""",
        head=head(fill("{title}", title=title)),
        css="need-bad" if danger else "need-info",
        problem=fill('<p class="alert" role="alert">{text}</p>', text=problem) if problem else NOTHING,
        does=joined(fill("<li>{text}</li>", text=text) for text in does),
        undo=undo,
        which=which,
        action=action,
        csrf=hidden(csrf=viewer.csrf),
        ask=ask,
        button="danger" if danger else "primary",
        label=label,
        back=anchor("Leave it", back, "button"),
        command=command,
    )
