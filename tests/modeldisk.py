"""ModelFs: a disk in memory that distinguishes written from durable.

It replaces `certctrl.store.disk.fs.RealFs`. Writes go to the page cache, which running programs see; only fsync and
syncfs move them to the disk, which remains after a power cut. `crash_states` yields what a power cut may leave
(``disk_changes.py``).
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from disk_changes import Change, Node, crash_images, renamed, resized, with_entry, without_entry, written

from certctrl.store.disk.fs import FileKind, Handle, Stat, disk_error

ROOT = 1
LINKS_FOLLOWED = 40
"""Links that the kernel follows on one path before ELOOP."""


class ModelFs:
    """The model. ``observer`` is called before each operation that changes something or makes it durable."""

    def __init__(self, *, uid: int = 1000, syncfs: bool = True) -> None:
        self.base: dict[int, Node] = {ROOT: Node("dir", 0o755, 0, 0)}
        self.now: dict[int, Node] = dict(self.base)
        self.pending: list[Change] = []
        self.promises: dict[str, Any] = {}
        self.observer: Callable[[ModelFs, str], None] | None = None
        self.fault: Callable[[str, str], int | None] | None = None
        self.trace: list[str] = []
        self.can_syncfs = syncfs
        self.mounted: set[int] = set()
        """Inodes of files that are mount points: they can be neither replaced nor removed."""
        self._uid = uid
        self._next = itertools.count(2)
        self._clock = itertools.count(1)
        self._tokens = itertools.count(1)
        self._fds = itertools.count(3)
        self._open: dict[int, list[int]] = {}  # fd -> [ino, position]
        self._locks: dict[int, int] = {}  # ino -> fd

    # --- crashing -----------------------------------------------------------------------------------------

    def copy(self) -> ModelFs:
        """Return an independent disk with the same cache and pending changes, without handles, locks and observer."""
        other = ModelFs(uid=self._uid, syncfs=self.can_syncfs)
        other.base, other.now, other.pending = dict(self.base), dict(self.now), list(self.pending)
        other.promises, other.mounted = dict(self.promises), set(self.mounted)
        other._count_from(10_000 + max(self.now | self.base))
        return other

    def settled(self) -> ModelFs:
        """Return a disk on which everything is durable: a clean stop."""
        other = self.copy()
        other.base, other.pending = dict(other.now), []
        return other

    def crash_states(self, limit: int, chance: random.Random) -> Iterator[ModelFs]:
        """Yield possible disks after a power cut now: at most ``limit``, extremes first."""
        seen: set[bytes] = set()
        for nodes in crash_images(self.base, self.pending, limit, chance):
            crashed = ModelFs(uid=self._uid, syncfs=self.can_syncfs)
            crashed.base, crashed.now, crashed.promises = nodes, dict(nodes), dict(self.promises)
            crashed.mounted = set(self.mounted)
            crashed._count_from(10_000 + max(nodes))
            mark = crashed.fingerprint()
            if mark not in seen:
                seen.add(mark)
                yield crashed
                if len(seen) >= limit:
                    return

    def _count_from(self, top: int) -> None:
        self._next, self._clock, self._tokens = itertools.count(top), itertools.count(top), itertools.count(top)

    def promise(self, **facts: object) -> None:
        """Record what was reported to the outside world: it must be true after any later crash."""
        self.promises |= facts

    # --- inspection and set-up, for tests -----------------------------------------------------------------

    def tree(self) -> dict[str, Node]:
        """Return the node at every reachable path."""
        found: dict[str, Node] = {}
        todo = [("", ROOT)]
        while todo:
            path, ino = todo.pop()
            node = self.now[ino]
            found[path or "/"] = node
            todo += [(f"{path}/{name}", child) for name, child in node.entries.items()]
        return found

    def open_files(self) -> list[int]:
        """Return the open descriptors."""
        return sorted(self._open)

    def fingerprint(self) -> bytes:
        digest = hashlib.sha256(repr(sorted(self.promises.items())).encode())
        for path, node in sorted(self.tree().items()):
            digest.update(
                repr(
                    (path, node.kind, node.mode, node.uid, node.gid, node.text, sorted(node.attributes.items()))
                ).encode()
            )
            digest.update(node.data)
        return digest.digest()

    def put(self, path: str | Path, data: bytes, mode: int = 0o644) -> None:
        """Create a durable file and its parents."""
        self.put_dir(Path(path).parent)
        parent, name = self._resolve(path, None)
        ino = self.now[parent].entries.get(name) or next(self._next)
        self.now[ino] = Node("file", mode, self._uid, self._uid, data)
        self.now[parent] = with_entry(name, ino)(self.now[parent])
        self.base = dict(self.now)

    def mount_on(self, path: str | Path) -> None:
        """Make an existing file a mount point."""
        parent, name = self._resolve(path, None)
        self.mounted.add(self.now[parent].entries[name])

    def put_dir(self, path: str | Path, mode: int = 0o755) -> None:
        """Create a durable directory and its parents."""
        here = ROOT
        for step in Path(path).parts[1:]:
            names = self.now[here].entries
            if step not in names:
                ino = next(self._next)
                self.now[ino] = Node("dir", mode, self._uid, self._uid)
                self.now[here] = with_entry(step, ino)(self.now[here])
                names = {step: ino}
            here = names[step]
        self.base = dict(self.now)

    # --- internals ----------------------------------------------------------------------------------------

    def _before(self, verb: str, path: str) -> None:
        self.trace.append(f"{verb} {path}")
        if self.observer is not None:
            self.observer(self, f"{verb} {path}")
        if self.fault is not None and (code := self.fault(verb, path)) is not None:
            raise disk_error(verb, path, OSError(code, os.strerror(code)))

    def _fail(self, code: int, verb: str, path: str) -> Exception:
        return disk_error(verb, path, OSError(code, os.strerror(code)))

    def _where(self, path: str | Path, at: Handle | None) -> str:
        return str(path) if at is None else f"{at.path.rstrip('/')}/{path}"

    def _resolve(self, path: str | Path, at: Handle | None) -> tuple[int, str]:
        """Return (directory, last component); links on the way are followed, the last one is not."""
        text = str(path)
        here, steps = (ROOT, text.split("/")[1:]) if at is None else (self._open[at.fd][0], text.split("/"))
        if len(steps) == 1:
            return here, steps[0]
        steps.reverse()  # the next step last
        nodes, trail = self.now, list[int]()
        followed = 0
        while len(steps) > 1:
            name = steps.pop()
            if name in ("", "."):
                continue
            if name == "..":
                here = trail.pop() if trail else ROOT
                continue
            child = nodes[here].entries.get(name)
            if child is None:
                raise self._fail(errno.ENOENT, "open", text)
            node = nodes[child]
            if node.kind == "link":
                followed += 1
                if followed > LINKS_FOLLOWED:
                    raise self._fail(errno.ELOOP, "open", text)
                steps += node.text.split("/")[::-1]
                if node.text.startswith("/"):
                    here, trail = ROOT, []
            elif node.kind == "dir":
                trail.append(here)
                here = child
            else:
                raise self._fail(errno.ENOTDIR, "open", text)
        return here, steps[0]

    def _find(self, path: str | Path, at: Handle | None, verb: str) -> int:
        if at is None and str(path) == "/":
            return ROOT
        parent, name = self._resolve(path, at)
        ino = self.now[parent].entries.get(name)
        if ino is None:
            raise self._fail(errno.ENOENT, verb, self._where(path, at))
        return ino

    def _handle(self, ino: int, path: str, position: int = 0) -> Handle:
        fd = next(self._fds)
        self._open[fd] = [ino, position]
        return Handle(fd, path)

    def _change(self, change: Change) -> None:
        self.now[change.ino] = change.apply(self.now[change.ino])._replace(time=next(self._clock))
        self.pending.append(change)

    def _new(self, node: Node, path: str | Path, at: Handle | None, verb: str) -> int:
        parent, name = self._resolve(path, at)
        if name in self.now[parent].entries:
            raise self._fail(errno.EEXIST, verb, self._where(path, at))
        ino = next(self._next)
        self.now[ino] = self.base[ino] = node._replace(time=next(self._clock))
        self._change(Change("entry", parent, (name,), with_entry(name, ino)))
        return ino

    # --- the interface of `Fs` ----------------------------------------------------------------------------

    def open_dir(self, path: str | Path, at: Handle | None = None) -> Handle:
        ino = self._find(path, at, "open")
        if self.now[ino].kind != "dir":
            code = errno.ELOOP if self.now[ino].kind == "link" else errno.ENOTDIR
            raise self._fail(code, "open", self._where(path, at))
        return self._handle(ino, self._where(path, at))

    def open_file(self, path: str | Path, at: Handle | None = None) -> Handle:
        ino = self._find(path, at, "read")
        if self.now[ino].kind == "link":
            raise self._fail(errno.ELOOP, "read", self._where(path, at))
        return self._handle(ino, self._where(path, at))

    def open_append(self, path: str | Path, mode: int, at: Handle | None = None) -> Handle:
        self._before("open_append", self._where(path, at))
        parent, name = self._resolve(path, at)
        ino = self.now[parent].entries.get(name)
        if ino is None:
            ino = self._new(Node("file", mode, self._uid, self._uid), path, at, "write")
        if (kind := self.now[ino].kind) != "file":
            raise self._fail(errno.EISDIR if kind == "dir" else errno.ELOOP, "write", self._where(path, at))
        return self._handle(ino, self._where(path, at), len(self.now[ino].data))

    def open_lock(self, path: str | Path, mode: int) -> Handle:
        handle = self.open_append(path, mode)
        self._open[handle.fd][1] = 0
        return handle

    def open_in_place(self, path: str | Path, at: Handle | None = None) -> Handle:
        ino = self._find(path, at, "write")
        if (kind := self.now[ino].kind) != "file":
            raise self._fail(errno.EISDIR if kind == "dir" else errno.ELOOP, "write", self._where(path, at))
        return self._handle(ino, self._where(path, at))

    def create(self, path: str | Path, mode: int, at: Handle | None = None) -> Handle:
        self._before("create", self._where(path, at))
        node = Node("file", mode, self._uid, self._uid)
        return self._handle(self._new(node, path, at, "create"), self._where(path, at))

    def read(self, handle: Handle, limit: int) -> bytes:
        entry = self._open[handle.fd]
        data = self.now[entry[0]].data[entry[1] : entry[1] + limit]
        entry[1] += len(data)
        return data

    def write(self, handle: Handle, data: bytes) -> None:
        self._before("write", handle.path)
        entry = self._open[handle.fd]
        half = data[: len(data) // 2]
        torn = (written(entry[1], half), written(entry[1], bytes(len(data))))
        self._change(Change("data", entry[0], apply=written(entry[1], data), torn=torn))
        entry[1] += len(data)

    def truncate(self, handle: Handle, size: int) -> None:
        self._before("truncate", handle.path)
        self._change(Change("data", self._open[handle.fd][0], apply=resized(size)))

    def allocate(self, handle: Handle, size: int) -> None:
        self._before("allocate", handle.path)
        ino = self._open[handle.fd][0]
        self._change(Change("data", ino, apply=resized(max(size, len(self.now[ino].data)))))

    def chmod(self, handle: Handle, mode: int) -> None:
        self._before("chmod", handle.path)
        self._change(Change("meta", self._open[handle.fd][0], apply=lambda node: node._replace(mode=mode)))

    def chown(self, handle: Handle, uid: int, gid: int) -> None:
        self._before("chown", handle.path)
        self._change(Change("meta", self._open[handle.fd][0], apply=lambda node: node._replace(uid=uid, gid=gid)))

    def attributes(self, handle: Handle) -> dict[str, bytes]:
        return dict(self.now[self._open[handle.fd][0]].attributes)

    def set_attribute(self, handle: Handle, name: str, value: bytes | None) -> None:
        self._before("set_attribute", handle.path)

        def apply(node: Node) -> Node:
            rest = {key: old for key, old in node.attributes.items() if key != name}
            return node._replace(attributes=rest if value is None else rest | {name: value})

        self._change(Change("meta", self._open[handle.fd][0], apply=apply))

    def fsync(self, handle: Handle) -> None:
        self._before("fsync", handle.path)
        ino = self._open[handle.fd][0]
        self._make_durable(lambda change: change.ino == ino)

    def syncfs(self, handle: Handle) -> bool:
        if not self.can_syncfs:
            return False
        self._before("syncfs", handle.path)
        self._make_durable(lambda change: True)
        return True

    def _make_durable(self, chosen: Callable[[Change], bool]) -> None:
        for change in self.pending:
            if chosen(change):
                self.base[change.ino] = change.apply(self.base[change.ino])
        self.pending = [change for change in self.pending if not chosen(change)]

    def try_lock(self, handle: Handle) -> bool:
        ino = self._open[handle.fd][0]
        if self._locks.get(ino, handle.fd) != handle.fd:
            return False
        self._locks[ino] = handle.fd
        return True

    def close(self, handle: Handle) -> None:
        fd, handle.fd = handle.fd, -1
        if fd in self._open:
            ino, _ = self._open.pop(fd)
            if self._locks.get(ino) == fd:
                del self._locks[ino]

    def rename(self, old: str | Path, new: str | Path, at: Handle | None = None) -> None:
        self._before("rename", self._where(new, at))
        parent, old_name = self._resolve(old, at)
        other, new_name = self._resolve(new, at)
        assert parent == other, "the store renames only within one directory"
        names = self.now[parent].entries
        if old_name not in names:
            raise self._fail(errno.ENOENT, "replace", self._where(new, at))
        moved, target = self.now[names[old_name]], self.now.get(names.get(new_name, 0))
        if self.mounted & {names[old_name], names.get(new_name, 0)}:
            raise self._fail(errno.EBUSY, "replace", self._where(new, at))
        if target is not None and target.kind == "dir" and (moved.kind != "dir" or target.entries):
            code = errno.EISDIR if moved.kind != "dir" else errno.ENOTEMPTY
            raise self._fail(code, "replace", self._where(new, at))
        if target is not None and target.kind != "dir" and moved.kind == "dir":
            raise self._fail(errno.ENOTDIR, "replace", self._where(new, at))
        apply = renamed(old_name, new_name, names[old_name])
        self._change(Change("entry", parent, (old_name, new_name), apply))

    def symlink(self, text: str, path: str | Path, at: Handle | None = None) -> None:
        self._before("symlink", self._where(path, at))
        self._new(Node("link", 0o777, self._uid, self._uid, text=text), path, at, "link")

    def unlink(self, path: str | Path, at: Handle | None = None) -> None:
        self._before("unlink", self._where(path, at))
        if self.now[ino := self._find(path, at, "remove")].kind == "dir":
            raise self._fail(errno.EISDIR, "remove", self._where(path, at))
        if ino in self.mounted:
            raise self._fail(errno.EBUSY, "remove", self._where(path, at))
        parent, name = self._resolve(path, at)
        self._change(Change("entry", parent, (name,), without_entry(name)))

    def mkdir(self, path: str | Path, mode: int, at: Handle | None = None) -> None:
        self._before("mkdir", self._where(path, at))
        self._new(Node("dir", mode, self._uid, self._uid), path, at, "create")

    def rmdir(self, path: str | Path, at: Handle | None = None) -> None:
        self._before("rmdir", self._where(path, at))
        node = self.now[self._find(path, at, "remove")]
        if node.kind != "dir" or node.entries:
            code = errno.ENOTEMPTY if node.kind == "dir" else errno.ENOTDIR
            raise self._fail(code, "remove", self._where(path, at))
        parent, name = self._resolve(path, at)
        self._change(Change("entry", parent, (name,), without_entry(name)))

    def listdir(self, handle: Handle) -> list[str]:
        return list(self.now[self._open[handle.fd][0]].entries)

    def lstat(self, path: str | Path, at: Handle | None = None) -> Stat | None:
        if at is None and str(path) == "/":
            return self._stat(ROOT)
        try:
            parent, name = self._resolve(path, at)
        except Exception as error:
            if getattr(error, "errno", 0) in (errno.ENOENT, errno.ENOTDIR):
                return None
            raise
        ino = self.now[parent].entries.get(name)
        return None if ino is None else self._stat(ino)

    def fstat(self, handle: Handle) -> Stat:
        return self._stat(self._open[handle.fd][0])

    def _stat(self, ino: int) -> Stat:
        node = self.now[ino]
        return Stat(FileKind(node.kind), node.mode, node.uid, node.gid, len(node.data), 1, ino, 1, node.time)

    def mount(self, handle: Handle) -> int:
        ino = self._open[handle.fd][0]
        return ino if ino in self.mounted else 1

    def readlink(self, path: str | Path, at: Handle | None = None) -> str:
        node = self.now[self._find(path, at, "read")]
        if node.kind != "link":
            raise self._fail(errno.EINVAL, "read", self._where(path, at))
        return node.text

    def uid(self) -> int:
        return self._uid

    def gid(self) -> int:
        return self._uid

    def token(self) -> str:
        return f"{next(self._tokens):016x}"
