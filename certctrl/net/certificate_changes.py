"""CertificateChanges: the certificate list by revision (feature ``delta``), and the features of a plane."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import trio

from certctrl.errors import BadAnswerError
from certctrl.model.answer import Answer
from certctrl.model.config import AgentConfig
from certctrl.model.features import DELTA
from certctrl.net.calls import ABSENT, parsed
from certctrl.net.enrolment import Enrolment

if TYPE_CHECKING:
    from certctrl.net.http import Http
    from certctrl.protocol.wire.certificate_changes import KnownList, ListPage

PAGE = 500
MAX_CERTIFICATES = 20_000
"""Certificates of one device."""
MAX_LIST_BYTES = 12 * 1024 * 1024
"""Memory of all texts of the list of certificates."""
MAX_PAGES = MAX_CERTIFICATES // PAGE + 2
_LIST = "/apiv1/devices/self/certificates"


class CertificateChanges(Enrolment):
    """Requests that depend on what the plane has announced."""

    def __init__(self, http: Http, config: AgentConfig, *, wall_now: Callable[[], float]) -> None:
        super().__init__(http, config, wall_now=wall_now)
        self.features: frozenset[str] = frozenset()
        """Features that the plane announced with this session, without those that it turned out to lack."""
        self._listing = trio.Lock()
        """One list at a time: it is the largest answer of a plane, and several handlers may request it."""

    def lacks(self, feature: str, answer: Answer) -> bool:
        """Return whether the plane lacks an announced feature after all (404, 405, 501); it is not used again.

        Until the next session. Only for endpoints that a plane with the feature always has.
        """
        if answer.status not in ABSENT:
            return False
        self.features -= {feature}
        return True

    async def fetch_changes(self, token: str, known: KnownList | None) -> KnownList | None:
        """Return the certificate list with its revision, ``known`` itself if it is current; None if the plane has none.

        One row that does not fit fails the call. The revision is empty if the list changed while its pages were
        fetched, so that the next call fetches it whole.
        """
        from certctrl.protocol.wire.certificate_changes import KnownList  # here: only for planes with revisions

        async with self._listing:
            page = await self._list_page(token, 0, known)
            if page is None:
                return known if DELTA in self.features else None
            if page.replaced is not None and known is not None:
                changed = known.after(page, page.replaced)
                _require_bounded(changed.rows)
                return changed
            rows, revision = dict(page.rows), page.revision
            for _ in range(MAX_PAGES):
                known_before = len(rows)
                if len(page.rows) < PAGE:
                    return KnownList(revision, rows)
                if (page := await self._list_page(token, max(rows), None)) is None:
                    return None
                revision = revision if page.revision == revision else ""
                rows |= page.rows
                _require_bounded(rows)
                if len(rows) == known_before:  # a plane without paging
                    return KnownList(revision, rows)
            raise BadAnswerError(f"the certificate list does not end after {MAX_PAGES} pages")

    async def _list_page(self, token: str, after_id: int, known: KnownList | None) -> ListPage | None:
        """Return a page; None if the known list is current, or if the plane has no revisions: then it lacks the feature."""
        from certctrl.protocol.wire.certificate_changes import is_unchanged, list_page_from_wire

        query: dict[str, str | int] = {
            "after_id": after_id,
            "limit": PAGE,
            "updated_since": known.revision if known is not None else "",
        }
        headers = {"if-none-match": f'"{known.revision}"'} if known is not None else {}
        answer = await self._send("GET", _LIST, token, query=query, headers=headers)
        if known is not None and is_unchanged(answer, known):
            return None
        if answer.status == 400 or answer.status in ABSENT:
            self.features -= {DELTA}
            return None
        self._understood = False
        if not 200 <= answer.status <= 299:
            self._data(answer)
        page = await parsed(answer, partial(list_page_from_wire, answer, MAX_CERTIFICATES))
        self._understood = True
        if page.replaced is not None and known is None:
            raise BadAnswerError("the plane sends changes of a certificate list that this host does not have")
        if not page.by_revision:
            self.features -= {DELTA}
            return None
        return page


def _require_bounded(rows: Mapping[int, str]) -> None:
    """Raise BadAnswerError for a list that is too long to be one device's."""
    if len(rows) > MAX_CERTIFICATES:
        raise BadAnswerError(f"the certificate list does not end after {MAX_CERTIFICATES} certificates")
    if sum(map(len, rows.values())) > MAX_LIST_BYTES:
        raise BadAnswerError(f"the certificate list needs more than {MAX_LIST_BYTES >> 20} MiB of memory")
