"""The ACME issuer with a real acme2certifier: renewal information, profiles, bindings."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from acme2certifier_server import acme2certifier_server
from acme_world import AcmeWorld, make_world
from cryptography import x509
from pebble_server import EAB_KEYS

from certctrl.plane.issuers.issuer import IssuerError

pytestmark = pytest.mark.integration


@pytest.fixture
async def world(need_module: Callable[[str], None]) -> AsyncIterator[AcmeWorld]:
    need_module("acme2certifier")
    made = make_world(time.time)
    yield made
    made.plane.close()


async def test_a_profile_renewal_information_replacement_and_revocation(world: AcmeWorld, tmp_path: Path) -> None:
    with acme2certifier_server(tmp_path / "a2c", now=time.time()) as server:
        issuer = world.issuer(directory_url=server.directory_url, profile="short", contact="ops@example.com")
        issued = await issuer.issue(world.request("www.example.com", "*.example.com", "192.0.2.7"))
        leaf = x509.load_pem_x509_certificate(issued.certificate_pem.encode())
        chain = x509.load_pem_x509_certificates(issued.chain_pem.encode())
        assert [one.subject.rfc4514_string() for one in chain] == ["CN=a2c intermediate"], "without the root"
        chain[0].verify_directly_issued_by(server.root.certificate)
        window = await issuer.renewal_window(issued.certificate_pem, issued.chain_pem)
        assert window is not None
        assert leaf.not_valid_before_utc.timestamp() < window.start < window.end <= leaf.not_valid_after_utc.timestamp()
        assert window.check_again_at > time.time()
        again = await issuer.issue(
            world.request("www.example.com", "*.example.com", "192.0.2.7", replaces_pem=issued.certificate_pem)
        )
        assert again.certificate_pem != issued.certificate_pem
        facts = await issuer.check()
        assert (facts["renewal information"], facts["profiles"]) == ("yes", "classic, short")
        for _ in range(2):
            await issuer.revoke(issued.certificate_pem, issued.chain_pem, "superseded")
        with pytest.raises(IssuerError, match="it announces: classic, short") as caught:
            await issuer.issue(world.request("www.example.com", profile="long"))
        assert caught.value.is_permanent


async def test_bindings(world: AcmeWorld, tmp_path: Path) -> None:
    with acme2certifier_server(tmp_path / "a2c", now=time.time(), with_eab=True) as server:
        for secrets, kid in ((None, ""), ({"eab_hmac_key": b"A" * 40}, "kid-1")):
            with pytest.raises(IssuerError, match="to register an account") as caught:
                await world.issuer(
                    secrets, directory_url=server.directory_url, eab_kid=kid, contact="ops@example.com"
                ).check()
            assert caught.value.is_permanent and "eab_kid" in str(caught.value.fix), caught.value
        right = {"eab_hmac_key": EAB_KEYS["kid-2"].encode()}
        with pytest.raises(IssuerError, match="Contact information is missing") as caught:
            await world.issuer(right, directory_url=server.directory_url, eab_kid="kid-2").check()
        assert "set contact to a mail address" in str(caught.value.fix)
        issuer = world.issuer(right, directory_url=server.directory_url, eab_kid="kid-2", contact="ops@example.com")
        await issuer.issue(world.request("www.example.com"))
