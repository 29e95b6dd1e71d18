"""What an answer to anything but a poll means: its data, or the plane's error (api.md §6, safety.md T9)."""

from __future__ import annotations

from typing import Any

from certctrl.errors import BadAnswerError, PlaneError
from certctrl.protocol.wire.poll import Answer, data_of, parse_error, retry_after

_LATER = "wait a little, then try again"
_UNWELL = "try again later; if it lasts, look at the control plane's log"


class UnsupportedByPlane(PlaneError):  # an answer about the plane, not a fault
    """The plane has no such endpoint (404, 405, 501): the feature is absent, nothing is wrong."""


def data_or_error(answer: Answer, *, now: float, cap: int) -> Any:
    """Return ``data`` of a success (None when it has no body); raise its PlaneError, or BadAnswerError.

    ``now`` is wall time, for a ``Retry-After`` date in an answer without ``Date``.
    """
    if 200 <= answer.status <= 299:
        return data_of(answer, cap=cap) if answer.body and answer.status != 204 else None
    error = error_of(answer, now=now)
    if error.fix is None and (answer.status == 429 or answer.status >= 500):  # no numbers: repeats must look alike
        error.fix = _LATER if answer.status == 429 else _UNWELL
    raise error


def error_of(answer: Answer, *, now: float) -> PlaneError:
    """Return the error of an answer that is no success.

    BadAnswerError when it is no word of the plane's, with two exceptions that change no state here: a bodiless
    401 of a token guard means what it says, and 429 and 5xx mean "later" whoever says it.
    """
    try:
        return parse_error(answer, now)
    except BadAnswerError:
        if answer.status == 401 and not answer.body and _is_bearer_challenge(answer):
            return PlaneError("access token refused", status=401)
        if answer.status == 429 or answer.status >= 500:
            pause = retry_after(answer, None, now)
            return PlaneError(f"the control plane answered {answer.status}", status=answer.status, retry_after=pause)
        raise


def _is_bearer_challenge(answer: Answer) -> bool:
    return answer.headers.get("www-authenticate", "").strip().lower().startswith("bearer")
