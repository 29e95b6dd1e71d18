"""Refresh the access token, using each refresh token at most once across processes.

A plane may rotate refresh tokens, and may end the registration if it receives a used one. So:

    lock (35 s) → read the files again → already fresh? use it → reserve the disk → POST → save → unlock

* The lock is shared by all processes: daemon, one-shot commands and `register` use ``token.lock``.
* A refresh token is sent only if its successor can be stored: the space is allocated first.
* From the reservation to the save, a cancelled task gets ``GRACE_SECONDS``, so that no answer is lost; when the agent
  stops, not beyond its grace time.
* After a connection error, it is unknown whether the plane received the token. The same token is sent once more: a
  plane that lost its own answer repeats it. After a deadline this is left to the caller's next attempt, because the
  plane may still be working on the first.
* If a save fails after the refresh, the tokens stay in memory, and every later call tries again.
* No answer of the plane deletes a token file.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from certctrl import lean
from certctrl.agent.log_lines import Line, log_line
from certctrl.agent.plane_anchor import PlaneAnchor
from certctrl.errors import BusyError, DeadlineError, DiskError, NotRegisteredError, PlaneError, TransportError
from certctrl.model.offload import Offload
from certctrl.model.records import Tokens
from certctrl.net.control_plane import ControlPlane
from certctrl.protocol.wire.tokens import Refreshed, refresh_refused
from certctrl.store.disk.fs import Fs
from certctrl.store.disk.lock import FileLock, token_lock
from certctrl.store.layout import ConfigDir
from certctrl.store.state.session import SessionState

LOCK_SECONDS = 35.0
POST_SECONDS = 30.0
SECOND_TRY_SECONDS = 5.0
"""Minimum time for the second attempt."""
GRACE_SECONDS = 5.0

T = TypeVar("T")


@lean.frozen(kw_only=True)
class Fresh:
    """Tokens to use from now on."""

    tokens: Tokens
    expires_in: float | None = None
    """Seconds, from the plane's answer; None if missing, or if another process refreshed."""
    refreshed: bool = False
    """Whether this call used a refresh token."""


class TokenRefresher:
    """The only code that sends a refresh token. The caller ensures one call at a time per process."""

    def __init__(
        self,
        *,
        layout: ConfigDir,
        store: SessionState,
        plane: ControlPlane,
        offload: Offload,
        fs: Fs | None = None,
        anchor: PlaneAnchor | None = None,
    ) -> None:
        """``anchor``: the CAs of the plane, updated by its answers."""
        self._anchor = anchor
        self._layout = layout
        self._fs = fs
        self._store = store
        self._plane = plane
        self._offload = offload
        self._log = logging.getLogger("certctrl.Token")
        self._unsaved: Tokens | None = None
        """The newest tokens, while they could not be stored."""
        self.end_by = math.inf
        """When a refresh must have ended (Trio clock)."""
        self._outlived: set[str] = set()
        """Refresh tokens that may still be on disk meanwhile; any other one is a new registration."""

    @property
    def unsaved(self) -> bool:
        """Whether tokens are in memory only."""
        return self._unsaved is not None

    async def fresh(self, seen: str, usable: Callable[[str], bool], keep: Callable[[Fresh], None]) -> None:
        """Get an access token other than ``seen`` and pass it to ``keep``; use at most one refresh token.

        ``usable`` returns whether a token that another process stored can be used. Raises NotRegisteredError (no
        tokens, or refused permanently), BusyError (another process holds the lock), DiskError (no refresh token was
        used), PlaneError and TransportError (temporary).
        """
        lock = await wait_for_token_lock(self._layout, self._fs)
        try:
            tokens = await self._current()
            if tokens.access_token and tokens.access_token != seen and usable(tokens.access_token):
                keep(Fresh(tokens=tokens))
                return
            await finish_despite_cancel(GRACE_SECONDS, lambda: self._refresh(tokens, keep), until=lambda: self.end_by)
        finally:
            lock.release()

    async def save_again(self) -> bool:
        """Try to store tokens that are in memory only; return whether all are stored."""
        if self._unsaved is None:
            return True
        lock = await wait_for_token_lock(self._layout, self._fs)
        try:
            await self._current()
        finally:
            lock.release()
        return self._unsaved is None

    async def _current(self) -> Tokens:
        """Return the newest tokens, on disk or in memory; try to store the latter."""
        stored: Tokens | None = await self._offload(self._store.load_tokens)
        if self._unsaved is not None:
            newest = self._unsaved
            if stored is None or stored.refresh_token in self._outlived:
                await self._store_them(newest)
                return newest
            self._saved()  # re-registered since: our tokens are stale
        if stored is None:
            raise NotRegisteredError(
                f"this device is not registered ({self._layout.state} holds no tokens)",
                fix=f"cert-ctrl -c {self._layout.root} register",
            )
        return stored

    async def _store_them(self, newest: Tokens) -> None:
        try:
            await self._offload(self._store.save_tokens, newest)
        except DiskError:
            return  # already reported; the next call tries again
        self._saved()

    def _saved(self) -> None:
        self._unsaved = None
        self._outlived.clear()

    async def _refresh(self, tokens: Tokens, keep: Callable[[Fresh], None]) -> None:
        reservation = await self._offload(self._store.reserve_tokens)
        try:
            answer = await self._post(tokens)
            rotated = answer.refresh_token is not None and answer.refresh_token != tokens.refresh_token
            newest = Tokens(
                access_token=answer.access_token,
                refresh_token=answer.refresh_token or tokens.refresh_token,
                features=answer.features,
            )
            try:
                await self._offload(reservation.commit, newest)
                self._saved()
            except DiskError as error:
                self._unsaved = newest
                self._outlived |= {tokens.refresh_token, newest.refresh_token}
                log_line(self._log, Line.TOKEN_UNSAVED, why=error)
            keep(Fresh(tokens=newest, expires_in=answer.expires_in, refreshed=True))
            if rotated:
                log_line(self._log, Line.TOKEN_ROTATED)
            if self._anchor is not None:
                await self._anchor.take(answer.plane_anchor_pem)
            await self._rotate_key(newest.access_token, wanted=answer.rotate_key)
        finally:
            reservation.release()  # not offloaded: it must run even after the grace period

    async def _rotate_key(self, token: str, *, wanted: bool) -> None:
        if wanted or await self._offload(self._store.has_rotated_secret):
            from certctrl.agent.key_rotation import rotate_key  # here: few sessions need it

            await rotate_key(self._store, self._plane, token, self._offload, wanted=wanted)

    async def _post(self, tokens: Tokens) -> Refreshed:
        device_id = await self._offload(self._store.load_device_id) or ""
        anchors = () if self._anchor is None else await self._anchor.trusted()
        more = {"anchors": anchors} if anchors else {}
        end = trio.current_time() + POST_SECONDS
        try:
            try:
                return await self._plane.refresh(tokens.refresh_token, device_id, deadline=POST_SECONDS, **more)
            except TransportError as error:
                if isinstance(error, DeadlineError) or not error.maybe_sent:
                    raise
            left = max(end - trio.current_time(), SECOND_TRY_SECONDS)
            return await self._plane.refresh(tokens.refresh_token, device_id, deadline=left, **more)
        except PlaneError as error:
            if not refresh_refused(error):
                raise
            refused = error
        stored: Tokens | None = await self._offload(self._store.load_tokens)
        if stored is not None and stored.refresh_token != tokens.refresh_token and not self.unsaved:
            # the file was replaced without the lock: a restored backup, a manual copy
            raise BusyError("the tokens were replaced while they were refreshed", fix="try again")
        raise NotRegisteredError(
            f"the control plane refuses the refresh token: {refused.what}",
            fix=f"cert-ctrl -c {self._layout.root} register",
        )


async def wait_for_token_lock(layout: ConfigDir, fs: Fs | None = None) -> FileLock:
    """Return the acquired token lock, to be released. Raises BusyError if another process holds it for 35 s."""
    lock = token_lock(layout, fs)
    deadline, pause = trio.current_time() + LOCK_SECONDS, 0.01
    while not lock.try_acquire():
        if trio.current_time() >= deadline:
            holder = lock.holder()
            who = f"another cert-ctrl (pid {holder})" if holder else "another cert-ctrl"
            raise BusyError(f"{who} has held the token lock for {LOCK_SECONDS:.0f} s", fix="try again, or stop it")
        await trio.sleep(pause)
        pause = min(pause * 1.5, 0.1)
    return lock


async def finish_despite_cancel(
    grace: float, call: Callable[[], Awaitable[T]], *, until: Callable[[], float] = lambda: math.inf
) -> T:
    """Run ``call``; if cancelled from outside, let it continue for ``grace`` seconds, but not beyond ``until``."""
    result: list[T] = []
    failure: Exception | None = None

    async def shorten(scope: trio.CancelScope) -> None:
        try:
            await trio.sleep_forever()
        finally:
            scope.deadline = min(scope.deadline, trio.current_time() + grace, until())

    async with trio.open_nursery() as nursery:
        shield = trio.CancelScope(shield=True)
        nursery.start_soon(shorten, shield)
        with shield:
            try:
                result.append(await call())
            except Exception as error:  # raised below, so that it does not leave the nursery in a group
                failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result[0]
