"""`plane serve --http` and `--crl-url`: what is served without TLS, and where certificates say that lists are."""

from __future__ import annotations

import json
import logging
import signal
import socket
import ssl
import subprocess
import sys
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio
from plane_socket import FAST

from certctrl.cli.main import run_command
from certctrl.cli.plane.plain_http import check_crl_url, crl_url, listen_without_tls
from certctrl.errors import ExitStatus, TransportError, UsageError
from certctrl.plane.serve import PlaneAddress, serve_plane


class Bound:
    """A socket that is bound to a port."""

    def __init__(self, port: int) -> None:
        self.port = port

    def getsockname(self) -> tuple[str, int]:
        return "0.0.0.0", self.port


@pytest.mark.parametrize(
    ("given", "port", "hostnames", "public_url", "expected"),
    [
        ("", None, (), "", ""),
        ("", None, ("plane.example",), "", ""),
        ("", 80, ("plane.example", "other.example"), "https://public.example", "http://plane.example/crl"),
        ("", 8080, ("2001:db8::1",), "", "http://[2001:db8::1]:8080/crl"),
        ("", 8080, ("*.example",), "", ""),
        ("", 8080, (), "https://public.example/", "https://public.example/crl"),
        ("", None, (), "https://public.example", "https://public.example/crl"),
        ("http://x.example/lists/", 80, ("plane.example",), "", "http://x.example/lists"),
        ("off", 80, ("plane.example",), "https://public.example", ""),
    ],
)
def test_where_clients_find_the_lists(
    given: str, port: int | None, hostnames: tuple[str, ...], public_url: str, expected: str
) -> None:
    plain = None if port is None else Bound(port)
    assert crl_url(given, plain, hostnames, public_url) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "url",
    ["plane.example/crl", "ftp://x.example", "http://", "http://x:0/", "http://x y/", "http://x/?a", "http://x/#a",
     "http://x/\u00e9", "http://x:99999/", "http://[::1/"],
)  # fmt: skip
def test_urls_that_no_client_can_fetch_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    with pytest.raises(UsageError):
        check_crl_url(url)
    assert run_command(["plane", "serve", "--data", str(tmp_path / "p"), "--crl-url", url]) == ExitStatus.USAGE
    assert "fix: use for example --crl-url http://" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


def test_good_urls() -> None:
    for url in ("", "off", "http://x.example/crl", "https://[2001:db8::1]:8443/a/b"):
        check_crl_url(url)


def test_addresses_without_tls() -> None:
    assert listen_without_tls("") is None
    with pytest.raises(UsageError, match="--http 'x' is not HOST:PORT"):
        listen_without_tls("x")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(TransportError) as caught:
        listen_without_tls(f"127.0.0.1:{taken.getsockname()[1]}")
    assert caught.value.fix == "choose another --http HOST:PORT"


async def test_a_start_without_lists_says_which_option_serves_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Found by review: it said that --crl-url is off, which nobody had set."""
    caplog.set_level(logging.INFO)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_plane, tmp_path / "plane", settings=FAST))
        nursery.cancel_scope.cancel()
    (line,) = [line for line in caplog.messages if "name no revocation list" in line]
    assert "see --http" in line and "off" not in line


async def test_the_list_is_served_over_http_and_https(tmp_path: Path) -> None:
    plain = listen_without_tls("127.0.0.1:0")
    assert plain is not None
    port = plain.getsockname()[1]
    async with trio.open_nursery() as nursery:
        serving = partial(serve_plane, tmp_path / "plane", settings=FAST, without_tls=plain)
        address: PlaneAddress = await nursery.start(serving)
        assert address.http_url == f"http://127.0.0.1:{port}"
        context = ssl.create_default_context(cafile=str(address.ca_file))
        async with httpx.AsyncClient(verify=context) as client:
            missing = await client.get(f"http://127.0.0.1:{port}/crl/{'0' * 40}.crl")
            assert (missing.status_code, missing.json()["error"]["key"]) == (404, "NOT_FOUND")
            assert (await client.get(f"http://127.0.0.1:{port}/health")).status_code == 404
            assert (await client.get(f"{address.url}/health")).status_code == 200
            with pytest.raises(httpx.TransportError):
                await client.get(f"https://127.0.0.1:{port}/health")
        nursery.cancel_scope.cancel()


@pytest.mark.integration
@pytest.mark.parametrize("as_json", [False, True])
def test_the_address_is_printed(tmp_path: Path, as_json: bool) -> None:
    """Found by review: --http HOST:0 left the operator without the port, and nothing said that it listens."""
    argv = [sys.executable, "-m", "certctrl", "plane", "serve", "--data", str(tmp_path / "plane")]
    argv += ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", *(["--json"] if as_json else [])]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        if as_json:
            url = json.loads(process.stdout.readline())["http_url"]
        else:
            (line,) = [one for one in (process.stdout.readline() for _ in range(6)) if one.startswith("without TLS")]
            url = line.removeprefix("without TLS    ").strip()
        answer = httpx.get(f"{url}/crl/{'0' * 40}.crl")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert url.startswith("http://127.0.0.1:") and answer.json()["error"]["key"] == "NOT_FOUND"
