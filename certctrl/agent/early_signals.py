"""Keep the OS signals that arrive before a service watches for them; imports almost nothing.

Python's default for SIGTERM, SIGHUP and SIGUSR1 ends the process, so a stop, a reload or a `poll-now` in the first
moments of a start would kill it. They are caught from the first line of the program on, and the service handles
them once it watches (`watch_os_signals`). When it stops watching it is about to exit, and further ones are ignored.
"""

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would slow down every start
    from collections.abc import Iterable
    from types import FrameType

CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
STOPPING = (signal.SIGTERM, signal.SIGINT)
PLANE = (*STOPPING, signal.SIGHUP)
"""The signals of a control plane."""


class EarlySignals:
    """A signal handler that remembers the signals; a second stop signal ends the process immediately."""

    def __init__(self) -> None:
        self._seen: list[int] = []

    def __call__(self, signum: int, _frame: "FrameType | None" = None) -> None:
        if signum in STOPPING and not set(STOPPING).isdisjoint(self._seen):
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self._seen.append(signum)

    def take(self) -> list[int]:
        """Return the signals seen so far, each once, in order, and forget them."""
        taken, self._seen = self._seen, []
        return list(dict.fromkeys(taken))


def catch_early_signals(signums: "Iterable[int]" = CAUGHT) -> None:
    """Keep these signals from now on; only the main thread may call this."""
    early = EarlySignals()
    for signum in signums:
        signal.signal(signum, early)


def early_signals() -> EarlySignals:
    """Return the handler of this process; if there is none, one that has seen nothing."""
    handler = signal.getsignal(signal.SIGTERM)
    return handler if isinstance(handler, EarlySignals) else EarlySignals()
