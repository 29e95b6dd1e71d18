"""Revocations at the built-in CA and at other CAs: retries for days, earlier serials, manual ones."""

from __future__ import annotations

import pytest
from engine_plane import new_device
from issuer_scene import Scene, revocation_states
from made_chains import made, pki
from scripted_issuer import WALL

from certctrl.errors import PlaneError
from certctrl.plane.ca.crl import REASONS
from certctrl.plane.certificates.imports import ImportRequest
from certctrl.plane.health.problems import ProblemName
from certctrl.plane.issuers.issuer import IssuerError
from certctrl.plane.revocation.revocations import FIRST_PAUSE, MAX_PAUSE, clean_serial
from certctrl.plane.settings import DAY


async def test_the_built_in_ca_lists_what_is_revoked_with_the_reason(scene: Scene) -> None:
    for code in ("", *REASONS):
        row = await scene.issued(issuer="builtin")
        pem = await scene.pem(row["id"])
        assert await scene.listed(pem) is None
        done = await scene.revoke(row["id"], reason="a test", reason_code=code)
        assert (done["status"], done["revoke_code"]) == ("revoked", code)
        assert revocation_states(done) == [(row["serial_number"], "done")]
        entry = await scene.listed(pem)
        assert entry is not None
        reasons = [extension.value.reason for extension in entry.extensions]
        assert reasons == ([] if code in ("", "unspecified") else [REASONS[code]])
    await scene.run_revocations(0)
    assert scene.ca.revocations == []


async def test_unknown_reasons_are_refused(scene: Scene) -> None:
    row = await scene.issued(issuer="builtin")
    for code in ("keycompromise", "cACompromise", "removeFromCRL", "certificateHold", "1"):
        with pytest.raises(PlaneError, match="keyCompromise") as refused:
            await scene.revoke(row["id"], reason_code=code)
        assert refused.value.status == 400
    assert (await scene.certificate(row["id"]))["status"] == "active"


async def test_another_ca_revokes_by_a_job(scene: Scene) -> None:
    device = await new_device(scene.plane)
    row = await scene.issued(device_ids=[device])
    pem = await scene.pem(row["id"])
    done = await scene.revoke(row["id"], reason_code="superseded")
    assert done["status"] == "revoked"
    assert revocation_states(done) == [(row["serial_number"], "due")]
    assert await scene.signal_types(device) == ["cert.renewed", "cert.revoked"]
    await scene.run_revocations()
    assert scene.ca.revocations == [(pem, scene.ca.authority.pem, "superseded")]
    assert revocation_states(await scene.certificate(row["id"])) == [(row["serial_number"], "done")]
    await scene.run_revocations(0)


async def test_a_ca_that_fails_is_asked_again_for_days_and_the_failure_is_shown(scene: Scene) -> None:
    row = await scene.issued(validity_seconds=int(60 * DAY))
    await scene.revoke(row["id"])
    scene.ca.revoke_script = [IssuerError("the CA is away", fix="wait") for _ in range(40)]
    asked, pauses = 0, []
    while asked < 40:
        if await scene.plane.revocation_runner.run_once():
            asked += 1
            (shown,) = (await scene.certificate(row["id"]))["revocations"]
            assert (shown["state"], shown["attempts"]) == ("due", asked)
            assert (shown["problem"], shown["fix"]) == ("the CA is away", "wait")
            pauses.append(scene.now)
        scene.now += 600 if asked else 1
    assert "the CA is away" in scene.plane.problems.now()[0].what
    assert ProblemName.REVOCATIONS in scene.plane.problems
    assert scene.now - WALL > 3 * DAY
    scene.now += MAX_PAUSE
    await scene.run_revocations()
    assert revocation_states(await scene.certificate(row["id"])) == [(row["serial_number"], "done")]
    assert ProblemName.REVOCATIONS not in scene.plane.problems


async def test_pauses_grow_and_respect_the_cas_wish(scene: Scene) -> None:
    row = await scene.issued()
    await scene.revoke(row["id"])
    scene.ca.revoke_script = [IssuerError("busy"), IssuerError("busy", retry_after=5 * FIRST_PAUSE)]
    await scene.run_revocations()
    scene.now += FIRST_PAUSE
    await scene.run_revocations()
    scene.now += 4 * FIRST_PAUSE
    await scene.run_revocations(0)
    scene.now += 2 * FIRST_PAUSE
    await scene.run_revocations()
    assert len(scene.ca.revocations) == 3


async def test_an_operator_who_repeats_the_command_makes_the_next_attempt_now(scene: Scene) -> None:
    row = await scene.issued()
    await scene.revoke(row["id"])
    scene.ca.revoke_script = [IssuerError("refused", is_permanent=True)]
    await scene.run_revocations()
    await scene.run_revocations(0)
    await scene.revoke(row["id"])
    await scene.run_revocations()
    assert revocation_states(await scene.certificate(row["id"])) == [(row["serial_number"], "done")]


async def test_a_crash_during_an_attempt_leads_to_another_one(scene: Scene) -> None:
    row = await scene.issued()
    await scene.revoke(row["id"])
    jobs = scene.plane.jobs
    assert len(await scene.plane.work(jobs.claim, "revocation", limit=5, lease_seconds=120)) == 1
    other = scene.another()
    assert await other.revocation_runner.run_once() == 0
    scene.now += 121
    assert await other.revocation_runner.run_once() == 1
    assert revocation_states(await scene.certificate(row["id"])) == [(row["serial_number"], "done")]


async def test_an_expired_certificate_need_not_be_revoked_at_the_ca(scene: Scene) -> None:
    row = await scene.issued(validity_seconds=int(DAY))
    await scene.revoke(row["id"])
    scene.now += 2 * DAY
    await scene.run_revocations()
    (shown,) = (await scene.certificate(row["id"]))["revocations"]
    assert (shown["state"], shown["problem"]) == ("done", "it expired before the CA revoked it")
    assert scene.ca.revocations == []


async def test_an_unexpected_exception_of_an_issuer_is_a_failure(scene: Scene) -> None:
    row = await scene.issued()
    await scene.revoke(row["id"])
    scene.ca.revoke_script = [ZeroDivisionError("x")]
    await scene.run_revocations()
    (shown,) = (await scene.certificate(row["id"]))["revocations"]
    assert shown["problem"] == "unexpected ZeroDivisionError in issuer le"


async def test_an_earlier_serial_is_revoked_alone(scene: Scene) -> None:
    device, old = await new_device(scene.plane), ""
    for issuer in ("builtin", "le"):
        row = await scene.issued(issuer=issuer, device_ids=[device])
        old = await scene.pem(row["id"])
        await scene.plane.certificates.renew(1, row["id"])
        await scene.plane.order_runner.run_once()
        new = await scene.certificate(row["id"])
        before = await scene.signal_types(device)
        text = row["serial_number"].upper().replace(":", "")
        done = await scene.revoke(row["id"], serial_number=text, reason_code="keyCompromise")
        assert (done["status"], done["serial_number"]) == ("active", new["serial_number"])
        assert revocation_states(done) == [(row["serial_number"], "done" if issuer == "builtin" else "due")]
        assert await scene.signal_types(device) == before
        if issuer == "builtin":
            assert await scene.listed(old) is not None
            assert await scene.listed(await scene.pem(row["id"])) is None
    await scene.run_revocations()
    assert [(pem, code) for pem, _, code in scene.ca.revocations] == [(old, "keyCompromise")]


async def test_a_serial_that_the_certificate_never_had_is_refused(scene: Scene) -> None:
    row, other = await scene.issued(issuer="builtin"), await scene.issued(issuer="builtin")
    for serial in ("0a:0b", other["serial_number"]):
        with pytest.raises(PlaneError, match="never had") as refused:
            await scene.revoke(row["id"], serial_number=serial)
        assert refused.value.status == 404
    for serial in ("xyz", "-1", "0", "1" * 80, "٣"):
        with pytest.raises(PlaneError, match="hexadecimal"):
            await scene.revoke(row["id"], serial_number=serial)
    assert (await scene.certificate(row["id"]))["revocations"] == []


async def test_a_serial_of_a_release_that_kept_no_earlier_certificates_is_in_the_lists(scene: Scene) -> None:
    row = await scene.issued(issuer="builtin")
    old = await scene.pem(row["id"])
    await scene.plane.certificates.renew(1, row["id"])
    await scene.plane.work(scene.plane.database.run, "DELETE FROM former_certificates")
    await scene.revoke(row["id"], serial_number=row["serial_number"])
    assert await scene.listed(old) is not None


@pytest.mark.parametrize("text", ["04:ab", "04AB", "0x4ab", " 04 ab ", "4:AB"])
def test_serials_in_any_form(text: str) -> None:
    assert clean_serial(text) == "04:ab"


async def test_the_issuer_that_issued_revokes_even_if_the_certificate_has_another_one_now(scene: Scene) -> None:
    row = await scene.issued()
    old = await scene.pem(row["id"])
    await scene.plane.certificates.change(1, row["id"], issuer="builtin")
    await scene.plane.certificates.renew(1, row["id"])
    await scene.revoke(row["id"], serial_number=row["serial_number"])
    await scene.run_revocations()
    assert [pem for pem, _, _ in scene.ca.revocations] == [old]


async def test_an_imported_certificate_says_what_to_do_at_its_ca(scene: Scene) -> None:
    row = await scene.issued()
    sql = "UPDATE certificates SET issuer = 'import', issued_by = 'import' WHERE id = ?"
    await scene.plane.work(scene.plane.database.run, sql, row["id"])
    with pytest.raises(PlaneError, match="cert-ctrl plane import"):
        await scene.revoke(row["id"], replace=True)
    (shown,) = (await scene.revoke(row["id"]))["revocations"]
    assert shown["state"] == "manual"
    assert shown["fix"].startswith(f"revoke the serial number {row['serial_number']} at the CA that issued it")
    await scene.run_revocations(0)
    (shown,) = (await scene.revoke(row["id"], confirmed=True))["revocations"]
    assert (shown["state"], shown["problem"]) == ("done", "confirmed by an operator")


async def test_an_operator_can_end_attempts_that_the_ca_refuses(scene: Scene) -> None:
    row = await scene.issued()
    with pytest.raises(PlaneError) as refused:
        await scene.revoke(row["id"], confirmed=True)
    assert (refused.value.status, refused.value.key) == (409, "NOT_REVOKED")
    await scene.revoke(row["id"])
    scene.ca.revoke_script = [IssuerError("the program cannot revoke", is_permanent=True)]
    await scene.run_revocations()
    assert ProblemName.REVOCATIONS in scene.plane.problems
    with pytest.raises(PlaneError):
        await scene.revoke(row["id"], confirmed=True, serial_number="0a")
    assert revocation_states(await scene.revoke(row["id"], confirmed=True)) == [(row["serial_number"], "done")]
    scene.now += 2 * DAY
    await scene.run_revocations(0)
    assert ProblemName.REVOCATIONS not in scene.plane.problems
    assert len(scene.ca.revocations) == 1


async def test_expired_certificates_are_forgotten(scene: Scene) -> None:
    row = await scene.issued(issuer="builtin", validity_seconds=int(DAY))
    await scene.revoke(row["id"], replace=True)
    scene.now += 1.5 * DAY
    await scene.plane.work(scene.plane.certificates.delete_expired)
    assert len((await scene.certificate(row["id"]))["revocations"]) == 1
    scene.now += 31 * DAY
    await scene.plane.work(scene.plane.certificates.delete_expired)
    assert (await scene.certificate(row["id"]))["revocations"] == []
    counts = await scene.plane.work(scene.plane.database.one, "SELECT count(*) AS n FROM former_certificates")
    assert counts is not None
    assert counts["n"] == 0


async def test_cas_may_give_the_same_serial_number(scene: Scene) -> None:
    first, second = pki(), pki(prefix="Other ")
    rows = []
    for name, chain in (("a.example", first), ("b.example", second)):
        one = made(name, chain[-1], names=[name], serial=7)
        given = ImportRequest(certificate_pem=one.pem, private_key_pem=one.key_pem, chain_pem=chain[-1].pem)
        rows.append(await scene.plane.imports.add(1, given))
    assert rows[0]["serial_number"] == rows[1]["serial_number"]
    for row in rows:
        done = await scene.revoke(row["id"])
        assert (done["status"], revocation_states(done)) == ("revoked", [(row["serial_number"], "manual")])
    await scene.revoke(rows[0]["id"], confirmed=True)
    assert [revocation_states(await scene.certificate(row["id"]))[0][1] for row in rows] == ["done", "manual"]


async def test_earlier_certificates_with_the_same_serial_number_are_kept(scene: Scene) -> None:
    first, second = pki(), pki(prefix="Other ")
    for name, chain in (("a.example", first), ("b.example", second)):
        for serial, start in ((7, -120.0), (8 + len(name), -60.0)):
            one = made(name, chain[-1], names=[name], serial=serial, start=WALL + start)
            given = ImportRequest(certificate_pem=one.pem, private_key_pem=one.key_pem, chain_pem=chain[-1].pem)
            row = await scene.plane.imports.add(1, given)
        done = await scene.revoke(row["id"], serial_number="7")
        assert (done["status"], revocation_states(done)) == ("active", [("07", "manual")])


async def test_an_issuer_that_is_still_to_revoke_is_not_removed(scene: Scene) -> None:
    row = await scene.issued()
    scene.ca.revoke_script = [IssuerError("down")]
    await scene.revoke(row["id"])
    await scene.run_revocations()
    with pytest.raises(PlaneError, match="Issuer le still has to revoke 1 certificate;") as refused:
        await scene.plane.work(scene.plane.issuers.remove, "le")
    assert (refused.value.status, refused.value.key) == (409, "IN_USE")
    scene.now += DAY
    await scene.run_revocations()
    await scene.plane.work(scene.plane.issuers.remove, "le")


async def test_a_clock_that_was_set_back_delays_no_revocation(scene: Scene) -> None:
    row = await scene.issued()
    scene.now += 365 * DAY
    await scene.plane.work(
        scene.plane.database.run, "UPDATE certificates SET not_after = ? WHERE id = ?", scene.now + DAY, row["id"]
    )
    scene.ca.revoke_script = [IssuerError("down")]
    await scene.revoke(row["id"])
    await scene.run_revocations()
    scene.now -= 365 * DAY
    await scene.run_revocations()
    assert revocation_states(await scene.certificate(row["id"])) == [(row["serial_number"], "done")]
