"""The floors: the least code that writes the same bytes, without retries, state, policy and logs.

``python floors.py KIND JSON``, where JSON has ``url``, ``ca``, ``material``, ``out`` and the fields of the kind:

- ``burst``: fetch, open, check and install ``count`` certificates over one kept connection, one after another,
  three files each with four fsyncs. Prints ``{"wall", "cpu", "peak", "growth"}``; imports are not counted.
- ``deliver``: long-poll; on a signal fetch, open, check, install, run ``reload`` if there is one; prints one line of
  monotonic stamps per signal: ``{"disk", "reloaded"}``.
- ``idle``: poll by ``wait`` (long-poll) or ``interval`` until terminated.

All use httpx on Trio, cryptography and PyNaCl, as the product does.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import trio
from cryptography import x509
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)
from nacl.public import PrivateKey, SealedBox

UPDATES = "/apiv1/devices/self/updates"
MATERIALS = "/apiv1/devices/self/certificates/{}/deploy-materials"


def open_bundle(raw: bytes, box: SealedBox) -> dict[str, bytes]:
    """Return the files of one bundle, after checking that key, leaf and issuer match."""
    data = json.loads(raw)["data"]
    leaf = x509.load_pem_x509_certificate(data["certificate_pem"].encode())
    chain = x509.load_pem_x509_certificates(data["chain_pem"].encode())
    leaf.verify_directly_issued_by(chain[0])
    data_key = box.decrypt(base64.b64decode(data["enc_data_key_b64"]))
    sealed = base64.b64decode(data["enc_privkey_b64"]) + base64.b64decode(data["privkey_tag_b64"])
    der = AESGCM(data_key).decrypt(base64.b64decode(data["privkey_nonce_b64"]), sealed, None)
    key = load_der_private_key(der, None, unsafe_skip_rsa_key_validation=True)
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*spki) != leaf.public_key().public_bytes(*spki):
        raise ValueError("key does not match")
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    leaf_pem, chain_pem = data["certificate_pem"].encode(), data["chain_pem"].encode()
    return {"private.key": pem, "chain.pem": chain_pem, "fullchain.pem": leaf_pem + chain_pem}


def install(directory: str, handle: int, prefix: str, files: dict[str, bytes]) -> None:
    """Write three files by temporary file, fsync and rename, then fsync the directory."""
    for file, data in files.items():
        temp = f"{directory}/.{prefix}{file}.tmp"
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.write(fd, data)
        os.fsync(fd)
        os.close(fd)
        os.rename(temp, f"{directory}/{prefix}{file}")
    os.fsync(handle)


def serial_of(der: bytes) -> str:
    """Return a certificate's serial in plain hex."""
    return f"{x509.load_der_x509_certificate(der).serial_number:x}"


def client(facts: dict[str, Any]) -> httpx.AsyncClient:
    """Return one client with one kept connection; its default of five seconds would close it between polls."""
    limits = httpx.Limits(max_connections=1, keepalive_expiry=120)
    context = ssl.create_default_context(cafile=facts["ca"])
    return httpx.AsyncClient(verify=context, base_url=facts["url"], timeout=60, limits=limits)


def box_of(facts: dict[str, Any]) -> SealedBox:
    """Return the box that opens the device's bundles."""
    return SealedBox(PrivateKey((Path(facts["material"]) / "device.key").read_bytes()))


async def burst(facts: dict[str, Any]) -> None:
    """Fetch and install one certificate after another."""
    box, out = box_of(facts), facts["out"]
    handle = os.open(out, os.O_RDONLY)
    async with client(facts) as http:
        for cert_id in range(1, facts["count"] + 1):
            answer = await http.get(MATERIALS.format(cert_id))
            install(out, handle, f"h{cert_id:04}.", open_bundle(answer.content, box))


async def deliver(facts: dict[str, Any]) -> None:
    """Wait for signals and install their certificates."""
    box, out, cursor = box_of(facts), facts["out"], ""
    handle = os.open(out, os.O_RDONLY)
    async with client(facts) as http:
        while True:
            answer = await http.get(UPDATES, params={"wait": 25, "limit": 20} | ({"cursor": cursor} if cursor else {}))
            cursor = answer.headers["etag"].strip('"')
            if answer.status_code != 200:
                continue
            for signal in answer.json()["data"]["signals"]:
                raw = (await http.get(MATERIALS.format(signal["ref"]["cert_id"]))).content
                install(out, handle, "", open_bundle(raw, box))
                stamps = {"disk": time.monotonic()}
                if facts.get("reload"):
                    subprocess.run(facts["reload"], check=True)
                    stamps["reloaded"] = time.monotonic()
                print(json.dumps(stamps), flush=True)


async def idle(facts: dict[str, Any]) -> None:
    """Poll until terminated."""
    async with client(facts) as http:
        cursor = ""
        while True:
            params = {"wait": facts["wait"], "limit": 20} | ({"cursor": cursor} if cursor else {})
            answer = await http.get(UPDATES, params=params)
            cursor = answer.headers["etag"].strip('"')
            if facts["interval"]:
                await trio.sleep(facts["interval"])


def peak_mib() -> float:
    """Return the peak memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> None:
    """Run one floor."""
    kind, facts = sys.argv[1], json.loads(sys.argv[2])
    before, wall, cpu = peak_mib(), time.perf_counter(), time.process_time()
    trio.run({"burst": burst, "deliver": deliver, "idle": idle}[kind], facts)
    used = {
        "user": os.times().user,
        "sys": os.times().system,
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
    }
    print(json.dumps(used | {"peak": peak_mib(), "growth": peak_mib() - before}))


if __name__ == "__main__":
    main()
