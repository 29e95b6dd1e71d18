"""Read the JSON of an HTTP answer: data, errors, Retry-After.

State changes only if status, content type *and* schema are right: the page of a captive portal counts as a network
error, even with status 200.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Any

from certctrl import lean
from certctrl.errors import BadAnswerError, PlaneError
from certctrl.model.answer import Answer
from certctrl.protocol.wire.reader import (
    MAX_VALUES,
    Misfit,
    integer,
    json_object,
    or_default,
    parse_json,
    text,
    wire_class,
)
from certctrl.text import one_line

BODY_CAP = 1_048_576
BUNDLE_CAP = 262_144
BATCH_CAP = 3 * 1_048_576
"""Bytes of an answer with many materials; the plane ends it within two thirds of that."""
MAX_ETAG = 64
"""Characters of the ETag of a material, which is kept for each certificate."""
RETRY_AFTER_CAP = 3600.0
"""Upper bound for Retry-After in seconds, so that no server can silence a host for longer."""

_ETAG = re.compile(r'(?:W/)?"?([!#-~]*)"?')
_SECONDS = re.compile(r"[+-]?[0-9]{1,400}(\.[0-9]{1,400})?([eE][+-]?[0-9]{1,9})?", re.ASCII)
_HTTP_DATE = re.compile(
    r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]{0,6},? "
    r"(?:(?P<day>\d\d)[ -](?P<month>[A-Z][a-z]{2})[ -](?P<year>\d{4}|\d\d) (?P<time>\d\d:\d\d:\d\d) GMT"
    r"|(?P<amonth>[A-Z][a-z]{2}) (?P<aday>[ \d]\d) (?P<atime>\d\d:\d\d:\d\d) (?P<ayear>\d{4}))",
    re.ASCII,
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@lean.frozen
class ErrorParams:
    """The part of an error's parameters that the agent uses."""

    retry_after: float | None = None
    """Seconds; None: not requested, or invalid."""


@lean.frozen(kw_only=True)
class ErrorBody:
    """The error object of an answer. A member that does not fit counts as absent: the status decides."""

    code: int = 0
    key: str = ""
    what: str = ""
    params: ErrorParams = ErrorParams()


@lean.frozen
class _Failure:
    error: ErrorBody


def object_of(answer: Answer, *, cap: int = BODY_CAP, most: int = MAX_VALUES) -> dict[str, Any]:
    """Return the JSON object of an answer. Raises BadAnswerError for anything else."""
    if not answer.is_json:
        kind = one_line(answer.headers.get("content-type") or "no content type", 60)
        raise BadAnswerError(
            f"status {answer.status} came with {kind} instead of JSON",
            fix="check server_url, and whether a proxy or captive portal is in between",
        )
    if len(answer.body) > cap:
        raise BadAnswerError(f"the answer is larger than {cap} bytes")
    try:
        return json_object(parse_json(answer.body, most))
    except Misfit as misfit:
        raise BadAnswerError(str(misfit)) from None


def data_of(answer: Answer, *, cap: int = BODY_CAP, most: int = MAX_VALUES) -> Any:
    """Return ``data`` of a 2xx answer with up to ``most`` values; raises BadAnswerError outside the wire contract."""
    if not 200 <= answer.status <= 299:
        raise BadAnswerError(f"status {answer.status} is not a success")
    value = object_of(answer, cap=cap, most=most)
    if "data" not in value:  # null is data
        raise BadAnswerError("the answer has no data")
    return value["data"]


def plain_etag(text: str | None, most: int) -> str:
    """Return an ETag without quotes and mark; empty if it is absent, longer than ``most`` or cannot be sent back."""
    match = _ETAG.fullmatch((text or "").strip())
    return match[1] if match is not None and len(match[1]) <= most else ""


def parse_error(answer: Answer, wall_now: float | None = None) -> PlaneError:
    """Return the error of a non-2xx answer (``{"error": {code, what, key?, params?}}``).

    Raises BadAnswerError for a redirect and for any other form: such an answer is not the plane's.
    """
    if answer.status == 304:
        raise BadAnswerError("status 304 (not modified) is not an answer to this request")
    if 300 <= answer.status <= 399:
        raise BadAnswerError(
            f"the server redirects (status {answer.status}); requests with credentials never follow",
            fix="set server_url to the address that it redirects to",
        )
    try:
        error = _read_failure(object_of(answer)).error
    except Misfit:
        raise BadAnswerError(f"status {answer.status} came without an error object") from None
    return error_from(answer.status, error, retry_after(answer, error.params, wall_now))


def error_from(status: int, error: ErrorBody, pause: float | None) -> PlaneError:
    """Return the error of an error object; ``pause``: the requested delay in seconds."""
    what = one_line(error.what) or f"status {status}"
    return PlaneError(what, status=status, key=one_line(error.key, 64), code=error.code, retry_after=pause)


def is_bearer_challenge(answer: Answer) -> bool:
    """Return whether an answer is the bodiless 401 of a token guard (RFC 6750 §3).

    A captive portal sends a page instead.
    """
    scheme = answer.headers.get("www-authenticate", "").strip().lower().split(" ")[0]
    return answer.status == 401 and not answer.body and scheme == "bearer"


def retry_after(answer: Answer, params: ErrorParams | None = None, wall_now: float | None = None) -> float | None:
    """Return the delay that the plane requests in seconds, clamped to [0, 3600]; None: not requested, or invalid.

    The ``Retry-After`` header comes first, then ``params.retry_after``. An HTTP date is relative to the answer's own
    ``Date``, so that this host's clock does not matter; without one, to ``wall_now`` (epoch seconds).
    """
    text = answer.headers.get("retry-after", "").strip()
    found = _seconds(text)
    if found is None and text:
        moment, today = http_date(text), http_date(answer.headers.get("date", ""))
        today = wall_now if today is None else today
        found = None if moment is None or today is None else moment - today
    if found is None and params is not None:
        found = params.retry_after
    return None if found is None else min(max(found, 0.0), RETRY_AFTER_CAP)


def _seconds(value: object, _: Any = None) -> float | None:
    if isinstance(value, str) and _SECONDS.fullmatch(value):
        return float(value)
    if type(value) is int:
        return float(min(max(value, -1), 2**31))  # a huge integer does not fit into a float
    if type(value) is float and not math.isnan(value):
        return value
    return None


def http_date(text: str) -> float | None:
    """Return the epoch seconds of an HTTP date in any of its three forms (RFC 9110 §5.6.7); None: not a date."""
    match = _HTTP_DATE.fullmatch(text.strip())
    if match is None:
        return None
    part = match.groupdict()
    digits, month = part["year"] or part["ayear"], part["month"] or part["amonth"]
    year = int(digits)
    if len(digits) == 2:
        year += 2000 if year < 70 else 1900
    hour, minute, second = (part["time"] or part["atime"]).split(":")
    try:
        day = datetime(year, _MONTHS.index(month) + 1, int(part["day"] or part["aday"]), tzinfo=UTC)
    except ValueError:
        return None
    if int(hour) > 23 or int(minute) > 59 or int(second) > 60:  # 60: a leap second
        return None
    return day.timestamp() + int(hour) * 3600 + int(minute) * 60 + int(second)


read_params = wire_class(ErrorParams, {"retry_after": _seconds})
_text_or_none = or_default(text(), "")
read_error = wire_class(
    ErrorBody,
    {
        "code": or_default(integer(1 - 2**31, 2**31 - 1, digits=False), 0),
        "key": _text_or_none,
        "what": _text_or_none,
        "params": or_default(read_params, ErrorParams()),
    },
)
_read_failure = wire_class(_Failure)
