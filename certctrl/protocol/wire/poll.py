"""Poll requests out, poll answers in (spec "Polling Endpoint")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from certctrl import lean
from certctrl.errors import DEVICE_REVOKED, BadAnswerError, PlaneError
from certctrl.model.answer import Answer
from certctrl.model.signals import Signal
from certctrl.protocol.events import (
    BadAnswer,
    CursorExpired,
    DeviceRevoked,
    NoUpdates,
    PollAnswer,
    Refused,
    ServerBusy,
    TokenExpired,
    Updates,
)
from certctrl.protocol.wire.answer import data_of, is_bearer_challenge, parse_error, retry_after
from certctrl.protocol.wire.reader import Misfit, bounded_list, flag, from_answer, or_default, wire_class
from certctrl.protocol.wire.signals import signal_from_wire

UPDATES_PATH = "/apiv1/devices/self/updates"
MAX_SIGNALS = 1000
"""Maximum signals of one page, even if more were requested; a longer page is unusable as a whole."""
CURSOR_LIMIT = 1024
"""Characters; a cursor is an opaque position."""
LEAST_HELD = 0.7
"""Least part of its wait for which a control plane holds a poll."""

FREE_HEADER, FREE_VALUE = "cert-ctrl-next-page", "free"
"""Header of a full page: the first poll with its cursor does not count against the plane's rate limit."""

CURSOR_EXPIRED = "CURSOR_EXPIRED"
CURSOR_EXPIRED_CODE = 40901


@lean.frozen
class PollRequest:
    """One ``GET`` of the updates endpoint."""

    cursor: str | None
    limit: int
    """1 to 100."""
    wait: int = 0
    """Long-poll seconds, 0 to 30."""

    @property
    def path(self) -> str:
        """The path of the endpoint."""
        return UPDATES_PATH

    def query(self) -> dict[str, str]:
        """Return the query parameters, unescaped."""
        query = {"limit": str(self.limit), "wait": str(self.wait)}
        return query if self.cursor is None else {"cursor": self.cursor} | query

    def headers(self) -> dict[str, str]:
        """Return ``If-None-Match`` if the cursor is valid in a header; the query contains it in any case."""
        if self.cursor is None or not all("!" <= c <= "~" and c not in '",' for c in self.cursor):
            return {}
        return {"if-none-match": self.cursor}


def cursor_of_etag(etag: str | None) -> str | None:
    """Return the cursor in an ``ETag``, quoted, weak or bare; None if there is none."""
    text = (etag or "").strip()
    if text[:2] in ("W/", "w/"):
        text = text[2:]
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = text[1:-1]
    return text if text and _is_cursor(text) else None


def _is_cursor(text: str) -> bool:
    return len(text) <= CURSOR_LIMIT and text.isprintable() and text == text.strip()


def poll_event(answer: Answer, limit: int, wall_now: float | None = None) -> PollAnswer:
    """Return the event for an answer to a poll; never raises.

    ``limit`` is the requested page size; ``wall_now`` (epoch seconds) is for a ``Retry-After`` date in an answer
    without a ``Date``. The status decides, then ``error.key``, then ``error.code``. Anything but JSON of the wire
    contract is a BadAnswer, even with status 200.
    """
    if answer.status == 204:
        pause = retry_after(answer, None, wall_now)
        return NoUpdates(cursor_of_etag(answer.headers.get("etag")), retry_after=pause)
    try:
        if answer.status == 200:
            return _page(answer, limit, wall_now)
        if 200 <= answer.status <= 299:
            raise BadAnswerError(f"status {answer.status} is not an answer to a poll")
        return error_event(parse_error(answer, wall_now))
    except BadAnswerError as error:
        if is_bearer_challenge(answer):
            return TokenExpired()
        pause = retry_after(answer, None, wall_now) if answer.status == 429 or answer.status >= 500 else None
        return BadAnswer(error.what, status=answer.status, retry_after=pause)


def _cursor(value: Any, _: Any = None) -> str:
    if not isinstance(value, str) or not _is_cursor(value):
        raise Misfit(f"expected at most {CURSOR_LIMIT} printable characters")
    return value


@lean.frozen
class _Page:
    cursor: str | None = None
    signals: Sequence[Any] = ()
    """Not yet structured: a malformed signal must not fail the page."""
    more: bool = False
    """Whether a pushed page is full, so that the next one follows."""


_read_page = wire_class(
    _Page,
    {
        "cursor": _cursor,
        "signals": lambda value, _=None: bounded_list(value, MAX_SIGNALS),
        "more": or_default(flag, False),
    },
)


def cursor_from_wire(value: object) -> str:
    """Return a cursor; raises BadAnswerError for anything else."""
    if not isinstance(value, str) or not value or not _is_cursor(value):
        raise BadAnswerError("a cursor is not a short printable text")
    return value


def page_from_wire(data: object) -> tuple[str | None, tuple[Signal, ...], bool]:
    """Return cursor, signals and ``more`` of a pushed page; raises BadAnswerError if it does not fit."""
    page = from_answer(_read_page, data, "data")
    return page.cursor, tuple(map(signal_from_wire, page.signals)), page.more


def _page(answer: Answer, limit: int, wall_now: float | None) -> PollAnswer:
    page = from_answer(_read_page, data_of(answer), "data")
    seen = page.cursor if page.cursor is not None else cursor_of_etag(answer.headers.get("etag"))
    pause = retry_after(answer, None, wall_now)
    if not page.signals:
        return NoUpdates(seen, status=200, retry_after=pause)
    signals = tuple(map(signal_from_wire, page.signals))
    free = answer.headers.get(FREE_HEADER) == FREE_VALUE
    return Updates(seen, signals, len(signals) >= limit, free=free, retry_after=pause)


def error_event(error: PlaneError) -> PollAnswer:
    """Return the event for an error of the plane."""
    if error.status == 401:
        return TokenExpired()
    if error.status == 403 and error.key == DEVICE_REVOKED:
        return DeviceRevoked(error.what)
    if error.status == 409 and (error.key == CURSOR_EXPIRED or error.code == CURSOR_EXPIRED_CODE):
        return CursorExpired()
    if error.status == 429 or error.status >= 500:
        return ServerBusy(error.status, error.retry_after, error.key)
    return Refused(error.status, error.key, error.code, error.what)
