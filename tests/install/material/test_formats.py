"""Virtual files contain what their names say, and open in the programs they are made for."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from bundle_maker import Maker
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import load_der_private_key, pkcs12

from certctrl.errors import MaterialError, PlanError
from certctrl.install.material.bundle import open_bundle, virtual_files
from certctrl.install.material.formats import BASE_FILES, ca_files, pem_to_key_der
from certctrl.model.certificate import Bundle
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


def test_unsalted_files_are_the_same_every_time(bundle: Bundle) -> None:
    names = set(CERT_FILES) - {"bundle.pfx", "bundle.jks"}
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
