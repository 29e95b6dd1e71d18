"""The fields of a registration, and the answer to the plane's challenge for the key in them."""

from __future__ import annotations

import base64
from typing import Any

from nacl.public import PrivateKey, SealedBox

from certctrl.model.features import KEY_PROOF
from certctrl.protocol.wire.registration import key_proof

_KEYS: dict[str, PrivateKey] = {}
"""Public key in base64 -> the pair, of all forms made so far."""


def registration(public_id: str, secret: PrivateKey, name: str = "web-1") -> dict[str, Any]:
    """Return the fields of a registration by an agent that can prove its key."""
    key = base64.b64encode(bytes(secret.public_key)).decode()
    _KEYS[key] = secret
    return {
        "device_public_id": public_id,
        "dev_pk": key,
        "name": name,
        "platform": "linux",
        "model": "x86_64",
        "app_version": "0.1.0",
        "user_agent": "cert-ctrl/0.1.0",
        "features": [KEY_PROOF],
    }


def answered(body: dict[str, Any], challenge: dict[str, Any]) -> dict[str, Any]:
    """Return the second request of a registration."""
    opened = SealedBox(_KEYS[body["dev_pk"]]).decrypt(base64.b64decode(challenge["challenge_b64"]))
    return body | {"challenge_response": key_proof(opened)}
