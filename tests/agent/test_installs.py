"""Items in force: a certificate and the install config that names it may come at the same time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Any

import trio

from certctrl.agent.installs import converge_in_force
from certctrl.model.plan import CopyAction, Outcome, OutcomeKind

APPLIED, FAILED, UNCHANGED = (
    Outcome(kind=kind) for kind in (OutcomeKind.APPLIED, OutcomeKind.FAILED, OutcomeKind.UNCHANGED)
)
NEW = (CopyAction(id="c", ob_id=1, sources=("fullchain.pem",), targets=("/x/y",)),)


class Scene:
    """An agent whose install config changes while the first certificate is being switched."""

    def __init__(self, *answers: Outcome, comes: bool) -> None:
        self.agent: Any = SimpleNamespace(items=(), installer=self)
        self.calls: list[tuple[Any, Any, Any]] = []
        self._answers, self._comes = list(answers), comes

    async def converge(
        self, prepared: Sequence[Any], items: Any, *, only: Collection[int], lasting: bool
    ) -> dict[int, Outcome]:
        assert not lasting, "the outcomes that follow see to it"
        self.calls.append((tuple(prepared), items, tuple(only)))
        await trio.lowlevel.checkpoint()
        if self._comes:
            self.agent.items = NEW
        return dict.fromkeys(only, self._answers.pop(0))


async def test_an_install_config_that_comes_meanwhile_is_applied_to_the_certificate() -> None:
    scene = Scene(APPLIED, FAILED, comes=True)
    assert await converge_in_force(scene.agent, ["prepared"], [1]) == {1: FAILED}
    assert scene.calls == [(("prepared",), (), (1,)), ((), NEW, (1,))]


async def test_the_first_outcome_counts_when_the_new_config_changes_nothing() -> None:
    scene = Scene(APPLIED, UNCHANGED, comes=True)
    assert await converge_in_force(scene.agent, ["prepared"], [1]) == {1: APPLIED}


async def test_without_a_new_config_once_is_enough() -> None:
    scene = Scene(APPLIED, comes=False)
    assert await converge_in_force(scene.agent, ["prepared"], [1]) == {1: APPLIED}
    assert len(scene.calls) == 1
