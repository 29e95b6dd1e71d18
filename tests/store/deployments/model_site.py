"""A site's files on a model disk before and after a deployment, and a deployment that has begun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modeldisk import ModelFs

from certctrl.store.deployments.file_set import FileSet, FileWrite
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir

LAYOUT = ConfigDir(Path("/etc/agent"))
PEM, KEY = Path("/srv/a/site.pem"), Path("/srv/b/site.key")


def model_site(*, syncfs: bool = True, uid: int = 1000) -> ModelFs:
    made = ModelFs(uid=uid, syncfs=syncfs)
    made.put_dir("/etc")
    make_tree(made, LAYOUT)
    made.put(PEM, b"old leaf", 0o644)
    made.put_dir(KEY.parent)
    return made


def writes(*, in_place: bool = False, **how: Any) -> list[FileWrite]:
    return [
        FileWrite(path=PEM, data=b"new leaf, longer", mode=0o644, in_place=in_place, **how),
        FileWrite(path=KEY, data=b"new key", mode=0o600, in_place=in_place, **how),
    ]


def begun(fs: ModelFs, *, in_place: bool = False, **how: Any) -> FileSet:
    made = FileSet(LAYOUT, fs)
    made.begin(writes(in_place=in_place, **how))
    return made


def bytes_at(fs: ModelFs) -> list[bytes | None]:
    tree = fs.tree()
    return [tree[str(path)].data if str(path) in tree else None for path in (PEM, KEY)]


OLD, NEW = [b"old leaf", None], [b"new leaf, longer", b"new key"]
