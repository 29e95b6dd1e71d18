"""What the control socket can be asked: the daemon's side of the one-shot commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from certctrl.agent.context import Agent
from certctrl.agent.control import Operation
from certctrl.agent.guard import request_renewal
from certctrl.agent.poller import Poller
from certctrl.agent.reconcile import plan_resync
from certctrl.agent.reporter import snapshot
from certctrl.errors import UsageError
from certctrl.model.records import CertRecord


def operations_for(agent: Agent, poller: Poller, stop: Callable[[str], None]) -> Mapping[str, Operation]:
    """Return the operations by name; each takes the request object and returns plain JSON."""

    async def status(_request: dict[str, Any]) -> Any:
        return snapshot(agent)

    async def poll_now(_request: dict[str, Any]) -> Any:
        text = await poller.poll_now("the control socket")
        return {"poll": text, "cursor": agent.session.seen_cursor, "queue_depth": agent.inbox.depth}

    async def renew(request: dict[str, Any]) -> Any:
        record = record_for(agent.installer.records.values(), _text(request, "domain"))
        await request_renewal(agent, record.cert_id, "operator")
        return {"cert_id": record.cert_id, "name": record.name, "requested": True}

    async def apply(request: dict[str, Any]) -> Any:
        found = await plan_resync(agent, "`apply` was asked for")
        outcome = await agent.installer.converge_all(agent.items, ignore_window=bool(request.get("now")))
        return {"outcome": outcome.kind.value, "detail": outcome.detail, "differences": found}

    async def rollback(request: dict[str, Any]) -> Any:
        record = record_for(agent.installer.records.values(), _text(request, "domain"))
        to = request.get("to")
        outcome = await agent.installer.rollback(record.name, str(to) if to else None, agent.items)
        return {"outcome": outcome.kind.value, "detail": outcome.detail, "name": record.name}

    async def release(request: dict[str, Any]) -> Any:
        record = record_for(agent.installer.records.values(), _text(request, "domain"))
        await agent.installer.release(record.name)
        await plan_resync(agent, "a hold was released")
        return {"name": record.name, "released": True}

    async def plan(_request: dict[str, Any]) -> Any:
        return (await agent.installer.plan(agent.items)).shown()

    async def stop_now(_request: dict[str, Any]) -> Any:
        stop("the control socket")
        return {"stopping": True}

    return {
        "status": status, "poll-now": poll_now, "renew": renew, "apply": apply,
        "rollback": rollback, "release": release, "plan": plan, "stop": stop_now,
    }  # fmt: skip


def _text(request: dict[str, Any], name: str) -> str:
    value = request.get(name)
    if not isinstance(value, str) or not value:
        raise UsageError(f"the request has no {name}", fix=f"give --{name}")
    return value


def record_for(records: Any, domain: str) -> CertRecord:
    """Return the record whose primary domain, name or SAN is ``domain``; UsageError names what there is."""
    wanted = domain.lower().rstrip(".")
    known = [record for record in records if record.generation]
    for test in (
        lambda record: record.name == wanted or (record.domains and record.domains[0] == wanted),
        lambda record: wanted in record.domains,
    ):
        for record in known:
            if test(record):
                return record  # type: ignore[no-any-return]
    names = ", ".join(sorted(record.domains[0] if record.domains else record.name for record in known))
    raise UsageError(f"no certificate for {domain!r} on this host", fix=f"known: {names or 'none'}")
