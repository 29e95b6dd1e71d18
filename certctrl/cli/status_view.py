"""The output of `status`: the specification's block, then state, health, certificates and problems with fixes."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from certctrl.cli.facts import certificates, exit_status, gather
from certctrl.cli.output import ago, duration, on_terminal, reader_has_gone, remaining, write_json, write_line
from certctrl.model.status import not_deployed

if TYPE_CHECKING:
    from certctrl.cli.invocation import Invocation

WATCH_SECONDS = 1.0
MOST_IDLE = 5
"""Idle items that are printed."""
HOME_AND_CLEAR = "\x1b[H\x1b[2J"


def show_status(invoked: Invocation, *, daemon: bool = False, as_json: bool = False, watch: bool = False) -> int:
    """Print the status, every second with ``watch``; return the exit status."""
    layout = invoked.layout()
    while True:
        facts = gather(layout)
        certs = None if daemon else certificates(layout)
        if watch and not as_json and on_terminal():
            sys.stdout.write(HOME_AND_CLEAR)
        if as_json:
            write_json(status_json(facts, certs), pretty=not watch)
        else:
            for line in block(facts) + details(facts, certs):
                write_line(invoked.with_directory(line))
        if not watch or reader_has_gone():
            return exit_status(facts)
        if not as_json and not on_terminal():
            write_line()
        try:
            time.sleep(WATCH_SECONDS)
        except KeyboardInterrupt:
            return exit_status(facts)


def status_json(facts: dict[str, Any], certs: list[dict[str, Any]] | None) -> dict[str, Any]:
    """Return the status as ``--json`` prints it."""
    extra = {} if certs is None else {"certificates": certs}
    return {**facts, **extra, "exit_status": int(exit_status(facts))}


def block(facts: dict[str, Any]) -> list[str]:
    """Return the ten lines of the specification's status block."""
    now, poll, token = facts["now"], facts.get("poll") or {}, facts.get("token") or {}
    signal, retry = facts.get("last_signal"), poll.get("last_retry_after")
    return [
        f"Daemon Status: {_running(facts)}",
        f"Uptime: {duration(now - facts['started_at']) if facts['running'] and facts.get('started_at') else 'none'}",
        f"Last Poll: {_last_poll(poll, now)}",
        f"Cursor: {facts.get('cursor') or 'none'}",
        f"Poll Interval: {_interval(poll.get('interval_ms'))}",
        f"Next Poll In: {_next_poll(poll, now)}",
        f"Last Retry-After: {duration(retry) if retry else 'none'}",
        f"Queue Depth: {facts.get('queue_depth', 0)} pending signals",
        f"Token Expires: {remaining(token['expires_at'] - now) if token.get('expires_at') else 'unknown'}",
        f"Last Signal: {ago(signal['at'], now)} ({signal['type']})" if signal else "Last Signal: none",
    ]


def _running(facts: dict[str, Any]) -> str:
    if facts["running"]:
        return f"Running, but {facts['unresponsive']}" if facts.get("unresponsive") else "Running"
    if not facts["registered"]:
        return "Not running (not registered)"
    if facts.get("died"):
        return "Not running (stopped unexpectedly)"
    return f"Not running ({facts['stopped']})" if facts.get("stopped") else "Not running"


def _last_poll(poll: dict[str, Any], now: float) -> str:
    text = f" ({poll['last_text']})" if poll.get("last_text") else ""
    return f"{ago(poll['last_at'], now)}{text}" if poll.get("last_at") else f"never{text}"


def _interval(ms: int | None) -> str:
    if ms is None:
        return "unknown"
    return f"{duration(ms / 1000)} (base)" if ms >= 1000 else f"{ms} ms (base)"


def _next_poll(poll: dict[str, Any], now: float) -> str:
    if poll.get("next_at") is None:
        return "none"
    return duration(poll["next_at"] - now)


def details(facts: dict[str, Any], certs: list[dict[str, Any]] | None) -> list[str]:
    """Return the lines after the block: state, health, certificates, then problems with their fixes."""
    now = facts["now"]
    lines = [f"State: {facts.get('state', 'unknown')}" if facts["running"] else "State: none"]
    lines.append(f"Health: {facts.get('health', 'unknown') if facts['running'] else 'unknown (not running)'}")
    if facts.get("server_url"):
        lines.append(f"Server: {facts['server_url']}")
    if transport := (facts.get("poll") or {}).get("transport"):
        lines.append(f"Transport: {_transport(transport, now)}")
    if facts.get("acks_pending"):
        lines.append(f"Pending Acks: {facts['acks_pending']}")
    if certs is not None:
        lines.append(f"Certificates: {_summary(certs, now)}")
    for problem in facts.get("problems", ()):
        lines.append(f"Problem: {problem['what']} (since {ago(problem['since'], now)})".replace(" ago)", ")"))
        lines += [f"  fix: {problem['fix']}"] if problem.get("fix") else []
    for item in facts.get("stuck", ()):
        when = f"next try in {duration(item['next_try_at'] - now)}" if item.get("next_try_at") else "no next try"
        lines.append(f"Stuck: {item['item']}: {item['reason']} (attempt {item['attempts']}, {when})")
    idle = facts.get("idle_items", ())
    lines += [f"Idle: item {one['item']}: {one['reason']}" for one in idle[:MOST_IDLE]]
    lines += [f"Idle: {len(idle) - MOST_IDLE} more items"] if len(idle) > MOST_IDLE else []
    lines += [f"Not served: {one['name']}: {one['what']}" for one in facts.get("not_served", ())]
    for one in facts.get("held", ()):
        waiting = "; a newer one is staged" if one.get("staged") else ""
        lines.append(f"Held: {one['name']}, at {one['generation']} since a rollback{waiting}")
        lines.append(f"  to end it: cert-ctrl -c DIR rollback --domain {one['name']} --release")
    lines += [
        f"Awaited: {one['name']} (certificate {one['cert_id']}): {not_deployed(one)}"
        for one in facts.get("awaited", ())
    ]
    for signal in facts.get("quarantined", ()):
        lines.append(f"Quarantined: {signal['type']}, ts={signal['ts_ms']}: {signal.get('reason', '')}")
        lines.append("  fix: fix the reason, then run cert-ctrl -c DIR apply --now")
    if not facts["running"]:
        lines.append(f"  fix: {_start_hint(facts)}")
    return lines


def _transport(transport: dict[str, Any], now: float) -> str:
    uses = f"{transport.get('uses')}, for {duration(now - transport['since'])}"
    if not transport.get("why"):
        return uses
    tries = transport.get("next_try_at")
    again = f"; next try in {duration(max(tries - now, 0.0))}" if tries else ""
    return f"{uses}; no push: {transport['why']}{again}"


def _start_hint(facts: dict[str, Any]) -> str:
    if exit_status(facts) == 77:
        return "cert-ctrl -c DIR register, then start the daemon"
    return "systemctl start cert-ctrl, or cert-ctrl -c DIR --keep-running; if it ends, cert-ctrl -c DIR doctor says why"


def _summary(certs: list[dict[str, Any]], now: float) -> str:
    live = [row for row in certs if row.get("generation")]
    if not live:
        return "none deployed"
    first = min(live, key=lambda row: float(row["not_after"]))
    return f"{len(live)} deployed, {first['name']} expires first: {remaining(first['not_after'] - now)}"
