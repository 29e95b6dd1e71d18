"""Fetch the material of a certificate, unless the plane still has that of the live generation."""

from __future__ import annotations

from certctrl.agent.announced import is_serial
from certctrl.agent.context import Agent
from certctrl.model.certificate import Bundle, DeployMaterials
from certctrl.model.features import DELTA
from certctrl.model.records import Standing


async def changed_materials(agent: Agent, cert_id: int, announced: str | None) -> DeployMaterials | Bundle:
    """Return the plane's material of a certificate, or the live bundle if it was made from the same.

    The ETag covers certificate, chain and the device's key. The live files are checked by their hashes; if they are not
    as they were written, or not valid at this time, the material is fetched again. So it is if they are not those of the
    ``announced`` serial: the ETag may be from a cache, or from a plane that was compromised. Raises as ``fetch_materials``.
    """
    found = await agent.fetches.fetch(cert_id)
    if found is not None:
        return found
    live = await agent.installer.live_bundle(cert_id)
    if live is not None and (announced is None or is_serial(announced, live.facts.serial)):
        return live
    return await agent.authorized(lambda token: agent.plane.fetch_materials(token, cert_id))


def known_etag(agent: Agent, cert_id: int) -> str:
    """Return the ETag of the material of a certificate's live generation; empty if unknown, or not for this plane."""
    record = agent.installer.records.get(cert_id)
    known = DELTA in agent.plane.features and record is not None and record.standing is not Standing.FOREIGN
    return record.etag if known and record is not None else ""
