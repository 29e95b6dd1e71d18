"""A plane that stops in order sends agents away for some seconds; one that dies gets them back one by one."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import trio
from simulation.history import innermost
from simulation.scene import Scene, play
from simulation.world import Setting

from certctrl.protocol.schedule import Schedule

LONG_POLL = Setting(span=0.0, interval=5.0, mode="long-poll")
WAIT = 25


async def parked(scene: Scene) -> None:
    """Wait until a poll is held that lasts the full wait."""
    await scene.until(lambda: scene.polls and scene.polls[-1].query["wait"] == str(WAIT) and is_held(scene))
    await trio.sleep(1)


def is_held(scene: Scene) -> bool:
    return scene.polls[-1].answer is None and not scene.polls[-1].failure


def last_answer(scene: Scene) -> Any:
    return scene.polls[-1].answer


async def restarted_in_order(scene: Scene) -> None:
    await parked(scene)
    drained, sent = scene.polls[-1], len(scene.polls)
    scene.plane.stop_polls()
    stopped = trio.current_time()
    await trio.sleep(1)
    assert drained.answer is not None
    assert (drained.answer.status, drained.answer.headers["etag"]) == (204, drained.query["cursor"])
    asked = int(drained.answer.headers["retry-after"])
    assert 5 <= asked <= 25
    app, scene.network.app = scene.network.app, None
    scene.network.break_connections()
    await trio.sleep(3)
    assert len(scene.polls) == sent, "no poll at a closed port"
    assert app is not None
    scene.world.plane = scene.world.open_plane(scene.world.image())
    await scene.until(lambda: len(scene.polls) > sent)
    assert scene.polls[sent].sent_at - stopped >= asked
    assert scene.polls[sent].query["wait"] == str(WAIT)
    await trio.sleep(15)
    assert len(scene.polls) == sent + 1, "one poll, not two"
    assert not any(poll.failure for poll in scene.polls)


async def lost_and_back(scene: Scene) -> None:
    await parked(scene)
    sent = len(scene.polls)
    scene.network.break_connections()
    lost = trio.current_time()
    await scene.until(lambda: len(scene.polls) > sent)
    assert 0.5 <= scene.polls[sent].sent_at - lost <= WAIT
    assert scene.polls[sent].query["wait"] == str(WAIT)
    await trio.sleep(15)
    assert len(scene.polls) == sent + 1, "one poll, not two"


async def refused_alone(scene: Scene) -> None:
    """One error on a healthy connection keeps the interval."""
    from simulation.network import NetworkFault

    await parked(scene)
    sent = len(scene.polls)
    scene.network.faults.append(NetworkFault(kind="status", status=500))
    await scene.until(lambda: len(scene.polls) > sent and scene.polls[sent].answer is not None)
    scene.network.clear()
    refused = trio.current_time()
    assert scene.polls[sent].answer is not None and scene.polls[sent].answer.status == 500
    await scene.until(lambda: len(scene.polls) > sent + 1)
    assert 4.0 <= scene.polls[sent + 1].sent_at - scene.polls[sent].sent_at <= 6.5
    assert refused <= scene.polls[sent + 1].sent_at


@pytest.mark.parametrize("story", [restarted_in_order, lost_and_back, refused_alone])
def test_agents_and_a_plane_that_stops(story: Any) -> None:
    play(story, setting=LONG_POLL)


def impatient(self: Schedule, poll: Any, event: Any, progress: bool, now: float) -> None:
    self.after_interval(now, held=poll.wait > 0)


def test_a_retry_after_that_is_not_obeyed_is_noticed() -> None:
    with patch.object(Schedule, "after_success", impatient), pytest.raises(BaseExceptionGroup) as caught:
        play(restarted_in_order, setting=LONG_POLL)
    assert "before the plane's Retry-After is over" in str(innermost(caught.value))
