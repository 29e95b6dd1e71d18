"""The HTML of the approval page at each step. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

from certctrl.plane.http.pages.html import Html, fill
from certctrl.text import counted


def sign_in(*, csrf: str, user_code: str, following: str = "", error: str = "", provider: str = "") -> Html:
    """Ask for the operator key or a token; ``following``: the page after that, ``provider``: what else to sign in with."""
    return fill(
        """<h1>Sign in</h1>
<p>{why}</p>
{alert}
{provider}
<form method="post" action="/device/sign-in">
<input type="hidden" name="csrf" value="{csrf}">
<input type="hidden" name="user_code" value="{user_code}">
{next}<input type="text" name="username" value="operator" autocomplete="username" hidden>
<label for="key">Operator key or token</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus
 aria-describedby="key-hint"{invalid}>
<p class="hint" id="key-hint">Your token, or the key in the file <code>operator.key</code> in the plane’s data
directory.</p>
<button class="primary">Sign in</button>
</form>""",
        why="To see the fleet, you need an account; the role viewer is enough."
        if following
        else "Only operators of this control plane can approve devices.",
        next=fill('<input type="hidden" name="next" value="{path}">', path=following) if following else Html(""),
        alert=_alert(error),
        csrf=csrf,
        user_code=user_code,
        provider=_provider(provider, user_code, following),
        invalid=Html(' aria-invalid="true"' if error else ""),
    )


def signed_in(*, name: str, target: str) -> Html:
    """Say who has signed in at the provider; the browser continues by itself."""
    return fill(
        """<h1>Signed in</h1>
<p role="status">You are signed in as {name}.</p>
<p><a class="button" href="{target}">Continue</a></p>""",
        name=name,
        target=target,
    )


def _provider(label: str, user_code: str, following: str) -> Html:
    if not label:
        return Html("")
    query = f"?user_code={quote(user_code)}" if user_code else f"?next={quote(following)}" if following else ""
    return fill(
        '<p><a class="button" href="/device/oidc{query}">Sign in with {label}</a></p>', query=query, label=label
    )


def enter_code(*, csrf: str, user_code: str = "", error: str = "") -> Html:
    """Ask for the code on the device."""
    return fill(
        """<h1>Approve a device</h1>
<p>Enter the code that the device shows.</p>
{alert}
<form method="get" action="/device">
<label for="user_code">Device code</label>
<input id="user_code" name="user_code" class="code" value="{user_code}" required autofocus maxlength="20"
 autocomplete="off" autocapitalize="characters" spellcheck="false" placeholder="XXXX-XXXX"{invalid}>
<button class="primary">Continue</button>
</form>
<p class="hint"><a href="/fleet">The state of the fleet</a></p>
{sign_out}""",
        alert=_alert(error),
        user_code=user_code,
        invalid=Html(' aria-invalid="true"' if error else ""),
        sign_out=_sign_out(csrf),
    )


def decide(
    grant: Mapping[str, Any],
    *,
    csrf: str,
    now: float,
    known: Sequence[Mapping[str, Any]],
    users: Sequence[Mapping[str, Any]],
) -> Html:
    """Show the device and the ``known`` devices with its id or name, and ask for the decision."""
    return fill(
        """<h1>Approve this device?</h1>
<p class="code" aria-label="Device code">{user_code}</p>
<p>Approve only if <strong>the device in front of you</strong> shows exactly this code.</p>
<dl>{facts}</dl>
{known}
<p class="hint">Name, platform and program are reported by the device. The address is the one from which the plane
received the request.</p>
<form method="post" action="/device/decide">
<input type="hidden" name="csrf" value="{csrf}">
<input type="hidden" name="user_code" value="{user_code}">
{users}
<div class="choice">
<button class="primary" name="decision" value="approve">Approve</button>
<button class="danger" name="decision" value="deny">Deny</button>
</div>
</form>
{sign_out}""",
        user_code=grant["user_code"],
        facts=_facts(grant, now),
        known=Html("".join(_known(device, several_users=len(users) > 1) for device in known)),
        csrf=csrf,
        users=_users(users, {device["user_id"] for device in known if device["same_id"]}),
        sign_out=_sign_out(csrf),
    )


def decided(grant: Mapping[str, Any], *, approved: bool, csrf: str) -> Html:
    """Confirm the decision."""
    name = grant["name"] or grant["user_code"]
    if approved:
        text = "It registers automatically within a few seconds. You are done here."
        title, tone = fill("{name} is approved", name=name), "good"
    else:
        text = "It is notified and stops asking."
        title, tone = fill("{name} is denied", name=name), "bad"
    return fill(
        """<h1 class="{tone}">{title}</h1>
<p role="status">{text}</p>
<p><a class="button" href="/device">Approve another device</a></p>
{sign_out}""",
        tone=tone,
        title=title,
        text=text,
        sign_out=_sign_out(csrf),
    )


def problem(title: str, text: str) -> Html:
    """Show an error, with a link to the start."""
    return fill(
        """<h1>{title}</h1>
<p role="alert">{text}</p>
<p><a class="button" href="/device">Start again</a></p>""",
        title=title,
        text=text,
    )


def moment(text: str, now: float) -> str:
    """Return an RFC 3339 time for display: ``2026-11-23 09:26 UTC (2 minutes ago)``."""
    then = datetime.fromisoformat(text)
    seconds = max(0, int(now - then.timestamp()))
    ago = counted(seconds, "second") if seconds < 90 else counted(round(seconds / 60), "minute")
    return f"{then:%Y-%m-%d %H:%M} UTC ({ago} ago)"


def _alert(error: str) -> Html:
    return fill('<p class="alert" role="alert">{error}</p>', error=error) if error else Html("")


def _facts(grant: Mapping[str, Any], now: float) -> Html:
    facts = [
        ("Name", grant["name"] or "unknown"),
        ("Platform", grant["platform"] or "unknown"),
        ("Address", grant["address"] or "unknown"),
        ("Requested", moment(grant["created_at"], now)),
        ("Program", grant["user_agent"] or "unknown"),
        ("Device id", grant["device_public_id"] or "not named; only a new device can register"),
    ]
    return Html("".join(fill("<dt>{name}</dt><dd>{value}</dd>", name=name, value=value) for name, value in facts))


def _known(device: Mapping[str, Any], *, several_users: bool) -> Html:
    owner = f" of {device['user']}" if several_users else ""
    facts = {"id": device["id"], "name": device["name"] or "unnamed", "owner": owner}
    revoked = device["status"] == "revoked"
    if not device["same_id"]:
        what = Html("is <strong>revoked</strong> and ") if revoked else Html("")
        text = '<p class="{tone}">Device {id}{owner}, another one, {what}has the same name ({name}).</p>'
        return fill(text, tone="alert" if revoked else "note", what=what, **facts)
    if revoked:
        return fill(
            '<p class="alert">This is device {id} ({name}){owner}, which is <strong>revoked</strong>. Approving restores'
            " it.</p>",
            **facts,
        )
    return fill(
        '<p class="note">This is device {id} ({name}){owner}. Approving replaces its current session.</p>', **facts
    )


def _users(users: Sequence[Mapping[str, Any]], owners: set[int]) -> Html:
    if len(users) < 2:
        return Html("")
    options = Html("".join(_option(user, selected=owners == {user["id"]}) for user in users))
    return fill(
        '<label for="user_id">Owner</label><select id="user_id" name="user_id">{options}</select>', options=options
    )


def _option(user: Mapping[str, Any], *, selected: bool) -> Html:
    return fill(
        '<option value="{id}"{selected}>{name}</option>', selected=Html(" selected" if selected else ""), **user
    )


def _sign_out(csrf: str) -> Html:
    return fill(
        """<form class="quiet" method="post" action="/device/sign-out">
<input type="hidden" name="csrf" value="{csrf}"><button>Sign out</button></form>""",
        csrf=csrf,
    )
