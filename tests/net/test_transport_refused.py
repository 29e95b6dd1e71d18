"""Refused answers and settings: immediately, with clean-up, without a secret in any text."""

from __future__ import annotations

import logging
import traceback
from typing import Any

import pytest
import trio

from certctrl.errors import BadAnswerError, ConfigError, DeadlineError, TransportError

CAP = 1 << 20

# --- answers that are refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 300])
async def test_a_redirect_is_an_error_and_is_not_followed(start, connect, reply, status: int) -> None:
    other = await start()
    site = await start(lambda seen, stream: reply(status=status, headers=f"Location: {other.url}/x\r\n"))
    with pytest.raises(BadAnswerError, match="redirects") as caught:
        await connect(site.url).request("GET", "/", headers={"authorization": "Bearer canary"}, deadline=5, cap=CAP)
    assert caught.value.fix
    assert not other.seen
    assert other.connections == 0


async def test_not_modified_is_not_a_redirect(start, connect) -> None:
    site = await start(lambda seen, stream: b"HTTP/1.1 304 Not Modified\r\n\r\n")
    assert (await connect(site.url).request("GET", "/", deadline=5, cap=CAP)).status == 304


async def endless(stream: trio.abc.Stream, head: bytes, piece: bytes, limit: int = 400_000_000) -> int:
    """Send chunks until the peer closes the connection; return the number of bytes sent."""
    await stream.send_all(head)
    sent = 0
    while sent < limit:
        await stream.send_all(piece)
        sent += len(piece)
    return sent


BIG = b"x" * 65536


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + BIG + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\n\r\n", BIG),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n", BIG),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000001\r\n\r\n", BIG),
    ],
    ids=["chunked", "until-close", "announced", "just-over"],
)
async def test_a_body_over_its_limit_is_ended_immediately(start, connect, reply, head: bytes, piece: bytes) -> None:
    answers: list[Any] = [lambda stream: endless(stream, head, piece), None]

    async def script(seen, stream):
        make = answers.pop(0)
        return reply({"data": 1}) if make is None else await make(stream)

    site = await start(script)
    http = connect(site.url, max_connections=1)
    with pytest.raises(BadAnswerError, match="longer than"):
        await http.request("GET", "/", deadline=10, cap=1_000_000)
    assert (await http.request("GET", "/", deadline=5, cap=CAP)).status == 200, "the only connection is free again"


async def test_a_body_of_exactly_its_limit_is_accepted(start, connect, reply) -> None:
    site = await start(lambda seen, stream: reply(b"x" * 5000))
    assert len((await connect(site.url).request("GET", "/", deadline=5, cap=5000)).body) == 5000


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip", "GZIP"])
async def test_a_compressed_answer_is_refused(start, connect, reply, encoding: str) -> None:
    site = await start(lambda seen, stream: reply(b"\x1f\x8b", headers=f"Content-Encoding: {encoding}\r\n"))
    with pytest.raises(BadAnswerError, match="compressed"):
        await connect(site.url).request("GET", "/", deadline=5, cap=CAP)


@pytest.mark.parametrize("size", [40_000, 90_000, 3_000_000])
async def test_headers_have_a_limit(start, connect, reply, size: int) -> None:
    site = await start(lambda seen, stream: reply(headers="X-Pad: " + "p" * size + "\r\n"))
    with pytest.raises(BadAnswerError):
        await connect(site.url).request("GET", "/", deadline=10, cap=CAP)


@pytest.mark.parametrize(
    "raw",
    [
        b"220 mail.example ESMTP\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x1b[31mHTTP/1.1 200 OK\r\n\r\n",
    ],
)
async def test_an_answer_that_is_not_http_is_escaped_in_the_message(start, connect, raw: bytes) -> None:
    site = await start(lambda seen, stream: raw)
    with pytest.raises(TransportError) as caught:
        await connect(site.url).request("GET", "/", deadline=2, cap=CAP)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    "raw", [b"", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345"]
)
async def test_a_truncated_answer_is_a_transport_error(start, connect, raw: bytes) -> None:
    async def script(seen, stream):
        await stream.send_all(raw)

    site = await start(script)
    with pytest.raises(TransportError, match="closed the connection"):
        await connect(site.url).request("GET", "/", deadline=2, cap=CAP)


# --- secrets and configuration -----------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["geheim\nX-Injected: 1", "geheim-é", "geheim\r\n\r\nGET / HTTP/1.1", "geheim\x00"])
async def test_an_invalid_token_is_neither_sent_nor_shown(start, connect, token: str) -> None:
    site = await start()
    with pytest.raises(TransportError, match="stored token") as caught:
        await connect(site.url).request("GET", "/", headers={"authorization": f"Bearer {token}"}, deadline=5, cap=CAP)
    assert not site.seen
    assert not caught.value.maybe_sent
    assert "geheim" not in "".join(traceback.format_exception(caught.value, chain=True))


async def test_secrets_appear_in_no_error_and_no_log(start, connect, caplog) -> None:
    async def script(seen, stream):
        await trio.sleep_forever()

    site = await start(script)
    with caplog.at_level(logging.DEBUG):
        http = connect(site.url, proxy="http://agent:canary-proxy@127.0.0.1:9")
        with pytest.raises(DeadlineError) as caught:
            await http.request(
                "POST",
                "/",
                headers={"authorization": "Bearer canary-token"},
                json={"refresh_token": "canary-body"},
                deadline=0.2,
                cap=CAP,
            )
    text = "".join(traceback.format_exception(caught.value)) + caplog.text + repr(http) + repr(http._pools._all)
    assert "canary" not in text


async def test_the_environment_is_ignored(start, connect, monkeypatch, tmp_path) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "evil.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys.log"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b")
    site = await start()
    assert (await connect(site.url).request("GET", "/", deadline=5, cap=CAP)).status == 200
    assert "authorization" not in site.seen[0].headers
    assert not (tmp_path / "keys.log").exists()


async def test_a_wrong_setting_is_a_config_error(connect) -> None:
    with pytest.raises(ConfigError, match=r"httpclient_config\.json: ca_files: cannot read .*nowhere\.pem"):
        connect("https://plane.example", ca_files=("nowhere.pem",))
    with pytest.raises(ConfigError, match=r"httpclient_config\.json: proxy"):
        connect("https://plane.example", proxy="geheim")
    with pytest.raises(ConfigError, match=r"application\.json: server_url"):
        connect("plane.example")
