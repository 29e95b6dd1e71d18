"""The list of certificates, and one: what ends, and where the newest is really served. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from certctrl import lean
from certctrl.plane.fleet.words import CERTIFICATE_WORDS, COPY_WORDS
from certctrl.plane.http.console import holders_pages
from certctrl.plane.http.console.devices import chips, foot, search_form, tabs, tags_field
from certctrl.plane.http.console.frame import CERTIFICATES, DEVICES, ROLLOUTS, Asked, Viewer, head
from certctrl.plane.http.console.parts import (
    NOTHING,
    Column,
    ago,
    anchor,
    cut,
    facts,
    hidden,
    joined,
    left,
    link,
    many,
    number,
    only_json,
    quoted,
    section,
    since,
    state,
    table,
    time_tag,
)
from certctrl.plane.http.pages.html import Html, fill

SORTS = {"worst": "worst first", "ends": "ends first", "name": "name", "id": "oldest first"}
_COLUMNS = (
    Column("Certificate", "", "name"), Column("State", "nowrap", "worst"), Column("Ends first", "num", "ends"),
    Column("Newest in place", "num"), Column("Seen served", "num"), Column("Stuck", "num"), Column("Last seen", "nowrap"),
    Column("Issuer", "minor nowrap"),
)  # fmt: skip


def certificates(answer: Mapping[str, Any], asked: Asked, now: float, acts: Html = NOTHING) -> Html:
    """Return the page of a list; ``acts``: what can be done with what it shows."""
    rows = answer["certificates"]
    body = [
        head(Html("Certificates"), fill('<p class="soft">{said}</p>', said=_said(answer["counts"])), acts=acts),
        tabs(asked, CERTIFICATE_WORDS, answer["counts"]),
        search_form(asked, "Name", "*.shop.example", tags_field(asked, ()), SORTS),
        chips(asked, CERTIFICATE_WORDS),
    ]
    if rows:
        links = {name: asked.with_(sort=name) for name in SORTS}
        caption = f"{many(answer['total'], 'certificate')}, {SORTS[asked.query['sort']]}"
        shown = (_row(row, now) for row in rows)
        order = asked.query["sort"]
        body.append(table(caption, _COLUMNS, shown, css="certificates", sorted_by=order, sort_links=links))
    elif sum(answer["counts"].values()):
        text = '<p class="empty">No certificate fits all of these filters. <a href="{all}">Show all {count}</a></p>'
        body.append(fill(text, all=asked.path, count=number(sum(answer["counts"].values()))))
    else:
        body.append(
            Html('<p class="empty">No certificate yet. <code>cert-ctrl plane issue</code> orders the first one.</p>')
        )
    body.append(foot(answer, asked, len(rows), "certificates"))
    return joined(body)


def _said(counts: Mapping[str, int]) -> str:
    bad = counts.get("failing", 0) + counts.get("expired", 0)
    total = many(sum(counts.values()), "certificate")
    if bad:
        return f"{number(bad)} of {total} cannot be renewed or have expired."
    if soon := counts.get("not served", 0) + counts.get("expiring", 0):
        return f"{number(soon)} of {total} end soon, or are not served where they are in place."
    return f"{total}, all are or will be renewed."


def _row(row: Mapping[str, Any], now: float) -> list[Html]:
    home = f"{CERTIFICATES}/{row['id']}"
    ends = row["ends_first_at"] or row["newest_ends_at"]
    in_place = row["newest_deployed"]
    return [
        anchor(row["name"], home, "name"),
        state(row["state"]),
        left(ends, now),
        fill("{some} of {all}", some=number(in_place), all=number(row["devices"])) if row["devices"] else NOTHING,
        fill("{count}", count=number(row["newest_served"])) if row["devices"] else NOTHING,
        anchor(number(row["stuck"]), home, "bad") if row["stuck"] else NOTHING,
        ago(row["last_proof_at"], now) if row["last_proof_at"] else NOTHING,
        fill("{issuer}", issuer=row["issuer"]),
    ]


# --- one certificate --------------------------------------------------------------------------------------------------


@lean.frozen(kw_only=True)
class CertificateFound:
    """What the page of a certificate shows."""

    answer: Mapping[str, Any]
    """As ``Fleet.certificate``."""
    shown: Mapping[str, Any]
    """As ``Certificates.show``."""
    after: int
    """The id of the device after which the page begins; 0: from the first one."""


def certificate(found: CertificateFound, viewer: Viewer, now: float) -> Html:
    """Return the page."""
    row = found.answer["certificate"]
    acts = NOTHING
    if viewer.may_change and row["state"] != "revoked":
        acts = fill(
            '<form method="post" action="{home}/renew">{csrf}<button>Renew now</button></form>{waves}',
            home=f"{CERTIFICATES}/{row['id']}",
            csrf=hidden(csrf=viewer.csrf),
            waves=anchor("Renew in waves…", link(f"{ROLLOUTS}/new", {"certificates": row["id"]}), "button"),
        )
    crumb = fill('<a href="{all}">Certificates</a> / {id}', all=CERTIFICATES, id=row["id"])
    return fill(
        '{head}{need}<div class="side"><div>{devices}</div><div>{facts}{forms}</div></div>',
        head=head(
            fill("{name} {state}", name=row["name"], state=state(row["state"])),
            _below(row, now),
            crumb=crumb,
            acts=acts,
        ),
        need=_need(found, now),
        devices=_devices(found, now),
        facts=_facts(found, now),
        forms=holders_pages.forms(found.shown, viewer),
    )


def _below(row: Mapping[str, Any], now: float) -> Html:
    parts = [fill("on {devices}", devices=many(row["devices"], "device")) if row["devices"] else Html("on no device")]
    if row["ends_first_at"]:
        parts.append(fill("what is in use ends first {left}", left=left(row["ends_first_at"], now, words=True)))
    if row["newest_ends_at"]:
        parts.append(fill("the newest {left}", left=left(row["newest_ends_at"], now, words=True)))
    return fill('<p class="soft">{parts}</p>', parts=joined(parts, " · "))


def _need(found: CertificateFound, now: float) -> Html:
    row, shown = found.answer["certificate"], found.shown
    if shown["problem"]:
        title = "It cannot be renewed" if row["state"] in ("failing", "expired") else "Its renewal has a problem"
        body = fill(
            "<pre>{problem}</pre><p>It is retried by itself. See <code>cert-ctrl plane orders list</code>;"
            " once the cause is gone: <strong>Renew now</strong>, or <code>cert-ctrl plane orders retry {order}</code>.</p>",
            problem=shown["problem"],
            order=shown["order_id"] or "ID",
        )
        return _panel("need-bad", title, body)
    if row["state"] == "revoked":
        since_ = time_tag(shown["revoked_at"], shown["revoked_at"][:10]) if shown["revoked_at"] else NOTHING
        reason = f": {cut(shown['revoke_reason'])}" if shown["revoke_reason"] else ""
        return _panel("need-calm", "Revoked", fill("<p>Since {since}{reason}.</p>", since=since_, reason=reason))
    if row["state"] == "expired":
        return _panel("need-bad", "What is served has ended", Html("<p>Clients refuse it. Renew it now.</p>"))
    if row["stuck"]:
        text = "<p>The newest is not in use there; the devices below say why.</p>"
        return _panel("need-bad", f"Stuck on {number(row['stuck'])} of {many(row['devices'], 'device')}", Html(text))
    return NOTHING


def _panel(css: str, title: str, body: Html) -> Html:
    return fill('<section class="need {css}"><h2>{title}</h2>{body}</section>\n', css=css, title=title, body=body)


_DEVICES = (
    Column("Device"), Column("State", "nowrap"), Column("Ends", "num"), Column("Why", "why"), Column("Seen served", "nowrap"),
)  # fmt: skip


def _devices(found: CertificateFound, now: float) -> Html:
    answer = found.answer
    counts, row, copies = answer["counts"], answer["certificate"], answer["copies"]
    if not counts:
        text = "It is assigned to no device: cert-ctrl plane assign."
        return section("Devices", fill('<p class="empty">{text}</p>', text=text), part="devices")
    words = joined(
        fill("<li>{state} {count}</li>", state=state(word), count=number(counts[word]))
        for word in COPY_WORDS
        if counts.get(word)
    )
    shown = table(f"Devices with {row['name']}", _DEVICES, (_copy(copy, now) for copy in copies))
    body = fill('<ul class="key words">{words}</ul>{table}{end}', words=words, table=shown, end=_end(found))
    return section("Devices", body, part="devices")


def _copy(copy: Mapping[str, Any], now: float) -> list[Html]:
    return [
        anchor(copy["device"] or f"device {copy['device_id']}", f"{DEVICES}/{copy['device_id']}", "name"),
        state(copy["state"]),
        left(copy["ends_at"], now),
        _why(copy, now),
        ago(copy["served_at"], now) if copy["served_at"] else NOTHING,
    ]


def _end(found: CertificateFound) -> Html:
    """Return how many devices there are, and the way to the next page."""
    answer, home, ways = found.answer, f"{CERTIFICATES}/{found.answer['certificate']['id']}", []
    if found.after:
        ways.append(anchor("First page", home, "button"))
    if answer["next"] is not None:
        ways.append(anchor("Next page", link(home, {"after": answer["next"]}), "button"))
    return fill(
        '<div class="foot"><p>{shown} of {all}</p>{ways}{json}</div>',
        shown=number(len(answer["copies"])),
        all=many(sum(answer["counts"].values()), "device"),
        ways=fill('<nav aria-label="Pages">{ways}</nav>', ways=joined(ways, " ")) if ways else NOTHING,
        json=only_json(
            home,
            {"after": found.after or ""},
            f"cert-ctrl plane certificates --search {quoted(answer['certificate']['name'])} --json",
        ),
    )


def _why(copy: Mapping[str, Any], now: float) -> Html:
    if not copy["reason"]:
        return NOTHING
    lasting = fill(" for {since}", since=since(copy["since"], now)) if copy["since"] else NOTHING
    message = fill('<span class="sub mono">{text}</span>', text=cut(copy["message"])) if copy["message"] else NOTHING
    return fill("{what}{lasting}{message}", what=copy["what"], lasting=lasting, message=message)


def _facts(found: CertificateFound, now: float) -> Html:
    shown = found.shown
    names = joined(fill("<code>{name}</code>", name=name) for name in shown["sans"][:20])
    if len(shown["sans"]) > 20:
        names = fill("{names} and {more} more", names=names, more=len(shown["sans"]) - 20)
    rows: list[tuple[str, object]] = [
        ("Names", Html(names.replace("</code><code>", "</code><br><code>"))),
        ("Issuer", shown["issuer"]),
        (
            "Serial",
            fill("<code>{serial}</code>", serial=shown["serial_number"])
            if shown["serial_number"]
            else "not issued yet",
        ),
        ("Valid from", _moment(shown["not_before"])),
        ("Valid until", _moment(shown["not_after"])),
        ("Renewal", _moment(shown["renew_at"])),
        ("Key", f"{shown['key_type']}, made {'on the host' if shown['key_origin'] == 'device' else 'here'}"),
        ("Order", f"{shown['order_id']}, {shown['order_state']}" if shown["order_id"] else ""),
        (
            "SHA-256",
            fill("<code>{print}</code>", print=shown["fingerprint_sha256"]) if shown["fingerprint_sha256"] else "",
        ),
    ]
    return fill(
        '<section class="card" aria-labelledby="h-facts"><h2 id="h-facts">Facts</h2>{facts}</section>',
        facts=facts(rows),
    )


def _moment(at: str | None) -> Html | str:
    return "" if at is None else time_tag(at, f"{at[:10]} {at[11:16]} UTC")
