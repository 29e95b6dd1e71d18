"""Check the auditor: it finds each of these seeded mistakes within a few histories.

A mistake missed here would be missed everywhere, so a weakened auditor fails.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import attrs
import pytest
import trio
from simulation.history import run_history, setting_for
from simulation.journal import Violation

from certctrl.agent import fetches, handlers, inbox, tokens
from certctrl.agent.context import Agent
from certctrl.errors import DiskError
from certctrl.install.plan import retries
from certctrl.model.certificate import CertificateSummary
from certctrl.model.plan import Deployed, Outcome, OutcomeKind
from certctrl.model.signals import CertRenewed
from certctrl.plane.certificates.revisions import ListedRow, Revision
from certctrl.protocol import events
from certctrl.protocol.wire.certificate_changes import KnownList
from certctrl.store.deployments import generations
from certctrl.store.disk.atomic import write_atomic
from certctrl.store.disk.fs import Fs
from certctrl.store.layout import ConfigDir

HISTORIES = 150
"""Histories per mistake; most need one or two."""


class Mistake:
    """A patch of the agent, and the settings under which it shows."""

    def __init__(self, name: str, value: object, **emphasis: float) -> None:
        self.name, self.value, self.emphasis = name, value, emphasis


async def cursor_first(self: Any, step: Any) -> Any:
    """Commit the cursor on receipt, before the signals are durable."""
    try:
        if step.cursor is not None:
            await self.agent.offload(self.agent.store.session.save_cursor, step.cursor)
        self.agent.admit(step.signals)
        await self.agent.inbox.secure()
    except DiskError as error:
        return events.DeliverFailed(str(error))
    return events.Delivered()


async def never_secure(self: Any) -> None:
    self._unsafe.clear()
    await trio.lowlevel.checkpoint()


def unsynced_inbox(self: Any, entries: Any) -> None:
    write_atomic(self._fs, self.layout.inbox, inbox_bytes(entries), durable=False)


def inbox_bytes(entries: Any) -> bytes:
    from certctrl.model.signals import to_wire
    from certctrl.store.decode import to_json

    return to_json({"entries": [{"signal": to_wire(entry.signal)} for entry in entries]})


async def forgetful_superseding(self: Any, entries: Any) -> None:
    for entry in entries:
        self.agent.inbox._entries.pop(inbox.identity(entry.signal), None)


async def ack_before_effect(agent: Agent, signal: CertRenewed) -> Outcome:
    summary = await agent.authorized(lambda token: agent.plane.fetch_certificate(token, signal.cert_id))
    served = handlers_deployed(signal.cert_id, summary)
    return Outcome(kind=OutcomeKind.APPLIED, deployed=(served,))


def handlers_deployed(cert_id: int, summary: CertificateSummary) -> Deployed:
    return Deployed(
        cert_id=cert_id, serial=summary.serial_number, fingerprint_sha256=summary.fingerprint_sha256,
        targets=(f"/x/{summary.domain_name}.crt",),
    )  # fmt: skip


async def acks_without_retry(agent: Agent) -> events.AcksSent:
    from certctrl.agent.acks import _post

    while notices := agent.inbox.next_acks(100):
        with contextlib.suppress(Exception):
            await agent.authorized(lambda token, notices=notices: _post(agent, notices, token))
        agent.inbox.sent(notices)
    return events.AcksSent()


class NoLock:
    """A lock that does not lock."""

    async def __aenter__(self) -> None:
        await trio.lowlevel.checkpoint()

    async def __aexit__(self, *error: object) -> None:
        return None

    def release(self) -> None:
        return None


async def no_lock(layout: ConfigDir, fs: Fs | None = None) -> NoLock:
    await trio.lowlevel.checkpoint()
    return NoLock()


def unlocked_init(init: Callable[..., None]) -> Callable[..., None]:
    def made(self: Any, **given: Any) -> None:
        init(self, **given)
        self._flight = NoLock()

    return made


def impatient(self: Any, retry_after: float | None, now: float, **more: bool) -> bool:
    self.breaker.failures += 1
    self.plan(now + 1.0, "backoff")
    return False


def eager(before: Any, failure: Any, now: float, **more: Any) -> Any:
    return attrs.evolve(AFTER_FAILURE(before, failure, now, **more), next_try_at=now + 3.0)


def by_the_wall_clock(self: Any, key: str) -> float:
    retry = self.rows().get(key)
    return max(0.0, retry.next_try_at - self.wall_now()) if retry is not None else 0.0


def changed_identity(identify: Callable[..., str]) -> Callable[..., str]:
    numbers = itertools.count()
    return lambda hashes, facts: identify(hashes, {**facts, "n": next(numbers)})


async def never(agent: Agent) -> None:
    await trio.sleep_forever()


async def fragile_status(agent: Agent, status: object) -> None:
    await agent.offload(agent.store.installed.save_status, status)


async def kept_fetch(self: Any, cert_id: int) -> Any:
    """Keep each material for later signals, too."""
    kept = self.__dict__.setdefault("kept", {})
    if cert_id not in kept:
        kept[cert_id] = await FETCH(self, cert_id)
    return kept[cert_id]


def any_key(der: bytes, leaf: object) -> bytes:
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_der_private_key,
    )  # fmt: skip

    return load_der_private_key(der, None).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def of_ids(_: Any, rows: Any, parts: int) -> Revision:
    return REVISION_OF([ListedRow(row.id, b"") for row in rows], parts)


REVISION_OF = Revision.of
KEEPER = tokens.TokenKeeper
AFTER_FAILURE = retries.after_failure
FETCH = fetches.Fetches.fetch
MISTAKES: dict[str, list[Mistake]] = {
    "the cursor is saved before the inbox": [
        Mistake("certctrl.agent.poller.Poller._deliver", cursor_first, kill_soon=12, renew=3)
    ],
    "signals that take long are not written": [Mistake("certctrl.agent.inbox.Inbox.secure", never_secure)],
    "materials are kept for later signals": [Mistake("certctrl.agent.fetches.Fetches.fetch", kept_fetch, renew=5)],
    "the inbox is not synced": [Mistake("certctrl.store.state.session.SessionState.save_inbox", unsynced_inbox)],
    "superseded signals are forgotten": [
        Mistake("certctrl.agent.dispatcher.Dispatcher._finish_superseded", forgetful_superseding, burst=5)
    ],
    "the ack comes before the effect": [
        Mistake("certctrl.agent.handlers.HANDLERS", handlers.HANDLERS | {"cert.renewed": ack_before_effect})
    ],
    "the switch is not synced": [Mistake("certctrl.store.deployments.generations.sync_all", lambda fs, handles: None)],
    "outcomes that could not be sent are dropped": [
        Mistake("certctrl.agent.poller.flush_acks", acks_without_retry, plane_down=4)
    ],
    "refreshes are not single-flight": [
        Mistake("certctrl.agent.token_refresh.wait_for_token_lock", no_lock, burst=4, bad_answers=4),
        Mistake("certctrl.agent.tokens.TokenKeeper.__init__", unlocked_init(KEEPER.__init__)),
    ],
    "there is neither breaker nor backoff": [
        Mistake("certctrl.protocol.schedule.Schedule.after_failure", impatient, plane_down=4),
        Mistake("certctrl.protocol.schedule.Schedule.due_at", lambda self, *, poll: self.due),
    ],
    "Retry-After is not obeyed": [
        Mistake("certctrl.protocol.breaker.CircuitBreaker.server_delay", lambda self, asked: 1.0, bad_answers=40)
    ],
    "retries of a signal do not slow down": [
        Mistake("certctrl.install.deploy.retry_table.after_failure", eager, plane_down=5, renew=3)
    ],
    "a clock that was ahead is believed forever": [
        Mistake(
            "certctrl.install.deploy.retry_table.RetryTable.left",
            by_the_wall_clock,
            clock_jump=12,
            plane_down=6,
            bad_connections=3,
            renew=4,
        ),
    ],
    "equal material is a new generation": [
        Mistake("certctrl.store.deployments.generations.identify", changed_identity(generations.identify), send_again=5)
    ],
    "the host is never compared with the plane": [
        Mistake("certctrl.agent.run.reconcile_forever", never, mischief=10, renew=3)
    ],
    "a status file that cannot be written ends the daemon": [
        Mistake("certctrl.agent.reporter.save_status", fragile_status, report_disk_problem=4)
    ],
    "certificates that were removed stay in the known list": [
        Mistake(
            "certctrl.protocol.wire.certificate_changes.KnownList.after",
            lambda self, page, replaced: KnownList(page.revision, {**self.rows, **page.rows}, self.whole_at),
            unassign=12,
            issue=3,
        )
    ],
    "a revision does not depend on the certificates": [
        Mistake("certctrl.plane.certificates.revisions.Revision.of", classmethod(of_ids), mischief=10, renew=3)
    ],
    "an ETag of material does not depend on the certificate, and the agent believes it": [
        Mistake("certctrl.plane.certificates.views._WithKey.digest", property(lambda self: b"same"), renew=6),
        Mistake("certctrl.agent.materials.is_serial", lambda announced, live: True),
    ],
    "certificates of an atomic batch are switched one by one": [
        Mistake("certctrl.agent.batches.ReadyCertificate.atomic_batch", "", renew_together=8, reload_fails=4)
    ],
    "key and certificate are not compared": [
        Mistake("certctrl.install.material.bundle.checked_key_pem", any_key, issue=4)
    ],
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found_within_a_few_histories(name: str) -> None:
    emphasis = {action: factor for one in MISTAKES[name] for action, factor in one.emphasis.items()}
    with mistaken(MISTAKES[name]):
        for seed in range(1, HISTORIES + 1):
            try:
                run_history(seed, attrs.evolve(setting_for(seed), emphasis=emphasis))
            except Violation as violation:
                assert str(violation).startswith(("Violation: ", "DiskError: ")), "the mistake itself is broken"
                return
    pytest.fail(f"{HISTORIES} histories did not notice that {name}")


@contextlib.contextmanager
def mistaken(mistakes: list[Mistake]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for one in mistakes:
            stack.enter_context(patch(one.name, one.value))
        yield
