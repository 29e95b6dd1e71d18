"""Listeners that answer for http-01 and tls-alpn-01."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from hashlib import sha256

import pytest
import trio
from challenge_scene import ANSWER, STOP, TOKEN, allow, free_port, restarted, start, while_answering
from cryptography import x509
from handler_world import APPLIED, IGNORED, TS, World
from watched_connections import Watched

from certctrl.agent.challenge_handlers import on_challenge_start, on_challenge_stop
from certctrl.errors import PolicyRefusedError
from certctrl.model.signals import (
    AcmeHttp01Start,
    AcmeHttp01Stop,
    AcmeTlsAlpn01Start,
    AcmeTlsAlpn01Stop,
    ChallengeStart,
)
from certctrl.net.challenge_listener import CONNECTIONS_PER_ADDRESS
from certctrl.net.tls_alpn import ACME_IDENTIFIER


async def fetched(port: int, target: str, method: str = "GET") -> tuple[int, str]:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(f"{method} {target} HTTP/1.1\r\nHost: www.example.com\r\n\r\n".encode())
        data = b""
        while part := await stream.receive_some():
            data += part
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


async def test_a_listener_answers_only_its_tokens(scene: World) -> None:
    port = free_port()
    allow(scene, http01_listen=f"127.0.0.1:{port}")

    async def body() -> None:
        assert (await on_challenge_start(scene.agent, start())).kind is APPLIED
        path = f"/.well-known/acme-challenge/{TOKEN}"
        assert await fetched(port, path) == (200, ANSWER)
        assert await fetched(port, path, "HEAD") == (200, "")
        assert (await fetched(port, path, "POST"))[0] == 405
        for other in ("/", f"/{TOKEN}", f"{path}x", "/.well-known/acme-challenge/../x", f"http://a{path}"):
            assert (await fetched(port, other))[0] == 404
        await on_challenge_start(scene.agent, start(token="t" * 43))
        await on_challenge_stop(scene.agent, STOP)
        assert (await fetched(port, path))[0] == 404
        assert (await fetched(port, path.replace(TOKEN, "t" * 43)))[0] == 200
        await on_challenge_stop(scene.agent, AcmeHttp01Stop(TS, "t" * 43))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(OSError, match=r"refused|failed"):
            await fetched(port, path)

    await while_answering(scene.agent, body)


async def test_all_addresses_include_those_of_ipv4(scene: World) -> None:
    port = free_port()
    allow(scene, http01_listen=f"[::]:{port}")

    async def body() -> None:
        await on_challenge_start(scene.agent, start())
        assert await fetched(port, f"/.well-known/acme-challenge/{TOKEN}") == (200, ANSWER)

    await while_answering(scene.agent, body)


@pytest.mark.parametrize("kind", [AcmeHttp01Start, AcmeTlsAlpn01Start])
async def test_clients_that_say_nothing_are_bounded(scene: World, kind: type[ChallengeStart]) -> None:
    """The next one of the same address ends one of them, and the others stay."""
    port = free_port()
    allow(scene, http01_listen=f"127.0.0.1:{port}", tls_alpn01_listen=f"127.0.0.1:{port}")

    async def body() -> None:
        await on_challenge_start(scene.agent, start(kind))
        async with trio.open_nursery() as nursery:
            silent = Watched(nursery)
            for _ in range(CONNECTIONS_PER_ADDRESS):
                await silent.add(port)
            await silent.expect(closed=0)
            await silent.add(port)
            await silent.expect(closed=1)
            await silent.close()

    await while_answering(scene.agent, body)


async def test_a_listener_opens_again_after_a_restart(scene: World) -> None:
    port = free_port()
    allow(scene, http01_listen=f"127.0.0.1:{port}")

    async def first() -> None:
        await on_challenge_start(scene.agent, start())

    async def then() -> None:
        with trio.fail_after(10):
            while True:
                try:
                    assert await fetched(port, f"/.well-known/acme-challenge/{TOKEN}") == (200, ANSWER)
                    return
                except OSError:
                    await trio.sleep(0.02)

    await while_answering(scene.agent, first)
    await while_answering(restarted(scene).agent, then)


async def test_a_listener_ends_when_the_policy_names_another_address(scene: World) -> None:
    ports = free_port(), free_port()

    async def body() -> None:
        for port, allowed in zip(ports, (ports[1], None), strict=True):
            allow(scene, http01_listen=f"127.0.0.1:{port}")
            await on_challenge_start(scene.agent, start())
            target = f"/.well-known/acme-challenge/{TOKEN}"
            assert await fetched(port, target) == (200, ANSWER)
            allow(scene, http01_directory="/var/www", http01_listen=allowed and f"127.0.0.1:{allowed}")
            scene.agent.challenges.changed.value = True
            await until_closed(port)

    await while_answering(scene.agent, body)


async def until_closed(port: int) -> None:
    with trio.fail_after(10):
        while True:
            try:
                await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
            except OSError:
                return
            await trio.sleep(0.02)


async def test_a_taken_port_is_a_failure_that_names_the_other_way(scene: World) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        allow(scene, http01_listen=f"127.0.0.1:{taken.getsockname()[1]}")

        async def body() -> None:
            with pytest.raises(PolicyRefusedError, match="cannot listen on 127") as refused:
                await on_challenge_start(scene.agent, start())
            assert "http01_directory" in (refused.value.fix or "")
            assert not scene.agent.challenges.active

        await while_answering(scene.agent, body)


async def test_without_a_daemon_nothing_listens(scene: World) -> None:
    allow(scene, http01_listen="127.0.0.1:80", tls_alpn01_listen="127.0.0.1:443")
    for kind in (AcmeHttp01Start, AcmeTlsAlpn01Start):
        outcome = await on_challenge_start(scene.agent, start(kind))
        assert outcome.kind is IGNORED and "no daemon" in outcome.detail


async def asked_over_tls(port: int, name: str, protocols: list[str]) -> x509.Certificate:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(protocols)
    stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=context)
    stream = trio.SSLStream(stream.transport_stream, context, server_hostname=name)
    try:
        await stream.do_handshake()
        assert stream.selected_alpn_protocol() == "acme-tls/1"
        return x509.load_der_x509_certificate(stream.getpeercert(binary_form=True))
    finally:
        await trio.aclose_forcefully(stream)


async def test_strangers_write_nothing_into_the_log(scene: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python prints a traceback for a server name that is not ASCII."""
    printed: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", lambda problem: printed.append(problem.exc_value))
    port = free_port()
    allow(scene, tls_alpn01_listen=f"127.0.0.1:{port}")
    hello = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), hello, server_hostname="www.example.com").do_handshake()

    async def body() -> None:
        await on_challenge_start(scene.agent, start(AcmeTlsAlpn01Start))
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(hello.read().replace(b"www.example", b"www.ex\xe4mple"))
            while await stream.receive_some():
                pass
        assert (await asked_over_tls(port, "www.example.com", ["acme-tls/1"])).subject

    await while_answering(scene.agent, body)
    assert printed == []


@pytest.mark.parametrize(
    ("name", "server_name", "general_name"),
    [
        ("www.example.com", "www.example.com", x509.DNSName("www.example.com")),
        ("127.0.0.1", "1.0.0.127.in-addr.arpa", None),
    ],
)
async def test_tls_alpn_answers_are_certificates(
    scene: World, name: str, server_name: str, general_name: x509.GeneralName | None
) -> None:
    port = free_port()
    allow(scene, tls_alpn01_listen=f"127.0.0.1:{port}")

    async def body() -> None:
        signal = start(AcmeTlsAlpn01Start, name=name)
        assert (await on_challenge_start(scene.agent, signal)).kind is APPLIED
        certificate = await asked_over_tls(port, server_name, ["acme-tls/1"])
        names = [*certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value]
        assert [str(one.value) for one in names] == [name]
        assert general_name is None or names == [general_name]
        proof = certificate.extensions.get_extension_for_oid(ACME_IDENTIFIER)
        assert proof.critical
        assert proof.value.public_bytes() == b"\x04\x20" + sha256(ANSWER.encode()).digest()
        for wrong, protocols in (("other.example.com", ["acme-tls/1"]), (server_name, ["h2"])):
            with pytest.raises((trio.BrokenResourceError, AssertionError)):
                await asked_over_tls(port, wrong, protocols)
        assert not [one for one in os.listdir(scene.layout.state) if "challenge." in one], "no key is left on disk"
        assert (await on_challenge_stop(scene.agent, AcmeTlsAlpn01Stop(TS, TOKEN))).kind is APPLIED

    await while_answering(scene.agent, body)
