"""Executor: stage the files of one group before its switch, perform its steps after it, and undo them on request.

The first failure ends the group, and the caller rolls back, unless

- its item says ``continue_on_error``;
- it concerns none of the changed certificates: it is recorded for those that it concerns; or
- its service was not running before: the previous files would not be served either, so the new ones stay.

All files are staged before the switch (``copies.py``). Copies that may fail are written after the others of their
step, one file group at a time. Commands of one step run concurrently. Written files can be undone until the group is
proven.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import attrs
import trio

from certctrl import lean
from certctrl.errors import CertctrlError, CommandError, ProbeError, ProbeFault
from certctrl.install.deploy.commands import run_granted, verify_live
from certctrl.install.deploy.context import Context
from certctrl.install.deploy.copies import Copies, Part
from certctrl.install.plan.dependencies import depended_on
from certctrl.install.plan.values import DesiredCert, GroupPlan, Run, Verification, Write
from certctrl.model.plan import (
    CopyAction,
    ExecAction,
    ImportCaAction,
    InstallItem,
    VerifyCommand,
    VerifyTls,
    cause_of,
    named_cause,
)
from certctrl.text import one_line

if TYPE_CHECKING:
    from certctrl.model.causes import Cause

Endpoint = tuple[str, int]
"""Host and port."""
MAX_ENDPOINTS = 64
"""Endpoints of one group that are checked; a service at another one counts as running."""


@lean.frozen
class Tolerated:
    """A failure that did not end the group."""

    why: str
    items: frozenset[str]
    cert_ids: frozenset[int]
    down: bool = False
    """Whether the service was not running, neither before this try nor after it."""
    cause: Cause | None = None
    """None if it is tolerated."""


@lean.define(eq=False, kw_only=True)
class Executor:
    """The work on one group, and its progress."""

    context: Context
    plan: GroupPlan
    certs: Mapping[int, DesiredCert]
    items: Mapping[str, InstallItem]
    batch: Collection[int] = ()
    """Unproven certificates of this try."""
    rolled_back: Collection[int] = ()
    """Those that were rolled back before, and so may be the reason why their service is down."""
    copies: Copies = attrs.field(init=False)
    ran: set[str] = attrs.field(factory=set)
    """Exec items whose command has been started."""
    keys: dict[str, str] = attrs.field(factory=dict)
    """Activation keys of commands that succeeded."""
    notes: list[str] = attrs.field(factory=list)
    """Notes for the operator about a success."""
    tolerated: list[Tolerated] = attrs.field(factory=list)
    unrelated: list[Tolerated] = attrs.field(factory=list)
    """Failures that concern none of the changed certificates, or a service that is not running."""
    blamed: set[int] = attrs.field(factory=set)
    """Certificates that the failure which ended the group concerns; empty if unknown."""
    cause: Cause | None = None
    """That of the failure that ended the group, if its step is not the usual one of the error."""
    served: set[int] = attrs.field(factory=set)
    """Certificates that an endpoint was seen to serve."""
    missed: list[Write] = attrs.field(factory=list)
    """Files that could not be written and may be missing."""
    down: set[Endpoint] = attrs.field(factory=set)
    """Endpoints where nothing listened before this try."""
    still_down: set[Endpoint] = attrs.field(factory=set)
    """Endpoints where nothing listens after a command or check has failed."""

    def __attrs_post_init__(self) -> None:
        self.copies = Copies(context=self.context, plan=self.plan, certs=self.certs)

    async def stage(self) -> None:
        """Stage all files, before the switch, so that a failure to write changes nothing. Raises as `run`."""
        try:
            with trio.CancelScope(shield=True):
                await self.context.offload(self._stage_all)
        except BaseException:
            await self.close()
            raise

    def _stage_all(self) -> None:
        for step in self.plan.steps:
            self._stage(step.writes)

    async def run(self) -> None:
        """Perform all steps in order. Raises the first failure that is not tolerated (CertctrlError)."""
        load_for(self.plan, self.items.values())
        self.down = await self._silent(_endpoints(self.items.values()))
        for ca_id in self.plan.imports:
            try:
                await self._import(ca_id)
            except CertctrlError as error:
                if not self._record_if_unrelated(error, self._importing(ca_id)):
                    raise
        for step in self.plan.steps:
            if step.writes:
                with trio.CancelScope(shield=True):  # a pair must not be left half renamed
                    await self.context.offload(self._put, step.writes)
            runs = [run for run in step.runs if not self._is_skipped(run.items)]
            await self._all([_Job(run.items, run.tolerant, self._run, run) for run in runs])
        checks = [one for one in self.plan.verifications if not self._is_skipped((one.item,))]
        await self._all([_Job((one.item,), one.tolerant, self._verify, one) for one in checks])

    async def close(self) -> None:
        """Remove staged files, and the backups for a rollback. Raises DiskError."""
        if self.copies.is_open:
            with trio.CancelScope(shield=True):
                await self.context.offload(self.copies.close)

    async def undo(self) -> None:
        """Restore the previous files, the newest change first. Raises DiskError."""
        if self.copies.is_open:
            with trio.CancelScope(shield=True):
                await self.context.offload(self.copies.undo)

    def about(self, cert_ids: Collection[int]) -> list[DesiredCert]:
        """Return the certificates of these ids."""
        return [self.certs[cert_id] for cert_id in cert_ids if cert_id in self.certs]

    async def _import(self, ca_id: int) -> None:
        ca = self.context.records.cas[str(ca_id)]
        from certctrl.install.deploy.trust_store import import_ca  # here: few hosts import CAs

        outcome = await import_ca(self.context, ca_id, ca.name, ca.pem, ())
        if not outcome.ok:
            raise CommandError(f"CA {ca_id} is not in the trust store: {outcome.detail}", status=1)

    def _lacks_files(self, for_files: Collection[str]) -> bool:
        """Return whether work was due only because of files, none of which could be written."""
        wanted = [write for step in self.plan.steps for write in step.writes if write.node in for_files]
        return bool(wanted) and all(write in self.missed for write in wanted)

    async def _run(self, run: Run) -> None:
        if self._lacks_files(run.for_files):
            self.keys |= run.keys  # no file has changed, so it counts as run
            return
        self.ran |= set(run.items)
        what = f"item {one_line(', '.join(run.items[:3]))}: {one_line(run.grant.argv[0])}"
        await run_granted(self.context, run.grant, self.about(run.cert_ids), what)
        self.keys |= run.keys

    async def _verify(self, one: Verification) -> None:
        if self._lacks_files(one.for_files):
            return
        if isinstance(one.verify, VerifyTls) and _endpoint(one.verify) in self.still_down:  # need not be waited for
            where = f"{one_line(one.verify.host)}:{one.verify.port}"
            raise ProbeError(f"{where} {ProbeFault.REFUSED}", fault=ProbeFault.REFUSED)
        try:
            await verify_live(self.context, one, self.about(one.cert_ids))
            if isinstance(one.verify, VerifyTls):
                self.served |= set(one.cert_ids)
        except ProbeError as error:
            if error.fault is not ProbeFault.NOT_OURS:
                raise
            # an endpoint that must not be probed says nothing about the certificate
            self._tolerate(f"item {one_line(one.item)}: not probed: {error}; {error.fix}", (one.item,), one.cert_ids)

    async def _all(self, jobs: Sequence[_Job]) -> None:
        """Run jobs concurrently, each to its end; then raise the first failure that is not tolerated."""
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
                nursery.start_soon(one, number, job, name=f"item {one_line(job.items[0])}")
        ends: list[CertctrlError] = []
        for number, error in sorted(failures.items()):
            job, changing = jobs[number], self._changing()
            scope = self._scope(job.items) | set(job.argument.cert_ids)
            is_unrelated = bool(job.argument.cert_ids or changing) and scope.isdisjoint(changing)
            if job.tolerant:
                self._tolerate(error, job.items, job.argument.cert_ids)
            elif (down := await self._is_down(job, scope)) or is_unrelated:
                why = f"{error}; the service is not running: nothing listens at {down}" if down else str(error)
                about = frozenset(scope & changing or scope)
                cause = named_cause(job.step, "service-down") if down else cause_of(error, job.step)
                self.unrelated.append(Tolerated(why, frozenset(job.items), about, down=bool(down), cause=cause))
                self.ran -= set(job.items)
            else:
                self.blamed |= scope
                ends.append(error)
                self.cause = self.cause or cause_of(error, job.step)
        if ends:
            raise ends[0]

    async def _is_down(self, job: _Job, scope: set[int]) -> str:
        """Return where a failed job's service should listen; empty if it was running before."""
        if isinstance(job.argument, Verification) and isinstance(job.argument.verify, VerifyTls):
            places = {_endpoint(job.argument.verify)}
        else:
            places = self._places(job)
        if not places or not places <= self.down or not scope.isdisjoint(self.rolled_back):
            return ""
        self.still_down |= (silent := await self._silent(places))
        return ", ".join(f"{one_line(host)}:{port}" for host, port in sorted(places)) if silent == places else ""

    def _places(self, job: _Job) -> set[Endpoint]:
        """Return where a command's service listens, by its items, by those they depend on, or by its certificates' probes."""
        below = {name for item in job.items for name in depended_on(item, self.items)}
        for names in (job.items, below):
            if found := _endpoints(self.items[name] for name in names if name in self.items):
                return found
        mine, checks = set(job.argument.cert_ids), self.plan.verifications
        return {_endpoint(v.verify) for v in checks if isinstance(v.verify, VerifyTls) and mine & set(v.cert_ids)}

    async def _silent(self, places: Collection[Endpoint]) -> set[Endpoint]:
        """Return the endpoints at which nothing listens."""
        found = set[Endpoint]()

        async def one(host: str, port: int) -> None:
            if await self.context.probe.is_down(host, port):
                found.add((host, port))

        async with trio.open_nursery() as nursery:
            for host, port in sorted(places)[:MAX_ENDPOINTS]:
                nursery.start_soon(one, host, port, name=f"connect to {one_line(host)}:{port}")
        return found

    def _changing(self) -> set[int]:
        """Return the ids of the certificates that this try changes."""
        written = {write.cert_id for step in self.plan.steps for write in step.writes if write.cert_id is not None}
        return written | set(self.batch)

    def _scope(self, items: Collection[str]) -> set[int]:
        """Return the certificates of the due work of these items and of the items that depend on them."""
        found = set[int]()
        for step in self.plan.steps:
            found |= {w.cert_id for w in step.writes if w.cert_id is not None and self._needs((w.item,), items)}
            for run in step.runs:
                if not set(items).isdisjoint(run.items) or self._needs(run.items, items):
                    found |= set(run.cert_ids)
        return found

    def _needs(self, items: Iterable[str], others: Collection[str]) -> bool:
        return any(not set(others).isdisjoint(depended_on(item, self.items)) for item in items)

    def _is_skipped(self, items: Collection[str]) -> bool:
        """Return whether work failed without ending the group, or depends on such work."""
        failed = {item for one in self.unrelated for item in one.items}
        return bool(failed) and (not failed.isdisjoint(items) or self._needs(items, failed))

    def _tolerate(self, why: object, items: Iterable[str], cert_ids: Iterable[int]) -> None:
        self.tolerated.append(Tolerated(f"tolerated: {why}", frozenset(items), frozenset(cert_ids)))

    def _stage(self, writes: Sequence[Write]) -> None:
        """Stage the files of one step, except those whose failure is tolerated. Blocks on the disk."""
        self._each_part(writes, self.copies.stage)

    def _put(self, writes: Sequence[Write]) -> None:
        """Put the files of one step in place: all or none, except for those that may fail. Blocks on the disk."""
        self._each_part(writes, self.copies.put)

    def _each_part(self, writes: Sequence[Write], act: Callable[[Part], None]) -> None:
        done = set(self.copies.written).union(self.missed)
        due = [one for one in writes if one not in done and not self._is_skipped((one.item,))]
        for part in self.copies.parts(due):
            try:
                act(part)
            except CertctrlError as error:
                if part.tolerant:
                    self._miss(part, error)
                    continue
                self._require_unrelated(part, error)
                self._each_part(writes, act)  # continue, without the items that depend on the failed ones
                return

    def _miss(self, part: Part, error: CertctrlError) -> None:
        """Record that files that may fail could not be written."""
        self.missed += part.writes
        certs = [write.cert_id for write in part.writes if write.cert_id is not None]
        self._tolerate(f"item {one_line(part.writes[0].item)}: {error}", {one.item for one in part.writes}, certs)

    def _require_unrelated(self, part: Part, error: CertctrlError) -> None:
        """Raise the error if it concerns a changed certificate; otherwise record it."""
        failed = self.copies.unwritable(part.writes)
        certs = {write.cert_id for write in failed if write.cert_id is not None}
        if not failed or not self._record_if_unrelated(error, {write.item for write in failed}, certs):
            raise error

    def _record_if_unrelated(self, error: CertctrlError, items: Collection[str], certs: Collection[int] = ()) -> bool:
        """Record a failure that concerns other certificates, but no changed one; return whether it was recorded."""
        scope = self._scope(items) | set(certs)
        if not scope.isdisjoint(self.batch) or not (self._changing() | set(self.batch)) - scope:
            self.blamed |= set(certs) or scope
            return False
        self.unrelated.append(Tolerated(str(error), frozenset(items), frozenset(scope), cause=cause_of(error)))
        return True

    def _importing(self, ca_id: int) -> list[str]:
        """Return the items that import a CA."""
        name = self.context.records.cas[str(ca_id)].name
        imports = (item for item in self.items.values() if isinstance(item, ImportCaAction))
        return [item.id for item in imports if item.ob_id == ca_id or (item.ob_id is None and item.ob_name == name)]


@lean.frozen
class _Job:
    items: tuple[str, ...]
    tolerant: bool
    call: Callable[..., Awaitable[None]]
    argument: Run | Verification

    @property
    def step(self) -> str:
        """The step of a failure, as a code of ``model/causes.py``."""
        return "run" if isinstance(self.argument, Run) else "probe"


def load_for(plan: GroupPlan, items: Iterable[InstallItem]) -> None:
    """Import what the steps of a group and its rollback need, while nothing has changed yet.

    Later, it could not be imported if the installed package was replaced meanwhile (`agent/package_guard.py`).
    """
    if not (plan.steps or plan.verifications or plan.imports):
        return
    import certctrl.model.causes  # here and below: an idle daemon does without

    if any(step.runs for step in plan.steps) or any(isinstance(v.verify, VerifyCommand) for v in plan.verifications):
        import certctrl.install.process.result
        from certctrl.install.process.child import load_supervisor

        load_supervisor()
    if _endpoints(items):
        import certctrl.install.probe.tls
    if plan.imports:
        import certctrl.install.deploy.trust_store  # noqa: F401


def _endpoint(verify: VerifyTls) -> Endpoint:
    return verify.host, verify.port


def _endpoints(items: Iterable[InstallItem]) -> set[Endpoint]:
    """Return the endpoints that some items name for their services."""
    verifies = [item.verify for item in items if isinstance(item, CopyAction | ExecAction)]
    return {_endpoint(verify) for verify in verifies if isinstance(verify, VerifyTls)}
