"""Decode and encode the bytes of state files.

An unusable file (empty, NUL bytes, garbage, truncated, from a later version) raises StateCorruptError with a fix. It is
never treated as missing: that would mean a first run, which would register a second device.
Imports only json, because `status` starts through this module.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from certctrl.errors import LaterStateError, StateCorruptError

VERSION = 1
"""Increased by a release whose files the one before cannot read; new keys and files that it may ignore keep it."""
VERSION_KEY = "state_version"
"""The first key of every file, so that its first bytes tell the version."""
TEXT_LIMIT = 64 * 1024
JSON_LIMIT = 64 * 1024 * 1024


def corrupt(file: str, what: str, fix: str) -> StateCorruptError:
    """Return the error for a state file; ``what`` must not include its contents."""
    return StateCorruptError(f"{file} is damaged: {what}", path=file, fix=fix)


def of_later_release(file: str, version: int) -> LaterStateError:
    """Return the error for a state file of a later version."""
    return LaterStateError(
        f"{file} was written by a later cert-ctrl (state version {version}, this one knows {VERSION})",
        path=file,
        fix="install that version again; docs/upgrading.md says how to go back",
    )


def fits_text(text: str) -> bool:
    """Return whether `text_of` reads this text back unchanged."""
    return bool(text) and len(text) <= TEXT_LIMIT // 4 and text.isprintable() and text == text.strip()


def text_of(data: bytes, file: str, fix: str) -> str:
    """Return the line of a text file, without the final newline that editors add. Raises StateCorruptError."""
    if not data:
        raise corrupt(file, "it is empty", fix)
    try:
        text = data.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise corrupt(file, "it is not text", fix) from None
    if not fits_text(text):
        what = "it contains NUL bytes" if "\0" in text else "expected one line of text"
        raise corrupt(file, what, fix)
    return text


def poll_time_of(data: bytes) -> float | None:
    """Return the poll time; None without the final newline, as after a power cut."""
    line, newline, rest = data.partition(b"\n")
    return float(line) if newline and not rest and line.isdigit() and len(line) < 16 else None


def object_of(data: bytes, file: str, fix: str) -> dict[str, Any]:
    """Return the JSON object of a state file, with its version checked. Raises StateCorruptError."""
    if not data:
        raise corrupt(file, "it is empty", fix)
    if not data.strip(b"\0"):
        raise corrupt(file, "it contains only NUL bytes", fix)
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        raise corrupt(file, "it is not JSON, or is truncated", fix) from None
    if not isinstance(raw, dict):
        raise corrupt(file, "expected a JSON object", fix)
    version = raw.get(VERSION_KEY)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise corrupt(file, "its state version is missing", fix)
    if version > VERSION:
        raise of_later_release(file, version)
    return raw


def to_json(body: dict[str, Any]) -> bytes:
    """Return the bytes of a state file."""
    return (json.dumps({VERSION_KEY: VERSION, **body}, separators=(",", ":"), allow_nan=False) + "\n").encode()


def to_json_of_rows(key: str, rows: Sequence[str]) -> bytes:
    """Return the bytes of a state file whose only key is a list of rows, each given as JSON text."""
    empty = to_json({key: []})
    return empty[:-3] + ",".join(rows).encode() + empty[-3:]
