"""What a list has beyond an id, and a name that is expected, on both engines: by these, the console changes many and undoes."""

from __future__ import annotations

import pytest
from engine_plane import plane_on, registered

from certctrl.plane.errors import ErrorResponse
from certctrl.plane.fleet.fleet import Query
from certctrl.plane.storage.database import Database


async def test_the_rest_of_a_list_and_its_total(database: Database) -> None:
    plane = plane_on(database)
    ids = [(await registered(plane, f"web-{number}"))[0] for number in range(5)]
    certs = [int((await plane.certificates.issue(1, [f"{name}.test"], device_ids=ids))["id"]) for name in "abc"]
    await plane.work(lambda: plane.devices.tags.change(1, ids[1:], add=["web"]))

    def read() -> None:
        devices = plane.fleet.devices(1, Query(tags=("web",), sort="id", beyond=ids[1], limit=2))
        assert [row["id"] for row in devices["devices"]] == ids[2:4] and devices["total"] == 3
        assert plane.fleet.devices(1, Query(sort="id", beyond=ids[-1]))["total"] == 0
        found = plane.fleet.certificates(1, Query(sort="id", search="test", beyond=certs[0]))
        assert [row["id"] for row in found["certificates"]] == certs[1:] and found["total"] == 2

    await plane.work_long(read)


async def test_a_name_is_changed_only_from_the_one_that_is_expected(database: Database) -> None:
    plane = plane_on(database)
    device_id, _ = await registered(plane, "web-1")
    with pytest.raises(ErrorResponse, match="is named web-1 now, not other") as refused:
        await plane.life.rename(1, device_id, "x", expected="other")
    assert refused.value.status == 409
    assert (await plane.life.rename(1, device_id, "x", expected="web-1"))["changed"]
