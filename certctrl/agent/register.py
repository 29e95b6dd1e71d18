"""Register this host: by approval (RFC 8628) or an enrolment token, then write keys and tokens to disk.

The files are the journal. Each step is durable before the next starts, and each can be repeated:

    next id and key │ grant │ space reserved → POST → id and key pair → refresh token → access token

Id and key pair are kept. What is missing or damaged is made again, because the error messages name `register` as the
fix, but it replaces nothing before the plane has accepted it; a second run reuses it. A public key is computed
from its secret key. After the POST, the new tokens replace the old ones in two renames, the refresh token first: in
between, the old access token is rejected and the new refresh token replaces it. So an interrupted or refused run leaves
the old registration or the new one, and repeating it is always correct.

Keys are created and tokens fetched under ``token.lock``: two runs share one pair, and a refreshing daemon cannot
overwrite the new session. The lock is released while the agent waits for approval.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from itertools import count
from typing import TypeVar

import trio

from certctrl import lean
from certctrl.agent.device_key import key_pair, prove
from certctrl.agent.token_claims import read_claims
from certctrl.agent.token_refresh import GRACE_SECONDS, finish_despite_cancel, wait_for_token_lock
from certctrl.backoff import grown
from certctrl.errors import (
    DEVICE_REVOKED,
    BadAnswerError,
    DiskError,
    NotRegisteredError,
    PlaneError,
    StateCorruptError,
    TransportError,
)
from certctrl.model.config import AgentConfig
from certctrl.model.records import DeviceKeys, Recommended, Tokens
from certctrl.net.control_plane import ControlPlane
from certctrl.protocol.device_flow import DeviceFlow, Done, Expired, GrantReady, PollGrant, Refused, uri_problem
from certctrl.protocol.wire.registration import Registration
from certctrl.store.disk.fs import Fs, RealFs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.files import sweep_leftovers
from certctrl.store.state.session import SessionState

SCOPES = ("device",)
TRY_FOR_SECONDS = 60.0
"""Seconds during which a registration is retried while the plane is busy or disconnects."""
FIRST_PAUSE, LAST_PAUSE = 1.0, 15.0
_NEED_APPROVAL = (DEVICE_REVOKED, "KEY_MISMATCH")
"""Refusals that no enrolment token lifts: tokens are on many hosts."""

T = TypeVar("T")
Form = Callable[[], Awaitable[Registration]]

log = logging.getLogger("certctrl.Register")


@lean.frozen(kw_only=True)
class DeviceFlowPrompt:
    """The data that an operator needs to approve this device."""

    user_code: str
    verification_uri: str
    """The URL of the approval page; checked to belong to the control plane."""
    verification_uri_complete: str | None
    """The same URL including the code."""
    expires_in: float
    """Seconds."""
    expires_at: float
    """Epoch seconds, by this host's clock."""


@lean.frozen(kw_only=True)
class Registered:
    """A completed registration."""

    user_id: int
    device_id: int
    name: str
    recommended: Recommended | None = None
    """Settings that the control plane recommends."""


async def register(
    layout: ConfigDir,
    store: SessionState,
    plane: ControlPlane,
    config: AgentConfig,
    *,
    enrolment_token: str | None = None,
    show: Callable[[DeviceFlowPrompt], None],
    wall_now: Callable[[], float],
    fs: Fs | None = None,
) -> Registered:
    """Register this host and return once the new session is durable.

    Raises NotRegisteredError (denied, expired, refused), BadAnswerError (also for an approval page that is not
    the plane's), PlaneError, TransportError, DiskError, BusyError. The disk is used without a thread: nothing else
    runs in the process of a one-shot command. ``fs``: the disk of ``token.lock``, in tests.
    """
    identity = await _identity(layout, store, fs)
    form = partial(
        plane.register,
        device_public_id=identity.device_id,
        public_key=identity.keys.public,
        name=_name(config),
        platform=platform.system().lower(),
        model=_model(),
        prove=partial(prove, identity.keys),
    )
    if enrolment_token is not None:
        form = partial(form, enrolment_token=enrolment_token)
    else:
        grant = await _request_approval(plane, config, identity.device_id, show, wall_now)
        form = partial(form, user_id=grant.user_id, registration_code=grant.registration_code)
    enrol_once = partial(_enrol_once, layout, store, identity, form, fs)
    done = await _enrol(enrol_once, unattended=enrolment_token is not None)
    log.info("Registered as device %d of user %d", done.device_id, done.user_id)
    return Registered(
        user_id=done.user_id,
        device_id=done.device_id,
        name=done.name or form.keywords["name"],
        recommended=done.recommended,
    )


# --- identity -----------------------------------------------------------------------------------------------


@lean.frozen(kw_only=True)
class _Identity:
    """The device id and key pair to register, and which of them are not the stored ones."""

    device_id: str
    keys: DeviceKeys
    new_id: bool
    new_keys: bool

    def adopt(self, store: SessionState) -> None:
        """Store what is new: the plane has accepted it."""
        store.adopt_identity(self.device_id if self.new_id else None, self.keys if self.new_keys else None)


async def _identity(layout: ConfigDir, store: SessionState, fs: Fs | None) -> _Identity:
    """Return the device id and key pair; make what is missing or damaged, without replacing anything yet."""
    lock = await wait_for_token_lock(layout, fs)
    try:
        with suppress(DiskError):  # leftovers of a killed run; nothing depends on them
            sweep_leftovers(layout, fs or RealFs())
        next_id, next_secret = store.load_next_identity()
        device_id = _unless_damaged(store.load_device_id, "device id")
        pair = _unless_damaged(store.load_device_keys, "device keys")
        secret = _unless_damaged(store.load_device_secret, "device key") if pair is None else pair.secret
        new_id, new_secret = device_id is None, secret is None
        device_id, secret = device_id or next_id or str(uuid.uuid4()), secret or next_secret or os.urandom(32)
        store.save_next_identity(device_id if new_id else None, secret if new_secret else None)
        keys = key_pair(secret)
        return _Identity(device_id=device_id, keys=keys, new_id=new_id, new_keys=keys != pair)
    finally:
        lock.release()


def _unless_damaged(load: Callable[[], T | None], what: str) -> T | None:
    try:
        return load()
    except StateCorruptError as error:
        log.warning("The %s cannot be used: %s", what, error)
        return None


def _name(config: AgentConfig) -> str:
    return config.application.name or socket.gethostname()


def _model() -> str:
    try:
        system = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        system = ""
    machine = os.uname()
    return f"{system or machine.sysname} {machine.machine}"[:100]


# --- approval -----------------------------------------------------------------------------------------------


async def _request_approval(
    plane: ControlPlane,
    config: AgentConfig,
    device_id: str,
    show: Callable[[DeviceFlowPrompt], None],
    wall_now: Callable[[], float],
) -> GrantReady:
    started = await plane.start_grant(SCOPES, name=_name(config), platform=_model(), device_public_id=device_id)
    for uri in (started.verification_uri, started.verification_uri_complete):
        settings = config.application
        problem = None if uri is None else uri_problem(uri, settings.server_url, settings.approval_host)
        if problem is not None:
            raise BadAnswerError(
                f"the approval page {uri} cannot be trusted: {problem}",
                fix="do not type the code there; ask the plane's operator, and set approval_host if this host is correct",
            )
    flow = DeviceFlow(started, trio.current_time())
    show(
        DeviceFlowPrompt(
            user_code=started.user_code,
            verification_uri=started.verification_uri,
            verification_uri_complete=started.verification_uri_complete,
            expires_in=started.expires_in,
            expires_at=wall_now() + started.expires_in,
        )
    )
    while True:
        match flow.next_step(trio.current_time()):
            case PollGrant(at):
                await trio.sleep_until(at)
                flow.receive(await plane.poll_grant(started.device_code), trio.current_time())
            case Done(grant):
                return grant
            case Refused(why):
                raise NotRegisteredError(f"registration refused: {why}", fix="run register again, and approve it")
            case Expired(trouble):
                why = f"; the last poll failed: {trouble}" if trouble else ""
                raise NotRegisteredError(f"this device was not approved in time{why}", fix="run register again")


# --- the registration itself --------------------------------------------------------------------------------


async def _enrol(enrol_once: Form, *, unattended: bool) -> Registration:
    """Register and store the session; retried for a minute while the plane is busy or disconnects."""
    end = trio.current_time() + TRY_FOR_SECONDS
    for failures in count(1):
        pause = grown(FIRST_PAUSE, LAST_PAUSE, failures)
        try:
            return await enrol_once()
        except PlaneError as error:
            if error.status != 429 and error.status < 500:
                raise _refused(error, unattended=unattended) from None
            failure: PlaneError | TransportError = error
            wait = max(pause, error.retry_after or 0.0)
        except TransportError as error:
            if isinstance(error, BadAnswerError) or not error.maybe_sent:
                raise  # the operator is waiting, and retrying does not fix a wrong URL
            failure, wait = error, pause
        if trio.current_time() + wait >= end:
            raise failure
        log.warning("Registration failed: %s; next try in %.0f s", failure, wait)
        await trio.sleep(wait)
    raise AssertionError("the loop ends by a return or an error")


async def _enrol_once(
    layout: ConfigDir, store: SessionState, identity: _Identity, form: Form, fs: Fs | None
) -> Registration:
    async def post_and_store() -> Registration:
        with store.reserve_tokens() as reservation:
            done = await form()
            identity.adopt(store)
            _forget_other_cursor(store, done)
            reservation.commit(
                Tokens(access_token=done.access_token, refresh_token=done.refresh_token, features=done.features)
            )
            with suppress(DiskError):  # only `doctor` reads it
                store.save_recommended(done.recommended)
            return done

    lock = await wait_for_token_lock(layout, fs)
    try:
        return await finish_despite_cancel(GRACE_SECONDS, post_and_store)
    finally:
        lock.release()


def _forget_other_cursor(store: SessionState, done: Registration) -> None:
    """Drop the cursor unless the device is certainly the same: another device's stream has other positions.

    Before the tokens are stored: an old registration without a cursor only compares everything once.
    """
    old = _unless_damaged(store.load_tokens, "tokens")
    if old is None or read_claims(old.access_token).device_id != done.device_id:
        store.clear_cursor()


def _refused(error: PlaneError, *, unattended: bool) -> NotRegisteredError:
    fix = "get a new enrolment token (cert-ctrl plane enrolment-token)" if unattended else "run register again"
    if unattended and error.key in _NEED_APPROVAL:
        fix = "run register without a token, and have an operator approve it (cert-ctrl plane approve)"
    return NotRegisteredError(f"the control plane refuses this registration: {error.what}", fix=fix)
