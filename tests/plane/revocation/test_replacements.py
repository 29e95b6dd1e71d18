"""Revocations with a replacement: which comes first, and which keys are used again."""

from __future__ import annotations

import pytest
from cryptography import x509
from engine_plane import new_device
from issuer_scene import Scene, revocation_states

from certctrl.errors import PlaneError
from certctrl.plane.ca.x509 import serial_text
from certctrl.plane.issuers.issuer import IssuerError
from certctrl.plane.settings import DAY


async def test_a_replacement_by_the_built_in_ca_comes_first(scene: Scene) -> None:
    device = await new_device(scene.plane)
    for code in ("superseded", "keyCompromise"):
        row = await scene.issued(issuer="builtin", device_ids=[device])
        old = await scene.pem(row["id"])
        done = await scene.revoke(row["id"], reason_code=code, replace=True)
        assert (done["status"], done["revoked_at"]) == ("active", None)
        assert done["serial_number"] != row["serial_number"]
        assert revocation_states(done) == [(row["serial_number"], "done")]
        new = await scene.pem(row["id"])
        assert (
            x509.load_pem_x509_certificate(new.encode()).public_key()
            != x509.load_pem_x509_certificate(old.encode()).public_key()
        )
        assert await scene.listed(old) is not None
        assert await scene.listed(new) is None
    assert "cert.revoked" not in await scene.signal_types(device)


async def test_at_another_ca_the_old_one_is_revoked_once_the_replacement_is_issued(scene: Scene) -> None:
    row = await scene.issued()
    scene.ca.script = [IssuerError("the CA is away")]
    done = await scene.revoke(row["id"], reason_code="superseded", replace=True)
    assert (done["status"], done["serial_number"]) == ("active", row["serial_number"])
    assert revocation_states(done) == [(row["serial_number"], "waiting")]
    assert await scene.plane.order_runner.run_once() == 1
    await scene.run_revocations(0)
    scene.now += DAY
    assert await scene.plane.order_runner.run_once() == 1
    assert (await scene.certificate(row["id"]))["serial_number"] != row["serial_number"]
    await scene.run_revocations()
    assert [code for _, _, code in scene.ca.revocations] == ["superseded"]
    found = x509.load_pem_x509_certificate(scene.ca.revocations[0][0].encode())
    assert serial_text(found) == row["serial_number"]


async def test_a_compromised_key_is_revoked_at_once_and_never_used_again(scene: Scene) -> None:
    row = await scene.issued(reuse_key=True)
    done = await scene.revoke(row["id"], reason_code="keyCompromise", replace=True)
    assert revocation_states(done) == [(row["serial_number"], "due")]
    await scene.run_revocations()
    assert [code for _, _, code in scene.ca.revocations] == ["keyCompromise"]
    assert await scene.plane.order_runner.run_once() == 1
    first, second = (x509.load_der_x509_csr(one.csr_der).public_key() for one in scene.ca.requests)
    assert first != second
    await scene.plane.certificates.renew(1, row["id"])  # an ordinary renewal uses the key again
    assert await scene.plane.order_runner.run_once() == 1
    assert x509.load_der_x509_csr(scene.ca.requests[2].csr_der).public_key() == second


async def test_an_open_renewal_does_not_replace_a_compromised_key(scene: Scene) -> None:
    row = await scene.issued(reuse_key=True)
    scene.ca.script = [IssuerError("the CA is away")]
    await scene.plane.certificates.renew(1, row["id"])
    assert await scene.plane.order_runner.run_once() == 1
    await scene.revoke(row["id"], reason_code="keyCompromise", replace=True)
    assert await scene.plane.order_runner.run_once() == 1
    first, _, last = (x509.load_der_x509_csr(one.csr_der).public_key() for one in scene.ca.requests)
    assert first != last


async def test_an_operator_can_revoke_what_waits_for_a_replacement(scene: Scene) -> None:
    row = await scene.issued()
    scene.ca.script = [IssuerError("the CA is away")]
    await scene.revoke(row["id"], reason_code="superseded", replace=True)
    assert await scene.plane.order_runner.run_once() == 1
    done = await scene.revoke(row["id"], reason_code="keyCompromise")
    assert (done["status"], revocation_states(done)) == ("revoked", [(row["serial_number"], "due")])
    await scene.run_revocations()
    assert [code for _, _, code in scene.ca.revocations] == ["keyCompromise"]


async def test_what_cannot_be_replaced_is_refused(scene: Scene) -> None:
    pending = await scene.plane.certificates.issue(1, ["www.example.com"], issuer="le")
    with pytest.raises(PlaneError, match="not issued yet") as refused:
        await scene.revoke(pending["id"], replace=True)
    assert refused.value.status == 409
    row = await scene.issued(issuer="builtin")
    with pytest.raises(PlaneError, match="present certificate"):
        await scene.revoke(row["id"], replace=True, serial_number=row["serial_number"])
    await scene.plane.work(scene.plane.certificates.reserve, ["www.example.com"])
    with pytest.raises(PlaneError) as refused:
        await scene.revoke(row["id"], replace=True)
    assert refused.value.key == "NAME_RESERVED"
    assert (await scene.certificate(row["id"]))["revocations"] == []


async def test_what_is_done_to_a_template_is_done_to_the_certificates_made_from_it(scene: Scene) -> None:
    rows = [await scene.issued(issuer="builtin") for _ in range(4)]
    for row in rows[1:3]:
        sql = "UPDATE certificates SET template_id = ? WHERE id = ?"
        await scene.plane.work(scene.plane.database.run, sql, rows[0]["id"], row["id"])
    await scene.revoke(rows[0]["id"], replace=True, reason_code="keyCompromise")
    now = [await scene.certificate(row["id"]) for row in rows]
    assert [old["serial_number"] != new["serial_number"] for old, new in zip(rows, now, strict=True)] == [
        True, True, True, False,
    ]  # fmt: skip
    await scene.revoke(rows[1]["id"])
    assert [(await scene.certificate(row["id"]))["status"] for row in rows] == ["active", "revoked", "active", "active"]
    await scene.revoke(rows[0]["id"])
    assert [(await scene.certificate(row["id"]))["status"] for row in rows] == [*["revoked"] * 3, "active"]
