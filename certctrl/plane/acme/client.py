"""AcmeClient: signed requests to one CA by one account.

Requests with rejected nonces are repeated, and short pauses that the CA requests are waited for. A longer pause is an
IssuerError with the seconds to wait, so that the order continues later.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import trio

from certctrl import lean
from certctrl.model.answer import Answer
from certctrl.plane.acme.answers import Directory, document, invalid_answer, read_directory
from certctrl.plane.acme.headers import replay_nonce, retry_after
from certctrl.plane.acme.http import CaHttp
from certctrl.plane.acme.jws import AccountKey, signed_request
from certctrl.plane.acme.nonces import Nonces
from certctrl.plane.acme.problems import AcmeError, read_problem, refusal
from certctrl.plane.issuers.issuer import IssuerError

NONCE_TRIES = 12
"""If a CA rejects half of all nonces, one request in four thousand fails."""
SHORT_PAUSE = 20.0
"""Longest Retry-After, in seconds, that a request waits for."""
_BUSY_TRIES = 3
_SOONEST, _LATEST = 60.0, 3600.0
"""Bounds, in seconds, of the pause before an order that takes long continues."""
_MAX_ASKED = 60.0
"""Longest Retry-After that polling follows: ZeroSSL requests a day where it needs seconds, with proofs published."""
_FIRST_PAUSE, _MAX_PAUSE, _PAUSE_GROWTH = 0.05, 10.0, 1.6


@lean.define
class CaState:
    """State about a CA that a process keeps between orders."""

    nonces: Nonces
    directory: Directory | None = None
    directory_at: float = 0.0
    """When it was read; seconds since the epoch."""


class AcmeClient:
    """Requests of one account; ``account_url`` is empty until the account is known."""

    def __init__(
        self,
        http: CaHttp,
        directory_url: str,
        key: AccountKey,
        known: CaState,
        wall_now: Callable[[], float],
        account_url: str = "",
    ) -> None:
        self.http = http
        self.key = key
        self.account_url = account_url
        self.wall_now = wall_now
        self._directory_url = directory_url
        self._known = known

    async def directory(self, *, max_age: float = 3600.0) -> Directory:
        """Return the directory; one older than ``max_age`` seconds is read again."""
        age = self.wall_now() - self._known.directory_at
        if self._known.directory is None or not 0 <= age < max_age:
            answer = await self.http.request("GET", self._directory_url)
            self.raise_refused(answer, "to show its directory")
            self._known.directory = read_directory(document(answer, "directory"), self.http.check_url)
            self._known.directory_at = self.wall_now()
        return self._known.directory

    async def post(
        self, url: str, payload: Mapping[str, Any] | None, doing: str, *, key: AccountKey | None = None
    ) -> Answer:
        """Send a signed request and return the answer; ``payload`` None: POST-as-GET.

        ``doing`` names the request in errors. With ``key`` the request carries that public key instead of the account.
        Raises AcmeError if the CA refuses, IssuerError if it cannot be reached or understood.
        """
        busy = 0
        for _ in range(NONCE_TRIES):
            nonce = self._known.nonces.take() or await self._new_nonce()
            account = "" if key is not None else self.account_url
            body = signed_request(key or self.key, url, payload, nonce=nonce, account_url=account)
            answer = await self.http.request("POST", url, body)
            self._known.nonces.put(replay_nonce(answer.headers))
            if answer.status < 400:
                return answer
            error = self._refused(answer, doing)
            if error.problem.kind == "badNonce":
                continue
            pause = error.retry_after
            if answer.status != 503 or pause is None or pause > SHORT_PAUSE or busy == _BUSY_TRIES:
                raise error
            busy += 1
            await trio.sleep(max(pause, _FIRST_PAUSE))
        raise IssuerError(
            f"the CA refused {doing}: it rejected {NONCE_TRIES} nonces in a row",
            fix="wait; the order is tried again",
        )

    async def post_as_get(self, url: str, what: str) -> tuple[dict[str, Any], Answer]:
        """Return the object at a URL of the CA, with its answer."""
        answer = await self.post(url, None, f"to show the {what}")
        return document(answer, what), answer

    async def _new_nonce(self) -> str:
        directory = await self.directory()
        answer = await self.http.request("HEAD", directory.new_nonce)
        self.raise_refused(answer, "a nonce")
        nonce = replay_nonce(answer.headers)
        if nonce is None:
            raise invalid_answer("answer to newNonce", "it has no Replay-Nonce, or a malformed one")
        return nonce

    def raise_refused(self, answer: Answer, doing: str) -> None:
        """Raise AcmeError if an answer is a refusal."""
        if answer.status >= 400:
            raise self._refused(answer, doing)

    def _refused(self, answer: Answer, doing: str) -> AcmeError:
        try:
            found = json.loads(answer.body)
        except (ValueError, RecursionError):
            found = None
        pause = retry_after(answer.headers, self.wall_now())
        return refusal(doing, read_problem(found, answer.status), pause, of_request=True)


class Polling:
    """The pauses between polls of an object that the CA is processing, for at most ``seconds``."""

    def __init__(self, what: str, seconds: float) -> None:
        self._what = what
        self._seconds = seconds
        self._deadline = trio.current_time() + seconds
        self._pause = _FIRST_PAUSE

    async def pause(self, asked: float | None) -> None:
        """Wait as long as the CA asks, up to a minute, otherwise for a growing time; IssuerError if the time is up."""
        seconds = self._pause if asked is None else min(max(asked, _FIRST_PAUSE), _MAX_ASKED)
        if trio.current_time() + seconds > self._deadline:
            later = min(max(asked or 0.0, _SOONEST), _LATEST)
            raise IssuerError(
                f"the CA has not finished the {self._what} within {self._seconds:.0f} s",
                fix="wait; the same order continues later",
                retry_after=later,
            )
        self._pause = min(self._pause * _PAUSE_GROWTH, _MAX_PAUSE)
        await trio.sleep(seconds)
