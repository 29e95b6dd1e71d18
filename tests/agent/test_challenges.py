"""Answers to certificate authorities: what the policy allows, for as long as it may last, and nothing after a crash."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from cryptography import x509
from handler_world import APPLIED, IGNORED, NOW, TS, UNCHANGED, World
from trio.testing import MockClock

from certctrl.agent.challenge_handlers import on_challenge_start, on_challenge_stop
from certctrl.agent.challenges import tidy_answers
from certctrl.agent.context import Agent
from certctrl.agent.features import features_of
from certctrl.agent.run import answer_challenges
from certctrl.errors import PolicyRefusedError, StateCorruptError
from certctrl.model.challenges import MAX_CHALLENGES, MAX_LIFE
from certctrl.model.policy import AcmeAnswers, HostPolicy
from certctrl.model.signals import (
    AcmeHttp01Start,
    AcmeHttp01Stop,
    AcmeTlsAlpn01Start,
    AcmeTlsAlpn01Stop,
    ChallengeStart,
)
from certctrl.net.challenge_listener import CONNECTIONS
from certctrl.net.tls_alpn import ACME_IDENTIFIER

TOKEN = "LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDfowyjxAjEuX0"
THUMBPRINT = "9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
ANSWER = f"{TOKEN}.{THUMBPRINT}"
STOP = AcmeHttp01Stop(TS, TOKEN)


def start(
    kind: type[ChallengeStart] = AcmeHttp01Start,
    *,
    token: str = TOKEN,
    name: str = "www.example.com",
    life: float = 600,
) -> Any:
    expires = int((NOW + life) * 1000)
    return kind(TS, token, key_authorization=f"{token}.{THUMBPRINT}", identifier=name, expires_ms=expires)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    (tmp_path / "tokens").mkdir(mode=0o755)
    return tmp_path / "tokens"


@pytest.fixture
def scene(tmp_path: Path, tokens: Path) -> World:
    scene = World(tmp_path / "agent")
    allow(scene, http01_directory=str(tokens))
    return scene


def allow(scene: World, **settings: Any) -> None:
    scene.agent.policy = HostPolicy(acme=AcmeAnswers(**settings))


def restarted(scene: World) -> World:
    """Return the agent of the next run, with the same files and policy."""
    again = World(scene.layout.root)
    again.agent.policy = scene.agent.policy
    return again


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def while_answering(agent: Agent, body: Callable[[], Awaitable[None]]) -> None:
    """Run a body while the daemon's task for challenges runs."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_challenges, agent)
            await trio.testing.wait_all_tasks_blocked()
            await body()
            nursery.cancel_scope.cancel()


# --- files in a directory of the web server -------------------------------------------------------------------------


async def test_an_answer_is_a_public_file_until_it_is_stopped(scene: World, tokens: Path) -> None:
    outcome = await on_challenge_start(scene.agent, start())
    assert (outcome.kind, outcome.detail) == (APPLIED, f"answers at {tokens}")
    assert os.listdir(tokens) == [TOKEN]
    assert (tokens / TOKEN).read_text() == ANSWER
    assert (tokens / TOKEN).stat().st_mode & 0o777 == 0o644
    assert (await on_challenge_start(scene.agent, start())).kind is APPLIED, "again, as after a replay"
    assert (await on_challenge_stop(scene.agent, STOP)).kind is APPLIED
    assert os.listdir(tokens) == []
    assert (await on_challenge_stop(scene.agent, STOP)).kind is UNCHANGED


async def test_nothing_is_answered_by_default(scene: World, tokens: Path) -> None:
    scene.agent.policy = HostPolicy()
    for kind, setting in ((AcmeHttp01Start, "http01_directory"), (AcmeTlsAlpn01Start, "tls_alpn01_listen")):
        outcome = await on_challenge_start(scene.agent, start(kind))
        assert outcome.kind is IGNORED and setting in outcome.detail
    assert os.listdir(tokens) == []
    assert not scene.layout.challenges.exists()


async def test_only_names_of_the_policy_are_answered(scene: World, tokens: Path) -> None:
    allow(scene, http01_directory=str(tokens), names=("*.example.org",))
    outcome = await on_challenge_start(scene.agent, start())
    assert outcome.kind is IGNORED and "acme.names" in outcome.detail and "www.example.com" in outcome.detail
    assert (await on_challenge_start(scene.agent, start(name="www.example.org"))).kind is APPLIED


async def test_an_expired_start_is_ignored(scene: World, tokens: Path) -> None:
    assert (await on_challenge_start(scene.agent, start(life=-1))).kind is IGNORED
    assert os.listdir(tokens) == []


async def test_at_most_a_hundred_are_answered(scene: World, tokens: Path) -> None:
    for number in range(MAX_CHALLENGES):
        await on_challenge_start(scene.agent, start(token=f"token-{number:037d}"))
    with pytest.raises(PolicyRefusedError, match="100 challenges already"):
        await on_challenge_start(scene.agent, start())
    assert len(os.listdir(tokens)) == MAX_CHALLENGES
    assert (await on_challenge_start(scene.agent, start(token="token-" + "0" * 37))).kind is APPLIED, "a known one"


async def test_a_foreign_file_is_neither_replaced_nor_removed(scene: World, tokens: Path) -> None:
    (tokens / TOKEN).write_text("of the operator")
    with pytest.raises(PolicyRefusedError, match="did not write it"):
        await on_challenge_start(scene.agent, start())
    await on_challenge_stop(scene.agent, STOP)
    assert (tokens / TOKEN).read_text() == "of the operator"
    assert json.loads(scene.layout.challenges.read_text())["challenges"] == []


async def test_a_link_is_not_followed(scene: World, tokens: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("x")
    (tokens / TOKEN).symlink_to(victim)
    with pytest.raises(PolicyRefusedError, match="did not write it"):
        await on_challenge_start(scene.agent, start())
    (tmp_path / "linked").symlink_to(tokens)
    allow(scene, http01_directory=str(tmp_path / "linked"))
    with pytest.raises(PolicyRefusedError, match="symbolic link") as refused:
        await on_challenge_start(scene.agent, start(token="t" * 43))
    assert "http01_directory" in (refused.value.fix or "")
    assert victim.read_text() == "x" and os.listdir(tokens) == [TOKEN]


async def test_a_directory_that_others_can_change_is_refused(scene: World, tokens: Path) -> None:
    tokens.chmod(0o777)
    with pytest.raises(PolicyRefusedError, match="can be written by"):
        await on_challenge_start(scene.agent, start())
    assert os.listdir(tokens) == []


async def test_a_missing_directory_is_not_created(scene: World, tokens: Path) -> None:
    tokens.rmdir()
    with pytest.raises(PolicyRefusedError, match="there is no directory") as refused:
        await on_challenge_start(scene.agent, start())
    assert refused.value.fix == f"mkdir -p {tokens}"


# --- the end: expiry, restart, policy -------------------------------------------------------------------------------


async def test_an_answer_ends_at_its_expiry(scene: World, tokens: Path, autojump_clock: MockClock) -> None:
    scene.agent.wall_now = lambda: NOW + trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_challenges, scene.agent)
        began = trio.current_time()
        await on_challenge_start(scene.agent, start(life=600))
        while os.listdir(tokens):
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert 599 <= trio.current_time() - began <= 602


async def test_no_control_plane_makes_an_answer_last(scene: World, tokens: Path, autojump_clock: MockClock) -> None:
    scene.agent.wall_now = lambda: NOW + trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_challenges, scene.agent)
        began = trio.current_time()
        await on_challenge_start(scene.agent, start(life=10 * 365 * 86_400))
        while os.listdir(tokens):
            await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began <= MAX_LIFE + 20


async def test_an_idle_daemon_is_not_woken(scene: World, autojump_clock: MockClock) -> None:
    with trio.move_on_after(1_000_000):
        await answer_challenges(scene.agent)
    assert trio.current_time() == pytest.approx(1_000_000), "nothing else has ended it"
    assert not scene.layout.challenges.exists(), "and nothing is written"


async def test_the_next_run_continues_and_takes_back(scene: World, tokens: Path) -> None:
    await on_challenge_start(scene.agent, start())
    await on_challenge_start(scene.agent, start(token="t" * 43, life=60))
    (tokens / TOKEN).unlink()  # as if the crash came before the file
    (tokens / f".{'t' * 43}.0123abcd.tmp").write_text("torn")
    (tokens / ".other.0123abcd.tmp").write_text("not ours")
    again = restarted(scene)
    again.now = NOW + 61

    async def body() -> None:
        assert {*os.listdir(tokens)} == {TOKEN, ".other.0123abcd.tmp"}
        assert (tokens / TOKEN).read_text() == ANSWER

    await while_answering(again.agent, body)
    assert (await on_challenge_stop(again.agent, STOP)).kind is APPLIED
    assert os.listdir(tokens) == [".other.0123abcd.tmp"]


async def test_a_stop_after_a_restart_needs_no_daemon(scene: World, tokens: Path) -> None:
    await on_challenge_start(scene.agent, start())
    again = restarted(scene)
    assert (await on_challenge_stop(again.agent, STOP)).kind is APPLIED
    assert os.listdir(tokens) == []


async def test_one_shot_commands_take_back_what_has_expired(scene: World, tokens: Path) -> None:
    await on_challenge_start(scene.agent, start())
    again = restarted(scene)
    again.now = NOW + 601
    await tidy_answers(again.agent)
    assert os.listdir(tokens) == [] and not again.agent.problems


async def test_a_policy_that_no_longer_allows_it_ends_an_answer(scene: World, tokens: Path) -> None:
    async def body() -> None:
        await on_challenge_start(scene.agent, start())
        scene.agent.policy = HostPolicy()
        scene.agent.challenges.changed.value = True
        while os.listdir(tokens):
            await trio.sleep(0.01)

    await while_answering(scene.agent, body)


async def test_another_directory_in_the_policy_ends_an_answer(scene: World, tokens: Path, tmp_path: Path) -> None:
    """The policy says where the agent may write, also after a restart."""
    (tmp_path / "others").mkdir(mode=0o755)
    await on_challenge_start(scene.agent, start())
    again = restarted(scene)
    allow(again, http01_directory=str(tmp_path / "others"))
    (tokens / TOKEN).unlink()

    async def body() -> None:
        await trio.sleep(0.05)

    await while_answering(again.agent, body)
    assert (os.listdir(tokens), os.listdir(tmp_path / "others")) == ([], [])
    assert not again.agent.challenges.active


async def test_another_answer_takes_the_place_of_the_first(scene: World, tokens: Path) -> None:
    """An authority may ask the same again after its client has changed the key of its account."""
    await on_challenge_start(scene.agent, start())
    other = attrs.evolve(start(), key_authorization=f"{TOKEN}.{'x' * 43}")
    assert (await on_challenge_start(scene.agent, other)).kind is APPLIED
    assert (tokens / TOKEN).read_text() == other.key_authorization
    await on_challenge_stop(scene.agent, STOP)
    assert os.listdir(tokens) == []


async def test_one_answer_that_cannot_be_given_again_hinders_no_other(
    scene: World, tokens: Path, autojump_clock: MockClock
) -> None:
    """After a restart; it is reported, and tried again until it ends."""
    await on_challenge_start(scene.agent, start())
    await on_challenge_start(scene.agent, start(token="t" * 43))
    for path in tokens.iterdir():
        path.unlink()
    (tokens / TOKEN).write_text("of another program")
    again = restarted(scene)
    again.agent.wall_now = lambda: NOW + trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_challenges, again.agent)
        await trio.sleep(5)
        assert (tokens / ("t" * 43)).exists()
        assert "did not write it" in again.agent.problems["challenges"].what
        (tokens / TOKEN).unlink()
        await trio.sleep(70)
        assert (tokens / TOKEN).read_text() == ANSWER
        assert not again.agent.problems
        nursery.cancel_scope.cancel()


async def test_what_cannot_be_taken_back_is_a_problem_and_retried(
    scene: World, tokens: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    scene.agent.wall_now = lambda: NOW + trio.current_time()
    caplog.set_level(logging.ERROR, "test")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_challenges, scene.agent)
        await trio.testing.wait_all_tasks_blocked()
        await on_challenge_start(scene.agent, start())
        tokens.chmod(0o777)
        await trio.sleep(700)
        assert "can be written by" in scene.agent.problems["challenges"].what
        tokens.chmod(0o755)
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert os.listdir(tokens) == [] and not scene.agent.problems
    assert len(caplog.records) == 1, "the same failure is logged once"


async def test_a_damaged_record_is_reported(scene: World) -> None:
    scene.layout.challenges.write_text("{")
    scene.layout.challenges.chmod(0o600)
    with pytest.raises(StateCorruptError, match="damaged"):
        await on_challenge_start(scene.agent, start())


# --- listeners ------------------------------------------------------------------------------------------------------


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
    """The next one is turned away; when one of them leaves, there is room again."""
    port = free_port()
    allow(scene, http01_listen=f"127.0.0.1:{port}", tls_alpn01_listen=f"127.0.0.1:{port}")

    async def body() -> None:
        await on_challenge_start(scene.agent, start(kind))
        silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(CONNECTIONS)]
        await trio.testing.wait_all_tasks_blocked()
        turned_away = await trio.open_tcp_stream("127.0.0.1", port)
        with contextlib.suppress(trio.BrokenResourceError):
            assert await turned_away.receive_some() == b""
        await silent[0].aclose()
        await trio.testing.wait_all_tasks_blocked()
        after = await trio.open_tcp_stream("127.0.0.1", port)
        with trio.move_on_after(0.2) as stays:
            await after.receive_some()
        assert stays.cancelled_caught
        for stream in [*silent, after, turned_away]:
            await stream.aclose()

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


# --- what is announced ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("acme", "announced"),
    [
        (AcmeAnswers(), set()),
        (AcmeAnswers(names=("a.test",)), set()),
        (AcmeAnswers(http01_directory="/x"), {"acme-http01"}),
        (AcmeAnswers(http01_listen="0.0.0.0:80"), {"acme-http01"}),
        (AcmeAnswers(tls_alpn01_listen="0.0.0.0:443", http01_listen="0.0.0.0:80"), {"acme-http01", "acme-tls-alpn01"}),
    ],
)
def test_only_what_the_policy_allows_is_announced(acme: AcmeAnswers, announced: set[str]) -> None:
    found = features_of(attrs.evolve(HostPolicy(), acme=acme))
    assert {one for one in found if one.startswith("acme")} == announced
