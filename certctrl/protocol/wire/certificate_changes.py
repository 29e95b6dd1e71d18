"""The certificate list by revision (feature ``delta``): pages of the plane, and the list that the device keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs

from certctrl import lean
from certctrl.errors import BadAnswerError
from certctrl.model.answer import Answer
from certctrl.model.certificate import CertificateSummary
from certctrl.protocol.wire.answer import object_of, plain_etag
from certctrl.protocol.wire.certificates import certificate_from_wire
from certctrl.protocol.wire.reader import (
    MAX_VALUES,
    Misfit,
    bounded_list,
    flag,
    from_answer,
    integer,
    or_default,
    parse_json,
    unread,
    wire_class,
)

MAX_PARTS = 4096
MAX_REVISION = 4096
"""Characters."""
_UNUSED = ("certificate_pem", "chain_pem")
"""Fields of a detail, which are never used from a list."""


@lean.frozen(kw_only=True)
class Replaced:
    """The parts of a list that an answer replaces: certificates whose id has one of these remainders."""

    divisor: int
    parts: frozenset[int]


_part = integer(le=MAX_PARTS - 1)


def _parts(value: Any, _: Any = None) -> frozenset[int]:
    return frozenset(map(_part, bounded_list(value, MAX_PARTS)))


def _checked(replaced: Replaced) -> Replaced:
    if any(part >= replaced.divisor for part in replaced.parts):
        raise Misfit(f"expected parts below {replaced.divisor}")
    return replaced


_read_replaced = wire_class(
    Replaced,
    {"divisor": integer(ge=1, le=MAX_PARTS), "parts": _parts},
    names={"divisor": "of"},
    check=_checked,
)


@lean.frozen(kw_only=True)
class _Page:
    data: list[Any]
    """Not yet structured: the JSON text of each row is kept."""
    complete: bool | None = None
    """None: a plane that ignores revisions."""
    replaced: Any = None


_read_page = wire_class(
    _Page,
    {"data": lambda value, _=None: bounded_list(value, MAX_VALUES), "complete": or_default(flag), "replaced": unread},
)


@lean.frozen(kw_only=True)
class ListPage:
    """One answer with certificates."""

    rows: Mapping[int, str]
    """The JSON object of each certificate, by id."""
    revision: str = ""
    """Of the whole list; empty: the plane does not say, so that nothing can be kept."""
    replaced: Replaced | None = None
    """The parts of the known list that differ; None: this is a page of the whole list."""
    by_revision: bool = False
    """Whether the plane answers by revision at all."""


@lean.frozen
class KnownList:
    """The certificates of a device as of a revision."""

    revision: str
    rows: Mapping[int, str]
    whole_at: float = attrs.field(default=0.0, eq=False)
    """When the whole of it was fetched last (epoch seconds); 0: unknown."""

    def certificates(self) -> list[CertificateSummary]:
        """Return the certificates by id; raises BadAnswerError if one does not fit."""
        return [certificate_from_wire(parse_json(self.rows[number])) for number in sorted(self.rows)]

    def after(self, page: ListPage, replaced: Replaced) -> KnownList:
        """Return the list with the changed parts replaced; a certificate that a part no longer has was removed."""
        kept = {number: row for number, row in self.rows.items() if number % replaced.divisor not in replaced.parts}
        return KnownList(page.revision, kept | dict(page.rows), self.whole_at)


def is_unchanged(answer: Answer, known: KnownList) -> bool:
    """Return whether an answer says that the list is the known one."""
    return answer.status == 304 and revision_of(answer) == known.revision


def revision_of(answer: Answer) -> str:
    """Return the revision in the ETag of an answer; empty if there is none that can be sent."""
    return plain_etag(answer.headers.get("etag"), MAX_REVISION)


def list_page_from_wire(answer: Answer, most: int) -> ListPage:
    """Return the page of a success; raises BadAnswerError if one row does not fit, or if there are too many."""
    page = from_answer(_read_page, object_of(answer), "certificate list")
    if len(page.data) > most:
        raise BadAnswerError(f"more than {most} certificates in one page")
    rows = dict(map(_row, page.data))
    if page.complete is None:
        return ListPage(rows=rows)
    replaced = None if page.complete else from_answer(_read_replaced, page.replaced, "replaced")
    if replaced is not None and any(number % replaced.divisor not in replaced.parts for number in rows):
        raise BadAnswerError("the changes of the certificate list do not fit together")
    return ListPage(rows=rows, revision=revision_of(answer), replaced=replaced, by_revision=True)


def _row(raw: Any) -> tuple[int, str]:
    number = certificate_from_wire(raw).id
    short = {key: value for key, value in raw.items() if key not in _UNUSED}
    return number, json.dumps(short, separators=(",", ":"))
