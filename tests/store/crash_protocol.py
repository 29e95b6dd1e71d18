"""A protocol: one thing that the agent does on the disk, interrupted anywhere, and the checks of what is left.

Each protocol has an initial disk, an act that completes from any state a crash may leave, and invariants on every disk
after a crash: some immediately, the others after the recovery with which every start begins. What the plane knows is in
the disk's ``promises``, which survive all crashes of this host.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

from crash_exploration import explore
from modeldisk import ModelFs

from certctrl.store.deployments.generations import GenerationStore
from certctrl.store.deployments.recovery import recover
from certctrl.store.disk.atomic import is_temp, read_bytes
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir
from certctrl.store.state.files import sweep_leftovers

LAYOUT = ConfigDir(Path("/etc/cert-ctrl"))
NAME = "example.com"
ROOTS = ("/srv",)
SECRET = b"SECRET"


def material(number: int) -> dict[str, bytes]:
    return {
        "private.key": b"SECRET-KEY %d" % number,
        "certificate.pem": b"LEAF %d" % number,
        "chain.pem": b"CHAIN %d" % number,
        "fullchain.pem": b"FULL %d" % number,
    }


def generations_of(fs: ModelFs) -> GenerationStore:
    """Return the store of the process that uses this disk; a crashed or killed disk is another object with its own."""
    store: GenerationStore = fs.__dict__.setdefault("generations", GenerationStore(LAYOUT, fs))
    return store


def publish(fs: ModelFs, names: Mapping[str, int]) -> GenerationStore:
    """Stage, settle and switch to certificate ``number`` of each name."""
    generations = generations_of(fs)
    staged = [generations.stage(name, material(number), {"serial": number}) for name, number in names.items()]
    generations.settle(staged)
    generations.switch({one.name: one.id for one in staged})
    return generations


def live_number(fs: ModelFs, name: str = NAME) -> int | None:
    """Return the number of the live certificate after checking that it is whole; None without one."""
    live = LAYOUT.live_link(name)
    if fs.lstat(live) is None:
        return None
    files = {file: read_bytes(fs, live / file, 1000) for file in material(1)}
    numbers = {int(data.split()[-1]) for data in files.values() if data is not None and data[-1:].isdigit()}
    assert len(numbers) == 1, f"mixed or missing: {files}"
    (number,) = numbers
    assert files == material(number), f"a partial file is live: {files}"
    return number


def leaks(fs: ModelFs) -> list[str]:
    return [path for path, node in fs.tree().items() if SECRET in node.data and node.mode & 0o077]


def torn(fs: ModelFs) -> list[str]:
    """Return the generations that are not as they were written, live or not."""
    top = str(LAYOUT.generations)
    inside = [Path(path) for path in fs.tree() if path.startswith(f"{top}/")]
    found = {path.parent for path in inside if len(path.parts) == len(LAYOUT.generations.parts) + 3}
    made = [material(number) for number in range(1, 10)]
    return [str(one) for one in found if {file: read_bytes(fs, one / file, 1000) for file in made[0]} not in made]


def strays(fs: ModelFs) -> list[str]:
    return [path for path in fs.tree() if any(is_temp(part) or part.startswith(".tmp-") for part in path.split("/"))]


class Protocol:
    """One thing that the agent does."""

    name = ""
    syncfs = True
    sample = 4
    """States tried per operation by default."""
    deep_every = 1
    """The campaign explores the restart after every n-th kill."""

    def world(self) -> ModelFs:
        fs = ModelFs(syncfs=self.syncfs)
        fs.put_dir("/etc")
        make_tree(fs, LAYOUT)
        self.prepare(fs)
        return fs.settled()

    def prepare(self, fs: ModelFs) -> None:
        """Set up the initial disk."""

    def act(self, fs: ModelFs) -> None:
        raise NotImplementedError

    def always(self, fs: ModelFs) -> None:
        """Check the invariants of every disk."""

    def recovered(self, fs: ModelFs) -> None:
        """Check the invariants after recovery."""

    # --- driving ------------------------------------------------------------------------------------------

    def recover(self, fs: ModelFs) -> None:
        """Recover as every start does."""
        report = recover(LAYOUT, fs, ROOTS)
        assert not report.failed, report
        sweep_leftovers(LAYOUT, fs)
        generations_of(fs).sweep()

    def check(self, fs: ModelFs) -> None:
        """Check one disk, restart on it, and check that the promises of the restart survive a power cut."""
        self.check_start(fs)
        self.act(fs)
        for crashed in fs.crash_states(4, random.Random(1)):
            self.check_start(crashed)

    def check_start(self, fs: ModelFs) -> None:
        assert not (found := leaks(fs)), f"readable by others: {found}"
        self.always(fs)
        self.recover(fs)
        assert not (found := strays(fs)), f"left behind: {found}"
        assert not (found := torn(fs)), f"torn generations: {found}"
        assert not (found := leaks(fs)), f"readable by others: {found}"
        self.always(fs)
        self.recovered(fs)

    def check_deep(self, fs: ModelFs) -> None:
        """Check a killed run whose restart is interrupted by a power cut at every operation: two faults in a row."""
        explore(fs, self.restart, self.check_start, limit=3, kills=False)

    def restart(self, fs: ModelFs) -> None:
        self.recover(fs)
        self.act(fs)
