"""TokenKeeper: always a usable access token, with as few refreshes as can be (spec, "Token Refresh Flow").

One flight at a time: whoever comes while a refresh is under way waits for it and takes its result; when the
leader is cancelled, the next waiter finds the files as they are then. How a token is spent is `token_refresh.py`.

Expiry is the token's own ``exp`` against the plane's clock (the ``Date`` of its answers), so that a wrong clock
here costs nothing. A token that was fetched moments ago is used whatever its ``exp`` says: a plane that issues
expired tokens must not make us refresh without end.
"""

from __future__ import annotations

import logging
import random as random_module
from collections.abc import Callable
from contextlib import suppress

import trio

from certctrl.agent.log_lines import Line, log_line
from certctrl.agent.token_claims import Claims, read_claims
from certctrl.agent.token_refresh import Fresh, Offload, TokenRefresher
from certctrl.backoff import grown, jittered
from certctrl.errors import CertctrlError, DiskError, NotRegisteredError, PlaneError
from certctrl.model.config import AgentConfig
from certctrl.net.control_plane import ControlPlane
from certctrl.store.disk.fs import Fs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.session import SessionState

WARN_SECONDS = 60.0
YOUNG_SECONDS = 2.0
"""A token this young is not refreshed again, not even after a 401."""
FIRST_BACKOFF, LAST_BACKOFF = 2.0, 30.0
"""Seconds between tries that somebody waits for; ahead of need it goes on up to `LONGEST_NAP`. A lost answer is asked
for twice at once, so a minute of trouble costs fourteen requests at most."""
LONGEST_NAP = 300.0
"""Between two looks at the clock; wall clocks jump."""
SAVE_AGAIN_SECONDS = 10.0


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
    ) -> None:
        """``offload`` runs one synchronous call off the event loop; ``fs`` is where ``token.lock`` lies, in tests."""
        self._layout = layout
        self._store = store
        self._plane = plane
        self._ahead = float(config.application.refresh_ahead_seconds)
        self._wall_now = wall_now
        self._offload = offload
        self._random = random
        self._log = logging.getLogger("certctrl.Token")
        self._refresher = TokenRefresher(layout=layout, store=store, plane=plane, offload=offload, fs=fs)
        self._flight = trio.Lock()
        self._access: str | None = None
        self._claims = Claims()
        self._born = -YOUNG_SECONDS
        self._warned = False
        self._failures = 0
        self._failed: CertctrlError | None = None
        self._retry_at = 0.0

    def __repr__(self) -> str:
        return "TokenKeeper(***)"

    # --- looking --------------------------------------------------------------------------------------------

    def seen(self) -> str:
        """Return the access token in use, valid or not; empty before the first one."""
        return self._access or ""

    def valid(self) -> bool:
        """Return whether there is an access token that has not expired; what cannot be read counts as none.

        Reads the files at first.
        """
        with suppress(DiskError):  # whoever needs the token meets the same, and has a way to try again
            if self._access is None and (stored := self._store.load_tokens()) is not None:
                self._use(stored.access_token)
        return bool(self._access) and not self._expired()

    def expires_at(self) -> float | None:
        """Return when the access token expires, in epoch seconds of this host's clock; None when it does not say."""
        if self._claims.expires_at is None:
            return None
        return self._claims.expires_at - (self._plane.server_skew or 0.0)

    async def identity(self) -> tuple[int | None, int | None]:
        """Return user id and device id as the token names them; None for what it does not name."""
        await self._load()
        return self._claims.user_id, self._claims.device_id

    # --- using ----------------------------------------------------------------------------------------------

    async def current(self) -> str:
        """Return an access token that has not expired, refreshing it if need be; raises as `refresh`."""
        await self._load()
        if self._access and not self._expired():
            return self._access
        return await self.refresh(self._access or "")

    async def refresh(self, seen: str) -> str:
        """Return another access token than ``seen``, which was rejected or has expired.

        Any number of callers make one refresh; a failed one is not repeated before its backoff is over, and
        raises the same until then. Raises NotRegisteredError (final: the plane refuses, or there are no tokens),
        PlaneError, TransportError, DiskError and BusyError (not final; tokens are kept).
        """
        async with self._flight:
            if self._access and self._access != seen and not self._expired():
                return self._access
            if self._failed is not None and trio.current_time() < self._retry_at:
                raise self._failed.with_traceback(None)
            if self._access == seen and trio.current_time() - self._born < YOUNG_SECONDS:
                raise PlaneError("the control plane rejects an access token it has just issued", status=401)
            try:
                await self._refresher.fresh(seen, self._usable, self._keep)
            except CertctrlError as error:
                self._note_failure(error)
                raise
            self._failures, self._failed = 0, None
            return self.seen()

    def try_again(self) -> None:
        """Let the next refresh go at once, whatever failed before: a person asks."""
        self._retry_at = 0.0

    async def keep_token_fresh(self) -> None:
        """Refresh ahead of expiry until cancelled; NotRegisteredError when the plane refuses for good."""
        try:
            while True:
                delay = await self._look_after()
                await trio.sleep(delay)
        finally:
            if self._refresher.unsaved:
                with trio.move_on_after(2, shield=True):  # the last chance before memory is gone
                    await self._save_again()

    async def _look_after(self) -> float:
        """Do what is due and return the seconds until something may be."""
        if self._refresher.unsaved and not await self._save_again():
            return SAVE_AGAIN_SECONDS
        try:
            await self._load()
        except DiskError as error:
            self._note_failure(error)
            return SAVE_AGAIN_SECONDS
        remaining = self._remaining()
        if remaining is None:
            return LONGEST_NAP
        ahead, warn = self._thresholds()
        if remaining <= warn and not self._warned:
            self._warned = True
            log_line(self._log, Line.TOKEN_EXPIRING, seconds=max(round(remaining), 0))
        if remaining > ahead:
            return min(remaining - (ahead if self._warned else max(ahead, warn)), LONGEST_NAP)
        try:
            await self.refresh(self.seen())
        except NotRegisteredError:
            raise
        except CertctrlError as error:
            pause = jittered(grown(FIRST_BACKOFF, LONGEST_NAP, self._failures), self._random())
            delay = max(self._retry_at - trio.current_time(), pause, FIRST_BACKOFF)
            log_line(self._log, Line.TOKEN_REFRESH_FAILED, why=error, delay=round(delay))
            return delay
        return FIRST_BACKOFF

    # --- inside ---------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        if self._access is None and (stored := await self._offload(self._store.load_tokens)) is not None:
            self._use(stored.access_token)

    def _use(self, access: str) -> None:
        self._access = access
        self._claims = read_claims(access)
        self._warned = False

    def _keep(self, fresh: Fresh) -> None:
        self._use(fresh.tokens.access_token)
        if self._claims.expires_at is None and fresh.expires_in is not None:
            now = self._plane.server_now()
            self._claims = Claims(
                expires_at=now + fresh.expires_in,
                issued_at=now,
                user_id=self._claims.user_id,
                device_id=self._claims.device_id,
            )
        if fresh.spent:
            self._born = trio.current_time()
            left = self._remaining() if fresh.expires_in is None else fresh.expires_in
            log_line(self._log, Line.TOKEN_REFRESHED, expires_in="?" if left is None else round(left))

    def _usable(self, access: str) -> bool:
        """Return whether a token that another process stored is worth taking over."""
        expires_at = read_claims(access).expires_at
        return expires_at is None or expires_at - self._plane.server_now() > 0

    def _remaining(self) -> float | None:
        if self._claims.expires_at is None:
            return None
        return self._claims.expires_at - self._plane.server_now()

    def _expired(self) -> bool:
        remaining = self._remaining()
        if remaining is None or remaining > 0:
            return False
        return trio.current_time() - self._born >= YOUNG_SECONDS

    def _thresholds(self) -> tuple[float, float]:
        """Return how many seconds before expiry to refresh, and to warn: a short token's half life for both."""
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
