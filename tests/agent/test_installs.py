"""Items in force: a certificate and the install config that names it may come at the same time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import trio

from certctrl.agent.installs import check_not_replayed, converge_in_force
from certctrl.errors import PlanError
from certctrl.model.plan import CopyAction, InstallConfig, Outcome, OutcomeKind
from certctrl.store.state import StoredInstallConfig

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


def test_a_hash_may_come_in_another_spelling_but_not_another_hash() -> None:
    stored = StoredInstallConfig(raw={"id": 1}, etag=None, version=3, hash="ab+/cd==", high_water={"1": 3})
    again = InstallConfig(id=1, version=3, items=(), installs_hash_b64="ab-_cd")
    check_not_replayed(again, stored)
    with pytest.raises(PlanError, match="other contents"):
        check_not_replayed(attrs.evolve(again, installs_hash_b64="ab-_ce"), stored)


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
