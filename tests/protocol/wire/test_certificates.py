"""Certificates, materials and CAs: accepted, or refused without showing a secret."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.errors import BadAnswerError, MaterialError
from certctrl.protocol.wire.certificates import (
    ca_from_wire,
    ca_names_from_wire,
    certificate_from_wire,
    materials_from_wire,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
ROW = {
    "id": 7, "domain_name": "a.example", "sans": ["a.example", "b.example"], "serial_number": "04:ab",
    "fingerprint_sha256": "00ff", "not_before": "2025-01-01T00:00:00Z", "not_after": 1_800_000_000,
    "status": "active", "updated_at": "2025-01-01T00:00:00Z",
}  # fmt: skip
SEALED = {
    "wrap_alg": "x25519", "enc_scheme": "aes256gcm", "device_keyfp_b64": "a", "enc_data_key_b64": "b",
    "enc_privkey_b64": "c", "privkey_nonce_b64": "d", "privkey_tag_b64": "e", "certificate_pem": "f",
    "chain_pem": "g", "serial_number": "04",
}  # fmt: skip


def test_a_certificate() -> None:
    found = certificate_from_wire(ROW)
    assert found.id == 7
    assert found.sans == ("a.example", "b.example")
    assert found.not_after == "2027-01-15T08:00:00Z"
    assert found.certificate_pem is None
    assert certificate_from_wire(ROW | {"certificate_pem": "x", "chain_pem": ""}).certificate_pem == "x"
    assert certificate_from_wire({"id": "7", "domain_name": "a"}).status == ""


@pytest.mark.parametrize(
    "change", [{"id": 0}, {"id": None}, {"domain_name": ""}, {"sans": "a"}, {"status": 1}, {"not_after": []}]
)
def test_a_certificate_that_does_not_fit(change: dict[str, Any]) -> None:
    with pytest.raises(BadAnswerError, match=f"certificate.{next(iter(change))}"):
        certificate_from_wire(ROW | change)


@pytest.mark.parametrize("scheme", ["aes256gcm", "AES256GCM", "aead", "1", 1, None, ""])
@pytest.mark.parametrize("wrap", ["x25519", "x25519-v1", "X25519", None, ""])
def test_sealed_material_in_every_spelling(scheme: object, wrap: object) -> None:
    found = materials_from_wire(SEALED | {"enc_scheme": scheme, "wrap_alg": wrap})
    assert (found.enc_scheme, found.wrap_alg, found.enc_privkey_b64) == ("aes256gcm", "x25519", "c")


def test_plaintext_material() -> None:
    found = materials_from_wire({"enc_scheme": "plaintext", "private_key_pem": "hunter2"})
    assert (found.enc_scheme, found.private_key_pem, found.certificate_pem) == ("plaintext", "hunter2", None)
    assert "hunter2" not in repr(found)


@pytest.mark.parametrize(
    "change", [{"enc_scheme": "rot13"}, {"enc_scheme": 2}, {"wrap_alg": "rsa"}, {"enc_scheme": "none"}]
)
def test_unknown_schemes(change: dict[str, Any]) -> None:
    with pytest.raises(MaterialError) as caught:
        materials_from_wire(SEALED | change)
    assert (caught.value.reason, caught.value.fix) == ("unknown-scheme", "upgrade this agent")
    assert str(next(iter(change.values()))) in str(caught.value)


@pytest.mark.parametrize("name", SEALED)
def test_material_that_does_not_fit(name: str) -> None:
    with pytest.raises(BadAnswerError, match=f"materials.{name}: expected text, got a list"):
        materials_from_wire(SEALED | {name: ["hunter2"]})


@pytest.mark.parametrize("key", ["A" * 63 + "Q", "XXXX", "AAAX", "X==="])
def test_a_data_key_with_other_than_zero_bytes_is_not_pending(key: str) -> None:
    assert materials_from_wire(SEALED | {"enc_data_key_b64": key}).enc_data_key_b64 == key


def test_a_ca() -> None:
    assert ca_from_wire({"id": 3, "name": "in", "ca_certificate_pem": "pem"}).ca_certificate_pem == "pem"
    for wrong in ({}, {"id": 3}, {"id": 3, "ca_certificate_pem": ""}, []):
        with pytest.raises(BadAnswerError, match=r"^ca[.:]"):
            ca_from_wire(wrong)


def test_names_of_cas() -> None:
    rows = [{"id": 3, "name": "inner"}, {"id": "4", "more": 1}, {"id": 5, "name": None}]
    assert ca_names_from_wire(rows) == {3: "inner", 4: "", 5: ""}
    assert ca_names_from_wire([]) == {}


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ({}, "cas: expected a list, got an object"),
        (None, "cas: expected a list, got null"),
        ([{"id": 3}] * 10_001, "cas: more than 10000 items"),
        ([{"id": 3}, 5], "cas[1]: expected an object, got a whole number"),
        ([{"id": 3}, {"name": "x"}], "cas[1].id: missing"),
        ([{"id": 0}], "cas[0].id: expected an integer from 1"),
        ([{"id": 3, "name": "x" * 1025}], "cas[0].name: longer than 1024 characters"),
    ],
)
def test_names_of_cas_that_do_not_fit(rows: object, why: str) -> None:
    with pytest.raises(BadAnswerError) as caught:
        ca_names_from_wire(rows)
    assert str(caught.value).startswith(why)


@given(JSON | st.fixed_dictionaries({}, optional=dict.fromkeys((*ROW, *SEALED, "private_key_pem"), JSON)))
def test_any_value_is_accepted_or_refused(data: object) -> None:
    for read in (certificate_from_wire, materials_from_wire, ca_from_wire):
        try:
            read(data)
        except (BadAnswerError, MaterialError) as error:
            assert "\n" not in str(error)
