"""Batches: renewals that leave together once all are issued, sets of certificates, and what keeps a batch waiting."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest
from engine_plane import new_device
from issuer_scene import Scene

from certctrl.errors import PlaneError
from certctrl.plane.devices.reports import AgentVersion
from certctrl.plane.issuers.issuer import IssuerError
from certctrl.plane.orders.orders import OrderRequest
from certctrl.plane.settings import DAY

RENEW = OrderRequest(action="renew", in_background=True)


class Site:
    """A plane with a device whose agent switches batches together, and certificates on it."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.plane = scene, scene.plane
        self.device = 0
        self.ids: list[int] = []

    async def begin(self, count: int = 3, *features: str) -> None:
        self.device = await new_device(self.plane)
        await self.starts(*(features or ("atomic-batch",)))
        for n in range(count):
            row = await self.scene.issued(f"c{n}.example.com", device_ids=[self.device])
            self.ids.append(row["id"])

    async def starts(self, *features: str) -> None:
        await self.plane.work(self.plane.reports.store, self.device, [AgentVersion("0.9", features)])

    async def start(self, *cert_ids: int) -> str:
        """Order a batch; return its id."""
        rows = await self.plane.work(self.plane.batches.start, 1, cert_ids or self.ids, RENEW)
        assert len({row["batch"] for row in rows}) == 1
        return str(rows[0]["batch"])

    async def run(self) -> int:
        """Run the orders that are due."""
        return await self.plane.order_runner.run_once()

    async def new_signals(self) -> list[dict[str, Any]]:
        """Return the references of the signals since the certificates were issued."""
        found = await self.scene.signals(self.device)
        return [ref for kind, ref in found if kind == "cert.renewed"][len(self.ids) :]

    async def serials(self) -> list[str]:
        return [str((await self.scene.certificate(one))["serial_number"]) for one in self.ids]

    async def listed(self) -> dict[int, Any]:
        rows = await self.plane.work(self.plane.certificates.page, self.device, 0, 100)
        return {row["id"]: row.get("batch") for row in rows}

    async def open(self) -> list[dict[str, Any]]:
        return await self.plane.work(self.plane.batches.open_batches, 1)

    async def order_of(self, cert_id: int) -> dict[str, Any]:
        rows = await self.plane.work(self.plane.orders.page_of_user, 1, 0, 100)
        return [row for row in rows if row["cert_id"] == cert_id][-1]


@pytest.fixture
async def site(scene: Scene) -> Site:
    made = Site(scene)
    await made.begin()
    return made


async def test_signals_of_a_batch_leave_together_once_all_are_issued(site: Site) -> None:
    before = await site.serials()
    batch = await site.start()
    site.scene.ca.script = [IssuerError("down")]
    await site.run()
    assert await site.new_signals() == [] and await site.serials() == before, "two are issued, and nobody sees them"
    (waiting,) = await site.open()
    assert (waiting["id"], waiting["state"], len(waiting["waiting_for"])) == (batch, "waiting", 1)
    assert "down" in waiting["problem"]

    site.scene.now += 3600
    await site.run()
    after = await site.serials()
    assert not set(after) & set(before)
    assert await site.new_signals() == [
        {"cert_id": one, "serial": serial, "batch": {"id": batch, "size": 3}}
        for one, serial in zip(site.ids, after, strict=True)
    ]
    assert await site.open() == []
    assert await site.listed() == {key: {"id": batch, "size": 3} for key in site.ids}


async def test_kept_certificates_are_sealed_and_forgotten(site: Site) -> None:
    await site.start()
    site.scene.ca.script = [IssuerError("down")]
    await site.run()
    rows = await site.plane.work(site.plane.database.all, "SELECT * FROM orders WHERE issued_enc IS NOT NULL")
    assert len(rows) == 2
    assert all(b"BEGIN" not in bytes(row["issued_enc"]) and row["issued_key_enc"] for row in rows)
    site.scene.now += 3600
    await site.run()
    left = "SELECT 1 FROM orders WHERE issued_enc IS NOT NULL OR issued_key_enc IS NOT NULL"
    assert await site.plane.work(site.plane.database.all, left) == []


async def test_the_keys_of_a_batch_fit_their_certificates(site: Site) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_der_private_key

    await site.start()
    await site.run()
    for cert_id in site.ids:
        row = await site.plane.work(site.plane.certificates._table.locked_by_id, cert_id)
        assert row is not None
        key = load_der_private_key(site.plane.certificates._table.key_of(row), None)
        leaf = x509.load_pem_x509_certificate(row["certificate_pem"].encode())
        assert key.public_key() == leaf.public_key()


@pytest.mark.parametrize("features", [("csr",), ("csr", "future")])
async def test_an_older_agent_gets_plain_signals(scene: Scene, features: tuple[str, ...]) -> None:
    site = Site(scene)
    await site.begin(2, *features)
    await site.start()
    await site.run()
    assert [set(ref) for ref in await site.new_signals()] == [{"cert_id", "serial"}] * 2


async def test_each_device_gets_the_members_that_it_has(site: Site) -> None:
    other = await new_device(site.plane, "web-2")
    await site.plane.work(site.plane.reports.store, other, [AgentVersion("0.9", ("atomic-batch",))])
    single = await new_device(site.plane, "web-3")
    await site.plane.work(site.plane.reports.store, single, [AgentVersion("0.9", ("atomic-batch",))])
    for cert_id in site.ids[:2]:
        await site.plane.certificates.assign(1, other, cert_id)
    await site.plane.certificates.assign(1, single, site.ids[0])
    batch = await site.start()
    await site.run()
    theirs = [ref for _, ref in await site.scene.signals(other)][2:]
    assert [(ref["cert_id"], ref["batch"]) for ref in theirs] == [
        (one, {"id": batch, "size": 2}) for one in site.ids[:2]
    ]
    (alone,) = [ref for _, ref in await site.scene.signals(single)][1:]
    assert "batch" not in alone, "one certificate is not a batch"


async def test_a_failed_order_keeps_its_batch_until_it_is_repeated(site: Site) -> None:
    before = await site.serials()
    await site.start()
    site.scene.ca.script = [IssuerError("down")]
    await site.run()
    (waiting,) = await site.open()
    order = await site.order_of(waiting["waiting_for"][0])
    await site.plane.work(site.plane.orders.cancel, 1, order["id"])
    site.scene.now += DAY
    await site.run()
    await site.plane.work(site.plane.batches.release_ready)
    assert await site.serials() == before and await site.new_signals() == []
    (stuck,) = await site.open()
    assert (stuck["state"], f"certificate {order['cert_id']}" in stuck["problem"]) == ("failed", True)
    site.scene.now += 100 * DAY
    await site.plane.work(site.plane.orders.delete_expired)
    assert (await site.open())[0]["state"] == "failed", "the batch does not leave because the order is old"
    await site.plane.work(site.plane.orders.retry, 1, order["id"])
    await site.run()
    await site.run()  # what was issued first has expired meanwhile, and is issued again
    assert await site.open() == []
    assert len(await site.new_signals()) == 3 and not set(await site.serials()) & set(before)


async def test_a_failing_batch_is_a_problem_of_the_plane(site: Site) -> None:
    from certctrl.plane.health.problems import ProblemName

    await site.start()
    order = await site.order_of(site.ids[1])
    await site.plane.work(site.plane.orders.cancel, 1, order["id"])
    await site.plane.order_runner._problems.update()
    assert ProblemName.ORDERS in site.plane.problems


async def test_a_dissolved_batch_delivers_what_it_has(site: Site) -> None:
    batch = await site.start()
    site.scene.ca.script = [IssuerError("down")]
    await site.run()
    assert await site.plane.work(site.plane.batches.dissolve, 1, batch) == []
    assert [set(ref) for ref in await site.new_signals()] == [{"cert_id", "serial"}] * 2
    site.scene.now += 3600
    await site.run()
    assert len(await site.new_signals()) == 3, "the last one follows alone"
    with pytest.raises(PlaneError) as refused:
        await site.plane.work(site.plane.batches.dissolve, 1, batch)
    assert refused.value.status == 404


async def test_a_revoked_certificate_leaves_its_batch(site: Site) -> None:
    batch = await site.start()
    await site.plane.certificates.revoke(1, site.ids[1])
    await site.run()
    await site.plane.work(site.plane.batches.release_ready)
    assert [(ref["cert_id"], ref["batch"]) for ref in await site.new_signals()] == [
        (one, {"id": batch, "size": 2}) for one in (site.ids[0], site.ids[2])
    ]


async def test_a_certificate_in_a_second_batch_leaves_the_first(site: Site) -> None:
    first = await site.start(site.ids[0], site.ids[1])
    second = await site.start(site.ids[1], site.ids[2])
    await site.run()
    await site.plane.work(site.plane.batches.release_ready)
    found = {ref["cert_id"]: ref.get("batch", {}).get("id") for ref in await site.new_signals()}
    assert found == {site.ids[0]: None, site.ids[1]: second, site.ids[2]: second} and first != second


async def test_newer_material_ends_the_batch_in_the_list(site: Site) -> None:
    batch = await site.start()
    await site.run()
    await site.plane.certificates.renew(1, site.ids[0])
    await site.run()
    assert await site.listed() == {
        site.ids[0]: None, site.ids[1]: {"id": batch, "size": 2}, site.ids[2]: {"id": batch, "size": 2}
    }  # fmt: skip
    detail = await site.plane.work(site.plane.certificates.detail, site.device, site.ids[1])
    assert detail["batch"] == {"id": batch, "size": 2}


async def test_none_is_ordered_if_one_cannot_be_renewed(site: Site) -> None:
    await site.plane.certificates.revoke(1, site.ids[2])
    with pytest.raises(PlaneError) as refused:
        await site.start()
    assert (refused.value.status, refused.value.key) == (409, "CERT_REVOKED")
    assert await site.open() == [] and await site.run() == 0
    for ids in ([site.ids[0]], [site.ids[0], site.ids[0]]):
        with pytest.raises(PlaneError) as refused:
            await site.plane.work(site.plane.batches.start, 1, ids, RENEW)
        assert refused.value.status == 400
    with pytest.raises(PlaneError) as refused:
        await site.plane.work(site.plane.batches.start, 1, [site.ids[0], 999], RENEW)
    assert refused.value.status == 404


# --- sets -----------------------------------------------------------------------------------------------------------


async def test_renewing_one_of_a_set_renews_all(site: Site) -> None:
    assert await site.plane.work(site.plane.batches.mark, 1, "shop", site.ids) == [
        {"name": "shop", "cert_ids": site.ids}
    ]
    answer = await site.plane.certificates.renew(1, site.ids[1])
    assert (answer["cert_id"], answer["status"]) == (site.ids[1], "pending")
    await site.run()
    refs = await site.new_signals()
    assert [ref["cert_id"] for ref in refs] == site.ids
    assert len({json.dumps(ref["batch"]) for ref in refs}) == 1


async def test_a_bulk_renewal_of_one_of_a_set_renews_all(site: Site) -> None:
    await site.plane.work(site.plane.batches.mark, 1, "shop", site.ids)
    (row,) = await site.plane.bulk.renew(1, [site.ids[0]], "")
    assert (row["cert_id"], row["problem"]) == (site.ids[0], "")
    await site.run()
    assert len(await site.new_signals()) == 3


async def test_a_set_is_due_as_a_whole(site: Site) -> None:
    await site.plane.work(site.plane.batches.mark, 1, "shop", site.ids)
    far = "UPDATE certificates SET renew_at = ? WHERE id = ?"
    for cert_id, after in zip(site.ids, (1.0, 9e9, 9e9), strict=True):
        await site.plane.work(site.plane.database.run, far, after, cert_id)
    await site.plane.renewals.round()
    await site.run()
    assert len(await site.new_signals()) == 3


async def test_a_set_ends_and_a_certificate_is_in_one_set(site: Site) -> None:
    mark = site.plane.batches.mark
    await site.plane.work(mark, 1, "shop", site.ids[:2])
    assert await site.plane.work(mark, 1, "mail", site.ids[1:]) == [
        {"name": "mail", "cert_ids": site.ids[1:]}, {"name": "shop", "cert_ids": site.ids[:1]}
    ]  # fmt: skip
    await site.plane.work(mark, 1, "mail", [])
    await site.plane.work(mark, 1, "shop", [])
    assert await site.plane.work(site.plane.batches.sets, 1) == []
    await site.plane.certificates.renew(1, site.ids[0])
    await site.run()
    assert len(await site.new_signals()) == 1
    for name, ids in (("no spaces", site.ids), ("", site.ids), ("x" * 65, site.ids), ("one", site.ids[:1])):
        with pytest.raises(PlaneError) as refused:
            await site.plane.work(mark, 1, name, ids)
        assert refused.value.status == 400


async def test_a_member_that_cannot_be_renewed_keeps_nothing_else(site: Site) -> None:
    """Its set would otherwise fail every round, and with it the renewals of all users."""
    await site.plane.work(site.plane.batches.mark, 1, "shop", site.ids[:2])
    await site.plane.work(site.plane.reserved.set, ["c0.example.com"])
    for after, cert_id in enumerate(site.ids, 1):
        sql = "UPDATE certificates SET renew_at = ? WHERE id = ?"
        await site.plane.work(site.plane.database.run, sql, float(after), cert_id)
    await site.plane.renewals.round()
    await site.run()
    assert sorted(ref["cert_id"] for ref in await site.new_signals()) == site.ids[1:]
    assert "is, or covers, a name of this control plane" in (await site.order_of(site.ids[0]))["problem"]
    rows = await site.plane.bulk.renew(1, site.ids, "")
    assert [bool(row["problem"]) for row in rows] == [True, False, False]


async def test_a_replacement_of_a_revoked_certificate_does_not_wait_for_its_set(site: Site) -> None:
    await site.plane.work(site.plane.batches.mark, 1, "shop", site.ids)
    await site.plane.certificates.revoke(1, site.ids[0], replace=True)
    await site.plane.certificates.renew(1, site.ids[1])
    order = await site.order_of(site.ids[2])
    await site.plane.work(site.plane.orders.block, order["id"], "it needs an operator", "")
    await site.run()
    assert [ref["cert_id"] for ref in await site.new_signals()] == [site.ids[0]]


async def test_a_name_that_a_plane_takes_while_a_batch_waits_is_not_delivered(site: Site) -> None:
    before = await site.serials()
    await site.start()
    site.scene.ca.script = [IssuerError("down")]
    await site.run()
    (waiting,) = await site.open()
    kept = min({*site.ids} - {*waiting["waiting_for"]})
    (name,) = (await site.scene.certificate(kept))["sans"]
    await site.plane.work(site.plane.reserved.set, [name])
    site.scene.now += 3600
    await site.run()
    await site.run()
    assert await site.serials() == before and await site.new_signals() == []
    (waiting,) = await site.open()
    assert waiting["waiting_for"] == [kept] and "a name of this control plane" in waiting["problem"]


async def test_a_set_that_has_grown_too_large_is_renewed_one_by_one(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    from certctrl.plane.orders import batches

    await site.plane.work(site.plane.batches.mark, 1, "shop", site.ids)
    monkeypatch.setattr(batches, "MAX_ORDERED", 2)
    await site.plane.certificates.renew(1, site.ids[0])
    await site.run()
    (ref,) = await site.new_signals()
    assert ref["cert_id"] == site.ids[0] and "batch" not in ref


async def test_hosts_that_share_nothing_do_not_wait_for_each_other(site: Site) -> None:
    other = await new_device(site.plane, "web-2")
    await site.plane.work(site.plane.reports.store, other, [AgentVersion("0.9", ("atomic-batch",))])
    elsewhere = [(await site.scene.issued(f"d{n}.example.com", device_ids=[other]))["id"] for n in range(2)]
    rows = await site.plane.work(site.plane.batches.start, 1, [*site.ids, *elsewhere], RENEW)
    assert [rows[0]["batch"], rows[3]["batch"]] == list(dict.fromkeys(row["batch"] for row in rows))
    order = await site.order_of(elsewhere[0])
    await site.plane.work(site.plane.orders.block, order["id"], "its device is away", "")
    await site.run()
    assert [ref["batch"]["size"] for ref in await site.new_signals()] == [3, 3, 3]
    assert len(await site.scene.signals(other)) == 2
    (waiting,) = await site.open()
    assert waiting["cert_ids"] == elsewhere
    alone = await new_device(site.plane, "web-3")
    single = await site.scene.issued("f.example.com", device_ids=[alone])
    shared = await site.scene.issued("e.example.com", device_ids=[site.device, other])
    rows = await site.plane.work(site.plane.batches.start, 1, [*site.ids, *elsewhere, shared["id"]], RENEW)
    assert len({row["batch"] for row in rows}) == 1, "what both have holds them together"
    rows = await site.plane.work(site.plane.batches.start, 1, [*site.ids, single["id"]], RENEW)
    assert [bool(row["batch"]) for row in rows] == [True, True, True, False]


async def test_a_device_renews_only_what_shares_hosts_with_its_own(site: Site) -> None:
    other = await new_device(site.plane, "web-2")
    elsewhere = await site.scene.issued("d.example.com", device_ids=[other])
    await site.plane.work(site.plane.batches.mark, 1, "shop", [*site.ids, elsewhere["id"]])
    await site.plane.certificates.renew(1, site.ids[0], device_id=site.device)
    await site.run()
    assert len(await site.new_signals()) == 3
    assert len(await site.scene.signals(other)) == 1


async def test_certificates_made_from_a_member_are_renewed_with_the_set(site: Site) -> None:
    """Each comes due at its own time."""
    sql = "UPDATE certificates SET template_id = ? WHERE id = ?"
    await site.plane.work(site.plane.database.run, sql, site.ids[0], site.ids[2])
    await site.plane.work(site.plane.batches.mark, 1, "shop", site.ids[:2])
    await site.plane.certificates.renew(1, site.ids[2])
    await site.run()
    assert [ref["batch"]["size"] for ref in await site.new_signals()] == [3, 3, 3]


@pytest.mark.parametrize(("state", "priority"), [("fresh", "renewal"), ("late", "expiring"), ("revoked", "revocation")])
async def test_a_batch_is_as_urgent_as_its_most_urgent_certificate(site: Site, state: str, priority: str) -> None:
    await site.starts("atomic-batch", "priority")
    if state == "late":
        row = await site.scene.certificate(site.ids[1])
        site.scene.now = datetime.fromisoformat(row["not_after"]).timestamp() - 60
    if state == "revoked":
        locked = await site.plane.work(site.plane.certificates._table.locked_by_id, site.ids[1])
        await site.plane.work(site.plane.orders.start, locked, OrderRequest(action="replace"))
    await site.start()
    await site.run()
    page = await site.plane.work(site.plane.stream.read, site.device, None, 100)
    assert [signal["priority"] for signal in page.signals][-3:] == [priority] * 3


async def test_a_crash_between_the_last_issue_and_the_release_loses_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The certificate is kept and the batch released in one unit of work: if that fails, the attempt is repeated."""
    from certctrl.plane.orders import batches

    await site.start()
    announce, failed = batches.Batches._announce, [True]

    def fails_once(self: Any, *args: Any) -> None:
        if failed.pop() if failed else False:
            raise PlaneError("the database is away", status=503)
        announce(self, *args)

    monkeypatch.setattr(batches.Batches, "_announce", fails_once)
    before = await site.serials()
    await site.run()
    assert (await site.serials() == before) == (await site.new_signals() == [])
    site.scene.now += 3600
    await site.run()
    await site.plane.work(site.plane.batches.release_ready)
    assert len(await site.new_signals()) == 3 and not set(await site.serials()) & set(before)
