"""The probe sees which leaf an endpoint serves, over both address families and behind STARTTLS."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from bundle_maker import Maker
from cryptography.hazmat.primitives.asymmetric import ec
from trio.testing import MockClock

from certctrl.errors import ProbeError
from certctrl.install.material.bundle import open_bundle
from certctrl.install.material.formats import virtual_files
from certctrl.install.probe.tls import is_down, probe_tls, served_fingerprint
from certctrl.model.certificate import Bundle
from certctrl.model.plan import StartTls, VerifyTls

OLD, NEW = "0" * 64, "f" * 64

Talk = Callable[[trio.SocketStream], Awaitable[None]]


MakeContext = Callable[[str], tuple[ssl.SSLContext, Bundle]]


@pytest.fixture
def make_context(maker: Maker, now: float, tmp_path: Path) -> MakeContext:
    def make(domain: str) -> tuple[ssl.SSLContext, Bundle]:
        materials = maker.materials(domain, key=ec.generate_private_key(ec.SECP256R1()))
        bundle = open_bundle(
            1, domain, materials, maker.secret, allow_plaintext=False, now=now, expected_domains=(domain,)
        )
        path = tmp_path / f"{bundle.facts.fingerprint_sha256}.pem"
        path.write_bytes(virtual_files(bundle, ["combined.pem"], lambda kind: b"")["combined.pem"])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context, bundle

    return make


class Resolver(trio.abc.HostnameResolver):
    """A resolver that returns the same addresses for every name."""

    def __init__(self, port: int, *hosts: str) -> None:
        self.port, self.hosts = port, hosts

    async def getaddrinfo(self, *args: object) -> list[Any]:
        return [
            (trio.socket.AF_INET6 if ":" in host else trio.socket.AF_INET, trio.socket.SOCK_STREAM, 6, "",
             (host, self.port, 0, 0)[: 4 if ":" in host else 2])
            for host in self.hosts
        ]  # fmt: skip

    async def getnameinfo(self, *args: object) -> tuple[str, str]:
        raise NotImplementedError


@contextlib.asynccontextmanager
async def serving(
    context: ssl.SSLContext, host: str = "127.0.0.1", port: int = 0, before: Talk | None = None
) -> AsyncIterator[int]:
    async def handle(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            if before is not None:
                await before(stream)
            await trio.SSLStream(stream, context, server_side=True).do_handshake()
            await stream.receive_some(1)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(port, host=host)
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def soon() -> float:
    return trio.current_time() + 3


def briefly() -> float:
    return trio.current_time() + 0.15


@pytest.mark.integration
async def test_plain_tls(make_context: MakeContext) -> None:
    context, bundle = make_context("a.example")
    async with serving(context) as port:
        verify = VerifyTls(host="127.0.0.1", port=port)
        await probe_tls(verify, bundle.facts.fingerprint_sha256, deadline=soon())
        assert await served_fingerprint(verify, deadline=soon()) == bundle.facts.fingerprint_sha256
        with pytest.raises(ProbeError, match="serves another certificate"):
            await probe_tls(verify, NEW, deadline=briefly())


@pytest.mark.integration
async def test_the_name_chooses_the_certificate(make_context: MakeContext) -> None:
    front, default = make_context("default.example")
    other, wanted = make_context("wanted.example")
    asked: list[str | None] = []

    def choose(sock: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        asked.append(name)
        if name == "wanted.example":
            sock.context = other

    front.sni_callback = choose
    async with serving(front) as port:
        named = VerifyTls(host="127.0.0.1", port=port, server_name="wanted.example")
        await probe_tls(named, wanted.facts.fingerprint_sha256, deadline=soon())
        plain = VerifyTls(host="127.0.0.1", port=port)
        await probe_tls(plain, default.facts.fingerprint_sha256, deadline=soon())
        await probe_tls(VerifyTls(host="localhost", port=port), default.facts.fingerprint_sha256, deadline=soon())
    assert list(dict.fromkeys(asked)) == ["wanted.example", None, "localhost"]


@pytest.mark.integration
@pytest.mark.skipif(not Path("/proc/net/if_inet6").read_text().strip(), reason="this host has no IPv6")
async def test_both_address_families_are_probed(make_context: MakeContext) -> None:
    new, deployed = make_context("a.example")
    old, _ = make_context("a.example")
    async with serving(new, "127.0.0.1") as port:
        trio.socket.set_custom_hostname_resolver(Resolver(port, "::1", "127.0.0.1"))
        verify = VerifyTls(host="two.example", port=port)
        await probe_tls(verify, deployed.facts.fingerprint_sha256, deadline=soon())  # ::1 refuses: overlooked
        async with serving(old, "::1", port):
            with pytest.raises(ProbeError, match=r"at \[::1\]"):
                await probe_tls(verify, deployed.facts.fingerprint_sha256, deadline=briefly())
            with pytest.raises(ProbeError, match="another certificate"):
                await served_fingerprint(verify, deadline=soon())
        async with serving(new, "::1", port):
            await probe_tls(verify, deployed.facts.fingerprint_sha256, deadline=soon())


async def answer(stream: trio.SocketStream, dialogue: list[tuple[bytes, bytes]]) -> None:
    for expected, reply in dialogue:
        got = b""
        while len(got) < len(expected):
            got += await stream.receive_some(len(expected) - len(got))
        assert got == expected
        await stream.send_all(reply)


SMTP = [
    (b"", b"220-mail.example\r\n220 ready\r\n"),
    (b"EHLO localhost\r\n", b"250-mail.example\r\n250-PIPELINING\r\n250 STARTTLS\r\n"),
    (b"STARTTLS\r\n", b"220 go\r\n"),
]
IMAP = [(b"", b"* OK ready\r\n"), (b"c1 STARTTLS\r\n", b"* CAPABILITY x\r\nc1 OK begin\r\n")]
POP3 = [(b"", b"+OK ready\r\n"), (b"STLS\r\n", b"+OK begin\r\n")]
FTP = [(b"", b"220-Welcome\r\n  to FTP\r\n220 ready\r\n"), (b"AUTH TLS\r\n", b"234 go\r\n")]
LDAP = [
    (
        b"\x30\x1d\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037",
        b"\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x00\x04\x00\x04\x00",
    )
]
XMPP = [
    (
        b"<?xml version='1.0'?><stream:stream to='chat.example' version='1.0' xmlns='jabber:client' "
        b"xmlns:stream='http://etherx.jabber.org/streams'>",
        b"<?xml version='1.0'?><stream:stream from='chat.example' id='1'><stream:features>"
        b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'><required/></starttls></stream:features>",
    ),
    (b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>", b"<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"),
]


def mysql_greeting(flags: int) -> bytes:
    """Return a server's first packet: protocol 10, version, connection, salt, capabilities."""
    body = b"\x0a10.11.6-MariaDB\0" + bytes(4) + b"saltsalt" + b"\0" + flags.to_bytes(2, "little") + bytes(20)
    return len(body).to_bytes(3, "little") + b"\0" + body


MYSQL = [
    (b"", mysql_greeting(0xFFFF)),
    (b"\x20\0\0\x01" + b"\x00\x8a\0\0" + b"\0\0\0\x01" + b"\x21" + bytes(23), b""),
]
POSTGRES = [(b"\0\0\0\x08\x04\xd2\x16\x2f", b"S")]


@pytest.mark.integration
@pytest.mark.parametrize(("kind", "dialogue"), [("smtp", SMTP), ("imap", IMAP), ("pop3", POP3), ("ftp", FTP),
                                                ("ldap", LDAP), ("xmpp", XMPP), ("mysql", MYSQL), ("postgres", POSTGRES)])  # fmt: skip
async def test_starttls(make_context: MakeContext, kind: str, dialogue: list[tuple[bytes, bytes]]) -> None:
    context, bundle = make_context("mail.example")
    async with serving(context, before=lambda stream: answer(stream, dialogue)) as port:
        verify = VerifyTls(host="127.0.0.1", port=port, starttls=StartTls(kind), server_name="chat.example")
        await probe_tls(verify, bundle.facts.fingerprint_sha256, deadline=soon())


@pytest.mark.integration
@pytest.mark.parametrize(
    ("kind", "dialogue", "why"),
    [
        ("smtp", [(b"", b"554 go \x1b[31maway\r\n")], r"554 go \\x1b\[31maway"),
        ("smtp", [SMTP[0], (b"EHLO localhost\r\n", b"250 mail.example\r\n")], "does not offer STARTTLS"),
        ("smtp", [*SMTP[:2], (b"STARTTLS\r\n", b"454 not now\r\n")], "454 not now"),
        ("smtp", [(b"", b"220-x\r\n" * 200)], "reply is too long"),
        ("smtp", [(b"", b"2" * 5000)], "endless line"),
        ("imap", [(b"", b"* BYE\r\n")], "BYE"),
        ("imap", [IMAP[0], (b"c1 STARTTLS\r\n", b"c1 NO never\r\n")], "NO never"),
        ("postgres", [(POSTGRES[0][0], b"N")], "refuses TLS"),
        ("pop3", [POP3[0], (b"STLS\r\n", b"-ERR no\x1b\r\n")], r"the POP3 server says -ERR no\\x1b"),
        ("ftp", [FTP[0], (b"AUTH TLS\r\n", b"502 not here\r\n")], "the FTP server says 502 not here"),
        ("ftp", [(b"", b"220-x\r\n" * 200)], "reply is too long"),
        ("ldap", [(LDAP[0][0], LDAP[0][1].replace(b"\x0a\x01\x00", b"\x0a\x01\x35"))], r"result code 53"),
        ("ldap", [(LDAP[0][0], b"\x30\x84\xff\xff\xff\xff")], "not an LDAP message"),
        ("ldap", [(LDAP[0][0], b"\x30\x08\x02\x01\x01\x78\x84\x00\x00\x00")], "no result code"),
        ("ldap", [(LDAP[0][0], b"HTTP/1.1 400 Bad Request\r\n")], "not an LDAP message"),
        ("xmpp", [(XMPP[0][0], b"<stream:stream><stream:features></stream:features>")], "does not offer STARTTLS"),
        ("xmpp", [XMPP[0], (XMPP[1][0], b"<failure xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")], "says <failure"),
        ("xmpp", [(XMPP[0][0], b"x" * 70_000)], "does not end"),
        ("mysql", [(b"", mysql_greeting(0xF7FF))], r"10\.11\.6-MariaDB does not offer TLS"),
        ("mysql", [(b"", b"\x17\0\0\0\xff\x69\x04Too many connections")], "Too many connections"),
        ("mysql", [(b"", b"\x02\0\0\0\x09\0")], "not of protocol 10"),
    ],
)
async def test_failed_starttls_reports_why(
    make_context: MakeContext, kind: str, dialogue: list[tuple[bytes, bytes]], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("certctrl.install.probe.tls.ADDRESS_SECONDS", 60.0)  # a busy machine reads slowly
    context, _ = make_context("mail.example")
    async with serving(context, before=lambda stream: answer(stream, dialogue)) as port:
        with pytest.raises(ProbeError, match=why):
            verify = VerifyTls(host="127.0.0.1", port=port, starttls=StartTls(kind), server_name="chat.example")
            await served_fingerprint(verify, deadline=trio.current_time() + 60)


@pytest.mark.integration
async def test_an_endpoint_without_tls_reports_why(make_context: MakeContext) -> None:
    async def shout(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.aclose()

    context, _ = make_context("a.example")
    for before, why in ((shout, "TLS: "), (hang_up, "serves no certificate")):
        async with serving(context, before=before) as port:
            with pytest.raises(ProbeError, match=why):
                await served_fingerprint(VerifyTls(host="127.0.0.1", port=port), deadline=soon())
    with pytest.raises(ProbeError, match="refused"):
        await served_fingerprint(VerifyTls(host="127.0.0.1", port=1), deadline=soon())
    with pytest.raises(ProbeError, match="cannot be resolved"):
        await served_fingerprint(VerifyTls(host="no.such.host.invalid", port=1), deadline=soon())


@pytest.mark.integration
async def test_a_hanging_address_does_not_delay_the_answer(make_context: MakeContext) -> None:
    context, bundle = make_context("a.example")
    async with serving(context) as port:
        hanging = await trio.open_tcp_listeners(port, host="127.0.0.2")  # accepts in the kernel, never speaks
        trio.socket.set_custom_hostname_resolver(Resolver(port, "127.0.0.2", "127.0.0.1"))
        started = trio.current_time()
        two = VerifyTls(host="two.example", port=port)
        assert await served_fingerprint(two, deadline=soon()) == bundle.facts.fingerprint_sha256
        assert trio.current_time() - started > 0.9
        for listener in hanging:
            await listener.aclose()


@pytest.mark.integration
async def test_only_refused_connections_mean_that_a_service_is_down(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, _ = make_context("a.example")
    async with serving(context) as port:
        assert not await is_down("127.0.0.1", port)
    assert await is_down("127.0.0.1", port)
    for hosts, down in ((("127.0.0.1", "127.0.0.2"), True), (("192.0.2.1", "127.0.0.1"), False), ((), False)):
        trio.socket.set_custom_hostname_resolver(Resolver(port, *hosts))
        assert await is_down("name.example", port) == down
    async with serving(context) as other:
        trio.socket.set_custom_hostname_resolver(Resolver(other, "127.0.0.2", "127.0.0.1"))
        assert not await is_down("name.example", other), "one of its addresses accepts"
    trio.socket.set_custom_hostname_resolver(None)
    assert not await is_down("no.such.host.invalid", 1)


@pytest.mark.integration
async def test_a_service_that_does_not_answer_is_not_down(autojump_clock: MockClock) -> None:
    """Its packets may be dropped on the way."""

    class Deaf(Resolver):
        async def getaddrinfo(self, *args: object) -> list[Any]:
            await trio.sleep(3600)
            return []

    trio.socket.set_custom_hostname_resolver(Deaf(1))
    assert not await is_down("name.example", 1)
