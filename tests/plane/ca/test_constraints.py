"""Name constraints of the built-in CA."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from examples import at_most
from hypothesis import given, settings
from hypothesis import strategies as st
from issued import CERTIFICATES, issue
from plane_world import WALL, Reply, World

from certctrl.plane.ca.constraints import Constraints, clean_constraints, constraints_of
from certctrl.plane.ca.x509 import new_intermediate, new_key, new_root, sign_leaf
from certctrl.plane.errors import ErrorResponse

CA = "/apiv1/plane/ca"


async def constrain(world: World, *domains: str, networks: tuple[str, ...] = ()) -> Reply:
    return await world.operator("POST", f"{CA}/constraints", {"domains": domains, "networks": networks})


async def test_a_new_intermediate_issues_for_the_domains_and_nothing_else(world: World) -> None:
    old = await issue(world, "www.other.example")
    done = (await constrain(world, "corp.example", "Example.ORG.", networks=("10.0.0.0/8",))).data
    assert (done["outside"], done["outside_count"]) == ([old["id"]], 1)
    present, former = done["intermediates"]
    assert (present["domains"], present["networks"]) == (["corp.example", "example.org"], ["10.0.0.0/8"])
    assert (former["domains"], former["networks"]) == ([], [])
    await issue(world, "corp.example", "a.b.corp.example", "*.example.org", "10.1.2.3")
    for name in ("www.other.example", "notcorp.example", "example", "*.other.example", "11.0.0.1", "::1"):
        reply = await world.operator("POST", CERTIFICATES, {"domain_name": "corp.example", "sans": [name]})
        assert (reply.status, reply.key) == (409, "NAME_OUTSIDE_CA")
        assert name in reply.what
        assert "cert-ctrl plane ca constrain" in reply.what
    reply = await world.operator("POST", f"{CERTIFICATES}/{old['id']}/issues", {"action": "renew"})
    assert (reply.status, reply.key) == (409, "NAME_OUTSIDE_CA")
    assert (await world.operator("GET", f"{CERTIFICATES}/{old['id']}")).data["serial_number"] == old["serial_number"]


async def test_the_same_constraints_again_change_nothing_and_none_allow_all_names(world: World) -> None:
    await constrain(world, "corp.example")
    first = (await world.operator("GET", CA)).data["intermediates"]
    assert (await constrain(world, "corp.example")).data["intermediates"] == first
    done = (await constrain(world)).data
    assert [row["domains"] for row in done["intermediates"]] == [[], ["corp.example"]]
    await issue(world, "www.other.example")


async def test_constraints_survive_the_renewal_of_an_intermediate(world: World) -> None:
    await constrain(world, "corp.example")
    world.clock.advance(4 * 365 * 86_400)
    await issue(world, "www.corp.example")
    shown = (await world.operator("GET", CA)).data["intermediates"]
    assert [row["domains"] for row in shown] == [["corp.example"], ["corp.example"]]


async def test_another_plane_on_the_database_follows_at_its_next_certificate(world: World) -> None:
    from certctrl.plane.ca.issuer import BuiltinCa, inline

    other = BuiltinCa(world.plane.database, world.plane.keyring, lambda: WALL, inline)
    await other.issue(["www.other.example"], key_type="ecdsa-p256", validity_seconds=3600)
    await constrain(world, "corp.example")
    with pytest.raises(ErrorResponse, match="outside"):
        await other.issue(["www.other.example"], key_type="ecdsa-p256", validity_seconds=3600)


async def test_names_of_the_plane_stay_reserved(world: World) -> None:
    await world.plane.work(world.plane.certificates.reserve, ["plane.corp.example"])
    await constrain(world, "corp.example")
    reply = await world.operator("POST", CERTIFICATES, {"domain_name": "plane.corp.example", "sans": []})
    assert (reply.status, reply.key) == (409, "NAME_RESERVED")


async def test_a_plane_whose_own_certificate_is_from_this_ca_switches_first(world: World) -> None:
    world.plane.anchor.switched = False
    reply = await constrain(world, "corp.example")
    assert (reply.status, reply.key) == (409, "CA_SHARED")
    assert "plane tls switch" in reply.what


async def test_only_operators_may_constrain(world: World) -> None:
    for method, path in (("GET", CA), ("POST", f"{CA}/constraints")):
        assert (await world.stranger(method, path, {} if method == "POST" else None)).status == 401


@pytest.mark.parametrize(
    ("domains", "networks", "field"),
    [
        (["*.example"], [], "domains"), (["192.0.2.1"], [], "domains"), (["a b"], [], "domains"), ([""], [], "domains"),
        ([], ["10.0.0.0/8"], "domains"), (["example"], ["10.0.0.1/8"], "networks"), (["example"], ["x"], "networks"),
        ([f"d{number}.example" for number in range(101)], [], "domains"),
    ],
)  # fmt: skip
def test_bad_constraints_are_refused(domains: list[str], networks: list[str], field: str) -> None:
    with pytest.raises(ErrorResponse) as caught:
        clean_constraints(domains, networks)
    assert caught.value.params["field"] == field
    given = {"domains": domains, "networks": networks}[field]
    if "value" in caught.value.params:
        assert caught.value.params["value"] in given and repr(caught.value.params["value"]) in caught.value.what


def test_a_hundred_domains_and_networks_are_allowed_and_doubled_ones_count_once_in_the_result() -> None:
    domains, networks = [f"d{number}.example" for number in range(97)], ["10.0.0.0/8", "2001:db8::/32"]
    found = clean_constraints([*domains, ".D0.example"], networks)
    assert found == Constraints(tuple(domains), tuple(networks))
    assert clean_constraints([" .Corp.Example ", "corp.example"], [" 10.0.0.0/8", "10.0.0.0/8"]) == Constraints(
        ("corp.example",), ("10.0.0.0/8",)
    )


@pytest.mark.parametrize(
    ("name", "is_allowed"),
    [
        ("corp.example", True), ("*.corp.example", True), ("a.b.corp.example", True), ("*.a.corp.example", True),
        ("xcorp.example", False), ("example", False), ("*.example", False), ("corp.example.org", False),
        ("10.1.2.3", True), ("11.0.0.1", False), ("2001:db8::1", True), ("2001:db9::1", False),
    ],
)  # fmt: skip
def test_what_is_inside_of_constraints(name: str, is_allowed: bool) -> None:
    inside = Constraints(("corp.example",), ("10.0.0.0/8", "2001:db8::/32"))
    assert inside.forbidden([name]) == ([] if is_allowed else [name])
    assert Constraints().forbidden([name]) == []


def test_without_networks_the_extension_excludes_all_addresses() -> None:
    found = Constraints(("corp.example",)).extension()
    assert found.permitted_subtrees == [x509.DNSName("corp.example")]
    assert [str(one.value) for one in found.excluded_subtrees or []] == ["0.0.0.0/0", "::/0"]
    assert Constraints(("corp.example",), ("10.0.0.0/8",)).extension().excluded_subtrees is None


def test_constraints_are_read_from_the_certificate_as_written() -> None:
    root = new_root("root", not_before=0, not_after=1e10)
    for constraints in (
        Constraints(), Constraints(("example",)), Constraints(("a.example", "b"), ("10.0.0.0/8", "2001:db8::/32")),
    ):  # fmt: skip
        made = new_intermediate(root, "issuer", not_before=0, not_after=1e10, constraints=constraints)
        assert constraints_of(made.certificate) == constraints
        assert constraints_of(clean(made)) == constraints


def clean(authority: Any) -> x509.Certificate:
    return x509.load_pem_x509_certificate(authority.pem.encode())


def test_an_address_is_no_common_name_under_constraints() -> None:
    """OpenSSL takes it for a DNS name, which the domains do not permit."""
    root = new_root("root", not_before=0, not_after=1e10)
    key = new_key("ecdsa-p256").public_key()
    for constraints, expected in ((Constraints(), 1), (Constraints(("example",), ("192.0.2.0/24",)), 0)):
        issuer = new_intermediate(root, "issuer", not_before=0, not_after=1e10, constraints=constraints)
        leaf = sign_leaf(issuer, key, ["192.0.2.1"], not_before=0, not_after=1e9)
        assert len(list(leaf.subject)) == expected
        assert leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).critical == (not expected)


LABEL = st.sampled_from(("a", "b", "corp", "example"))
DOMAIN = st.lists(LABEL, min_size=1, max_size=3).map(".".join)


@settings(max_examples=at_most(40))
@given(domains=st.lists(DOMAIN, min_size=1, max_size=3, unique=True), name=DOMAIN, wild=st.booleans())
def test_a_client_that_checks_constraints_agrees_with_what_is_issued(domains: list[str], name: str, wild: bool) -> None:
    constraints = Constraints(tuple(domains))
    root = new_root("root", not_before=WALL - 60, not_after=WALL + 9000)
    issuer = new_intermediate(root, "issuer", not_before=WALL - 60, not_after=WALL + 9000, constraints=constraints)
    text = f"*.{name}" if wild and "." in name else name
    leaf = sign_leaf(issuer, new_key("ecdsa-p256").public_key(), [text], not_before=WALL, not_after=WALL + 3600)
    verifier = PolicyBuilder().store(Store([root.certificate])).time(dt.datetime.fromtimestamp(WALL + 1, dt.UTC))
    served = text.replace("*", "x")
    try:
        verifier.build_server_verifier(x509.DNSName(served)).verify(leaf, [issuer.certificate])
    except VerificationError:
        accepted = False
    else:
        accepted = True
    assert accepted == (not constraints.forbidden([text]))
