"""One-shot commands without a daemon: the same Agent and locks, and no task that outlives the command.

Each opens the Agent, does its work and returns plain JSON. A running daemon raises BusyError; the command line then
uses the control socket.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio

from certctrl.agent.acks import flush_acks
from certctrl.agent.alerts import write_or_report
from certctrl.agent.challenges import tidy_answers
from certctrl.agent.context import Agent
from certctrl.agent.dispatcher import Dispatcher
from certctrl.agent.expiry_guard import request_renewal
from certctrl.agent.host_keys import awaited, forget_live_keys
from certctrl.agent.install_config import item_problems, note_idle_items
from certctrl.agent.lost import check_disk
from certctrl.agent.operations import (
    OPERATOR,
    applied,
    changes_so_far,
    failed,
    forget_ca,
    forget_certificate,
    forget_trust,
    record_for,
    rolled_back,
)
from certctrl.agent.reconcile import plan_resync, try_resync
from certctrl.agent.reporter import save_status, snapshot
from certctrl.agent.retries import retry_due
from certctrl.agent.setup import Seams, open_agent
from certctrl.agent.standing import recover
from certctrl.errors import NotRegisteredError, PlaneError, TransportError
from certctrl.install.plan.render import plan_json
from certctrl.protocol import events, steps
from certctrl.text import counted

DRAIN_SECONDS = 600.0
BUSY_SECONDS = 60.0
"""How long a command waits in total for a rate-limited plane."""


async def poll_once(config_dir: Path, seams: Seams | None = None) -> dict[str, Any]:
    """Poll page by page, handle all signals, run the retries that are due, and report the outcomes."""
    async with open_agent(config_dir, seams or Seams()) as agent:
        await recover(agent)
        pages, signals, until = 0, 0, trio.current_time() + BUSY_SECONDS
        cursor = agent.store.session.load_cursor()
        while True:
            page = await _page(agent, cursor, until)
            pages, signals = pages + 1, signals + len(page.signals)
            agent.admit(page.signals)
            await agent.inbox.secure()
            cursor = page.cursor or cursor
            if cursor is not None:
                await agent.offload(agent.store.session.save_cursor, cursor)
            agent.store.session.save_last_poll(agent.wall_now())
            if not page.full:
                break
        await handle_all(agent)
        fails = await retry_due(agent)
        await tidy_answers(agent)
        done = await _done(agent, {"poll": _text(signals), "pages": pages, "signals": signals, "cursor": cursor})
        return done | ({"failed": [*done.get("failed", ()), *fails]} if fails else {})


async def renew(config_dir: Path, domain: str, seams: Seams | None = None) -> dict[str, Any]:
    """Request the renewal of a domain's certificate; it arrives as a signal of a later poll."""
    async with open_agent(config_dir, seams or Seams()) as agent:
        record = record_for(agent.installer.records.values(), domain)
        await request_renewal(agent, record, "operator")
        return {"cert_id": record.cert_id, "name": record.name, "requested": True}


async def apply(config_dir: Path, *, now: bool = False, seams: Seams | None = None) -> dict[str, Any]:
    """Converge this host with the plane and its install config, or with the disk if the plane is unreachable."""
    async with open_agent(config_dir, seams or Seams()) as agent:
        agent.installer.asked_by = OPERATOR
        await recover(agent)
        before = changes_so_far(agent)
        found, unreachable = await try_resync(agent, "`apply` was requested")
        if not unreachable:
            agent.retry_now()
            await handle_all(agent)
        outcome = await agent.installer.converge_all(agent.items, ignore_window=now, due_now=True)
        if outcome.ok and failed(agent) and not unreachable:  # perhaps for a reason that this has removed
            agent.retry_now()
            await handle_all(agent)
        await tidy_answers(agent)
        await forget_live_keys(agent)
        result = applied(agent, outcome, before, differences=found, unreachable=unreachable)
        return await _done(agent, result, flush=not unreachable)


async def rollback(config_dir: Path, domain: str, to: str | None, seams: Seams | None = None) -> dict[str, Any]:
    """Switch one certificate back to an earlier generation and hold it there; needs no network."""
    async with open_agent(config_dir, seams or Seams()) as agent:
        await recover(agent)
        record = record_for(agent.installer.records.values(), domain)
        outcome = await agent.installer.rollback(record.name, to, agent.items)
        return await _done(agent, rolled_back(agent, record, outcome), flush=False)


async def release(config_dir: Path, domain: str, seams: Seams | None = None) -> dict[str, Any]:
    """Release a rolled-back certificate and switch to the newest one."""
    async with open_agent(config_dir, seams or Seams()) as agent:
        await recover(agent)
        record = record_for(agent.installer.records.values(), domain)
        await agent.installer.release(record.name)
        outcome = await agent.installer.converge_all(agent.items, due_now=True, asked_by=OPERATOR)
        return await _done(agent, {"name": record.name, "released": True, "outcome": outcome.kind.value}, flush=False)


async def forget(config_dir: Path, *, domain: str, ca_id: int | None, seams: Seams | None = None) -> dict[str, Any]:
    """Take one certificate or CA out of use without asking the plane; needs no network."""
    async with open_agent(config_dir, seams or Seams()) as agent:
        await recover(agent)
        result = await (forget_certificate(agent, domain) if ca_id is None else forget_ca(agent, ca_id))
        return await _done(agent, result, flush=False)


async def reset_trust(
    config_dir: Path, *, install_config: bool, scripts: bool, seams: Seams | None = None
) -> dict[str, Any]:
    """Forget install config versions, script pins, or both; needs no network."""
    async with open_agent(config_dir, seams or Seams()) as agent:
        return await forget_trust(agent, install_config=install_config, scripts=scripts)


async def plan(config_dir: Path, seams: Seams | None = None) -> dict[str, Any]:
    """Return what would change on this host, and why; changes nothing."""
    async with open_agent(config_dir, seams or Seams(), repair=False) as agent:
        await check_disk(agent, change=False)
        return plan_json(await agent.installer.plan(agent.items), awaited(agent)) | {"problems": item_problems(agent)}


async def handle_all(agent: Agent) -> None:
    """Handle all due signals once and return when nothing runs."""
    with trio.move_on_after(DRAIN_SECONDS):
        async with trio.open_nursery() as nursery:
            dispatcher = Dispatcher(agent)
            nursery.start_soon(agent.batches.run_batches, dispatcher.finish_batch)
            await dispatcher.drain()
            nursery.cancel_scope.cancel()


async def _page(agent: Agent, cursor: str | None, until: float) -> events.Updates:
    async def poll(token: str) -> events.PollAnswer:
        event = await agent.plane.poll(token, steps.Poll(cursor, agent.config.application.poll_limit, 0))
        if isinstance(event, events.TokenExpired):
            raise PlaneError("the control plane rejects the access token", status=401, fix="cert-ctrl -c DIR doctor")
        return event

    event = await agent.authorized(poll)
    match event:
        case events.Updates():
            return event
        case events.NoUpdates():
            return events.Updates(event.cursor, (), False)
        case events.CursorExpired() if cursor is not None:
            await agent.offload(agent.store.session.clear_cursor)
            await plan_resync(agent, "the cursor was reset", new_stream=True)
            return await _page(agent, None, until)
        case events.DeviceRevoked():
            raise NotRegisteredError(f"device revoked: {event.what}", fix="cert-ctrl -c DIR register")
        case events.ServerBusy(status=429, retry_after=float(pause)) if trio.current_time() + pause < until:
            await trio.sleep(max(1.0, pause))  # its rate limit: a backlog has many pages
            return await _page(agent, cursor, until)
        case events.TransportFailed():
            raise TransportError(event.why, fix=event.fix or "cert-ctrl -c DIR doctor")
        case events.BadAnswer():
            raise TransportError(event.why, fix="cert-ctrl -c DIR doctor")
        case _:
            status = events.poll_code(event) or 0
            raise PlaneError(f"the control plane answered {status}", status=status, fix="cert-ctrl -c DIR doctor")


async def _done(agent: Agent, result: dict[str, Any], *, flush: bool = True) -> dict[str, Any]:
    if flush:
        await flush_acks(agent)
    await write_or_report(agent, agent.inbox.close())
    await note_idle_items(agent)  # as they are now: what a signal has noted may have arrived since
    await save_status(agent, snapshot(agent) | {"running": False})
    return result | failed(agent)


def _text(signals: int) -> str:
    return f"200 OK, {counted(signals, 'signal')}" if signals else "204 No Content"
