"""Operators and their API tokens: who may do what, and what admins change about it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from certctrl import lean
from certctrl.plane.access.accounts import MAX_TOKEN_DAYS, TOKEN_STATUSES
from certctrl.plane.access.roles import Role
from certctrl.plane.http.console.confirm import ask_page
from certctrl.plane.http.console.frame import AUDIT, OPERATORS, TOKENS, Asked, Viewer, head
from certctrl.plane.http.console.parts import (
    NOTHING,
    Column,
    ago,
    anchor,
    clock,
    cut,
    exports,
    joined,
    left,
    link,
    many,
    number,
    quoted,
    state,
    table,
)
from certctrl.plane.http.pages.html import Html, fill

CHANGES = ("disable", "enable", "role")


@lean.frozen(kw_only=True)
class OperatorsFound:
    """What the page of operators shows."""

    operators: Sequence[Mapping[str, Any]]
    total: int
    following: str
    """The name after which the next page begins; empty: it is the last."""
    is_key_on: bool


def is_admin(viewer: Viewer) -> bool:
    """Return whether a viewer may change operators and tokens."""
    return viewer.caller.role.includes(Role.ADMIN)


def home_of(name: str) -> str:
    """Return the path below which an operator is changed."""
    return f"{OPERATORS}/{quote(name, safe='')}"


# --- operators --------------------------------------------------------------------------------------------------------

_OPERATORS = (
    Column("Operator"), Column("Role", "nowrap"), Column("Status", "nowrap"), Column("Last sign-in", "nowrap"),
    Column("Tokens", "num"), Column("Token last used", "nowrap"), Column("Actions", "does"),
)  # fmt: skip


def operators(found: OperatorsFound, asked: Asked, viewer: Viewer, now: float) -> Html:
    """Return the list of operators."""
    key = (
        "The operator key is on: who has it is an admin without a name. Turn it off once there are operators."
        if found.is_key_on
        else "The operator key is off."
    )
    body = [head(Html("Operators"), fill('<p class="soft">{key}</p>', key=key)), _search(asked)]
    if found.operators:
        columns = _OPERATORS if is_admin(viewer) else _OPERATORS[:-1]
        rows = (_operator(row, now)[: len(columns)] for row in found.operators)
        body.append(table("Operators, by name", columns, rows, css="wide"))
    elif asked.query.get("q") or asked.query.get("after"):
        text = '<p class="empty">No operator has a name like this. <a href="{all}">Show all</a></p>'
        body.append(fill(text, all=asked.path))
    else:
        text = "No operator yet, only the operator key: <code>cert-ctrl plane operator add</code> adds one."
        body.append(Html(f'<p class="empty">{text}</p>'))
    ways = []
    if asked.query.get("after"):
        ways.append(anchor("First page", asked.with_(), "button"))
    if found.following:
        ways.append(anchor("Next page", asked.with_(after=found.following), "button"))
    body.append(_foot(many(found.total, "operator"), ways, OPERATORS, {"q": asked.query.get("q", "")}, "operator list"))
    body.append(fill('<p><a href="{tokens}">All API tokens</a></p>', tokens=TOKENS))
    return joined(body)


def _foot(said: str, ways: Sequence[Html], path: str, query: Mapping[str, str], command: str) -> Html:
    return fill(
        '<div class="foot"><p>{said}</p>{ways}{more}</div>\n',
        said=said,
        ways=fill('<nav aria-label="Pages">{ways}</nav>', ways=joined(ways, " ")) if ways else NOTHING,
        more=exports(path, query, f"cert-ctrl plane {command} --json"),
    )


def _search(asked: Asked) -> Html:
    return fill(
        '<form class="filters" action="{path}"><label class="wide" for="q">Name<input id="q" name="q" type="search" value="{q}"'
        ' placeholder="alice" maxlength="100" spellcheck="false" autocapitalize="none" autocomplete="off"></label>'
        "<button>Show</button></form>\n",
        path=asked.path,
        q=asked.query.get("q", ""),
    )


def _operator(row: Mapping[str, Any], now: float) -> list[Html]:
    name, is_disabled = row["name"], row["status"] == "disabled"
    home = f"{home_of(name)}/confirm"
    away = fill('<span class="away"> {name}</span>', name=name)
    acts = [
        (link(home, {"do": "role"}), "Role…"),
        (link(home, {"do": "enable" if is_disabled else "disable"}), "Enable…" if is_disabled else "Disable…"),
    ]
    if not is_disabled:
        acts.append((f"{home_of(name)}/token", "New token…"))
    return [
        fill(
            '{name}<span class="sub"><a href="{audit}">What they did</a></span>',
            name=anchor(cut(name, 100), link(TOKENS, {"operator": name}), "name"),
            audit=link(AUDIT, {"who": name}),
        ),
        fill("{role}", role=row["role"]),
        state(row["status"]),
        ago(row["last_sign_in_at"], now),
        anchor(number(row["tokens"]), link(TOKENS, {"operator": name})),
        ago(row["last_used_at"], now),
        joined(
            (
                fill('<a class="button" href="{href}">{text}{away}</a>', href=href, text=text, away=away)
                for href, text in acts
            ),
            " ",
        ),
    ]


# --- tokens -----------------------------------------------------------------------------------------------------------

_TOKENS = (
    Column("Token"), Column("Operator"), Column("Role", "nowrap"), Column("Scope"), Column("Status", "nowrap"),
    Column("Ends", "nowrap"), Column("Last used", "nowrap"), Column("Actions", "does"),
)  # fmt: skip


def tokens(rows: Sequence[Mapping[str, Any]], following: int | None, asked: Asked, viewer: Viewer, now: float) -> Html:
    """Return the list of tokens; ``following``: the id before which the next page begins."""
    operator, status = asked.query.get("operator", ""), asked.query.get("status", "")
    title = fill("API tokens of {name}", name=operator) if operator else Html("API tokens")
    acts = NOTHING
    if operator and is_admin(viewer):
        acts = anchor("New token…", f"{home_of(operator)}/token", "button")
    below = Html('<p class="soft">A token is shown once, when it is made; only a digest of it is kept.</p>')
    crumb = fill('<a href="{all}">Operators</a> / tokens', all=OPERATORS)
    body = [head(title, below, crumb=crumb, acts=acts), _token_filters(asked)]
    if rows:
        columns = _TOKENS if is_admin(viewer) else _TOKENS[:-1]
        cells = (_token(row, now)[: len(columns)] for row in rows)
        body.append(table("API tokens, the newest first", columns, cells, css="wide"))
    else:
        text = '<p class="empty">No token fits. <a href="{all}">Show those of all operators and states</a></p>'
        body.append(fill(text, all=link(TOKENS, {"status": "all"})))
    ways = []
    if asked.query.get("before_id"):
        ways.append(anchor("First page", asked.with_(before_id=""), "button"))
    if following is not None:
        ways.append(anchor("Older", asked.with_(before_id=str(following)), "button"))
    options = f" --operator {quoted(operator)}" if operator else ""
    options += "" if status in ("", "current") else " --all"
    query = {"operator": operator, "status": status}
    body.append(_foot(many(len(rows), "token"), ways, TOKENS, query, f"token list{options}"))
    return joined(body)


def _token_filters(asked: Asked) -> Html:
    chosen = asked.query.get("status", "") or "current"
    options = joined(
        fill(
            '<option value="{word}"{chosen}>{word}</option>',
            word=word,
            chosen=Html(" selected" if word == chosen else ""),
        )
        for word in (*TOKEN_STATUSES, "all")
    )
    return fill(
        '<form class="filters" action="{path}"><label class="wide" for="operator">Operator<input id="operator" name="operator"'
        ' value="{operator}" maxlength="100" spellcheck="false" autocapitalize="none" autocomplete="off"></label>'
        '<label for="status">Status<select id="status" name="status">{options}</select></label><button>Show</button></form>\n',
        path=asked.path,
        operator=asked.query.get("operator", ""),
        options=options,
    )


def _token(row: Mapping[str, Any], now: float) -> list[Html]:
    is_over = row["status"] in ("revoked", "expired")
    withdraw = NOTHING
    if not is_over:
        text = '<a class="button danger" href="{href}">Withdraw…<span class="away"> token {id}</span></a>'
        withdraw = fill(text, href=f"{TOKENS}/{row['id']}/confirm", id=row["id"])
    used = ago(row["last_used_at"], now)
    if row["last_address"]:
        used = fill('{used}<span class="sub">from {address}</span>', used=used, address=cut(row["last_address"], 60))
    ends = fill("revoked {ago}", ago=ago(row["revoked_at"], now)) if row["revoked_at"] else left(row["expires_at"], now)
    return [
        fill('{name}<span class="sub">token {id}</span>', name=cut(row["name"], 100), id=row["id"]),
        anchor(cut(row["operator"], 100), link(TOKENS, {"operator": row["operator"]})),
        fill("{role}", role=row["role"]),
        fill("{scope}", scope=scope_of(row)),
        state(row["status"]),
        ends,
        used,
        withdraw,
    ]


def scope_of(row: Mapping[str, Any]) -> str:
    """Return the devices that a token is for."""
    tags = row.get("tags") or ()
    return f"devices with {' and '.join(tags)}" if tags else "all devices"


# --- pages that ask ---------------------------------------------------------------------------------------------------


def operator_change(row: Mapping[str, Any], do: str, viewer: Viewer, problem: str = "") -> Html:
    """Ask before an operator is disabled or enabled, or gets another role."""
    name, is_self = row["name"], row["name"] == viewer.caller.who
    ask, command = NOTHING, f"cert-ctrl plane operator {do} {quoted(name)}"
    match do:
        case "disable":
            does = [
                f"All requests with their {many(row['tokens'], 'token')} are refused, and their browser sessions end.",
                "A sign-in at the provider is refused, too.",
                "What they have done, and started, stays.",
            ]
            undo = "Enable lets the tokens work again; browsers must sign in again."
        case "enable":
            does = [
                "They can sign in again.",
                f"Their {many(row['tokens'], 'token')} that have not expired work again.",
            ]
            undo = "Disable stops them again at the next request."
        case _:
            does = [
                "The new role counts from the next request, also for existing tokens and sessions.",
                "A token keeps a lesser role that it was made with.",
                "If they sign in at a provider, the next sign-in sets the role to what the provider grants.",
            ]
            undo = f"Now: {row['role']}. The former role can be set again."
            ask, command = _roles(row["role"]), f"cert-ctrl plane operator role {quoted(name)} ROLE"
    if is_self and do != "enable":
        does.append("This is your own account: you may lose access to this page.")
    return ask_page(
        title=f"Change the role of {name}?" if do == "role" else f"{do.capitalize()} {name}?",
        action=f"{home_of(name)}/{do}",
        back=OPERATORS,
        does=does,
        undo=undo,
        ask=ask,
        command=command,
        label="Set the role" if do == "role" else f"{do.capitalize()} them",
        viewer=viewer,
        danger=do == "disable",
        problem=problem,
    )


def _roles(now: str, most: Role = Role.ADMIN, *, of_operator: bool = False) -> Html:
    same = Html('<option value="">always that of the operator</option>') if of_operator else NOTHING
    options = same + joined(
        fill(
            '<option value="{role}"{chosen}>{role}</option>',
            role=str(role),
            chosen=Html(" selected" if role == now else ""),
        )
        for role in Role
        if most.includes(role)
    )
    return fill('<label for="role">Role<select id="role" name="role">{options}</select></label>', options=Html(options))


def token_withdrawal(row: Mapping[str, Any], viewer: Viewer) -> Html:
    """Ask before a token is withdrawn."""
    does = [
        f"Requests with it are refused from now on: it acts for {row['operator']}, with the role {row['role']}.",
        "The browser sessions that it opened end.",
        "Other tokens of the operator keep working.",
    ]
    if viewer.caller.who == row["operator"] and viewer.caller.via == f"token {row['name']}":
        does.append("You have signed in with this token: you are signed out.")
    used = f"Last used at {clock(row['last_used_at'])}." if row["last_used_at"] else "It was never used."
    return ask_page(
        title=f"Withdraw token {row['id']}, {row['name']} of {row['operator']}?",
        action=f"{TOKENS}/{row['id']}/revoke",
        back=link(TOKENS, {"operator": row["operator"]}),
        does=does,
        undo=f"{used} There is no undo: make a new token.",
        ask=NOTHING,
        command=f"cert-ctrl plane token revoke {row['id']}",
        label="Withdraw it",
        viewer=viewer,
        danger=True,
        problem="",
    )


def new_token(
    row: Mapping[str, Any], viewer: Viewer, problem: str = "", given: Mapping[str, str] | None = None
) -> Html:
    """Ask what the new token of an operator is for."""
    typed = given or {}
    ask = fill(
        '<label for="name">What it is for<input id="name" name="name" type="text" required maxlength="100" value="{name}" placeholder="laptop"'
        ' autocomplete="off" autocapitalize="none" spellcheck="false"></label>'
        '<label for="days">Valid for days, at most {most}<input id="days" name="days" type="text" inputmode="numeric" required maxlength="3"'
        ' value="{days}" autocomplete="off"></label>{roles}',
        name=typed.get("name", ""),
        most=MAX_TOKEN_DAYS,
        days=typed.get("days", "90"),
        roles=_roles(typed.get("role", ""), Role(row["role"]), of_operator=True),
    )
    return ask_page(
        title=f"New token of {row['name']}",
        action=f"{home_of(row['name'])}/token",
        back=link(TOKENS, {"operator": row["name"]}),
        does=[
            "The next page shows it, once. It cannot be shown again.",
            "Its holder can do what its role allows, in this operator's name, until it ends or is withdrawn.",
        ],
        undo="Withdraw it at any time.",
        ask=ask,
        command=f"cert-ctrl plane token create NAME --operator {quoted(row['name'])} --expires-in 90d",
        label="Make it",
        viewer=viewer,
        danger=False,
        problem=problem,
    )


def token_made(row: Mapping[str, Any], now: float) -> Html:
    """Show a new token, for the only time."""
    return fill(
        '{head}<section class="need need-info confirm"><p role="status">This is the only time that it is shown.</p>'
        '<p><code class="secret">{token}</code></p><ul class="do"><li>Copy it to a file of mode 0600 on the machine that uses it.</li>'
        "<li>It ends {left}. Its role is {role}, its scope {scope}.</li></ul>"
        "<p>{back}</p></section>",
        head=head(fill("Token {id}, {name} of {operator}", id=row["id"], name=row["name"], operator=row["operator"])),
        token=row["token"],
        left=left(row["expires_at"], now, words=True),
        role=row["role"],
        scope=scope_of(row),
        back=anchor("I have it", link(TOKENS, {"operator": row["operator"]}), "button primary"),
    )
