"""The overview: what an operator must do, why, since when, and which certificate ends first. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from certctrl import lean
from certctrl.plane.fleet.words import CERTIFICATE_WORDS, COPY_WORDS, DEVICE_WORDS
from certctrl.plane.http.console.frame import CERTIFICATES, DEVICES, HOME, ROLLOUTS, head
from certctrl.plane.http.console.parts import (
    NOTHING,
    Column,
    ago,
    anchor,
    cut,
    exports,
    joined,
    left,
    link,
    many,
    number,
    seconds_of,
    since,
    state,
    table,
)
from certctrl.plane.http.console.rollouts import title_of, totals_of
from certctrl.plane.http.pages.html import Html, fill

ENDS_DAYS = 30
_LISTED_ENDS = 6
_DAY = 86_400


@lean.frozen(kw_only=True)
class Overview:
    """What the page shows."""

    causes: Mapping[str, Any]
    summary: Mapping[str, Any]
    failing: Mapping[str, Any]
    """A page of certificates that cannot be renewed or have expired."""
    rollouts: Sequence[Mapping[str, Any]]
    frozen: str
    grants: Sequence[Mapping[str, Any]]
    """Devices that ask to be let in."""


def overview(found: Overview, now: float) -> Html:
    """Return the page."""
    counts = found.causes["counts"]
    if not counts:
        return _first_steps(found, now)
    failing = found.failing["total"]
    needing = counts.get("degraded", 0) + counts.get("stale", 0)
    body = [_head(found, needing, sum(counts.values()), now)]
    if found.causes["causes"]:
        body.append(_causes(found, now))
    if failing:
        body.append(_failing(found, now))
    body += [_halt(row) for row in _halted(found)]
    body += [_asking(found.grants, now), _cards(found), _ends(found.summary["ends"], now)]
    return joined(body)


# --- above the fold ---------------------------------------------------------------------------------------------------


def _head(found: Overview, needing: int, total: int, now: float) -> Html:
    causes, failing, halted = found.causes["causes"], found.failing["total"], _halted(found)
    expired = found.summary["copies"].get("expired", 0) + found.failing["counts"].get("expired", 0)
    if needing:
        what = anchor(f"{number(needing)} of {many(total, 'device')}", link(DEVICES, {"state": "degraded,stale"}))
        title = fill("{what} {need} you", what=what, need="needs" if needing == 1 else "need")
    elif failing:
        what = anchor(many(failing, "certificate"), link(CERTIFICATES, {"state": "failing,expired"}))
        title = fill("{what} {need} you", what=what, need="needs" if failing == 1 else "need")
    elif causes or halted:
        many_ = many(len(causes), "cause") if causes else many(len(halted), "rollout")
        title = fill("{many} {need} you", many=many_, need="needs" if many_.startswith("1 ") else "need")
    else:
        title = Html("Nothing needs you")
    said = [f"{many(len(causes), 'cause')}."] if causes else []
    if not needing and not failing and not causes and not halted:
        said = [f"{many(total, 'device')}, none of them degraded or stale."]
    said.append("Something in use has expired." if expired else "Nothing has expired.")
    below = fill(
        '<p class="soft" id="said" data-live>{said} {first}</p>', said=" ".join(said), first=_first(found, now)
    )
    return head(fill('<span id="need" data-live>{title}</span>', title=title), below, live_at=now)


def _halted(found: Overview) -> list[Mapping[str, Any]]:
    return [row for row in found.rollouts if row["state"] == "halted"]


def _halt(row: Mapping[str, Any]) -> Html:
    name = anchor(f"Rollout {row['id']}, {title_of(row)}", f"{ROLLOUTS}/{row['id']}")
    text = '<section class="need need-bad"><h2>{name}, is halted</h2><p>{reason}. Read why, then resume or abort it.</p></section>'
    return fill(text, name=name, reason=cut(row["reason"]))


def _first(found: Overview, now: float) -> Html:
    """Say which certificate ends first, among those that cannot be renewed if there are any."""
    stuck = [cause for cause in found.causes["causes"] if cause["ends_first"]]
    ends = found.summary["ends"]
    if stuck:
        first = min((cause["ends_first"] for cause in stuck), key=lambda one: str(one["at"]))
        if seconds_of(first["at"]) >= now:
            name = anchor(first["certificate"], link(CERTIFICATES, {"q": first["certificate"]}))
            return fill(
                "Left alone, the first to end is {name}, {left}.", name=name, left=left(first["at"], now, words=True)
            )
    if ends:
        first = ends[0]
        name = anchor(first["certificate"], f"{CERTIFICATES}/{first['id']}")
        return fill("The next to end is {name}, {left}.", name=name, left=left(first["at"], now, words=True))
    return fill("Nothing ends in the next {days} days.", days=ENDS_DAYS)


_CAUSES = (
    Column("Cause", "why"), Column("Where", "nowrap"), Column("Since", "nowrap"), Column("Ends first", "num"),
    Column("What to do", "do"),
)  # fmt: skip


def _causes(found: Overview, now: float) -> Html:
    rows = [_cause(cause, now) for cause in found.causes["causes"]]
    shown = table("What needs a person, by cause, the worst first", _CAUSES, rows, part="causes", css="causes")
    more = exports(f"{HOME}/causes", {}, "cert-ctrl plane causes --json")
    return fill(
        '<section aria-labelledby="h-causes"><h2 id="h-causes" class="away">Causes, worst first</h2>\n{shown}'
        '<div class="foot"><p>{many} like each other are one row.</p>{more}</div></section>\n',
        shown=shown,
        many="Devices that fail",
        more=more,
    )


def devices_of(cause: Mapping[str, Any]) -> str:
    """Return the URL of the devices with a cause."""
    if cause["state"] == "stale":
        return link(DEVICES, {"state": "stale"})
    return link(DEVICES, {"reason": cause["reason"]})


def _cause(cause: Mapping[str, Any], now: float) -> list[Html]:
    example, first = cause["example"], cause["ends_first"]
    certificates = cause["certificates"]
    about = f"{example['certificate']}: " if certificates == 1 and example["certificate"] else ""
    said = f"{example['device']}: {example['message']}" if example["message"] else f"for example {example['device']}"
    what = fill(
        '{state} {link}<span class="sub mono">{said}</span>',
        state=state(cause["state"]),
        link=anchor(f"{about}{cause['what']}", devices_of(cause), "name"),
        said=cut(said),
    )
    where = anchor(many(cause["devices"], "device"), devices_of(cause))
    if certificates > 1:
        where = fill('{where}<span class="sub">{more}</span>', where=where, more=many(certificates, "certificate"))
    ends = NOTHING
    if first:
        ends = left(first["at"], now)
        if certificates > 1:
            ends = fill('{ends}<span class="sub">{name}</span>', ends=ends, name=cut(first["certificate"], 40))
    return [what, where, since(cause["since"], now), ends, fill("{fix}", fix=_sentence(cause["fix"]))]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


_FAILING = (
    Column("Certificate", "why"), Column("Devices", "num"), Column("Ends first", "num"), Column("Issuer", "minor"),
)  # fmt: skip


def _failing(found: Overview, now: float) -> Html:
    listed, total = found.failing["certificates"], found.failing["total"]
    rows = [
        [
            fill(
                "{state} {name}",
                state=state(row["state"]),
                name=anchor(row["name"], f"{CERTIFICATES}/{row['id']}", "name"),
            ),
            fill("{count}", count=number(row["devices"])),
            left(row["ends_first_at"] or row["newest_ends_at"], now),
            fill("{issuer}", issuer=row["issuer"]),
        ]
        for row in listed
    ]
    shown = table("Certificates that have expired or cannot be renewed", _FAILING, rows, part="failing")
    more = NOTHING
    if total > len(listed):
        more = anchor(f"All {number(total)}", link(CERTIFICATES, {"state": "failing,expired"}))
    return fill(
        '<section aria-labelledby="h-failing"><h2 id="h-failing">Certificates that need you</h2>\n{shown}'
        '<div class="foot">{more}<p class="cli"><code>cert-ctrl plane orders list</code></p></div></section>\n',
        shown=shown,
        more=more,
    )


def _asking(grants: Sequence[Mapping[str, Any]], now: float) -> Html:
    if not grants:
        return NOTHING
    first = grants[0]
    return fill(
        '<p class="asking"><a href="/device">{devices} to be let in</a>: {name}, {address}, {when}</p>\n',
        devices=f"{many(len(grants), 'device')} {'asks' if len(grants) == 1 else 'ask'}",
        name=cut(first["name"] or "unnamed", 60),
        address=first["address"] or "address unknown",
        when=ago(first["created_at"], now),
    )


# --- numbers ----------------------------------------------------------------------------------------------------------


def _cards(found: Overview) -> Html:
    return fill(
        '<div class="cards">{devices}{copies}{certificates}{rollouts}</div>\n',
        devices=_counts("Devices", "devices", DEVICES, found.causes["counts"], DEVICE_WORDS),
        copies=_counts("Certificates on devices", "copies", DEVICES, found.summary["copies"], COPY_WORDS),
        certificates=_counts("Certificates", "certs", CERTIFICATES, found.failing["counts"], CERTIFICATE_WORDS),
        rollouts=_rollouts(found.rollouts, found.frozen),
    )


def _counts(title: str, part: str, path: str, counts: Mapping[str, int], order: Sequence[str]) -> Html:
    rows = joined(
        fill(
            '<li class="{zero}">{state}<span>{count}</span></li>',
            zero="" if counts.get(word) else "zero",
            state=state(word, link(path, {"state": word}) if counts.get(word) else ""),
            count=number(counts.get(word, 0)),
        )
        for word in order
    )
    return fill(
        '<section class="card" aria-labelledby="h-{part}"><h2 id="h-{part}">{title} <span>{total}</span></h2>'
        '<ul class="counts" id="n-{part}" data-live>{rows}</ul></section>',
        part=part,
        title=title,
        total=number(sum(counts.values())),
        rows=rows,
    )


def _rollouts(rollouts: Sequence[Mapping[str, Any]], frozen: str) -> Html:
    rows = [
        fill(
            '<li><span class="two"><a href="{href}">{name}</a><span class="sub">{settled} of {all}</span></span>{state}</li>',
            href=f"{ROLLOUTS}/{row['id']}",
            name=title_of(row),
            state=state(row["state"]),
            settled=number(totals_of(row).get("proven", 0)),
            all=many(sum(totals_of(row).values()), "device"),
        )
        for row in rollouts
    ]
    if frozen:
        rows.insert(0, fill('<li class="warn">All are frozen: {reason}</li>', reason=frozen))
    body = joined(rows) if rows else Html('<li class="soft">None is under way.</li>')
    return fill(
        '<section class="card" aria-labelledby="h-rollouts"><h2 id="h-rollouts"><a href="{href}">Rollouts</a> <span>{count}</span></h2>'
        '<ul class="counts" id="n-rollouts" data-live>{body}</ul></section>',
        href=ROLLOUTS,
        count=number(len(rollouts)),
        body=body,
    )


# --- what ends --------------------------------------------------------------------------------------------------------


def _ends(ends: Sequence[Mapping[str, Any]], now: float) -> Html:
    """Return the certificates in use that end in the next days: a bar for each day, and the first ones."""
    if not ends:
        return NOTHING
    days = [[0, 0] for _ in range(ENDS_DAYS)]
    for one in ends:
        day = min(ENDS_DAYS - 1, int((seconds_of(one["at"]) - now) // _DAY))
        days[day][bool(one["stuck"])] += 1
    stuck = sum(one[1] for one in days)
    said = f"{many(len(ends), 'certificate')} in use; {number(stuck)} stuck somewhere"
    rows = joined(
        fill(
            '<li>{state}<a href="{href}">{name}</a><span class="soft">{devices}</span>{left}</li>',
            state=state("stuck") if one["stuck"] else NOTHING,
            href=f"{CERTIFICATES}/{one['id']}",
            name=one["certificate"],
            devices=_on(one),
            left=left(one["at"], now, words=True),
        )
        for one in ends[:_LISTED_ENDS]
    )
    return fill(
        '<section aria-labelledby="h-ends"><h2 id="h-ends">Ends in the next {count} days</h2><div class="card">\n{chart}'
        '<p class="hint">{said}. What is neither stuck nor expiring is renewed before.</p><ul class="ends">{rows}</ul>{all}</div></section>\n',
        count=ENDS_DAYS,
        chart=_chart(days, said),
        said=said,
        rows=rows,
        all=fill("<p>{link}</p>", link=anchor("All, by their end", link(CERTIFICATES, {"sort": "ends"}))),
    )


def _on(one: Mapping[str, Any]) -> str:
    return f"on {many(one['devices'], 'device')}" + (f", stuck on {number(one['stuck'])}" if one["stuck"] else "")


def _chart(days: Sequence[Sequence[int]], said: str) -> Html:
    highest = max(good + bad for good, bad in days) or 1
    bars = []
    for day, (good, bad) in enumerate(days):
        x, base = day * 20 + 3, 74.0
        for count, css in ((bad, "f-bad"), (good, "f-good")):
            high = round(60 * count / highest, 1)
            base -= high
            if count:
                bars.append(f'<rect class="{css}" x="{x}" y="{base:.1f}" width="14" height="{high}"/>')
        if good + bad:
            bars.append(f'<text x="{x + 7}" y="{base - 3:.1f}">{good + bad}</text>')
    marks = "".join(
        f'<text x="{day * 20 + 10}" y="88">{f"{day} d" if day else "today"}</text>' for day in (0, 7, 14, 21, 28)
    )
    return fill(
        '<svg class="chart" viewBox="0 0 600 92" role="img" aria-label="{said}"><path class="base" d="M0 74.5H600"/>{bars}</svg>\n',
        said=said,
        bars=Html("".join(bars) + marks),
    )


# --- no device yet ----------------------------------------------------------------------------------------------------


def _first_steps(found: Overview, now: float) -> Html:
    return fill(
        """{head}{asking}<section class="need calm"><h2>Add the first device</h2>
<ol class="do">
<li>On the host, with the address of this control plane: <pre>cert-ctrl setup --server https://PLANE:8443</pre></li>
<li>It shows a code. Enter it <a href="/device">here</a>, check that it is this device, and approve.</li>
</ol>
<p class="soft">For many hosts, make a token instead: <code>cert-ctrl plane enrolment-token</code>.</p></section>
""",
        head=head(Html("No device yet"), Html('<p class="soft">The state of your devices will be here.</p>')),
        asking=_asking(found.grants, now),
    )
