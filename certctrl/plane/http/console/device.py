"""A device: what is wrong with it, how far it came, what its clients get now, and what to do. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from certctrl import lean
from certctrl.model.causes import Step
from certctrl.plane.http.console.devices import of_reason
from certctrl.plane.http.console.frame import AUDIT, CERTIFICATES, DEVICES, Viewer, head
from certctrl.plane.http.console.life_pages import forms
from certctrl.plane.http.console.parts import (
    NOTHING,
    Column,
    ago,
    anchor,
    at_clock,
    cut,
    facts,
    hidden,
    joined,
    left,
    link,
    many,
    number,
    only_json,
    seconds_of,
    section,
    shape,
    since,
    state,
    table,
    tags_of,
    time_tag,
    tone,
)
from certctrl.plane.http.pages.html import Html, fill

HISTORY = 20
"""Outcomes that the page shows first."""
MOST_HISTORY = 500
_WAY = {
    Step.FETCH: "fetch", Step.VERIFY: "verify", Step.CHECK: "check", Step.WRITE: "write", Step.SWITCH: "switch",
    Step.RUN: "reload the service", Step.PROBE: "see it served",
}  # fmt: skip
"""The steps of a certificate to its clients, in order."""
_SIGNALS = {
    "cert.renewed": "renewal", "cert.updated": "renewal", "cert.revoked": "revocation", "cert.unassigned": "unassigned",
    "cert.csr_wanted": "certificate request", "ca.assigned": "CA", "ca.unassigned": "CA unassigned",
    "install.updated": "install config", "state.resync_required": "comparison with the control plane",
}  # fmt: skip


@lean.frozen(kw_only=True)
class DeviceFound:
    """What the page shows."""

    row: Mapping[str, Any]
    """As in the list of devices."""
    copies: Sequence[Mapping[str, Any]]
    others: Sequence[Mapping[str, Any]]
    """What else has failed: CAs, the install config."""
    shown: Mapping[str, Any]
    """The device as ``Devices.show`` has it."""
    outcomes: Sequence[Mapping[str, Any]]
    has_more: bool
    entries: Sequence[Mapping[str, Any]]
    """Of the audit log, the newest first."""
    alike: int
    """Devices with the same cause."""


def device(found: DeviceFound, viewer: Viewer, now: float) -> Html:
    """Return the page."""
    main = joined([_certificates(found, now), _others(found, now), _history(found, now)])
    aside = joined([_facts(found, now), forms(found.row, found.shown, viewer), _entries(found, now)])
    return fill(
        '{head}{need}<div class="side"><div>{main}</div><div>{aside}</div></div>',
        head=_head(found, viewer, now),
        need=_need(found, now),
        main=main,
        aside=aside,
    )


def _head(found: DeviceFound, viewer: Viewer, now: float) -> Html:
    row = found.row
    parts = [fill("last contact {ago}", ago=ago(row["last_contact_at"], now))]
    if row["since"] and row["state"] != "healthy":
        lasting = fill("since {time}, {for_}", time=at_clock(row["since"], now), for_=since(row["since"], now))
        parts.insert(0, lasting)
    if row["ends_first"]:
        ends = left(row["ends_first"]["at"], now, words=True)
        parts.append(fill("{name} ends {ends}", name=cut(row["ends_first"]["certificate"], 60), ends=ends))
    title = fill("{name} {state}", name=row["name"] or f"device {row['id']}", state=state(row["state"]))
    crumb = fill(
        '<a href="{all}">Devices</a> / <a href="{state}">{word}</a>',
        all=DEVICES,
        state=link(DEVICES, {"state": row["state"]}),
        word=row["state"],
    )
    acts = _acts(found, viewer) if viewer.may_change else NOTHING
    return head(title, fill('<p class="soft">{parts}</p>', parts=joined(parts, " · ")), crumb=crumb, acts=acts)


def _acts(found: DeviceFound, viewer: Viewer) -> Html:
    home, word = f"{DEVICES}/{found.row['id']}", found.row["state"]
    again = fill(
        '<form method="post" action="{home}/resync">{csrf}<button class="primary">Try again now</button></form>',
        home=home,
        csrf=hidden(csrf=viewer.csrf),
    )
    retire = anchor("Shut out…", link(f"{home}/confirm", {"do": "revoke"}), "button danger")
    return joined(([again] if word not in ("revoked", "expected") else []) + ([retire] if word != "revoked" else []))


# --- what is wrong ----------------------------------------------------------------------------------------------------


def _need(found: DeviceFound, now: float) -> Html:
    row, why = found.row, found.row["why"]
    match row["state"]:
        case "degraded" if why:
            return _degraded(found, why, now)
        case "stale":
            return _panel(
                "need-bad", f"{row['name']} is not heard from", joined([_serves_on(row, now), _steps(_OF_STALE)])
            )
        case "expected":
            what = "It is added, but has never been heard from. Register it: run cert-ctrl register on the host."
            return _panel("need-calm", "Not registered yet", fill("<p>{what}</p>", what=what))
        case "revoked":
            reason = found.shown["revoke_reason"]
            what = "All its requests are refused" + (f": {cut(reason)}" if reason else "")
            return _panel(
                "need-calm", "Shut out", fill("<p>{what}. What it has deployed stays on the host.</p>", what=what)
            )
    if not found.copies:
        what = "No certificate is assigned to it: cert-ctrl plane issue, or plane assign."
        return _panel("need-calm", "Nothing to do yet", fill("<p>{what}</p>", what=what))
    return NOTHING


_OF_STALE = (
    "Look whether the host runs and reaches this control plane.",
    "On the host: cert-ctrl doctor tells what is wrong, cert-ctrl status what it serves.",
    "If the host no longer exists, shut it out.",
)


def _panel(css: str, title: str, body: Html) -> Html:
    return fill('<section class="need {css}"><h2>{title}</h2>{body}</section>\n', css=css, title=title, body=body)


def _steps(texts: Sequence[str]) -> Html:
    return fill('<ol class="do">{steps}</ol>', steps=joined(fill("<li>{text}</li>", text=text) for text in texts))


def _serves_on(row: Mapping[str, Any], now: float) -> Html:
    first = row["ends_first"]
    if first is None:
        return Html("<p>What it serves now is not known.</p>")
    ended = seconds_of(first["at"]) < now
    text = (
        "<p>It has what has ended: {name} {left}.</p>"
        if ended
        else ("<p>It serves on what it has. The first to end is {name}, {left}.</p>")
    )
    return fill(text, name=cut(first["certificate"], 80), left=left(first["at"], now, words=True))


def _degraded(found: DeviceFound, why: Mapping[str, Any], now: float) -> Html:
    copy = next((one for one in found.copies if one["certificate"] == why["certificate"] and why["certificate"]), None)
    title = f"{why['certificate']}: {why['what']}" if why["certificate"] else why["what"]
    parts = [_way(why["step"])]
    if why["message"]:
        parts.append(fill("<pre>{message}</pre>", message=why["message"]))
    if copy is not None:
        parts.append(_clients_get(copy, now))
    fix = why["fix"]
    steps = [f"{fix[:1].upper()}{fix[1:]}."]
    if why["copy"] == "not served":
        steps.append("The device looks again about once an hour.")
    elif why["reason"] != why["copy"]:
        steps.append(
            "It is retried by itself, ever less often. To have it retried at once: Try again now, or cert-ctrl apply --now on the host."
        )
    parts.append(_steps(steps))
    tried = f"Reported {many(why['attempts'], 'time')}. " if why["attempts"] > 1 else ""
    if found.alike > 1:
        others = anchor(f"{many(found.alike - 1, 'other device')}", of_reason(why["reason"]))
        alike = fill("{others} {fail} alike.", others=others, fail="fails" if found.alike == 2 else "fail")
    else:
        alike = Html("No other device fails like this.")
    parts.append(fill('<p class="soft">{tried}{alike}</p>', tried=tried, alike=alike))
    return _panel("need-bad", f"{title[:1].upper()}{title[1:]}" if not why["certificate"] else title, joined(parts))


def _way(failed: str) -> Html:
    """Return how far it came: done, failed and open steps."""
    steps = [step.value for step in _WAY]
    if failed not in steps:
        return (
            fill('<ol class="way"><li>{state}</li></ol>', state=_step("failed", f"failed at: {failed}"))
            if failed
            else NOTHING
        )
    place = steps.index(failed)
    words = ["proven"] * place + ["failed"] + ["held"] * (len(steps) - place - 1)
    said = {"proven": "done", "failed": "failed", "held": "not reached"}
    return fill(
        '<ol class="way" aria-label="How far it came">{steps}</ol>',
        steps=joined(
            fill('<li>{state}<span class="away">: {said}</span></li>', state=_step(word, text), said=said[word])
            for word, text in zip(words, _WAY.values(), strict=True)
        ),
    )


def _step(word: str, text: str) -> Html:
    return fill('<span class="st {tone}">{shape}{text}</span>', tone=tone(word), shape=shape(word), text=text)


def _clients_get(copy: Mapping[str, Any], now: float) -> Html:
    if copy["ends_at"] is None:
        return Html("<p>What its clients get now is not known to the control plane.</p>")
    if seconds_of(copy["ends_at"]) < now:
        return fill(
            "<p><strong>What it has in use {left}: clients refuse it.</strong></p>", left=left(copy["ends_at"], now)
        )
    if copy["state"] == "still served":
        return Html("<p><strong>Clients still get a certificate that is revoked.</strong></p>")
    ends = left(copy["ends_at"], now, words=True)
    if copy["state"] == "stuck":
        return fill("<p>Clients get the one from before, which ends {left}. Nothing is broken yet.</p>", left=ends)
    return fill("<p>What it has in use ends {left}.</p>", left=ends)


# --- certificates, history, facts -------------------------------------------------------------------------------------

_COPIES = (
    Column("Certificate"), Column("State", "nowrap"), Column("Ends", "num"), Column("Why", "why"), Column("Seen served", "nowrap"),
)  # fmt: skip


def _certificates(found: DeviceFound, now: float) -> Html:
    if not found.copies:
        return NOTHING
    rows = [
        [
            anchor(copy["certificate"], f"{CERTIFICATES}/{copy['certificate_id']}", "name"),
            state(copy["state"]),
            left(copy["ends_at"], now),
            _why(copy, now),
            ago(copy["served_at"], now) if copy["served_at"] else NOTHING,
        ]
        for copy in found.copies
    ]
    shown = table("Certificates on this device", _COPIES, rows)
    return section(f"Certificates: {number(len(found.copies))}", shown, part="copies")


def _why(copy: Mapping[str, Any], now: float) -> Html:
    if not copy["reason"]:
        return (
            Html('<span class="soft">not checked: no endpoint is named</span>')
            if copy["state"] == "deployed"
            else NOTHING
        )
    lasting = fill(" for {since}", since=since(copy["since"], now)) if copy["since"] else NOTHING
    message = fill('<span class="sub mono">{text}</span>', text=cut(copy["message"])) if copy["message"] else NOTHING
    return fill("{what}{lasting}{message}", what=copy["what"], lasting=lasting, message=message)


_OTHERS = (Column("What", "why"), Column("Step", "nowrap"), Column("Since", "nowrap"), Column("What to do", "do"))


def _others(found: DeviceFound, now: float) -> Html:
    problem = found.shown["install_problem"]
    rows = [
        [
            fill(
                '{state} {what}<span class="sub mono">{text}</span>',
                state=state("stuck"),
                what=one["what"],
                text=cut(one["message"]),
            ),
            fill("{step}", step=one["step"]),
            since(one["since"], now),
            fill("{fix}", fix=one["fix"]),
        ]
        for one in found.others
    ]
    parts = []
    if problem:
        text = '<p class="alert">Its profiles make no valid install config: {problem}</p>'
        parts.append(fill(text, problem=cut(problem, 500)))
    if rows:
        parts.append(table("What else has failed on this device", _OTHERS, rows))
    return section("Install config and CAs", joined(parts), part="others") if parts else NOTHING


def _history(found: DeviceFound, now: float) -> Html:
    if not found.outcomes:
        return section("History", Html('<p class="empty">It has reported nothing yet.</p>'), part="history")
    names = {copy["certificate_id"]: copy["certificate"] for copy in found.copies}
    lines = joined(_outcome(one, names, now) for one in found.outcomes)
    home = f"{DEVICES}/{found.row['id']}"
    older = (
        anchor("Older", link(home, {"history": MOST_HISTORY}) + "#h-history", "button") if found.has_more else NOTHING
    )
    command = f"cert-ctrl plane devices --outcomes {found.row['id']} --json"
    return section(
        "History",
        fill(
            '<ol class="log card">{lines}</ol><div class="foot">{older}{exports}</div>',
            lines=lines,
            older=older,
            exports=only_json(home, {}, command),
        ),
        part="history",
    )


def _outcome(one: Mapping[str, Any], names: Mapping[int, str], now: float) -> Html:
    signal = one["signal"]
    cert_id = signal["ref"].get("cert_id")
    kind = _SIGNALS.get(signal["type"], signal["type"])
    about = f"{names.get(cert_id, f'certificate {cut(str(cert_id), 20)}')}, {kind}" if cert_id is not None else kind
    took = f", {one['duration_ms'] / 1000:.1f} s" if one["duration_ms"] else ""
    step = f" ({one['step']}, {one['reason']})" if one["reason"] else ""
    detail = fill('<span class="sub mono">{text}</span>', text=cut(one["detail"], 500)) if one["detail"] else NOTHING
    return fill(
        "<li>{time}{shape}<div>{about}: <strong>{outcome}</strong>{took}{step}{detail}</div></li>",
        time=_when(one["at"], now),
        shape=fill('<span class="st {tone}">{shape}</span>', tone=tone(one["outcome"]), shape=shape(one["outcome"])),
        about=about,
        outcome=one["outcome"].replace("_", " "),
        took=took,
        step=step,
        detail=detail,
    )


def _when(at: str, now: float) -> Html:
    return fill(
        '<span class="at">{ago} <span class="soft">{clock}</span></span>', ago=ago(at, now), clock=at_clock(at, now)
    )


def _facts(found: DeviceFound, now: float) -> Html:
    shown = found.shown
    contact = "by push" if shown["connected_at"] else "by long poll" if shown["online"] else ""
    rows: list[tuple[str, object]] = [
        ("Id", shown["id"]),
        ("Public id", fill("<code>{id}</code>", id=shown["device_public_id"])),
        ("Tags", tags_of(shown["tags"]) if shown["tags"] else ""),
        ("Address", fill("<code>{address}</code>", address=shown["last_address"]) if shown["last_address"] else ""),
        ("Connected", contact),
        ("Agent", shown["app_version"]),
        ("Platform", cut(shown["platform"], 80)),
        ("Registered", _moment(shown["registered_at"], now)),
        ("Shut out", _moment(shown["revoked_at"], now)),
        (
            "Key",
            fill("<code>{key}</code>", key=shown["key_fingerprint"][:16] + "…") if shown["key_fingerprint"] else "",
        ),
        ("Install config", f"version {shown['install_version']}"),
        ("Signals waiting", number(shown["signals_waiting"]) if shown["signals_waiting"] else ""),
        (
            "Copies",
            Html('<span class="bad">two hosts use its key: see plane devices</span>')
            if shown["copies_suspected"]
            else "",
        ),
    ]
    return fill(
        '<section class="card" aria-labelledby="h-facts"><h2 id="h-facts">Facts</h2>{facts}</section>',
        facts=facts(rows),
    )


def _moment(at: str | None, now: float) -> Html | str:
    return "" if at is None else time_tag(at, f"{at_clock(at, now)}")


def _entries(found: DeviceFound, now: float) -> Html:
    if not found.entries:
        return NOTHING
    lines = joined(
        fill(
            '<li><span>{action} <span class="soft">by {who}</span></span>{ago}</li>',
            action=one["action"],
            who=cut(one["who"], 40),
            ago=ago(one["at"], now),
        )
        for one in found.entries
    )
    return fill(
        '<section class="card" aria-labelledby="h-acts"><h2 id="h-acts">Changes by operators</h2><ul class="counts">{lines}</ul>'
        "<p>{all}</p></section>",
        lines=lines,
        all=anchor("All changes", link(AUDIT, {"device": found.row["id"]})),
    )
