"""Answer certificate authorities on this host while they may ask, as policy.json allows.

An answer is recorded on disk before it is published, so that a crash leaves nothing behind: the next start withdraws
expired answers and publishes the others again. The control plane ends an answer; at the latest, it expires by this
host's clock. Listeners are open only while there is a challenge for them.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import attrs
import trio

from certctrl.agent.context import Agent
from certctrl.agent.log_lines import Line, log_line
from certctrl.errors import CertctrlError, PolicyRefusedError
from certctrl.model.challenges import MAX_CHALLENGES, MAX_LIFE, Challenge, ChallengeKind, covers
from certctrl.model.config import listen_address
from certctrl.model.policy import AcmeAnswers
from certctrl.store.disk.atomic import temp_name
from certctrl.store.disk.fs import closing
from certctrl.store.disk.token_files import remove_token_file, write_token_file
from certctrl.store.layout import SECRET_MODE

MAX_WAIT = 60.0
"""Seconds until expiry is checked again while there are challenges: wall clocks jump."""
PROBLEM = "challenges"


def refusal(policy: AcmeAnswers, kind: ChallengeKind, identifier: str) -> str:
    """Return why this host does not answer a challenge, for operators; empty: it does."""
    places = [policy.http01_directory, policy.http01_listen]
    keys = "http01_directory or http01_listen"
    if kind is ChallengeKind.TLS_ALPN_01:
        places, keys = [policy.tls_alpn01_listen], "tls_alpn01_listen"
    if not any(places):
        return f"this host does not answer {kind.value} challenges; to allow it, set acme.{keys} in policy.json"
    if not covers(policy.names, identifier):
        return (
            f"this host does not answer challenges for {identifier}; to allow it, add it to acme.names in policy.json"
        )
    return ""


async def start_answering(agent: Agent, challenge: Challenge) -> str:
    """Answer a challenge from now on; return where. Raises PolicyRefusedError, DiskError."""
    async with agent.challenges.lock:
        await _load(agent)
        answers = agent.challenges
        before = answers.active.get(challenge.key)
        if before is not None and not _is_same(before, challenge):
            await _withdraw(agent, before)
            before = None
        if before is None and len(answers.active) >= MAX_CHALLENGES:
            raise PolicyRefusedError(
                f"this host answers {MAX_CHALLENGES} challenges already", fix="wait until some of them end"
            )
        if before is not None and before.directory:  # its file is there
            challenge = attrs.evolve(challenge, directory=before.directory)
        answers.active[challenge.key] = challenge
        try:
            await _save(agent)
            where = await _publish(agent, challenge)
            answers.unpublished.discard(challenge.key)
        except BaseException:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5), suppress(CertctrlError):
                await _withdraw(agent, challenge)
            raise
        answers.changed.value = True
        log_line(agent.log, Line.CHALLENGE_STARTED, kind=challenge.kind.value, name=challenge.identifier, where=where)
        return where


def _is_same(one: Challenge, other: Challenge) -> bool:
    return (one.key_authorization, one.identifier) == (other.key_authorization, other.identifier)


async def stop_answering(agent: Agent, kind: ChallengeKind, token: str) -> bool:
    """Withdraw an answer; False if there is none. Raises PolicyRefusedError, DiskError."""
    async with agent.challenges.lock:
        await _load(agent)
        found = agent.challenges.active.get((kind, token))
        if found is None:
            return False
        await _withdraw(agent, found)
        log_line(agent.log, Line.CHALLENGE_ENDED, kind=kind.value, name=found.identifier, why="the control plane asked")
        return True


async def manage_forever(agent: Agent) -> None:
    """Publish the answers of an interrupted run again, and withdraw each answer in time, until cancelled."""
    answers = agent.challenges
    while True:
        await _reporting(agent, _update)
        with trio.move_on_after(_pause(agent)):
            await answers.changed.wait_value(True)
        answers.changed.value = False


def _pause(agent: Agent) -> float:
    if not agent.challenges.active and PROBLEM not in agent.problems:
        return float("inf")
    first = min((one.until for one in agent.challenges.active.values()), default=float("inf"))
    return min(max(1.0, first - agent.wall_now()), MAX_WAIT)


async def tidy_answers(agent: Agent) -> None:
    """Withdraw the answers that have ended, and report failures (one-shot commands)."""
    await _reporting(agent, withdraw_ended)


async def _update(agent: Agent) -> None:
    """Withdraw ended answers, and publish those of an earlier run. Tries all, then raises as `stop_answering`."""
    failed: CertctrlError | None = None
    for call in (withdraw_ended, _publish_again):
        try:
            await call(agent)
        except CertctrlError as error:
            failed = failed or error
    if failed is not None:
        raise failed


async def withdraw_ended(agent: Agent) -> None:
    """Withdraw the answers that have expired or that the policy no longer allows. Raises as `stop_answering`."""
    async with agent.challenges.lock:
        await _load(agent)
        failed: CertctrlError | None = None
        for one in [*agent.challenges.active.values()]:
            expired = one.until <= agent.wall_now() or one.until > agent.wall_now() + 2 * MAX_LIFE  # the clock was set
            why = "it expired" if expired else _no_longer_allowed(agent, one)
            try:
                if why:
                    await _withdraw(agent, one)
                    log_line(agent.log, Line.CHALLENGE_ENDED, kind=one.kind.value, name=one.identifier, why=why)
            except CertctrlError as error:
                failed = failed or error
        if failed is not None:
            raise failed


def _no_longer_allowed(agent: Agent, challenge: Challenge) -> str:
    """Return why the current policy does not allow an answer at its place; empty: it does."""
    policy, place = agent.policy.acme, challenge.directory
    if why := refusal(policy, challenge.kind, challenge.identifier):
        return why
    allowed = policy.http01_directory if place else _address(policy, challenge.kind)
    place = place or agent.challenges.addresses.get(challenge.kind, allowed or "a listener")
    return "" if place == allowed else f"policy.json no longer allows {place}"


def _address(policy: AcmeAnswers, kind: ChallengeKind) -> str:
    return (policy.http01_listen if kind is ChallengeKind.HTTP_01 else policy.tls_alpn01_listen) or ""


async def _publish_again(agent: Agent) -> None:
    """Publish the answers of an earlier run that have not ended. Tries all, then raises as `stop_answering`."""
    async with agent.challenges.lock:
        answers = agent.challenges
        await _load(agent)
        failed: CertctrlError | None = None
        for key in [*answers.unpublished]:
            one = answers.active[key]
            try:
                if one.until > agent.wall_now() and not _no_longer_allowed(agent, one):
                    await _publish(agent, one)
                answers.unpublished.discard(key)
            except CertctrlError as error:
                failed = failed or error
        if failed is not None:
            raise failed


async def _reporting(agent: Agent, call: Callable[[Agent], Any]) -> None:
    try:
        await call(agent)
    except CertctrlError as error:
        if agent.report_problem(PROBLEM, str(error), error.fix or ""):
            log_line(agent.log, Line.CHALLENGE_TROUBLE, why=error)
    else:
        agent.clear_problem(PROBLEM)


async def _load(agent: Agent) -> None:
    """Read the record once. Raises DiskError, StateCorruptError."""
    answers = agent.challenges
    if not answers.is_loaded:
        found = await agent.offload(agent.store.session.load_challenges)
        answers.active |= {one.key: one for one in found[:MAX_CHALLENGES]}
        answers.unpublished |= answers.active.keys()
        answers.is_loaded = True


async def _save(agent: Agent) -> None:
    await agent.offload(agent.store.session.save_challenges, tuple(agent.challenges.active.values()))


async def _publish(agent: Agent, challenge: Challenge) -> str:
    """Publish an answer whose record is durable; return where."""
    if challenge.directory:
        data = challenge.key_authorization.encode("ascii")
        await agent.offload(write_token_file, agent.fs, challenge.directory, challenge.token, data)
        return challenge.directory
    if challenge.kind is ChallengeKind.TLS_ALPN_01 and challenge.token not in agent.challenges.contexts:
        agent.challenges.contexts[challenge.token] = await agent.offload(_context_of, agent, challenge)
    return await _listen(agent, challenge.kind)


def _context_of(agent: Agent, challenge: Challenge) -> ssl.SSLContext:
    """Return the TLS context of a challenge. Python reads keys only from files: a temporary one, removed afterwards."""
    from certctrl.net.tls_alpn import challenge_context, challenge_pem  # here: few hosts have such challenges

    pem = challenge_pem(challenge.identifier, challenge.key_authorization, agent.wall_now())
    path = agent.layout.state / temp_name(agent.fs, "challenge")
    handle = agent.fs.create(path, SECRET_MODE)
    try:
        with closing(agent.fs, handle):
            agent.fs.write(handle, pem)
        return challenge_context(str(path))
    finally:
        agent.fs.unlink(path)


async def _listen(agent: Agent, kind: ChallengeKind) -> str:
    """Open the listener of a kind if it is not open; return its address."""
    answers, address = agent.challenges, _address(agent.policy.acme, kind)
    if answers.nursery is None:
        raise PolicyRefusedError("no daemon runs here that could listen", fix="systemctl start cert-ctrl")
    if kind not in answers.listeners:
        try:
            host, port = listen_address(address, public=True)
            await answers.nursery.start(_serve, agent, kind, None if host == "::" else host, port)
            answers.addresses[kind] = address
        except OSError as error:
            fix = "let the web server answer: set acme.http01_directory in policy.json"
            if kind is ChallengeKind.TLS_ALPN_01:
                fix = "name another address as acme.tls_alpn01_listen in policy.json, to which port 443 is forwarded"
            what = f"cannot listen on {address}: {error.strerror or error}"
            raise PolicyRefusedError(what, fix=fix) from None
    return address


async def _serve(
    agent: Agent, kind: ChallengeKind, host: str | None, port: int, *, task_status: trio.TaskStatus[Any]
) -> None:
    from certctrl.net.challenge_listener import listen_http01  # here: most daemons never listen
    from certctrl.net.tls_alpn import listen_tls_alpn01

    answers = agent.challenges
    serve = partial(listen_http01, host, port, answers.over_http)
    if kind is ChallengeKind.TLS_ALPN_01:
        serve = partial(listen_tls_alpn01, host, port, answers.over_tls)
    with trio.CancelScope() as scope:
        answers.listeners[kind] = scope
        try:
            await serve(task_status=task_status)
        finally:
            if answers.listeners.get(kind) is scope:
                del answers.listeners[kind]
                answers.addresses.pop(kind, None)


async def _withdraw(agent: Agent, challenge: Challenge) -> None:
    """Remove an answer, and then its record; close the listeners that are no longer needed."""
    answers = agent.challenges
    if challenge.directory:
        data = challenge.key_authorization.encode("ascii")
        await agent.offload(remove_token_file, agent.fs, challenge.directory, challenge.token, data)
    answers.contexts.pop(challenge.token, None)
    answers.active.pop(challenge.key, None)
    answers.unpublished.discard(challenge.key)
    needed = {one.kind for one in answers.active.values() if not one.directory}
    for kind in [kind for kind in answers.listeners if kind not in needed]:
        answers.listeners.pop(kind).cancel()
        answers.addresses.pop(kind, None)
    await _save(agent)
