"""Podman with its own storage, in a mount namespace where it works without systemd and with any layout of cgroups."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SETTINGS = """\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
events_logger = "file"
cgroup_manager = "cgroupfs"
"""
STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{folder}/storage"
runroot = "{folder}/run"
"""
# crun does not run where version 1 and 2 of cgroups are mixed: it sees version 1 only.
PRIVATE = "umount /sys/fs/cgroup/unified 2>/dev/null; echo ready; exec cat"


class Podman:
    """A podman of one test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "containers.conf").write_text(SETTINGS)
        (folder / "storage.conf").write_text(STORAGE.format(folder=folder))
        argv = ["unshare", "--mount", "sh", "-c", PRIVATE]
        self._place = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._place.stdout is not None
        assert self._place.stdout.readline() == b"ready\n"

    def close(self) -> None:
        """Remove all containers, networks and images."""
        self.run("rm", "--all", "--force", "--time", "5", check=False)
        self.run("system", "reset", "--force", check=False)
        self._place.communicate()  # closes its input, which ends it
        shutil.rmtree(self.folder, ignore_errors=True)

    def command(self, argv: Sequence[str], *, at: Path | None = None, check: bool = True) -> str:
        """Run a program that uses podman; return what it prints."""
        environment = os.environ | {
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
        }
        place = f"--wd={at or self.folder}"
        words = ["nsenter", f"--target={self._place.pid}", "--mount", place, "--", *argv]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0 or not check, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def run(self, *words: str, check: bool = True) -> str:
        """Run podman."""
        return self.command(["podman", "--log-level=error", *words], check=check)

    def compose(self, folder: Path, *words: str) -> str:
        """Run podman-compose in the directory of a Compose file."""
        return self.command([str(Path(sys.executable).parent / "podman-compose"), *words], at=folder)

    def inside(self, container: str, *words: str, check: bool = True) -> str:
        """Run a command in a container."""
        return self.run("exec", container, *words, check=check)
