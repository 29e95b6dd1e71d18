"""The key pair of this device, and the proof that it has the secret half; libsodium is imported where it is used."""

from __future__ import annotations

from certctrl.errors import BadAnswerError
from certctrl.model.records import DeviceKeys
from certctrl.protocol.wire.registration import key_proof


def key_pair(secret: bytes) -> DeviceKeys:
    """Return the key pair of a secret key."""
    from nacl.public import PrivateKey

    return DeviceKeys(public=bytes(PrivateKey(secret).public_key), secret=secret)


def prove(keys: DeviceKeys, sealed: bytes) -> str:
    """Return the answer to a challenge that is sealed to these keys."""
    from nacl.exceptions import CryptoError
    from nacl.public import PrivateKey, SealedBox

    try:
        return key_proof(SealedBox(PrivateKey(keys.secret)).decrypt(sealed))
    except CryptoError:
        raise BadAnswerError("the challenge is not sealed to this device's key", fix="run register again") from None
