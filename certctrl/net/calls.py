"""The base of the plane's clients: credentials, size limits, errors, and the plane's clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from certctrl.errors import BadAnswerError, PlaneError
from certctrl.model.answer import Answer
from certctrl.model.config import AgentConfig
from certctrl.protocol.wire.answer import BODY_CAP, data_of, http_date, is_bearer_challenge, parse_error, retry_after
from certctrl.protocol.wire.reader import MAX_VALUES

if TYPE_CHECKING:
    from certctrl.net.http import Http


_LATER = "wait a moment, then try again"
_SERVER_ERROR = "try again later; if it persists, check the control plane's log"


LARGE_BODY = 65_536
"""Bytes from which an answer is parsed in a thread, so that nothing else waits for it."""

_ONE = trio.CapacityLimiter(1)
"""For large answers: parsed ones need many times the memory of their bytes."""

ABSENT = (404, 405, 501)
"""Statuses of an endpoint that a plane does not have."""

T = TypeVar("T")


async def parsed(answer: Answer, parse: Callable[[], T]) -> T:
    """Return the result of ``parse``, which raises what it raises; large answers are parsed in a thread, one by one."""
    return await parsed_of(len(answer.body), parse)


async def parsed_of(size: int, parse: Callable[[], T]) -> T:
    """As `parsed`, for something of this size in bytes."""
    return parse() if size < LARGE_BODY else await trio.to_thread.run_sync(parse, limiter=_ONE)


class UnsupportedByPlane(PlaneError):
    """The plane does not have this endpoint (404, 405, 501), which is not a failure."""


def data_or_error(answer: Answer, *, now: float, cap: int, most: int = MAX_VALUES) -> Any:
    """Return ``data`` of a success; None if it has no body.

    ``now`` is wall-clock seconds, for a ``Retry-After`` date in an answer without ``Date``. Raises PlaneError or
    BadAnswerError.
    """
    if 200 <= answer.status <= 299:
        return data_of(answer, cap=cap, most=most) if answer.body and answer.status != 204 else None
    error = error_of(answer, now=now)
    if error.fix is None and (
        answer.status == 429 or answer.status >= 500
    ):  # no numbers: repeated errors must be equal
        error.fix = _LATER if answer.status == 429 else _SERVER_ERROR
    raise error


def error_of(answer: Answer, *, now: float) -> PlaneError:
    """Return the error of an answer that is not a success.

    Raises BadAnswerError if the answer is not the plane's, with two exceptions that change no state: a 401 without
    a body from a token guard is believed, and 429 and 5xx mean "later" even from a gateway.
    """
    try:
        return parse_error(answer, now)
    except BadAnswerError:
        if is_bearer_challenge(answer):
            return PlaneError("access token refused", status=401)
        if answer.status == 429 or answer.status >= 500:
            pause = retry_after(answer, None, now)
            return PlaneError(f"the control plane answered {answer.status}", status=answer.status, retry_after=pause)
        raise


class PlaneClient:
    """Exchange requests and answers with one plane; the caller owns and closes ``http``."""

    def __init__(self, http: Http, config: AgentConfig, *, wall_now: Callable[[], float]) -> None:
        self._http = http
        self._config = config
        self._wall_now = wall_now
        self._understood = False
        """Whether the last answer was of the wire contract."""
        self.server_skew: float | None = None
        """Seconds that the plane's clock is ahead of this host's, by the ``Date`` of its last answer; None: unknown."""

    def server_now(self) -> float:
        """Return the plane's time, or this host's before the first answer."""
        return self._wall_now() + (self.server_skew or 0.0)

    def own_signal_ms(self) -> int:
        """Return the ``ts_ms`` of a signal that this host makes itself: not after signals that the plane makes later.

        By it, signals of one resource supersede each other; a host's clock that is ahead would hide those of the plane.
        """
        return int((self.server_now() - 1) * 1000)  # the plane's clock is known to half a second

    async def _send(
        self,
        method: str,
        path: str,
        token: str | None = None,
        *,
        query: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        deadline: float | None = None,
        cap: int = BODY_CAP,
    ) -> Answer:
        credentials = {} if token is None else {"authorization": f"Bearer {token}"}
        answer = await self._http.request(
            method,
            path,
            query=query,
            headers=dict(headers or {}) | credentials,
            json=json,
            deadline=self._config.httpclient.request_timeout_seconds if deadline is None else deadline,
            cap=cap,
        )
        self._note_date(answer.headers)
        return answer

    def _note_date(self, headers: Mapping[str, str]) -> None:
        if (date := http_date(headers.get("date", ""))) is not None:
            self.server_skew = date + 0.5 - self._wall_now()  # a date has no fraction of a second

    async def _first_present(
        self, paths: Sequence[str], token: str, *, headers: Mapping[str, str] | None = None, cap: int = BODY_CAP
    ) -> tuple[Answer, str]:
        """Return the first answer that is not a 404 and its path, or the first 404."""
        missing: tuple[Answer, str] | None = None
        for path in paths:
            answer = await self._send("GET", path, token, headers=headers, cap=cap)
            if answer.status != 404:
                return answer, path
            missing = missing or (answer, path)
        assert missing is not None
        return missing

    def _data(self, answer: Answer, *, cap: int = BODY_CAP) -> Any:
        try:
            data = data_or_error(answer, now=self._wall_now(), cap=cap)
        except BadAnswerError:
            self._understood = False
            raise
        except PlaneError:
            self._understood = answer.is_json  # the 502 page of a gateway is not the plane
            raise
        self._understood = True
        return data

    def _succeeded(self, answer: Answer) -> None:
        """Raise unless the answer is a success with JSON or no body; a captive portal's page is not."""
        if not 200 <= answer.status <= 299:
            self._data(answer)
        elif answer.status != 204 and answer.body and not answer.is_json:
            self._understood = False
            raise BadAnswerError(f"status {answer.status} came without JSON")
