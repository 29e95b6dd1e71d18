"""The id of a certificate for renewal information."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from certctrl.plane.acme.ari import certificate_id


def certificate(serial: int, key_id: bytes | None) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2027, 1, 1, tzinfo=UTC))
    )
    if key_id is not None:
        builder = builder.add_extension(x509.AuthorityKeyIdentifier(key_id, None, None), critical=False)
    return builder.sign(key, hashes.SHA256())


@pytest.mark.parametrize(
    ("serial", "serial_part"), [(0x8765_4321, "AIdlQyE"), (0x7765_4321, "d2VDIQ"), (1, "AQ"), (0x80, "AIA")]
)
def test_the_example_of_the_rfc(serial: int, serial_part: str) -> None:
    """RFC 9773, section 4.1; the serial number is that of its DER, with the leading zero."""
    key_id = bytes.fromhex("69885b6b87464041e1b37b847ba0ae2cde01c8d4")
    assert certificate_id(certificate(serial, key_id)) == f"aYhba4dGQEHhs3uEe6CuLN4ByNQ.{serial_part}"


def test_a_certificate_that_does_not_name_its_issuers_key() -> None:
    assert certificate_id(certificate(1, None)) == ""
