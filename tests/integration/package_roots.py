"""Builds of the packages, and a systemctl that records its calls."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]
BUILD = PROJECT / "deploy" / "packages" / "build.py"


class Builds:
    """Releases 1 and 2 of the packages below one directory."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self._options = options
        for release in ("1", "2"):
            self.build(release, folder / release)

    def build(self, release: str, out: Path) -> None:
        """Build one release."""
        argv = [sys.executable, str(BUILD), str(out), "--release", release, *self._options]
        subprocess.run(argv, check=True, timeout=1800, stdout=subprocess.PIPE)

    def debs(self, release: str) -> list[Path]:
        """Return the Debian packages of a release, that of the agent first."""
        return sorted((self.folder / release).rglob("*.deb"), key=lambda path: "-plane" in path.name)

    def rpms(self, release: str) -> list[Path]:
        """Return the RPM packages of a release, that of the agent first."""
        return sorted((self.folder / release).rglob("*.rpm"), key=lambda path: "-plane" in path.name)


def recording_systemctl(folder: Path, calls: Path, *, seen_as: str = "") -> Path:
    """Make a systemctl that appends its arguments to a file, which it sees as ``seen_as``; return its directory."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "systemctl"
    program.write_text(f'#!/bin/sh\necho "$*" >> "{seen_as or calls}"\n')
    program.chmod(0o755)
    return folder


def recorded(calls: Path) -> list[str]:
    """Return the recorded calls, and forget them."""
    lines = calls.read_text().splitlines() if calls.exists() else []
    calls.unlink(missing_ok=True)
    return lines
