"""End the daemon in order if its packages are replaced while it runs, such as by ``pip install --upgrade``.

Code that most hosts never use is imported late. From a replaced package it would be that of another release, next to
what is in memory. So the first late import after a replacement raises `PackageChangedError` instead, which is no
`Exception`: nothing takes it for a failure of the signal or the certificate that needed the code. The task's boundary
(`stop_if_replaced`) turns it into an orderly stop, and systemd starts the new release, which handles the signal again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

from certctrl.agent.log_lines import Line, log_line
from certctrl.errors import BusyError, CertctrlError
from certctrl.model.status import StopReason
from certctrl.model.stop import Stop

if TYPE_CHECKING:
    from certctrl.agent.context import Agent

OWN = "certctrl"


class PackageChangedError(BaseException):
    """The files of a package are not those that this process began with."""


class PackageGuard:
    """Refuses late imports from packages whose files have changed since it was made."""

    def __init__(self) -> None:
        self._began_with = {name: (_stamp(module), _version(module)) for name, module in _packages()}

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None, /) -> None:
        """Raise PackageChangedError for a module of a package that has changed; leave others to the other finders."""
        self.check(name.partition(".")[0])

    def check(self, *names: str) -> None:
        """Raise PackageChangedError if one of these packages has changed; without names, if any has."""
        for name in names or self._began_with:
            stamp, version = self._began_with.get(name, (None, ""))
            if stamp and _stamp(sys.modules.get(name)) not in (stamp, ()):
                which = "" if name == OWN else f" {name}"
                raise PackageChangedError(f"the installed package{which} changed (was {version})")


def _packages() -> Iterator[tuple[str, ModuleType]]:
    """Yield the packages in use, with their names, except those of Python itself."""
    for name, module in list(sys.modules.items()):
        if "." not in name and hasattr(module, "__path__") and name not in sys.stdlib_module_names:
            yield name, module


def _stamp(module: ModuleType | None) -> tuple[int, ...] | None:
    """Return what changes when the package of a module is replaced.

    None if it has no file of its own; empty if the disk does not answer, which says nothing about the file.
    """
    try:
        found = os.stat(getattr(module, "__file__", None) or "")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return ()
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def _version(module: ModuleType) -> str:
    return str(vars(module).get("__version__", "another version"))


_guards: list[PackageGuard] = []
"""The one of this process, while it runs the daemon."""


@contextmanager
def guarded_packages() -> Iterator[None]:
    """Guard the packages that are in use now against replacement.

    Raises BusyError if one is replaced while the daemon starts or ends, when there is nothing to stop in order.
    """
    guard = PackageGuard()
    _guards.append(guard)
    sys.meta_path.insert(0, guard)
    try:
        yield
    except BaseException as error:
        changed, other = _parted(error)
        if changed is None or other is not None:
            raise
        raise BusyError(str(changed), fix="start the daemon again") from None
    finally:
        sys.meta_path.remove(guard)
        _guards.remove(guard)


def raise_if_replaced(error: Exception) -> None:
    """Raise PackageChangedError if an error that looks like a bug comes from a replaced package.

    The replacement may have been under way when it was imported.
    """
    if isinstance(error, CertctrlError):
        return
    for guard in _guards:
        try:
            guard.check()
        except PackageChangedError as changed:
            raise changed from error


def stop_if_replaced(agent: Agent, error: BaseException) -> None:
    """Start the orderly stop if an error comes from a package that has changed; raise what else it consists of."""
    try:
        if isinstance(error, Exception):
            raise_if_replaced(error)
    except PackageChangedError as changed_since:
        error = changed_since
    changed, other = _parted(error)
    if changed is None:
        raise error
    if agent.stop is None:
        log_line(agent.log, Line.PACKAGE_CHANGED, what=changed)
    agent.stop_with(Stop(StopReason.PACKAGE_CHANGED, str(changed)))
    if other is not None:
        raise other


def _parted(error: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """Return the first PackageChangedError that an error consists of, and all that is none."""
    group = error if isinstance(error, BaseExceptionGroup) else BaseExceptionGroup("", [error])
    changed, other = group.split(PackageChangedError)
    leaf: BaseException | None = changed
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    return leaf, other
