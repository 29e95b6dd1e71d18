"""The wire contract in one place: poll requests out, ``(status, headers, body)`` in (api.md §3 and §6).

The converters of everything else live in the ``wire_*`` modules beside this one; their names are here too,
so that ``from certctrl.protocol.wire.poll import …`` is all that other rooms need.
"""

from __future__ import annotations

import attrs

from certctrl.errors import DEVICE_REVOKED, BadAnswerError, PlaneError
from certctrl.protocol.device_flow import GrantStarted
from certctrl.protocol.events import (
    BadAnswer,
    CursorExpired,
    DeviceRevoked,
    Event,
    NoUpdates,
    Refused,
    ServerBusy,
    TokenExpired,
    Updates,
)
from certctrl.protocol.wire.answer import (
    BODY_CAP,
    BUNDLE_CAP,
    Answer,
    data_of,
    http_date,
    object_of,
    parse_error,
    retry_after,
)
from certctrl.protocol.wire.canonical import canonical_json, installs_hash, text_hash
from certctrl.protocol.wire.certificates import ca_from_wire, certificate_from_wire, materials_from_wire
from certctrl.protocol.wire.enrolment import (
    Refreshed,
    Registration,
    grant_event,
    grant_from_wire,
    refresh_refused,
    refreshed_from_wire,
    registration_from_wire,
)
from certctrl.protocol.wire.install_config import (
    check_local_dependencies,
    install_config_from_wire,
    install_order,
    items_from_local,
)
from certctrl.protocol.wire.install_items import CA_FILES, CERT_FILES
from certctrl.protocol.wire.reader import Misfit, Reader, parse_json
from certctrl.protocol.wire.signals import ack_event, signal_from_wire

__all__ = [
    "BODY_CAP",
    "BUNDLE_CAP",
    "CA_FILES",
    "CERT_FILES",
    "CURSOR_LIMIT",
    "UPDATES_PATH",
    "Answer",
    "GrantStarted",
    "Misfit",
    "PollRequest",
    "Reader",
    "Refreshed",
    "Registration",
    "ack_event",
    "ca_from_wire",
    "canonical_json",
    "certificate_from_wire",
    "check_local_dependencies",
    "cursor_of_etag",
    "data_of",
    "grant_event",
    "grant_from_wire",
    "http_date",
    "install_config_from_wire",
    "install_order",
    "installs_hash",
    "items_from_local",
    "materials_from_wire",
    "object_of",
    "parse_error",
    "parse_json",
    "poll_event",
    "refresh_refused",
    "refreshed_from_wire",
    "registration_from_wire",
    "retry_after",
    "signal_from_wire",
    "text_hash",
]

UPDATES_PATH = "/apiv1/devices/self/updates"
CURSOR_LIMIT = 1024
"""Characters; an opaque position, not a store."""

FREE_HEADER, FREE_VALUE = "cert-ctrl-next-page", "free"
"""On a full page: the poll with its cursor, the first one, takes nothing from the plane's rate limit."""

CURSOR_EXPIRED = "CURSOR_EXPIRED"
CURSOR_EXPIRED_CODE = 40901


@attrs.frozen
class PollRequest:
    """One ``GET`` of the updates."""

    cursor: str | None
    limit: int
    """1 to 100."""
    wait: int = 0
    """Seconds of long-poll, 0 to 30."""

    @property
    def path(self) -> str:
        """Return the path."""
        return UPDATES_PATH

    def query(self) -> dict[str, str]:
        """Return the query parameters, not yet escaped."""
        query = {"limit": str(self.limit), "wait": str(self.wait)}
        return query if self.cursor is None else {"cursor": self.cursor} | query

    def headers(self) -> dict[str, str]:
        """Return ``If-None-Match`` when the cursor can stand in a header; the query carries it anyway."""
        if self.cursor is None or not all("!" <= c <= "~" and c not in '",' for c in self.cursor):
            return {}
        return {"if-none-match": self.cursor}


def cursor_of_etag(etag: str | None) -> str | None:
    """Return the cursor inside an ``ETag``, quoted, weak or bare; None when there is none."""
    text = (etag or "").strip()
    if text[:2] in ("W/", "w/"):
        text = text[2:]
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = text[1:-1]
    return text if text and _is_cursor(text) else None


def _is_cursor(text: str) -> bool:
    return len(text) <= CURSOR_LIMIT and text.isprintable() and text == text.strip()


def poll_event(answer: Answer, limit: int, wall_now: float | None = None) -> Event:
    """Return what an answer to a poll means; never raises.

    ``limit`` is the asked page size, ``wall_now`` (epoch seconds) only serves a ``Retry-After`` date in an
    answer without a ``Date``. Status first, then ``error.key``, then ``error.code``; what is not JSON of the
    contract is a BadAnswer with any status.
    """
    if answer.status == 204:
        pause = retry_after(answer, None, wall_now)
        return NoUpdates(cursor_of_etag(answer.headers.get("etag")), retry_after=pause)
    try:
        if answer.status == 200:
            return _page(answer, limit, wall_now)
        if 200 <= answer.status <= 299:
            raise BadAnswerError(f"status {answer.status} is no answer to a poll")
        return _error_event(parse_error(answer, wall_now))
    except BadAnswerError as error:
        if answer.status == 401 and not answer.body and _is_bearer_challenge(answer):
            return TokenExpired()
        pause = retry_after(answer, None, wall_now) if answer.status == 429 or answer.status >= 500 else None
        return BadAnswer(error.what, status=answer.status, retry_after=pause)


def _is_bearer_challenge(answer: Answer) -> bool:
    """True for a bodiless 401 of a token guard (RFC 6750 §3); a captive portal sends a page instead."""
    return answer.headers.get("www-authenticate", "").strip().lower().split(" ")[0] == "bearer"


def _page(answer: Answer, limit: int, wall_now: float | None) -> Event:
    try:
        data = Reader(data_of(answer))
        name, cursor = data.find("cursor")
        if cursor is not None and not (isinstance(cursor, str) and _is_cursor(cursor)):
            raise Misfit(f"{data.at(name)}: expected at most {CURSOR_LIMIT} printable characters")
        listed = data.find("signals")[1]
        if listed is not None and not isinstance(listed, list):
            raise Misfit(f"{data.at('signals')}: expected a list")
    except Misfit as misfit:
        raise BadAnswerError(str(misfit)) from None
    seen = cursor if cursor is not None else cursor_of_etag(answer.headers.get("etag"))
    pause = retry_after(answer, None, wall_now)
    if not listed:
        return NoUpdates(seen, status=200, retry_after=pause)
    signals = tuple(map(signal_from_wire, listed))
    free = answer.headers.get(FREE_HEADER, "") == FREE_VALUE
    return Updates(seen, signals, len(signals) >= limit, free=free, retry_after=pause)


def _error_event(error: PlaneError) -> Event:
    if error.status == 401:
        return TokenExpired()
    if error.status == 403 and error.key == DEVICE_REVOKED:
        return DeviceRevoked(error.what)
    if error.status == 409 and (error.key == CURSOR_EXPIRED or error.code == CURSOR_EXPIRED_CODE):
        return CursorExpired()
    if error.status == 429 or error.status >= 500:
        return ServerBusy(error.status, error.retry_after, error.key)
    return Refused(error.status, error.key, error.code, error.what)
