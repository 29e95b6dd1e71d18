"""The list of certificates as comparisons use it: only the changes are fetched, and a wrong memory costs one whole list."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from certctrl.agent.certificate_list import list_certificates
from certctrl.errors import BadAnswerError, DiskError, PlaneError
from certctrl.model.certificate import CertificateSummary
from certctrl.model.features import DELTA
from certctrl.protocol.wire.certificate_changes import KnownList
from certctrl.store.disk.fs import RealFs
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir
from certctrl.store.state.known_list import KnownListFile

DAY = 86_400.0


def listing(revision: str, *numbers: int) -> KnownList:
    return KnownList(revision, {n: json.dumps({"id": n, "domain_name": f"c{n}.example"}) for n in numbers})


@attrs.define(slots=False)
class Scripted:
    """An agent with a plane that gives these answers: lists, None, or errors."""

    layout: ConfigDir
    answers: list[Any]
    fs: RealFs = attrs.field(factory=RealFs)
    features: frozenset[str] = frozenset({DELTA})
    known: list[KnownList | None] = attrs.field(factory=list)
    whole: int = 0
    now: float = 1_790_000_000.0
    changes: bool = False
    """Whether a list that follows a known one consists of changes, or is whole."""

    @property
    def plane(self) -> Scripted:
        return self

    def wall_now(self) -> float:
        return self.now

    async def authorized(self, call: Callable[[str], Awaitable[Any]]) -> Any:
        return await call("token")

    async def offload(self, call: Callable[..., Any], *args: object) -> Any:
        return call(*args)

    async def fetch_changes(self, _token: str, known: KnownList | None) -> KnownList | None:
        self.known.append(known)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            self.features = frozenset()
        if answer == "same" and known is not None:
            return known
        return attrs.evolve(answer, whole_at=known.whole_at) if known is not None and self.changes else answer

    async def fetch_certificates(self, _token: str) -> list[CertificateSummary]:
        self.whole += 1
        return listing("", 8, 9).certificates()

    async def ids(self) -> list[int]:
        return [one.id for one in await list_certificates(self)]  # type: ignore[arg-type]

    @property
    def kept(self) -> KnownList | None:
        return KnownListFile(self.layout, self.fs).load()


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., Scripted]:
    layout = ConfigDir(tmp_path / "agent")
    make_tree(RealFs(), layout)
    return lambda *answers: Scripted(layout, [*answers])


async def test_the_list_is_kept_for_the_next_comparison_and_the_next_run(script: Callable[..., Scripted]) -> None:
    agent = script(listing("r1", 1, 2), "same", listing("r2", 2, 3))
    assert [await agent.ids() for _ in range(3)] == [[1, 2], [1, 2], [2, 3]]
    assert agent.known == [None, listing("r1", 1, 2), listing("r1", 1, 2)]
    restarted = script("same")
    assert await restarted.ids() == [2, 3]


async def test_a_plane_without_the_feature_is_asked_as_before(script: Callable[..., Scripted]) -> None:
    agent = script()
    agent.features = frozenset()
    assert await agent.ids() == [8, 9]
    assert (agent.whole, agent.known, agent.kept) == (1, [], None)


async def test_a_plane_that_lacks_the_feature_after_all_is_asked_as_before(script: Callable[..., Scripted]) -> None:
    agent = script(None)
    assert await agent.ids() == await agent.ids() == [8, 9]
    assert (agent.whole, len(agent.known), agent.kept) == (2, 1, None)


async def test_a_list_that_changed_while_it_was_fetched_is_used_and_not_kept(script: Callable[..., Scripted]) -> None:
    agent = script(listing("r1", 1), listing("", 1, 2))
    assert [await agent.ids() for _ in range(2)] == [[1], [1, 2]]
    assert agent.kept == listing("r1", 1), "still right for its revision"


async def test_an_answer_that_does_not_fit_the_memory_costs_one_whole_list(script: Callable[..., Scripted]) -> None:
    agent = script(listing("r1", 1), BadAnswerError("no such part"), listing("r2", 5))
    assert [await agent.ids() for _ in range(2)] == [[1], [5]]
    assert agent.known == [None, listing("r1", 1), None]
    assert agent.kept == listing("r2", 5)


async def test_kept_rows_that_cannot_be_read_cost_one_whole_list(script: Callable[..., Scripted]) -> None:
    agent = script("same", listing("r1", 1))
    KnownListFile(agent.layout, agent.fs).save(KnownList("r1", {1: "{}"}, agent.now - 60))
    assert await agent.ids() == [1]
    assert agent.known[1] is None and agent.kept == listing("r1", 1)


@pytest.mark.parametrize("error", [BadAnswerError("x"), PlaneError("x", status=503)])
async def test_a_failure_without_a_memory_is_the_callers(script: Callable[..., Scripted], error: Exception) -> None:
    agent = script(error)
    with pytest.raises(type(error)):
        await agent.ids()
    assert len(agent.known) == 1


@pytest.mark.parametrize("changes", [True, False])
async def test_a_list_is_believed_for_a_day(script: Callable[..., Scripted], changes: bool) -> None:
    """Found by review: a plane that was compromised could leave a wrong list under a right revision forever."""
    agent, began = script(listing("r1", 1), listing("r2", 1), listing("r3", 1, 2), "same"), 1_790_000_000.0
    agent.changes = changes
    for agent.now in (began, began + DAY / 2, began + 1.2 * DAY, began + 1.4 * DAY):
        await agent.ids()
    assert [one and one.revision for one in agent.known] == [None, "r1", None if changes else "r2", "r3"]
    agent.now, agent.answers = began - 1, [listing("r4", 3)]
    assert await agent.ids() == [3]
    assert agent.known[-1] is None, "the clock was set back"


async def test_a_damaged_memory_is_none(script: Callable[..., Scripted]) -> None:
    agent = script(listing("r1", 1), listing("r1", 1))
    await agent.ids()
    agent.layout.certificate_list.write_bytes(b"\0" * 100)
    assert await agent.ids() == [1]
    assert agent.known == [None, None]


async def test_a_disk_that_refuses_the_memory_fails_no_comparison(
    script: Callable[..., Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: KnownListFile, known: KnownList) -> None:
        raise DiskError("no space left")

    monkeypatch.setattr(KnownListFile, "save", full)
    agent = script(listing("r1", 1), listing("r1", 1))
    assert await agent.ids() == await agent.ids() == [1]
    assert agent.known == [None, None]
