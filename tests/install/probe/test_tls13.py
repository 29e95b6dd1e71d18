"""The first half of a TLS 1.3 handshake: it reads the leaf of the wanted kind, and believes nothing without proof."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from bundle_maker import Maker, pem
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from certctrl.errors import ProbeError
from certctrl.install.probe import tls13
from certctrl.install.probe.tls13 import leaf_of_kind
from certctrl.model.certificate import KeyKind

RSA, ECDSA = KeyKind.RSA, KeyKind.ECDSA


MakeServer = Callable[..., tuple[ssl.SSLContext, list[bytes]]]
"""Makes the context of a server for keys, and returns it with their leaves."""


@pytest.fixture
def server(maker: Maker, tmp_path: Path) -> MakeServer:
    """Makes a TLS 1.3 server with a certificate for each key; returns their leaves, too."""

    def make(*keys: Any, **settings: Any) -> tuple[ssl.SSLContext, list[bytes]]:
        context, leaves = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), []
        for number, key in enumerate(keys):
            leaf, path = maker.issuer.leaf(key, ("www.example",)), tmp_path / f"{number}.pem"
            private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            path.write_bytes(private + pem(leaf).encode() + maker.issuer.chain_pem.encode())
            context.load_cert_chain(path)
            leaves.append(leaf.public_bytes(Encoding.DER))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        for name, value in settings.items():
            setattr(context, name, value)
        return context, leaves

    return make


class Conversation(trio.abc.Stream):
    """A stream whose other end is a TLS server in memory; ``bent`` may change its messages."""

    def __init__(self, context: ssl.SSLContext, bent: Callable[[bytes], bytes] = bytes) -> None:
        self.heard, self.said, self.bent = ssl.MemoryBIO(), ssl.MemoryBIO(), bent
        self.tls = context.wrap_bio(self.heard, self.said, server_side=True)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.heard.write(data)
        with contextlib.suppress(ssl.SSLError):
            self.tls.do_handshake()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        return self.bent(self.said.read())

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("name", ["www.example", None])
@pytest.mark.parametrize("suite", tls13._SUITES)
async def test_each_kind_is_read(
    server: MakeServer, an_rsa_key: rsa.RSAPrivateKey, monkeypatch: pytest.MonkeyPatch, name: str | None, suite: int
) -> None:
    context, leaves = server(an_rsa_key, ec.generate_private_key(ec.SECP384R1()))
    asked: list[str | None] = []
    context.sni_callback = lambda sock, shown, _: asked.append(shown)
    monkeypatch.setattr(tls13, "_SUITES", {suite: tls13._SUITES[suite]})
    for kind, leaf in zip((RSA, ECDSA), leaves, strict=True):
        assert await leaf_of_kind(Conversation(context), name, kind) == leaf
    assert asked == [name, name]


@pytest.mark.parametrize("make", [ed25519.Ed25519PrivateKey.generate, ed448.Ed448PrivateKey.generate])
async def test_keys_of_edwards_curves(server: MakeServer, make: Callable[[], Any]) -> None:
    context, (leaf,) = server(make())
    assert await leaf_of_kind(Conversation(context), "www.example", ECDSA) == leaf
    with pytest.raises(ProbeError):
        await leaf_of_kind(Conversation(context), "www.example", RSA)


@pytest.mark.parametrize("curve", ["prime256v1", "secp384r1", "X25519"])
async def test_each_group_is_understood(server: MakeServer, curve: str) -> None:
    context, (leaf,) = server(ec.generate_private_key(ec.SECP256R1()))
    context.set_ecdh_curve(curve)
    assert await leaf_of_kind(Conversation(context), "www.example", ECDSA) == leaf


async def test_a_server_that_asks_for_a_client_certificate(server: MakeServer, tmp_path: Path) -> None:
    context, (leaf,) = server(ec.generate_private_key(ec.SECP256R1()), verify_mode=ssl.CERT_REQUIRED)
    assert await leaf_of_kind(Conversation(context), "www.example", ECDSA) == leaf


async def test_refused_and_broken_handshakes_are_errors(server: MakeServer, an_rsa_key: rsa.RSAPrivateKey) -> None:
    context, _ = server(an_rsa_key)
    with pytest.raises(ProbeError, match="refuses"):
        await leaf_of_kind(Conversation(context), "www.example", ECDSA)
    old, _ = server(an_rsa_key, minimum_version=ssl.TLSVersion.TLSv1_2, maximum_version=ssl.TLSVersion.TLSv1_2)
    with pytest.raises(ProbeError):
        await leaf_of_kind(Conversation(old), "www.example", RSA)
    for bent in (
        lambda said: b"",
        lambda said: b"220 mail.example\r\n" * 9,
        lambda said: b"\x17\x03\x03\xff\xff" + said,
    ):
        with pytest.raises(ProbeError):
            await leaf_of_kind(Conversation(context, bent), "www.example", RSA)


async def test_no_byte_of_the_answer_may_differ(server: MakeServer) -> None:
    context, (leaf,) = server(ec.generate_private_key(ec.SECP256R1()))
    size = len(await whole(context))
    for place in {*range(0, 150, 7), *range(150, size, size // 40)}:

        def bent(said: bytes, place: int = place) -> bytes:
            return said[:place] + bytes([said[place] ^ 1]) + said[place + 1 :] if len(said) > place else said

        try:
            found = await leaf_of_kind(Conversation(context, bent), "www.example", ECDSA)
        except ProbeError:
            continue
        assert found == leaf, place  # what follows the proof is not read, nor is the version of a record


async def whole(context: ssl.SSLContext) -> bytes:
    found = b""

    def note(said: bytes) -> bytes:
        nonlocal found
        found += said
        return said

    await leaf_of_kind(Conversation(context, note), "www.example", ECDSA)
    return found


async def test_a_certificate_without_its_key_is_not_believed(
    server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, _ = server(ec.generate_private_key(ec.SECP256R1()))
    _, (other,) = server(ec.generate_private_key(ec.SECP256R1()))
    monkeypatch.setattr("certctrl.install.probe.tls13._first_certificate", lambda body: other)
    with pytest.raises(ProbeError, match="malformed"):
        await leaf_of_kind(Conversation(context), "www.example", ECDSA)
