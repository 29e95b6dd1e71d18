"""Servers that require client certificates send their own before they refuse a client without one."""

from __future__ import annotations

import contextlib
import re
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
from bundle_maker import Maker
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from certctrl.errors import ProbeError
from certctrl.install.material.bundle import open_bundle
from certctrl.install.material.formats import virtual_files
from certctrl.install.probe.handshake import leaf_sent
from certctrl.install.probe.tls import probe_tls, served_fingerprint
from certctrl.model.certificate import Bundle
from certctrl.model.plan import VerifyTls

OPENSSL = shutil.which("openssl")


@pytest.fixture
def pem(maker: Maker, now: float, tmp_path: Path) -> tuple[Path, Bundle]:
    """A file with key, leaf and chain, and its bundle."""
    materials = maker.materials("a.example", key=ec.generate_private_key(ec.SECP256R1()))
    bundle = open_bundle(
        1, "a", materials, maker.secret, allow_plaintext=False, now=now, expected_domains=("a.example",)
    )
    path = tmp_path / "combined.pem"
    path.write_bytes(virtual_files(bundle, ["combined.pem"], lambda kind: b"")["combined.pem"])
    return path, bundle


def context(pem: Path, *, wants: bool = True) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(pem)
    made.maximum_version = ssl.TLSVersion.TLSv1_2
    if wants:
        made.load_verify_locations(pem)
        made.verify_mode = ssl.CERT_REQUIRED
    return made


def flight(server: ssl.SSLContext, hello: bytes | None = None) -> bytes:
    """Return a server's answer to a client's first message."""
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    if hello is None:
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        talk = client.wrap_bio(ssl.MemoryBIO(), received)
        with contextlib.suppress(ssl.SSLWantReadError):
            talk.do_handshake()
    else:
        received.write(hello)
    with contextlib.suppress(ssl.SSLWantReadError):
        server.wrap_bio(received, sent, server_side=True).do_handshake()
    return sent.read()


@contextlib.asynccontextmanager
async def answering(answer: Callable[[bytes], bytes]) -> AsyncIterator[VerifyTls]:
    """Send one answer to each client, read its reply, and close."""

    async def handle(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(answer(await stream.receive_some()))
            await stream.receive_some()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        yield VerifyTls(host="127.0.0.1", port=listeners[0].socket.getsockname()[1])
        nursery.cancel_scope.cancel()


@pytest.mark.integration
@pytest.mark.skipif(OPENSSL is None, reason="needs openssl")
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
async def test_the_leaf_of_a_server_that_requires_client_certificates_is_read(
    pem: tuple[Path, Bundle], version: str
) -> None:
    path, bundle = pem
    argv = [OPENSSL, "s_server", "-accept", "127.0.0.1:0", version, "-Verify", "1", "-cert", path, "-key", path]
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                      check=False)  # fmt: skip
        server = await nursery.start(run)
        sent = b""
        while not (found := re.search(rb"ACCEPT 127\.0\.0\.1:(\d+)\n", sent)):
            sent += await server.stdout.receive_some() or pytest.fail(sent.decode())
        verify = VerifyTls(host="127.0.0.1", port=int(found[1]))
        await probe_tls(verify, bundle.facts.fingerprint_sha256, deadline=trio.current_time() + 5)
        with pytest.raises(ProbeError, match=f"serves another certificate: {bundle.facts.fingerprint_sha256[:16]}"):
            await probe_tls(verify, "f" * 64, deadline=trio.current_time() + 0.1)
        nursery.cancel_scope.cancel()


@pytest.mark.integration
async def test_the_leaf_of_a_server_that_closes_without_an_alert_is_read(pem: tuple[Path, Bundle]) -> None:
    path, bundle = pem
    async with answering(partial(flight, context(path))) as verify:
        seen = await served_fingerprint(verify, deadline=trio.current_time() + 5)
    assert seen == bundle.facts.fingerprint_sha256


@pytest.mark.integration
async def test_a_server_that_closes_without_a_certificate_request_proves_nothing(pem: tuple[Path, Bundle]) -> None:
    async with answering(partial(flight, context(pem[0], wants=False))) as verify:
        with pytest.raises(ProbeError, match="serves no certificate"):
            await served_fingerprint(verify, deadline=trio.current_time() + 5)


@pytest.mark.integration
async def test_a_leaf_without_proof_of_its_key_is_not_accepted(pem: tuple[Path, Bundle]) -> None:
    def forged(hello: bytes) -> bytes:
        sent = flight(context(pem[0]), hello)
        request = sent.rindex(b"\x16\x03\x03", 0, sent.rindex(b"\x16\x03\x03"))  # after it: the certificate request
        return sent[: request - 1] + bytes([sent[request - 1] ^ 1]) + sent[request:]

    async with answering(forged) as verify:
        with pytest.raises(ProbeError, match="TLS: "):
            await served_fingerprint(verify, deadline=trio.current_time() + 5)


def test_only_a_complete_flight_contains_the_leaf(pem: tuple[Path, Bundle]) -> None:
    sent = flight(context(pem[0]))
    leaf = ssl.PEM_cert_to_DER_cert(pem[1].certificate_pem.decode())
    assert leaf_sent(sent) == leaf_sent(sent + b"\x15\x03\x03\0\x02\x02\x28") == leaf
    assert {leaf_sent(sent[:end]) for end in range(len(sent))} == {None}
    assert leaf_sent(flight(context(pem[0], wants=False))) is None


@given(st.binary(max_size=60), st.lists(st.tuples(st.sampled_from([2, 11, 12, 13, 14]), st.binary(max_size=9))))
def test_garbage_contains_no_leaf(noise: bytes, messages: list[tuple[int, bytes]]) -> None:
    """A certificate list of nine bytes contains none."""
    sent = b"".join(bytes([kind]) + len(body).to_bytes(3, "big") + body for kind, body in messages)
    for data in (noise, b"\x16\x03\x03" + len(sent).to_bytes(2, "big") + sent, b"\x16\x03\x03" + noise):
        assert len(leaf_sent(data) or b"") <= 3
