"""A process that has imported everything and forks itself for each trial.

One JSON object per line on standard input, one answer per line on standard output:
``{"fork": act, …}`` → ``{"pid": …}``; ``{"go": pid}`` lets it run; ``{"wait": pid}`` → ``{"status": …}``.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import crash_acts
import crash_mutants

from certctrl.cli.runtime import flatten
from certctrl.errors import CertctrlError

LONGEST = 60
"""Seconds for one act, after which SIGALRM ends it."""
BUG = 2


PACKAGES = ("agent", "install", "model", "net", "protocol", "store")
LAZY = ("jwt", "nacl.public", "http.client", "cryptography.hazmat.backends.openssl.backend", "ctypes")


def warm() -> None:
    """Import the product's lazy modules, so that no fault hits an import; keep shared objects out of the collector."""
    rooms = (importlib.import_module(f"certctrl.{name}") for name in PACKAGES)
    modules = [one.name for room in rooms for one in pkgutil.walk_packages(room.__path__, f"{room.__name__}.")]
    for name in (*LAZY, *modules):
        with suppress(ModuleNotFoundError):  # of an extra
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


def child(order: dict[str, Any], ready: int, log: str) -> int:
    """Wait for the order, run the act, and return the exit status."""
    null, out = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for fd in (0, 1, 2):
        os.dup2(null if fd == 0 else out, fd)
    os.umask(0)
    job = crash_acts.Job(order["root"], order["plane"], order.get("later", 0.0), order.get("arguments", {}))
    for mutant in order.get("mutants", ()):
        (crash_mutants.SHORT.get(mutant) or crash_mutants.MUTANTS[mutant].apply)()
    if not os.read(ready, 1):
        return 3  # the test has ended
    signal.alarm(LONGEST)
    try:
        crash_acts.run(order["fork"], job)
    except BaseException as error:
        with suppress(OSError):  # writev, because write may be the call that fails
            os.writev(2, ["".join(traceback.format_exception(error)[-40:]).encode("utf-8", "replace")])
        return 1 if all(isinstance(leaf, CertctrlError) for leaf in flatten(error)) else BUG
    return 0


def main() -> None:
    warm()
    waiting: dict[int, int] = {}
    for line in sys.stdin:
        order = json.loads(line)
        answer: dict[str, Any] = {}
        if "fork" in order:
            ready, go = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(go)
                status = 4
                try:
                    status = child(order, ready, order["log"])
                finally:
                    os._exit(status)
            os.close(ready)
            waiting[pid] = go
            answer = {"pid": pid}
        elif "go" in order:
            os.write(waiting[order["go"]], b"!")
        else:
            os.close(waiting.pop(order["wait"]))
            answer = {"status": os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])}
        print(json.dumps(answer), flush=True)
    for pid, go in waiting.items():
        os.close(go)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
