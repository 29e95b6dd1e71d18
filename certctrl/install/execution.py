"""Carry out one set of a plan after its switch: files, commands, proofs; and know how to take the files back.

The first failure of an item that does not say ``continue_on_error`` ends the set; the caller then goes back. Copies
that may fail are written after the others of their level, each unit by itself.
Commands of one level run side by side. What is written stays undoable until the set is proven.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path

import attrs
import trio

from certctrl.errors import CertctrlError, CommandError
from certctrl.install.commands import prove, run_granted
from certctrl.install.formats import ca_files
from certctrl.install.policy import shown
from certctrl.install.site import Site
from certctrl.install.steps import DesiredCert, PlanSet, Run, Verification, Write
from certctrl.install.trust import import_ca
from certctrl.store.copies import CopySet, FileWrite


@attrs.define(eq=False, kw_only=True)
class Execution:
    """The work on one set, as far as it has come."""

    site: Site
    plan: PlanSet
    certs: Mapping[int, DesiredCert]
    copies: list[CopySet] = attrs.field(factory=list)
    lasting: list[CopySet] = attrs.field(factory=list)
    """Copies that stay when the set goes back: the first files for a service."""
    written: list[Write] = attrs.field(factory=list)
    ran: set[str] = attrs.field(factory=set)
    """Exec items whose command was started."""
    keys: dict[str, str] = attrs.field(factory=dict)
    """Activation keys of commands that succeeded."""
    notes: list[str] = attrs.field(factory=list)
    """What failed and was tolerated."""

    async def carry_out(self) -> None:
        """Do everything in order. Raises the first failure that is not tolerated (CertctrlError)."""
        for ca_id in self.plan.imports:
            await self._import(ca_id)
        for level in self.plan.levels:
            await self._put(level.writes)
            await self._all([_Job(run.items[0], run.tolerant, self._run, run) for run in level.runs])
        await self._all([_Job(one.item, one.tolerant, self._prove, one) for one in self.plan.verifications])

    async def close(self) -> None:
        """Drop what is kept for going back."""
        copies, self.copies, self.lasting = self.copies + self.lasting, [], []
        if not copies:
            return
        with trio.CancelScope(shield=True):
            await self.site.offload(_close_all, copies)

    async def undo(self) -> None:
        """Put the old files back, the newest change first."""
        copies, self.copies = self.copies, []
        with trio.CancelScope(shield=True):
            await self.site.offload(_undo_all, copies)
        await self.close()

    def about(self, cert_ids: Collection[int]) -> list[DesiredCert]:
        """Return the certificates of these ids."""
        return [self.certs[cert_id] for cert_id in cert_ids if cert_id in self.certs]

    async def _import(self, ca_id: int) -> None:
        ca = self.site.book.cas[str(ca_id)]
        outcome = await import_ca(self.site, ca_id, ca.name, ca.pem, ())
        if not outcome.ok:
            raise CommandError(f"CA {ca_id} is not in the trust store: {outcome.detail}")

    async def _run(self, run: Run) -> None:
        self.ran |= set(run.items)
        what = f"item {shown(', '.join(run.items[:3]))}: {shown(run.grant.argv[0])}"
        await run_granted(self.site, run.grant, self.about(run.cert_ids), what)
        self.keys |= run.keys

    async def _prove(self, one: Verification) -> None:
        await prove(self.site, one, self.about(one.cert_ids))

    async def _all(self, jobs: Sequence[_Job]) -> None:
        """Run jobs side by side, each to its end; then raise the first failure that is not tolerated."""
        if not jobs:
            return
        failures: dict[int, CertctrlError] = {}

        async def one(number: int, job: _Job) -> None:
            try:
                await job.call(job.argument)
            except CertctrlError as error:
                failures[number] = error

        async with trio.open_nursery() as nursery:
            for number, job in enumerate(jobs):
                nursery.start_soon(one, number, job, name=f"item {shown(job.item)}")
        for number, error in sorted(failures.items()):
            if not jobs[number].tolerant:
                raise error
            self.notes.append(f"tolerated: {error}")

    async def _put(self, writes: Sequence[Write]) -> None:
        """Write the files of one level: all of them or none, one journal for each way back; what may fail by itself."""
        strict = [write for write in writes if not write.tolerant]
        first = [write for write in strict if write.why == "new" and self._is_first(write)]
        rest = [write for write in strict if write not in first]
        for group, kept in ((first, self.lasting), (rest, self.copies)):
            if group:
                await self._write(group, kept)
        units: dict[str, list[Write]] = {}
        for write in writes:
            if write.tolerant:
                units.setdefault(write.unit, []).append(write)
        for unit in units.values():
            lasts = all(write.why == "new" and self._is_first(write) for write in unit)
            try:
                await self._write(unit, self.lasting if lasts else self.copies)
            except CertctrlError as error:
                self.notes.append(f"tolerated: item {shown(unit[0].item)}: {error}")

    async def _write(self, writes: Sequence[Write], kept: list[CopySet]) -> None:
        with trio.CancelScope(shield=True):  # a pair is never left half renamed
            await self.site.offload(self._copy, writes, kept)
        self.written += writes

    def _is_first(self, write: Write) -> bool:
        """Return whether no service has used this file before: then there is no way back, and it needs it to start."""
        if write.cert_id is None:
            return False
        return not self.certs[write.cert_id].live or write.item in self.plan.unserved

    def _copy(self, writes: Sequence[Write], kept: list[CopySet]) -> None:
        copies = CopySet(self.site.layout, self.site.fs)
        copies.begin([self._file(write) for write in writes])
        kept.append(copies)
        copies.commit()

    def _file(self, write: Write) -> FileWrite:
        if write.cert_id is not None:
            cert = self.certs[write.cert_id]
            data = self.site.generations.read(cert.name, cert.generation, write.source)
        else:
            ca = self.site.book.cas[str(write.ca_id)]
            data = ca_files(ca.ca_id, ca.name, ca.pem.encode())[write.source]
        return FileWrite(path=Path(write.path), data=data, mode=write.mode, uid=write.uid, gid=write.gid)


@attrs.frozen
class _Job:
    item: str
    tolerant: bool
    call: Callable[..., Awaitable[None]]
    argument: Run | Verification


def _close_all(copies: Sequence[CopySet]) -> None:
    for one in copies:
        one.close()


def _undo_all(copies: Sequence[CopySet]) -> None:
    for one in reversed(copies):
        one.undo()
