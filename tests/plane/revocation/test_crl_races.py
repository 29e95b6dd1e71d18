"""Revocations and signatures of lists at the same time, by two planes: no list lacks what was revoked before it."""

from __future__ import annotations

from collections.abc import Callable

import trio
from cryptography import x509
from csrs import csr
from engine_plane import plane_on

from certctrl.plane.ca.crl import issuer_key_id
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring

EACH = 15
WALL = 1_790_000_000.0


async def test_two_planes_that_revoke_and_sign_lose_nothing(open_database: Callable[[], Database]) -> None:
    keyring = Keyring.open(None)
    planes = [plane_on(open_database(), keyring, lambda: WALL, crl_url="http://plane.example/crl") for _ in range(2)]
    issued = await planes[0].ca.sign_csr(csr(["a.example"]), ["a.example"], validity_seconds=3600)
    key_id = issuer_key_id(issued.certificate_pem)
    numbers: list[int] = []

    async def revoke(which: int) -> None:
        crls = planes[which].crls
        for number in range(1, EACH + 1):
            serial = f"{which + 1:02x}:{number:02x}"
            await planes[which].work(crls.add, serial, key_id, cert_id=1, reason="", not_after=WALL + 3600)
            crl = await crls.get(key_id)
            assert crl is not None
            # a plane's own revocation is in its next answer
            assert (which + 1) * 256 + number in {one.serial_number for one in x509.load_der_x509_crl(crl.der)}
            numbers.append(crl.number)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(revoke, 0)
        nursery.start_soon(revoke, 1)
    for plane in planes:
        plane.crls._forget()
        crl = await plane.crls.get(key_id)
        assert crl is not None
        listed = {one.serial_number for one in x509.load_der_x509_crl(crl.der)}
        assert listed == {256 * (which + 1) + number for which in range(2) for number in range(1, EACH + 1)}
        assert crl.number >= max(numbers)
    assert planes[0].crls.signed + planes[1].crls.signed <= 2 * EACH + 2
