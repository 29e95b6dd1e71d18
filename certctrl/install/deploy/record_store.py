"""RecordStore: the records of certificates and CAs on this host, in memory and on disk.

The result of a group must be durable before it is reported. Callers that arrive during a write share the next one, so
a burst of a hundred groups costs two writes of each file, not a hundred.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import trio

from certctrl.install.deploy.retry_table import RetryTable, cert_resource
from certctrl.model.offload import Offload
from certctrl.model.records import CaRecord, CertRecord, Retry, Standing
from certctrl.store.state.installed import InstalledState


def audit_entry(
    about: CertRecord | CaRecord,
    *,
    at: float,
    outcome: str,
    before: str,
    after: str,
    asked_by: str = "plane",
    live: str | None = None,
    detail: str = "",
) -> dict[str, Any]:
    """Return one entry of the audit log about a certificate or a CA.

    ``at``: seconds since the epoch. ``before``, ``after``: generation ids, or the start of a CA file's hash.
    ``live``: the generation that is live now, if it is not the record's.
    """
    if isinstance(about, CaRecord):
        who: dict[str, Any] = {"ca_id": about.ca_id, "name": f"CA {about.name}"}
        what: dict[str, Any] = {"fingerprint_sha256": about.fingerprint_sha256, "targets": [about.path]}
    else:
        who = {"cert_id": about.cert_id, "name": about.name}
        what = {
            "live": about.generation if live is None else live,
            "serial": about.facts.serial,
            "fingerprint_sha256": about.facts.fingerprint_sha256,
            "targets": list(about.targets),
        }
    start = {"at": at, "asked_by": asked_by} | who
    return start | {"outcome": outcome, "from": before, "to": after} | what | {"detail": detail}


class RecordStore:
    """Records of certificates and CAs, activation markers, and the audit log."""

    def __init__(
        self, state: InstalledState, offload: Offload, history_limit: Callable[[], int], retries: RetryTable
    ) -> None:
        self.retries = retries
        self._state = state
        self._offload = offload
        self._history_limit = history_limit
        self._certificates: dict[int, CertRecord] | None = None
        self._activations: dict[str, str] | None = None
        self._cas: dict[str, CaRecord] | None = None
        self._history: list[dict[str, Any]] = []
        self._wanted = self._saved = self._lasting = 0  # numbers of changes: made, on disk, durable
        self._retries_saved = self._retries_lasting = 0  # versions of the retry table: on disk, durable
        self._lock = trio.Lock()

    @property
    def certificates(self) -> dict[int, CertRecord]:
        """The certificates of this host by id; read from disk on first use. Raises StateCorruptError, DiskError."""
        if self._certificates is None:
            self._certificates = self._state.load_certificates()
        return self._certificates

    @property
    def ours(self) -> list[CertRecord]:
        """The certificates of this plane; items cannot mean those of another plane, whose ids are different."""
        return [one for one in list(self.certificates.values()) if one.standing is not Standing.FOREIGN]

    @property
    def activations(self) -> dict[str, str]:
        """Item id -> activation key of its last success."""
        if self._activations is None:
            self._activations = self._state.load_activations()
        return self._activations

    @property
    def cas(self) -> dict[str, CaRecord]:
        """The CAs of this host by id."""
        if self._cas is None:
            self._cas = self._state.load_cas()
        return self._cas

    def by_name(self, name: str) -> CertRecord | None:
        """Return the record with a directory name, preferably of a certificate in use."""
        found = [record for record in self.certificates.values() if record.name == name]
        return max(found, key=lambda record: bool(record.generation), default=None)

    def note(self, record: CertRecord) -> None:
        """Replace one record; durable after the next `save`."""
        if self.certificates.get(record.cert_id) != record:
            self.certificates[record.cert_id] = record
            self._wanted += 1

    def ends_at(self, resource: str) -> float:
        """Return when the certificate in use of a resource ends; for other resources, the earliest end of all certificates."""
        kind, _, number = resource.partition(":")
        if kind == "cert" and number.isdecimal():
            records = [record for record in (self.certificates.get(int(number)),) if record is not None]
        else:
            records = list(self.certificates.values())
        return min((record.facts.not_after for record in records if record.generation), default=math.inf)

    def last_error(self, cert_id: int) -> str:
        """Return the error for which a certificate is retried; empty if it is not."""
        retry = self.retries.of(cert_resource(cert_id))
        return retry.last_error if retry is not None else ""

    def note_ca(self, record: CaRecord | None, ca_id: int) -> None:
        """Replace or remove one CA."""
        if record is None:
            self.cas.pop(str(ca_id), None)
        else:
            self.cas[str(ca_id)] = record
        self._wanted += 1

    def mark(self, keys: Mapping[str, str]) -> None:
        """Record the activation keys of commands that succeeded."""
        if any(self.activations.get(item) != key for item, key in keys.items()):
            self.activations.update(keys)
            self._wanted += 1

    def unmark(self, items: Iterable[str]) -> bool:
        """Remove the markers of items; return whether there were any."""
        known = [item for item in items if self.activations.pop(item, None) is not None]
        self._wanted += bool(known)
        return bool(known)

    def keep_marks(self, items: Iterable[str]) -> None:
        """Remove the markers of items that no longer exist, so that the file does not grow forever."""
        known = set(items)
        self.unmark([item for item in self.activations if item not in known])

    def audit(self, entry: dict[str, Any]) -> None:
        """Add an entry to the audit log."""
        self._history.append(entry)
        self._wanted += 1

    async def save(self, *, lasting: bool = True) -> None:
        """Make all changes so far durable. Raises DiskError; then the next `save` tries again.

        Without ``lasting``, a power cut may revert each file separately, until another file of its directory is made
        durable. That is enough if the caller does so next, and if a lost result only means that the command runs and
        the verification happens once more.
        """
        mine, retries = self._wanted, self.retries.version
        if self._done(lasting) >= mine and self._retries_done(lasting) >= retries:
            return
        await trio.lowlevel.checkpoint()  # groups that finish together share one write
        async with self._lock:
            if self._done(lasting) >= mine and self._retries_done(lasting) >= retries:
                return
            covered, entries, retries = self._wanted, self._history, self.retries.version
            self._history = []
            with trio.CancelScope(shield=True):
                try:
                    await self._offload(
                        self._write,
                        dict(self.certificates),
                        dict(self.activations),
                        dict(self.cas),
                        list(self.retries.rows().values()) if retries else None,
                        entries,
                        lasting,
                    )
                except BaseException:
                    self._history = entries + self._history
                    raise
            self._saved = covered
            self._lasting = covered if lasting else self._lasting
            self._retries_saved = retries
            self._retries_lasting = retries if lasting else self._retries_lasting

    async def secure_retries(self) -> None:
        """Make the retries durable: a signal leaves the inbox only after its retry is. Raises DiskError."""
        if self._retries_lasting < self.retries.version:
            await self.save()

    def _done(self, lasting: bool) -> int:
        return self._lasting if lasting else self._saved

    def _retries_done(self, lasting: bool) -> int:
        return self._retries_lasting if lasting else self._retries_saved

    def _write(
        self,
        records: Mapping[int, CertRecord],
        activations: Mapping[str, str],
        cas: Mapping[str, CaRecord],
        retries: Sequence[Retry] | None,
        entries: list[dict[str, Any]],
        lasting: bool,
    ) -> None:
        if retries is not None and not self._retries_lasting:  # before the files that had them in earlier releases
            self._state.save_retries(retries)
        self._state.save_certificates(records, sync_parent=lasting)
        if self._activations is not None:
            self._state.save_activations(activations, sync_parent=lasting)
        if self._cas is not None:
            self._state.save_cas(cas, sync_parent=lasting)
        if retries is not None:
            self._state.save_retries(retries, sync_parent=lasting)
        self._state.append_history(entries, self._history_limit())
