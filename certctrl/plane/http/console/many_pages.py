"""Pages that ask before many devices or certificates change, and tell which of them could not. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from certctrl import lean
from certctrl.plane.http.console.chosen import NAMED, Chosen
from certctrl.plane.http.console.confirm import ask_page
from certctrl.plane.http.console.frame import CERTIFICATES, DEVICES, Asked, Viewer, head
from certctrl.plane.http.console.parts import (
    NOTHING,
    Column,
    anchor,
    cut,
    hidden,
    joined,
    link,
    many,
    number,
    quoted,
    state,
    table,
    tags_of,
)
from certctrl.plane.http.pages.html import Html, fill


@lean.frozen(kw_only=True)
class Words:
    """How a change of many is told."""

    button: str
    """On the list."""
    does: Sequence[str]
    undo: str
    label: str
    """On the button of the page that asks; ``{}``: the rows."""
    done: str
    """What has been done; ``{}``: the rows."""
    left_out: str = ""
    """Why some rows are left out."""
    danger: bool = False


RETRY, TAGS, ROTATE, DECOMMISSION, RENEW = "retry", "tags", "rotate-key", "decommission", "renew"
WORDS: Mapping[str, Words] = {
    RETRY: Words(
        button="Try again on these {}…",
        does=(
            "Each compares everything with the control plane as soon as it is heard from, and tries what has failed once more.",
            "What it has and serves stays. Commands run only for what was missing or had failed.",
            "Nothing is renewed, and a rollout that has halted stays halted.",
        ),
        undo="There is nothing to undo.",
        label="Try again on {}",
        done="Asked {} to try again: each compares everything as soon as it is heard from.",
        left_out="never registered, or shut out",
    ),
    TAGS: Words(
        button="Tags…",
        does=(
            "Of KEY=VALUE tags a device has one value: another one takes its place.",
            "Install items of profiles that select by these tags come to the devices, or are withdrawn from them.",
            "Nothing is renewed, assigned or revoked.",
        ),
        undo="There is no Undo for many: they need not have had the same tags before. The audit log has what each had.",
        label="Change the tags of {}",
        done="Changed the tags of {}.",
    ),
    ROTATE: Words(
        button="Rotate keys…",
        does=(
            "Each makes a new key of its own when it next refreshes its token. Private keys are sealed to this key on their way.",
            "Certificates and their keys stay as they are: Renew now replaces those.",
        ),
        undo="There is no undo: a device that has rotated never uses its former key again.",
        label="Rotate the keys of {}",
        done="Told {} to rotate their keys.",
        left_out="never registered, or shut out",
    ),
    DECOMMISSION: Words(
        button="Decommission…",
        does=(
            "All their requests are refused from now on, and their agents stop.",
            "Their certificates and CAs are withdrawn from their lists.",
            "What is on their disks stays until you remove it there: services go on with it until it ends.",
            "No certificate is revoked: for that, use the command with --revoke-certificates.",
        ),
        undo="There is no undo. A host comes back by registering again, and certificates are assigned again by hand.",
        label="Decommission {}",
        done="Decommissioned {}.",
        danger=True,
    ),
    RENEW: Words(
        button="Renew these {}…",
        does=(
            "Each is ordered from its issuer now, with a new key. Issuers limit how many they issue in a time.",
            "Devices get theirs as soon as it is issued, all at once: for waves, use the command with --rollout 1,10%.",
            "The present ones are not revoked, and stay in use until then.",
        ),
        undo="There is no undo: an order that has not begun ends with cert-ctrl plane orders cancel.",
        label="Renew {}",
        done="Ordered the renewal of {}.",
        left_out="revoked, or imported and renewed by their owners only",
    ),
}
OF_DEVICES = (RETRY, TAGS, ROTATE, DECOMMISSION)


def buttons(asked: Asked, total: int, viewer: Viewer, acts: Sequence[str]) -> Html:
    """Return the ways to change what a list shows; only for those who may, and if it is filtered."""
    if not (viewer.may_change and asked.filters() and total):
        return NOTHING
    shown = []
    for do in acts:
        href = link(f"{asked.path}/confirm", {**asked.filters(), "do": do})
        css = "button danger" if WORDS[do].danger else "button primary" if do == RETRY else "button"
        shown.append(anchor(WORDS[do].button.format(number(total)), href, css))
    return joined(shown)


def noun_of(asked: Asked) -> str:
    """Return what a list is of."""
    return "certificate" if asked.path == CERTIFICATES else "device"


@lean.frozen(kw_only=True)
class TagsWanted:
    """Tags to add and to remove."""

    add: Sequence[str] = ()
    remove: Sequence[str] = ()


def ask(
    do: str,
    chosen: Chosen,
    effects: Mapping[int, Html],
    viewer: Viewer,
    *,
    tags: TagsWanted | None = None,
    problem: str = "",
) -> Html:
    """Ask before many change; ``effects``: by id, what becomes of those that are named."""
    words, noun = WORDS[do], noun_of(chosen.asked)
    wanted = tags or TagsWanted()
    count = many(len(chosen.rows), noun)
    of_all = f"{count} of {number(len(chosen.rows) + chosen.later)}" if chosen.later else count
    fields = {"do": do, "add": ",".join(wanted.add), "remove": ",".join(wanted.remove), "beyond": chosen.beyond or ""}
    if not chosen.rows:
        what = (
            f"None of them can be changed so: {words.left_out}." if chosen.left_out else "No row fits this filter now."
        )
        back = anchor("Back to the list", chosen.asked.with_(), "button")
        title = fill("{label}", label=words.label.format(f"no {noun}"))
        return fill(
            '{head}<section class="need"><p>{what}</p><p>{back}</p></section>', head=head(title), what=what, back=back
        )
    return ask_page(
        title=f"{words.label.format(of_all)}?",
        action=chosen.url(**fields),
        back=chosen.asked.with_(),
        does=[*_tags_said(wanted), *words.does],
        undo=words.undo,
        which=_which(chosen, effects, words),
        ask=fill(
            "{set}{fields}", set=hidden(set=chosen.digest), fields=_typed(len(chosen.rows)) if words.danger else NOTHING
        ),
        command=_command(do, chosen, wanted),
        label=words.label.format(count),
        viewer=viewer,
        danger=words.danger,
        problem=problem,
    )


def ask_tags(chosen: Chosen, total: int, problem: str = "") -> Html:
    """Ask which tags many devices get and lose, before the page that asks whether."""
    filters = chosen.asked.filters()
    return fill(
        """{head}<section class="need need-info confirm">{problem}<form action="{action}">{kept}
<label for="add">Add tags<input id="add" name="add" type="text" value="" placeholder="web,env=prod" maxlength="200" autocomplete="off"
 autocapitalize="none" spellcheck="false"></label>
<label for="remove">Remove tags<input id="remove" name="remove" type="text" maxlength="200" autocomplete="off" autocapitalize="none"
 spellcheck="false"></label><p class="soft">Several are separated by commas. Nothing changes yet: the next page shows what would.</p>
<div class="acts"><button class="primary">Preview</button>{back}</div></form></section>""",
        head=head(fill("Tags of {count}", count=many(total, "device"))),
        problem=fill('<p class="alert" role="alert">{text}</p>', text=problem) if problem else NOTHING,
        action=f"{DEVICES}/confirm",
        kept=hidden(do=TAGS, **filters),
        back=anchor("Leave it", chosen.asked.with_(), "button"),
    )


def _tags_said(tags: TagsWanted) -> list[str]:
    said = [f"{', '.join(tags.add)}: added."] if tags.add else []
    return said + ([f"{', '.join(tags.remove)}: removed."] if tags.remove else [])


def _typed(count: int) -> Html:
    return fill(
        '<label for="reason">Reason, which the devices are told<input id="reason" name="reason" type="text" maxlength="200" autocomplete="off"></label>'
        '<label for="count">To be sure, type how many: <strong>{count}</strong><input id="count" name="count" type="text" required'
        ' inputmode="numeric" maxlength="10" autocomplete="off"></label>',
        count=count,
    )


_COLUMNS = (Column("Name"), Column("State", "nowrap"), Column("What happens", "why"))


def _which(chosen: Chosen, effects: Mapping[int, Html], words: Words) -> Html:
    """Return the rows, of many the first; how many more there are, and why others are left out."""
    noun = noun_of(chosen.asked)
    shown = table(f"The {noun}s", _COLUMNS, (_row(row, effects, chosen.asked.path) for row in chosen.rows[:NAMED]))
    more = []
    if len(chosen.rows) > NAMED:
        more.append(f"And {many(len(chosen.rows) - NAMED, f'more {noun}')}.")
    if chosen.later:
        more.append(f"{many(chosen.later, noun)} of this list are asked for after these.")
    if chosen.left_out:
        more.append(f"Left out: {many(len(chosen.left_out), noun)}, {words.left_out}.")
    said = fill('<p class="soft">{more}</p>', more=" ".join(more)) if more else NOTHING
    return fill("{table}{said}", table=shown, said=said)


def _row(row: Mapping[str, Any], effects: Mapping[int, Html], path: str) -> list[Html]:
    name = row["name"] or f"{row['id']}"
    return [anchor(name, f"{path}/{row['id']}", "name"), state(row["state"]), effects.get(row["id"], NOTHING)]


def _command(do: str, chosen: Chosen, tags: TagsWanted) -> str:
    """Return the command that does the same."""
    kind = f"{noun_of(chosen.asked)}s"
    rows = chosen.named(kind)
    by_tags = " ".join(f"--tag {quoted(tag)}" for tag in chosen.asked.filters().get("tag", "").split(","))
    which = by_tags if chosen.is_by_tags else rows
    if do == TAGS:
        options = [f"--add {quoted(tag)}" for tag in tags.add] + [f"--remove {quoted(tag)}" for tag in tags.remove]
        return " ".join(["cert-ctrl plane tag", rows, *options])
    return f"cert-ctrl plane renew {which}" if do == RENEW else f"cert-ctrl plane device {do} {which}"


# --- what becomes of those that are named -----------------------------------------------------------------------------


def why_effect(row: Mapping[str, Any]) -> Html:
    """Return what a device that tries again has failed at."""
    if row["state"] == "stale":
        return Html("when it is heard from again")
    why = row["why"]
    if not why:
        return Html("nothing has failed there")
    about = f"{why['certificate']}: " if why["certificate"] else ""
    return fill("{about}{what}", about=about, what=why["what"])


def tags_effect(changed: Mapping[str, Any]) -> Html:
    """Return the tags that a device gets and loses."""
    if not changed["added"] and not changed["removed"]:
        return Html("nothing: it has them so already")
    parts = [fill("gets {tags}", tags=tags_of(changed["added"]))] if changed["added"] else []
    parts += [fill("loses {tags}", tags=tags_of(changed["removed"]))] if changed["removed"] else []
    return joined(parts, ", ")


def rotate_effect(tried: Mapping[str, Any]) -> Html:
    """Return what becomes of the key of a device."""
    return Html("makes a new key" if tried["changed"] else "was told already, and has not yet")


def refused_effect(why: str) -> Html:
    """Return why a device would be refused."""
    return fill('<span class="bad">not possible: {why}</span>', why=cut(why))


def end_effect(plan: Mapping[str, Any]) -> Html:
    """Return what is withdrawn from a device that is decommissioned."""
    if not plan["changed"]:
        return Html("nothing: it is decommissioned already")
    alone = [one["name"] for one in plan["certificates"] if not one["other_devices"]]
    said = f"{many(len(plan['certificates']), 'certificate')} withdrawn"
    return fill("{said}{alone}", said=said, alone=f"; no other device has {cut(', '.join(alone))}" if alone else "")


def renew_effect(row: Mapping[str, Any]) -> Html:
    """Return where a certificate that is renewed goes."""
    return fill("ordered from {issuer}, for {devices}", issuer=row["issuer"], devices=many(row["devices"], "device"))


# --- what could not be done -------------------------------------------------------------------------------------------


@lean.frozen(kw_only=True)
class Result:
    """What has become of a change of many."""

    done: int
    failed: Sequence[tuple[int, str, str]] = ()
    """Id, name, and why."""
    stopped: str = ""
    """Why it stopped; empty: it did not, or its time was over."""
    untried: int = 0
    last: int = 0
    """The id of the last row that was tried."""


def partial(do: str, chosen: Chosen, result: Result, rest: str) -> Html:
    """Tell which rows were changed and which not; ``rest``: the page that asks for those that were not tried."""
    words, noun = WORDS[do], noun_of(chosen.asked)
    lines = [
        fill("<li>{name}: {why}</li>", name=anchor(name or str(row_id), f"{chosen.asked.path}/{row_id}"), why=cut(why))
        for row_id, name, why in result.failed[:NAMED]
    ]
    if len(result.failed) > NAMED:
        lines.append(fill("<li>and {count} more</li>", count=number(len(result.failed) - NAMED)))
    parts = []
    if lines:
        said = fill("<h2>Not done for {count}</h2>", count=many(len(result.failed), noun))
        parts.append(fill('{said}<ul class="do">{lines}</ul>', said=said, lines=joined(lines)))
    if result.stopped:
        text = "<h2>Stopped</h2><p>{why}. {count} not tried.</p>"
        count = f"{many(result.untried, noun)} {'was' if result.untried == 1 else 'were'}"
        parts.append(fill(text, why=cut(result.stopped.rstrip(".")), count=count))
    left = result.untried + chosen.later
    go_on = anchor(f"Go on with the other {number(left)}", rest, "button primary") if rest else NOTHING
    return fill(
        '{head}<section class="need need-bad" role="alert">{parts}<p>What is done stays done, and can safely be asked for again.</p>'
        '<div class="acts">{go_on}{back}</div></section>',
        head=head(fill("{done}", done=words.done.format(many(result.done, noun)))),
        parts=joined(parts),
        go_on=go_on,
        back=anchor("Back to the list", chosen.asked.with_(), "button"),
    )
