"""The names of a certificate: which domains they cover, in which form, and which of them are the facts."""

from __future__ import annotations

import sys

import pytest
from bundle_maker import Maker, build, builder_of, opened, reason
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from certctrl.errors import MaterialError
from certctrl.install.material.bundle import is_covered, plain_domain
from certctrl.install.material.placeholder import placeholder_bundle
from certctrl.model.certificate import DeployMaterials


def test_names_must_cover_the_assignment(maker: Maker, now: float) -> None:
    wild = maker.materials("*.example.com", "example.com")
    assert opened(maker, wild, now, "*.example.com").facts.domains[0] == "*.example.com"
    assert opened(maker, wild, now, "www.example.com").facts.domains == ("*.example.com", "example.com")
    assert reason(maker, wild, now, "a.b.example.com") == "san"
    assert reason(maker, maker.materials("xn--bcher-kva.example"), now, "bücher.example", "b.example") == "san"
    assert opened(maker, maker.materials("xn--bcher-kva.example"), now, "Bücher.example.").facts.domains


@pytest.mark.parametrize(
    ("name", "domain", "expected"),
    [
        ("a.example", "a.example", True),
        ("*.example", "a.example", True),
        ("*.example", "a.b.example", False),
        ("*.example", "example", False),
        ("*.example", "*.example", True),
        ("*.b.example", "*.b.example", True),
        ("*.example", "*.b.example", False),
        ("*", "a", False),
        ("*.example", ".example", False),
    ],
)
def test_wildcards_cover_one_label(name: str, domain: str, expected: bool) -> None:
    assert is_covered(domain, {name}) is expected


def test_the_work_grows_with_the_number_of_names_and_not_with_its_square(maker: Maker, now: float) -> None:
    names = [f"h{number}.example" for number in range(1000)]
    materials, calls = maker.materials(*names), 0

    def count(frame: object, event: str, _: object) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)  # unlike time, independent of the load of the machine
    try:
        assert len(opened(maker, materials, now, *names).facts.domains) == 1000
    finally:
        sys.setprofile(before)
    assert calls < 100_000


def test_plain_domain() -> None:
    assert [plain_domain(text) for text in (" A.Example. ", "2001:DB8::1", "Ä.example", "a" * 70 + "ä")] == [
        "a.example", "2001:db8::1", "xn--4ca.example", "a" * 70 + "ä",
    ]  # fmt: skip
    assert [plain_domain(text) for text in ("2001:DB8:0::A", "192.0.2.7.", "WWW.EXAMPLE.MX", "a:b")] == [
        "2001:db8::a", "192.0.2.7", "www.example.mx", "a:b",
    ]  # fmt: skip
    assert [plain_domain(text) for text in ("Straße.example", "*.STRAẞE.example", "i❤.example", "a。ä")] == [
        "xn--strae-oqa.example", "*.xn--strae-oqa.example", "xn--i-7iq.example", "a.xn--4ca",
    ]  # fmt: skip


def test_the_primary_domain_is_first_and_no_name_comes_twice(maker: Maker, now: float) -> None:
    materials = maker.materials("b.example", "A.example", "a.example", "192.0.2.7")
    assert opened(maker, materials, now, "a.example", "b.example").facts.domains == (
        "a.example", "b.example", "192.0.2.7",
    )  # fmt: skip
    assert opened(maker, materials, now, "192.0.2.7").facts.domains == ("192.0.2.7", "b.example", "a.example")
    assert opened(maker, materials, now, "192.0.2.7", "a.example").facts.domains[1:] == ("b.example", "a.example")
    wild = maker.materials("b.example", "*.example")
    assert opened(maker, wild, now, "a.example", "b.example").facts.domains == ("b.example", "*.example")


def test_missing_names_are_listed_up_to_five(maker: Maker, now: float) -> None:
    names = [f"n{number}.example" for number in range(7)]
    with pytest.raises(MaterialError, match=r"is not for n1\.example, n2\.example, n3\.example$"):
        opened(maker, maker.materials(names[0]), now, *names[:4])
    with pytest.raises(MaterialError, match=r"n5\.example$"):
        opened(maker, maker.materials(names[0]), now, *names)


def named(maker: Maker, *names: x509.GeneralName, common_name: str = "x") -> DeployMaterials:
    """Return material whose SAN has these names, or none."""
    key = ec.generate_private_key(ec.SECP256R1())
    plain = builder_of(build(common_name, "inter", key.public_key(), maker.issuer.key))
    builder = plain.add_extension(x509.SubjectAlternativeName(names), critical=False) if names else plain
    return maker.materials(key=key, leaf=builder.sign(maker.issuer.key, hashes.SHA256()))


def test_a_certificate_with_a_common_name_only_is_refused_as_such(maker: Maker, now: float) -> None:
    for expected in ((), ("example.com",)):
        with pytest.raises(MaterialError, match="has no subject alternative name; clients ignore") as caught:
            opened(maker, named(maker, common_name="example.com"), now, *expected)
        assert caught.value.reason == "san"
    nothing = named(maker, x509.DirectoryName(x509.Name([])))
    with pytest.raises(MaterialError, match="no DNS name, address, URI or e-mail address"):
        opened(maker, nothing, now, "")


def test_certificates_of_workloads_have_uris_or_mail_addresses(maker: Maker, now: float) -> None:
    spiffe, mail = "spiffe://Example.org/ns/Prod/sa/web", "Web@example.org"
    uri, address = x509.UniformResourceIdentifier(spiffe), x509.RFC822Name(mail)
    assert opened(maker, named(maker, uri), now, spiffe).facts.domains == (spiffe,)
    assert opened(maker, named(maker, uri, address), now, mail).facts.domains == (mail, spiffe)
    assert opened(maker, named(maker, uri), now, "").facts.domains == (spiffe,)
    assert reason(maker, named(maker, uri), now, spiffe.lower()) == "san"
    both = named(maker, x509.DNSName("example.com"), uri)
    assert opened(maker, both, now, "example.com", spiffe).facts.domains == ("example.com",)
    assert reason(maker, both, now, "spiffe://other") == "san"


def test_the_placeholder_of_a_workload_has_its_names(now: float) -> None:
    names = ("spiffe://example.org/x", "urn:uuid:1", "web@example.org", "example.org", "192.0.2.1")
    bundle = placeholder_bundle(1, "x", names, not_before=now, now=now)
    san = x509.load_pem_x509_certificate(bundle.certificate_pem).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    kinds = [type(name) for name in san.value]
    uri = x509.UniformResourceIdentifier
    assert kinds == [uri, uri, x509.RFC822Name, x509.DNSName, x509.IPAddress]
