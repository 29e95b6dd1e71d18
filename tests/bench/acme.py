"""An order at Pebble, by the issuer and by a bare client that sends the same requests; a hundred orders concurrently.

Pebble considers all challenges proven and rejects no nonce, so that only the requests count. Both clients use one
connection for each order, and look again as soon as Pebble allows.
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import ssl
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from measure import percentile, ratio, row

sys.path.append(str(Path(__file__).parents[1] / "plane"))  # after the bench's own modules

from acme_world import AcmeWorld, RecordingSolver, make_world
from pebble_server import Pebble, pebble_server
from scripted_ca import new_csr

ENVIRONMENT = {"PEBBLE_VA_ALWAYS_VALID": "1", "PEBBLE_WFE_NONCEREJECT": "0", "PEBBLE_AUTHZREUSE": "0"}
CONCURRENT = 100
POLL = 0.05
"""The first pause of the issuer between two looks at an order, which the floor makes, too."""


def measure(work: Path, *, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of the report."""
    if shutil.which("pebble") is None:
        yield {"case": "an order", "note": "pebble is not installed"}
        return
    with pebble_server(lambda name: str(shutil.which(name)), work / "pebble", environment=ENVIRONMENT) as pebble:
        ours, floor, together = trio.run(_measure, pebble, rounds)
    case = f"an order for one name, ms ({rounds} orders)"
    yield row(
        case, statistics.median(ours) * 1000, statistics.median(floor) * 1000, value=ratio(ours, floor), must=1.3,
        aim=1.15, digits=1, note=f"p95 {percentile(ours, 0.95) * 1000:.0f} ms; floor {percentile(floor, 0.95) * 1000:.0f} ms",
    )  # fmt: skip
    yield row(
        f"{CONCURRENT} orders concurrently, ms each", together / CONCURRENT * 1000, statistics.median(ours) * 1000,
        must=1.0, digits=1, note="floor: one order after the other",
    )  # fmt: skip


async def _measure(pebble: Pebble, rounds: int) -> tuple[list[float], list[float], float]:
    world = make_world(time.time)
    world.solver = RecordingSolver()
    try:
        issuer = world.issuer(directory_url=pebble.directory_url, ca_file=str(pebble.ca_file), budget="unlimited")
        bare = BareClient(pebble)
        await bare.register()
        ours, floor = [], []
        for number in range(-2, rounds):  # the first two fill caches
            times = [await _timed(_order(issuer, world)), await _timed(bare.order(f"n{number + 2}.test"))]
            if number >= 0:
                ours.append(times[0])
                floor.append(times[1])
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(CONCURRENT):
                nursery.start_soon(_order, issuer, world)
        return ours, floor, time.perf_counter() - began
    finally:
        world.plane.close()


async def _order(issuer: Any, world: AcmeWorld) -> None:
    await issuer.issue(world.request("www.test", csr_der=new_csr(("www.test",))))


async def _timed(order: Any) -> float:
    began = time.perf_counter()
    await order
    return time.perf_counter() - began


class BareClient:
    """The least code for the same requests: no retries, checks, limits or memory."""

    def __init__(self, pebble: Pebble) -> None:
        self._pebble = pebble
        self._key = ec.generate_private_key(ec.SECP256R1())
        numbers = self._key.public_key().public_numbers()
        x, y = (_base64url(one.to_bytes(32, "big")) for one in (numbers.x, numbers.y))
        self._identity: dict[str, Any] = {"jwk": {"crv": "P-256", "kty": "EC", "x": x, "y": y}}
        self._nonce = ""
        self._urls: dict[str, str] = {}

    async def register(self) -> None:
        """Make the account."""
        async with self._connected() as client:
            self._urls = (await client.get(self._pebble.directory_url)).json()
            self._nonce = (await client.head(self._urls["newNonce"])).headers["replay-nonce"]
            answer = await self._post(client, self._urls["newAccount"], {"termsOfServiceAgreed": True})
            self._identity = {"kid": answer.headers["location"]}

    async def order(self, name: str) -> bytes:
        """Return the certificate chain for a name."""
        csr = new_csr((name,))
        async with self._connected() as client:
            made = await self._post(client, self._urls["newOrder"], {"identifiers": [{"type": "dns", "value": name}]})
            url, order = made.headers["location"], made.json()
            authorization = (await self._post(client, order["authorizations"][0], None)).json()
            await self._post(client, authorization["challenges"][0]["url"], {})
            while (await self._post(client, order["authorizations"][0], None)).json()["status"] == "pending":
                await trio.sleep(POLL)
            order = (await self._post(client, order["finalize"], {"csr": _base64url(csr)})).json()
            while order["status"] == "processing":
                await trio.sleep(POLL)
                order = (await self._post(client, url, None)).json()
            chain = (await self._post(client, order["certificate"], None)).content
        x509.load_pem_x509_certificates(chain)
        return chain

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[httpx.AsyncClient]:
        context = ssl.create_default_context(cafile=str(self._pebble.ca_file))
        async with httpx.AsyncClient(verify=context, trust_env=False, timeout=30) as client:
            yield client

    async def _post(self, client: httpx.AsyncClient, url: str, payload: Any) -> httpx.Response:
        header = {"alg": "ES256", "url": url, "nonce": self._nonce} | self._identity
        protected = _base64url(json.dumps(header).encode())
        body = "" if payload is None else _base64url(json.dumps(payload).encode())
        r, s = decode_dss_signature(self._key.sign(f"{protected}.{body}".encode(), ec.ECDSA(hashes.SHA256())))
        signature = _base64url(r.to_bytes(32, "big") + s.to_bytes(32, "big"))
        message = json.dumps({"protected": protected, "payload": body, "signature": signature}).encode()
        answer = await client.post(url, content=message, headers={"content-type": "application/jose+json"})
        answer.raise_for_status()
        self._nonce = answer.headers["replay-nonce"]
        return answer


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
