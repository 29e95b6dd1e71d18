"""Find keys that were made on this host in the generations of their certificate. Blocks on the disk."""

from __future__ import annotations

from contextlib import suppress

from certctrl.errors import DiskError, MaterialError
from certctrl.install.material.key_request import public_key_sha256
from certctrl.store.deployments.generations import GenerationStore


def find(generations: GenerationStore, name: str, public_sha256: str) -> bytes | None:
    """Return the key with this public half in PEM, from the newest generation that has it; None if none has it."""
    for generation in reversed(generations.ids(name)):
        if (pem := key_of(generations, name, generation, public_sha256)) is not None:
            return pem
    return None


def key_of(generations: GenerationStore, name: str, generation: str, public_sha256: str) -> bytes | None:
    """Return the key of a generation in PEM if it has this public half."""
    with suppress(DiskError, MaterialError):  # a damaged generation has no usable key
        pem = generations.read(name, generation, "private.key")
        return pem if public_key_sha256(pem) == public_sha256.lower() else None
    return None
