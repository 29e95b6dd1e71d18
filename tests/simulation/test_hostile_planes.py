"""The whole agent against hostile planes: it lives, keeps what it serves, and converges once the plane is honest."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import attrs
import pytest
import trio
from simulation.disk import file_in
from simulation.history import innermost
from simulation.hostile_lists import always_unchanged, list_changes, material_etags, singles
from simulation.hostile_planes import CASES, Tamper
from simulation.hostile_sockets import SOCKET_CASES, Meddle
from simulation.journal import Violation
from simulation.scene import QUIET, Scene, play
from simulation.world import DEVICE, USER

from certctrl.model.features import PRIORITY

HOSTILE = 1800.0
"""Seconds of hostility."""
PEACE = 4 * 3600.0
"""Seconds within which the host is as the honest plane wants it."""
LISTS = "lists"
HEALED = 26 * 3600.0
"""Likewise, if a wrong list may have been left under a right revision: it is believed for a day."""
ANSWERS = CASES | {LISTS: list_changes, "ETags of material": material_etags}
EACH = [(part, name) for part, make in (ANSWERS | SOCKET_CASES).items() for name in make()]
SAMPLED = 13
"""The default run has each thirteenth case, `nox -s hostile` all."""
HEALS = "a list without certificates"
"""Takes a day under the virtual clock."""
ALL = [
    pytest.param(
        part, name, id=f"{part}: {name}", marks=[pytest.mark.campaign] if number % SAMPLED or name == HEALS else []
    )
    for number, (part, name) in enumerate(EACH)
]
CERTIFICATES = 12
SETTING = attrs.evolve(
    QUIET, mode="long-poll", interval=5.0, page=5, queue=10, reconcile=3600, access_seconds=600, stream_length=5000
)


PUSHED = attrs.evolve(SETTING, mode="push", interval=30.0)


@pytest.mark.parametrize(("part", "name"), ALL)
def test_a_hostile_plane_gains_nothing(part: str, name: str) -> None:
    on_socket = part in SOCKET_CASES

    async def scenario(scene: Scene) -> None:
        ids = await begin(scene)
        process = scene.host.process
        if on_socket:
            scene.network.meddle = counted = Meddled(SOCKET_CASES[part]()[name])
            scene.network.cut_sockets()
        else:
            scene.network.tamper = counted = Counted(ANSWERS[part]()[name])
        await busy(scene, ids)
        assert scene.host.process is process, f"the agent ended\n{scene.log}"
        assert counted.changed, "nothing of it reached the agent"
        kept = [one for one in ids[1:] if not scene.live(one)]
        assert not kept, f"no longer served: {kept}"
        assert scene.agent.inbox.depth <= 10 * scene.agent.inbox._limit
        assert len(scene.agent.inbox.entries()) <= 2 * 1000
        scene.network.clear()
        scene.network.cut_sockets()  # an honest plane is another process, which has not sent the pages that were lost
        await scene.until(lambda: not scene.operators.differences(), HEALED if part == LISTS else PEACE)
        assert scene.host.process is process

    play(scenario, PUSHED if on_socket else SETTING)


@pytest.mark.parametrize("conditional", [True, False], ids=["to what is known", "to everything"])
def test_material_that_the_host_has_lost_is_not_said_to_be_there(conditional: bool) -> None:
    """A plane that answers every request with 304 cannot make the host report material that it does not have."""

    async def scenario(scene: Scene) -> None:
        ids = await begin(scene)
        record = scene.record(ids[1])
        key = scene.world.layout.generation(record.name, record.generation) / "private.key"
        written = file_in(scene.host.disk.now, key)
        always = always_unchanged('"e1"')

        def tamper(exchange, answer):  # type: ignore[no-untyped-def]
            return always(exchange, answer) if not conditional or "if-none-match" in exchange.headers else answer

        scene.network.tamper = singles(tamper)
        scene.network.before, scene.network.after = scene.sent.append, lambda exchange: None  # without the auditor
        scene.host.disk.put(key, b"not what was written", 0o600)
        scene.world.auditor.live[record.name].clear()
        done = len(scene.outcomes())
        with scene.plane.database.transaction():
            scene.plane.stream.append(DEVICE, "cert.renewed", {"cert_id": ids[1]})
        await scene.until(lambda: len(scene.outcomes()) > done, 600)
        assert (scene.outcomes()[0] == ("cert.renewed", "failed")) is not conditional
        live = scene.world.layout.live / record.name / "private.key"
        assert (file_in(scene.host.disk.now, live) == written) is conditional
        scene.network.clear()
        await scene.until(lambda: file_in(scene.host.disk.now, live) == written, PEACE)

    play(scenario, SETTING)


async def insatiable(self: Any, cert_id: int) -> Any:
    """Fetch many until each of them has been answered."""
    while others := self._others(cert_id):
        await self._fetch_many([cert_id, *others])
        self._alone.clear()
    return await self._fetch_alone(cert_id)


def test_that_many_are_asked_for_again_and_again_is_found() -> None:
    with patch("certctrl.agent.fetches.Fetches.fetch", insatiable):
        with pytest.raises((Violation, BaseExceptionGroup)) as caught:
            test_a_hostile_plane_gains_nothing("batch fetch", "always full")
    assert "was requested" in str(innermost(caught.value))


class Counted:
    """A change of answers that counts those that it changed."""

    def __init__(self, tamper: Tamper) -> None:
        self.tamper, self.changed = tamper, 0

    def __call__(self, exchange, answer):  # type: ignore[no-untyped-def]
        found = self.tamper(exchange, answer)
        self.changed += found != answer
        return found


class Meddled:
    """A change of what is said on sockets that counts likewise."""

    def __init__(self, meddle: Meddle) -> None:
        self.meddle, self.changed = meddle, 0

    def __call__(self, text: str) -> list[Any]:
        found = self.meddle(text)
        self.changed += found != [text]
        return found


async def begin(scene: Scene) -> list[int]:
    """Deploy some certificates with services; return their ids."""
    scene.world.issuer.bad = False
    for _ in range(CERTIFICATES):
        await scene.operators.issue()
    await scene.operators.configure()
    ids = [row["id"] for row in scene.operators.certificates()]
    await scene.until(lambda: all(map(scene.live, ids)), 7200)
    await scene.until(lambda: not scene.agent.inbox.depth, 7200)
    scene.agent.plane.features = scene.agent.plane.features | {PRIORITY}
    return ids


async def busy(scene: Scene, ids: list[int]) -> None:
    """Let the plane have work of all kinds for the host while it is hostile."""
    end = trio.current_time() + HOSTILE
    await scene.plane.certificates.revoke(USER, ids[0])
    while trio.current_time() < end:
        for cert_id in ids[1:]:
            await scene.plane.certificates.renew(USER, cert_id)
        await scene.operators.configure()
        await scene.plane.resync(USER, DEVICE)
        await trio.sleep(300)
