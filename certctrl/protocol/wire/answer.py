"""Read the JSON of an HTTP answer: data, errors, Retry-After.

State changes only if status, content type *and* schema are right: the page of a captive portal counts as a network
error, even with status 200.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from certctrl.errors import BadAnswerError, PlaneError
from certctrl.model.answer import Answer
from certctrl.protocol.wire.reader import parse_json
from certctrl.text import kind_of, one_line

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


def object_of(answer: Answer, *, cap: int = BODY_CAP) -> dict[str, Any]:
    """Return the JSON object of an answer. Raises BadAnswerError for anything else."""
    if not answer.is_json:
        kind = one_line(answer.headers.get("content-type") or "no content type", 60)
        raise BadAnswerError(
            f"status {answer.status} came with {kind} instead of JSON",
            fix="check server_url, and whether a proxy or captive portal is in between",
        )
    if len(answer.body) > cap:
        raise BadAnswerError(f"the answer is larger than {cap} bytes")
    value = parse_json(answer.body)
    if not isinstance(value, dict):
        raise BadAnswerError(f"expected a JSON object, got {kind_of(value)}")
    return value


def data_of(answer: Answer, *, cap: int = BODY_CAP) -> Any:
    """Return ``data`` of a 2xx answer; raises BadAnswerError outside the wire contract."""
    if not 200 <= answer.status <= 299:
        raise BadAnswerError(f"status {answer.status} is not a success")
    value = object_of(answer, cap=cap)
    if "data" not in value:
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
    error = object_of(answer).get("error")
    if not isinstance(error, dict):
        raise BadAnswerError(f"status {answer.status} came without an error object")
    return error_from(answer.status, error, retry_after(answer, error.get("params"), wall_now))


def error_from(status: int, error: Mapping[str, Any], pause: float | None) -> PlaneError:
    """Return the error of an error object; ``pause``: the requested delay in seconds."""
    code, key, what = error.get("code"), error.get("key"), error.get("what")
    return PlaneError(
        one_line(what) if isinstance(what, str) and what else f"status {status}",
        status=status,
        key=one_line(key, 64) if isinstance(key, str) else "",
        code=code if type(code) is int and abs(code) < 2**31 else 0,
        retry_after=pause,
    )


def is_bearer_challenge(answer: Answer) -> bool:
    """Return whether an answer is the bodiless 401 of a token guard (RFC 6750 §3).

    A captive portal sends a page instead.
    """
    scheme = answer.headers.get("www-authenticate", "").strip().lower().split(" ")[0]
    return answer.status == 401 and not answer.body and scheme == "bearer"


def retry_after(answer: Answer, params: object = None, wall_now: float | None = None) -> float | None:
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
    if found is None and isinstance(params, dict):
        found = _seconds(params.get("retry_after"))
    return None if found is None else min(max(found, 0.0), RETRY_AFTER_CAP)


def _seconds(value: object) -> float | None:
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
