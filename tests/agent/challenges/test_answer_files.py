"""Answers as files in a directory of the web server, and what the policy allows."""

from __future__ import annotations

import json
import os
from pathlib import Path

import attrs
import pytest
from challenge_scene import ANSWER, STOP, TOKEN, allow, start
from handler_world import APPLIED, IGNORED, UNCHANGED, World

from certctrl.agent.challenge_handlers import on_challenge_start, on_challenge_stop
from certctrl.agent.features import features_of
from certctrl.errors import PolicyRefusedError
from certctrl.model.challenges import MAX_CHALLENGES
from certctrl.model.config import AgentConfig
from certctrl.model.policy import AcmeAnswers, HostPolicy
from certctrl.model.signals import (
    AcmeHttp01Start,
    AcmeTlsAlpn01Start,
)


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
    found = features_of(attrs.evolve(HostPolicy(), acme=acme), AgentConfig())
    assert {one for one in found if one.startswith("acme")} == announced
