"""http-01 answered by the plane: the table, and the listener that knows nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio
import trio.testing
from engine_plane import plane_on
from plane_socket import FAST
from plane_world import Client, World
from shared_solver import shared
from watched_connections import Watched

from certctrl.errors import DiskError, TransportError
from certctrl.net import challenge_listener
from certctrl.plane.challenges import plane_http
from certctrl.plane.challenges.dns_lookup import DnsLookup
from certctrl.plane.challenges.explain_http import explain_http
from certctrl.plane.challenges.plane_http import ANSWER_SECONDS, PlaneHttpSolver, answer_challenges
from certctrl.plane.challenges.solver import Proof
from certctrl.plane.http.plain_app import make_plain_app
from certctrl.plane.serve import serve_plane
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.sqlite import SqliteDatabase

WALL = 1_790_000_000.0


def proof(token: str = "tok-1_A", identifier: str = "127.0.0.1") -> Proof:
    return Proof(kind="http-01", identifier=identifier, token=token, key_authorization=f"{token}.thumbprint")


async def no_words(proof: Proof) -> str:
    return ""


def solver_on(database: Database) -> PlaneHttpSolver:
    return PlaneHttpSolver(database, lambda: WALL, no_words)


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    made = SqliteDatabase(tmp_path / "other.db", trio.to_thread.run_sync)
    yield made
    made.close()


@pytest.fixture
async def served(sqlite: Database, nursery: trio.Nursery) -> tuple[Database, int]:
    """A database, and the port of a listener for it."""
    return sqlite, await answering(sqlite, nursery)


async def answering(database: Database, nursery: trio.Nursery) -> int:
    """Return the port of a listener for a database."""
    plane_on(database)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(answer_challenges, listeners, database, lambda: WALL)
    return int(listeners[0].socket.getsockname()[1])


async def get(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.request(method, f"http://127.0.0.1:{port}{path}")
        assert answer.headers["connection"] == "close"
        return answer.status_code, answer.text


async def test_any_plane_answers_until_it_is_taken_back(database: Database, nursery: trio.Nursery) -> None:
    port = await answering(database, nursery)
    await solver_on(database).present([proof()])
    assert await get(port, "/.well-known/acme-challenge/tok-1_A") == (200, "tok-1_A.thumbprint")
    assert await get(port, "/.well-known/acme-challenge/tok-1_A", "HEAD") == (200, "")
    assert await get(port, "/.well-known/acme-challenge/tok-1_A", "POST") == (405, "")
    assert await get(port, "/.well-known/acme-challenge/tok-1_B") == (404, "")
    await solver_on(database).clean_up([proof()])  # another plane, or this one after a crash
    assert await get(port, "/.well-known/acme-challenge/tok-1_A") == (404, "")


async def test_two_orders_share_an_answer(served: tuple[Database, int]) -> None:
    database, port = served
    first, second = (shared(solver_on(database), database, lambda: WALL) for _ in range(2))
    await first.present([proof()])
    await second.present([proof()])
    await first.clean_up([proof()])
    assert (await get(port, "/.well-known/acme-challenge/tok-1_A"))[0] == 200
    await second.clean_up([proof()])
    assert (await get(port, "/.well-known/acme-challenge/tok-1_A"))[0] == 404


async def test_an_answer_that_is_never_taken_back_expires(database: Database) -> None:
    plane = plane_on(database, wall_now=lambda: WALL + ANSWER_SECONDS)
    await solver_on(database).present([proof()])
    found = partial(plane_http.stored_answer, database, "tok-1_A")
    assert await database.work(found, WALL + ANSWER_SECONDS - 1) == "tok-1_A.thumbprint"
    assert await database.work(found, WALL + ANSWER_SECONDS) == ""
    assert await database.work(plane.housekeeping.tidy) == 1
    rows = await database.work(database.all, "SELECT token FROM http_challenges")
    assert not rows


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"), ("GET", "/.well-known/acme-challenge/"),
        ("GET", "/.well-known/acme-challenge/../tok"), ("GET", "/x/.well-known/acme-challenge/tok-1_A"),
        ("GET", "/.well-known/acme-challenge/tok%2d1_A"), ("GET", f"/.well-known/acme-challenge/{'a' * 201}"),
    ],
)  # fmt: skip
async def test_everything_else_is_not_there(served: tuple[Database, int], method: str, path: str) -> None:
    database, port = served
    await solver_on(database).present([proof()])
    assert (await get(port, path, method))[0] == 404


async def test_a_database_that_is_away(
    sqlite: Database, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*args: object) -> str:
        raise DiskError("no database")

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    monkeypatch.setattr(sqlite, "work", fails)
    nursery.start_soon(answer_challenges, listeners, sqlite, lambda: WALL)
    port = listeners[0].socket.getsockname()[1]
    assert (await get(port, "/.well-known/acme-challenge/tok-1_A"))[0] == 503


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000])
async def test_a_client_that_speaks_no_http(
    served: tuple[Database, int], sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is cut off after a while; the next one is answered."""
    monkeypatch.setattr(challenge_listener, "REQUEST_SECONDS", 0.2)
    database, port = served
    await solver_on(database).present([proof()])
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(sent or b"G")
            while await stream.receive_some():
                pass
    assert (await get(port, "/.well-known/acme-challenge/tok-1_A"))[0] == 200


@pytest.mark.parametrize("limit", ["CONNECTIONS", "CONNECTIONS_PER_ADDRESS"])
async def test_connections_are_bounded(
    sqlite: Database, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """One above the limit ends the oldest that has not asked, and is answered."""
    monkeypatch.setattr(plane_http, limit, 5)
    monkeypatch.setattr(challenge_listener, "REQUEST_SECONDS", 3600.0)
    port = await answering(sqlite, nursery)
    silent = Watched(nursery)
    for _ in range(5):
        await silent.add(port, sent=b"G")
    await silent.expect(closed=0)
    assert (await get(port, "/x"))[0] == 404
    await silent.expect(closed=1)
    await silent.close()


async def test_a_request_that_fails_is_isolated(
    served: tuple[Database, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, port = served
    with monkeypatch.context() as broken:
        broken.setattr(plane_http, "stored_answer", lambda *_: 1 / 0)
        assert (await get(port, "/.well-known/acme-challenge/x"))[0] == 500
    assert "a request failed" in caplog.text
    assert (await get(port, "/.well-known/acme-challenge/x"))[0] == 404


async def test_what_an_address_answers_explains_a_refusal(served: tuple[Database, int]) -> None:
    database, port = served
    await solver_on(database).present([proof()])
    lookup = DnsLookup(None, ())  # type: ignore[arg-type]  # an address needs no DNS
    asked = f"asked for http://127.0.0.1:{port}/.well-known/acme-challenge/"
    right = await explain_http(lookup, proof(), port)
    assert right.startswith(f"{asked}tok-1_A: 127.0.0.1 answers with the right body; the answer is there")
    wrong = await explain_http(lookup, proof("other"), port)
    assert wrong == f"{asked}other: 127.0.0.1 answers with an error (404)"
    closed = await explain_http(lookup, proof(), 9)
    assert closed.endswith("127.0.0.1 refuses the connection; port 9 must be open for the CA")


async def test_plane_serve_answers(tmp_path: Path, nursery: trio.Nursery) -> None:
    address = await nursery.start(partial(serve_plane, tmp_path / "plane", settings=FAST, acme_http=("127.0.0.1", 0)))
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"{address.acme_http_url}/.well-known/acme-challenge/none")
        assert (answer.status_code, answer.text) == (404, "")
    nursery.cancel_scope.cancel()


async def test_a_port_that_is_taken(tmp_path: Path) -> None:
    (taken,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = taken.socket.getsockname()[1]
    with pytest.raises(ExceptionGroup) as caught:
        await serve_plane(tmp_path / "plane", settings=FAST, acme_http=("127.0.0.1", port))
    (error,) = caught.value.exceptions
    assert isinstance(error, TransportError) and str(error).startswith(f"cannot listen on 127.0.0.1:{port}: ")
    assert error.fix == "choose another --acme-http HOST:PORT"
    await taken.aclose()


async def test_the_listener_without_tls_answers_too(world: World) -> None:
    """So one port 80 has revocation lists and challenges."""
    client = Client(make_plain_app(world.plane))
    solver = PlaneHttpSolver(world.plane.database, world.plane.wall_now, no_words)
    await solver.present([proof()])
    answer = await client("GET", "/.well-known/acme-challenge/tok-1_A")
    assert (answer.status, answer.body, answer.headers["cache-control"]) == (200, b"tok-1_A.thumbprint", "no-store")
    assert (await client("GET", "/.well-known/acme-challenge/tok.1")).status == 404
    await solver.clean_up([proof()])
    assert (await client("GET", "/.well-known/acme-challenge/tok-1_A")).status == 404
