"""Virtual files contain what their names say, and open in the programs they are made for."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle_maker import Maker, rsa_key
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
    load_pem_private_key,
    pkcs12,
)

from certctrl.errors import MaterialError, PlanError
from certctrl.install.material.bundle import open_bundle, virtual_files
from certctrl.install.material.formats import (
    BASE_FILES,
    base_of,
    ca_files,
    is_virtual,
    password_fault,
    password_kind,
    pem_to_key_der,
)
from certctrl.model.certificate import Bundle
from certctrl.model.modes import has_key
from certctrl.model.plan import CERT_FILES

PASSWORDS = {"pfx": b"pfx-password-0123", "jks": b"jks-password-4567"}


@pytest.fixture(scope="module")
def bundle(maker: Maker, now: float) -> Bundle:
    return open_bundle(
        7, "example.com", maker.materials("example.com", "www.example.com"), maker.secret,
        allow_plaintext=False, now=now, expected_domains=("example.com",),
    )  # fmt: skip


def no_password(kind: str) -> bytes:
    raise AssertionError(f"no {kind} password is needed here")


def test_base_files_are_always_there(bundle: Bundle) -> None:
    files = virtual_files(bundle, (), no_password)
    assert tuple(files) == tuple(sorted(BASE_FILES))
    assert files["fullchain.pem"] == files["certificate.pem"] + files["chain.pem"]


def test_every_name_of_the_contract_can_be_made(bundle: Bundle) -> None:
    files = virtual_files(bundle, CERT_FILES, PASSWORDS.__getitem__)
    assert set(files) == set(CERT_FILES)
    assert files["combined.pem"] == files["private.key"] + files["fullchain.pem"]
    der = x509.load_der_x509_certificate(files["certificate.der"])
    assert der.fingerprint(hashes.SHA256()).hex() == bundle.facts.fingerprint_sha256
    meta = json.loads(files["meta.json"])
    assert (meta["cert_id"], meta["domains"]) == (7, ["example.com", "www.example.com"])


def test_meta_json_has_the_facts(bundle: Bundle) -> None:
    text = virtual_files(bundle, ["meta.json"], no_password)["meta.json"].decode()
    leaf = x509.load_pem_x509_certificate(bundle.certificate_pem)
    assert json.loads(text) == {
        "cert_id": 7,
        "name": "example.com",
        "domains": ["example.com", "www.example.com"],
        "serial_number": bundle.facts.serial,
        "fingerprint_sha256": leaf.fingerprint(hashes.SHA256()).hex(),
        "not_before": int(leaf.not_valid_before_utc.timestamp()),
        "not_after": int(leaf.not_valid_after_utc.timestamp()),
    }
    lines = text.splitlines()
    assert [line[:3] for line in lines].count('  "') == 7, "indented, for people"
    keys = [line.split('"')[1] for line in lines if line.startswith('  "')]
    assert keys == sorted(keys) and text.endswith("}\n")


def test_which_files_have_keys_and_passwords() -> None:
    keys = {"private.key", "private-traditional.key", "combined.pem", "combined-key-last.pem"}
    stores = {"bundle.pfx": "pfx", "bundle-legacy.pfx": "pfx", "bundle.jks": "jks"}
    for name in CERT_FILES:
        assert has_key(name) == (name in keys or name in stores)
        assert password_kind(name) == stores.get(name)
        assert is_virtual(name) and base_of(name) == name
    for name, kind in stores.items():
        alias = f"{name}?alias=Web-1._x"
        assert (has_key(alias), password_kind(alias), base_of(alias), is_virtual(alias)) == (True, kind, name, True)
        assert is_virtual(f"{name}?alias={'a' * 64}")


def test_a_key_of_any_length_becomes_der(maker: Maker, now: float) -> None:
    for key in (rsa_key(), ed25519.Ed25519PrivateKey.generate()):
        der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        assert pem_to_key_der(opened(maker, now, key).key_pem) == der


def test_files_of_a_certificate_without_intermediates(maker: Maker, now: float) -> None:
    key = rsa_key()
    alone = open_bundle(
        1, "Alone", maker.materials("a.example", key=key, chain_pem=""), maker.secret,
        allow_plaintext=False, now=now, expected_domains=("a.example",),
    )  # fmt: skip
    files = virtual_files(alone, CERT_FILES, PASSWORDS.__getitem__)
    assert files["chain.pem"] == b"" and files["fullchain.pem"] == files["certificate.pem"]
    _, leaf, chain = pkcs12.load_key_and_certificates(files["bundle.pfx"], PASSWORDS["pfx"])
    assert leaf is not None and chain == []


def test_unsalted_files_are_the_same_every_time(bundle: Bundle) -> None:
    names = [name for name in CERT_FILES if password_kind(name) is None]
    assert virtual_files(bundle, names, no_password) == virtual_files(bundle, names, no_password)


def test_pkcs12_opens_with_its_password_and_no_other(bundle: Bundle) -> None:
    data = virtual_files(bundle, ["bundle.pfx"], PASSWORDS.__getitem__)["bundle.pfx"]
    key, leaf, chain = pkcs12.load_key_and_certificates(data, PASSWORDS["pfx"])
    assert key is not None and leaf is not None
    assert key.public_key() == leaf.public_key()
    assert leaf.fingerprint(hashes.SHA256()).hex() == bundle.facts.fingerprint_sha256
    assert len(chain) == bundle.chain_pem.count(b"BEGIN CERTIFICATE") == 1
    with pytest.raises(ValueError, match="password"):
        pkcs12.load_key_and_certificates(data, PASSWORDS["jks"])


def test_a_java_keystore_has_the_key_and_the_whole_chain(bundle: Bundle) -> None:
    jks = pytest.importorskip("jks")
    data = virtual_files(bundle, ["bundle.jks"], PASSWORDS.__getitem__)["bundle.jks"]
    store = jks.KeyStore.loads(data, PASSWORDS["jks"].decode())
    assert store.store_type == "jks"
    (entry,) = store.private_keys.values()
    assert (entry.alias, entry.pkey_pkcs8) == ("example.com", pem_to_key_der(bundle.key_pem))
    pems = [bundle.certificate_pem, bundle.chain_pem]
    chain = [x509.load_pem_x509_certificate(pem) for pem in pems]
    assert [x509.load_der_x509_certificate(der) for _, der in entry.cert_chain] == chain
    with pytest.raises(jks.KeystoreSignatureException):
        jks.KeyStore.loads(data, PASSWORDS["pfx"].decode())


@pytest.mark.parametrize(
    ("given", "expected"), [("", b"example.com"), ("?alias=Tomcat", b"Tomcat")], ids=["default", "given"]
)
@pytest.mark.parametrize("base", ["bundle.pfx", "bundle-legacy.pfx"])
def test_the_entry_of_a_keystore_is_complete(bundle: Bundle, base: str, given: str, expected: bytes) -> None:
    data = virtual_files(bundle, [base + given], PASSWORDS.__getitem__)[base + given]
    store = pkcs12.load_pkcs12(data, PASSWORDS["pfx"])
    assert store.cert is not None and store.cert.friendly_name == expected
    assert [one.certificate for one in store.additional_certs] == x509.load_pem_x509_certificates(bundle.chain_pem)
    ours = load_pem_private_key(bundle.key_pem, None)
    assert store.key is not None and store.key.public_key() == ours.public_key()


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["jks", "pfx"])
def test_keytool_reads_the_stores(bundle: Bundle, tmp_path: Path, need: Callable[[str], str], kind: str) -> None:
    keytool = need("keytool")
    store, password = tmp_path / f"bundle.{kind}", tmp_path / "password"
    store.write_bytes(virtual_files(bundle, [store.name], PASSWORDS.__getitem__)[store.name])
    password.write_bytes(PASSWORDS[kind] + b"\n")
    listed = subprocess.run(
        [keytool, "-list", "-v", "-keystore", store, "-storepass:file", password],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "PrivateKeyEntry" in listed
    assert "Certificate chain length: 2" in listed
    assert bundle.facts.fingerprint_sha256.upper() in listed.replace(":", "")
    # the key itself comes out again: the service will be able to use it
    out = tmp_path / "out.p12"
    subprocess.run(
        [keytool, "-importkeystore", "-srckeystore", store, "-srcstorepass:file", password, "-destkeystore", out,
         "-deststoretype", "PKCS12", "-deststorepass:file", password, "-noprompt"],
        capture_output=True, check=True,
    )  # fmt: skip
    key, _, _ = pkcs12.load_key_and_certificates(out.read_bytes(), PASSWORDS[kind])
    ours = load_der_private_key(pem_to_key_der(bundle.key_pem), None)
    assert key is not None
    assert key.public_key() == ours.public_key()
    wrong = tmp_path / "wrong"
    wrong.write_bytes(b"another-password\n")
    refused = subprocess.run([keytool, "-list", "-keystore", store, "-storepass:file", wrong], capture_output=True)
    assert refused.returncode != 0


def test_unknown_names_are_refused(bundle: Bundle) -> None:
    with pytest.raises(PlanError, match=r"\.\./private\.key") as caught:
        virtual_files(bundle, ["../private.key"], no_password)
    assert caught.value.reason == "unknown-file"


def test_jks_without_its_library_names_the_package(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jks", None)
    with pytest.raises(MaterialError) as caught:
        virtual_files(bundle, ["bundle.jks"], PASSWORDS.__getitem__)
    assert caught.value.reason == "jks-missing"
    assert "certctrl[jks]" in (caught.value.fix or "")


def test_files_of_a_ca(maker: Maker) -> None:
    pem = maker.issuer.chain_pem.encode()
    files = ca_files(3, "Private CA", pem)
    assert files["ca.pem"] == pem
    assert x509.load_der_x509_certificate(files["ca.der"]) == maker.issuer.certificate
    assert json.loads(files["meta.json"]) == {"ca_id": 3, "name": "Private CA"}
    assert files["meta.json"].decode().splitlines() == ["{", '  "ca_id": 3,', '  "name": "Private CA"', "}"]
    assert files["meta.json"].endswith(b"\n")


def test_the_order_of_a_combined_file_can_be_chosen(bundle: Bundle) -> None:
    files = virtual_files(bundle, ["combined-key-last.pem"], no_password)
    assert files["combined-key-last.pem"] == files["fullchain.pem"] + files["private.key"]


@pytest.mark.parametrize(
    ("key", "label"),
    [(rsa_key(), b"RSA PRIVATE KEY"), (ec.generate_private_key(ec.SECP256R1()), b"EC PRIVATE KEY")],
    ids=["rsa", "ec"],
)
def test_a_key_can_have_its_traditional_form(maker: Maker, now: float, key: Any, label: bytes) -> None:
    made = opened(maker, now, key)
    pem = virtual_files(made, ["private-traditional.key"], no_password)["private-traditional.key"]
    assert pem.startswith(b"-----BEGIN " + label + b"-----")
    assert load_pem_private_key(pem, None).private_numbers() == key.private_numbers()  # type: ignore[union-attr]


def test_a_key_without_a_traditional_form_says_so(maker: Maker, now: float) -> None:
    made = opened(maker, now, ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(MaterialError, match="RSA and EC keys only") as caught:
        virtual_files(made, ["private-traditional.key"], no_password)
    assert (caught.value.reason, caught.value.fix) == ("key-format", "use private.key")


def opened(maker: Maker, now: float, key: object) -> Bundle:
    return open_bundle(
        1, "a.example", maker.materials("a.example", key=key), maker.secret,
        allow_plaintext=False, now=now, expected_domains=("a.example",),
    )  # fmt: skip


TRIPLE_DES = bytes.fromhex("060a2a864886f70d010c0103")
"""The object identifier pbeWithSHAAnd3-KeyTripleDES-CBC (RFC 7292)."""


def test_a_keystore_for_old_readers_uses_their_encryption(bundle: Bundle) -> None:
    files = virtual_files(bundle, ["bundle.pfx", "bundle-legacy.pfx"], PASSWORDS.__getitem__)
    assert TRIPLE_DES in files["bundle-legacy.pfx"] and TRIPLE_DES not in files["bundle.pfx"]
    store = pkcs12.load_pkcs12(files["bundle-legacy.pfx"], PASSWORDS["pfx"])
    assert store.cert is not None and store.cert.certificate.fingerprint(hashes.SHA256()).hex() == (
        bundle.facts.fingerprint_sha256
    )


@pytest.mark.parametrize("base", ["bundle.pfx", "bundle-legacy.pfx", "bundle.jks"])
def test_the_alias_of_a_keystore_can_be_chosen(bundle: Bundle, base: str) -> None:
    name = f"{base}?alias=tomcat"
    (made,) = [virtual_files(bundle, [name], PASSWORDS.__getitem__)[name]]
    if base.endswith(".jks"):
        jks = pytest.importorskip("jks")
        assert list(jks.KeyStore.loads(made, PASSWORDS["jks"].decode()).entries) == ["tomcat"]
        upper = virtual_files(bundle, [f"{base}?alias=TomCat"], PASSWORDS.__getitem__)[f"{base}?alias=TomCat"]
        assert b"tomcat" in made and b"tomcat" in upper, "Java looks for aliases in lower case"
    else:
        found = pkcs12.load_pkcs12(made, PASSWORDS["pfx"]).cert
        assert found is not None and found.friendly_name == b"tomcat"


@pytest.mark.parametrize(
    "name",
    ["bundle.pfx?alias=", "bundle.pfx?alias=a/b", "bundle.pfx?", "bundle.pfx?name=a", "private.key?alias=a", "x?alias=a",
     "bundle.jks?alias=-a", "bundle.jks?alias=" + "a" * 65, "bundle.jks?alias=a\n"],
)  # fmt: skip
def test_no_other_alias_is_a_virtual_file(bundle: Bundle, name: str) -> None:
    assert not is_virtual(name)
    with pytest.raises(PlanError, match="no virtual file"):
        virtual_files(bundle, [name], PASSWORDS.__getitem__)


@pytest.mark.parametrize(
    ("name", "password", "reason"),
    [("bundle.pfx", b"", "pkcs12"), ("bundle-legacy.pfx", b"\xff\xfe", "pkcs12"), ("bundle.jks", "p\u00e4ss".encode(), "jks-password")],
)  # fmt: skip
def test_a_given_password_that_a_format_cannot_use_is_reported(
    bundle: Bundle, name: str, password: bytes, reason: str
) -> None:
    """Operators may replace the password files."""
    with pytest.raises(MaterialError, match="password") as caught:
        virtual_files(bundle, [name], lambda _: password)
    assert (caught.value.reason, "password" in (caught.value.fix or "")) == (reason, True)


@pytest.mark.parametrize(("name", "password"), [("bundle.jks", b""), ("bundle.pfx", "p\u00e4ss".encode())])
def test_other_odd_passwords_are_used(bundle: Bundle, name: str, password: bytes) -> None:
    made = virtual_files(bundle, [name], lambda _: password)[name]
    if name == "bundle.jks":
        jks = pytest.importorskip("jks")
        assert len(jks.KeyStore.loads(made, password.decode()).private_keys) == 1
    else:
        assert pkcs12.load_pkcs12(made, password).key is not None


@pytest.mark.parametrize(
    ("kind", "password", "fault"),
    [
        ("pfx", "", "is empty"), ("jks", "", "is empty"), ("pfx", "p\u00e4ss", ""), ("jks", "change it", ""),
        ("pfx", " x", "begins or ends"), ("pfx", "x\n", "begins or ends"), ("jks", "a\tb", "not printable"),
        ("jks", "p\u00e4ss", "not ASCII, which Java"), ("pfx", "a\x00b", "not printable"),
    ],
)  # fmt: skip
def test_a_password_that_keystores_cannot_have_is_named(kind: str, password: str, fault: str) -> None:
    found = password_fault(kind, password)
    assert fault in found and bool(found) is bool(fault)
