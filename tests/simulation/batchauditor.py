"""Check atomic batches from outside: whenever a command runs, all of a batch's links are old, or all are new."""

from __future__ import annotations

from typing import Any

import attrs
from simulation.authority import leaf_facts
from simulation.disk import file_in, names_in
from simulation.world import DEVICE, USER, World

from certctrl.model.features import ATOMIC_BATCH
from certctrl.plane.issuers.issuer import IssuerError
from certctrl.plane.orders.orders import OrderRequest


@attrs.frozen
class Released:
    """A batch that has left the plane."""

    old: dict[int, str]
    """Certificate id -> fingerprint before it."""
    new: dict[int, str]


def live_fingerprints(world: World) -> set[str]:
    nodes, root = world.host.disk.now, str(world.layout.live)
    pems = (file_in(nodes, f"{root}/{name}/fullchain.pem") for name in names_in(nodes, root) if name[0] != ".")
    return {leaf_facts(pem)[0] for pem in pems if pem}


def watch_batches(world: World) -> None:
    """Check all batches before each command of the host."""
    run = world.services.run

    async def checked(argv: Any, limit: float, dead: Any) -> Any:
        if not dead() and (mixed := mixed_batch(world)):
            world.auditor.fail(mixed)
        return await run(argv, limit, dead)

    world.services.run = checked  # type: ignore[method-assign]


def mixed_batch(world: World) -> str:
    """Return which batch is switched in part; empty: none is.

    A batch counts while the plane still offers its material, for certificates that were in use before.
    """
    rows = {row["id"]: row for row in world.plane.certificates.page(DEVICE, 0, 500)}
    live = live_fingerprints(world)
    if ATOMIC_BATCH in world.lacking:  # the plane announces each certificate alone
        world.batches.clear()
    for batch, one in world.batches.items():
        mine = [rows.get(cert_id) for cert_id in one.new]
        if any(row is None or row["status"] != "active" or row.get("batch", {}).get("id") != batch for row in mine):
            continue  # one of them was renewed, revoked or unassigned since
        if any(world.services.known[cert_id].stopped for cert_id in one.new):
            continue  # what is not running keeps the new files
        switched = {cert_id for cert_id, fingerprint in one.new.items() if fingerprint in live}
        kept = {cert_id for cert_id, fingerprint in one.old.items() if fingerprint in live}
        if switched and kept:
            return f"batch {batch}: {sorted(switched)} are switched, {sorted(kept)} are not"
    return ""


async def renew_together(world: World, cert_ids: list[int], validity: int) -> str:
    """Renew certificates as one batch, with the time of its orders between them; return the batch, empty: none left."""
    plane = world.plane
    with plane.database.transaction():
        rows = plane.batches.start(USER, cert_ids, OrderRequest(action="renew"))
    batch = rows[0]["batch"]
    live = live_fingerprints(world)
    old = {one: plane.certificates.show(USER, one)["fingerprint_sha256"] for one in cert_ids}
    for row in rows:
        certificate = plane.certificates.show(USER, row["cert_id"])
        names = certificate["sans"]
        try:
            issued = await plane.certificates._issuer.issue(
                names, key_type=certificate["key_type"], validity_seconds=validity
            )
        except IssuerError:
            return ""
        with plane.database.transaction():
            order = plane.database.one("SELECT state, batch FROM orders WHERE id = ?", row["order_id"])
            if order is not None and (order["state"], order["batch"]) == ("ready", batch):
                plane.batches.keep(row["order_id"], issued)
    with plane.database.transaction():
        plane.batches.release_ready()
    new = {one: plane.certificates.show(USER, one)["fingerprint_sha256"] for one in cert_ids}
    is_new = all(fingerprint in live for fingerprint in old.values()) and not set(new.values()) & set(old.values())
    if is_new and ATOMIC_BATCH not in world.lacking:
        world.batches[batch] = Released(old, new)
    return str(batch)
