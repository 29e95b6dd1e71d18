"""A site's files before and after a deployment, and a deployment that has begun."""

from __future__ import annotations

import stat
from pathlib import Path

from certctrl.store.deployments.file_set import FileSet, FileWrite
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir

FS = RealFs()


def writes(site: Path) -> list[FileWrite]:
    return [
        FileWrite(path=site / "ssl" / "site.pem", data=b"new leaf", mode=0o644),
        FileWrite(path=site / "private" / "site.key", data=b"new key", mode=0o600),
    ]


def shown(site: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(site)): (path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
        for path in sorted(site.rglob("*"))
        if path.is_file()
    }


OLD = {"ssl/site.pem": (b"old leaf", 0o640)}
NEW = {"private/site.key": (b"new key", 0o600), "ssl/site.pem": (b"new leaf", 0o644)}


def begun(layout: ConfigDir, site: Path) -> FileSet:
    copies = FileSet(layout, FS)
    copies.begin(writes(site))
    return copies
