"""List the plane's certificates for this host, fetching only the changes from planes with ``delta``.

A known list is used only with its revision, which is a digest of its content at the plane. So a list of another plane,
device or time is either the same or replaced, and a lost one costs one whole fetch. Once a day the whole list is
fetched nevertheless: a plane that was compromised for a while may have left a wrong list under a right revision.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import attrs

from certctrl.agent.context import Agent
from certctrl.errors import BadAnswerError, DiskError
from certctrl.model.certificate import CertificateSummary
from certctrl.model.features import DELTA

if TYPE_CHECKING:
    from certctrl.protocol.wire.certificate_changes import KnownList


WHOLE_SECONDS = 86_400.0
"""How long changes of a list are believed."""


async def list_certificates(agent: Agent) -> list[CertificateSummary]:
    """Return all certificates assigned to this device, ordered by id. Raises PlaneError, TransportError."""
    if DELTA not in agent.plane.features:
        return await agent.authorized(agent.plane.fetch_certificates)
    from certctrl.store.state.known_list import KnownListFile  # here: only for planes with revisions

    file = KnownListFile(agent.layout, agent.fs)
    now, known = agent.wall_now(), await agent.offload(file.load)
    if known is not None and not 0 <= now - known.whole_at < WHOLE_SECONDS:
        known = None
    try:
        found, listed = await _fetched(agent, known)
    except BadAnswerError:
        if known is None:
            raise
        known = None
        found, listed = await _fetched(agent, None)
    if found is None:
        return await agent.authorized(agent.plane.fetch_certificates)
    if found.revision and (known is None or found.revision != known.revision):
        found = found if found.whole_at else attrs.evolve(found, whole_at=now)
        with suppress(DiskError):  # only costs a whole fetch; callers that need the disk report it
            await agent.offload(file.save, found)
    return listed


async def _fetched(agent: Agent, known: KnownList | None) -> tuple[KnownList | None, list[CertificateSummary]]:
    """Return the current list (None from a plane without revisions) and its certificates."""
    found = await agent.authorized(lambda token: agent.plane.fetch_changes(token, known))
    return found, [] if found is None else await agent.offload(found.certificates)
