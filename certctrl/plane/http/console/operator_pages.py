"""The endpoints of the console for operators and their API tokens; admins change them."""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.model.csv_rows import csv_lines
from certctrl.plane.access.accounts import TOKEN_STATUSES
from certctrl.plane.access.roles import Role
from certctrl.plane.core import Plane
from certctrl.plane.errors import ErrorResponse, bad_request, not_found
from certctrl.plane.http.console import operators as operators_page
from certctrl.plane.http.console.exports import csv_answer, json_answer
from certctrl.plane.http.console.frame import OPERATORS, TOKENS, Asked, Viewer, shell
from certctrl.plane.http.console.ids import number_in_path
from certctrl.plane.http.console.operators import CHANGES, OperatorsFound
from certctrl.plane.http.console.parts import link
from certctrl.plane.http.console.visits import Visits
from certctrl.plane.http.pages.html import redirect
from certctrl.plane.http.permissions import permission_of
from certctrl.plane.http.reading import clean_line, whole_number
from certctrl.plane.settings import DAY
from certctrl.text import nearest, one_line

_ROWS = 50
_PORTION, _MAX_EXPORTED = 500, 10_000
_MAX_NAME = 100
_CHANGE = permission_of("PATCH", "/apiv1/operators/{operator}")
_CREATE = permission_of("POST", "/apiv1/operator-tokens")
_REVOKE = permission_of("DELETE", "/apiv1/operator-tokens/{ktid}")


class ConsoleOperators:
    """The pages, and the forms of admins."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._accounts = plane.access.accounts
        self._visits = Visits(plane)

    def routes(self) -> list[Route]:
        """Return the routes."""
        page = self._visits.page
        return [
            Route(f"{OPERATORS}.json", page(self.operators_json)),
            Route(f"{OPERATORS}.csv", page(self.operators_csv)),
            Route(OPERATORS, page(self.operators)),
            Route(f"{OPERATORS}/{{name}}/confirm", page(self.confirm_operator)),
            Route(f"{OPERATORS}/{{name}}/token", page(self.new_token)),
            Route(f"{OPERATORS}/{{name}}/token", page(self.create_token), methods=["POST"]),
            Route(f"{OPERATORS}/{{name}}/{{do}}", page(self.change_operator), methods=["POST"]),
            Route(f"{TOKENS}.json", page(self.tokens_json)),
            Route(f"{TOKENS}.csv", page(self.tokens_csv)),
            Route(TOKENS, page(self.tokens)),
            Route(f"{TOKENS}/{{tid}}/confirm", page(self.confirm_token)),
            Route(f"{TOKENS}/{{tid}}/revoke", page(self.revoke_token), methods=["POST"]),
        ]

    # --- operators ------------------------------------------------------------------------------------------------

    async def operators(self, request: Request, viewer: Viewer) -> Response:
        """Show the operators by name: ``?q=&after=``."""
        asked = request.query_params
        query = Asked(OPERATORS, {name: clean_line(asked.get(name, ""), _MAX_NAME) for name in ("q", "after")})

        def read() -> Response:
            fitting = self._fitting(query.query["q"])
            rows = [row for row in fitting if row["name"] > query.query["after"]]
            shown = rows[:_ROWS]
            found = OperatorsFound(
                operators=shown,
                total=len(fitting),
                following=shown[-1]["name"] if len(rows) > _ROWS else "",
                is_key_on=not self._plane.access.key.is_off(),
            )
            body = operators_page.operators(found, query, viewer, self._plane.wall_now())
            return shell("Operators", body, viewer, here=OPERATORS, done=asked.get("done", ""))

        return await self._plane.work_long(read)

    def _fitting(self, part: str) -> list[dict[str, Any]]:
        """Return the operators with a part of a name; there are at most `MAX_OPERATORS`."""
        rows = sorted(self._accounts.show_all(), key=lambda row: str(row["name"]))
        return [row for row in rows if part.lower() in row["name"]]

    async def operators_json(self, request: Request, viewer: Viewer) -> Response:
        """Return the operators, as ``plane operator list --json``."""
        part = clean_line(request.query_params.get("q", ""), _MAX_NAME)
        return await self._plane.work_long(lambda: json_answer(self._fitting(part)))

    async def operators_csv(self, request: Request, viewer: Viewer) -> Response:
        """Return the operators."""
        part = clean_line(request.query_params.get("q", ""), _MAX_NAME)
        return await self._plane.work_long(lambda: csv_answer("operators", csv_lines(self._fitting(part))))

    async def confirm_operator(self, request: Request, viewer: Viewer) -> Response:
        """Ask before an operator changes: ``?do=disable``, ``enable`` or ``role``."""
        return await self._ask(viewer, _name(request), request.query_params.get("do", ""))

    async def _ask(self, viewer: Viewer, name: str, do: str, problem: str = "") -> Response:
        viewer.caller.require(_CHANGE.role)
        if do not in CHANGES:
            raise _unknown(do)

        def read() -> Response:
            body = operators_page.operator_change(self._accounts.show(name), do, viewer, problem)
            return shell("Change an operator", body, viewer, here=OPERATORS, status=400 if problem else 200)

        return await self._plane.work_long(read)

    async def change_operator(self, request: Request, viewer: Viewer) -> Response:
        """Disable or enable an operator, or change the role."""
        name, do = _name(request), request.path_params["do"]
        form = await self._visits.form(request)
        if do not in CHANGES:
            raise _unknown(do)
        role = _role(form.get("role", "")) if do == "role" else None
        if do == "role" and role is None:
            return await self._ask(viewer, name, do, "Choose one of the roles.")
        disabled = {"disable": True, "enable": False}.get(do)
        with self._visits.acting(viewer, _CHANGE, operator=name):
            await self._plane.work(self._accounts.change, name, role, disabled)
        return redirect(f"{OPERATORS}?done=operator-changed")

    # --- tokens ---------------------------------------------------------------------------------------------------

    async def tokens(self, request: Request, viewer: Viewer) -> Response:
        """Show tokens, the newest first: ``?operator=&status=&before_id=``."""
        query = _token_query(request)

        def read() -> Response:
            rows = self._token_page(query, _ROWS + 1)
            shown = rows[:_ROWS]
            following = shown[-1]["id"] if len(rows) > _ROWS else None
            body = operators_page.tokens(shown, following, Asked(TOKENS, query), viewer, self._plane.wall_now())
            done = request.query_params.get("done", "")
            return shell("API tokens", body, viewer, here=OPERATORS, done=done)

        return await self._plane.work_long(read)

    def _token_page(self, query: dict[str, str], limit: int) -> list[dict[str, Any]]:
        status = query["status"] or "current"
        before_id = int(query["before_id"]) if query["before_id"] else None
        return self._accounts.page_of_tokens(query["operator"], "" if status == "all" else status, before_id, limit)

    async def tokens_json(self, request: Request, viewer: Viewer) -> Response:
        """Return the tokens that fit, in the form of ``plane token list --json``."""
        return json_answer(await self._tokens(request))

    async def tokens_csv(self, request: Request, viewer: Viewer) -> Response:
        """Return the tokens that fit."""
        return csv_answer("tokens", csv_lines(await self._tokens(request)))

    async def _tokens(self, request: Request) -> list[dict[str, Any]]:
        """Return the tokens that fit, read page by page."""
        query, found = _token_query(request), list[dict[str, Any]]()
        while len(found) < _MAX_EXPORTED:
            some = await self._plane.work_long(partial(self._token_page, query, _PORTION))
            found += some
            if len(some) < _PORTION:
                break
            query = query | {"before_id": str(some[-1]["id"])}
        return found

    async def new_token(self, request: Request, viewer: Viewer) -> Response:
        """Ask what a new token is for."""
        return await self._ask_token(viewer, _name(request))

    async def _ask_token(
        self, viewer: Viewer, name: str, problem: str = "", given: dict[str, str] | None = None
    ) -> Response:
        viewer.caller.require(_CREATE.role)

        def read() -> Response:
            body = operators_page.new_token(self._accounts.show(name), viewer, problem, given)
            return shell("New token", body, viewer, here=OPERATORS, status=400 if problem else 200)

        return await self._plane.work_long(read)

    async def create_token(self, request: Request, viewer: Viewer) -> Response:
        """Make a token, and show it: this answer is the only one with its text, and is stored by no browser."""
        operator, form = _name(request), await self._visits.form(request)
        name, days, role = (
            clean_line(form.get("name", ""), _MAX_NAME),
            form.get("days", "").strip(),
            form.get("role", ""),
        )
        create = self._accounts.create_token
        try:
            seconds = whole_number(days, "days", 1) * DAY
            with self._visits.acting(viewer, _CREATE, operator=operator, name=name):
                made = await self._plane.work(create, operator, name, _role(role), seconds)
        except ErrorResponse as error:
            if error.status not in (400, 409):
                raise
            given = {"name": name, "days": days[:3], "role": role[:20]}
            return await self._ask_token(viewer, operator, f"{error.what.rstrip('.')}.", given)
        body = operators_page.token_made(made, self._plane.wall_now())
        return shell("New token", body, viewer, here=OPERATORS)

    async def confirm_token(self, request: Request, viewer: Viewer) -> Response:
        """Ask before a token is withdrawn."""
        viewer.caller.require(_REVOKE.role)
        token_id = number_in_path(request, "tid")

        def read() -> Response:
            body = operators_page.token_withdrawal(self._accounts.token(token_id), viewer)
            return shell("Withdraw a token", body, viewer, here=OPERATORS)

        return await self._plane.work_long(read)

    async def revoke_token(self, request: Request, viewer: Viewer) -> Response:
        """Withdraw a token."""
        token_id = number_in_path(request, "tid")
        await self._visits.form(request)
        with self._visits.acting(viewer, _REVOKE, ktid=token_id):
            row = await self._plane.work(self._accounts.revoke_token, token_id)
        return redirect(link(TOKENS, {"operator": row["operator"], "done": "withdrawn"}))


def _name(request: Request) -> str:
    return clean_line(request.path_params["name"], _MAX_NAME)


def _role(text: str) -> Role | None:
    """Return a role, None for none; ErrorResponse 400."""
    if text not in ("", *Role):
        raise bad_request(f"{one_line(text, 20)!r} is not a role: use {', '.join(Role)}", field="role")
    return Role(text) if text else None


def _token_query(request: Request) -> dict[str, str]:
    """Return the parameters of the list of tokens; ErrorResponse 400."""
    asked = request.query_params
    status = clean_line(asked.get("status", ""), 40)
    known = (*TOKEN_STATUSES, "all")
    if status not in ("", *known):
        meant = nearest(status, known)
        hint = f"did you mean {meant}?" if meant else f"use {', '.join(known)}"
        raise bad_request(f"{one_line(status, 40)!r} is not a status of tokens: {hint}", field="status")
    before_id = whole_number(asked["before_id"], "before_id", 1) if asked.get("before_id") else ""
    return {
        "operator": clean_line(asked.get("operator", ""), _MAX_NAME),
        "status": status,
        "before_id": str(before_id),
    }


def _unknown(do: str) -> ErrorResponse:
    return not_found(f"{one_line(do, 20)!r} is not a change of an operator: use {', '.join(CHANGES)}")
