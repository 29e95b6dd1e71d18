"""Run the daemon: its only nursery tree. Read this first.

The nesting is the shutdown order::

    daemon lock, store, HTTP client                 closed last
    └ services    token keeper, OS signals, control socket, reporter, expiry guard, reconcile, challenges, push, watchdog
      └ handlers  dispatcher and its per-signal tasks, batches; get `stop_grace_seconds` after the stop
        └ intake  poller; cancelled FIRST

Stop = cancel *intake* → the dispatcher is closed: it starts nothing new and ends when running work has ended, or at
the grace deadline → pending acks are flushed under a shielded timeout → services are cancelled → the client is closed.
All of it takes at most `stop_grace_seconds` and two seconds, even if no packet reaches the plane: see
``Agent.grace_ends``. Unhandled signals are safe in the inbox. The inbox is also the queue: no channel holds a second
copy.

Rejected: one flat nursery (everything ends together, half-done reloads are killed); a stop flag polled by
every task (each forgets it somewhere); raising to stop (an exception across a nursery is a bug here).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import trio

from certctrl.agent.acks import announce, flush_acks
from certctrl.agent.alert_watch import alert_forever
from certctrl.agent.alerts import ENDED, raise_alert, write_or_report
from certctrl.agent.context import Agent
from certctrl.agent.control import Operation, serve_control
from certctrl.agent.dispatcher import Dispatcher
from certctrl.agent.expiry_guard import guard_expiry
from certctrl.agent.log_lines import Line, log_line
from certctrl.agent.os_signals import OnSignal, watch_os_signals
from certctrl.agent.package_guard import stop_if_replaced
from certctrl.agent.poller import Poller
from certctrl.agent.push_mode import PushMode
from certctrl.agent.reconcile import reconcile_forever
from certctrl.agent.reload import Reloader
from certctrl.agent.reporter import report_forever, save_status, snapshot
from certctrl.agent.retries import retry_forever, watch_clock
from certctrl.agent.serving import report_serving
from certctrl.agent.setup import Seams, open_agent
from certctrl.agent.standing import recover
from certctrl.agent.systemd import Notifier, feed_watchdog
from certctrl.errors import DiskError, NotRegisteredError
from certctrl.model.status import StopReason
from certctrl.model.stop import Stop

ACK_FLUSH_SECONDS = 5.0
END_ALERT_SECONDS = 30.0
"""Seconds that the alert of a session's end may take: less than systemd waits for a stop."""
METRICS_EXTRA = "pip install 'certctrl[metrics]', then restart the daemon"


async def run_agent(
    config_dir: Path,
    *,
    os_signals: bool = True,
    seams: Seams | None = None,
    task_status: trio.TaskStatus[Agent] = trio.TASK_STATUS_IGNORED,
) -> Stop:
    """Run the daemon until it is stopped or its session ends; return why.

    ``nursery.start`` returns the Agent once recovery is complete and the control socket answers: readiness needs no
    network. Raises ConfigError, NotRegisteredError, BusyError, DiskError before that.
    """
    seams = seams or Seams()
    async with open_agent(config_dir, seams) as agent:
        notifier = Notifier(seams.environ)
        await recover(agent)
        await announce(agent)
        stop = await _run_services(agent, notifier, os_signals, task_status)
        log_line(agent.log, Line.AGENT_STOPPED, reason=f"{stop.reason.value} {stop.detail}".strip())
        await save_status(agent, snapshot(agent) | {"running": False, "stopped": stop.reason.value})
        return stop


async def _run_services(
    agent: Agent, notifier: Notifier, os_signals: bool, task_status: trio.TaskStatus[Agent]
) -> Stop:
    everything = trio.CancelScope()
    poller, reloader = Poller(agent), Reloader(agent, notifier)
    on = _on_signal(agent, notifier, poller, reloader, everything)
    with everything:
        async with trio.open_nursery() as services:
            if os_signals:
                await services.start(watch_os_signals, on)

            def operations() -> Mapping[str, Operation]:
                from certctrl.agent.operations import operations_for  # here: most daemons are never asked

                return operations_for(agent, poller, on.stop)

            control = partial(serve_control, agent.fs, agent.layout.control_socket, operations, agent.log)
            await services.start(partial(_serve, agent, control))
            for service in _services():
                services.start_soon(_serve, agent, service, agent)
            for with_notifier in (partial(report_forever, agent), feed_watchdog):
                services.start_soon(_serve, agent, with_notifier, notifier)
            services.start_soon(_serve, agent, reloader.reload_forever)
            log_line(
                agent.log,
                Line.AGENT_READY,
                mode=agent.config.application.poll_mode,
                interval=f"{agent.config.application.poll_interval_ms} ms",
            )
            notifier.ready(f"polling {agent.config.application.server_url}")
            task_status.started(agent)
            await _run_handlers(agent, poller, Dispatcher(agent))
            await _alert_of_end(agent)
            services.cancel_scope.cancel()
    return agent.stop or Stop(StopReason.ASKED, "cancelled")


async def _serve(agent: Agent, service: Callable[..., Awaitable[None]], *args: Any, **status: Any) -> None:
    """Run a part of the daemon; a replaced package starts the orderly stop instead of ending all others."""
    try:
        await service(*args, **status)
    except BaseException as error:
        stop_if_replaced(agent, error)


def _on_signal(
    agent: Agent, notifier: Notifier, poller: Poller, reloader: Reloader, everything: trio.CancelScope
) -> OnSignal:
    def log_signal(name: str) -> None:
        log_line(agent.log, Line.OS_SIGNAL, name=name)

    def stop(why: str) -> None:
        log_signal(why)
        log_line(agent.log, Line.AGENT_STOPPING, reason=why, grace=agent.config.application.stop_grace_seconds)
        notifier.stopping(why)
        agent.stop_with(Stop(StopReason.ASKED, why))

    def cancel() -> None:
        log_line(agent.log, Line.AGENT_STOP_NOW)
        everything.cancel()

    def reload() -> None:
        log_signal("SIGHUP")
        reloader.request()

    return OnSignal(stop=stop, cancel=cancel, reload=reload, poll_now=lambda: poller.request_poll("SIGUSR1"))


async def _run_handlers(agent: Agent, poller: Poller, dispatcher: Dispatcher) -> None:
    async with trio.open_nursery() as handlers:
        batches = partial(agent.batches.run_batches, dispatcher.finish_batch, dispatcher.batch_interrupted)
        for work in (batches, partial(dispatcher.dispatch_forever, handlers.cancel_scope)):
            handlers.start_soon(_serve, agent, work)
        with agent.intake:
            try:
                agent.stop_with(await poller.poll_forever())
            except BaseException as error:
                stop_if_replaced(agent, error)
        dispatcher.close()
        handlers.cancel_scope.deadline = agent.grace_ends
    if agent.stop is None or agent.stop.reason is StopReason.ASKED:
        with trio.CancelScope(shield=True) as flush:
            flush.deadline = min(trio.current_time() + ACK_FLUSH_SECONDS, agent.last_exchange_at)
            try:
                await flush_acks(agent)
            except BaseException as error:
                stop_if_replaced(agent, error)
    with trio.CancelScope(shield=True):
        await write_or_report(agent, agent.inbox.close())


async def _alert_of_end(agent: Agent) -> None:
    """Raise an alert if the session has ended: no renewal arrives any longer, and no one may look at this host."""
    stop = agent.stop
    if stop is None or stop.reason not in (StopReason.REVOKED, StopReason.REFRESH_REFUSED):
        return
    why = ": ".join(filter(None, (stop.reason.value, stop.detail)))
    what = f"the session with the control plane has ended, so no renewal arrives: {why}"
    with trio.move_on_after(END_ALERT_SECONDS):
        await raise_alert(agent, ENDED, what, "cert-ctrl register, once this host may have certificates again")


async def keep_tokens_fresh(agent: Agent) -> None:
    """Refresh the access token before it expires, until cancelled; a refused refresh ends the session."""
    try:
        await agent.tokens.keep_token_fresh()
    except NotRegisteredError as error:
        agent.counters.token_refreshes["refused"] += 1
        agent.stop_with(Stop(StopReason.REFRESH_REFUSED, str(error)))


async def publish_metrics_if_enabled(agent: Agent) -> None:
    """Publish metrics if the configuration says so; a failure disables metrics and nothing else."""
    settings = agent.config.application
    if not settings.metrics_listen and not settings.metrics_textfile:
        return
    try:
        from certctrl.agent.metrics import publish_metrics  # imports prometheus_client: only if enabled
    except ImportError as error:
        log_line(agent.log, Line.METRICS_FAILED, why=error)
        agent.report_problem("metrics", f"metrics are disabled: {error}", METRICS_EXTRA)
        return
    await publish_metrics(agent)


async def run_push(agent: Agent) -> None:
    """Own the sockets of push mode until cancelled; then close each with 1001 (going away)."""
    async with trio.open_nursery() as nursery:

        def open_push() -> PushMode:
            from certctrl.agent.push import Push  # here: most agents do not use push

            return Push(agent, nursery)

        agent.open_push = open_push
        try:
            await trio.sleep_forever()
        finally:
            agent.open_push = None


async def answer_challenges(agent: Agent) -> None:
    """Publish the answers of an earlier run again, and withdraw each answer in time, until cancelled."""
    answers = agent.challenges
    async with trio.open_nursery() as nursery:
        answers.nursery = nursery
        try:
            if not _may_have_answers(agent):
                await answers.changed.wait_value(True)
            from certctrl.agent.challenges import manage_forever  # here: few hosts have challenges

            await manage_forever(agent)
        finally:
            answers.nursery = None


def _may_have_answers(agent: Agent) -> bool:
    try:
        return agent.fs.lstat(agent.layout.challenges) is not None
    except DiskError:  # reported by what reads it
        return True


def _services() -> tuple[Callable[[Agent], Awaitable[None]], ...]:
    """Return the parts of the daemon that need nothing but the agent."""
    return (
        keep_tokens_fresh,
        guard_expiry,
        reconcile_forever,
        retry_forever,
        watch_clock,
        alert_forever,
        answer_challenges,
        run_push,
        report_serving,
        publish_metrics_if_enabled,
    )
