"""One host and its plane, restored before each trial, and the processes that act on them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from crash_plane import PlaneThread

from certctrl.model.policy import HostPolicy
from certctrl.store.config.files import init_config_dir, save_policy
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir

URL = "https://plane.test"
FORKS = Path(__file__).with_name("crash_forks.py")


class Forks:
    """The process of ``crash_forks.py``."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._process: subprocess.Popen[str] | None = None

    @contextmanager
    def running(self) -> Iterator[Forks]:
        command = [sys.executable, str(FORKS)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as self._process:
            try:
                yield self
            finally:
                assert self._process.stdin is not None
                self._process.stdin.close()
                self._process.wait(30)

    def ask(self, **order: Any) -> dict[str, Any]:
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))

    def fork(self, act: str, **order: Any) -> int:
        return int(self.ask(fork=act, log=str(self.log), **order)["pid"])

    def go(self, pid: int) -> None:
        self.ask(go=pid)

    def wait(self, pid: int) -> int:
        """Return the exit status, negative for an OS signal."""
        return int(self.ask(wait=pid)["status"])


@attrs.define
class Stage:
    """``world`` is the host and may be a mount point; ``aside`` is outside of what a crash affects."""

    world: Path
    aside: Path
    plane: PlaneThread
    forks: Forks
    facts: dict[str, Any] = attrs.field(factory=dict)
    """Facts of the story; see `crash_stories`."""

    @property
    def layout(self) -> ConfigDir:
        return ConfigDir(self.world / "agent")

    @property
    def out(self) -> Path:
        return self.world / "out"

    @property
    def log(self) -> str:
        return self.forks.log.read_text("utf-8", "replace")[-3000:] if self.forks.log.exists() else ""

    # --- acting ---------------------------------------------------------------------------------------------

    def start(self, act: str, *, later: float = 0.0, mutants: tuple[str, ...] = (), **arguments: Any) -> int:
        """Fork a process that waits for `go`; return its pid."""
        return self.forks.fork(
            act, root=str(self.world), plane=str(self.plane.socket), later=later, mutants=mutants, arguments=arguments
        )

    def act(self, act: str, *, later: float = 0.0, mutants: tuple[str, ...] = (), **arguments: Any) -> int:
        """Run one act without a fault; return its exit status."""
        pid = self.start(act, later=later, mutants=mutants, **arguments)
        self.forks.go(pid)
        return self.forks.wait(pid)

    def must(self, act: str, **arguments: Any) -> None:
        """Run one act that must succeed."""
        assert self.act(act, **arguments) == 0, f"{act} failed: {self.log}"

    # --- the start of a trial -------------------------------------------------------------------------------

    def found(self, settings: Mapping[str, Any], policy: Mapping[str, Any]) -> None:
        """Make an empty host and an empty plane."""
        self.clear()
        shutil.rmtree(self.aside / "plane", ignore_errors=True)
        self.plane.open(self.aside / "plane", dict(settings))
        self.out.mkdir()
        for name in ("a", "b"):
            (self.out / name).mkdir(mode=0o755)
        self.facts = {}
        init_config_dir(RealFs(), self.layout, server_url=URL, ca_pem=None)
        save_policy(RealFs(), self.layout, HostPolicy(write_roots=(str(self.out),), **policy))

    def keep(self, name: str) -> None:
        """Save the current state as the start of a story."""
        base = self.aside / "base" / name
        self.plane.close()
        for what, where in (("world", self.world), ("plane", self.aside / "plane")):
            shutil.copytree(where, base / what, symlinks=True, ignore=lambda _, names: {"lost+found"} & set(names))
        (base / "facts.json").write_text(json.dumps(self.facts))

    def kept(self, name: str) -> bool:
        return (self.aside / "base" / name / "facts.json").exists()

    def restore(self, name: str, settings: Mapping[str, Any]) -> None:
        """Restore host and plane to the start of a story."""
        base = self.aside / "base" / name
        self.plane.close()
        self.clear()
        shutil.copytree(base / "world", self.world, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(self.aside / "plane", ignore_errors=True)
        shutil.copytree(base / "plane", self.aside / "plane")
        self.plane.open(self.aside / "plane", dict(settings))
        self.facts = json.loads((base / "facts.json").read_text())
        self.forks.log.unlink(missing_ok=True)

    def clear(self) -> None:
        """Empty the world except for the file system's own files."""
        for path in self.world.iterdir():
            if path.name != "lost+found":
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
