"""Check this host's clock first: a wrong one makes certificates, tokens and TLS look broken."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs

from certctrl.cli.doctor.finding import CheckContext, Finding, Level, Report, fail
from certctrl.cli.output import duration
from certctrl.errors import CertctrlError
from certctrl.store.state import read_only

FAR_OFF_SECONDS = 3600.0
"""A clock that is off by more than this is reported before everything else."""
CLOCK_FIX = "timedatectl set-ntp true, or chronyc makestep"
_FIRST = "first correct this host's clock, then run doctor again"
_BY_TIME = ("certificate", "endpoint", "tls", "token", "plan", "daemon")
"""Checks whose problems a wrong clock explains."""

ServerDate = Callable[[str, str], Awaitable[float | None]]


async def far_off(context: CheckContext, server_date: ServerDate | None) -> Finding | None:
    """Return a failure if this host's clock is far off; None if it is not, or cannot be determined.

    ``server_date`` fetches the control plane's time; without its answer, a clock set to before the last poll is
    found.
    """
    now, true = context.now(), None
    if server_date is not None and context.config is not None:
        true = await server_date(context.config.application.server_url, context.config.httpclient.proxy)
    if true is not None:
        what = f"this host's clock is {_apart(true, now)} the control plane's"
        return fail("clock", what, CLOCK_FIX) if abs(true - now) > FAR_OFF_SECONDS else None
    try:
        last = read_only.read_last_poll(context.layout.root)
    except CertctrlError:
        return None  # reported by the check of the state files
    if last is not None and last - now > FAR_OFF_SECONDS:
        return fail("clock", f"this host's clock is at least {_apart(last, now)} the time of its last poll", CLOCK_FIX)
    return None


def blame_clock(report: Report) -> Report:
    """Return ``report`` with the clock as the fix of problems that it explains."""

    def blaming(finding: Finding) -> None:
        if finding.check == "clock":
            return  # reported already
        late = finding.check in _BY_TIME and finding.level is not Level.OK
        report(attrs.evolve(finding, fix=_FIRST) if late else finding)

    return blaming


def _apart(true: float, now: float) -> str:
    return f"{duration(abs(true - now))} {'behind' if true > now else 'ahead of'}"
