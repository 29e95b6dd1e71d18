"""Names of planes, on both engines: reserved by every plane of a database, for every issuer and every way to a certificate."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from csrs import csr
from engine_plane import WALL, plane_on, registered
from made_chains import made, pki

from certctrl.plane.certificates.imports import ImportRequest
from certctrl.plane.core import Plane
from certctrl.plane.devices.reports import AgentVersion
from certctrl.plane.errors import ErrorResponse
from certctrl.plane.planes import RUNNING_SECONDS
from certctrl.plane.reserved_names import KEPT_SECONDS, MAX_NAMES
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring

ONE, OTHER = "one.plane.example", "other.plane.example"


class Fleet:
    """Two planes on one database, each with a host name, and their clock."""

    def __init__(self, open_database: Callable[[], Database]) -> None:
        self.now = WALL
        self._open, self._keyring = open_database, Keyring.open(None)
        self.one, self.other = self.started(), self.started()

    def started(self) -> Plane:
        return plane_on(self._open(), self._keyring, lambda: self.now)

    async def reserve(self) -> None:
        for plane, name in ((self.one, ONE), (self.other, OTHER)):
            await plane.work(plane.certificates.reserve, [name, "localhost"])

    async def names(self) -> set[str]:
        return {*await self.one.work(self.one.reserved.all)}


@pytest.fixture
def fleet(open_database: Callable[[], Database]) -> Fleet:
    return Fleet(open_database)


async def refused(answer: Awaitable[Any]) -> bool:
    with pytest.raises(ErrorResponse, match="a name of this control plane") as caught:
        await answer
    return (caught.value.status, caught.value.key) == (409, "NAME_RESERVED")


@pytest.mark.parametrize("name", [OTHER, "*.plane.example", "localhost"])
async def test_a_plane_issues_no_name_of_another_plane(fleet: Fleet, name: str) -> None:
    earlier = await fleet.one.certificates.issue(1, ["www.example", name])
    await fleet.reserve()
    certificates, bulk = fleet.one.certificates, fleet.one.bulk
    assert await refused(certificates.issue(1, ["www.example", name]))
    assert await refused(certificates.issue(1, [name], reuse_key=True))
    assert await refused(certificates.issue(1, [name], key_origin="device"))
    assert await refused(certificates.renew(1, earlier["id"]))
    assert await refused(certificates.change(1, earlier["id"], issuer="builtin"))
    assert await refused(certificates.revoke(1, earlier["id"], replace=True))
    (checked,) = await bulk.check(1, [{"domains": [name]}])
    (renewal,) = await bulk.renew(1, [earlier["id"]], "")
    assert "a name of this control plane" in checked["problem"]
    assert "a name of this control plane" in renewal["problem"] and renewal["order_id"] is None
    assert (await certificates.issue(1, ["www.plane.test"]))["status"] == "active", "other names are issued"


async def test_a_plane_imports_no_certificate_for_a_name_of_another_plane(fleet: Fleet) -> None:
    root, middle = pki()
    leaf = made(OTHER, middle, names=[OTHER])
    given = ImportRequest(certificate_pem=leaf.pem, private_key_pem=leaf.key_pem, chain_pem=middle.pem + root.pem)
    await fleet.reserve()
    assert await refused(fleet.one.imports.add(1, given))


async def test_an_order_ends_once_another_plane_has_its_name(fleet: Fleet) -> None:
    row = await fleet.one.certificates.issue(1, [OTHER], reuse_key=True)
    assert row["status"] == "pending"
    await fleet.reserve()
    await fleet.one.order_runner.run_once()
    order = await fleet.one.work(fleet.one.orders.show, 1, row["order_id"])
    assert (order["state"], "a name of this control plane" in order["problem"]) == ("failed", True)


async def test_a_signing_request_of_a_device_gets_no_name_of_another_plane(fleet: Fleet) -> None:
    plane = fleet.one
    device, _ = await registered(plane)
    await plane.work(plane.reports.store, device, [AgentVersion("1", ("csr",))])
    row = await plane.certificates.issue(1, [OTHER], key_origin="device", device_ids=[device])
    await fleet.reserve()
    pem = x509.load_der_x509_csr(csr([OTHER])).public_bytes(Encoding.PEM).decode()
    await plane.work(plane.device_keys.receive, device, row["id"], row["order_id"], pem)
    await plane.order_runner.run_once()
    shown = await plane.work(plane.certificates.show, 1, row["id"])
    assert (shown["status"], shown["serial_number"]) == ("pending", "")


@pytest.mark.parametrize("how", ["issue", "renew", "replace"])
async def test_a_name_that_is_reserved_while_the_key_is_made_is_not_issued(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    certificates = fleet.one.certificates
    earlier = await certificates.issue(1, [OTHER])
    issue = certificates._issuer.issue

    async def slow(*args: Any, **more: Any) -> Any:
        await fleet.reserve()
        return await issue(*args, **more)

    monkeypatch.setattr(certificates._issuer, "issue", slow)
    if how == "issue":
        assert await refused(certificates.issue(1, [OTHER]))
    elif how == "renew":
        assert await refused(certificates.renew(1, earlier["id"]))
    else:
        assert await refused(certificates.revoke(1, earlier["id"], replace=True))
    (row,) = await fleet.one.work(certificates.page_of_user, 1, 0, 10)
    assert (row["serial_number"], row["status"]) == (earlier["serial_number"], "active")


async def test_certificates_for_names_of_other_planes_are_found_at_a_start(fleet: Fleet) -> None:
    row = await fleet.one.certificates.issue(1, [OTHER])
    await fleet.reserve()
    found = await fleet.one.work(fleet.one.certificates.reserve, [ONE])
    assert [one["id"] for one in found] == [row["id"]]


async def test_names_of_a_plane_that_is_down_stay_reserved_for_a_week(fleet: Fleet) -> None:
    await fleet.reserve()
    await fleet.other.work(fleet.other.housekeeping.tidy)
    await fleet.other.work(fleet.other.planes.leave)
    for _ in range(2):
        fleet.now += KEPT_SECONDS / 2
        await fleet.one.work(fleet.one.housekeeping.tidy)
        assert await fleet.names() == {ONE, OTHER, "localhost"}
        assert await refused(fleet.one.certificates.issue(1, [OTHER]))
    fleet.now += 120
    await fleet.one.work(fleet.one.housekeeping.tidy)
    assert await fleet.names() == {ONE, "localhost"}
    assert (await fleet.one.certificates.issue(1, [OTHER]))["status"] == "active"
    await fleet.other.work(fleet.other.housekeeping.tidy)
    assert OTHER in await fleet.names(), "it runs again"


async def test_a_plane_that_is_renamed_frees_its_former_name(fleet: Fleet) -> None:
    await fleet.reserve()
    await fleet.other.work(fleet.other.certificates.reserve, ["renamed.example"])
    assert await fleet.names() == {ONE, "localhost", "renamed.example"}
    assert (await fleet.one.certificates.issue(1, [OTHER]))["status"] == "active"


async def test_planes_with_one_name_free_each_others_names_never(fleet: Fleet) -> None:
    """Two hosts may have one host name, and their planes the same directory."""
    planes = fleet.one, fleet.other
    for plane in planes:
        plane.reserved._plane = "same"
    await fleet.reserve()
    for _ in range(5):
        for plane in planes:
            await plane.work(plane.housekeeping.tidy)
            assert {ONE, OTHER} <= await fleet.names()
            assert await refused(fleet.one.certificates.issue(1, [OTHER]))
        fleet.now += 30


async def test_a_plane_that_starts_with_another_name_frees_its_former_one(fleet: Fleet) -> None:
    await fleet.reserve()
    restarted = fleet.started()
    restarted.reserved._plane = fleet.other.reserved._plane
    await restarted.work(restarted.certificates.reserve, ["renamed.example"])
    fleet.now += RUNNING_SECONDS + 1
    await restarted.work(restarted.housekeeping.tidy)
    await fleet.one.work(fleet.one.housekeeping.tidy)
    assert await fleet.names() == {ONE, "localhost", "renamed.example"}


async def test_a_plane_on_a_read_only_database_still_refuses_its_names(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet.other.database, "is_read_only", lambda: True)
    await fleet.reserve()
    assert await fleet.names() == {ONE, "localhost"}
    assert await refused(fleet.other.certificates.issue(1, [OTHER]))


async def test_a_plane_stores_a_bounded_number_of_names(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    await fleet.one.work(fleet.one.certificates.reserve, [f"n{number}.example" for number in range(MAX_NAMES)])
    assert not caplog.records
    await fleet.one.work(fleet.one.certificates.reserve, [f"n{number}.example" for number in range(MAX_NAMES + 5)])
    assert len(await fleet.names()) == MAX_NAMES
    assert f"has {MAX_NAMES + 5} names, of which {MAX_NAMES} are reserved" in caplog.text
    assert f"n{MAX_NAMES}.example" in caplog.text


async def test_a_name_is_not_reserved_and_issued_in_the_same_moment(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plane that reserves it finds the certificate that is not committed yet."""
    table = fleet.one.certificates._table
    stored, log, found = trio.Event(), table.log, []
    token = trio.lowlevel.current_trio_token()

    def slow(*args: Any) -> int:
        issue_id = log(*args)
        token.run_sync_soon(stored.set)
        time.sleep(0.3)  # the unit of work has not ended
        return issue_id

    async def reserve() -> None:
        await stored.wait()
        found.extend(await fleet.other.work(fleet.other.certificates.reserve, [OTHER]))

    monkeypatch.setattr(table, "log", slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reserve)
        row = await fleet.one.certificates.issue(1, [OTHER])
    assert [one["id"] for one in found] == [row["id"]]
