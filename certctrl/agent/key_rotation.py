"""Replace the key of this device when the plane wants it, with its private half never out of ``keys``.

    new key durable in keys/dev_sk.rotated │ both keys proven, the plane has the new one │ it replaces dev_sk, dev_pk │ removed

It runs under ``token.lock``, after a token refresh. After a crash, the next refresh repeats it: the plane accepts the key
that it already has. Meanwhile material is opened with the key whose fingerprint it names (`handlers.py`).
"""

from __future__ import annotations

import logging
import os

from certctrl.agent.device_key import key_pair, prove
from certctrl.agent.log_lines import Line, log_line
from certctrl.errors import CertctrlError, PlaneError
from certctrl.model.offload import Offload
from certctrl.net.control_plane import ControlPlane
from certctrl.store.state.session import SessionState

_NOT_WANTED = "ROTATION_NOT_WANTED"

log = logging.getLogger("certctrl.Token")


async def rotate_key(store: SessionState, plane: ControlPlane, token: str, offload: Offload, *, wanted: bool) -> None:
    """Replace the device's key if that is wanted, or was begun; a failure is logged, and repeated at the next refresh."""
    try:
        secret = await offload(store.load_rotated_secret)
        if secret is not None or wanted:
            await _rotate(store, plane, token, offload, secret)
    except CertctrlError as error:
        log_line(log, Line.KEY_NOT_ROTATED, why=error)


async def _rotate(store: SessionState, plane: ControlPlane, token: str, offload: Offload, begun: bytes | None) -> None:
    present = await offload(store.load_device_keys)
    if present is None:
        return
    secret = begun or os.urandom(32)
    if begun is None:
        await offload(store.save_rotated_secret, secret)
    new = key_pair(secret)
    try:
        challenges = await plane.send_key(token, new.public, {})
        if challenges:
            responses = {
                "present_response": prove(present, challenges["present"]),
                "new_response": prove(new, challenges["new"]),
            }
            if await plane.send_key(token, new.public, responses):
                return  # too late; the next refresh repeats it
    except PlaneError as error:
        if error.key == _NOT_WANTED:  # the plane never had it: the request was withdrawn
            await offload(store.save_rotated_secret, None)
            return
        raise
    await offload(store.save_device_keys, new)
    await offload(store.save_rotated_secret, None)
    log_line(log, Line.KEY_ROTATED)
