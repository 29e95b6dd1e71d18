"""Fetch the material of renewals, that of several with one request.

The dispatcher reports which renewals will need their material (`expect`). If there are two or more, and the plane has
``batch-fetch``, the first handler fetches the material of all, and the others find theirs here. Each handler waits
within the time limit of its own signal, and an item that the plane refuses fails only its own signal.

A failed request for many fails no certificate: for a while, each is fetched alone, as from planes without
``batch-fetch``. Material is only kept for the signals that expected it, because a later signal may
announce a newer one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

from certctrl import lean
from certctrl.backoff import grown
from certctrl.errors import BadAnswerError, CertctrlError, NotRegisteredError, TransportError
from certctrl.model.certificate import DeployMaterials
from certctrl.model.features import BATCH_FETCH
from certctrl.net.control_plane import ControlPlane
from certctrl.protocol.wire.certificates import MAX_FETCHED, Fetched

Authorized = Callable[[Callable[[str], Awaitable[Any]]], Awaitable[Any]]
"""Calls with an access token (``Agent.authorized``)."""

FRESH_SECONDS = 60.0
"""How long a material is kept for its handler; after that, it is fetched again."""
FIRST_PAUSE, LAST_PAUSE = 60.0, 3600.0
"""Seconds without requests for many after one that failed; doubled by each further failure."""


@lean.frozen
class _Found:
    result: Fetched
    at: float


class Fetches:
    """The materials that handlers want, and those that were fetched for them."""

    def __init__(self, plane: ControlPlane, authorized: Authorized, known_etag: Callable[[int], str]) -> None:
        """``known_etag`` returns the ETag of what this host has of a certificate; empty: nothing, or unknown."""
        self._plane = plane
        self._authorized = authorized
        self._known_etag = known_etag
        self._wanted: dict[int, None] = {}
        """Certificates whose handlers need their material or will, in this order."""
        self._found: dict[int, _Found] = {}
        self._alone: set[int] = set()
        """Wanted certificates that an answer for many lacked; fetched alone, so that no request is repeated forever."""
        self._asking = trio.Lock()
        """One request for many at a time, which bounds their memory."""
        self._most = MAX_FETCHED
        self._failures = 0
        self._alone_until = float("-inf")

    def expect(self, cert_id: int) -> None:
        """Note that a handler will need the material of a certificate; at most one per certificate at a time."""
        self._wanted[cert_id] = None

    def ended(self, cert_id: int) -> None:
        """Note that the handler of a certificate has ended, or will not run."""
        self._wanted.pop(cert_id, None)
        self._found.pop(cert_id, None)
        self._alone.discard(cert_id)

    async def fetch(self, cert_id: int) -> DeployMaterials | None:
        """Return the sealed material of a certificate; None if this host has the plane's.

        Raises as ``ControlPlane.fetch_materials``.
        """
        while self._others(cert_id):
            async with self._asking:
                if others := self._others(cert_id):  # otherwise another task fetched it while this one waited
                    await self._fetch_many([cert_id, *others])
                    break
        self._wanted.pop(cert_id, None)
        found = self._found.pop(cert_id, None)
        if found is None:
            return await self._fetch_alone(cert_id)
        if isinstance(found.result, CertctrlError):
            raise found.result
        return found.result

    async def _fetch_alone(self, cert_id: int) -> DeployMaterials | None:
        found: DeployMaterials | None
        if etag := self._known_etag(cert_id):
            found = await self._authorized(lambda token: self._plane.fetch_changed_materials(token, cert_id, etag))
        else:
            found = await self._authorized(lambda token: self._plane.fetch_materials(token, cert_id))
        return found

    def _others(self, cert_id: int) -> list[int]:
        """Return the certificates to fetch together with this one; empty: it is here, or it is fetched alone."""
        now = trio.current_time()
        for number in [number for number, one in self._found.items() if now > one.at + FRESH_SECONDS]:
            del self._found[number]
        if cert_id in self._found or cert_id in self._alone or now < self._alone_until:
            return []
        if BATCH_FETCH not in self._plane.features:
            return []
        known = self._found.keys() | self._alone
        others = [number for number in self._wanted if number != cert_id and number not in known]
        return others[: max(0, min(self._most, MAX_FETCHED - len(self._found)) - 1)]

    async def _fetch_many(self, cert_ids: Sequence[int]) -> None:
        try:
            found = await self._answer(cert_ids)
        except NotRegisteredError:
            raise
        except CertctrlError:  # the requests for single certificates report what is wrong
            self._failures += 1
            self._most = max(2, len(cert_ids) // 2)  # perhaps too many for a slow connection
            self._alone_until = trio.current_time() + grown(FIRST_PAUSE, LAST_PAUSE, self._failures)
            return
        self._failures, self._most = 0, min(MAX_FETCHED, 2 * self._most)
        now = trio.current_time()
        self._found |= {number: _Found(one, now) for number, one in found.items() if number in self._wanted}
        self._alone.update(number for number in cert_ids if number in self._wanted and number not in found)

    async def _answer(self, cert_ids: Sequence[int]) -> dict[int, Fetched]:
        wanted = {cert_id: self._known_etag(cert_id) for cert_id in cert_ids}

        async def fetch(token: str) -> dict[int, Fetched]:
            return await self._plane.fetch_many_materials(token, wanted)

        began = trio.current_time()
        try:
            found: dict[int, Fetched] = await self._authorized(fetch)
        except TransportError as error:
            if isinstance(error, BadAnswerError) or trio.current_time() > began + 1:
                raise
            found = await self._authorized(fetch)  # the kept connection may have been closed; reading twice is safe
        return found
