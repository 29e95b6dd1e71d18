"""The materials of renewals that are wanted together: one request, and each fails alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
import trio
import trio.testing
from handler_world import LIVE, World

from certctrl.agent.fetches import FIRST_PAUSE, FRESH_SECONDS, MAX_FETCHED, Fetches
from certctrl.agent.materials import known_etag
from certctrl.errors import BadAnswerError, CertctrlError, PlaneError, TransportError
from certctrl.model.certificate import DeployMaterials
from certctrl.model.features import BATCH_FETCH, DELTA
from certctrl.protocol.wire.certificates import Fetched


def material(cert_id: int) -> DeployMaterials:
    return DeployMaterials(enc_scheme="aes256gcm", serial_number=str(cert_id))


class Batches:
    """A plane that answers requests for many; ``asked`` has the certificates of each, single ones as numbers."""

    def __init__(self, root: Path, *, features: Collection[str] = (BATCH_FETCH,)) -> None:
        self.agent = World(root).agent
        self.agent.plane = cast(Any, self)
        self.features = frozenset(features)
        known = partial(known_etag, self.agent)
        self.fetches = Fetches(cast(Any, self), self.agent.authorized, known)
        self.asked: list[Any] = []
        self.etags: list[dict[int, str]] = []
        """The ETags of each request for many."""
        self.items: dict[int, Fetched] = {}
        """What a request for many has instead of a material."""
        self.missing: set[int] = set()
        self.fails: list[Exception | None] = []
        """What the next requests for many raise."""
        self.seconds = 0.0

    async def fetch_many_materials(self, _token: str, ids: Mapping[int, str]) -> dict[int, Fetched]:
        self.etags.append({one: etag for one, etag in ids.items() if etag})
        self.asked.append(sorted(ids))
        await trio.sleep(self.seconds)
        if self.fails and (error := self.fails.pop(0)) is not None:
            raise error
        return {one: self.items.get(one, material(one)) for one in ids if one not in self.missing}

    async def fetch_materials(self, _token: str, cert_id: int) -> DeployMaterials:
        self.asked.append(cert_id)
        await trio.lowlevel.checkpoint()
        return material(cert_id)

    def expect(self, *ids: int) -> None:
        for cert_id in ids:
            self.fetches.expect(cert_id)

    async def fetch(self, *ids: int) -> dict[int, Any]:
        """Fetch like handlers that run concurrently; return serial number or exception."""
        found: dict[int, Any] = {}

        async def handle(cert_id: int) -> None:
            try:
                material = await self.fetches.fetch(cert_id)
                found[cert_id] = None if material is None else material.serial_number
            except CertctrlError as error:
                found[cert_id] = error
            finally:
                self.fetches.ended(cert_id)

        async with trio.open_nursery() as nursery:
            for cert_id in ids:
                nursery.start_soon(handle, cert_id)
        return found


@pytest.fixture
def batches(tmp_path: Path) -> Batches:
    return Batches(tmp_path)


async def test_two_that_are_wanted_need_one_request(batches: Batches) -> None:
    batches.expect(1, 2)
    assert await batches.fetch(1, 2) == {1: "1", 2: "2"}
    assert batches.asked == [[1, 2]]


async def test_a_lone_one_is_fetched_alone(batches: Batches) -> None:
    batches.expect(1)
    assert await batches.fetch(1) == {1: "1"}
    batches.expect(2)
    assert await batches.fetch(2) == {2: "2"}
    assert batches.asked == [1, 2]


async def test_without_the_feature_each_is_fetched_alone(tmp_path: Path) -> None:
    batches = Batches(tmp_path, features=("delta",))
    batches.expect(1, 2)
    await batches.fetch(1, 2)
    assert sorted(batches.asked) == [1, 2]


async def test_at_most_a_hundred_are_fetched_together(batches: Batches) -> None:
    ids = range(1, 251)
    batches.expect(*ids)
    for one in ids:
        assert await batches.fetch(one) == {one: str(one)}
    assert [len(one) for one in batches.asked] == [MAX_FETCHED, MAX_FETCHED, 50]


async def test_an_item_that_is_refused_fails_alone(batches: Batches) -> None:
    batches.items[2] = PlaneError("not yet", status=409, key="WRAP_PENDING")
    batches.expect(1, 2, 3)
    found = await batches.fetch(1, 2, 3)
    assert found.pop(2).key == "WRAP_PENDING" and found == {1: "1", 3: "3"}
    assert batches.asked == [[1, 2, 3]]


async def test_an_item_may_say_that_the_host_has_it(tmp_path: Path) -> None:
    batches = Batches(tmp_path, features=(BATCH_FETCH, DELTA))
    batches.agent.installer.records[1] = attrs.evolve(LIVE, source=f"{LIVE.generation} abc")
    batches.items[1] = None
    batches.expect(1, 2)
    assert await batches.fetch(1, 2) == {1: None, 2: "2"}
    assert batches.etags == [{1: "abc"}] and batches.asked == [[1, 2]]


async def test_an_item_that_did_not_fit_is_fetched_with_others_or_alone(batches: Batches) -> None:
    batches.missing = {1, 3}
    batches.expect(1, 2, 3)
    assert await batches.fetch(1, 2, 3) == {1: "1", 2: "2", 3: "3"}
    assert batches.asked[0] == [1, 2, 3] and 1 in batches.asked and 3 in batches.asked


@pytest.mark.parametrize(
    "error",
    [
        BadAnswerError("junk"), PlaneError("no", status=500), PlaneError("busy", status=503, retry_after=30),
        PlaneError("no", status=400),
    ],
    ids=str,
)  # fmt: skip
async def test_a_request_that_fails_fails_nothing(
    batches: Batches, error: Exception, autojump_clock: trio.testing.MockClock
) -> None:
    batches.fails = [error]
    batches.expect(*range(1, 7))
    assert await batches.fetch(*range(1, 7)) == {one: str(one) for one in range(1, 7)}
    assert batches.asked[0] == [1, 2, 3, 4, 5, 6] and sorted(batches.asked[1:]) == [1, 2, 3, 4, 5, 6]
    await trio.sleep(FIRST_PAUSE + 1)
    batches.asked.clear()
    batches.expect(*range(1, 7))
    await batches.fetch(*range(1, 7))
    assert [len(one) for one in batches.asked] == [3, 3], "perhaps they were too many"


async def test_pauses_grow_until_one_succeeds(batches: Batches, autojump_clock: trio.testing.MockClock) -> None:
    batches.fails = [BadAnswerError("junk")] * 2
    for pause in (0, FIRST_PAUSE, FIRST_PAUSE, FIRST_PAUSE):
        await trio.sleep(pause)
        batches.expect(1, 2)
        await batches.fetch(1, 2)
    assert [one for one in batches.asked if isinstance(one, list)] == [[1, 2]] * 3
    assert len(batches.asked) == 3 + 2 + 2 + 2


async def test_a_connection_that_was_closed_meanwhile_costs_one_more_request(batches: Batches) -> None:
    batches.fails = [TransportError("closed")]
    batches.expect(1, 2)
    assert await batches.fetch(1, 2) == {1: "1", 2: "2"}
    assert batches.asked == [[1, 2], [1, 2]]


async def test_the_time_limits_of_signals_hold(batches: Batches, autojump_clock: trio.testing.MockClock) -> None:
    """The first one asks for all; it runs into its limit, and the others still get theirs."""
    batches.seconds = 20
    batches.expect(1, 2, 3)
    found: dict[int, str] = {}

    async def handle(cert_id: int, limit: float) -> None:
        with trio.move_on_after(limit):
            material = await batches.fetches.fetch(cert_id)
            found[cert_id] = material.serial_number if material is not None else ""
        batches.fetches.ended(cert_id)

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for cert_id, limit in ((1, 10), (2, 100), (3, 5)):
            nursery.start_soon(handle, cert_id, limit)
    assert found == {2: "2"} and trio.current_time() - began <= 31


async def test_material_is_not_kept_for_a_later_signal(batches: Batches) -> None:
    """It may have been fetched before the later signal came."""
    batches.expect(1, 2, 3)
    await batches.fetch(1)
    batches.fetches.ended(2)
    batches.fetches.ended(3)
    batches.expect(2, 3)
    await batches.fetch(2, 3)
    assert batches.asked == [[1, 2, 3], [2, 3]]


async def test_material_that_has_waited_too_long_is_fetched_again(
    batches: Batches, autojump_clock: trio.testing.MockClock
) -> None:
    batches.expect(1, 2, 3)
    await batches.fetch(1)
    await trio.sleep(FRESH_SECONDS + 1)
    await batches.fetch(2, 3)
    assert batches.asked == [[1, 2, 3], [2, 3]]


async def test_what_is_kept_is_bounded(batches: Batches) -> None:
    batches.expect(*range(1, 301))
    await batches.fetch(1)
    await batches.fetch(300)  # not in the order of their arrival
    assert len(batches.fetches._found) < MAX_FETCHED


async def test_what_a_request_did_not_answer_is_not_asked_for_together_again(batches: Batches) -> None:
    batches.missing = set(range(1, 21))
    batches.expect(*range(1, 21))
    await batches.fetch(*range(1, 21))
    assert [one for one in batches.asked if isinstance(one, list)] == [list(range(1, 21))]
    assert sorted(one for one in batches.asked if not isinstance(one, list)) == list(range(1, 21))
