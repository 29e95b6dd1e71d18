"""Write and remove the small public files with which a web server answers challenges.

Their directory is outside the agent's own, so it is opened like those of deployed files: step by step, without
following links, and not if other users could change its contents. A file that the agent did not write is never
replaced or removed.
"""

from __future__ import annotations

from pathlib import Path

from certctrl.errors import PolicyRefusedError
from certctrl.store.disk.atomic import discard, is_temp, read_bytes, temp_name
from certctrl.store.disk.fs import FileKind, Fs, Handle, closing
from certctrl.store.disk.safe_path import NoDirectoryError, open_parent

MODE = 0o644
"""The web server reads it as another user; the content is public."""
_LIMIT = 1024


def check_directory(fs: Fs, directory: str) -> None:
    """Raise PolicyRefusedError or DiskError if files cannot safely be written in a directory."""
    fs.close(_open(fs, directory, "token"))


def write_token_file(fs: Fs, directory: str, name: str, data: bytes) -> bool:
    """Write a file durably; False if it is there already. Raises PolicyRefusedError, DiskError.

    ``name`` has been checked to be one plain path component.
    """
    with closing(fs, _open(fs, directory, name)) as parent:
        if fs.lstat(name, at=parent) is not None:
            if _has(fs, parent, name, data):
                return False
            raise PolicyRefusedError(
                f"{directory}/{name} exists, and this agent did not write it",
                fix="find out what wrote it, and remove it",
            )
        temp = temp_name(fs, name)
        handle = fs.create(temp, MODE, at=parent)
        try:
            fs.write(handle, data)
            fs.fsync(handle)
            fs.rename(temp, name, at=parent)
        except BaseException:
            discard(fs, handle, temp, parent)
            raise
        fs.close(handle)
        fs.fsync(parent)
    return True


def remove_token_file(fs: Fs, directory: str, name: str, data: bytes) -> bool:
    """Remove a file with these bytes, and leftovers of a crash; False if there is none. Raises as when writing."""
    try:
        opened = _open(fs, directory, name)
    except NoDirectoryError:
        return False
    with closing(fs, opened) as parent:
        mine = [one for one in fs.listdir(parent) if is_temp(one) and one.startswith(f".{name}.")]
        mine += [name] if _has(fs, parent, name, data) else []
        for one in mine:
            fs.unlink(one, at=parent)
        if mine:
            fs.fsync(parent)
    return bool(mine)


def _has(fs: Fs, parent: Handle, name: str, data: bytes) -> bool:
    """Return whether a name is a regular file with these bytes."""
    found = fs.lstat(name, at=parent)
    if found is None or found.kind is not FileKind.FILE or found.size != len(data):
        return False
    return read_bytes(fs, name, _LIMIT, at=parent) == data


def _open(fs: Fs, directory: str, name: str) -> Handle:
    try:
        return open_parent(fs, Path(directory) / name)
    except NoDirectoryError as error:
        raise NoDirectoryError(str(error), fix=f"mkdir -p {directory}") from None
    except PolicyRefusedError as error:
        raise PolicyRefusedError(
            str(error), fix="correct it, or name another acme.http01_directory in policy.json"
        ) from None
