"""Generations on a model disk, staged or live."""

from __future__ import annotations

from pathlib import Path

from modeldisk import ModelFs

from certctrl.store.deployments.generations import GenerationStore, Staged
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir

LAYOUT = ConfigDir(Path("/etc/agent"))
FILES = {"private.key": b"key", "bundle.pfx": b"pfx", "certificate.pem": b"leaf", "chain.pem": b"chain"}


def model_disk(*, syncfs: bool) -> ModelFs:
    made = ModelFs(syncfs=syncfs)
    made.put_dir("/etc")
    make_tree(made, LAYOUT)
    return made


def stage(store: GenerationStore, *names: str, serial: int = 1) -> list[Staged]:
    return [store.stage(name, FILES, {"serial": serial}) for name in names]


def publish(store: GenerationStore, *names: str, serial: int = 1) -> dict[str, str | None]:
    staged = stage(store, *names, serial=serial)
    store.settle(staged)
    store.switch({one.name: one.id for one in staged})
    return {one.name: one.id for one in staged}
