"""State of the installation: records, install config, pins, keystore passwords, audit log."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import attrs

from certctrl import lean
from certctrl.errors import DiskError, StateCorruptError
from certctrl.model.records import CaRecord, CertRecord, Retry
from certctrl.store import decode
from certctrl.store.disk.atomic import read_bytes, remove_file, write_atomic
from certctrl.store.disk.fs import Fs, closing
from certctrl.store.layout import CA_FILE_PREFIX, SECRET_MODE, ConfigDir, is_plain_name
from certctrl.store.state.files import REBUILD, StateFiles
from certctrl.store.state.retries import load_retries, retry_rows


@lean.frozen(kw_only=True)
class StoredInstallConfig:
    """The active install config, as the plane sent it."""

    raw: dict[str, Any]
    """The plane's ``data`` object."""
    etag: str | None
    version: int
    hash: str
    """``installs_hash_b64``."""
    high_water: Mapping[str, int] = attrs.field(factory=dict)
    """Config id -> highest version ever stored; maintained by `InstalledState`, the caller's value is ignored."""
    hashes: Mapping[str, str] = attrs.field(factory=dict)
    """Config id -> hash of that version; maintained likewise, and missing in files of earlier releases."""

    def hash_seen(self, config_id: str, version: int) -> str:
        """Return the hash with which a version of a config was stored; empty if unknown."""
        if (config_id, version) == (str(self.raw.get("id", "")), self.version):
            return self.hash
        return self.hashes.get(config_id, "") if version == self.high_water.get(config_id) else ""


def _has_plain_names(record: CertRecord) -> bool:
    """Return whether the directory names in a record, which become parts of paths, are plain."""
    ids = (record.generation, record.activated, record.staged, *(record.former or ()))
    return is_plain_name(record.name) and all(is_plain_name(one) for one in ids if one)


def _names_own_file(record: CaRecord) -> bool:
    """Return whether the agent writes such files for CAs, so that it may remove this one without the policy."""
    name = record.path.rpartition("/")[2]
    return not record.path or (name.startswith(CA_FILE_PREFIX) and name.endswith(f"-{record.ca_id}.crt"))


def _new_password(kind: str) -> str:
    return f"remove it; {kind} files then get a new password"


class InstalledState:
    """The state of the installation pipeline. Methods block on the disk and raise DiskError."""

    def __init__(self, layout: ConfigDir, fs: Fs) -> None:
        self.layout = layout
        self._fs = fs
        self._files = StateFiles(fs)
        self._history = History(layout.history, fs)

    def load_install_config(self) -> StoredInstallConfig | None:
        """Return the active install config."""
        path = self.layout.install_config
        stored = self._files.load_part(path, "config", StoredInstallConfig, None, REBUILD)
        return cast(StoredInstallConfig | None, stored)

    def save_install_config(self, config: StoredInstallConfig) -> None:
        """Replace the install config; the highest version of its id and that version's hash are kept."""
        try:
            before = self.load_install_config()
        except StateCorruptError:
            before = None  # the new one repairs it
        marks = dict(before.high_water) if before is not None else {}
        hashes = {one: before.hash_seen(one, mark) for one, mark in marks.items()} if before is not None else {}
        config_id = str(config.raw.get("id", ""))
        if config.version >= marks.get(config_id, config.version):
            marks[config_id], hashes[config_id] = config.version, config.hash
        hashes = {one: digest for one, digest in hashes.items() if digest}
        self._write_install_config(attrs.evolve(config, high_water=marks, hashes=hashes))

    def forget_versions(self) -> dict[str, int]:
        """Accept any version of the next install config; return the highest versions that were known.

        The active one stays.
        """
        stored = self.load_install_config()
        if stored is None:
            return {}
        blank = attrs.evolve(stored, etag=None, version=0, hash="", high_water={}, hashes={})
        self._write_install_config(blank)
        return dict(stored.high_water)

    def _write_install_config(self, config: StoredInstallConfig) -> None:
        self._files.save_json(self.layout.install_config, {"config": self._files.unstructured(config)})

    def load_certificates(self) -> dict[int, CertRecord]:
        """Return the records of this host's certificates by id."""
        path = self.layout.certificates
        rows = self._files.load_part(path, "certificates", Mapping[str, CertRecord], {}, REBUILD)
        if any(key != str(record.cert_id) for key, record in rows.items()):
            raise decode.corrupt(str(path), "an id differs from its record's", REBUILD)
        if not all(_has_plain_names(record) for record in rows.values()):
            raise decode.corrupt(str(path), "it contains a name that the agent does not give", REBUILD)
        return {record.cert_id: record for record in rows.values()}

    def save_certificates(self, records: Mapping[int, CertRecord], *, sync_parent: bool = True) -> None:
        """Replace the records; ``sync_parent`` here and below: see `write_atomic`."""
        rows = {str(cert_id): record for cert_id, record in records.items()}
        self._files.save_json(
            self.layout.certificates, {"certificates": self._files.unstructured(rows)}, sync_parent=sync_parent
        )

    def load_retries(self) -> tuple[tuple[Retry, ...], bool]:
        """Return the retries, and whether they come from files of an earlier release."""
        return load_retries(self._files, self.layout)

    def save_retries(self, retries: Sequence[Retry], *, sync_parent: bool = True) -> None:
        """Replace the retries."""
        self._files.save_json(
            self.layout.retries, {"retries": retry_rows(self._files, retries)}, sync_parent=sync_parent
        )

    def load_activations(self) -> dict[str, str]:
        """Return item id -> activation key of its last successful run."""
        fix = "remove it; the commands of the install plan then run again"
        return dict(self._files.load_part(self.layout.activations, "activations", Mapping[str, str], {}, fix))

    def save_activations(self, activations: Mapping[str, str], *, sync_parent: bool = True) -> None:
        """Replace the activation keys."""
        body = {"activations": dict(activations)}
        self._files.save_json(self.layout.activations, body, sync_parent=sync_parent)

    def load_cas(self) -> dict[str, CaRecord]:
        """Return the CAs in the trust store by id."""
        found = dict(self._files.load_part(self.layout.cas, "cas", Mapping[str, CaRecord], {}, REBUILD))
        if not all(_names_own_file(record) for record in found.values()):
            raise decode.corrupt(str(self.layout.cas), "it names a file that the agent does not write", REBUILD)
        return found

    def save_cas(self, cas: Mapping[str, CaRecord], *, sync_parent: bool = True) -> None:
        """Replace the CAs."""
        self._files.save_json(self.layout.cas, {"cas": self._files.unstructured(dict(cas))}, sync_parent=sync_parent)

    def load_pins(self) -> dict[str, str]:
        """Return path -> SHA-256 of the scripts that were pinned on first use."""
        fix = "restore it from a backup, or review the scripts and remove it: they are pinned again on next use"
        return dict(self._files.load_part(self.layout.pins, "pins", Mapping[str, str], {}, fix))

    def save_pins(self, pins: Mapping[str, str]) -> None:
        """Replace the pins."""
        self._files.save_json(self.layout.pins, {"pins": dict(pins)})

    def forget_pins(self) -> list[str]:
        """Remove all pins, so that scripts are pinned again on next use; return their paths."""
        pins = self.load_pins()
        if pins:
            self.save_pins({})
        return sorted(pins)

    def save_status(self, status: dict[str, Any]) -> None:
        """Replace the status, without fsync."""
        write_atomic(self._fs, self.layout.status, decode.to_json(status), durable=False)

    def load_history(self) -> list[dict[str, Any]]:
        """Return past deployments, oldest first."""
        return self._history.load()

    def append_history(self, entries: list[dict[str, Any]], limit: int) -> None:
        """Move entries from the list to the audit log and keep about ``limit`` of them; not synced."""
        self._history.append(entries, limit)

    def password_if_any(self, name: str, kind: str) -> bytes | None:
        """Return the password of one certificate's keystores of a kind; None if there is none yet."""
        found = self._files.load_text(self.layout.passwords / f"{name}.{kind}", _new_password(kind))
        return found.encode() if found is not None else None

    def password(self, name: str, kind: str) -> tuple[bytes, Path]:
        """Return the password of one certificate's keystores of a kind, and its file; created once, 0600."""
        path = self.layout.passwords / f"{name}.{kind}"
        found = self._files.load_text(path, _new_password(kind))
        if found is None:
            found = self._fs.token() + self._fs.token()  # 128 bits
            self._files.save_text(path, found, "password")
        return found.encode(), path

    def set_password(self, name: str, kind: str, password: str) -> Path:
        """Replace the password of one certificate's keystores of a kind; return its file."""
        path = self.layout.passwords / f"{name}.{kind}"
        self._files.save_text(path, password, "password")
        return path

    def forget_passwords(self, name: str) -> int:
        """Remove the keystore passwords of one certificate; return how many there were."""
        with closing(self._fs, self._fs.open_dir(self.layout.passwords)) as directory:
            names = [found for found in self._fs.listdir(directory) if found.rpartition(".")[0] == name]
        return sum(remove_file(self._fs, self.layout.passwords / found) for found in names)


SIZE_LIMIT = 256 * 1024 * 1024
_SLACK = 1.25


class History:
    """The audit log of deployments: one JSON object per line, appended, bounded.

    Appends are not synced: a power cut may lose or tear the last lines; torn lines are ignored. What must survive a
    power cut is in ``certificates.json`` and ``activations.json``.
    """

    def __init__(self, path: Path, fs: Fs) -> None:
        self._path = path
        self._fs = fs
        self._lock = threading.Lock()
        self._lines: int | None = None  # None: unknown, or the last line may be incomplete

    def load(self) -> list[dict[str, Any]]:
        """Return the entries, oldest first; lines that are not JSON objects are ignored."""
        return [entry for line in self._read().split(b"\n") if (entry := _entry(line)) is not None]

    def append(self, entries: list[dict[str, Any]], limit: int) -> None:
        """Append entries, oldest first; each leaves the list once it is in the file.

        If the file then has over 25 % more than ``limit`` entries, only the newest ``limit`` are kept.
        """
        with self._lock:
            if self._lines is None:
                self._rewrite(limit)
            if entries:
                self._write(entries)
            if self._lines is not None and self._lines > limit * _SLACK:
                self._rewrite(limit)

    def _read(self) -> bytes:
        try:
            return read_bytes(self._fs, self._path, SIZE_LIMIT) or b""
        except DiskError as error:
            if error.errno:
                raise
            return b""  # not a regular file

    def _write(self, entries: list[dict[str, Any]]) -> None:
        count, self._lines = self._lines or 0, None
        with closing(self._fs, self._fs.open_dir(self._path.parent)) as parent:
            with closing(self._fs, self._fs.open_append(self._path.name, SECRET_MODE, at=parent)) as handle:
                while entries:
                    self._fs.write(handle, _line(entries[0]))
                    del entries[0]
                    count += 1
        self._lines = count

    def _rewrite(self, limit: int) -> None:
        """Keep whole lines only, the newest ``limit``; nothing is written if nothing changes."""
        data = self._read()
        good = (line for line in reversed(data.split(b"\n")) if _entry(line) is not None)
        kept = [*islice(good, limit)][::-1]
        lines = b"".join(line + b"\n" for line in kept)
        if data != lines:
            write_atomic(self._fs, self._path, lines)
        self._lines = len(kept)


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None
