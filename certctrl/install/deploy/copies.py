"""Copies: files of one group, staged next to their destinations before the switch, and later renamed into place.

A file set is staged once its new files and backups of the old ones are durable; from then on, neither putting it in
place nor undoing it needs disk space.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from certctrl import lean
from certctrl.errors import CertctrlError
from certctrl.install.deploy.context import Context
from certctrl.install.material.formats import ca_files
from certctrl.install.plan.values import DesiredCert, GroupPlan, Write

if TYPE_CHECKING:
    from certctrl.store.deployments.file_set import FileSet, FileWrite


@lean.frozen
class Part:
    """Files of one step that are written together or not at all."""

    writes: tuple[Write, ...]
    stays: bool
    """Whether a rollback leaves them in place, because they are the first files of a service."""
    tolerant: bool = False
    """Whether the rest of the group continues if they fail."""


@lean.define(eq=False, kw_only=True)
class Copies:
    """The copies of one group. Methods block on the disk and raise CertctrlError."""

    context: Context
    plan: GroupPlan
    certs: Mapping[int, DesiredCert]
    written: list[Write] = attrs.field(factory=list)
    undoable: list[FileSet] = attrs.field(factory=list)
    """In place; `undo` restores the previous files."""
    _permanent: list[FileSet] = attrs.field(factory=list)
    """In place; they stay after a rollback."""
    _staged: dict[Part, FileSet] = attrs.field(factory=dict)

    @property
    def is_open(self) -> bool:
        """Whether something is staged, or can be undone."""
        return bool(self._staged or self.undoable or self._permanent)

    def parts(self, writes: Sequence[Write]) -> list[Part]:
        """Divide the files of one step into parts; those that may fail come last."""
        strict = [write for write in writes if not write.tolerant]
        first = [write for write in strict if self._is_first(write)]
        rest = [write for write in strict if not self._is_first(write)]
        found = [Part(tuple(some), stays) for some, stays in ((first, True), (rest, False)) if some]
        tolerant: dict[str, list[Write]] = {}
        for write in writes:
            if write.tolerant:
                tolerant.setdefault(write.file_group, []).append(write)
        for group in tolerant.values():
            found.append(Part(tuple(group), all(map(self._is_first, group)), tolerant=True))
        return found

    def stage(self, part: Part) -> None:
        """Write the files next to their destinations, durably; nothing live changes. Idempotent."""
        if part in self._staged:
            return
        files = self._file_set()
        files.begin([self._file(write) for write in part.writes])
        self._staged[part] = files

    def put(self, part: Part) -> None:
        """Rename the files into place; stage them first unless they are staged and no destination has changed."""
        if (files := self._staged.get(part)) is not None and not files.is_current():
            self._drop([part])
        self.stage(part)
        files = self._staged.pop(part)
        (self._permanent if part.stays else self.undoable).append(files)
        files.commit()
        self.written += part.writes

    def unwritable(self, writes: Sequence[Write]) -> list[Write]:
        """Return all files of each certificate or CA of which at least one file cannot be written."""
        failed = set[str]()
        for node in dict.fromkeys(write.node for write in writes):
            trial = self._file_set()
            try:
                trial.begin([self._file(write) for write in writes if write.node == node])
                trial.close()
            except CertctrlError:
                failed.add(node)
        return [write for write in writes if write.node in failed]

    def drop_staged(self) -> None:
        """Remove staged files that are not in place; the next start removes those that cannot be removed now."""
        self._drop(list(self._staged))

    def close(self) -> None:
        """Remove backups and staged files; idempotent."""
        done, self.undoable, self._permanent = self.undoable + self._permanent, [], []
        self.drop_staged()
        for one in done:
            one.close()

    def undo(self) -> None:
        """Restore the previous files, the newest change first; idempotent."""
        done, self.undoable = self.undoable, []
        self.drop_staged()
        for one in reversed(done):
            one.undo()
        self.close()

    def _drop(self, parts: Iterable[Part]) -> None:
        for part in parts:
            with suppress(CertctrlError):
                self._staged.pop(part).close()

    def _is_first(self, write: Write) -> bool:
        """Return whether no service has used this file yet; it stays after a failure, so that the service can start."""
        if not write.is_new or write.cert_id is None:
            return False
        return not self.certs[write.cert_id].live or write.item in self.plan.unserved

    def _file_set(self) -> FileSet:
        from certctrl.store.deployments.file_set import FileSet  # here and below: many groups copy no files

        context = self.context
        return FileSet(context.layout, context.fs, left=context.left, helper=context.helper)

    def _file(self, write: Write) -> FileWrite:
        from certctrl.store.deployments.file_set import FileWrite

        if write.cert_id is not None:
            cert = self.certs[write.cert_id]
            data = self.context.generations.read(cert.name, cert.generation, write.source)
        else:
            ca = self.context.records.cas[str(write.ca_id)]
            data = ca_files(ca.ca_id, ca.name, ca.pem.encode())[write.source]
        return FileWrite(
            path=Path(write.path),
            data=data,
            mode=write.mode,
            uid=write.uid,
            gid=write.gid,
            in_place=write.in_place,
            helper=write.helper,
        )
