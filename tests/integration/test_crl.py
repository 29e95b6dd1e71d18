"""Debian's OpenSSL fetches and checks the revocation lists and name constraints of a served control plane."""

from __future__ import annotations

import sqlite3
import subprocess
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest
from cryptography import x509
from fleet import PROGRAM, Fleet, Operator

from certctrl.plane.ca.crl import key_id
from certctrl.plane.ca.x509 import Authority, new_key, pem_of, sign_leaf
from certctrl.plane.storage.data_dir import DataDir
from certctrl.plane.storage.keyring import Keyring
from certctrl.plane.storage.sqlite import SqliteDatabase
from certctrl.sandbox.servers import HOST, free_port

pytestmark = pytest.mark.integration

CERTIFICATES = "/apiv1/users/1/certificates"


@attrs.frozen
class Rig:
    """A served plane, and OpenSSL."""

    root: Path
    data: Path
    openssl: str

    operator: Operator

    def plane(self, *argv: str) -> tuple[int, str]:
        """Run an operator's command; return status and output."""
        command = [*PROGRAM, "plane", *argv, "--data", self.data]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    def revoke(self, cert_id: int, **body: object) -> Any:
        return self.operator.call("POST", f"{CERTIFICATES}/{cert_id}/revoke", body)

    def issue(self, *names: str) -> tuple[int, Path]:
        """Return the id of a new certificate, and the file of leaf and chain."""
        row = self.operator.call("POST", CERTIFICATES, {"domain_name": names[0], "sans": names[1:]})
        return row["id"], self.written(row["id"])

    def written(self, cert_id: int) -> Path:
        """Write what the plane has stored of a certificate."""
        with closing(sqlite3.connect(f"file:{self.data / 'plane.db'}?mode=ro", uri=True)) as database:
            sql = "SELECT certificate_pem, chain_pem, serial_number FROM certificates WHERE id = ?"
            leaf, chain, serial = database.execute(sql, (cert_id,)).fetchone()
        return self.file(serial.replace(":", ""), leaf, chain)

    def file(self, name: str, leaf: str, chain: str) -> Path:
        (self.root / f"{name}.chain").write_text(chain)
        path = self.root / f"{name}.pem"
        path.write_text(leaf)
        return path

    def run(self, *argv: str | Path) -> tuple[int, str]:
        """Run OpenSSL; return status and output."""
        done = subprocess.run([self.openssl, *argv], capture_output=True, text=True, check=False, timeout=60)
        return done.returncode, done.stdout + done.stderr

    def verify(self, leaf: Path) -> str:
        """Verify a leaf as a client that fetches the list from the URL in it; return what is wrong, empty if nothing."""
        options = ["-CAfile", self.data / "issuing-ca.pem", "-untrusted", leaf.with_suffix(".chain")]
        status, output = self.run("verify", *options, "-crl_check", "-crl_download", leaf)
        assert (status == 0) == output.endswith(": OK\n"), output
        return "" if status == 0 else output


@pytest.fixture
def rig(fleet: Fleet, need: Callable[[str], str]) -> Rig:
    data, port = fleet.root / "plane", free_port()
    argv = [*PROGRAM, "plane", "serve", "--data", data, "--listen", f"{HOST}:0", "--http", f"{HOST}:{port}"]
    fleet.child([*argv, "--hostname", HOST], "plane.log").says("operator key")
    url = (data / "address").read_text().strip()
    operator = Operator(url, data / "ca.pem", (data / "operator.key").read_text().strip())
    return Rig(fleet.root, data, need("openssl"), operator)


def crl_url(leaf: Path) -> str:
    certificate = x509.load_pem_x509_certificate(leaf.read_bytes())
    (point,) = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert point.full_name is not None
    return str(point.full_name[0].value)


def test_openssl_fetches_the_list_and_refuses_what_is_revoked(rig: Rig) -> None:
    kept, kept_leaf = rig.issue("kept.example.com")
    revoked, leaf = rig.issue("www.example.com", "192.0.2.1")
    assert (rig.verify(kept_leaf), rig.verify(leaf)) == ("", "")
    shown = rig.revoke(revoked, reason_code="keyCompromise")
    assert [one["state"] for one in shown["revocations"]] == ["done"]
    assert "certificate revoked" in rig.verify(leaf)
    assert rig.verify(kept_leaf) == ""

    with urllib.request.urlopen(crl_url(leaf), timeout=10) as answer:
        assert answer.headers["content-type"] == "application/pkix-crl"
        (rig.root / "list.crl").write_bytes(answer.read())
    both = rig.root / "cas.pem"
    both.write_bytes((rig.data / "issuing-ca.pem").read_bytes() + leaf.with_suffix(".chain").read_bytes())
    crl = ["crl", "-inform", "DER", "-in", rig.root / "list.crl", "-noout"]
    status, output = rig.run(*crl, "-CAfile", both, "-verify")
    assert (status, output.strip()) == (0, "verify OK")
    _, output = rig.run(*crl, "-text", "-crlnumber")
    assert "Key Compromise" in output
    assert output.count("Serial Number:") == 1

    status, output = rig.plane("revoke", "kept.example.com", "--reason-code", "superseded", "--replace")
    new = rig.written(kept)
    assert (status, new == kept_leaf) == (0, False)
    assert output.startswith(f"replaced certificate {kept} (kept.example.com), serial {new.stem[:2]}")
    assert "certificate revoked" in rig.verify(kept_leaf)
    assert rig.verify(new) == ""


def test_openssl_applies_the_name_constraints_and_the_lists_of_former_intermediates(rig: Rig) -> None:
    before, old = rig.issue("www.other.example")
    status, output = rig.plane("ca", "constrain", "--domain", "corp.example", "--network", "192.0.2.0/24")
    assert status == 0
    assert f"note: 1 certificate with other names, whose renewals will fail: {before}" in output
    assert "the CA issues only for corp.example, 192.0.2.0/24" in output
    for names in (["www.corp.example", "*.corp.example"], ["192.0.2.7"], ["corp.example", "192.0.2.8"]):
        assert rig.verify(rig.issue(*names)[1]) == ""
    status, output = rig.plane("issue", "www.other.example")
    assert (status, "www.other.example is outside of the domains of this CA" in output) == (1, True)
    # What the plane refuses to issue, clients would refuse, too: made with the key of its intermediate.
    assert "permitted subtree violation" in rig.verify(rogue(rig, "www.other.example"))
    assert "permitted subtree violation" in rig.verify(rogue(rig, "198.51.100.1"))
    assert rig.verify(rogue(rig, "rogue.corp.example")) == ""
    assert rig.verify(old) == ""
    rig.revoke(before)
    assert "certificate revoked" in rig.verify(old)


def rogue(rig: Rig, name: str) -> Path:
    """Return a leaf for any name, signed with the intermediate of the plane."""
    keyring, database = Keyring.open(DataDir(rig.data)), SqliteDatabase(rig.data / "plane.db")
    with closing(database):
        row = database.one("SELECT value_enc FROM secrets WHERE name = 'ca-intermediate'")
    assert row is not None
    issuer = Authority.from_sealed_form(keyring.unseal("ca-intermediate", row["value_enc"]))
    now = issuer.certificate.not_valid_before_utc.timestamp() + 86_400
    _, sample = rig.issue("sample.corp.example")
    url = f"{crl_url(sample).rpartition('/')[0]}/{key_id(issuer.certificate)}.crl"
    key = new_key("ecdsa-p256").public_key()
    leaf = sign_leaf(issuer, key, [name], not_before=now - 60, not_after=now + 3600, crl_url=url)
    return rig.file(f"rogue-{name}", pem_of(leaf), issuer.pem)
