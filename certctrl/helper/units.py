"""Reload or restart one unit, if it runs: a unit that was stopped on purpose stays down."""

from __future__ import annotations

import subprocess
from collections import defaultdict
from threading import Lock

from certctrl.errors import CommandError
from certctrl.text import one_line

SYSTEMCTL = "/usr/bin/systemctl"
SECONDS = 100.0
"""Longer than systemd's usual limit for a start, 90 s."""
_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
_SAID = 4096


class Units:
    """Acts on units by systemctl; one request per unit at a time."""

    def __init__(self, systemctl: str = SYSTEMCTL) -> None:
        self._systemctl = systemctl
        self._locks: defaultdict[str, Lock] = defaultdict(Lock)

    def act(self, verb: str, unit: str) -> None:
        """Reload or restart a unit. Raises CommandError."""
        with self._locks[unit]:
            if self._call("is-active", "--quiet", unit)[0] != 0:
                raise CommandError(f"{unit} is not running", fix=f"systemctl status {unit}")
            status, said = self._call(verb, unit)
        if status != 0:
            what = f"systemctl {verb} {unit} exited with {status}: {said}"
            raise CommandError(what, fix=f"systemctl status {unit}; journalctl -u {unit}")

    def _call(self, verb: str, *words: str) -> tuple[int, str]:
        argv = [self._systemctl, "--no-ask-password", "--no-pager", verb, *words]
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=_ENV,
                cwd="/",
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise CommandError(f"systemctl {verb} has not ended after {SECONDS:.0f} s") from None
        except OSError as error:
            raise CommandError(f"cannot run {self._systemctl}: {error.strerror}") from None
        lines = done.stdout[-_SAID:].decode("utf-8", "replace").split("\n")
        return done.returncode, one_line(next((line for line in reversed(lines) if line.strip()), ""), 300)
