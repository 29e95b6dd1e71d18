"""Scenarios on a push socket, and the seeded mistakes that each of them finds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import patch

import pytest
import trio
from simulation.history import innermost
from simulation.journal import Violation
from simulation.scene import Scene, play
from simulation.world import DEVICE, USER, Setting

from certctrl.agent.push_link import Link
from certctrl.model.status import StopReason
from certctrl.protocol import events
from certctrl.protocol.wire import push as wire

PUSHED = Setting(span=0.0, interval=60.0, mode="push", access_seconds=900)
STEPS = 12
"""Messages on a socket between its hello and the outcome of a renewal, and a few more."""


async def connected(scene: Scene) -> None:
    await scene.until(lambda: scene.agent.push is not None and scene.agent.push.is_open, 120)


async def live(scene: Scene, domain: str, within: float) -> int:
    """Issue a certificate, wait until it is live, and return its id."""
    made = await scene.issue(domain)
    await scene.until(lambda: scene.live(made["id"]), within)
    return int(made["id"])


def said(scene: Scene, text: str) -> int:
    return scene.log.count(text)


# --- scenarios -----------------------------------------------------------------------------------------------------


async def arrive(scene: Scene) -> None:
    """Signals arrive at once, page by page, and outcomes leave, without a request for either."""
    await connected(scene)
    before = len(scene.sent)
    ids = [await live(scene, f"a{number}.example", 10) for number in range(3)]
    for cert_id in ids:
        await scene.plane.certificates.renew(USER, cert_id)
    await scene.until(lambda: sum(outcome == "applied" for _, outcome in scene.outcomes()) >= 6, 20)
    assert not [
        one for one in scene.sent[before:] if not one.on_socket and (one.is_poll or one.path.endswith("/notify"))
    ], scene.log


async def outlive_tokens(scene: Scene) -> None:
    """One socket lasts for many tokens."""
    await connected(scene)
    await trio.sleep(3 * 3600)
    assert scene.agent.push is not None
    assert scene.agent.push.is_open
    assert said(scene, "session.token ") >= 8
    assert said(scene, "stream -> open") == 1
    await live(scene, "late.example", 10)


async def notice_silence(scene: Scene) -> None:
    """A socket on which everything is lost is replaced within three ping intervals and one interval."""
    await connected(scene)
    for socket in scene.network.sockets:
        socket.silent = True
    await live(scene, "silent.example", 75 + 2 * 60 + 30)
    assert said(scene, "stream -> open") == 2


async def survive_a_blocked_path(scene: Scene) -> None:
    """Without upgrades the agent uses long-poll, says so, and returns to push when it can."""
    scene.network.blocks_upgrades = True
    await scene.until(lambda: scene.agent.push is not None and scene.agent.push.view()["next_try_at"], 900)
    await live(scene, "blocked.example", 120)
    status = await scene.ask("status")
    assert status["poll"]["transport"]["uses"] == "long-poll"
    assert "403" in status["poll"]["transport"]["why"]
    await trio.sleep(1800)
    scene.network.blocks_upgrades = False
    await scene.until(lambda: scene.agent.push is not None and scene.agent.push.is_open, 2 * 3600)
    await live(scene, "free.example", 10)


async def poll_now(scene: Scene) -> None:
    """`poll-now` is a round trip on the socket."""
    await connected(scene)
    before = len(scene.polls)
    began = trio.current_time()
    assert "no answer" not in (await scene.ask("poll-now"))["poll"]
    assert trio.current_time() - began < 5
    assert len(scene.polls) == before


async def end_with_the_device(scene: Scene) -> None:
    """A revoked device ends as after a poll."""
    await connected(scene)
    process = scene.host.process
    assert process is not None
    scene.plane.devices.revoke(USER, DEVICE, "lost")
    scene.world.auditor.device_revoked = True
    with trio.fail_after(900):
        await process.over.wait()
    assert process.stop is not None, scene.log
    assert process.stop.reason is StopReason.REVOKED


async def stop(scene: Scene) -> None:
    """SIGTERM closes the socket with 1001."""
    await connected(scene)
    await scene.host.stop()
    assert said(scene, "closed by the agent: 1001") == 1


SCENARIOS = (arrive, outlive_tokens, notice_silence, survive_a_blocked_path, poll_now, end_with_the_device, stop)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.__name__)
def test_scenario(scenario: Callable[[Scene], Awaitable[None]]) -> None:
    play(scenario, PUSHED)


@pytest.mark.parametrize("how", ["cut", "killed", "silent", "power", "killed at the next write"])
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_an_end_after_each_message_loses_nothing(step: int, how: str) -> None:
    async def scenario(scene: Scene) -> None:
        done = trio.Event()

        def on_message(socket: Any) -> None:
            if socket.messages == step and not done.is_set():
                done.set()
                if how == "cut":
                    socket.cut()
                elif how == "silent":
                    socket.silent = True
                elif how == "killed at the next write":
                    scene.host.kill_within(1, power=True)
                else:
                    scene.host.kill(power=how == "power")

        scene.network.on_message = on_message
        await scene.until(lambda: True, 60)
        cert_id = await live(scene, "step.example", 900)
        await scene.plane.certificates.renew(USER, cert_id)
        serial = {row["id"]: row["serial_number"] for row in scene.plane.certificates.page(DEVICE, 0, 100)}[cert_id]
        await scene.until(lambda: scene.record(cert_id).facts.serial == serial, 900)
        await scene.until(lambda: not scene.agent.inbox.acks_pending, 900)

    play(scenario, PUSHED)


def test_pages_that_come_twice_do_no_harm() -> None:
    async def scenario(scene: Scene) -> None:
        scene.network.mischief = lambda page: {"data": page["data"] | {"signals": page["data"]["signals"] * 2}}
        await connected(scene)
        await live(scene, "twice.example", 30)

    play(scenario, PUSHED)


# --- mistakes ------------------------------------------------------------------------------------------------------


async def forever(self: object) -> None:
    await trio.sleep_forever()


async def ack_on_receipt(self: Any, wait: float) -> Any:
    """Acknowledge the page that has just arrived, before it is durable."""
    event = await LATER(self, wait)
    if isinstance(event, events.Updates):
        await self._send(wire.ACK, id=event.cursor)
    return event


async def never_ack(self: Any, step: Any) -> bool:
    if self._handed is not None and step.cursor == self._handed:
        self._position, self._handed = self._handed, None
        return False
    return bool(await GO_TO(self, step))


async def resume_at_the_end(self: Any, step: Any) -> bool:
    """Begin at the newest cursor that was received, durable or not."""
    from certctrl.protocol.steps import Poll

    newest = SEEN.get("cursor") or step.cursor
    return bool(await GO_TO(self, Poll(newest if self._position == "\0" else step.cursor, step.limit, step.wait)))


def noting(self: Any, page: Any) -> None:
    SEEN["cursor"] = page.cursor
    TAKE_PAGE(self, page)


async def only_push(self: object, token: str, step: object, why: str, *, absent: bool = False) -> Any:
    return events.TransportFailed(why)


async def never_post(self: object, notices: object) -> bool:
    return True


SEEN: dict[str, Any] = {}
GO_TO, LATER, TAKE_PAGE = Link._go_to, Link._later, Link._take_page
MISTAKES: dict[str, tuple[Callable[[Scene], Awaitable[None]], dict[str, Any]]] = {
    "half-open sockets are never noticed": (notice_silence, {"certctrl.agent.push_link.Link._watch_silence": forever}),
    "the socket keeps its first token": (outlive_tokens, {"certctrl.agent.push_link.Link._send_tokens": forever}),
    "acks are never sent": (arrive, {"certctrl.agent.push_link.Link._go_to": never_ack}),
    "there is no fallback": (survive_a_blocked_path, {"certctrl.agent.push.Push._without": only_push}),
    "outcomes are forgotten": (arrive, {"certctrl.agent.push.Push.post": never_post}),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found(name: str) -> None:
    scenario, patches = MISTAKES[name]
    with pytest.raises((AssertionError, BaseExceptionGroup)) as caught:
        with_patches(patches, lambda: play(scenario, PUSHED))
    assert isinstance(innermost(caught.value), AssertionError), "the mistake itself is broken"


@pytest.mark.parametrize(
    "patches",
    [
        {"certctrl.agent.push_link.Link._later": ack_on_receipt},
        {"certctrl.agent.push_link.Link._go_to": resume_at_the_end, "certctrl.agent.push_link.Link._take_page": noting},
    ],
    ids=["acknowledged on receipt", "resumed at the newest page"],
)
def test_a_cursor_that_is_said_too_early_is_found(patches: dict[str, Any]) -> None:
    """The auditor finds it as soon as the disk fails or the process dies between page and write."""
    SEEN.clear()

    def tried() -> None:
        for step in range(1, STEPS + 1):
            test_an_end_after_each_message_loses_nothing(step, "killed at the next write")

    with pytest.raises((Violation, BaseExceptionGroup)) as caught:
        with_patches(patches, tried)
    assert isinstance(innermost(caught.value), AssertionError), "the mistake itself is broken"


def with_patches(patches: dict[str, Any], call: Callable[[], None]) -> None:
    if not patches:
        call()
        return
    (target, value), *rest = patches.items()
    with patch(target, value):
        with_patches(dict(rest), call)
