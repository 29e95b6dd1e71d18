"""Push: from an operator's request to the page at the agent's own client, beside long-poll, at one plane in one run.

`push.py` measures the plane's part, with a herd; here the operator's request is included.

Two devices of a served plane, each with the product's own client in this process: one holds a long-poll, the other a
push socket. An event changes the install config of one of them, in turn. It is published when the commit is durable
(`stamped_plane.py`), and received when the client returns the page. The answer to the operator is read only then: it
would compete with the page in this process. What the daemon does after receipt is the same for both.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from fleet_rig import HERE, Fleet, Operator, Server, make_fleet, served_plane
from measure import percentile, row
from trio_util import RepeatedEvent

from certctrl.agent.clock import wall_now
from certctrl.agent.push_link import Link
from certctrl.model.answer import Answer
from certctrl.model.config import AgentConfig, ApplicationConfig, HttpClientConfig
from certctrl.net.control_plane import ControlPlane
from certctrl.net.transport import HttpcoreHttp
from certctrl.protocol.events import NoUpdates, Updates
from certctrl.protocol.steps import Poll

PAUSE = (0.55, 0.65)
"""Seconds between two events, so that each finds its agent waiting, within the rate limit of polls."""
WAIT = 25
PROGRAM = (sys.executable, str(HERE / "stamped_plane.py"))


class Receiver:
    """A client that stays at the newest cursor, and notes when a page arrives."""

    def __init__(self) -> None:
        self.cursor: str | None = None
        self.arrived = trio.Event()
        self.at = 0.0

    def take(self, event: Any) -> None:
        if not isinstance(event, NoUpdates | Updates):
            raise SystemExit(f"bench: the plane does not deliver: {event}")
        self.cursor = event.cursor or self.cursor
        if isinstance(event, Updates):
            self.at = time.monotonic()
            self.arrived.set()

    async def page(self) -> float:
        """Wait for the next page; return when it arrived (monotonic clock)."""
        await self.arrived.wait()
        self.arrived = trio.Event()
        return self.at


class _Tokens:
    """The one token of a client, which outlives the run."""

    def __init__(self, token: str) -> None:
        self.token, self.changed = token, RepeatedEvent()

    def seen(self) -> str:
        return self.token


def measure(work: Path, *, events: int) -> Iterator[dict[str, Any]]:
    """Yield the rows."""
    fleet = make_fleet(work / "plane", 2)
    with served_plane(fleet, program=PROGRAM) as server:
        found = trio.run(_measure, fleet, server, events, work)
    for place, since in enumerate(("publish", "operator's request")):
        polled, pushed = ([took[place] * 1000 for took in found[name]] for name in ("long-poll", "push"))
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            must = 0.8 if (since, name) == ("publish", "p50") else None
            ours, floor = percentile(pushed, share), percentile(polled, share)
            yield row(f"{since} to received, {name}, milliseconds", ours, floor, must=must, note="floor: long-poll")


async def _measure(fleet: Fleet, server: Server, events: int, work: Path) -> dict[str, list[tuple[float, float]]]:
    tokens = fleet.tokens.read_text().split()
    found: dict[str, list[tuple[float, float]]] = {"long-poll": [], "push": []}
    operator = server.operator()
    async with (
        _client(server, work) as one, _client(server, work) as other,
        _receiving(_poll, one, tokens[0]) as polling, _receiving(_push, other, tokens[1]) as pushing,
    ):  # fmt: skip
        sides = (("long-poll", fleet.devices[0], polling), ("push", fleet.devices[1], pushing))
        for number in range(-3, events):
            for name, device, receiver in sides:
                await trio.sleep(random.uniform(*PAUSE))
                took = await _event(server, operator, device, receiver, number)
                if number >= 0:  # the first ones warm up
                    found[name].append(took)
    operator.close()
    return found


async def _event(
    server: Server, operator: Operator, device: int, receiver: Receiver, number: int
) -> tuple[float, float]:
    """Change the install config; return the seconds from its publication to receipt, and from the request."""
    items = [{"id": f"i{number}", "type": "exec", "cmd_argv": ["/bin/true"]}]
    receiver.arrived = trio.Event()  # on a slow machine, what was published before may arrive late
    began = time.monotonic()
    operator.begin("PUT", f"/apiv1/users/1/devices/{device}/install-config", {"installs": items})
    with trio.fail_after(30):
        at = await receiver.page()
    operator.answer()
    return at - _published(server, device, began), at - began


def _published(server: Server, device: int, after: float) -> float:
    """Return when the last signal of a device was published."""
    assert server.process.stdout is not None
    while True:
        stamp = json.loads(server.process.stdout.readline())
        if stamp["at"] > after and device in stamp["published"]:
            return float(stamp["at"])


@asynccontextmanager
async def _client(server: Server, work: Path) -> AsyncIterator[ControlPlane]:
    config = AgentConfig(
        application=ApplicationConfig(server_url=f"https://127.0.0.1:{server.port}"),
        httpclient=HttpClientConfig(ca_files=(str(server.ca),)),
    )
    http = HttpcoreHttp(config, root=work)
    try:
        yield ControlPlane(http, config, wall_now=wall_now, instance="bench")
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
            await http.aclose()


@asynccontextmanager
async def _receiving(transport: Any, plane: ControlPlane, token: str) -> AsyncIterator[Receiver]:
    receiver = Receiver()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport, plane, token, receiver, nursery)
        await trio.sleep(1)  # what was published before arrives first
        receiver.arrived = trio.Event()
        yield receiver
        nursery.cancel_scope.cancel()


async def _poll(plane: ControlPlane, token: str, receiver: Receiver, _: trio.Nursery) -> None:
    while True:
        receiver.take(await plane.poll(token, Poll(receiver.cursor, 20, WAIT)))


async def _push(plane: ControlPlane, token: str, receiver: Receiver, nursery: trio.Nursery) -> None:
    stream = await plane.open_stream(token)
    if isinstance(stream, Answer):
        raise SystemExit(f"bench: the plane refuses push: {stream.status}")

    async def no_answer(_: Any) -> dict[str, Any]:
        return {"error": {"key": "UNKNOWN_QUESTION", "what": "this is a bench"}}

    link = Link(stream, _Tokens(token), token, no_answer)  # type: ignore[arg-type]
    nursery.start_soon(link.run)
    while True:
        event = await link.next_page(Poll(receiver.cursor, 20, WAIT))
        await trio.lowlevel.checkpoint_if_cancelled()  # an ack is sent even so, and then the socket may have ended
        receiver.take(event)
