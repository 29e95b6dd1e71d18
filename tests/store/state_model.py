"""State on a model disk, its fsyncs, and shared values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modeldisk import ModelFs

from certctrl.model.records import DeviceKeys, Tokens
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir
from certctrl.store.state.store import StateStore

KEYS = DeviceKeys(public=b"p" * 32, secret=b"s" * 32)
TOKENS = Tokens(access_token="access.jwt.one", refresh_token="rt_one.SECRET")


def modelled(**how: Any) -> tuple[StateStore, ModelFs]:
    fs = ModelFs(**how)
    fs.put_dir("/etc")
    layout = ConfigDir(Path("/etc/agent"))
    make_tree(fs, layout)
    fs.trace.clear()
    return StateStore(layout, fs), fs


def fsyncs(fs: ModelFs) -> int:
    count = sum(line.startswith(("fsync", "syncfs")) for line in fs.trace)
    fs.trace.clear()
    return count
