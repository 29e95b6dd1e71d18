"""The operations of the control socket: the daemon's side of the one-shot commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import trio

from certctrl import lean
from certctrl.agent.alerts import clear_alerts
from certctrl.agent.context import Agent
from certctrl.agent.control import Operation
from certctrl.agent.expiry_guard import request_renewal
from certctrl.agent.host_keys import awaited, forget_live_keys
from certctrl.agent.install_config import item_problems, note_idle_items
from certctrl.agent.log_lines import Line, log_line
from certctrl.agent.lost import check_disk
from certctrl.agent.poller import Poller
from certctrl.agent.reconcile import UNKNOWN_CAS, plan_resync, try_resync
from certctrl.agent.reporter import snapshot
from certctrl.agent.standing import report_standings
from certctrl.errors import PlaneError, TransportError, UsageError
from certctrl.install.deploy.names import public_names
from certctrl.install.deploy.retry_table import cert_resource
from certctrl.install.plan.render import plan_json
from certctrl.model.plan import Outcome, OutcomeKind
from certctrl.model.policy import Retirement
from certctrl.model.records import CertRecord, Retry, RetryKind, Standing
from certctrl.protocol.wire.reader import Misfit, wire_class
from certctrl.text import ascii_name

SETTLE_SECONDS = 300.0
"""How long `apply` waits for the signals of the resync and for retries."""
OPERATOR = "operator"
"""Audit-log actor for operator requests."""


@lean.frozen(kw_only=True)
class Request:
    """The arguments of all operations; each uses some of them."""

    domain: str = ""
    ca_id: int | None = None
    to: str | None = None
    """The id of a generation; None: the previous one."""
    now: bool = False
    install_config: bool = False
    scripts: bool = False


_request = wire_class(Request)


class Operations:
    """One method per operation; each takes the request object and returns plain JSON."""

    def __init__(self, agent: Agent, poller: Poller, stop: Callable[[str], None]) -> None:
        self._agent = agent
        self._poller = poller
        self._stop = stop

    async def status(self, _request: dict[str, Any]) -> Any:
        """Answer `status`."""
        await check_disk(self._agent, contents=False)  # it may be asked every second
        await note_idle_items(self._agent)
        return snapshot(self._agent)

    async def poll_now(self, _request: dict[str, Any]) -> Any:
        """Answer `poll-now` after the requested poll."""
        text = await self._poller.poll_now("the control socket")
        return {"poll": text, "cursor": self._agent.session.seen_cursor, "queue_depth": self._agent.inbox.depth}

    async def renew(self, request: dict[str, Any]) -> Any:
        """Request a renewal from the plane."""
        record = self._record(_read_request(request))
        await request_renewal(self._agent, record, "operator")
        return {"cert_id": record.cert_id, "name": record.name, "requested": True}

    async def apply(self, request: dict[str, Any]) -> Any:
        """Compare with the plane and converge; ``now``: ignore the window.

        If the plane is unreachable, converge with what is on disk.
        """
        agent, wanted = self._agent, _read_request(request)
        before = changes_so_far(agent)
        found, unreachable = await try_resync(agent, "`apply` was requested")
        await self._retry_signals(agent.retry_now())  # first handle the differences and the retries
        outcome = await agent.installer.converge_all(
            agent.items, ignore_window=wanted.now, due_now=True, asked_by=OPERATOR
        )
        if outcome.ok and failed(agent):  # perhaps for a reason that this has removed
            await self._retry_signals(agent.retry_now())
        await forget_live_keys(agent)
        agent.lifetimes_changed.value = True
        return applied(agent, outcome, before, differences=found, unreachable=unreachable) | failed(agent)

    async def _retry_signals(self, due: Sequence[Retry]) -> None:
        """Wait, up to a limit, until the inbox and the signals of these retries were tried."""
        agent = self._agent
        with trio.move_on_after(SETTLE_SECONDS):
            await agent.inbox.wait_for_outcomes(agent.inbox.entries())
            await agent.installer.retries.wait_tried(retry for retry in due if retry.signal is not None)

    async def rollback(self, request: dict[str, Any]) -> Any:
        """Switch one certificate back and hold it."""
        agent, wanted = self._agent, _read_request(request)
        record = self._record(wanted)
        outcome = await agent.installer.rollback(record.name, wanted.to, agent.items)
        agent.lifetimes_changed.value = True
        return rolled_back(agent, record, outcome)

    async def release(self, request: dict[str, Any]) -> Any:
        """Release a held certificate."""
        agent, record = self._agent, self._record(_read_request(request))
        await agent.installer.release(record.name)
        log_line(agent.log, Line.RELEASED, name=record.name)
        await try_resync(agent, "a hold was released")
        await agent.installer.converge_all(agent.items, due_now=True, asked_by=OPERATOR)
        agent.lifetimes_changed.value = True
        return {"name": record.name, "released": True}

    async def forget(self, request: dict[str, Any]) -> Any:
        """Take one certificate (``domain``) or CA (``ca_id``) out of use without asking the plane."""
        wanted = _read_request(request)
        if wanted.ca_id is not None:
            return await forget_ca(self._agent, wanted.ca_id)
        return await forget_certificate(self._agent, _domain(wanted))

    async def reset_trust(self, request: dict[str, Any]) -> Any:
        """Forget versions or pins, then fetch the current ones from the plane."""
        agent, wanted = self._agent, _read_request(request)
        result = await forget_trust(agent, install_config=wanted.install_config, scripts=wanted.scripts)
        if wanted.install_config:
            try:
                await plan_resync(agent, "trust was reset")
            except (PlaneError, TransportError) as error:
                result["plane"] = str(error)
        return result

    async def plan(self, _request: dict[str, Any]) -> Any:
        """Return what would change."""
        await check_disk(self._agent)
        plan = await self._agent.installer.plan(self._agent.items)
        return plan_json(plan, awaited(self._agent)) | {"problems": item_problems(self._agent)}

    async def stop(self, _request: dict[str, Any]) -> Any:
        """Stop the daemon in order."""
        self._stop("the control socket")
        return {"stopping": True}

    def _record(self, wanted: Request) -> CertRecord:
        return record_for(self._agent.installer.records.values(), _domain(wanted))


def operations_for(agent: Agent, poller: Poller, stop: Callable[[str], None]) -> Mapping[str, Operation]:
    """Return the operations by their names on the socket."""
    one = Operations(agent, poller, stop)
    return {
        "status": one.status,
        "poll-now": one.poll_now,
        "renew": one.renew,
        "apply": one.apply,
        "rollback": one.rollback,
        "release": one.release,
        "forget": one.forget,
        "plan": one.plan,
        "stop": one.stop,
        "trust-reset": one.reset_trust,
    }


def changes_so_far(agent: Agent) -> dict[int, tuple[str, float]]:
    """Return certificate id -> live generation, and when something of the certificate was last changed (0: unknown)."""
    changed = OutcomeKind.APPLIED
    return {
        cert_id: (one.generation, one.last_apply_at if one.last_outcome is changed else 0.0)
        for cert_id, one in agent.installer.records.items()
    }


def applied(
    agent: Agent, outcome: Outcome, before: Mapping[int, tuple[str, float]], *, differences: int, unreachable: str
) -> dict[str, Any]:
    """Return the result of an `apply` as plain JSON, including what its signals changed.

    ``before``: `changes_so_far` at its start. ``unreachable``: why the plane was not reached; empty: it was.
    """
    now, nothing = changes_so_far(agent), ("", 0.0)
    switched = any(live != before.get(i, nothing)[0] for i, (live, _) in now.items())
    written = any(at not in (0.0, before.get(i, nothing)[1]) for i, (_, at) in now.items())
    kind = OutcomeKind.APPLIED if (switched or written) and outcome.kind is OutcomeKind.UNCHANGED else outcome.kind
    result = {
        "outcome": kind.value, "detail": outcome.detail, "differences": differences,
        "problems": item_problems(agent),
    }  # fmt: skip
    return result | ({"plane": unreachable} if unreachable else {})


def failed(agent: Agent) -> dict[str, Any]:
    """Return why signals failed that are to be retried, if there are any."""
    retries = agent.installer.retries.signals()
    reasons = [retry.last_error for retry in retries if retry.kind is not RetryKind.GRACE]
    return {"failed": reasons} if reasons else {}


def rolled_back(agent: Agent, record: CertRecord, outcome: Outcome) -> dict[str, Any]:
    """Log a manual rollback and return it as plain JSON."""
    if outcome.ok:
        now = agent.installer.records[record.cert_id].generation
        log_line(agent.log, Line.ROLLED_BACK_BY_HAND, name=record.name, generation=now)
    return {"outcome": outcome.kind.value, "detail": outcome.detail, "name": record.name}


async def forget_certificate(agent: Agent, domain: str) -> dict[str, Any]:
    """Remove a certificate from this host as if it were unassigned; of two for a name, the one that the plane lacks."""
    records = sorted(agent.installer.records.values(), key=lambda record: record.standing is Standing.KNOWN)
    record = record_for(records, domain)
    outcome = await agent.installer.withdraw(record.cert_id, revoked=False, items=agent.items, how=Retirement.REMOVE)
    if outcome.ok:
        clear_alerts(agent, record.cert_id)
    agent.retry_now(cert_resource(record.cert_id))  # its unassignment has nothing more to do
    report_standings(agent)
    agent.lifetimes_changed.value = True
    done = outcome.detail or "removed"
    log_line(agent.log, Line.CERT_FORGOTTEN, cert_id=record.cert_id, name=record.name, done=done)
    result = {"outcome": outcome.kind.value, "detail": outcome.detail, "name": record.name, "cert_id": record.cert_id}
    return result | {"assigned": record.standing is Standing.KNOWN}


async def forget_ca(agent: Agent, ca_id: int) -> dict[str, Any]:
    """Remove a CA from the trust store as if it were unassigned."""
    if ca_id not in agent.installer.cas:
        known = ", ".join(map(str, sorted(agent.installer.cas))) or "none"
        raise UsageError(f"no CA {ca_id} on this host", fix=f"CAs here: {known}")
    outcome = await agent.installer.remove_ca(ca_id)
    agent.clear_problem(UNKNOWN_CAS)  # the next comparison reports the others
    log_line(agent.log, Line.CA_FORGOTTEN, ca_id=ca_id, done=outcome.detail or outcome.kind.value)
    return {"outcome": outcome.kind.value, "detail": outcome.detail, "name": f"CA {ca_id}", "assigned": False}


async def forget_trust(agent: Agent, *, install_config: bool, scripts: bool) -> dict[str, Any]:
    """Forget install config versions, script pins, or both; log it and return what was forgotten."""
    configs = await agent.offload(agent.store.installed.forget_versions) if install_config else {}
    pins = await agent.offload(agent.store.installed.forget_pins) if scripts else []
    log_line(agent.log, Line.TRUST_RESET, configs=len(configs), scripts=len(pins))
    return {"install_configs": configs, "scripts": pins}


def _read_request(request: dict[str, Any]) -> Request:
    try:
        return _request(request, "request")
    except Misfit as misfit:
        raise UsageError(str(misfit), fix="use the cert-ctrl that the daemon was started with") from None


def _domain(wanted: Request) -> str:
    if not wanted.domain:
        raise UsageError("the request has no domain", fix="give --domain")
    return wanted.domain


def record_for(records: Any, domain: str) -> CertRecord:
    """Return the record whose primary domain, name or SAN is ``domain``. Raises UsageError with the known ones."""
    wanted = ascii_name(domain.lower().rstrip("."))
    known = sorted((record for record in records if record.generation), key=lambda one: (one.outgoing, one.cert_id))
    public = public_names((record.facts, record.outgoing) for record in known)
    for test in (
        lambda record: public[record.cert_id] == wanted,
        lambda record: record.name == wanted or (record.facts.domains and record.facts.domains[0] == wanted),
        lambda record: wanted in record.facts.domains,
    ):
        for record in known:
            if test(record):
                return record  # type: ignore[no-any-return]
    names = ", ".join(sorted(record.facts.domains[0] if record.facts.domains else record.name for record in known))
    fix = f"use one of {names}" if names else "assign a certificate to this device on the control plane"
    raise UsageError(f"no certificate for {domain!r} on this host", fix=fix)
