"""Report to the plane at intervals what endpoints serve: a service may fail, or return to an old certificate, by itself.

What was seen is sent with the next outcomes if the plane has not accepted the same before, and otherwise once a day.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import trio

from certctrl.agent.context import Agent
from certctrl.agent.log_lines import Line, log_line
from certctrl.agent.package_guard import raise_if_replaced
from certctrl.model.features import SERVING_REPORTS

if TYPE_CHECKING:
    from certctrl.install.deploy.looks import Served

SOON_SECONDS = 300.0
"""Seconds until the next look at what was wrong."""
JITTER = 0.1
"""Part of the interval by which looks vary."""
MAX_ENDPOINTS = 64
"""Endpoints of a certificate that are reported."""
MAX_TEXT, MAX_SERIAL = 300, 128
"""Characters of an endpoint and of a serial number: a hostile service may have a certificate with a very long one."""


async def report_serving(agent: Agent) -> None:
    """Look at what endpoints serve at intervals until cancelled; the first time at a random moment of the interval."""
    settings = agent.config.application
    full = trio.current_time() + settings.serving_interval_seconds * agent.random()
    again = frozenset[int]()
    while True:
        await trio.sleep_until(min(full, trio.current_time() + SOON_SECONDS) if again else full)
        settings, everything = agent.config.application, trio.current_time() >= full
        if everything:
            full = trio.current_time() + settings.serving_interval_seconds * (1 - JITTER * agent.random())
        if not settings.report_serving or SERVING_REPORTS not in agent.plane.features:
            agent.serving.forget()
            again = frozenset()
        else:
            again = await _look_safely(agent, None if everything else again)


async def _look_safely(agent: Agent, only: Collection[int] | None) -> frozenset[int]:
    """Look at endpoints, and log an unexpected error: no answer of a service may stop the daemon."""
    try:
        return await look_now(agent, only)
    except Exception as error:
        raise_if_replaced(error)
        log_line(agent.log, Line.BUG, kind=type(error).__name__, where="a look at endpoints", why=error)
        return frozenset()


async def look_now(agent: Agent, only: Collection[int] | None) -> frozenset[int]:
    """Look, and make what is new due; return the certificates to look at again soon."""
    found = await agent.installer.look(agent.items, only)
    records, serving = agent.installer.records, agent.serving
    for cert_id, served in found.served.items():
        if (record := records.get(cert_id)) is not None:
            serving.note(cert_id, _event(cert_id, record.facts.serial, served), record.last_apply_at)
            _note_wrong(agent, cert_id, record.name, served)
    if only is None:
        for cert_id in serving.known() - found.served.keys() - found.unsure:  # withdrawn, or of another plane
            serving.note(cert_id, _event(cert_id, "", ()), None)
            serving.wrong.pop(cert_id, None)
    return found.unsure | frozenset(serving.wrong)


def _event(cert_id: int, deployed: str, served: Sequence[Served]) -> dict[str, Any]:
    seen = [_endpoint(one) for one in sorted(served, key=lambda one: (one.fault is None, one.endpoint))]
    return {"type": "endpoints", "cert_id": cert_id, "deployed": deployed, "endpoints": seen[:MAX_ENDPOINTS]}


def _endpoint(one: Served) -> dict[str, Any]:
    event: dict[str, Any] = {"endpoint": one.endpoint[:MAX_TEXT]}
    if one.leaf is not None:
        event |= {"serial": one.leaf.serial[:MAX_SERIAL], "fingerprint_sha256": one.leaf.fingerprint}
        event["not_after_ms"] = round(one.leaf.not_after * 1000)
    if one.fault is not None:
        from certctrl.model.causes import probe_reason  # here: an idle daemon does without

        event["reason"] = probe_reason(one.fault).value
    return event


def _note_wrong(agent: Agent, cert_id: int, name: str, served: Sequence[Served]) -> None:
    """Log what has become wrong, or right again."""
    what = "; ".join(f"{one.endpoint} {one.fault}" for one in served if one.fault is not None)
    before = agent.serving.wrong.get(cert_id, "")
    if what:
        agent.serving.wrong[cert_id] = what
    else:
        agent.serving.wrong.pop(cert_id, None)
    if what and what != before:
        log_line(agent.log, Line.SERVING_WRONG, cert_id=cert_id, name=name, what=what)
    elif before and not what:
        log_line(agent.log, Line.SERVING_RIGHT, cert_id=cert_id, name=name)
