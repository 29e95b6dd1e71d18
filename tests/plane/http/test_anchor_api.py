"""``GET /ca.pem``."""

from __future__ import annotations

import hashlib
import ssl

from plane_world import World


async def test_everyone_gets_the_ca_of_the_planes_own_certificate(world: World) -> None:
    reply = await world.stranger("GET", "/ca.pem")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/x-pem-file")
    assert reply.body.decode() == world.plane.anchor.ca.root_pem != world.plane.ca.root_pem
    der = ssl.PEM_cert_to_DER_cert(reply.body.decode())
    assert hashlib.sha256(der).hexdigest() == world.plane.anchor.ca.root_fingerprint


async def test_the_ca_costs_no_unit_of_work(world: World) -> None:
    world.units.of.clear()
    await world.stranger("GET", "/ca.pem")
    assert not world.units.of
