"""What is noted of the reports of devices, on both engines."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fleet_site import FAILED, Site, fleet_site

from certctrl.plane.storage.database import Database


@pytest.fixture
def site(open_database: Callable[[], Database]) -> Site:
    return fleet_site(open_database)


@pytest.mark.parametrize("together", [False, True])
async def test_a_failure_counts_from_its_first_report(site: Site, together: bool) -> None:
    device = await site.device("web-1")
    cert = await site.certificate("a.test", device)
    for _ in range(3):
        await site.report(device, cert, FAILED, "run command-failed", together=together)
        site.now[0] += 10
    (row,) = (await site.devices(states=("degraded",)))["devices"]
    assert (row["why"]["attempts"], row["why"]["since"], row["since"]) == (
        3,
        "2026-09-21T14:13:20Z",
        row["why"]["since"],
    )
    await site.report(device, cert, FAILED, "probe no-tls", together=together)
    (row,) = (await site.devices(states=("degraded",)))["devices"]
    assert (row["why"]["attempts"], row["why"]["since"]) == (1, "2026-09-21T14:13:50Z"), "another cause"
    assert row["since"] == "2026-09-21T14:13:20Z", "but degraded since the first"
    await site.report(device, cert, serial=await site.serial(cert), together=together)
    assert (await site.devices(states=("degraded",)))["devices"] == []


async def test_a_device_cannot_fill_the_table(site: Site) -> None:
    device = await site.device("web-1")
    for cert_id in (*range(1, 50), 0, -1, 2**60, True, "1", None, 1.5, [1]):
        await site.report(device, 1, FAILED, "run command-failed", ref={"cert_id": cert_id})
        await site.report(device, 1, FAILED, "trust policy", kind="ca.assigned", ref={"ca_id": cert_id})
        await site.report(device, 1, FAILED, "answer policy", kind="acme.http01.start", ref={"token": "x" * 16})
        await site.report(device, 1, FAILED, "receive malformed", kind="strange")
    assert await site.noted() == []


async def test_another_device_s_certificate_is_not_noted(site: Site) -> None:
    mine, other = await site.device("mine"), await site.device("other")
    cert = await site.certificate("a.test", mine)
    await site.report(other, cert, FAILED, "run command-failed")
    assert await site.causes() == []


async def test_other_certificates_that_were_deployed_with_it_are_noted(site: Site) -> None:
    device = await site.device("web-1")
    cert = await site.certificate("a.test", device)
    await site.report(
        device,
        cert,
        serial=(await site.serial(cert)).upper(),
        served=True,
        kind="install.updated",
        ref={"config_id": 1},
    )
    assert await site.word(cert) == "served"


async def test_an_unassigned_certificate_is_forgotten_once_it_is_gone(site: Site) -> None:
    device = await site.device("web-1")
    cert = await site.certificate("a.test", device)
    await site.report(device, cert, serial=await site.serial(cert))
    await site.plane.certificates.unassign(1, device, cert)
    await site.report(device, cert, FAILED, "withdraw file-stays", kind="cert.unassigned")
    (cause,) = await site.causes()
    assert (cause["reason"], cause["devices"], cause["certificates"]) == ("file-stays", 1, 0)
    await site.report(device, cert, kind="cert.unassigned")
    assert await site.noted() == []


async def test_a_sent_signing_request_ends_only_the_failure_of_its_own(site: Site) -> None:
    device = await site.device("web-1")
    cert = await site.certificate("a.test", device)
    csr = {"kind": "cert.csr_wanted", "ref": {"cert_id": cert, "order_id": 1}}
    await site.report(device, cert, FAILED, "order policy", **csr)
    assert [one["step"] for one in await site.causes()] == ["order"]
    await site.report(device, cert, **csr)
    assert await site.causes() == []
    await site.report(device, cert, FAILED, "run command-failed")
    await site.report(device, cert, **csr)
    assert [one["step"] for one in await site.causes()] == ["run"]


async def test_a_device_with_a_new_identity_has_deployed_nothing(site: Site) -> None:
    devices = [await site.device(f"web-{number}") for number in range(2)]
    cert = await site.certificate("a.test", *devices)
    for device in devices:
        await site.report(device, cert, serial=await site.serial(cert), served=True)
        await site.report(device, 0, FAILED, "plan item-refused", kind="install.updated", ref={})
    registered_again = site.plane.enrolment.on_registered
    await site.plane.work(registered_again, devices[0], False)
    assert len(await site.noted()) == 4, "the same host"
    await site.plane.work(registered_again, devices[0], True)
    assert {row["device_id"] for row in await site.noted()} == {devices[1]}
    assert [one["devices"] for one in await site.causes()] == [1]
    assert (await site.certificates())["certificates"][0]["newest_deployed"] == 1


async def test_outcomes_that_an_earlier_release_stored_are_noted_in_rounds(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("certctrl.plane.devices.reports._NOTED_DEVICES", 2)
    devices = [await site.device(f"web-{number}") for number in range(3)]
    cert = await site.certificate("a.test", *devices)
    serial = await site.serial(cert)
    for device in devices:
        await site.report(device, cert, FAILED)
        site.now[0] += 10
        await site.report(device, cert, serial=serial)
    site.now[0] += 10
    await site.report(devices[0], cert, FAILED, detail="item a: /bin/x exited with 1")

    def forget() -> None:
        database = site.plane.database
        database.run("DELETE FROM deployments")
        database.run("UPDATE outcomes SET step = '', reason = ''")
        database.run("INSERT INTO settings VALUES ('outcomes_to_note', '0')")

    await site.plane.work(forget)
    rounds = 0
    while await site.plane.work(site.plane.database.setting, "outcomes_to_note"):
        await site.plane.work(site.plane.reports.note_earlier)
        rounds += 1
    assert rounds == 3, "two devices, one device, none"
    (cause,) = await site.causes()
    assert (cause["reason"], cause["devices"], cause["since"]) == ("command-failed", 1, "2026-09-21T14:14:00Z")
    assert (await site.certificates())["certificates"][0]["newest_deployed"] == 2
    await site.plane.work(site.plane.reports.note_earlier)


@pytest.mark.parametrize(
    "damage", ["outcome = 'unheard-of'", "ref = '{'", "ref = '[]'", "deployed = ''", "deployed = '{}'"]
)
async def test_an_unreadable_outcome_of_an_earlier_release_is_skipped_and_logged(
    site: Site, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    device = await site.device("web-1")
    certs = [await site.certificate(name, device) for name in ("a.test", "b.test")]
    for cert in certs:
        await site.report(device, cert, FAILED)
        site.now[0] += 10

    def harm() -> None:
        database = site.plane.database
        database.run("DELETE FROM deployments")
        database.run(f"UPDATE outcomes SET {damage} WHERE signal LIKE ?", f"%cert_id={certs[0]}|%")
        database.run("INSERT INTO settings VALUES ('outcomes_to_note', '0')")

    await site.plane.work(harm)
    await site.plane.work(site.plane.reports.note_earlier)
    (cause,) = await site.causes()
    assert cause["certificates"] == 1, "the other one"
    assert f"device {device}: skipped a stored outcome that cannot be read" in caplog.text
    await site.plane.work(site.plane.reports.note_earlier)
    assert not await site.plane.work(site.plane.database.setting, "outcomes_to_note"), "all are done"
