"""The frame of all pages of the console, and the list that a URL asks for. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from certctrl import lean
from certctrl.plane.access.roles import Caller, Role
from certctrl.plane.clock import rfc3339
from certctrl.plane.http.console.parts import NOTHING, SYMBOLS, anchor, hidden, joined, link
from certctrl.plane.http.pages.html import HEAD, HEADERS, Html, fill

HOME = "/fleet"
ALERTS, OPERATORS, TOKENS = f"{HOME}/alerts", f"{HOME}/operators", f"{HOME}/tokens"
DEVICES, CERTIFICATES = f"{HOME}/devices", f"{HOME}/certificates"
ROLLOUTS, AUDIT = f"{HOME}/rollouts", f"{HOME}/audit"
PROFILES = f"{HOME}/profiles"
_PARTS = (
    (HOME, "Overview"), (DEVICES, "Devices"), (CERTIFICATES, "Certificates"), (PROFILES, "Profiles"), (ROLLOUTS, "Rollouts"),
    (AUDIT, "Audit"), (ALERTS, "Alerts"), (OPERATORS, "Operators"),
)  # fmt: skip
_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; script-src 'self'; connect-src 'self'; form-action 'self';"
    " frame-ancestors 'none'; base-uri 'none'"
)
CONSOLE_HEADERS = HEADERS | {"content-security-policy": _POLICY}

NOTICES = {
    "resent": "It is sent again, for a day if need be.",
    "dismissed": "Dismissed. It can still be sent again.",
    "resent-all": "They are sent again, for a day if need be.",
    "dismissed-all": "Dismissed. They can still be sent again.",
    "operator-changed": "Changed: it applies to the next request.",
    "withdrawn": "Withdrawn: the token is refused from now on, and the sessions that it opened have ended.",
    "paused": "Paused: nothing more is released. Devices that are released go on.",
    "resumed": "Resumed.",
    "aborted": "Aborted. Devices that have the new version keep it, the others stay at theirs.",
    "asked": "Asked to try again: the device compares everything as soon as it is heard from.",
    "renewing": "A renewal is ordered.",
    "started": "Started: the first wave is released within seconds.",
    "stored": "Stored: the devices whose config changes are notified.",
    "revoked": "Shut out: all its requests are refused from now on.",
    "renamed": "Renamed. It keeps this name, even if it registers again.",
    "same-name": "It has this name already: nothing was changed.",
    "tagged": "Its tags are changed, and install items that depend on them.",
    "same-tags": "Its tags are so already: nothing was changed.",
    "voided": "The token for new hardware is void.",
    "no-token": "No token for new hardware was out.",
    "rotating": "It replaces its key when it next refreshes its token.",
    "decommissioned": "Decommissioned: its requests are refused, and its certificates withdrawn from its list.",
    "assigned": "Assigned: the device gets it as soon as it is heard from.",
    "unassigned": "Unassigned: the device withdraws it as its policy says.",
    "has-it": "The device has it already: nothing was changed.",
    "cert-revoked": "Revoked here; its issuer is asked until it has revoked it, too.",
    "replacing": "A replacement is ordered; this one is revoked once it is issued, or is already.",
    "undone": "Undone: it is as before.",
}
"""Value of ``?done=`` -> what a page says after a change."""


@lean.frozen(kw_only=True)
class Viewer:
    """Who looks at a page."""

    caller: Caller
    csrf: str
    user_id: int
    """Whose devices are shown."""
    user: str = ""
    """The name of that user; empty: there is only one."""
    users: Sequence[Mapping[str, Any]] = ()

    @property
    def may_change(self) -> bool:
        """Whether buttons of operators are shown."""
        return self.caller.role.includes(Role.OPERATOR)


def shell(
    title: str,
    body: Html,
    viewer: Viewer,
    *,
    here: str = "",
    status: int = 200,
    live: int = 0,
    search: str = "",
    done: str = "",
    said: str = "",
    undo: Html = NOTHING,
) -> Response:
    """Return a page; ``live``: seconds after which its live parts are read again.

    ``done``: the notice to show, or ``said``: its text; ``undo``: the button beside it.
    """
    refresh = NOTHING
    if live:
        refresh = fill('<noscript><meta http-equiv="refresh" content="{seconds}"></noscript>', seconds=max(live, 10))
    notice = NOTHING
    if said or done in NOTICES:
        shown = '<div class="notice"><p role="status">{text}</p>{undo}</div>'
        notice = fill(shown, text=said or NOTICES[done], undo=undo)
    text = fill(
        _PAGE,
        title=title,
        style="/fleet/console.css",
        body=body,
        refresh=refresh,
        live=live,
        search=search,
        notice=notice,
        symbols=SYMBOLS,
        nav=_nav(here),
        account=_account(viewer),
    )
    return Response(text, status, CONSOLE_HEADERS, "text/html; charset=utf-8")


def _nav(here: str) -> Html:
    return joined(
        fill(
            '<li><a href="{href}"{current}>{name}</a></li>',
            href=href,
            name=name,
            current=Html(' aria-current="page"' if href == here else ""),
        )
        for href, name in _PARTS
    )


def _account(viewer: Viewer) -> Html:
    caller = viewer.caller
    others = joined(
        fill("<li>{link}</li>", link=anchor(f"Devices of {user['name']}", link(HOME, {"user": user["id"]})))
        for user in viewer.users
        if len(viewer.users) > 1
    )
    return fill(
        """<details class="who"><summary><span class="away">Your account: </span>{who}{user}</summary><ul>
<li class="soft">Role: {role}{via}</li>
<li><a href="/device">Let a device in</a></li>
{others}<li><form method="post" action="/device/sign-out">{csrf}<button>Sign out</button></form></li></ul></details>""",
        who=caller.who,
        user=fill(' <span class="soft">· {user}</span>', user=viewer.user) if viewer.user else NOTHING,
        role=caller.role,
        via=f", by {caller.via}" if caller.via else "",
        others=others,
        csrf=hidden(csrf=viewer.csrf),
    )


def head(
    title: Html, below: Html = NOTHING, *, crumb: Html = NOTHING, acts: Html = NOTHING, live_at: float = 0.0
) -> Html:
    """Return the head of a page: what it is about, a line below, and what can be done; ``live_at``: of when it is."""
    live = NOTHING
    if live_at:
        live = fill(
            '<p class="live">At <span id="at" data-live>{at} UTC</span> · <a href="">Refresh</a>'
            ' <button type="button" data-toggle hidden>Live: on</button></p>',
            at=rfc3339(live_at)[11:19],
        )
    return fill(
        '<div class="head"><div>{crumb}<h1>{title}</h1>{below}</div><div class="acts">{live}{acts}</div></div>\n',
        crumb=fill('<p class="crumb">{crumb}</p>', crumb=crumb) if crumb else NOTHING,
        title=title,
        below=below,
        acts=acts,
        live=live,
    )


@lean.frozen
class Asked:
    """What a URL asks of a list: its path, and the parameters that are not empty."""

    path: str
    query: Mapping[str, str]

    def with_(self, **changes: str) -> str:
        """Return the URL with other parameters, at its first page unless ``after`` is among them."""
        return link(self.path, {**self.query, "after": "", **changes})

    def filters(self) -> Mapping[str, str]:
        """Return the parameters that select rows."""
        return {name: value for name, value in self.query.items() if name in ("state", "reason", "tag", "q") and value}


_PAGE = (
    HEAD
    + """\
<script src="/fleet/console.js" defer></script>
{refresh}
</head>
<body data-live-seconds="{live}">
{symbols}
<a class="skip" href="#main">To the content</a>
<header class="top"><div>
<a class="brand" href="/fleet"><img src="/device/icon.svg" alt="" width="24" height="24">certctrl</a>
<nav aria-label="Main"><ul>{nav}</ul></nav>
<form class="find" role="search" action="/fleet/devices"><label class="away" for="find">Find a device by name, address or certificate</label>
<input id="find" name="q" type="search" value="{search}" placeholder="Find a device  /" maxlength="100" autocomplete="off" spellcheck="false"></form>
{account}
</div></header>
<main id="main" tabindex="-1">
{notice}{body}
</main>
</body>
</html>
"""
)
