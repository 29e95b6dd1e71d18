"""Mark the processes of a test, and find those that carry the mark."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = os.geteuid() == 0
SH = "/bin/sh"


def left_of(token: str) -> list[str]:
    """Return the processes with a token in their environment or arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                text = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if token.encode() in text:
                found.append(f"{entry.name} {(entry / 'cmdline').read_bytes()!r}")
    return found
