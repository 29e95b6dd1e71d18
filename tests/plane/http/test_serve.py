"""The real server: TLS by its own CA, long polls over sockets, orderly stop, faults on the socket."""

from __future__ import annotations

import json
import os
import socket
import ssl
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from plane_socket import FAST, UPDATES, Answer, Connection, connected, enrolled, fds_back_to, operator_key, port_of

from certctrl.errors import BusyError, TransportError
from certctrl.plane.challenges.published import HOLD_SECONDS, PublishedProofs
from certctrl.plane.challenges.solver import Proof
from certctrl.plane.core import Plane
from certctrl.plane.http.faults import Fault, Faults
from certctrl.plane.serve import PlaneAddress, serve_plane
from certctrl.plane.storage.signal_stream import Waiter

pytestmark = pytest.mark.integration


async def test_one_connection_serves_many_polls(served: PlaneAddress, form: Any) -> None:
    async with connected(served, operator_key(served)) as operator:
        session = (await enrolled(operator, form))["session"]
        async with connected(served, session["access_token"]) as device:
            for _ in range(100):
                assert (await device.ask("GET", UPDATES)).status == 204


async def test_the_certificate_is_trusted_through_its_own_ca_only(served: PlaneAddress) -> None:
    stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", port_of(served), https_compatible=True)
    with pytest.raises(trio.BrokenResourceError) as caught:
        await stream.do_handshake()
    assert "CERTIFICATE_VERIFY_FAILED" in str(caught.value.__cause__)
    await trio.aclose_forcefully(stream)
    old = ssl.create_default_context(cafile=str(served.ca_file))
    with pytest.warns(DeprecationWarning):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", port_of(served), ssl_context=old, https_compatible=True)
    with pytest.raises(trio.BrokenResourceError):
        await stream.do_handshake()
    await trio.aclose_forcefully(stream)


async def test_a_long_poll_returns_immediately(served: PlaneAddress, form: Any) -> None:
    async with connected(served, operator_key(served)) as operator:
        done = await enrolled(operator, form)
        took = []
        async with connected(served, done["session"]["access_token"]) as device:
            cursor = (await device.ask("GET", UPDATES)).headers["etag"]
            answers: list[tuple[float, Answer]] = []

            async def poll(cursor: str) -> None:
                answer = await device.ask("GET", f"{UPDATES}?wait=30&cursor={cursor}")
                answers.append((trio.current_time(), answer))

            for number in range(5):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(poll, cursor)
                    await trio.sleep(0.05)
                    began = trio.current_time()
                    body = {"domain_name": f"n{number}.example", "device_ids": [done["device"]["id"]]}
                    await operator.ask("POST", "/apiv1/users/1/certificates", body)
                at, answer = answers[-1]
                took.append(at - began)
                cursor = answer.data["cursor"]
        assert min(took) < 15, "polls return before their wait ends"


async def test_a_served_plane_takes_back_what_orders_left_and_reserves_its_names(tmp_path: Path) -> None:
    proof = Proof(kind="dns-01", identifier="www.example.com", token="t", key_authorization="t.k")
    with Plane.open(tmp_path / "plane") as plane:
        published = PublishedProofs(plane.database, lambda: plane.wall_now() - HOLD_SECONDS - 60)
        await plane.work(published.take, "removed", "order 1", [proof])
    async with trio.open_nursery() as nursery:
        start = partial(serve_plane, tmp_path / "plane", settings=FAST, hostnames=["plane.example.com"])
        address: PlaneAddress = await nursery.start(start)
        async with connected(address, operator_key(address)) as operator:
            with trio.fail_after(30):
                while "proofs" not in [one["key"] for one in (await health(operator))["problems"]]:
                    await trio.sleep(0.05)
            body = {"domain_name": "plane.example.com"}
            assert (await operator.ask("POST", "/apiv1/users/1/certificates", body)).status == 409
        nursery.cancel_scope.cancel()


async def health(client: Connection) -> Any:
    return json.loads((await client.ask("GET", "/health")).body)["data"]


async def test_stopping_answers_held_polls(tmp_path: Path, form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Answer] = []
    held, all_held = [], trio.Event()
    wait = Waiter.wait

    async def noted(self: Waiter, *args: Any, **kwargs: Any) -> bool:
        held.append(args)
        if len(held) == 20:
            all_held.set()
        return await wait(self, *args, **kwargs)

    monkeypatch.setattr(Waiter, "wait", noted)
    async with trio.open_nursery() as outer:
        async with trio.open_nursery() as nursery:
            address: PlaneAddress = await nursery.start(partial(serve_plane, tmp_path / "plane", settings=FAST))
            async with connected(address, operator_key(address)) as operator:
                token = (await enrolled(operator, form))["session"]["access_token"]

            async def poll() -> None:
                async with connected(address, token) as device:
                    answers.append(await device.ask("GET", f"{UPDATES}?wait=30"))
                    with pytest.raises(EOFError):
                        await device.answer()

            for _ in range(20):
                outer.start_soon(poll)
            await all_held.wait()
            nursery.cancel_scope.cancel()
    assert [(answer.status, answer.headers["connection"]) for answer in answers] == [(204, "close")] * 20


async def test_an_idle_connection_does_not_delay_the_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certctrl.plane.serve._STOP_SECONDS", 600.0)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            address: PlaneAddress = await nursery.start(partial(serve_plane, tmp_path / "plane"))
            async with connected(address) as idle:
                assert (await idle.ask("GET", "/health")).status == 200
                nursery.cancel_scope.cancel()


async def test_a_client_that_does_not_read_blocks_no_one_else(
    tmp_path: Path, form: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("certctrl.plane.http.connection._SEND_SECONDS", 1.0)
    monkeypatch.setattr("certctrl.plane.serve._STOP_SECONDS", 600.0)
    async with trio.open_nursery() as nursery:
        address: PlaneAddress = await nursery.start(partial(serve_plane, tmp_path / "plane", settings=FAST))
        async with connected(address, operator_key(address)) as operator:
            device = (await enrolled(operator, form))["device"]["id"]
            path = f"/apiv1/users/1/devices/{device}/install-config"
            items = [{"id": n, "type": "exec", "cmd_argv": ["/bin/true", "x" * 900]} for n in range(1000)]
            assert (await operator.ask("PUT", path, {"installs": items})).status == 200
            request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {operator.token}\r\n\r\n".encode()
            for _ in range(8):
                await operator.stream.send_all(request)
            await trio.sleep(0.3)
            async with connected(address) as other:
                assert (await other.ask("GET", "/health")).status == 200
            began = trio.current_time()
            nursery.cancel_scope.cancel()
            await trio.lowlevel.checkpoint_if_cancelled()
    assert trio.current_time() - began < 60


async def test_a_client_that_leaves_frees_its_connection(served: PlaneAddress, form: Any) -> None:
    async with connected(served, operator_key(served)) as operator:
        token = (await enrolled(operator, form))["session"]["access_token"]
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(10):
            async with connected(served, token) as device:
                with trio.move_on_after(0.1):
                    await device.ask("GET", f"{UPDATES}?wait=30")
        await fds_back_to(before)


async def test_its_own_certificate_is_renewed_while_it_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: object
) -> None:
    monkeypatch.setattr("certctrl.plane.serve._CERTIFICATE_CHECK_SECONDS", 0.1)
    async with trio.open_nursery() as nursery:
        address: PlaneAddress = await nursery.start(partial(serve_plane, tmp_path / "plane"))
        async with connected(address) as kept:
            await kept.ask("GET", "/health")
            first = kept.stream.getpeercert(binary_form=True)
            (tmp_path / "plane" / "tls.pem").write_bytes(b"")  # makes it due for renewal
            with trio.fail_after(60):
                while True:
                    async with connected(address) as fresh:
                        await fresh.ask("GET", "/health")
                        if fresh.stream.getpeercert(binary_form=True) != first:
                            break
                    await trio.sleep(0.05)
            assert (await kept.ask("GET", "/health")).status == 200, "open connections are kept"
        nursery.cancel_scope.cancel()


async def test_a_port_in_use_and_a_second_plane(served: PlaneAddress, tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="cannot listen") as caught:
        await serve_plane(tmp_path / "other", port=port_of(served))
    assert caught.value.fix
    with pytest.raises(BusyError):
        await serve_plane(tmp_path / "plane")
    with pytest.raises(TransportError):
        await serve_plane(tmp_path / "third", host="name.invalid")


async def test_ipv6(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
    async with trio.open_nursery() as nursery:
        address: PlaneAddress = await nursery.start(partial(serve_plane, tmp_path / "plane", host="::1"))
        assert address.url.startswith("https://[::1]:")
        context = ssl.create_default_context(cafile=str(address.ca_file))
        stream = await trio.open_ssl_over_tcp_stream(
            "::1", port_of(address), ssl_context=context, https_compatible=True
        )
        assert (await Connection(stream).ask("GET", "/health")).status == 200
        await trio.aclose_forcefully(stream)
        nursery.cancel_scope.cancel()


async def test_faults_reach_the_socket(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    faults = Faults()
    faults.add(Fault(path="/health", status=502, body=b"<html>"))
    faults.add(Fault(path="/health", cut_after=5))
    faults.add(Fault(path="/health", cut_after=-1))
    async with trio.open_nursery() as nursery:
        address: PlaneAddress = await nursery.start(partial(serve_plane, tmp_path / "plane", faults=faults))
        async with connected(address) as client:
            answer = await client.ask("GET", "/health")
            assert (answer.status, answer.body) == (502, b"<html>")
            with pytest.raises(EOFError):
                await client.ask("GET", "/health")
            assert client.buffer == b'{"dat'
        async with connected(address) as client:
            assert (await client.ask("GET", "/health")).status == 500, (
                "nothing has been sent yet, so the server responds"
            )
        async with connected(address) as client:
            assert (await client.ask("GET", "/health")).status == 200
        nursery.cancel_scope.cancel()
