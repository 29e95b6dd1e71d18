"""Findings of the checks, and the input of the checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING

from certctrl import lean
from certctrl.errors import CertctrlError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from certctrl.model.config import AgentConfig
    from certctrl.store.disk.fs import Fs
    from certctrl.store.layout import ConfigDir
    from certctrl.store.state.store import StateStore


class Level(StrEnum):
    """Severity of a finding."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@lean.frozen(kw_only=True)
class Finding:
    """One result of a check."""

    check: str
    """Name of the check: ``permissions``, ``clock``, ``endpoint``, …"""
    level: Level
    what: str
    fix: str = ""


Report = Callable[[Finding], None]


@lean.frozen(kw_only=True)
class CheckContext:
    """Read-only input of the checks; takes no locks."""

    layout: ConfigDir
    fs: Fs
    store: StateStore
    environ: Mapping[str, str]
    now: Callable[[], float]
    config: AgentConfig | None = None
    """None if it is invalid; the check of the configuration reports that."""


def ok(check: str, what: str) -> Finding:
    """Return a finding without a problem."""
    return Finding(check=check, level=Level.OK, what=what)


def warn(check: str, what: str, fix: str) -> Finding:
    """Return a finding that may be intended."""
    return Finding(check=check, level=Level.WARN, what=what, fix=fix)


def fail(check: str, what: str, fix: str) -> Finding:
    """Return a finding that the operator has to fix."""
    return Finding(check=check, level=Level.FAIL, what=what, fix=fix)


def failed(check: str, error: CertctrlError) -> Finding:
    """Return an error as a finding."""
    return fail(check, str(error), error.fix or "check the log")


def guarded(check: str, findings: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield the findings of a check; an error becomes a finding, so that other checks continue."""
    try:
        yield from findings()
    except CertctrlError as error:
        yield failed(check, error)
    except OSError as error:
        yield fail(check, f"cannot check: {error.strerror or error}", "run as root or as the agent's user")
