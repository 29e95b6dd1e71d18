"""The chain above a leaf: sorted and checked by its signatures, as old as its first end."""

from __future__ import annotations

import itertools
import re

import attrs
import pytest
from bundle_maker import DAY, Issuer, Maker, build, opened, pem, reason
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from certctrl.errors import MaterialError, NotYetValidError
from certctrl.install.material.bundle import chain_end
from certctrl.model.certificate import DeployMaterials


def test_a_chain_is_checked_by_its_signatures(maker: Maker, make_issuer: type[Issuer], now: float) -> None:
    top = make_issuer("root")
    middle = make_issuer("middle", top)
    low = make_issuer("low", middle)
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = low.leaf(key, ("example.com",))
    pems = {name: maker.__class__(issuer=i).issuer.chain_pem for name, i in (("low", low), ("middle", middle))}

    def chained(chain: str) -> DeployMaterials:
        return maker.materials(key=key, leaf=leaf, chain_pem=chain)

    assert opened(maker, chained(pems["low"]), now).chain_pem.decode() == pems["low"]
    assert reason(maker, chained(pems["middle"]), now) == "chain-order"
    assert reason(maker, chained(maker.issuer.chain_pem), now) == "chain-order"
    impostor = make_issuer("low", make_issuer("middle", make_issuer("root")))  # same names, other keys
    assert reason(maker, chained(impostor.chain_pem), now) == "chain-order"
    assert reason(maker, chained("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), now) == (
        "chain-unreadable"
    )


def test_harmless_irregularities_of_a_chain_are_put_right(maker: Maker, make_issuer: type[Issuer], now: float) -> None:
    root = make_issuer("root")
    middle = make_issuer("middle", root)
    low = make_issuer("low", middle)
    key = ec.generate_private_key(ec.SECP256R1())
    parts = [
        pem(one) for one in (low.leaf(key, ("example.com",)), low.certificate, middle.certificate, root.certificate)
    ]
    leaf, first, second, top = parts
    good = maker.materials(key=key, leaf=x509.load_pem_x509_certificate(leaf.encode()))
    for own, chain in [
        (leaf, second + first),
        (leaf, first + first + second + first),
        (leaf, leaf + first + second),
        (leaf, first + second + top),
        (leaf, top + leaf + second + first + leaf),
        (leaf + leaf, first + second),
        (leaf + first, first + second),
        (leaf + first, second),
        (leaf + second + first, first + top),
        (top + second + first + leaf, ""),
        ("".join(reversed(parts)), "".join(parts)),
    ]:
        bundle = opened(maker, attrs.evolve(good, certificate_pem=own, chain_pem=chain), now)
        assert (bundle.certificate_pem.decode(), bundle.chain_pem.decode()) == (leaf, first + second)
    assert opened(maker, attrs.evolve(good, certificate_pem=leaf, chain_pem=leaf), now).chain_pem == b""


def test_the_root_that_signed_the_leaf_itself_stays(maker: Maker, make_issuer: type[Issuer], now: float) -> None:
    root = make_issuer("root")
    key = ec.generate_private_key(ec.SECP256R1())
    materials = maker.materials(key=key, leaf=root.leaf(key, ("example.com",)), chain_pem=pem(root.certificate))
    assert opened(maker, materials, now).chain_pem.decode() == pem(root.certificate)


def test_of_two_certificates_of_one_ca_the_longer_one_is_used(
    maker: Maker, make_issuer: type[Issuer], now: float
) -> None:
    old, new = make_issuer("old"), make_issuer("new")
    low = make_issuer("low", new)
    cross = build("low", "old", low.key.public_key(), old.key, ca=True, life=(-400, 2000))
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = low.leaf(key, ("example.com",))
    for parts in itertools.permutations((low.certificate, cross, old.certificate, new.certificate)):
        materials = maker.materials(key=key, leaf=leaf, chain_pem="".join(map(pem, parts)))
        assert opened(maker, materials, now).chain_pem.decode() == pem(low.certificate)


def test_a_new_key_of_a_ca_signed_by_its_old_one_is_no_root(
    maker: Maker, make_issuer: type[Issuer], now: float
) -> None:
    old, new = make_issuer("ca"), make_issuer("ca")
    link = build("ca", "ca", new.key.public_key(), old.key, ca=True, life=(-400, 3000))
    low = make_issuer("low", new)
    key = ec.generate_private_key(ec.SECP256R1())
    chain = pem(low.certificate) + pem(link)
    materials = maker.materials(key=key, leaf=low.leaf(key, ("example.com",)), chain_pem=chain)
    assert opened(maker, materials, now).chain_pem.decode() == chain


def test_a_chain_broken_above_its_first_link_is_refused(maker: Maker, make_issuer: type[Issuer], now: float) -> None:
    middle = make_issuer("middle", make_issuer("root"))
    low = make_issuer("low", middle)
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = low.leaf(key, ("example.com",))
    twin = make_issuer("middle", make_issuer("root"))  # the same name, another key
    stranger = build("x", "root", key.public_key(), twin.key, domains=("x.example",))
    for odd in (twin.certificate, make_issuer("elsewhere").certificate, stranger):
        for before in (low.chain, [low.certificate]):
            materials = maker.materials(key=key, leaf=leaf, chain_pem="".join(map(pem, [*before, odd])))
            assert reason(maker, materials, now) == "chain-order"


@pytest.mark.parametrize("which", ["first", "second"])
@pytest.mark.parametrize("marked", [False, None])
def test_an_issuer_that_is_not_a_ca_is_refused(
    maker: Maker, make_issuer: type[Issuer], now: float, which: str, marked: bool | None
) -> None:
    root = make_issuer("root")
    middle = make_issuer("middle", root)
    low = make_issuer("low", middle)
    fake = low if which == "first" else middle
    above = fake.above or fake
    fake.certificate = build(fake.name, above.name, fake.key.public_key(), above.key, ca=marked, life=(-400, 3000))
    key = ec.generate_private_key(ec.SECP256R1())
    materials = maker.materials(key=key, leaf=low.leaf(key, ("example.com",)), chain_pem=low.chain_pem)
    with pytest.raises(MaterialError, match="not a CA") as caught:
        opened(maker, materials, now)
    assert caught.value.reason == "chain-order"


def test_dates_are_judged_by_the_given_clock(maker: Maker, make_issuer: type[Issuer], now: float) -> None:
    materials = maker.materials("example.com")
    assert reason(maker, materials, now + 89 * DAY) == "expired"
    with pytest.raises(NotYetValidError) as early:
        opened(maker, materials, now - 2 * DAY)
    assert early.value.valid_from == now - DAY
    long_leaf = maker.materials("example.com", life=(-1, 4000))
    assert reason(maker, long_leaf, now + 3001 * DAY) == "chain-expired"


def test_a_certificate_ends_with_the_first_certificate_of_its_chain(
    maker: Maker, make_issuer: type[Issuer], now: float
) -> None:
    root = make_issuer("root")
    middle = make_issuer("middle", root)
    low = make_issuer("low", middle)
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = low.leaf(key, ("example.com",))

    def ends(*chain: x509.Certificate) -> float:
        materials = maker.materials(key=key, leaf=leaf, chain_pem="".join(map(pem, chain)))
        return opened(maker, materials, now).facts.not_after

    assert ends() == ends(low.certificate, middle.certificate, root.certificate) == now + 89 * DAY
    for one, above in ((low, middle), (middle, root), (root, root)):
        long = one.certificate
        one.certificate = build(one.name, above.name, one.key.public_key(), above.key, ca=True, life=(-400, 30))
        chain = [low.certificate, middle.certificate, root.certificate]
        assert ends(*chain) == ends(*reversed(chain)) == now + 30 * DAY
        assert ends(*chain[:2]) == now + (89 if one is root else 30) * DAY
        assert ends(*chain, long) == now + 89 * DAY, "the longer certificate of the same CA is used"
        one.certificate = long


def test_an_expired_top_of_a_chain_is_left_out(maker: Maker, make_issuer: type[Issuer], now: float) -> None:
    """Like the signature of an old root for a newer one, which stays in chains after it has expired."""
    old, new = make_issuer("old root"), make_issuer("new root")
    low = make_issuer("low", new)
    expired = build("new root", "old root", new.key.public_key(), old.key, ca=True, life=(-400, -1))
    weak = build("new root", "old root", new.key.public_key(), old.key, life=(-400, -1))  # not even a CA
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = low.leaf(key, ("example.com",))
    for top in ([expired], [expired, old.certificate], [weak], [expired, new.certificate], [old.certificate, expired]):
        materials = maker.materials(key=key, leaf=leaf, chain_pem="".join(map(pem, [low.certificate, *top])))
        bundle = opened(maker, materials, now)
        assert bundle.chain_pem.decode() == pem(low.certificate)
        assert bundle.facts.not_after == now + 89 * DAY
    alive = build("new root", "old root", new.key.public_key(), old.key, ca=True, life=(-400, 60))
    crossed = maker.materials(key=key, leaf=leaf, chain_pem=pem(low.certificate) + pem(alive))
    bundle = opened(maker, crossed, now)
    assert bundle.chain_pem.decode() == pem(low.certificate) + pem(alive), "other clients need it"
    assert bundle.facts.not_after == now + 60 * DAY
    later = opened(maker, crossed, now + 60 * DAY)
    assert later.chain_pem.decode() == pem(low.certificate)
    assert later.facts.not_after == now + 89 * DAY


def test_an_expired_issuer_of_the_leaf_is_refused(maker: Maker, make_issuer: type[Issuer], now: float) -> None:
    low = make_issuer("low", make_issuer("root"))
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = low.leaf(key, ("example.com",))
    above = low.above or low
    expired = build("low", "root", low.key.public_key(), above.key, ca=True, life=(-400, -1))
    for chain in ([expired], [expired, above.certificate]):
        materials = maker.materials(key=key, leaf=leaf, chain_pem="".join(map(pem, chain)))
        assert reason(maker, materials, now) == "chain-expired"
    both = maker.materials(key=key, leaf=leaf, chain_pem=pem(expired) + pem(low.certificate))
    assert opened(maker, both, now).chain_pem.decode() == pem(low.certificate)


def test_a_chain_has_ten_certificates_at_most(maker: Maker, make_issuer: type[Issuer], now: float) -> None:
    top = make_issuer("ca 0")
    for number in range(1, 12):
        top = make_issuer(f"ca {number}", top)
    key = ec.generate_private_key(ec.SECP256R1())
    whole = maker.materials(key=key, leaf=top.leaf(key, ("example.com",)), chain_pem="")
    ten, eleven = ("".join(map(pem, top.chain[:count])) for count in (10, 11))
    assert opened(maker, attrs.evolve(whole, chain_pem=ten), now).chain_pem.decode() == ten
    with pytest.raises(MaterialError, match="longer than 10") as caught:
        opened(maker, attrs.evolve(whole, chain_pem=eleven), now)
    assert caught.value.reason == "chain-order"


def test_a_chain_without_the_issuer_of_the_leaf_is_refused(maker: Maker, make_issuer: type[Issuer], now: float) -> None:
    root = make_issuer("root")
    low = make_issuer("low", make_issuer("middle", root))
    key = ec.generate_private_key(ec.SECP256R1())
    materials = maker.materials(key=key, leaf=low.leaf(key, ("example.com",)), chain_pem=pem(root.certificate))
    with pytest.raises(MaterialError, match="does not contain the issuer") as caught:
        opened(maker, materials, now)
    assert caught.value.reason == "chain-order"


@pytest.mark.parametrize("part", ["middle", "low"])
def test_a_later_start_of_the_chain_counts(maker: Maker, make_issuer: type[Issuer], now: float, part: str) -> None:
    middle = make_issuer("middle", make_issuer("root"))
    low = make_issuer("low", middle)
    late = low if part == "low" else middle
    above = late.above or late
    late.certificate = build(late.name, above.name, late.key.public_key(), above.key, ca=True, life=(2, 3000))
    key = ec.generate_private_key(ec.SECP256R1())
    materials = maker.materials(key=key, leaf=low.leaf(key, ("example.com",)), chain_pem=low.chain_pem)
    with pytest.raises(NotYetValidError) as caught:
        opened(maker, materials, now)
    assert caught.value.valid_from == now + 2 * DAY
    assert opened(maker, materials, now + 2 * DAY).key_pem, "valid in its first second"


def test_a_chain_ends_in_its_last_second(maker: Maker, make_issuer: type[Issuer], now: float) -> None:
    low = make_issuer("low", make_issuer("root"))
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = low.leaf(key, ("example.com",), life=(-1, 4000))
    materials = maker.materials(key=key, leaf=leaf, chain_pem=low.chain_pem)
    assert opened(maker, materials, now + 3000 * DAY - 1).facts.not_after == now + 3000 * DAY
    with pytest.raises(MaterialError) as caught:
        opened(maker, materials, now + 3000 * DAY)
    assert (caught.value.reason, "renew it" in (caught.value.fix or "")) == ("chain-expired", True)


def test_an_expired_leaf_names_the_clock(maker: Maker, now: float) -> None:
    with pytest.raises(MaterialError, match=r"expired at 2027-01-\d\d \d\d:\d\dZ") as caught:
        opened(maker, maker.materials(life=(-30, 0)), now)
    assert (caught.value.reason, "clock" in (caught.value.fix or "")) == ("expired", True)


def test_a_ca_whose_extensions_cannot_be_read_is_refused(maker: Maker, make_issuer: type[Issuer], now: float) -> None:
    low = make_issuer("low", make_issuer("root"))
    above = low.above or low
    plain = build("low", "root", low.key.public_key(), above.key, ca=True, life=(-400, 3000))
    low.certificate = doubled(plain, above, "55 1d 13")
    key = ec.generate_private_key(ec.SECP256R1())
    materials = maker.materials(key=key, leaf=low.leaf(key, ("example.com",)), chain_pem=low.chain_pem)
    with pytest.raises(MaterialError, match="extensions in the chain") as caught:
        opened(maker, materials, now)
    assert caught.value.reason == "chain-unreadable"


def doubled(plain: x509.Certificate, issuer: Issuer, oid: str) -> x509.Certificate:
    """Return a certificate that has an extension twice, which the library would not write."""
    builder = x509.CertificateBuilder(
        plain.issuer, plain.subject, plain.public_key(), plain.serial_number,
        plain.not_valid_before_utc, plain.not_valid_after_utc,
    )  # fmt: skip
    for extension in plain.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    mark = x509.ObjectIdentifier("2.5.29.99")
    signed = builder.add_extension(x509.UnrecognizedExtension(mark, b"\x30\x00"), False).sign(issuer.key, SHA256())
    body = signed.tbs_certificate_bytes.replace(bytes.fromhex("55 1d 63"), bytes.fromhex(oid), 1)
    signature = issuer.key.sign(body, ec.ECDSA(SHA256()))
    old = signed.public_bytes(Encoding.DER)
    algorithm = old[old.index(signed.tbs_certificate_bytes) + len(body) :][:12]
    rest = body + algorithm + b"\x03" + bytes([len(signature) + 1, 0]) + signature
    return x509.load_der_x509_certificate(b"\x30\x82" + len(rest).to_bytes(2, "big") + rest)


def test_a_leaf_whose_names_cannot_be_read_is_refused(maker: Maker, now: float) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = doubled(maker.issuer.leaf(key, ("example.com",)), maker.issuer, "55 1d 11")
    with pytest.raises(MaterialError, match="names cannot be read") as caught:
        opened(maker, maker.materials(key=key, leaf=leaf), now)
    assert caught.value.reason == "leaf-unreadable"


def in_year_0(plain: x509.Certificate, which: int) -> x509.Certificate:
    """Return a certificate whose validity begins (0) or ends (1) in the year 0; its signature no longer matches."""
    der = plain.public_bytes(Encoding.DER)
    times = re.findall(rb"\x17\x0d\d{12}Z", der)
    old = b"\x30\x1e" + b"".join(times)
    times[which] = b"\x18\x0f00000101000000Z"
    new = b"\x30\x20" + b"".join(times)
    assert (der[1], der[5], old in der) == (0x82, 0x82, True)
    sizes = [(int.from_bytes(der[at : at + 2], "big") + 2).to_bytes(2, "big") for at in (2, 6)]
    return x509.load_der_x509_certificate(der[:2] + sizes[0] + der[4:6] + sizes[1] + der[8:].replace(old, new))


@pytest.mark.parametrize("which", [0, 1])
def test_dates_that_python_cannot_represent_are_refused(
    maker: Maker, make_issuer: type[Issuer], now: float, which: int
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    names = tuple(f"{n}.example.com" for n in range(9))
    leaf = maker.issuer.leaf(key, names)
    with pytest.raises(MaterialError, match="dates of the certificate cannot be read") as caught:
        opened(maker, maker.materials(key=key, leaf=in_year_0(leaf, which), chain_pem=""), now, *names)
    assert caught.value.reason == "leaf-unreadable"
    low = make_issuer("low" * 20, make_issuer("root" * 10))
    chain = pem(in_year_0(low.certificate, which))
    with pytest.raises(MaterialError, match="a date in the chain cannot be read") as caught:
        opened(maker, maker.materials(key=key, leaf=low.leaf(key, names), chain_pem=chain), now, *names)
    assert caught.value.reason == "chain-unreadable"
    assert chain_end(chain.encode()) == (float("inf") if which else now + 3000 * DAY)


@pytest.mark.parametrize("field", ["certificate_pem", "chain_pem"])
def test_certificates_have_a_largest_size(maker: Maker, now: float, field: str) -> None:
    materials = maker.materials()
    size = 256 * 1024 - len(getattr(materials, field))
    fits = attrs.evolve(materials, **{field: "#" * (size - 1) + "\n" + getattr(materials, field)})
    assert opened(maker, fits, now).chain_pem.decode() == materials.chain_pem
    with pytest.raises(MaterialError, match="larger than 256 KiB") as caught:
        opened(maker, attrs.evolve(fits, **{field: "#" + getattr(fits, field)}), now)
    assert caught.value.reason == "too-large"


@pytest.mark.parametrize(("text", "why"), [(" \n", "no certificate"), (None, "no certificate"), ("x", "not PEM")])
def test_a_bundle_without_a_leaf_is_refused(maker: Maker, now: float, text: str | None, why: str) -> None:
    with pytest.raises(MaterialError, match=why) as caught:
        opened(maker, attrs.evolve(maker.materials(), certificate_pem=text), now)
    assert caught.value.reason == "leaf-unreadable"


def test_the_end_of_a_chain_on_disk(make_issuer: type[Issuer], now: float) -> None:
    low = make_issuer("low", make_issuer("root"))
    short = build("short", "root", low.key.public_key(), low.key, ca=True, life=(-1, 5))
    assert chain_end(low.chain_pem.encode()) == now + 3000 * DAY
    assert chain_end((low.chain_pem + pem(short)).encode()) == now + 5 * DAY
    assert chain_end(b"") == chain_end(b"\xff") == chain_end(b"no PEM") == float("inf")


def test_certificates_that_signed_each_other_have_no_leaf_below_them(maker: Maker, now: float) -> None:
    """Such as an old and a new self-signed certificate with the same key, sent together."""
    key = ec.generate_private_key(ec.SECP256R1())
    old, new = (
        build("example.com", "example.com", key.public_key(), key, domains=("example.com",), life=(-1, days))
        for days in (30, 90)
    )
    materials = attrs.evolve(maker.materials(key=key, leaf=old, chain_pem=""), certificate_pem=pem(old) + pem(new))
    assert reason(maker, materials, now) == "chain-order"
