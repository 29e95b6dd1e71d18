"""Keep a valid access token, with as few refreshes as possible (spec, "Token Refresh Flow").

One refresh at a time: tasks that arrive during a refresh wait for it and use its result; if the refreshing task is
cancelled, the next waiter reads the files again. `token_refresh.py` performs the refresh.

Expiry is the token's ``exp`` compared with the plane's clock (the ``Date`` of its answers), so that a wrong local
clock does not matter. A token fetched moments ago is used even if its ``exp`` has passed: a plane that issues expired
tokens must not cause endless refreshes.
"""

from __future__ import annotations

import logging
import random as random_module
from collections.abc import Callable
from contextlib import suppress

import trio
from trio_util import RepeatedEvent

from certctrl.agent.log_lines import Line, log_line
from certctrl.agent.plane_anchor import PlaneAnchor
from certctrl.agent.token_claims import Claims, read_claims
from certctrl.agent.token_refresh import Fresh, TokenRefresher
from certctrl.backoff import grown, jittered
from certctrl.errors import CertctrlError, DiskError, NotRegisteredError, PlaneError
from certctrl.model.config import AgentConfig
from certctrl.model.offload import Offload
from certctrl.model.records import Tokens
from certctrl.net.control_plane import ControlPlane
from certctrl.store.disk.fs import Fs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.session import SessionState

WARN_SECONDS = 60.0
YOUNG_SECONDS = 2.0
"""A token this young is not refreshed again, even if expired by our clock; only if the plane rejects it as well."""
FIRST_BACKOFF, LAST_BACKOFF = 2.0, 30.0
"""Seconds between refreshes that a request waits for; refreshes ahead of expiry back off up to `MAX_PAUSE`. A lost
answer is requested twice immediately, so an outage costs fourteen requests per minute at most."""
MAX_PAUSE = 300.0
"""Seconds between two checks of the clock; wall clocks jump."""
SAVE_AGAIN_SECONDS = 10.0
SAVE_LAST_SECONDS = 0.5
"""How long a stop waits for the lock before it stores tokens; a write that has begun is finished."""


class TokenKeeper:
    """The device's session. Methods that wait may be cancelled at any time."""

    def __init__(
        self,
        *,
        layout: ConfigDir,
        store: SessionState,
        plane: ControlPlane,
        config: AgentConfig,
        wall_now: Callable[[], float],
        offload: Offload,
        random: Callable[[], float] = random_module.random,
        fs: Fs | None = None,
        anchor: PlaneAnchor | None = None,
    ) -> None:
        """``offload`` runs one synchronous call off the event loop; ``fs`` is the disk of ``token.lock``, in tests.

        ``anchor``: the CAs of the plane, updated by its answers.
        """
        self._layout = layout
        self._store = store
        self._plane = plane
        self._ahead = float(config.application.refresh_ahead_seconds)
        self._wall_now = wall_now
        self._offload = offload
        self._random = random
        self._log = logging.getLogger("certctrl.Token")
        self._anchor = anchor
        self._refresher = TokenRefresher(layout=layout, store=store, plane=plane, offload=offload, fs=fs, anchor=anchor)
        self._flight = trio.Lock()
        self.changed = RepeatedEvent()
        """Set when another access token is in use."""
        self._access: str | None = None
        self._claims = Claims()
        self._born = -YOUNG_SECONDS
        self._warned = False
        self._failures = 0
        self._failed: CertctrlError | None = None
        self._retry_at = 0.0

    def __repr__(self) -> str:
        return "TokenKeeper(***)"

    # --- reading --------------------------------------------------------------------------------------------

    def seen(self) -> str:
        """Return the current access token, valid or not; empty before the first one."""
        return self._access or ""

    def valid(self) -> bool:
        """Return whether there is an unexpired access token; an unreadable one counts as none.

        Reads the files at first.
        """
        with suppress(DiskError):  # the caller that needs the token gets the same error and retries
            if self._access is None and (stored := self._store.load_tokens()) is not None:
                self._use(stored)
        return bool(self._access) and not self._expired()

    def expires_at(self) -> float | None:
        """Return when the access token expires, in epoch seconds of this host's clock; None if unknown."""
        if self._claims.expires_at is None:
            return None
        return self._claims.expires_at - (self._plane.server_skew or 0.0)

    async def identity(self) -> tuple[int | None, int | None]:
        """Return user id and device id from the token; None for a missing one."""
        await self._load()
        return self._claims.user_id, self._claims.device_id

    # --- refreshing -----------------------------------------------------------------------------------------

    async def current(self) -> str:
        """Return an unexpired access token, refreshed if necessary. Raises as `refresh`."""
        await self._load()
        if self._access and not self._expired():
            return self._access
        return await self.refresh(self._access or "")

    async def refresh(self, seen: str) -> str:
        """Return an access token other than ``seen``, which was rejected or has expired.

        Any number of callers make one refresh; a failed one is not repeated before its backoff is over, and
        raises the same until then. Raises NotRegisteredError (final: the plane refuses, or there are no tokens),
        PlaneError, TransportError, DiskError and BusyError (not final; tokens are kept).
        """
        async with self._flight:
            if self._access and self._access != seen and not self._expired():
                return self._access
            if self._failed is not None and trio.current_time() < self._retry_at:
                raise self._failed.with_traceback(None)
            if self._access == seen and self._young() and not self._over():
                raise PlaneError("the control plane rejects an access token it has just issued", status=401)
            try:
                await self._refresher.fresh(seen, self._usable, self._keep)
            except CertctrlError as error:
                self._note_failure(error)
                raise
            self._failures, self._failed = 0, None
        if self._anchor is not None:
            await self._anchor.prove()
        return self.seen()

    def finish_by(self, moment: float) -> None:
        """End refreshes by a moment (Trio clock), because the agent stops."""
        self._refresher.end_by = moment

    def try_again(self) -> None:
        """Allow the next refresh immediately, even after failures: an operator requests it."""
        self._retry_at = 0.0

    async def keep_token_fresh(self) -> None:
        """Refresh ahead of expiry until cancelled. Raises NotRegisteredError if the plane refuses permanently."""
        try:
            while True:
                delay = await self._maintain()
                await trio.sleep(delay)
        finally:
            if self._refresher.unsaved:
                with trio.move_on_after(SAVE_LAST_SECONDS, shield=True):  # the last chance to store them
                    await self._save_again()

    async def _maintain(self) -> float:
        """Refresh or store what is due; return the seconds until the next check."""
        if self._refresher.unsaved and not await self._save_again():
            return SAVE_AGAIN_SECONDS
        try:
            await self._load()
        except DiskError as error:
            self._note_failure(error)
            return SAVE_AGAIN_SECONDS
        remaining = self._remaining()
        if remaining is None:
            return MAX_PAUSE
        ahead, warn = self._thresholds()
        if remaining <= warn and not self._warned:
            self._warned = True
            log_line(self._log, Line.TOKEN_EXPIRING, seconds=max(round(remaining), 0))
        if remaining > ahead:
            return min(remaining - (ahead if self._warned else max(ahead, warn)), MAX_PAUSE)
        try:
            await self.refresh(self.seen())
        except NotRegisteredError:
            raise
        except CertctrlError as error:
            pause = jittered(grown(FIRST_BACKOFF, MAX_PAUSE, self._failures), self._random())
            delay = max(self._retry_at - trio.current_time(), pause, FIRST_BACKOFF)
            log_line(self._log, Line.TOKEN_REFRESH_FAILED, why=error, delay=round(delay))
            return delay
        return FIRST_BACKOFF

    # --- internals ------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        if self._access is None and (stored := await self._offload(self._store.load_tokens)) is not None:
            self._use(stored)

    def _use(self, tokens: Tokens) -> None:
        if tokens.access_token != self._access:
            self.changed.set()
        self._access = tokens.access_token
        self._claims = read_claims(tokens.access_token)
        self._plane.features = tokens.features
        self._warned = False

    def _keep(self, fresh: Fresh) -> None:
        self._use(fresh.tokens)
        if self._claims.expires_at is None and fresh.expires_in is not None:
            now = self._plane.server_now()
            self._claims = Claims(
                expires_at=now + fresh.expires_in,
                issued_at=now,
                user_id=self._claims.user_id,
                device_id=self._claims.device_id,
            )
        if fresh.refreshed:
            self._born = trio.current_time()
            left = self._remaining() if fresh.expires_in is None else fresh.expires_in
            log_line(self._log, Line.TOKEN_REFRESHED, expires_in="?" if left is None else round(left))

    def _usable(self, access: str) -> bool:
        """Return whether a token that another process stored is usable."""
        expires_at = read_claims(access).expires_at
        return expires_at is None or expires_at - self._plane.server_now() > 0

    def _remaining(self) -> float | None:
        if self._claims.expires_at is None:
            return None
        return self._claims.expires_at - self._plane.server_now()

    def _expired(self) -> bool:
        return self._over() and not self._young()

    def _over(self) -> bool:
        """Return whether the token has expired by the plane's clock, even if it was issued expired."""
        remaining = self._remaining()
        return remaining is not None and remaining <= 0

    def _young(self) -> bool:
        return trio.current_time() - self._born < YOUNG_SECONDS

    def _thresholds(self) -> tuple[float, float]:
        """Return how many seconds before expiry to refresh and to warn; at most half of a short lifetime."""
        lifetime = self._claims.lifetime
        if lifetime is None:
            return self._ahead, WARN_SECONDS
        half = lifetime / 2
        return min(self._ahead, half), min(WARN_SECONDS, half)

    def _note_failure(self, error: CertctrlError) -> None:
        if isinstance(error, NotRegisteredError):
            if self._failed is None or str(self._failed) != str(error):
                log_line(self._log, Line.TOKEN_REFRESH_REFUSED, what=error)
        elif isinstance(error, DiskError) and str(self._failed) != str(error):
            log_line(self._log, Line.TOKEN_DISK, why=error)
        self._failures += 1
        pause = jittered(grown(FIRST_BACKOFF, LAST_BACKOFF, self._failures), self._random())
        asked = error.retry_after if isinstance(error, PlaneError) and error.retry_after is not None else 0.0
        self._failed = error
        self._retry_at = trio.current_time() + max(pause, asked)

    async def _save_again(self) -> bool:
        try:
            async with self._flight:
                return await self._refresher.save_again()
        except CertctrlError:
            return False
