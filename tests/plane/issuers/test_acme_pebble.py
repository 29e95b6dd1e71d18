"""The ACME issuer with a real Pebble: nonces, delays, bindings, alternate chains, revocation, refused names."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio
from acme_world import AcmeWorld, make_world
from cryptography import x509
from pebble_server import EAB_KEYS, Pebble, pebble_server
from scripted_ca import new_csr

from certctrl.plane.issuers.acme import AcmeIssuer
from certctrl.plane.issuers.issuer import IssuedChain, IssuerError

pytestmark = pytest.mark.integration

ALWAYS_VALID = {"PEBBLE_VA_ALWAYS_VALID": "1"}


@pytest.fixture
async def world() -> AsyncIterator[AcmeWorld]:
    made = make_world(time.time)
    yield made
    made.plane.close()


def issuer_at(world: AcmeWorld, pebble: Pebble, **settings: object) -> AcmeIssuer:
    return world.issuer(directory_url=pebble.directory_url, ca_file=str(pebble.ca_file), **settings)


def verify(issued: IssuedChain, root_pem: str, name: str) -> None:
    """Raise unless a certificate is for a name, and leads to a root by the chain that the issuer returned."""
    root = x509.load_pem_x509_certificate(root_pem.encode())
    leaf = x509.load_pem_x509_certificate(issued.certificate_pem.encode())
    chain = x509.load_pem_x509_certificates(issued.chain_pem.encode())
    for below, above in zip([leaf, *chain], [*chain, root], strict=True):
        below.verify_directly_issued_by(above)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert name in names.get_values_for_type(x509.DNSName)


async def test_an_order_with_rejected_nonces_delays_and_a_long_chain(
    need: Callable[[str], str], tmp_path: Path, world: AcmeWorld
) -> None:
    """A third of the nonces is rejected, and validation takes up to a second."""
    environment = ALWAYS_VALID | {
        "PEBBLE_WFE_NONCEREJECT": "33", "PEBBLE_VA_NOSLEEP": "0", "PEBBLE_VA_SLEEPTIME": "1", "PEBBLE_CHAIN_LENGTH": "2",
    }  # fmt: skip
    with pebble_server(need, tmp_path / "pebble", environment=environment) as pebble:
        issuer = issuer_at(world, pebble, contact="ops@example.com")
        issued = await issuer.issue(world.request("www.example.com", "*.example.com", "192.0.2.7"))
        verify(issued, pebble.get("/roots/0"), "*.example.com")
        assert len(x509.load_pem_x509_certificates(issued.chain_pem.encode())) == 2
        facts = await issuer.check()
    assert facts["account"].endswith("(valid)") and facts["renewal information"] == "no"
    assert not world.solver.published


async def test_alternate_chains_reuse_revocation_and_a_new_key(
    need: Callable[[str], str], tmp_path: Path, world: AcmeWorld
) -> None:
    environment = ALWAYS_VALID | {"PEBBLE_ALTERNATE_ROOTS": "2", "PEBBLE_AUTHZREUSE": "100"}
    with pebble_server(need, tmp_path / "pebble", environment=environment) as pebble:
        for number in (0, 2):
            root = pebble.get(f"/roots/{number}")
            name = x509.load_pem_x509_certificate(root.encode()).subject.rfc4514_string().removeprefix("CN=")
            issuer = issuer_at(world, pebble, preferred_chain=name)
            issued = await issuer.issue(world.request("www.example.com"))
            verify(issued, root, "www.example.com")
        assert [word for word, _ in world.solver.log] == ["present", "clean_up"], "the second order reuses the proof"
        await issuer.change_key()
        await issuer.revoke(issued.certificate_pem, issued.chain_pem, "superseded")
        await issuer.revoke(issued.certificate_pem, issued.chain_pem, "superseded")
        serial = x509.load_pem_x509_certificate(issued.certificate_pem.encode()).serial_number
        status = json.loads(pebble.get(f"/cert-status-by-serial/{serial:x}"))
        assert (status["Status"], status["Reason"]) == ("Revoked", 4)
        await issuer.deactivate()
        with pytest.raises(IssuerError, match="deactivated") as caught:
            await issuer.issue(world.request("www.example.com"))
    assert caught.value.is_permanent


async def test_bindings(need: Callable[[str], str], tmp_path: Path, world: AcmeWorld) -> None:
    config = {"externalAccountBindingRequired": True, "externalAccountMACKeys": EAB_KEYS}
    with pebble_server(need, tmp_path / "pebble", environment=ALWAYS_VALID, config=config) as pebble:
        wrong = {"eab_hmac_key": b"A" * 40}
        for secrets, kid in ((None, ""), (wrong, "kid-1"), (wrong, "kid-7")):
            issuer = world.issuer(secrets, directory_url=pebble.directory_url, ca_file=str(pebble.ca_file), eab_kid=kid)
            with pytest.raises(IssuerError, match="to register an account") as caught:
                await issuer.check()
            assert caught.value.is_permanent and "eab_hmac_key" in str(caught.value.fix), caught.value
        right = {"eab_hmac_key": EAB_KEYS["kid-1"].encode()}
        issuer = world.issuer(right, directory_url=pebble.directory_url, ca_file=str(pebble.ca_file), eab_kid="kid-1")
        await issuer.issue(world.request("www.example.com"))


async def test_a_name_that_is_not_proven_and_a_ca_that_is_gone(
    need: Callable[[str], str], tmp_path: Path, world: AcmeWorld
) -> None:
    """Nothing answers at the name: the CA's reason, and what the solver sees, are in the error."""
    with pebble_server(need, tmp_path / "pebble", options=["-dnsserver", "127.0.0.1:9"]) as pebble:
        world.solver.kinds = ("http-01",)
        issuer = issuer_at(world, pebble)
        with pytest.raises(IssuerError, match=r"^the CA refused a\.test by http-01: .* – asked a\.test") as caught:
            await issuer.issue(world.request("a.test"))
        assert not caught.value.is_permanent and not world.solver.published
    with pytest.raises(IssuerError, match="nothing listens at 127") as caught:
        await issuer.issue(world.request("a.test"))
    assert "directory_url" in str(caught.value.fix)


async def test_the_web_server_of_a_ca_must_be_trusted(
    need: Callable[[str], str], tmp_path: Path, world: AcmeWorld
) -> None:
    with pebble_server(need, tmp_path / "pebble", environment=ALWAYS_VALID) as pebble:
        with pytest.raises(IssuerError, match="is not signed by a CA this host trusts") as caught:
            await world.issuer(directory_url=pebble.directory_url).check()
    assert "ca_file" in str(caught.value.fix)


async def test_a_hundred_orders_concurrently(need: Callable[[str], str], tmp_path: Path, world: AcmeWorld) -> None:
    """The budget ends the hundred and first; one account serves all."""
    with pebble_server(need, tmp_path / "pebble", environment=ALWAYS_VALID) as pebble:
        issuer = issuer_at(world, pebble, budget="100/h")
        issued: list[IssuedChain] = []

        async def order(number: int) -> None:
            issued.append(await issuer.issue(world.request(name := f"{number}.test", csr_der=new_csr((name,)))))

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(order, number)
        with pytest.raises(IssuerError, match="the budget of le is used up"):
            await order(100)
    assert len({one.certificate_pem for one in issued}) == 100
    assert (tmp_path / "pebble" / "log").read_text().count("There are now 1 accounts") == 1
