"""TlsStream: a hostile or unusual client of TLS over a real socket, whose bytes the test sends as it likes."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing
import trustme

from certctrl.net.tls_stream import TlsStream
from certctrl.plane.http.connection import Connection
from certctrl.plane.http.middleware import Message, Receive, Scope, Send

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@attrs.define(eq=False)
class TlsClient:
    """The client's end: its TLS is in memory, so that the test chooses what goes into one segment."""

    sock: trio.socket.SocketType
    tls: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO

    async def shake_hands(self) -> None:
        """Do the handshake, but keep the last message back."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.flush()
                self.incoming.write(await self.sock.recv(65_536))
            else:
                return

    async def flush(self) -> None:
        data = self.outgoing.read()
        while data:
            data = data[await self.sock.send(data) :]

    async def receive(self) -> bytes:
        """Return the next bytes; empty at the end of the connection."""
        while True:
            try:
                return self.tls.read(65_536)
            except ssl.SSLWantReadError:
                data = await self.sock.recv(65_536)
                if not data:
                    return b""
                self.incoming.write(data)

    async def say_goodbye(self) -> None:
        """Send close_notify, and keep the connection of TCP open."""
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.unwrap()
        await self.flush()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@asynccontextmanager
async def two_ends(
    authority: trustme.CA, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> AsyncIterator[tuple[TlsStream, TlsClient]]:
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("plane.test").configure_cert(server)
    authority.configure_trust(client)
    client.maximum_version = version
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        with trio.socket.socket() as sock:
            await sock.connect(listener.getsockname())
            accepted, _ = await listener.accept()
            stream = TlsStream(trio.SocketStream(accepted), server)
            tls = client.wrap_bio(incoming, outgoing, server_hostname="plane.test")
            try:
                with trio.fail_after(30):
                    yield stream, TlsClient(sock, tls, incoming, outgoing)
            finally:
                stream.close()


async def both_shake_hands(stream: TlsStream, client: TlsClient) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.do_handshake)
        await client.shake_hands()
        await client.flush()


async def received(stream: TlsStream, length: int) -> bytes:
    data = b""
    while len(data) < length:
        data += await stream.receive_some()
    return data


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_requests_in_the_segment_that_ends_the_handshake_are_read(
    authority: trustme.CA, version: ssl.TLSVersion
) -> None:
    async with two_ends(authority, version) as (stream, client), trio.open_nursery() as nursery:
        nursery.start_soon(stream.do_handshake)
        await client.shake_hands()
        for _ in range(3):
            client.tls.write(GET)  # three records
        await client.flush()
        assert await received(stream, 3 * len(GET)) == 3 * GET


async def test_a_body_of_several_full_records_is_read(authority: trustme.CA) -> None:
    body = bytes(range(256)) * 400
    async with two_ends(authority) as (stream, client):
        await both_shake_hands(stream, client)
        async with trio.open_nursery() as nursery:
            client.tls.write(body)
            nursery.start_soon(client.flush)
            assert await received(stream, len(body)) == body


async def test_a_record_that_arrives_in_two_parts_is_read(authority: trustme.CA) -> None:
    async with two_ends(authority) as (stream, client):
        await both_shake_hands(stream, client)
        client.tls.write(GET)
        record = client.outgoing.read()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.sock.send, record[:7])

            async def later() -> None:
                await trio.testing.wait_all_tasks_blocked(0.01)
                await client.sock.send(record[7:])

            nursery.start_soon(later)
            assert await stream.receive_some() == GET


async def test_the_end_is_the_end_each_time_it_is_read(authority: trustme.CA) -> None:
    async with two_ends(authority) as (stream, client):
        await both_shake_hands(stream, client)
        client.tls.write(GET)
        await client.say_goodbye()
        assert [await stream.receive_some() for _ in range(3)] == [GET, b"", b""]


async def test_nothing_is_read_after_bytes_that_are_not_tls(authority: trustme.CA) -> None:
    async with two_ends(authority) as (stream, client):
        await both_shake_hands(stream, client)
        await client.sock.send(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        with contextlib.suppress(trio.BrokenResourceError):  # depends on the version of OpenSSL
            assert await stream.receive_some() == b""


async def test_a_peer_that_renegotiates_while_it_is_read_and_written_loses_the_connection(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL wants to read for a write then; only one task can wait for that."""

    def wants_to_read(_data: object) -> int:
        raise ssl.SSLWantReadError

    async with two_ends(authority) as (stream, client):
        await both_shake_hands(stream, client)
        monkeypatch.setattr(stream._socket, "send", wants_to_read)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_some)
            await trio.testing.wait_all_tasks_blocked(0.01)
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(b"x")
            nursery.cancel_scope.cancel()


async def test_a_closed_stream_cannot_be_read(authority: trustme.CA) -> None:
    async with two_ends(authority) as (stream, client):
        await both_shake_hands(stream, client)
        stream.close()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()


async def test_a_client_that_ends_tls_during_its_request_is_answered_and_left(authority: trustme.CA) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        messages: list[Message] = [{"type": "http.response.start", "status": 204}, {"type": "http.response.body"}]
        for message in messages:
            await send(message)

    async with two_ends(authority) as (stream, client), trio.open_nursery() as nursery:

        async def serve() -> None:
            await Connection(app, stream, ("127.0.0.1", 1), {}).run()
            stream.close()

        nursery.start_soon(serve)
        await client.shake_hands()
        client.tls.write(GET)
        await client.flush()
        await client.say_goodbye()
        assert (await client.sock.recv(65_536)) != b""  # tickets and response, which TLS no longer decrypts
        while await client.sock.recv(65_536):
            pass


async def test_a_stream_that_was_closed_meanwhile_is_broken() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        opened = await trio.open_tcp_stream(*listener.socket.getsockname())
        await opened.aclose()
        with pytest.raises(trio.BrokenResourceError):
            TlsStream(opened, ssl.create_default_context(), server_hostname=b"plane.test")


@asynccontextmanager
async def client_of(
    authority: trustme.CA, name: bytes = b"plane.test", trusted: trustme.CA | None = None
) -> AsyncIterator[tuple[TlsStream, TlsStream]]:
    """Yield the client's side, before its handshake, and the server's."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("plane.test").configure_cert(server)
    (trusted or authority).configure_trust(client)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        opened = await trio.open_tcp_stream(*listener.socket.getsockname())
        ours = TlsStream(opened, client, server_hostname=name)
        theirs = TlsStream(await listener.accept(), server)
        try:
            with trio.fail_after(30):
                yield ours, theirs
        finally:
            await ours.aclose()
            theirs.close()


async def test_a_client_and_a_server_understand_each_other(authority: trustme.CA) -> None:
    async with client_of(authority) as (ours, theirs):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(theirs.do_handshake)
            await ours.do_handshake()
        await theirs.send_all(b"a" * 40_000)
        with trio.fail_after(10):
            while not ours.is_readable():
                await trio.sleep(0.01)
        assert len(await ours.receive_some(7)) == 7
        assert ours.is_readable(), "the rest of the record is in OpenSSL's memory"
        assert await received(ours, 39_993) == b"a" * 39_993
        assert not ours.is_readable()
        await ours.aclose()
        assert await theirs.receive_some() == b"", "the end, not a broken connection"
        assert ours.is_readable()
        with pytest.raises(trio.BrokenResourceError):
            await ours.receive_some()


@pytest.mark.parametrize("why", ["another name", "another CA"])
async def test_a_client_refuses_a_server_that_it_cannot_verify(authority: trustme.CA, why: str) -> None:
    name, trusted = (b"other.test", authority) if why == "another name" else (b"plane.test", trustme.CA())
    async with client_of(authority, name, trusted) as (ours, theirs), trio.open_nursery() as nursery:

        async def fails() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await theirs.do_handshake()
                await theirs.receive_some()

        nursery.start_soon(fails)
        with pytest.raises(trio.BrokenResourceError) as caught:
            await ours.do_handshake()
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
        await ours.aclose()
