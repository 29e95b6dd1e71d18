"""The probe requests a kind of key, and recognizes this host's addresses without sending anything."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from bundle_maker import Maker, der, pem
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from certctrl.errors import ProbeError, ProbeFault
from certctrl.install.probe import address as address_module
from certctrl.install.probe.address import Seen, ask_address, is_own, kind_of
from certctrl.install.probe.tls import _complaint, _is_right, _kinds_of, after_removal, probe_once, probe_tls
from certctrl.model.certificate import KeyKind, Wanted
from certctrl.model.plan import VerifyTls

from .test_sockets import Resolver, serving

RSA, ECDSA = KeyKind.RSA, KeyKind.ECDSA
Leaf = tuple[str, Path]


@pytest.fixture
def leaf(maker: Maker, tmp_path: Path, an_rsa_key: rsa.RSAPrivateKey) -> Callable[[KeyKind], Leaf]:
    """Makes certificates for one name: fingerprint, and a file with key and chain."""
    number = iter(range(100))

    def make(kind: KeyKind) -> Leaf:
        key: Any = an_rsa_key if kind is RSA else ec.generate_private_key(ec.SECP256R1())
        made = maker.issuer.leaf(key, ("www.example",))
        path = tmp_path / f"{next(number)}.pem"
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.write_bytes(private + pem(made).encode() + maker.issuer.chain_pem.encode())
        return made.fingerprint(made.signature_hash_algorithm).hex(), path

    return make


def server(*leaves: Leaf, **settings: object) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for _, path in leaves:
        made.load_cert_chain(path)
    for name, value in settings.items():
        setattr(made, name, value)
    return made


async def judged(port: int, wanted: Wanted) -> str:
    """Return the complaint of one probe of the server; empty if all is right."""
    verify = VerifyTls(host="127.0.0.1", port=port, server_name="www.example")
    seen = await probe_once(verify, _kinds_of(wanted), False)
    while any(one.fault for one in seen):  # this machine is busy: a look that saw nothing says nothing
        seen = await probe_once(verify, _kinds_of(wanted), False)
    return "" if _is_right(seen, wanted) else str(_complaint(verify, seen, wanted))


@pytest.mark.integration
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_each_of_two_certificates_for_one_name_is_asked_for(
    leaf: Callable[[KeyKind], Leaf], version: ssl.TLSVersion
) -> None:
    one, two, stale = leaf(RSA), leaf(ECDSA), leaf(RSA)
    async with serving(server(one, two, minimum_version=version)) as port:
        for wanted in ({one[0]: RSA}, {two[0]: ECDSA}, {one[0]: RSA, two[0]: ECDSA}):
            assert await judged(port, wanted) == ""
        verify = VerifyTls(host="127.0.0.1", port=port, server_name="www.example")
        await probe_tls(verify, {one[0]: RSA}, deadline=trio.current_time() + 60)
        assert "serves another certificate for www.example (asked for RSA)" in await judged(port, {stale[0]: RSA})
        assert one[0][:16] in await judged(port, {stale[0]: RSA, two[0]: ECDSA}), "the twin does not hide it"
        for served, still in ((one, True), (two, True), (stale, False)):
            found, _ = await after_removal(verify, served[0], deadline=trio.current_time() + 60 * (not still))
            assert found is still


@pytest.mark.integration
@pytest.mark.parametrize("kind", KeyKind)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_server_with_one_certificate(
    leaf: Callable[[KeyKind], Leaf], kind: KeyKind, version: ssl.TLSVersion
) -> None:
    only, twin = leaf(kind), leaf(ECDSA if kind is RSA else RSA)
    other = next(one for one in KeyKind if one is not kind)
    async with serving(server(only, minimum_version=version, maximum_version=version)) as port:
        assert await judged(port, {only[0]: kind}) == ""
        assert await judged(port, {only[0]: kind, twin[0]: other}) == ""
        assert f"asked for {other}" in await judged(port, {twin[0]: other})


@pytest.mark.integration
async def test_addresses_of_other_hosts_are_not_connected_to(
    leaf: Callable[[KeyKind], Leaf], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("certctrl.install.probe.tls.is_own", lambda host: host != "127.0.0.2")
    ours = leaf(ECDSA)
    connected: list[str] = []

    async def note(stream: trio.SocketStream) -> None:
        connected.append("foreign")

    async with serving(server(ours)) as port, serving(server(ours), "127.0.0.2", port, before=note):
        trio.socket.set_custom_hostname_resolver(Resolver(port, "127.0.0.2", "127.0.0.1"))
        verify = VerifyTls(host="two.example", port=port)
        seen = await probe_once(verify, (ECDSA,), False)
        assert {one.address: one.fault_class for one in seen if one.fault} == {f"127.0.0.2:{port}": ProbeFault.NOT_OURS}
        await probe_tls(verify, {ours[0]: ECDSA}, deadline=trio.current_time() + 60)
        assert connected == []
        trio.socket.set_custom_hostname_resolver(Resolver(port, "127.0.0.2"))
        with pytest.raises(ProbeError) as caught:
            await probe_tls(verify, {ours[0]: ECDSA}, deadline=trio.current_time() + 60)
        assert caught.value.fault is ProbeFault.NOT_OURS
        assert connected == []
        await probe_tls(verify, {ours[0]: ECDSA}, deadline=trio.current_time() + 60, anywhere=True)
        assert connected


async def test_a_refused_connection_differs_from_a_failed_handshake() -> None:
    async def shout(stream: trio.SocketStream) -> None:
        await stream.send_all(b"canary\r\n")

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, shout, listeners)
        port = listeners[0].socket.getsockname()[1]
        verify = VerifyTls(host="127.0.0.1", port=port)
        seen = await ask_address(trio.socket.AF_INET, "127.0.0.1", "a", verify, RSA)
        assert seen.fault_class is ProbeFault.NO_TLS
        nursery.cancel_scope.cancel()
    seen = await ask_address(trio.socket.AF_INET, "127.0.0.1", "a", verify, RSA)
    assert (seen.fault_class, seen.fingerprint) == (ProbeFault.REFUSED, "")


def test_the_kind_of_a_leaf(maker: Maker, an_rsa_key: rsa.RSAPrivateKey) -> None:
    keys = [an_rsa_key, ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()]
    leaves = [maker.issuer.leaf(key, ("a.example",)).public_bytes(Encoding.DER) for key in keys]
    assert [kind_of(one) for one in (*leaves, b"", der(keys[1]))] == [RSA, ECDSA, ECDSA, None, None]


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", True),
        ("192.0.2.7", False),
        ("::ffff:192.0.2.7", False),
        ("2001:db8::7", False),
    ],
)
def test_own_addresses(host: str, own: bool) -> None:
    assert is_own(host) is own


@pytest.mark.parametrize(
    ("source", "bindable", "own"),
    [
        ("10.1.2.3", (), True),
        ("10.1.2.9", ("10.1.2.3",), True),  # a second address of the interface
        ("10.1.2.9", (), False),
        ("", (), False),
        ("10.1.2.9", ("10.1.2.3", "192.0.2.1"), False),  # net.ipv4.ip_nonlocal_bind
    ],
)
def test_own_addresses_by_the_way_there(
    monkeypatch: pytest.MonkeyPatch, source: str, bindable: tuple[str, ...], own: bool
) -> None:
    monkeypatch.setattr(address_module, "_source_for", lambda family, host: source)
    monkeypatch.setattr(address_module, "_can_bind", lambda family, host: host in bindable)
    assert is_own("10.1.2.3") is own


def test_an_answer_without_a_leaf_has_no_kind() -> None:
    assert Seen(address="a").kind is None
