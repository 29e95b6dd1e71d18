"""The data of `status` and `list-certs`: from the daemon, otherwise from disk. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from certctrl.cli.control import ask
from certctrl.errors import BusyError, ExitStatus
from certctrl.model.status import Health, StopReason
from certctrl.store.state import read_only
from certctrl.text import ascii_name

if TYPE_CHECKING:
    from certctrl.store.layout import ConfigDir

ANSWER_SECONDS = 5.0


def gather(layout: ConfigDir) -> dict[str, Any]:
    """Return the status as plain JSON: from the daemon, or from its files with ``running`` false.

    If the daemon does not answer in time, the data come from its files and ``unresponsive`` says so.
    """
    problem = ""
    try:
        reply = ask(layout, "status", seconds=ANSWER_SECONDS)
    except BusyError as error:
        reply, problem = None, str(error)
    if reply is not None:
        return {**reply.data, "source": "daemon", "registered": True}
    facts = _from_disk(layout)
    return facts if not problem else facts | {"running": True, "unresponsive": problem, "health": Health.DEGRADED.value}


def _from_disk(layout: ConfigDir) -> dict[str, Any]:
    from certctrl.agent.clock import wall_now

    root = layout.root
    last = read_only.read_status(root) or {}
    poll = dict(last.get("poll") or {})
    poll |= {"last_at": max(poll.get("last_at") or 0.0, read_only.read_last_poll(root) or 0.0) or None, "next_at": None}
    return {
        **last,
        "source": "disk",
        "running": False,
        "died": bool(last.get("running")),
        "now": wall_now(),
        "registered": read_only.is_registered(root),
        "poll": poll,
        "cursor": read_only.read_cursor(root),
        "cursor_at": read_only.read_cursor_at(root),
        "device_id": read_only.read_device_id(root),
        "queue_depth": read_only.waiting_signals(root),
        "acks_pending": read_only.pending_acks(root),
        "awaited": awaited(layout),
    }


def exit_status(status: dict[str, Any]) -> ExitStatus:
    """Return the exit status: 0 healthy, 1 degraded or stale, 3 not running, 77 not registered or revoked."""
    if not status["registered"]:
        return ExitStatus.NOT_REGISTERED
    if not status["running"]:
        stopped = status.get("stopped")
        ended = StopReason(stopped).exit_status if stopped in list(StopReason) else ExitStatus.DONE
        return ExitStatus.NOT_RUNNING if ended is ExitStatus.DONE else ended
    health = status.get("health")
    return Health(health).exit_status if health in list(Health) else ExitStatus.FAILED


def certificates(layout: ConfigDir) -> list[dict[str, Any]]:
    """Return the recorded facts of this host's certificates, ordered by id."""
    return read_only.read_certificates(layout.root) or []


def awaited(layout: ConfigDir) -> list[dict[str, Any]]:
    """Return the certificates whose keys this host has made and that are not deployed yet, ordered by id."""
    return read_only.read_staged_keys(layout.root)


def past_deployments(layout: ConfigDir) -> list[dict[str, Any]]:
    """Return the entries of the audit log, oldest first."""
    from certctrl.store.disk.fs import RealFs
    from certctrl.store.state.installed import InstalledState

    return InstalledState(layout, RealFs()).load_history()


def covers(row: dict[str, Any], domain: str) -> bool:
    """Whether a certificate is deployed and has this name or DNS name."""
    wanted = ascii_name(domain.lower().rstrip("."))
    return bool(row.get("generation")) and (row["name"] == wanted or wanted in row.get("domains", ()))
