"""Short forms to issue a certificate, fetch and decrypt it as a device, and read its signals."""

from __future__ import annotations

import base64
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from nacl.public import SealedBox
from plane_world import Device, World

CERTIFICATES = "/apiv1/users/1/certificates"


async def issue(world: World, *domains: str, **more: object) -> dict[str, Any]:
    reply = await world.operator("POST", CERTIFICATES, {"domain_name": domains[0], "sans": domains[1:], **more})
    assert reply.status == 201, reply.body
    data: dict[str, Any] = reply.data
    return data


async def materials(device: Device, cert_id: int) -> dict[str, Any]:
    data: dict[str, Any] = (await device("GET", f"/apiv1/devices/self/certificates/{cert_id}/deploy-materials")).data
    return data


def opened(device: Device, data: dict[str, Any]) -> bytes:
    """Return the private key (PKCS#8 DER), decrypted as docs/protocol.md describes."""
    field = {name: base64.b64decode(value) for name, value in data.items() if name.endswith("_b64")}
    assert len(field["enc_data_key_b64"]) == 80
    assert len(field["privkey_nonce_b64"]) == 12
    assert len(field["privkey_tag_b64"]) == 16
    data_key = SealedBox(device.secret).decrypt(field["enc_data_key_b64"])
    sealed = field["enc_privkey_b64"] + field["privkey_tag_b64"]
    return AESGCM(data_key).decrypt(field["privkey_nonce_b64"], sealed, None)


async def signals(device: Device) -> list[tuple[str, dict[str, Any]]]:
    reply = await device.poll(limit=100)
    return [] if reply.status == 204 else [(s["type"], s["ref"]) for s in reply.data["signals"]]
