"""Connection errors: one line each, with a fix."""

from __future__ import annotations

import datetime as dt
import errno
import itertools
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from hypothesis import given
from hypothesis import strategies as st

from certctrl.errors import ExitStatus, TlsError, TransportError
from certctrl.net.explain import causes, connect_error, deadline_error, exchange_error, utc
from certctrl.net.http import Http
from certctrl.text import ascii_name

CAP = 1 << 20
NOW = dt.datetime.now(dt.UTC)


def context_of(cert: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    cert.configure_cert(context)
    return context


@contextmanager
def blocking_server(context: ssl.SSLContext) -> Iterator[str]:
    """Serve TLS from a thread: unlike Trio's streams, the standard library sends its alerts to the peer."""

    def serve() -> None:
        with suppress(OSError):
            while True:
                raw, _ = listener.accept()
                with suppress(OSError), context.wrap_socket(raw, server_side=True) as stream:
                    stream.recv(65536)
                    stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


async def failure(http: Http, **options: object) -> TransportError:
    with pytest.raises(TransportError) as caught:
        await http.request("GET", "/", headers={"authorization": "Bearer canary"}, deadline=5, cap=CAP)
    error = caught.value
    assert error.exit_status is ExitStatus.UNAVAILABLE
    assert "\n" not in str(error)
    assert not error.maybe_sent
    assert error.fix
    assert "canary" not in str(error)
    return error


async def test_an_unknown_ca_has_a_fix(start, connect, tmp_path: Path) -> None:
    site = await start()
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    error = await failure(connect(site.url, ca_files=("other.pem",)))
    assert isinstance(error, TlsError)
    assert "is not signed by the CA in ca_files" in str(error)
    assert error.fix is not None
    assert error.fix.startswith("compare the plane's CA with ca_files"), "init --ca does not replace a CA"
    error = await failure(connect(site.url, ca_files=()))
    assert "is not signed by a CA this host trusts" in str(error)
    assert error.fix == "add the plane's CA: cert-ctrl -c DIR init --ca FILE"
    assert not site.seen, "no request was sent"


@pytest.mark.parametrize(
    ("days", "words"),
    [
        ((-40, -10), "has expired, or this host's clock is wrong: it says"),
        ((10, 40), "is not valid yet by this host's clock, which says"),
    ],
)
async def test_validity_errors_show_this_host_s_time(start, connect, ca, days: tuple[int, int], words: str) -> None:
    cert = ca.issue_cert("127.0.0.1", not_before=NOW + dt.timedelta(days[0]), not_after=NOW + dt.timedelta(days[1]))
    site = await start(context=context_of(cert))
    error = await failure(connect(site.url))
    assert isinstance(error, TlsError)
    assert f"{words} 2026-09-21 14:13:20 UTC" in str(error)
    assert site.url.removeprefix("https://") in str(error)


async def test_a_wrong_host_name_is_reported(start, connect, ca) -> None:
    site = await start(context=context_of(ca.issue_cert("other.example")))
    error = await failure(connect(site.url))
    assert "is for another name" in str(error)
    site = await start(context=context_of(ca.issue_cert("other.example")), name="localhost")
    error = await failure(connect(site.url))
    assert "'localhost'" in str(error)
    assert error.fix is not None
    assert "server_url" in error.fix


async def test_old_tls_is_refused(connect, ca) -> None:
    context = context_of(ca.issue_cert("127.0.0.1"))
    with pytest.warns(DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with blocking_server(context) as url:
        error = await failure(connect(url))
    assert isinstance(error, TlsError)
    assert "offers no TLS 1.2 or newer" in str(error)


async def test_a_plain_http_server_behind_https(connect, nursery) -> None:
    async def complain(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await stream.aclose()

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, complain, [listener])
    error = await failure(connect(f"https://127.0.0.1:{listener.socket.getsockname()[1]}"))
    assert "does not speak TLS on that port" in str(error)


async def test_a_server_that_closes_the_connection_in_the_handshake(connect, nursery) -> None:
    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        await stream.aclose()

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, hang_up, [listener])
    await failure(connect(f"https://127.0.0.1:{listener.socket.getsockname()[1]}"))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_certificate_missing_and_given(connect, ca, tmp_path: Path, version: Any) -> None:
    context = context_of(ca.issue_cert("127.0.0.1"))
    context.minimum_version = context.maximum_version = version
    context.verify_mode = ssl.CERT_REQUIRED
    ca.configure_trust(context)
    with blocking_server(context) as url:
        with pytest.raises(TransportError) as caught:
            await connect(url).request("GET", "/", deadline=5, cap=CAP)
        assert "client certificate" in f"{caught.value}; {caught.value.fix}"
        leaf = ca.issue_cert("device@example.com")
        leaf.private_key_pem.write_to_path(tmp_path / "client.key")
        leaf.cert_chain_pems[0].write_to_path(tmp_path / "client.pem")
        http = connect(url, client_certificate="client.pem", client_key="client.key")
        assert (await http.request("GET", "/", deadline=5, cap=CAP)).status == 200


async def test_connection_refused(connect) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        error = await failure(connect(f"https://127.0.0.1:{port}"))
    assert f"nothing listens at 127.0.0.1:{port} (connection refused)" in str(error)


async def test_an_unknown_host(connect) -> None:
    error = await failure(connect("https://no-such-host.invalid"))
    assert "cannot resolve the host of no-such-host.invalid:443" in str(error)
    assert error.fix is not None
    assert "DNS" in error.fix


@pytest.mark.parametrize(
    "reply_line", [b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", b"HTTP/1.1 502 No\x1b[2J\r\n\r\n"]
)
async def test_a_proxy_that_refuses_is_named(connect, nursery, reply_line: bytes) -> None:
    async def refuse(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(reply_line)
        await stream.aclose()

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, refuse, [listener])
    place = f"127.0.0.1:{listener.socket.getsockname()[1]}"
    error = await failure(connect("https://plane.example", proxy=f"http://agent:canary@{place}"))
    assert f"the proxy {place}" in str(error)
    assert str(error).isprintable()


@pytest.mark.parametrize("host", ["999.1.1.1", "a..invalid", "x" * 70 + ".invalid", "☃.invalid", "a<b.invalid"])
async def test_a_host_that_cannot_exist_is_named(connect, host: str) -> None:
    """Some of them were errors of the URL's parser, or of the codec of international names."""
    error = await failure(connect(f"https://{host}"))
    assert f"cannot resolve the host of {ascii_name(host)}:443" in str(error)


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-proxy.invalid"])
async def test_a_dead_proxy_is_named_with_its_setting(connect, host: str) -> None:
    error = await failure(connect("https://plane.example", proxy=f"http://agent:canary@{host}:9"))
    assert f"the proxy {host}:9" in str(error)
    assert error.fix is not None
    assert "proxy in httpclient_config.json" in error.fix
    assert "server_url" not in error.fix


@pytest.mark.parametrize("reply", [b"", b"220 mail.example ESMTP\r\n"])
async def test_a_proxy_that_is_silent_or_no_proxy_is_named(connect, nursery, reply: bytes) -> None:
    async def close(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(reply)
        await stream.aclose()

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, close, [listener])
    place = f"127.0.0.1:{listener.socket.getsockname()[1]}"
    error = await failure(connect("https://plane.example", proxy=f"http://{place}"))
    assert f"the proxy {place}" in str(error)
    assert "server_url" not in (error.fix or "")


async def test_a_certificate_behind_a_proxy_is_the_plane_s() -> None:
    error = connect_error(ssl.SSLError(1, "[SSL: BAD_EXTENSION] x"), "plane:443", now=0.0, own_ca=False, proxy="p:1")
    assert str(error).startswith("TLS with plane:443 failed")
    error = deadline_error(3, "plane:443", sent=False, proxy="p:1")
    assert str(error) == "no connection to plane:443 through the proxy p:1 within 3 s"
    assert str(deadline_error(3, "plane:443", sent=True, proxy="p:1")) == "no complete answer from plane:443 within 3 s"


async def test_a_proxy_that_is_not_used_is_logged(start, connect, ca, caplog: pytest.LogCaptureFixture) -> None:
    site = await start(context=context_of(ca.issue_cert("127.0.0.1")))
    http = connect(site.url, proxy="http://agent:canary@10.0.0.1:3128")
    assert (await http.request("GET", "/", deadline=5, cap=CAP)).status == 200
    assert caplog.messages == ["The proxy 10.0.0.1:3128 is not used: 127.0.0.1 is a loopback address"]


async def test_plain_http_to_a_tls_port_says_so(start, connect, ca) -> None:
    site = await start(context=context_of(ca.issue_cert("127.0.0.1")))
    with pytest.raises(TransportError) as caught:
        http = connect(site.url.replace("https:", "http:"), allow_http_loopback=True)
        await http.request("GET", "/", deadline=5, cap=CAP)
    assert caught.value.fix == "if the control plane speaks TLS on that port, write https:// in server_url"


async def test_a_proxy_is_used_for_a_plane_that_is_not_loopback(start, connect, ca, nursery) -> None:
    """CONNECT sends the proxy's credentials; the bearer token is sent only through the tunnel."""
    site = await start(context=context_of(ca.issue_cert("plane.example")))
    heads: list[bytes] = []

    async def tunnel(stream: trio.SocketStream) -> None:
        heads.append(await stream.receive_some(65536))
        onward = await trio.open_tcp_stream("127.0.0.1", int(site.url.rpartition(":")[2]))
        await stream.send_all(b"HTTP/1.1 200 Connected\r\n\r\n")

        async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
            async for data in source:
                await sink.send_all(data)

        async with onward, stream, trio.open_nursery() as pumps:
            pumps.start_soon(pump, onward, stream)
            await pump(stream, onward)
            pumps.cancel_scope.cancel()

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, tunnel, [listener])
    http = connect("https://plane.example", proxy=f"http://a:b@127.0.0.1:{listener.socket.getsockname()[1]}")
    for _ in range(3):
        answer = await http.request("GET", "/", headers={"authorization": "Bearer canary"}, deadline=5, cap=CAP)
        assert answer.status == 200
    (head,) = heads
    assert head.startswith(b"CONNECT plane.example:443 HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic" in head
    assert b"canary" not in head
    assert site.connections == 1


# --- functions -------------------------------------------------------------------------------------------------


def chained(*errors: BaseException) -> BaseException:
    for upper, lower in itertools.pairwise(errors):
        upper.__cause__ = lower
    return errors[0]


def test_causes_are_yielded_once_through_groups_and_cycles() -> None:
    inner = ValueError("inner")
    group = ExceptionGroup("all attempts failed", [inner, OSError(errno.ECONNREFUSED, "refused")])
    top = chained(RuntimeError("top"), OSError("middle"), group)
    inner.__context__ = top
    assert [type(one).__name__ for one in causes(top)] == [
        "RuntimeError",
        "OSError",
        "ExceptionGroup",
        "ValueError",
        "ConnectionRefusedError",
    ]


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "Network is unreachable"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "No route to host"),
        (PermissionError(errno.EPERM, "Operation not permitted"), "Operation not permitted"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "reset by peer"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), "cannot resolve"),
        (RuntimeError(), "cannot connect to plane:443"),
        (ssl.SSLError(1, "[SSL: BAD_EXTENSION] x"), "TLS with plane:443 failed"),
        (ssl.SSLError(1, "[SSL: SSLV3_ALERT_HANDSHAKE_FAILURE] x"), "plane:443 refused the TLS handshake"),
    ],
)
def test_connect_errors(cause: BaseException, words: str) -> None:
    error = connect_error(chained(RuntimeError("top"), cause), "plane:443", now=0.0, own_ca=False)
    assert words in str(error)
    assert "plane:443" in str(error)
    assert not error.maybe_sent


def test_a_broken_exchange_names_the_reason() -> None:
    reset = chained(RuntimeError("x"), ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
    error = exchange_error(reset, "plane:443", now=0.0, own_ca=False)
    assert str(error) == "connection to plane:443 broke: Connection reset by peer"
    assert error.maybe_sent


def test_a_reset_of_plain_http_hints_at_tls() -> None:
    """A TLS server may answer plain HTTP with a reset as well as with an alert."""
    reset = chained(RuntimeError("x"), ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
    assert "https://" in str(exchange_error(reset, "plane:443", now=0.0, own_ca=False, plain=True).fix)


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_any_time_can_be_formatted(now: float) -> None:
    assert utc(now)


def test_a_time_is_formatted_as_a_date() -> None:
    assert utc(0) == "1970-01-01 00:00:00 UTC"
