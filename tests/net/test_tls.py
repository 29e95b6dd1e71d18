"""Trusted CAs: the configured ones or the system trust store, never those from the environment."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from certctrl.errors import ConfigError
from certctrl.model.config import HttpClientConfig
from certctrl.net import tls
from certctrl.net.tls import PlaneCa, Trust, client_context


def subjects(context: ssl.SSLContext) -> list[object]:
    return [cert["serialNumber"] for cert in context.get_ca_certs()]


def test_a_context_verifies_everything(ca_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "evil.pem"))
    context = client_context([ca_file], None, None)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.keylog_filename is None
    assert len(subjects(context)) == 1, "the configured CA replaces the system trust store"


def test_the_system_store_is_found_without_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "evil.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "evil.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    used: list[tuple[object, object]] = []

    class Recorder:
        def load_verify_locations(self, cafile: object = None, capath: object = None) -> None:
            used.append((cafile, capath))

    tls._load_system_store(Recorder())  # type: ignore[arg-type]
    ((cafile, capath),) = used
    assert tmp_path not in Path(str(cafile or capath)).parents
    assert Path(str(cafile or capath)) != tmp_path


def test_a_bundle_is_used_without_a_hashed_directory(
    monkeypatch: pytest.MonkeyPatch, ca_file: Path, tmp_path: Path
) -> None:
    nowhere = ssl.get_default_verify_paths()._replace(openssl_cafile=str(tmp_path / "no"), openssl_capath=str(tmp_path))
    monkeypatch.setattr(tls.ssl, "get_default_verify_paths", lambda: nowhere)
    monkeypatch.setattr(tls, "_DIRECTORIES", ())
    monkeypatch.setattr(tls, "_BUNDLES", (str(tmp_path / "also-not"), str(ca_file)))
    assert len(subjects(client_context([], None, None))) == 1
    monkeypatch.setattr(tls, "_BUNDLES", ())
    with pytest.raises(ConfigError, match="no system trust store") as caught:
        client_context([], None, None)
    assert caught.value.fix is not None
    assert "ca-certificates" in caught.value.fix


def test_an_intermediate_or_the_leaf_itself_can_be_the_anchor(ca: trustme.CA, ca_file: Path) -> None:
    assert client_context([ca_file], None, None).verify_flags & ssl.VERIFY_X509_PARTIAL_CHAIN
    assert not client_context([], None, None).verify_flags & ssl.VERIFY_X509_PARTIAL_CHAIN


@pytest.mark.parametrize(
    ("content", "words"), [(None, "cannot read"), (b"", "contains no PEM"), (b"\0junk", "contains no PEM")]
)
def test_a_ca_file_that_does_not_load_is_reported(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        client_context([path], None, None)
    assert str(path) in str(caught.value)
    assert caught.value.fix


def test_a_client_certificate_that_does_not_load_is_reported(ca: trustme.CA, tmp_path: Path) -> None:
    leaf = ca.issue_cert("device.example")
    cert, key, locked = tmp_path / "c.pem", tmp_path / "k.pem", tmp_path / "locked.pem"
    leaf.cert_chain_pems[0].write_to_path(cert)
    leaf.private_key_pem.write_to_path(key)
    other = ec.generate_private_key(ec.SECP256R1())
    locked.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"geheim")))
    (tmp_path / "other.pem").write_bytes(trustme.CA().issue_cert("x.example").private_key_pem.bytes())
    client_context([], cert, key)
    for wrong, words in [
        (locked, "encrypted"),
        (tmp_path / "other.pem", "do not match"),
        (tmp_path / "no", "No such file"),
        (cert, "not PEM"),
    ]:
        with pytest.raises(ConfigError, match=words) as caught:
            client_context([], cert, wrong)
        assert "client_certificate" in str(caught.value)


def test_a_ca_that_the_plane_has_handed_out_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old, new = trustme.CA(), trustme.CA()
    files = PlaneCa.below(tmp_path)
    files.configured.write_bytes(old.cert_pem.bytes())
    files.next.parent.mkdir()
    trust = Trust(HttpClientConfig(ca_files=("plane-ca.pem",)), tmp_path)
    before = subjects(trust.context())
    files.next.write_bytes(files.stamp() + b"damaged")
    assert subjects(trust.context()) == before, "the plane stays reachable"
    trust.context()
    assert caplog.text.count("has announced") == 1, "said once"
    files.next.write_bytes(files.stamp() + new.cert_pem.bytes())
    assert len(subjects(trust.context())) == 2, "both"
    files.next.rename(files.taken)
    after = subjects(trust.context())
    assert len(after) == 1 and after != before, "only the new one"
    again = Trust(HttpClientConfig(ca_files=("plane-ca.pem",)), tmp_path)
    assert subjects(again.context()) == after
    other = Trust(HttpClientConfig(ca_files=(str(files.configured),)), tmp_path)
    assert subjects(other.context()) == before, "only for the file that init writes"
    files.configured.write_bytes(old.cert_pem.bytes() + b"# changed by the operator")
    assert subjects(trust.context()) == before


def test_a_rotated_ca_file_is_reloaded_unless_it_is_broken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "ca.pem"

    def put(content: bytes) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_bytes(content)
        os.replace(fresh, path)

    put(trustme.CA().cert_pem.bytes())
    trust = Trust(HttpClientConfig(ca_files=("ca.pem",)), tmp_path)
    first = trust.context()
    assert trust.context() is first, "unchanged files are not read again"
    put(trustme.CA().cert_pem.bytes())
    second = trust.context()
    assert subjects(second) != subjects(first)
    put(b"half writ")
    assert trust.context() is second
    assert "Keeping the previous TLS files" in caplog.text
    put(trustme.CA().cert_pem.bytes())
    assert subjects(trust.context()) != subjects(second)
