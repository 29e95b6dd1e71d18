"""Builds of the packages, and a systemctl that records its calls."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]
BUILD = PROJECT / "deploy" / "packages" / "build.py"


class Builds:
    """Releases 1 and 2 of the packages below one directory; ``made`` has release 1 already, and perhaps 2."""

    def __init__(self, folder: Path, *options: str, made: Path | None = None) -> None:
        self.folder = folder
        self._options = options
        self._places = [folder / "made", *([made] if made else [])]
        missing = [word for release in "12" if not self.debs(release) for word in ("--release", release)]
        if missing:
            self.build(folder / "made", *missing, "--kind", "deb")

    def build(self, out: Path, *options: str) -> None:
        """Build packages into a directory."""
        argv = [sys.executable, str(BUILD), str(out), *options, *self._options]
        subprocess.run(argv, check=True, timeout=1800, stdout=subprocess.PIPE)

    def debs(self, release: str) -> list[Path]:
        """Return the Debian packages of a release, that of the agent first."""
        return self._find(f"*-{release}_*.deb")

    def rpms(self, release: str = "1") -> list[Path]:
        """Return the RPM packages of a release, that of the agent first; build them if they are missing."""
        if not self._find(pattern := f"*-{release}.*.rpm"):
            self.build(self.folder / "made", "--release", release, "--kind", "rpm")
        return self._find(pattern)

    def _find(self, pattern: str) -> list[Path]:
        found = [path for folder in self._places for path in folder.rglob(pattern)]
        return sorted(found, key=lambda path: "-plane" in path.name)


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
