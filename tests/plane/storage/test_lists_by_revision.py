"""Lists by revision and materials by ETag, on each engine."""

from __future__ import annotations

import json
from typing import Any

from engine_plane import plane_on, registered

from certctrl.plane.certificates.revisions import Changes, changes
from certctrl.plane.certificates.views import Material
from certctrl.plane.core import Plane
from certctrl.plane.devices.reports import AgentVersion
from certctrl.plane.storage.database import Database


async def changed(plane: Plane, device: int, since: str) -> Changes:
    found = await plane.work(plane.certificates.list_of, device)
    return changes(plane.certificates.listed(found), since, after_id=0, limit=500)


async def whole(plane: Plane, device: int) -> dict[int, Any]:
    return {row["id"]: row for row in await plane.work(plane.certificates.page, device, 0, 500)}


async def test_the_list_with_its_changes_is_the_present_one(database: Database) -> None:
    plane = plane_on(database)
    device, _ = await registered(plane)
    await plane.work(plane.reports.store, device, [AgentVersion("9", ("csr",))])
    ids = [(await plane.certificates.issue(1, [f"c{n}.example"], device_ids=[device]))["id"] for n in range(3)]
    known, revision = dict[int, Any](), ""
    steps = [
        lambda: plane.certificates.renew(1, ids[0]),
        lambda: plane.certificates.revoke(1, ids[1]),
        lambda: plane.certificates.unassign(1, device, ids[2]),
        lambda: plane.certificates.issue(1, ["own.example"], device_ids=[device], key_origin="device"),
        lambda: plane.certificates.assign(1, device, ids[2]),
    ]
    for step in (None, *steps):
        if step is not None:
            await step()
        found = await changed(plane, device, revision)
        if found.parts is None:
            known = {}
        known = {number: row for number, row in known.items() if number % found.divisor not in (found.parts or ())}
        known |= {row.id: json.loads(row.text) for row in found.rows}
        assert known == await whole(plane, device)
        assert found.revision != revision
        revision = found.revision
        assert (await changed(plane, device, revision)).rows == ()


async def test_materials_are_the_same_until_they_change(database: Database) -> None:
    plane = plane_on(database)
    device, token = await registered(plane)
    cert_id = (await plane.certificates.issue(1, ["a.example"], device_ids=[device]))["id"]

    async def fetched(etag: str) -> Material:
        def read() -> Any:
            return plane.certificates.materials_of([(plane.sessions.authenticate(token), (cert_id, etag))])

        (found,) = await plane.work(read)
        assert isinstance(found, Material)
        return found

    first = await fetched("")
    assert first.data is not None
    assert await fetched(first.etag) == Material(first.etag, None)
    await plane.certificates.renew(1, cert_id)
    renewed = await fetched(first.etag)
    assert renewed.data is not None and renewed.etag != first.etag
