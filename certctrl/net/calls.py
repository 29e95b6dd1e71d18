"""One exchange with the plane: credentials, caps, the plane's clock, and whether it was understood."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from certctrl.errors import BadAnswerError, PlaneError
from certctrl.model.answer import Answer
from certctrl.model.config import AgentConfig
from certctrl.protocol.wire.answer import BODY_CAP, data_of, http_date, is_bearer_challenge, parse_error, retry_after

if TYPE_CHECKING:
    from certctrl.net.http import Http


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
        if is_bearer_challenge(answer):
            return PlaneError("access token refused", status=401)
        if answer.status == 429 or answer.status >= 500:
            pause = retry_after(answer, None, now)
            return PlaneError(f"the control plane answered {answer.status}", status=answer.status, retry_after=pause)
        raise


class PlaneClient:
    """The base of the plane's clients. The HTTP client belongs to the caller."""

    def __init__(self, http: Http, config: AgentConfig, *, wall_now: Callable[[], float]) -> None:
        self._http = http
        self._config = config
        self._wall_now = wall_now
        self._understood = False
        """True while the last answer was of the wire contract."""
        self.server_skew: float | None = None
        """Seconds the plane's clock is ahead of this host's, by the ``Date`` of its last answer; None: not heard."""

    def server_now(self) -> float:
        """Return the time as the plane sees it; this host's wall clock while the plane was not heard."""
        return self._wall_now() + (self.server_skew or 0.0)

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
        if (date := http_date(answer.headers.get("date", ""))) is not None:
            self.server_skew = date + 0.5 - self._wall_now()  # a date is cut to the second
        return answer

    async def _first_present(
        self, paths: Sequence[str], token: str, *, headers: Mapping[str, str] | None = None, cap: int = BODY_CAP
    ) -> tuple[Answer, str]:
        """Return the first answer that is no 404 and its path; the first 404 when all are."""
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
            self._understood = answer.is_json  # a gateway's 502 page says "later", but not that this is the plane
            raise
        self._understood = True
        return data

    def _succeeded(self, answer: Answer) -> None:
        """Raise unless the answer is a success, with JSON or nothing: a portal's page with 200 is none."""
        if not 200 <= answer.status <= 299:
            self._data(answer)
        elif answer.status != 204 and answer.body and not answer.is_json:
            self._understood = False
            raise BadAnswerError(f"status {answer.status} came with something else than JSON")
