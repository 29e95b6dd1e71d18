"""Forms by which devices get and lose a certificate, and the page that asks before it is revoked. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from certctrl.plane.ca.crl import REASONS
from certctrl.plane.certificates.table import KEY_AT_DEVICE
from certctrl.plane.http.console.confirm import ask_page
from certctrl.plane.http.console.frame import CERTIFICATES, Viewer
from certctrl.plane.http.console.parts import NOTHING, anchor, hidden, joined, link, many
from certctrl.plane.http.pages.html import Html, fill
from certctrl.plane.issuers.registry import IMPORT


def forms(shown: Mapping[str, Any], viewer: Viewer) -> Html:
    """Return the section of a certificate's page by which it is changed; nothing for those who may not."""
    if not viewer.may_change or shown["status"] == "revoked":
        return NOTHING
    home = f"{CERTIFICATES}/{shown['id']}"
    return fill(
        """<section class="card edit" aria-labelledby="h-change"><h2 id="h-change">Change it</h2>
<form method="post" action="{home}/assign">{csrf}<label for="device">A device, by name or id<input id="device" name="device" type="text" required
 maxlength="200" autocomplete="off" autocapitalize="none" spellcheck="false"></label><button>Assign</button> <button
 formaction="{home}/unassign">Unassign</button></form><div class="acts">{revoke}</div></section>""",
        home=home,
        csrf=hidden(csrf=viewer.csrf),
        revoke=anchor("Revoke…", link(f"{home}/confirm", {"do": "revoke"}), "button danger"),
    )


def ask_revocation(row: Mapping[str, Any], viewer: Viewer, form: Mapping[str, str], problem: str = "") -> Html:
    """Ask before a certificate is revoked; ``form``: what was typed before."""
    name, home = row["domain_name"], f"{CERTIFICATES}/{row['id']}"
    count = len(row["device_ids"])
    used = (
        f"the {many(count, 'device')} that {'has' if count == 1 else 'have'} it"
        if count
        else "no device, for none has it"
    )
    at_ca = (
        f"Its issuer {row['issuer']} is asked to revoke it, until it has; clients that check refuse it from then on."
    )
    if row["issuer"] == IMPORT:
        at_ca = "It was imported: it is revoked here only, and you revoke it at its CA."
    key = ", and its private key is destroyed here" if row["key_origin"] != KEY_AT_DEVICE else ""
    return ask_page(
        title=f"Revoke {name}?",
        action=f"{home}/revoke",
        back=home,
        does=[
            at_ca,
            f"It is withdrawn from {used}{key}.",
            "Hosts serve it until their agents have withdrawn it. Files that their policy keeps stay on disk.",
        ],
        undo="There is no undo, here or at any CA. cert-ctrl plane renew orders another one with the same names.",
        ask=_questions(name, form),
        command=f"cert-ctrl plane revoke {row['id']}",
        label="Revoke it",
        viewer=viewer,
        danger=True,
        problem=problem,
    )


def _questions(name: str, form: Mapping[str, str]) -> Html:
    """Return the fields of the form."""
    options = joined(
        fill(
            '<option value="{code}"{chosen}>{text}</option>',
            code=code,
            text=code or "not said",
            chosen=Html(" selected") if code == form.get("reason_code", "") else NOTHING,
        )
        for code in ("", *REASONS)
    )
    return fill(
        """<label for="reason">Reason, stored with the certificate<input id="reason" name="reason" type="text" value="{reason}" maxlength="200"
 autocomplete="off"></label><label for="reason_code">Reason for the CA and its clients<select id="reason_code"
 name="reason_code">{options}</select></label><label for="replace"><input id="replace" name="replace" type="checkbox"
 value="yes"{replace}>Issue a replacement with a new key first; devices keep this one until then (with keyCompromise it is revoked at
 once)</label><label for="name">To be sure, type its name: <strong>{name}</strong><input id="name" name="name" type="text" required maxlength="300"
 autocomplete="off" autocapitalize="none" spellcheck="false"></label>""",
        reason=form.get("reason", ""),
        options=options,
        replace=Html(" checked") if form.get("replace") == "yes" else NOTHING,
        name=name,
    )
