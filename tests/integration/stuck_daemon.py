"""``cert-ctrl`` whose event loop SIGUSR2 blocks for a while, like a library call that does not return.

Other threads keep running; it sends STUCK=1 to the notify socket before and FREE=1 after.
"""

from __future__ import annotations

import os
import signal
import time

from certctrl.__main__ import program
from certctrl.agent.systemd import Notifier

STUCK_SECONDS = 1.0


def block(*_: object) -> None:
    notifier = Notifier(os.environ)
    notifier.send("STUCK=1")
    time.sleep(STUCK_SECONDS)
    notifier.send("FREE=1")


if __name__ == "__main__":
    signal.signal(signal.SIGUSR2, block)
    program()
