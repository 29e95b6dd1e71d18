"""Findings: what one check says, and how a check that fails in the middle becomes one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING

import attrs

from certctrl.errors import CertctrlError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from certctrl.model.config import AgentConfig
    from certctrl.store.disk.fs import Fs
    from certctrl.store.layout import ConfigDir
    from certctrl.store.state.session import StateStore


class Level(StrEnum):
    """How much a finding matters."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@attrs.frozen(kw_only=True)
class Finding:
    """One line of the doctor's report."""

    check: str
    """One word: ``permissions``, ``clock``, ``endpoint``, …"""
    level: Level
    what: str
    fix: str = ""


Report = Callable[[Finding], None]


@attrs.frozen(kw_only=True)
class CheckContext:
    """What the checks look at; nothing is locked and nothing is changed."""

    layout: ConfigDir
    fs: Fs
    store: StateStore
    environ: Mapping[str, str]
    now: Callable[[], float]
    config: AgentConfig | None = None
    """None: it cannot be read, which is a finding of its own."""


def ok(check: str, what: str) -> Finding:
    """Return a finding that needs nothing."""
    return Finding(check=check, level=Level.OK, what=what)


def warn(check: str, what: str, fix: str) -> Finding:
    """Return a finding that may be meant."""
    return Finding(check=check, level=Level.WARN, what=what, fix=fix)


def fail(check: str, what: str, fix: str) -> Finding:
    """Return a finding that needs a person."""
    return Finding(check=check, level=Level.FAIL, what=what, fix=fix)


def failed(check: str, error: CertctrlError) -> Finding:
    """Return what an error of ours says as a finding."""
    return fail(check, str(error), error.fix or "see docs/logs.md")


def guarded(check: str, findings: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield a check's findings; an error of ours in the middle is one, and the other checks go on."""
    try:
        yield from findings()
    except CertctrlError as error:
        yield failed(check, error)
    except OSError as error:
        yield fail(check, f"cannot look: {error.strerror or error}", "run as root or as the agent's user")
