"""Material is accepted only if key, leaf, chain, names and dates belong together."""

from __future__ import annotations

import base64
import itertools
from typing import Any

import attrs
import pytest
from bundle_maker import DAY, Issuer, Maker, build, builder_of, opened, pem, reason
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from certctrl.errors import MaterialError
from certctrl.install.material.bundle import facts_of, serial_text


def test_a_good_bundle_is_opened(maker: Maker, now: float) -> None:
    materials = maker.materials("www.example.com", "example.com", "192.0.2.7")
    bundle = opened(maker, materials, now, "example.com", "www.example.com")
    leaf = x509.load_pem_x509_certificate(bundle.certificate_pem)
    assert bundle.facts.domains == ("example.com", "www.example.com", "192.0.2.7")
    assert bundle.facts.serial.replace(":", "").lstrip("0") == f"{leaf.serial_number:x}"
    assert bundle.facts.fingerprint_sha256 == leaf.fingerprint(hashes.SHA256()).hex()
    assert (bundle.facts.not_before, bundle.facts.not_after) == (now - DAY, now + 89 * DAY)
    assert bundle.chain_pem.decode() == maker.issuer.chain_pem
    key = load_pem_private_key(bundle.key_pem, None)
    assert key.public_key() == leaf.public_key()


@pytest.mark.parametrize(
    "form", ["pkcs8-der", "pkcs1-der", "sec1-der", "pkcs8-pem", "pkcs1-pem", "sec1-pem", "ed25519"]
)
def test_every_form_of_key_becomes_the_same_pkcs8_pem(
    maker: Maker, now: float, an_rsa_key: rsa.RSAPrivateKey, form: str
) -> None:
    key: Any = {"pkcs1": an_rsa_key, "ed255": ed25519.Ed25519PrivateKey.generate()}.get(form[:5])
    key = key or ec.generate_private_key(ec.SECP384R1())
    encoding = Encoding.PEM if form.endswith("pem") else Encoding.DER
    old = PrivateFormat.TraditionalOpenSSL if form[:4] in ("pkcs", "sec1") and "8" not in form else PrivateFormat.PKCS8
    raw = key.private_bytes(encoding, old, NoEncryption())
    bundle = opened(maker, maker.materials(key=key, raw_key=raw), now)
    assert bundle.key_pem == key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_all_mixes_of_two_bundles_are_refused(maker: Maker, make_issuer: type[Issuer], now: float) -> None:
    """Sealed key, data key, leaf, chain and serial of two valid bundles: 2^5 mixes, two of them valid."""
    one = maker.materials("example.com")
    other_issuer = make_issuer("other inter", make_issuer("other root"))
    key = ec.generate_private_key(ec.SECP256R1())
    two = maker.materials(key=key, leaf=other_issuer.leaf(key, ("example.com",)), chain_pem=other_issuer.chain_pem)
    parts = [
        ("enc_privkey_b64", "privkey_nonce_b64", "privkey_tag_b64"),
        ("enc_data_key_b64",),
        ("certificate_pem",),
        ("chain_pem",),
        ("serial_number",),
    ]
    whole = []
    for pick in itertools.product((one, two), repeat=len(parts)):
        fields = {name: getattr(source, name) for names, source in zip(parts, pick, strict=True) for name in names}
        mixed = attrs.evolve(one, **fields)
        try:
            whole.append(opened(maker, mixed, now).certificate_pem.decode())
        except MaterialError as error:
            assert mixed not in (one, two), error
    assert sorted(whole) == sorted([one.certificate_pem, two.certificate_pem])


def test_the_bundle_of_another_certificate_is_refused(maker: Maker, now: float) -> None:
    assert reason(maker, maker.materials("other.example"), now) == "san"


def test_a_key_of_another_kind_or_strength_is_refused(maker: Maker, now: float) -> None:
    weak = rsa.generate_private_key(65537, 1024)
    assert reason(maker, maker.materials(key=weak), now) == "key-weak"
    odd = ec.generate_private_key(ec.SECP256K1())
    assert reason(maker, maker.materials(key=odd), now) == "key-weak"
    stranger = ed25519.Ed25519PrivateKey.generate()
    raw = stranger.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    assert reason(maker, maker.materials(raw_key=raw), now) == "key-mismatch"
    assert reason(maker, maker.materials(raw_key=b"\x30\x03\x02\x01\x00"), now) == "key-unreadable"


def test_the_leafs_public_numbers_with_other_private_ones_are_refused(
    maker: Maker, now: float, an_rsa_key: rsa.RSAPrivateKey
) -> None:
    """Although the RSA prime test is skipped, a key that only looks like the leaf's is refused."""
    numbers = an_rsa_key.private_numbers()
    wrong = rsa.RSAPrivateNumbers(
        p=numbers.p, q=numbers.q, d=numbers.d + 2, dmp1=numbers.dmp1, dmq1=numbers.dmq1, iqmp=numbers.iqmp,
        public_numbers=numbers.public_numbers,
    ).private_key(unsafe_skip_rsa_key_validation=True)  # fmt: skip
    raw = wrong.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    assert reason(maker, maker.materials(key=an_rsa_key, raw_key=raw), now) == "key-mismatch"
    ours, theirs = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    sec1 = theirs.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    points = [key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint) for key in (theirs, ours)]
    assert points[0] in sec1
    forged = sec1.replace(*points)
    assert reason(maker, maker.materials(key=ours, raw_key=forged), now) in ("key-unreadable", "key-mismatch")


def test_a_certificate_that_is_not_valid_yet_passes_all_other_checks(maker: Maker, now: float) -> None:
    """Only good material is reported as not yet valid: bad material must be refused now."""
    early = maker.materials("other.example", life=(5, 50))
    assert reason(maker, early, now) == "san"


def test_weak_signatures_are_refused(maker: Maker, now: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library no longer signs with SHA-1, so the test declares a strong hash weak."""
    monkeypatch.setattr("certctrl.install.material.bundle.WEAK_HASHES", frozenset({"sha384"}))
    assert reason(maker, maker.materials(digest=hashes.SHA384()), now) == "signature-weak"
    root = Issuer("weak root")
    link = Issuer("weak link", root)
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = link.leaf(key, ("example.com",))
    for digest, above, signer in ((hashes.SHA384(), root, root), (hashes.SHA256(), root, root)):
        link.certificate = build("weak link", above.name, link.key.public_key(), signer.key, ca=True, digest=digest)
        materials = maker.materials(key=key, leaf=leaf, chain_pem=link.chain_pem)
        if isinstance(digest, hashes.SHA384):
            assert reason(maker, materials, now) == "signature-weak"
        else:
            assert opened(maker, materials, now).chain_pem.decode() == link.chain_pem
    own = build("weak root", "weak root", root.key.public_key(), root.key, ca=True, digest=hashes.SHA384())
    direct = maker.materials(key=key, leaf=root.leaf(key, ("example.com",)), chain_pem=pem(own))
    assert opened(maker, direct, now).chain_pem.decode() == pem(own), "a root's own signature does not matter"


@pytest.mark.parametrize(
    ("last", "digest", "weak"),
    [
        (4, hashes.MD5(), True),
        (5, hashes.SHA1(), True),
        (14, hashes.SHA224(), False),
        (12, hashes.SHA384(), False),
        (13, hashes.SHA512(), False),
    ],
)
def test_md5_and_sha1_are_weak(
    maker: Maker, now: float, an_rsa_key: rsa.RSAPrivateKey, last: int, digest: hashes.HashAlgorithm, weak: bool
) -> None:
    """``last``: the last byte of the algorithm's OID. The library no longer signs with these hashes, so it is put in."""
    strong = build("example.com", "example.com", an_rsa_key.public_key(), an_rsa_key, domains=("example.com",))
    oid = bytes.fromhex("06092a864886f70d0101")
    signed = strong.tbs_certificate_bytes.replace(oid + b"\x0b", oid + bytes([last]))
    signature = an_rsa_key.sign(signed, padding.PKCS1v15(), digest)
    whole = strong.public_bytes(Encoding.DER).replace(strong.tbs_certificate_bytes, signed)
    whole = whole.replace(oid + b"\x0b", oid + bytes([last]))[: -len(signature)] + signature
    leaf = x509.load_der_x509_certificate(whole)
    materials = maker.materials(key=an_rsa_key, leaf=leaf, chain_pem="")
    if weak:
        assert reason(maker, materials, now) == "signature-weak"
    else:
        assert opened(maker, materials, now).certificate_pem.decode() == pem(leaf)


@pytest.mark.parametrize("which", ["low", "middle"])
def test_every_signature_of_a_chain_counts(
    maker: Maker, now: float, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    monkeypatch.setattr("certctrl.install.material.bundle.WEAK_HASHES", frozenset({"sha384"}))
    middle = Issuer("middle", root := Issuer("root"))
    low = Issuer("low", middle)
    weak, above = (low, middle) if which == "low" else (middle, root)
    weak.certificate = build(which, above.name, weak.key.public_key(), above.key, ca=True, digest=hashes.SHA384())
    key = ec.generate_private_key(ec.SECP256R1())
    materials = maker.materials(key=key, leaf=low.leaf(key, ("example.com",)), chain_pem=low.chain_pem)
    assert reason(maker, materials, now) == "signature-weak"


def test_serials_compare_in_every_notation(maker: Maker, now: float) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = maker.issuer.leaf(key, ("example.com",), serial=0x04AB)
    for reported in ("04:AB", "4ab", "0x04ab", str(0x04AB), ""):
        materials = attrs.evolve(maker.materials(key=key, leaf=leaf), serial_number=reported)
        assert opened(maker, materials, now).facts.serial == "04:ab"
    wrong = attrs.evolve(maker.materials(key=key, leaf=leaf), serial_number="04:ac")
    assert reason(maker, wrong, now) == "serial-mismatch"
    assert [serial_text(number) for number in (0, 1, 0x1234, 0xABC)] == ["00", "01", "12:34", "0a:bc"]


@pytest.mark.parametrize("reported", ["0", "00:00", " 0 ", ":"])
def test_a_plane_may_leave_the_serial_number_open(maker: Maker, now: float, reported: str) -> None:
    assert opened(maker, attrs.evolve(maker.materials(), serial_number=reported), now).key_pem


def test_the_facts_are_those_of_the_certificate(maker: Maker, now: float) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = maker.issuer.leaf(key, ("example.com",), serial=0x04AB)
    facts = opened(maker, maker.materials(key=key, leaf=leaf), now).facts
    assert (facts.cert_id, facts.name, facts.serial) == (7, "example.com", "04:ab")
    assert facts_of(leaf, 3, "x", ("a",)).not_after == leaf.not_valid_after_utc.timestamp()
    assert facts_of(leaf, 3, "x", ("a",), ends=now + 5).not_after == now + 5
    assert facts_of(leaf, 3, "x", ("a", "b")).domains == ("a", "b")


def test_a_signature_without_a_hash_is_strong(maker: Maker, now: float) -> None:
    """Ed25519 has its hash inside."""
    signer, key = ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())
    ca = builder_of(build("small", "small", signer.public_key(), maker.issuer.key, ca=True)).sign(signer, None)
    plain = build("x", "small", key.public_key(), maker.issuer.key, domains=("example.com",))
    leaf = builder_of(plain).sign(signer, None)
    assert leaf.signature_hash_algorithm is None
    bundle = opened(maker, maker.materials(key=key, leaf=leaf, chain_pem=pem(ca)), now)
    assert bundle.chain_pem.decode() == pem(ca)


def test_an_unknown_signature_algorithm_is_refused(maker: Maker, now: float) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    der = maker.issuer.leaf(key, ("example.com",)).public_bytes(Encoding.DER)
    ecdsa = bytes.fromhex("2a8648ce3d0403")  # followed by 02: with SHA-256
    odd = x509.load_der_x509_certificate(der.replace(ecdsa + b"\x02", ecdsa + b"\x7f"))
    with pytest.raises(MaterialError, match="signature algorithm") as caught:
        opened(maker, maker.materials(key=key, leaf=odd, chain_pem=""), now)
    assert caught.value.reason == "signature-weak"


def test_a_weak_signature_is_named(maker: Maker, now: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certctrl.install.material.bundle.WEAK_HASHES", frozenset({"sha384"}))
    with pytest.raises(MaterialError, match="signed with sha384"):
        opened(maker, maker.materials(digest=hashes.SHA384()), now)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_a_negative_serial_number(maker: Maker, now: float) -> None:
    """RFC 5280 forbids it, and old private CAs make it."""
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = with_serial(maker, key, b"\xf1\x22\x33\x44")
    assert leaf.serial_number == -0x0EDDCCBC
    for told in ("-0eddccbc", "-0E:DD:CC:BC", "f1:22:33:44", str(-0x0EDDCCBC), ""):
        materials = attrs.evolve(maker.materials(key=key, leaf=leaf), serial_number=told)
        assert opened(maker, materials, now).facts.serial == "-0e:dd:cc:bc"
    for told in ("0eddccbc", "-f1:22:33:44", "f1:22:33:45", "X"):
        assert reason(maker, attrs.evolve(materials, serial_number=told), now) == "serial-mismatch"


def with_serial(maker: Maker, key: object, serial: bytes) -> x509.Certificate:
    """Return a leaf with four bytes as its serial number, which the library would not write."""
    mark = 0x11223344
    builder = builder_of(maker.issuer.leaf(key, ("example.com",), serial=mark))
    signed = builder.sign(maker.issuer.key, hashes.SHA256())
    body = signed.tbs_certificate_bytes.replace(mark.to_bytes(4, "big"), serial, 1)
    signature = maker.issuer.key.sign(body, ec.ECDSA(hashes.SHA256()))
    old = signed.public_bytes(Encoding.DER)
    algorithm = old[old.index(signed.tbs_certificate_bytes) + len(body) :][:12]
    rest = body + algorithm + b"\x03" + bytes([len(signature) + 1, 0]) + signature
    return x509.load_der_x509_certificate(b"\x30\x82" + len(rest).to_bytes(2, "big") + rest)


def test_keys_on_brainpool_curves_need_the_policy(maker: Maker, now: float) -> None:
    for curve in (ec.BrainpoolP256R1(), ec.BrainpoolP384R1(), ec.BrainpoolP512R1()):
        materials = maker.materials(key=ec.generate_private_key(curve))
        with pytest.raises(MaterialError, match=f"curve {curve.name}, which this host's policy") as caught:
            opened(maker, materials, now)
        assert (caught.value.reason, "brainpool" in (caught.value.fix or "")) == ("brainpool-refused", True)
        assert opened(maker, materials, now, brainpool=True).key_pem
    assert (
        reason(maker, maker.materials(key=ec.generate_private_key(ec.SECP256K1())), now, brainpool=True) == "key-weak"
    )


def test_plaintext_keys_need_the_policy(maker: Maker, now: float, an_rsa_key: rsa.RSAPrivateKey) -> None:
    sealed = maker.materials(key=an_rsa_key)
    raw = an_rsa_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    plain = attrs.evolve(sealed, enc_scheme="plaintext", private_key_der_b64=base64.b64encode(raw).decode())
    assert reason(maker, plain, now) == "plaintext-refused"
    assert opened(maker, plain, now, allow_plaintext=True, secret=b"").key_pem
    text = an_rsa_key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()
    assert opened(maker, attrs.evolve(plain, private_key_pem=text), now, allow_plaintext=True).key_pem


def test_a_bundle_for_another_device_is_reported_as_such(maker: Maker, now: float) -> None:
    other = maker.__class__(issuer=maker.issuer)
    theirs = attrs.evolve(other.materials(), device_keyfp_b64=base64.b64encode(b"f" * 32).decode())
    assert reason(maker, theirs, now) == "sealed-for-another-device"
    assert reason(maker, other.materials(), now) == "unsealing"
    assert reason(maker, maker.materials(), now, secret=b"") == "device-key"


@pytest.mark.parametrize(
    "field", ["enc_data_key_b64", "enc_privkey_b64", "privkey_nonce_b64", "privkey_tag_b64", "certificate_pem"]
)
@pytest.mark.parametrize("text", ["", "not base64 at all !", "QUJD", "\x00", "ä", "A" * 300_000])
def test_broken_fields_are_refused_without_a_foreign_exception(maker: Maker, now: float, field: str, text: str) -> None:
    broken = attrs.evolve(maker.materials(), **{field: text})
    assert reason(maker, broken, now) in (
        "incomplete", "unsealing", "leaf-unreadable", "too-large", "key-unreadable",
    )  # fmt: skip


def test_unknown_schemes_are_refused(maker: Maker, now: float) -> None:
    assert reason(maker, attrs.evolve(maker.materials(), enc_scheme="rot13"), now) == "scheme"
    assert reason(maker, attrs.evolve(maker.materials(), wrap_alg="mlkem"), now) == "scheme"


def test_a_flipped_bit_anywhere_in_the_sealed_key_is_noticed(maker: Maker, now: float) -> None:
    materials = maker.materials()
    for field in ("enc_data_key_b64", "enc_privkey_b64", "privkey_nonce_b64", "privkey_tag_b64"):
        raw = bytearray(base64.b64decode(getattr(materials, field)))
        for position in (0, len(raw) // 2, len(raw) - 1):
            raw[position] ^= 1
            broken = attrs.evolve(materials, **{field: base64.b64encode(bytes(raw)).decode()})
            assert reason(maker, broken, now) == "unsealing"
            raw[position] ^= 1


def test_text_and_other_blocks_around_certificates_never_reach_the_disk(maker: Maker, now: float) -> None:
    materials = maker.materials()
    smuggled = "# hello\n-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
    dirty = attrs.evolve(
        materials,
        certificate_pem=f"Subject: x\n{materials.certificate_pem}",
        chain_pem=f"{materials.chain_pem}{smuggled}",
    )
    bundle = opened(maker, dirty, now)
    assert bundle.certificate_pem.decode() == materials.certificate_pem
    assert bundle.chain_pem.decode() == materials.chain_pem


def test_a_full_chain_in_the_certificate_field_is_accepted(maker: Maker, now: float) -> None:
    materials = maker.materials()
    full = f"{materials.certificate_pem}{materials.chain_pem}"
    for chain in ("", materials.chain_pem):
        bundle = opened(maker, attrs.evolve(materials, certificate_pem=full, chain_pem=chain), now)
        assert (bundle.certificate_pem + bundle.chain_pem).decode() == full


def test_no_error_and_no_repr_quotes_the_key(maker: Maker, now: float) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    raw = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(MaterialError) as caught:
        opened(maker, maker.materials(raw_key=raw[:40], key=key), now)
    assert caught.value.__suppress_context__ and caught.value.__cause__ is None
    materials = attrs.evolve(maker.materials(key=key), enc_scheme="plaintext", private_key_pem="canary-in-the-key")
    bundle = opened(maker, maker.materials(key=key), now)
    body = bundle.key_pem.splitlines()[1].decode()
    assert body not in repr(bundle) and "canary" not in repr(materials)
