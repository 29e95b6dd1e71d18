"""Read the state for `status`, `list-certs` and other commands that change nothing.

Imports little besides json and os, for a fast start. Takes no locks. Values are plain JSON; None means never written.
"""

from __future__ import annotations

import errno
import os
from typing import Any

from certctrl.errors import DiskError, LaterStateError, StateCorruptError
from certctrl.store import decode

_REBUILD = "stop the agent and remove it; the agent then reconciles this host with the plane once"


def read_status(root: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the daemon's last status; None if never written or damaged by a power cut. Raises DiskError, LaterStateError."""
    try:
        raw = _json(root, "status.json")
    except LaterStateError:
        raise
    except StateCorruptError:
        return None
    return None if raw is None else {key: raw[key] for key in raw if key != decode.VERSION_KEY}


def read_certificates(root: str | os.PathLike[str]) -> list[dict[str, Any]] | None:
    """Return the records of `InstalledState.load_certificates` by id, as plain JSON.

    Raises DiskError, StateCorruptError.
    """
    raw = _json(root, "certificates.json")
    if raw is None:
        return None
    rows = raw.get("certificates")
    if not isinstance(rows, dict) or not all(
        isinstance(row, dict) and isinstance(row.get("cert_id"), int) and isinstance(row.get("name"), str)
        for row in rows.values()
    ):
        raise decode.corrupt(_path(root, "certificates.json"), "expected certificate records", _REBUILD)
    retries = {row.get("resource"): row for row in _retries(root) or () if not _is_revocation(row)}
    return sorted((_with_retry(row, retries) for row in rows.values()), key=lambda row: int(row["cert_id"]))


def _with_retry(row: dict[str, Any], retries: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    """Return the record of a certificate, with the fields of its retry if its last attempt failed."""
    row = {"last_error": "", "attempts": 0, "next_try_at": 0.0, **row}
    retry = retries.get(f"cert:{row['cert_id']}", {})
    if row.get("last_outcome") in ("failed", "rolled_back") or row.get("owed"):
        row |= {key: retry[key] for key in ("last_error", "attempts", "next_try_at") if key in retry}
    return row


def _retries(root: str | os.PathLike[str]) -> list[dict[str, Any]] | None:
    """Return the rows of ``retries.json``; None if it was never written."""
    raw = _json(root, "retries.json")
    if raw is None:
        return None
    rows = raw.get("retries")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise decode.corrupt(_path(root, "retries.json"), "expected a list of retries", _REBUILD)
    return rows


def _is_revocation(row: dict[str, Any]) -> bool:
    signal = row.get("signal")
    return isinstance(signal, dict) and signal.get("type") == "cert.revoked"


def read_staged_keys(root: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return ``cert_id``, ``order_id`` and ``name`` of each staged key by id; see `StagedKeys`. Raises DiskError."""
    path = os.path.join(root, "keys", "staged")
    try:
        files = os.listdir(path)
    except FileNotFoundError:  # of an earlier release
        return []
    except OSError as cause:
        raise _disk(path, cause) from cause
    parts = [file.removesuffix(".key").split("-", 2) for file in files if file.endswith(".key")]
    found = [part for part in parts if len(part) == 3 and part[0].isdecimal() and part[1].isdecimal()]
    rows = [{"cert_id": int(cert), "order_id": int(order), "name": name} for cert, order, name in found]
    return sorted(rows, key=lambda row: (row["cert_id"], row["order_id"]))


def read_cursor(root: str | os.PathLike[str]) -> str | None:
    """Return the committed cursor. Raises DiskError, StateCorruptError."""
    return _text(root, "last_cursor.txt")


def read_cursor_at(root: str | os.PathLike[str]) -> float | None:
    """Return when the cursor last changed, in seconds since the epoch."""
    try:
        return os.stat(_path(root, "last_cursor.txt")).st_mtime
    except FileNotFoundError:
        return None
    except OSError as cause:
        raise _disk(_path(root, "last_cursor.txt"), cause) from cause


def read_last_poll(root: str | os.PathLike[str]) -> float | None:
    """Return the time of the last successful poll; None if never written or damaged by a power cut."""
    try:
        data = _bytes(_path(root, "last_poll_time.txt"), decode.TEXT_LIMIT)
    except StateCorruptError:
        return None
    return None if data is None else decode.poll_time_of(data)


def read_device_id(root: str | os.PathLike[str]) -> str | None:
    """Return the device's public id. Raises DiskError, StateCorruptError."""
    return _text(root, "device_id.txt")


def is_registered(root: str | os.PathLike[str]) -> bool:
    """Return whether tokens were ever stored, valid or not."""
    try:
        os.stat(_path(root, "refresh_token.txt"))
    except FileNotFoundError:
        return False
    except OSError as cause:
        raise _disk(_path(root, "refresh_token.txt"), cause) from cause
    return True


def pending_acks(root: str | os.PathLike[str]) -> int:
    """Return the number of outcomes not yet acknowledged by the plane. Raises DiskError, StateCorruptError."""
    return len(_rows(root, "pending_acks.json", "acks"))


def waiting_signals(root: str | os.PathLike[str]) -> int:
    """Return the number of pending signals, retries included. Raises DiskError, StateCorruptError."""
    retries, arrived = _retries(root), _rows(root, "inbox.json", "entries")
    if retries is None:
        return len(arrived)
    # rows of an earlier release that had failed are retries
    fresh = [row for row in arrived if not (isinstance(row, dict) and (row.get("attempts") or row.get("last_error")))]
    return len(fresh) + sum(row.get("signal") is not None for row in retries)


def _rows(root: str | os.PathLike[str], name: str, key: str) -> list[Any]:
    raw = _json(root, name)
    rows = [] if raw is None else raw.get(key)
    if not isinstance(rows, list):
        raise decode.corrupt(_path(root, name), f"expected a list of {key}", _REBUILD)
    return rows


def _path(root: str | os.PathLike[str], name: str) -> str:
    return os.path.join(root, "state", name)


def _text(root: str | os.PathLike[str], name: str) -> str | None:
    path = _path(root, name)
    data = _bytes(path, decode.TEXT_LIMIT)
    return None if data is None else decode.text_of(data, path, _REBUILD)


def _json(root: str | os.PathLike[str], name: str) -> dict[str, Any] | None:
    path = _path(root, name)
    data = _bytes(path, decode.JSON_LIMIT)
    return None if data is None else decode.object_of(data, path, _REBUILD)


def _bytes(path: str, limit: int) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as cause:
        raise _disk(path, cause) from cause
    data = b""
    try:
        while len(data) <= limit and (part := os.read(fd, 1 << 20)):
            data += part
    except OSError as cause:
        raise _disk(path, cause) from cause
    finally:
        os.close(fd)
    if len(data) > limit:
        raise decode.corrupt(path, f"it is larger than {limit} bytes", _REBUILD)
    return data


def _disk(path: str, cause: OSError) -> DiskError:
    owner = "run as the agent's user, or as root" if cause.errno in (errno.EACCES, errno.EPERM) else f"check {path}"
    return DiskError(f"cannot read {path}: {cause.strerror}", path=path, errno=cause.errno or 0, fix=owner)
