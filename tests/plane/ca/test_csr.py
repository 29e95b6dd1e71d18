"""Checks of certificate signing requests."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from csrs import csr, rsa_key
from hypothesis import example, given
from hypothesis import strategies as st

from certctrl.plane.ca.csr import MAX_CSR_BYTES, check_csr, der_of_pem, key_digest
from certctrl.plane.ca.weak_keys import rsa_weakness
from certctrl.plane.errors import ErrorResponse

NAMES = ("www.example.com", "example.com", "192.0.2.1", "2001:db8::1", "*.example.org")


@cache
def an_rsa_key(bits: int, exponent: int = 65_537) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=exponent, key_size=bits)


def refused(der: bytes, names: Sequence[str] = NAMES, **options: Any) -> tuple[str, str]:
    """Return reason and text of a refusal."""
    with pytest.raises(ErrorResponse) as caught:
        check_csr(der, names, **options)
    error = caught.value
    assert (error.status, error.key, "\n" in error.what) == (400, "CSR_REFUSED", False)
    assert error.what.endswith(f"; {error.params['fix']}")
    return error.params["reason"], error.what


@pytest.mark.parametrize(
    ("key", "key_type"),
    [
        (ec.generate_private_key(ec.SECP256R1()), "ecdsa-p256"),
        (ec.generate_private_key(ec.SECP384R1()), "ecdsa-p384"),
        (ed25519.Ed25519PrivateKey.generate(), "ed25519"),
        (an_rsa_key(2048), "rsa-2048"),
        (an_rsa_key(2056), "rsa-2056"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_good_requests_of_each_key_type(key: Any, key_type: str) -> None:
    checked = check_csr(csr(NAMES, key=key, common=NAMES[0]), NAMES, key_type=key_type)
    assert checked.key_type == key_type
    assert checked.public_key == key.public_key()
    assert checked.public_key_sha256 == key_digest(key.public_key())
    assert check_csr(csr(NAMES, key=key), NAMES).key_type == key_type
    assert refused(csr(NAMES, key=key), key_type="rsa-4096")[0] == "key-type"


@pytest.mark.parametrize(
    ("key", "reason", "text"),
    [
        (an_rsa_key(1024), "key-size", "has 1024 bits"),
        (rsa.generate_private_key(public_exponent=3, key_size=2048), "key-size", "the exponent 3,"),
        (ec.generate_private_key(ec.SECP521R1()), "key-type", "secp521r1"),
        (ec.generate_private_key(ec.SECP256K1()), "key-type", "secp256k1"),
        (ed448.Ed448PrivateKey.generate(), "key-type", "neither an EC, an RSA nor an Ed25519 key"),
    ],
)  # fmt: skip
def test_keys_of_wrong_kinds_are_refused(key: Any, reason: str, text: str) -> None:
    found, what = refused(csr(NAMES, key=key))
    assert found == reason
    assert text in what


def test_a_dsa_key_is_refused() -> None:
    key: Any = dsa.generate_private_key(1024)
    assert refused(csr(NAMES, key=key))[0] in ("key-type", "malformed")


def test_names_may_be_in_any_order_and_case_and_the_common_name_may_be_missing() -> None:
    for common in ("", "WWW.example.com"):
        check_csr(csr([*reversed(NAMES[:4]), "*.EXAMPLE.org"], common=common), NAMES)


@pytest.mark.parametrize(
    ("sans", "common", "text"),
    [
        (NAMES[:4], "", "lacks '*.example.org'"),
        ((*NAMES, "evil.example.com"), "", "asks for 'evil.example.com'"),
        (NAMES, "evil.example.com", "asks for 'evil.example.com'"),
        ((), NAMES[0], "lacks '*.example.org' and 4 more"),
        ((*NAMES[:2], *NAMES[3:], x509.DNSName("192.0.2.1")), "", "an address as a DNS name"),
        ((*NAMES, x509.RFC822Name("a@example.com")), "", "RFC822Name"),
        ((*NAMES, x509.UniformResourceIdentifier("https://www.example.com")), "", "UniformResourceIdentifier"),
        ((*NAMES[:4], x509.DNSName("*.example.org\0.evil.example")), "", "evil.example"),
    ],
)
def test_other_names_are_refused(sans: Any, common: str, text: str) -> None:
    reason, what = refused(csr(sans, common=common))
    assert reason == "names"
    assert text in what


STAPLE = x509.TLSFeature([x509.TLSFeatureType.status_request])


@pytest.mark.parametrize(
    "extension",
    [
        x509.BasicConstraints(ca=True, path_length=None),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]),
        x509.KeyUsage(True, False, False, False, False, True, False, False, False),
        x509.NameConstraints([x509.DNSName("example.com")], None),
        x509.OCSPNoCheck(),
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00"),
        STAPLE,
    ],
    ids=lambda extension: type(extension).__name__,
)
def test_extensions_that_are_not_given_are_refused(extension: x509.ExtensionType) -> None:
    reason, what = refused(csr(NAMES, extensions=[extension]))
    assert reason == "extension"
    assert "leave the extension out" in what


def test_extensions_that_a_leaf_has_anyway_are_allowed() -> None:
    allowed = [
        x509.BasicConstraints(ca=False, path_length=None),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        x509.KeyUsage(True, False, True, False, False, False, False, False, False),
    ]
    check_csr(csr(NAMES, extensions=allowed), NAMES)
    check_csr(csr(NAMES, extensions=[*allowed, STAPLE]), NAMES, must_staple=True)
    check_csr(csr(NAMES), NAMES, must_staple=True)
    version_two = x509.TLSFeature([x509.TLSFeatureType.status_request_v2])
    assert refused(csr(NAMES, extensions=[version_two]), must_staple=True)[0] == "extension"


def test_a_signature_by_another_key_is_refused() -> None:
    der = bytearray(csr(NAMES))
    der[-1] ^= 1
    assert refused(bytes(der))[0] in ("signature", "malformed")
    key = an_rsa_key(2048)
    der = bytearray(csr(NAMES, key=key))
    der[-1] ^= 1
    assert refused(bytes(der)) == (
        "signature",
        "Certificate signing request refused: its signature is not by its own key;"
        " make the request with the certificate's own key and SHA-256",
    )


def test_a_request_changed_after_signing_is_refused() -> None:
    der = csr(NAMES).replace(b"www.example.com", b"xxx.example.com")
    assert refused(der, ("xxx.example.com", *NAMES[1:]))[0] == "signature"


def test_a_signature_with_a_weak_digest_is_refused() -> None:
    reason, what = refused(csr(NAMES, key=an_rsa_key(2048), digest=hashes.SHA224()))
    assert reason == "signature"
    assert "SHA-256" in what


@pytest.mark.parametrize("der", [b"", b"\x30\x00", b"\xff" * 100, csr(NAMES) + b"\0", csr(NAMES)[:-1]])
def test_what_is_not_a_request_is_refused(der: bytes) -> None:
    assert refused(der)[0] == "malformed"


def test_a_request_that_is_too_large_is_refused_unread() -> None:
    assert refused(b"\x30" * (MAX_CSR_BYTES + 1))[0] == "malformed"


def test_the_greatest_request_that_the_names_allow_is_read() -> None:
    names = [f"{number:02}{'.a123456789012345678901234567890123456789' * 6}.example" for number in range(100)]
    der = csr(names, key=an_rsa_key(4096))
    assert len(der) < MAX_CSR_BYTES
    check_csr(der, names)


def test_pem() -> None:
    request = x509.load_der_x509_csr(csr(NAMES))
    from cryptography.hazmat.primitives.serialization import Encoding

    pem = request.public_bytes(Encoding.PEM).decode()
    assert der_of_pem(pem) == der_of_pem(f"# a comment\n{pem}\n") == request.public_bytes(Encoding.DER)
    for bad in ("", "no PEM", pem + pem, pem.replace("CERTIFICATE REQUEST", "CERTIFICATE"), pem[:200], "x" * 10**6):
        with pytest.raises(ErrorResponse) as caught:
            der_of_pem(bad)
        assert caught.value.key == "CSR_REFUSED"


# --- weak RSA keys --------------------------------------------------------------------------------------------


def next_prime(number: int) -> int:
    number |= 1
    while any(number % small == 0 for small in (3, 5, 7, 11, 13, 17)) or pow(2, number - 1, number) != 1:
        number += 2
    return number


def test_keys_whose_factors_are_close_or_equal_or_small_are_refused() -> None:
    p = next_prime(0xC5 << 1016 | 0x123456789)
    close = rsa_key(p, next_prime(p + 2))
    assert refused(csr(NAMES, key=close))[0] == "weak-key"
    assert "close" in rsa_weakness(p * next_prime(p + 2))
    assert "close" in rsa_weakness(p * p)
    small = next_prime(1 << 2043 | 0x9876543)
    assert "small" in rsa_weakness(small * 31)
    far = next_prime(0xE1 << 1016 | 0x123456789)
    assert rsa_weakness(p * far) == ""


def test_the_roca_pattern_is_recognised() -> None:
    from math import prod

    primes = [n for n in range(2, 702) if all(n % d for d in range(2, n))][:126]
    step = prod(primes)  # primes of the flawed library: k * step + (65537 ** a mod step)

    def flawed(k: int, a: int) -> int:
        while True:
            candidate = k * step + pow(65_537, a, step)
            if pow(2, candidate - 1, candidate) == 1:
                return candidate
            k += 1

    size = 1024 - step.bit_length()
    p, q = flawed(3 << (size - 2), 12345), flawed((3 << (size - 2)) + 2**20, 54321)
    assert "ROCA" in rsa_weakness(p * q)
    reason, what = refused(csr(NAMES, key=rsa_key(p, q)))
    assert (reason, "CVE-2017-15361" in what) == ("weak-key", True)


def test_ordinary_keys_are_not_weak() -> None:
    for _ in range(5):
        modulus = rsa.generate_private_key(public_exponent=65_537, key_size=2048).public_key().public_numbers().n
        assert rsa_weakness(modulus) == ""


# --- arbitrary input --------------------------------------------------------------------------------------------

GOOD = csr(NAMES, common=NAMES[0])


@given(st.binary(max_size=2000))
def test_any_bytes_are_refused_with_a_reason(data: bytes) -> None:
    refused(data)


@given(position=st.integers(0, len(GOOD) - 1), bits=st.integers(1, 255))
@example(position=9, bits=1)  # another version
def test_no_changed_byte_gets_a_certificate(position: int, bits: int) -> None:
    changed = bytearray(GOOD)
    changed[position] ^= bits
    assert refused(bytes(changed))[0] in ("malformed", "signature", "names", "extension", "key-type")


LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
NAME = st.one_of(
    st.builds("{}.{}.example".format, LABEL, LABEL),
    st.builds("*.{}.example".format, LABEL),
    st.ip_addresses().map(str),
)


@given(have=st.sets(NAME, min_size=1, max_size=8), want=st.sets(NAME, min_size=1, max_size=8))
def test_a_request_is_accepted_for_exactly_its_names(have: set[str], want: set[str]) -> None:
    der = csr(sorted(have))
    check_csr(der, have)
    if want != have:
        assert refused(der, sorted(want))[0] == "names"
