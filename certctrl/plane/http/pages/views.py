"""What the approval page looks like at each step. Pure: facts in, HTML out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from certctrl.plane.http.pages.html import Html, fill


def sign_in(*, csrf: str, user_code: str, error: str = "") -> Html:
    """Ask for the operator key."""
    return fill(
        """<h1>Sign in</h1>
<p>Only the operator of this control plane can let a device in.</p>
{alert}
<form method="post" action="/device/sign-in">
<input type="hidden" name="csrf" value="{csrf}">
<input type="hidden" name="user_code" value="{user_code}">
<input type="text" name="username" value="operator" autocomplete="username" hidden>
<label for="key">Operator key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus
 aria-describedby="key-hint"{invalid}>
<p class="hint" id="key-hint">It is in the file <code>operator.key</code> of the plane’s data directory.</p>
<button class="primary">Sign in</button>
</form>""",
        alert=_alert(error),
        csrf=csrf,
        user_code=user_code,
        invalid=Html(' aria-invalid="true"' if error else ""),
    )


def enter_code(*, csrf: str, user_code: str = "", error: str = "") -> Html:
    """Ask for the code that the device shows."""
    return fill(
        """<h1>Approve a device</h1>
<p>Type the code that the device shows.</p>
{alert}
<form method="get" action="/device">
<label for="user_code">Device code</label>
<input id="user_code" name="user_code" class="code" value="{user_code}" required autofocus maxlength="20"
 autocomplete="off" autocapitalize="characters" spellcheck="false" placeholder="XXXX-XXXX"{invalid}>
<button class="primary">Continue</button>
</form>
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
    known: Mapping[str, Any] | None,
    users: Sequence[Mapping[str, Any]],
) -> Html:
    """Show who asks, and ask for the decision."""
    return fill(
        """<h1>Let this device in?</h1>
<p class="code" aria-label="Device code">{user_code}</p>
<p>Approve only if <strong>the device in front of you</strong> shows this very code.</p>
<dl>{facts}</dl>
{known}
<p class="hint">Name, platform and program are what the device says of itself. The address is where the plane saw the
request come from.</p>
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
        known=_known(known),
        csrf=csrf,
        users=_users(users),
        sign_out=_sign_out(csrf),
    )


def decided(grant: Mapping[str, Any], *, approved: bool, csrf: str) -> Html:
    """Say what happens next."""
    name = grant["name"] or grant["user_code"]
    if approved:
        text = "It registers by itself within a few seconds; nothing is left to do here."
        title, tone = fill("{name} may join", name=name), "good"
    else:
        text = "It is told so and stops asking."
        title, tone = fill("{name} was turned away", name=name), "bad"
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


def trouble(title: str, text: str) -> Html:
    """Say that something went wrong and offer the way back."""
    return fill(
        """<h1>{title}</h1>
<p role="alert">{text}</p>
<p><a class="button" href="/device">Start again</a></p>""",
        title=title,
        text=text,
    )


def moment(text: str, now: float) -> str:
    """Return an RFC 3339 moment for a person: ``2026-11-23 09:26 UTC (2 minutes ago)``."""
    then = datetime.fromisoformat(text)
    seconds = max(0, int(now - then.timestamp()))
    ago = f"{seconds} second{'' if seconds == 1 else 's'}" if seconds < 90 else f"{round(seconds / 60)} minutes"
    return f"{then:%Y-%m-%d %H:%M} UTC ({ago} ago)"


def _alert(error: str) -> Html:
    return fill('<p class="alert" role="alert">{error}</p>', error=error) if error else Html("")


def _facts(grant: Mapping[str, Any], now: float) -> Html:
    facts = [
        ("Name", grant["name"] or "not told"),
        ("Platform", grant["platform"] or "not told"),
        ("Asked from", grant["address"] or "unknown"),
        ("Asked at", moment(grant["created_at"], now)),
        ("Program", grant["user_agent"] or "not told"),
    ]
    return Html("".join(fill("<dt>{name}</dt><dd>{value}</dd>", name=name, value=value) for name, value in facts))


def _known(device: Mapping[str, Any] | None) -> Html:
    if device is None:
        return Html("")
    if device["status"] == "revoked":
        return fill(
            '<p class="alert">This is device {id} ({name}), which was <strong>revoked</strong>. Approving brings it'
            " back.</p>",
            id=device["id"],
            name=device["name"] or "no name",
        )
    return fill(
        '<p class="note">This is device {id} ({name}). Approving ends its present session and gives it a new one.</p>',
        id=device["id"],
        name=device["name"] or "no name",
    )


def _users(users: Sequence[Mapping[str, Any]]) -> Html:
    if len(users) < 2:
        return Html("")
    options = Html("".join(fill('<option value="{id}">{name}</option>', **user) for user in users))
    return fill(
        '<label for="user_id">Device of</label><select id="user_id" name="user_id">{options}</select>', options=options
    )


def _sign_out(csrf: str) -> Html:
    return fill(
        """<form class="quiet" method="post" action="/device/sign-out">
<input type="hidden" name="csrf" value="{csrf}"><button>Sign out</button></form>""",
        csrf=csrf,
    )
