"""Staged keys: private keys made on this host whose certificates are not deployed yet.

    keys/staged/CERT-ORDER-NAME.key       0600 in a directory of mode 0700

A key is durable before anything that depends on it leaves the host, and stays until a generation with it is live, or it
is no longer needed. Its file name contains certificate and order, so that keys are listed without reading them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from certctrl import lean
from certctrl.errors import DiskError, StateCorruptError
from certctrl.store.disk.atomic import remove_file, write_atomic
from certctrl.store.disk.fs import Fs, closing
from certctrl.store.layout import ConfigDir, safe_name
from certctrl.store.state.files import StateFiles

SUFFIX = ".key"
_NAME = re.compile(r"([1-9][0-9]{0,18})-([1-9][0-9]{0,18})-([A-Za-z0-9._-]{1,200})\.key", re.ASCII)
_LARGEST = 16 * 1024
_FIX = "remove it; the agent then makes a new key and requests a new certificate"


@lean.frozen
class StagedKey:
    """One staged key; only `StagedKeys.load` reads its contents."""

    cert_id: int
    order_id: int
    """The plane's order that requested it."""
    name: str
    """Directory-safe primary name of the certificate."""

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.cert_id}-{self.order_id}-{self.name}{SUFFIX}"


def parsed_file(file: str) -> StagedKey | None:
    """Return the staged key that a file name stands for; None if it is another file."""
    found = _NAME.fullmatch(file)
    return None if found is None else StagedKey(int(found[1]), int(found[2]), found[3])


class StagedKeys:
    """The staged keys of one agent; safe to share among threads. Methods block on the disk and raise DiskError."""

    def __init__(self, layout: ConfigDir, fs: Fs) -> None:
        self._directory = layout.staged_keys
        self._fs = fs
        self._files = StateFiles(fs)
        self._lock = Lock()
        """Guards ``_known``; not held while a key is written, as the event loop reads it, too."""
        self._known: dict[int, tuple[StagedKey, ...]] | None = None
        """By certificate, those of newer orders last."""
        self._durable: set[StagedKey] = set()
        """Those whose file names certainly are durable: a crash may have left others before their last fsync."""

    def all(self) -> tuple[StagedKey, ...]:
        """Return the staged keys by certificate and order; read from the disk once, as only this process changes them."""
        with self._lock:
            known = self._read()
            return tuple(key for cert_id in sorted(known) for key in known[cert_id])

    def of(self, cert_id: int) -> tuple[StagedKey, ...]:
        """Return the staged keys of a certificate, those of newer orders last."""
        with self._lock:
            return self._read().get(cert_id, ())

    def find(self, cert_id: int, order_id: int) -> StagedKey | None:
        """Return the staged key of an order."""
        return next((one for one in self.of(cert_id) if one.order_id == order_id), None)

    def load(self, key: StagedKey) -> bytes | None:
        """Return a staged key in PEM; None if its file is missing, or this agent did not write it."""
        try:
            return self._files.load_bytes(self._path(key), _LARGEST, _FIX)
        except StateCorruptError:
            return None

    def save(self, cert_id: int, order_id: int, domain: str, pem: bytes) -> StagedKey:
        """Stage a key durably; another one of the same order is replaced."""
        before = self.find(cert_id, order_id)
        key = StagedKey(cert_id, order_id, safe_name(domain)) if before is None else before
        with self._read_again_if_refused():
            write_atomic(self._fs, self._path(key), pem)
        self._note(cert_id, lambda keys: keys | {key})
        self._durable.add(key)
        return key

    def secure(self, key: StagedKey) -> None:
        """Make sure that a staged key survives a power cut, even if an earlier run ended while it staged the key."""
        if key in self._durable:
            return
        with closing(self._fs, self._fs.open_dir(self._directory)) as directory:
            self._fs.fsync(directory)
        self._durable.add(key)

    def remove(self, key: StagedKey) -> None:
        """Forget a staged key, durably; idempotent."""
        self._durable.discard(key)
        with self._read_again_if_refused():
            remove_file(self._fs, self._path(key))
        self._note(key.cert_id, lambda keys: keys - {key})

    @contextmanager
    def _read_again_if_refused(self) -> Iterator[None]:
        """Read the directory again after the disk refused a change, because it may have been made nevertheless."""
        try:
            yield
        except DiskError:
            with self._lock:
                self._known = None
            raise

    def _read(self) -> dict[int, tuple[StagedKey, ...]]:
        """Return the known keys; the caller holds the lock."""
        if self._known is None:
            if self._fs.lstat(self._directory) is None:  # of an earlier release
                return {}
            with closing(self._fs, self._fs.open_dir(self._directory)) as directory:
                found = [parsed_file(file) for file in self._fs.listdir(directory)]
            known: dict[int, list[StagedKey]] = {}
            for key in sorted((one for one in found if one is not None), key=lambda one: one.order_id):
                known.setdefault(key.cert_id, []).append(key)
            self._known = {cert_id: tuple(keys) for cert_id, keys in known.items()}
        return self._known

    def _note(self, cert_id: int, change: Callable[[set[StagedKey]], set[StagedKey]]) -> None:
        with self._lock:
            known = self._read()
            keys = change({*known.get(cert_id, ())})
            known[cert_id] = tuple(sorted(keys, key=lambda one: one.order_id))
            if not keys:
                del known[cert_id]

    def _path(self, key: StagedKey) -> Path:
        return self._directory / key.file
