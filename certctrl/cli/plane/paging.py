"""The filter and the paging that all lists have whose rows come in one answer: ``--match``, ``--limit``, ``--after``."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.core import TyperOption

from certctrl import lean
from certctrl.cli.output import table, write_error, write_line
from certctrl.cli.plane.connection import OperatorCommand, show
from certctrl.errors import UsageError
from certctrl.text import nearest, one_line

Row = Any
"""A row of a list, as the control plane sends it."""
_META = "certctrl.plane.page"


@lean.define
class Page:
    """Which rows of a list are wanted."""

    match: str = ""
    """A text that each row must show."""
    limit: int = 0
    """0 means all."""
    after: str = ""
    """Name or id of the row before the first one."""


class ListCommand(OperatorCommand):
    """A command that shows a list, with the options that choose rows."""

    def own_options(self) -> list[TyperOption]:
        """Return the options that choose rows."""
        return [
            _option("--match", "match", "TEXT", "Only rows that show this text, in upper or lower case."),
            _option("--limit", "limit", "N", "At most N rows; 0: all, the default.", number=True),
            _option("--after", "after", "NAME|ID", "Only rows after the one with this name or id: the next page."),
        ]


def _option(flag: str, name: str, metavar: str, about: str, *, number: bool = False) -> TyperOption:
    def take(ctx: Any, param: Any, value: Any) -> None:
        if number and value is not None and value < 0:
            raise typer.BadParameter(f"{value} is not in the range x>=0.", ctx=ctx, param=param)
        if value is not None:
            setattr(_page(ctx), name, value)

    return TyperOption(
        param_decls=[flag],
        metavar=metavar,
        type=int if number else str,
        help=about,
        expose_value=False,
        callback=take,
        default=None,
    )


def _page(ctx: Any) -> Page:
    found: Page = ctx.meta.setdefault(_META, Page())
    return found


def refuse_page(ctx: Any, fix: str) -> None:
    """Raise UsageError if rows are chosen although no list is shown."""
    if _page(ctx) != Page():
        raise UsageError("--match, --limit and --after are for the list", fix=fix)


def chosen(
    ctx: Any, rows: Sequence[Row], key: Callable[[Row], str], cells: Callable[[Row], Sequence[str]]
) -> list[Row]:
    """Return the rows that are wanted, and say how to continue. Raises UsageError if there is no row to start after.

    ``key`` returns the name or id of a row, ``cells`` the texts that it shows.
    """
    page = _page(ctx)
    keys = [key(row) for row in rows]
    if page.after and page.after not in keys:
        meant = nearest(page.after, keys)
        fix = f"did you mean {one_line(meant)}?" if meant else "leave it out, which begins with the first row"
        raise UsageError(f"--after: the list has no {one_line(page.after, 60)!r}", fix=fix)
    rest = rows[keys.index(page.after) + 1 :] if page.after else rows
    found = [row for row in rest if page.match.lower() in "\n".join((key(row), *cells(row))).lower()]
    if not found and page.match and not page.after and (meant := nearest(page.match, keys)):
        write_error(f"note: no row shows {one_line(page.match, 60)!r}; did you mean {one_line(meant)}?")
    if page.limit and len(found) > page.limit:
        found = found[: page.limit]
        write_error(f"note: there are more: add --after {shlex.quote(key(found[-1]))}")
    return found


def show_list(
    ctx: Any,
    rows: Sequence[Row],
    heads: Sequence[str],
    cells: Callable[[Row], Sequence[str]],
    *,
    key: str = "name",
    none: str,
) -> None:
    """Print the rows that are wanted, as a table or JSON; ``none`` if the list is empty."""
    found = chosen(ctx, rows, lambda row: str(row[key]), cells)
    empty = "no row fits" if rows else none
    show(ctx, found, lambda: table(heads, [cells(row) for row in found]) if found else write_line(empty))
