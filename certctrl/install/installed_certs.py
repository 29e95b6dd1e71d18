"""InstalledCerts: the certificates and CAs of this host, with their directories, keys and retries.

The read-only half of the installer; only `save_retries` writes.
"""

from __future__ import annotations

from collections.abc import Sequence

from certctrl.install.deploy.context import Context
from certctrl.install.deploy.names import name_of_domain, own_name
from certctrl.install.deploy.retry_table import RetryTable, cert_resource
from certctrl.install.plan.retries import retriable
from certctrl.model.records import CertRecord


def in_use(record: CertRecord) -> bool:
    """Return whether a certificate has a generation on this host."""
    return bool(record.generation or record.staged)


class InstalledCerts:
    """The certificates and CAs of this host."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._names: dict[str, int] = {}
        """Directory -> certificate that will use it."""

    @property
    def records(self) -> dict[int, CertRecord]:
        """The certificates of this host by id. Raises StateCorruptError, DiskError on first use."""
        return self._context.records.certificates

    @property
    def retries(self) -> RetryTable:
        """The table of this host's retries; changes are durable after the next `save_retries`."""
        return self._context.records.retries

    def last_error(self, cert_id: int) -> str:
        """Return the error for which a certificate is retried; empty if it is not."""
        return self._context.records.last_error(cert_id)

    async def save_retries(self) -> None:
        """Make `retries` durable. Raises DiskError."""
        await self._context.records.secure_retries()

    @property
    def cas(self) -> frozenset[int]:
        """The ids of this host's CAs. Raises as `records`."""
        return frozenset(int(ca_id) for ca_id in self._context.records.cas)

    def ca_name(self, ca_id: int) -> str:
        """Return the name of one of this host's CAs; empty if it is not here or has none."""
        record = self._context.records.cas.get(str(ca_id))
        return record.name if record is not None else ""

    def name_for(self, cert_id: int, domains: Sequence[str]) -> str:
        """Return the directory of a certificate: its current one, otherwise one that no other certificate uses."""
        record = self.records.get(cert_id)
        if record is not None and in_use(record):
            return record.name
        name = name_of_domain(cert_id, domains[0] if domains else "")
        if any(one.name == name and one.cert_id != cert_id for one in self.records.values() if in_use(one)):
            return own_name(name, cert_id)
        holder = self._names.get(name, cert_id)  # while it is fetched, it has no record yet
        if holder != cert_id and holder not in self.records:
            return own_name(name, cert_id)
        self._names[name] = cert_id
        return name

    async def host_key(self, cert_id: int, public_key_sha256: str) -> bytes | None:
        """Return the key with this public half from the newest generation that has it; None if none has it."""
        record = self.records.get(cert_id)
        if record is None:
            return None
        from certctrl.install.deploy import host_keys  # here and below: only if keys are made here

        found: bytes | None = await self._context.offload(
            host_keys.find, self._context.generations, record.name, public_key_sha256
        )
        return found

    async def is_live_key(self, cert_id: int, public_key_sha256: str) -> bool:
        """Return whether the live generation of a certificate has the key with this public half."""
        record = self.records.get(cert_id)
        if record is None or not record.generation:
            return False
        from certctrl.install.deploy import host_keys

        found: bytes | None = await self._context.offload(
            host_keys.key_of, self._context.generations, record.name, record.generation, public_key_sha256
        )
        return found is not None

    def retry_times(self) -> dict[int, float]:
        """Return certificate id -> wall-clock time of its retry, for failures that no switch and no signal retries.

        0 stands for the items that concern no certificate.
        """
        retries, resources = self.retries, {cert_id: cert_resource(cert_id) for cert_id in self.records}
        turns = {
            cert_id: retries.due_at(resources[cert_id])
            for cert_id, record in self.records.items()
            if retriable(record) and not retries.carries(resources[cert_id])
        }
        items = [retries.due_at(retry.resource) for retry in retries.of_items().values()]
        return turns | ({0: min(items)} if items else {})
