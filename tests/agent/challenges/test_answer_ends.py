"""The end of answers: expiry, restarts, changes of the policy, and failures to remove them."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import attrs
import pytest
import trio
from challenge_scene import ANSWER, STOP, TOKEN, allow, restarted, start, while_answering
from handler_world import APPLIED, NOW, World
from trio.testing import MockClock

from certctrl.agent.challenge_handlers import on_challenge_start, on_challenge_stop
from certctrl.agent.challenges import tidy_answers
from certctrl.agent.run import answer_challenges
from certctrl.errors import StateCorruptError
from certctrl.model.challenges import MAX_LIFE
from certctrl.model.policy import HostPolicy


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
