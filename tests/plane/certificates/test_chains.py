"""Chains: any order of certificates gives the one chain, or the reason why there is none."""

from __future__ import annotations

import contextlib
from itertools import permutations

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa, x25519
from hypothesis import given
from hypothesis import strategies as st
from made_chains import DAY, NOW, Made, made, pki

from certctrl.errors import MaterialError
from certctrl.plane.certificates.chains import (
    MAX_CHAIN,
    MAX_GIVEN,
    certificates_of,
    chain_of,
    require_strong,
    require_valid,
    weakness_of,
)

ROOT, ONE, TWO = pki(2)
LEAF = made("leaf", TWO, names=["www.example.com"], published="http://ca.example/two.crt")
OTHER = pki(1, "Other ")


def test_every_order_gives_the_same_chain() -> None:
    for order in permutations([LEAF, ONE, TWO, ROOT]):
        found = chain_of(LEAF.certificate, [one.certificate for one in order], now=NOW)
        assert found.intermediates == (TWO.certificate, ONE.certificate)
        assert not found.notes


def test_the_chain_in_pem_is_sorted() -> None:
    given = [one.certificate for one in (ROOT, ONE, TWO)]
    assert chain_of(LEAF.certificate, given, now=NOW).chain_pem == TWO.pem + ONE.pem


def test_a_missing_intermediate_is_completed_from_known_ones() -> None:
    found = chain_of(LEAF.certificate, [TWO.certificate], known=[ONE.certificate, ROOT.certificate], now=NOW)
    assert found.intermediates == (TWO.certificate, ONE.certificate)
    direct = made("direct", ROOT)
    assert chain_of(direct.certificate, [], known=[ROOT.certificate], now=NOW).intermediates == ()


def test_without_the_root_the_end_is_noted() -> None:
    (note,) = chain_of(LEAF.certificate, [TWO.certificate, ONE.certificate], now=NOW).notes
    assert "CN=Root is not known here" in note


def test_certificates_of_other_chains_are_noted() -> None:
    given = [one.certificate for one in (ROOT, ONE, TWO, OTHER[1])]
    (note,) = chain_of(LEAF.certificate, given, now=NOW).notes
    assert note == "not part of the chain: CN=Other Intermediate 1"


def test_a_self_signed_certificate_has_no_chain() -> None:
    assert chain_of(ROOT.certificate, [], now=NOW).intermediates == ()


@pytest.mark.parametrize(
    ("given_", "reason", "says"),
    [
        ([], "incomplete", "lacks the certificate of CN=Intermediate 2"),
        ([OTHER[1]], "other-ca", "of another CA: it has CN=Other Intermediate 1, the certificate is from CN=Inter"),
        ([made("Intermediate 2", ROOT, ca=True)], "other-ca", "the names agree, the keys do not"),
    ],
)
def test_an_unusable_chain_is_refused(given_: list[Made], reason: str, says: str) -> None:
    with pytest.raises(MaterialError, match=says) as caught:
        chain_of(LEAF.certificate, [one.certificate for one in given_], now=NOW)
    assert caught.value.reason == reason
    assert caught.value.fix


def test_the_fix_names_where_the_ca_publishes_its_certificate() -> None:
    with pytest.raises(MaterialError) as caught:
        chain_of(LEAF.certificate, [], now=NOW)
    assert "get the certificate of CN=Intermediate 2 from http://ca.example/two.crt and" in str(caught.value.fix)
    with pytest.raises(MaterialError) as caught:
        chain_of(made("leaf", TWO).certificate, [], now=NOW)
    assert "get the certificate of CN=Intermediate 2 and add it" in str(caught.value.fix)


def test_intermediates_must_be_current_strong_cas() -> None:
    for reason, middle in (
        ("expired", made("Middle", ROOT, ca=True, end=NOW - 1)),
        ("not-a-ca", made("Middle", ROOT)),
        ("not-a-ca", made("Middle", ROOT, constraints=False)),
        ("weak", made("Middle", ROOT, ca=True, key=rsa.generate_private_key(65537, 1024))),
    ):
        leaf = made("leaf", middle)
        with pytest.raises(MaterialError) as caught:
            chain_of(leaf.certificate, [middle.certificate, ROOT.certificate], now=NOW)
        assert caught.value.reason == reason
        assert str(caught.value).startswith("CN=Middle in the chain") and caught.value.fix


def test_a_chain_of_ten_and_a_text_of_a_hundred_are_the_most() -> None:
    line = pki(MAX_CHAIN + 1)
    for depth, is_allowed in ((MAX_CHAIN, True), (MAX_CHAIN + 1, False)):
        leaf = made("leaf", line[depth])
        given = [one.certificate for one in line[: depth + 1]]
        if is_allowed:
            assert len(chain_of(leaf.certificate, given, now=NOW).intermediates) == MAX_CHAIN
        else:
            with pytest.raises(MaterialError, match="more than 10") as caught:
                chain_of(leaf.certificate, given, now=NOW)
            assert caught.value.reason == "too-many"
    assert certificates_of(LEAF.pem * MAX_GIVEN) == [LEAF.certificate]
    with pytest.raises(MaterialError, match="more than 100") as caught:
        certificates_of(LEAF.pem * (MAX_GIVEN + 1))
    assert caught.value.reason == "too-many"


def test_of_two_certificates_of_one_ca_the_later_end_is_used() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    old, new = (made("Middle", ROOT, ca=True, key=key, end=NOW + days * DAY) for days in (-1, 100))
    leaf = made("leaf", old)
    given = [old.certificate, new.certificate, ROOT.certificate]
    assert chain_of(leaf.certificate, given, now=NOW).intermediates == (new.certificate,)


def test_cross_signed_cas_do_not_loop() -> None:
    key_a, key_b = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    a_self, b_self = made("A", ca=True, key=key_a), made("B", ca=True, key=key_b)
    a_by_b, b_by_a = made("A", b_self, ca=True, key=key_a), made("B", a_self, ca=True, key=key_b)
    leaf = made("leaf", a_self)
    found = chain_of(leaf.certificate, [a_by_b.certificate, b_by_a.certificate], now=NOW)
    assert found.intermediates == (a_by_b.certificate, b_by_a.certificate)
    rooted = chain_of(leaf.certificate, [a_by_b.certificate, b_by_a.certificate, a_self.certificate], now=NOW)
    assert rooted.intermediates == ()


def test_pem_is_read_once_each_and_other_blocks_are_ignored() -> None:
    text = f"Bag Attributes\n{LEAF.pem}{LEAF.key_pem}junk{TWO.pem}{LEAF.pem}"
    assert certificates_of(text) == [LEAF.certificate, TWO.certificate]
    assert certificates_of("") == []


def test_a_broken_block_is_named_by_its_number() -> None:
    broken = TWO.pem.replace(TWO.pem.splitlines()[1], "AAAA")
    with pytest.raises(MaterialError, match="certificate 2 cannot be read") as caught:
        certificates_of(LEAF.pem + broken)
    assert caught.value.reason == "certificate" and caught.value.fix


@given(st.text(alphabet=st.sampled_from("-BEGINEDCRTFA \n="), max_size=300))
def test_any_text_is_read_or_refused(text: str) -> None:
    framed = f"-----BEGIN CERTIFICATE-----{text}-----END CERTIFICATE-----"
    for one in (text, framed):
        with contextlib.suppress(MaterialError):
            assert certificates_of(one) == []


def test_weak_and_expired_leaves() -> None:
    for weak in (
        made("weak", ROOT, key=rsa.generate_private_key(65537, 1024)),
        made("weak", ROOT, key=ec.generate_private_key(ec.SECP192R1())),
        made("weak", ROOT, hash_=hashes.SHA224()),
    ):
        with pytest.raises(MaterialError, match="too weak") as caught:
            require_strong(weak.certificate, "the certificate")
        assert caught.value.reason == "weak"
    for kind in (ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey):
        assert weakness_of(kind.generate().public_key()) == ""
    assert weakness_of(rsa.generate_private_key(65537, 2048).public_key()) == ""
    assert weakness_of(rsa.generate_private_key(65537, 2040).public_key()) == "an RSA key of 2040 bits"
    assert weakness_of(x25519.X25519PrivateKey.generate().public_key()) == "a key of a kind that TLS does not use"
    with pytest.raises(MaterialError, match="expired at"):
        require_valid(made("old", end=NOW).certificate, NOW, "the certificate")
    require_valid(LEAF.certificate, NOW, "the certificate")
    require_strong(LEAF.certificate, "the certificate")
