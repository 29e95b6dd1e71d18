"""Pages and forms by which one device changes: name, tags, hardware, key, end. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from certctrl.model.features import KEY_ROTATION
from certctrl.plane.http.console.confirm import ask_page
from certctrl.plane.http.console.frame import DEVICES, Viewer, head
from certctrl.plane.http.console.many_pages import end_effect
from certctrl.plane.http.console.parts import NOTHING, anchor, cut, hidden, joined, link, many
from certctrl.plane.http.pages.html import Html, fill

REPLACE, ROTATE, DECOMMISSION = "replace", "rotate-key", "decommission"
_NAMED = 20


def forms(row: Mapping[str, Any], shown: Mapping[str, Any], viewer: Viewer) -> Html:
    """Return the section of a device's page by which it is changed; nothing for those who may not.

    ``row``: as in the list, ``shown``: as ``Devices.show``.
    """
    if not viewer.may_change:
        return NOTHING
    home, csrf = f"{DEVICES}/{row['id']}", hidden(csrf=viewer.csrf)
    ways = []
    if row["state"] != "revoked":
        ways.append((REPLACE, "Replace its hardware…", "button"))
    if row["state"] not in ("revoked", "expected") and KEY_ROTATION in shown["features"]:
        ways.append((ROTATE, "Rotate its key…", "button"))
    if shown["decommissioned_at"] is None:
        ways.append((DECOMMISSION, "Decommission…", "button danger"))
    return fill(
        """<section class="card edit" aria-labelledby="h-change"><h2 id="h-change">Change it</h2>
<form method="post" action="{home}/rename">{csrf}<label for="new-name">Name<input id="new-name" name="name" type="text" value="{name}" required
 maxlength="200" autocomplete="off" autocapitalize="none" spellcheck="false"></label><button>Rename</button></form>
<form method="post" action="{home}/tags">{csrf}<label for="add">Add tags<input id="add" name="add" type="text" placeholder="web,env=prod"
 maxlength="200" autocomplete="off" autocapitalize="none" spellcheck="false"></label><label for="remove">Remove tags<input id="remove"
 name="remove" type="text" maxlength="200" autocomplete="off" autocapitalize="none" spellcheck="false"></label><button>Change tags</button></form>
<div class="acts">{ways}</div></section>""",
        home=home,
        csrf=csrf,
        name=row["name"],
        ways=joined(anchor(text, link(f"{home}/confirm", {"do": do}), css) for do, text, css in ways),
    )


def ask_replacement(plan: Mapping[str, Any], viewer: Viewer) -> Html:
    """Ask before a token is made by which new hardware becomes a device."""
    keys = f", {len(plan['new_keys'])} of them with new keys" if plan["new_keys"] else ""
    gets = f"It gets its name, tags, install items and {many(len(plan['certificates']), 'certificate')}{keys}."
    name, home = _name(plan), f"{DEVICES}/{plan['id']}"
    cancel = fill(
        '<form method="post" action="{home}/cancel-replacement">{csrf}<p class="soft">A token is out already, and shall not be used?</p>'
        "<button>Void the token</button></form>",
        home=home,
        csrf=hidden(csrf=viewer.csrf),
    )
    asked = ask_page(
        title=f"Replace the hardware of {name}?",
        action=f"{home}/replace",
        back=home,
        does=[
            f"The next page shows a token, once. The host that registers with it becomes {name}.",
            gets,
            "Until then nothing changes. Then the former hardware is locked out, and what it has on its disks stays there.",
        ],
        undo="A token that is not used yet can be voided. It ends after a day, and a second one replaces the first.",
        ask=NOTHING,
        command=f"cert-ctrl plane device replace {plan['id']}",
        label="Make the token",
        viewer=viewer,
        danger=False,
        problem="",
    )
    return fill('{asked}<section class="need confirm">{cancel}</section>', asked=asked, cancel=cancel)


def replacement(made: Mapping[str, Any]) -> Html:
    """Show the token of a replacement, which cannot be shown again."""
    name, home = _name(made), f"{DEVICES}/{made['id']}"
    return fill(
        """{head}<section class="need need-info confirm"><h2>Its token</h2><pre>{token}</pre>
<p>It is shown here only. It is for one host, and ends {until}.</p>
<ol class="do"><li>Install cert-ctrl on the new host, and save the token there as the file <code>token</code>.</li>
<li>On the new host: <code>cert-ctrl register --enrolment-token-file token</code>, after <code>cert-ctrl init</code>.</li></ol>
<div class="acts">{back}</div></section>""",
        head=head(fill("New hardware for {name}", name=name)),
        token=made["token"],
        until=f"{made['expires_at'][:10]} {made['expires_at'][11:16]} UTC",
        back=anchor(f"Back to {name}", home, "button"),
    )


def ask_rotation(row: Mapping[str, Any], viewer: Viewer) -> Html:
    """Ask before a device replaces its key."""
    name, home = _name(row), f"{DEVICES}/{row['id']}"
    return ask_page(
        title=f"Rotate the key of {name}?",
        action=f"{home}/{ROTATE}",
        back=home,
        does=[
            "It makes a new key of its own when it next refreshes its token. Private keys are sealed to this key on their way.",
            "Its certificates and their keys stay as they are: Renew now replaces those.",
        ],
        undo="There is no undo: a device that has rotated never uses its former key again.",
        ask=NOTHING,
        command=f"cert-ctrl plane device {ROTATE} {row['id']}",
        label="Rotate its key",
        viewer=viewer,
        danger=False,
        problem="",
    )


def ask_end(plan: Mapping[str, Any], viewer: Viewer, problem: str = "") -> Html:
    """Ask before a device is decommissioned; ``plan``: what would become of its certificates."""
    name, home = _name(plan), f"{DEVICES}/{plan['id']}"
    alone = [one["name"] for one in plan["certificates"] if not one["other_devices"]]
    kept = f" No other device has {cut(', '.join(alone[:_NAMED]))}: renewed until revoked." if alone else ""
    return ask_page(
        title=f"Decommission {name}?",
        action=f"{home}/{DECOMMISSION}",
        back=home,
        does=[
            "All its requests are refused from now on, and its agent stops.",
            f"{many(len(plan['certificates']), 'certificate')} and {many(len(plan['cas']), 'CA')} are withdrawn from its lists.{kept}",
            "What is on its disks stays until you remove it there.",
            "No certificate is revoked: for that, use the command with --revoke-certificates.",
        ],
        undo="There is no undo. The host comes back by registering again, and certificates are assigned again by hand.",
        ask=fill(
            '<label for="reason">Reason, which the device is told<input id="reason" name="reason" type="text" maxlength="200" autocomplete="off"></label>'
            '<label for="name">To be sure, type its name: <strong>{name}</strong>'
            '<input id="name" name="name" type="text" required maxlength="200" autocomplete="off" autocapitalize="none" spellcheck="false"></label>',
            name=name,
        ),
        command=f"cert-ctrl plane device {DECOMMISSION} {plan['id']}",
        label="Decommission it",
        viewer=viewer,
        danger=True,
        problem=problem or ("" if plan["changed"] else end_effect(plan).capitalize() + "."),
    )


def _name(row: Mapping[str, Any]) -> str:
    return row["name"] or str(row["id"])
