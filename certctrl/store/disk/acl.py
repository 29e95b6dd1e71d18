"""Access control lists and security attributes of files: find the users who can write, copy the attributes.

A file with a POSIX ACL (acl(5)) shows the mask of its list as the group bits of its mode: the group itself may have
less, and named users and groups have rights that the mode does not show. Lists of other kinds (NFSv4) are not judged
here.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from certctrl.store.layout import SECRET_MODE

if TYPE_CHECKING:  # `status` imports this module
    from certctrl.store.disk.interface import Fs, Handle

ACCESS = "system.posix_acl_access"
_HEAD, _ENTRY, _VERSION = struct.Struct("<I"), struct.Struct("<HHI"), 2
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_WRITE = 2
_NFS4 = "system.nfs4_acl"
_NFS4_HEAD, _NFS4_PLAIN = struct.Struct(">I"), (b"OWNER@", b"GROUP@", b"EVERYONE@")
_MEASURED = ("security.ima", "security.evm")
"""Signatures of the contents: wrong for any other contents."""


def is_kept(name: str) -> bool:
    """Return whether an extended attribute affects access, so that a replacement must keep it."""
    if name.startswith("security."):
        return name not in _MEASURED
    return name.startswith("system.") and "acl" in name and name != "system.posix_acl_default"


def lists_of(path: str) -> dict[str, bytes]:
    """Return the access control lists of a path, links not followed. Raises OSError if they cannot be read."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.ENOSYS):
            return {}
        raise
    kept = [name for name in names if name.startswith("system.") and is_kept(name)]
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in kept}


def unknown_list(attributes: Mapping[str, bytes]) -> str:
    """Return why the rights of a file cannot be determined; empty if they can."""
    for name, raw in attributes.items():
        if name.startswith("system.") and name != ACCESS and not (name == _NFS4 and _is_plain_nfs4(raw)):
            return f"it has an access control list that this agent does not know ({name})"
    try:
        _entries(attributes.get(ACCESS, b""))
    except ValueError:
        return "it has a malformed access control list"
    return ""


def other_writers(
    mode: int, gid: int, attributes: Mapping[str, bytes], users: Collection[int | None], groups: Collection[int]
) -> str:
    """Return who else than the owner and these users and groups can write, for a message; empty if no one can.

    Only effective rights count: those that the mask allows. An unknown list counts as a right of others.
    """
    if why := unknown_list(attributes):
        return f"others, perhaps: {why}"
    entries = _entries(attributes.get(ACCESS, b""))
    if not entries:
        entries = [(_GROUP_OBJ, mode >> 3 & 7, 0), (_OTHER, mode & 7, 0)]
    mask = next((perm for tag, perm, _ in entries if tag == _MASK), 7)
    for tag, perm, number in entries:
        if tag == _OTHER and perm & _WRITE:
            return "others"
        if tag == _USER and perm & mask & _WRITE and number not in users:
            return f"user {number}"
        group = gid if tag == _GROUP_OBJ else number
        if tag in (_GROUP_OBJ, _GROUP) and perm & mask & _WRITE and group not in groups:
            return f"group {group}"
    return ""


def give_attributes(fs: Fs, handle: Handle, attributes: Mapping[str, bytes], mode: int) -> None:
    """Give a new file of mode 0600 this mode and the attributes of the file that it replaces.

    As with chmod, the mode sets the rights of owner, mask and others. Entries inherited from the directory's default
    ACL are dropped.
    """
    present = fs.attributes(handle)
    access = attributes.get(ACCESS)
    if access is None and ACCESS in present:
        fs.set_attribute(handle, ACCESS, None)
    for name, value in attributes.items():
        if name.startswith("security.") and present.get(name) != value:
            fs.set_attribute(handle, name, value)
    if access is None:
        if mode != SECRET_MODE:
            fs.chmod(handle, mode)
    else:
        fs.set_attribute(handle, ACCESS, _with_mode(access, mode))


def _entries(raw: bytes) -> list[tuple[int, int, int]]:
    """Return (tag, permissions, id) of each entry; none for empty bytes. Raises ValueError."""
    if not raw:
        return []
    body = raw[_HEAD.size :]
    if len(raw) < _HEAD.size or _HEAD.unpack(raw[: _HEAD.size])[0] != _VERSION or len(body) % _ENTRY.size:
        raise ValueError("not a POSIX access control list")
    return [(tag, perm, number) for tag, perm, number in _ENTRY.iter_unpack(body)]


def _with_mode(raw: bytes, mode: int) -> bytes:
    entries = _entries(raw)
    middle = _MASK if any(tag == _MASK for tag, _, _ in entries) else _GROUP_OBJ
    bits = {_USER_OBJ: mode >> 6 & 7, middle: mode >> 3 & 7, _OTHER: mode & 7}
    body = b"".join(_ENTRY.pack(tag, bits.get(tag, perm), number) for tag, perm, number in entries)
    return _HEAD.pack(_VERSION) + body


def _is_plain_nfs4(raw: bytes) -> bool:
    """Return whether an NFSv4 list has entries for owner, group and everyone only, like a mode (RFC 7530, 6.2.1)."""
    try:
        return all(who in _NFS4_PLAIN for who in _nfs4_names(raw))
    except struct.error:
        return False


def _nfs4_names(raw: bytes) -> Iterator[bytes]:
    (count,) = _NFS4_HEAD.unpack_from(raw)
    place = _NFS4_HEAD.size
    for _ in range(count):
        (size,) = _NFS4_HEAD.unpack_from(raw, place + 12)  # after type, flags and mask
        yield raw[place + 16 : place + 16 + size]
        place += 16 + size + -size % 4
