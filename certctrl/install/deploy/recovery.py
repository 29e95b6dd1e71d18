"""Recover from a crash: make disk and records agree, before any other work.

The live links are the truth; records describe them. Pending commands and verifications need no list: the activation
markers disagree with the live generations, so the next `converge` runs them.
"""

from __future__ import annotations

from contextlib import suppress

import attrs

from certctrl.errors import DiskError, StateCorruptError
from certctrl.install.deploy import atomic
from certctrl.install.deploy.context import Context
from certctrl.install.deploy.names import publish
from certctrl.install.deploy.results import with_facts
from certctrl.install.deploy.staging import Candidate, with_chain_end
from certctrl.model.records import CertRecord, Stage
from certctrl.store.disk.fs import closing
from certctrl.store.layout import ALIAS
from certctrl.store.state.files import sweep_leftovers

ALERT_PREFIX = "alert-"


def recover(context: Context) -> None:
    """Finish or undo interrupted copies, remove left-over files, and update the records. Blocks on the disk.

    Raises DiskError, StateCorruptError (unreadable records never count as "nothing here").
    """
    _finish_copies(context)
    context.generations.sweep()
    with suppress(DiskError):  # half-written state files may contain secrets; nothing depends on them
        sweep_leftovers(context.layout, context.fs)
    _sweep_alerts(context)
    atomic.finish_switches(context)
    names = _live_names(context)
    for record in list(context.records.certificates.values()):
        live = _live(context, record.name)
        if live != record.generation:
            context.records.note(_described(context, record, live))
        elif live:
            context.records.note(attrs.evolve(record, facts=with_chain_end(context, record.facts, live)))
        names.discard(record.name)
    for name in sorted(names):  # live without a record: a crash came before it was written
        with suppress(StateCorruptError):
            candidate = Candidate.read(context, name, _live(context, name))
            if candidate.cert_id not in context.records.certificates:
                context.records.note(_described(context, CertRecord(facts=candidate.facts), candidate.generation))
    publish(context, always=True)


def _finish_copies(context: Context) -> None:
    with closing(context.fs, context.fs.open_dir(context.layout.journal)) as journals:
        if not context.fs.listdir(journals):
            return
    from certctrl.store.deployments.recovery import recover as recover_copies  # here: few starts have copies to finish

    policy = context.policy()
    roots = (*policy.write_roots, str(context.layout.certs), *filter(None, (policy.trust_store.directory,)))
    for fault in recover_copies(context.layout, context.fs, roots, helper=context.helper).failed:
        context.log.error("Interrupted copies could be neither finished nor undone: %s", fault)


def clear_up(context: Context) -> None:
    """Remove staged generations that will not be used, and files that could not be removed on a failing disk.

    Blocks on the disk; raises DiskError if a generation has to stay.
    """
    if context.left:
        from certctrl.store.deployments.recovery import clear_up as clear_up_copies  # here: only failing disks need it

        left = tuple(context.left)
        context.left.difference_update(clear_up_copies(context.layout, context.fs, left, helper=context.helper))
    context.generations.clear_up()


def lost(context: Context, contents: bool = True) -> list[CertRecord]:
    """Return the certificates that are live by their records, but not whole on disk. Blocks on the disk.

    ``contents``: as for `GenerationStore.is_whole`.
    """

    def is_lost(record: CertRecord) -> bool:
        live = _live(context, record.name)
        return not live or not context.generations.is_whole(record.name, live, contents=contents)

    return [one for one in list(context.records.certificates.values()) if one.generation and is_lost(one)]


def _live(context: Context, name: str) -> str:
    """Return the live id; empty if there is none or the link does not lead to a generation."""
    try:
        return context.generations.live_id(name) or ""
    except StateCorruptError:
        return ""


def _described(context: Context, record: CertRecord, live: str) -> CertRecord:
    """Return a record that describes the live generation; an unreadable one counts as absent and is fetched again."""
    if not live:
        return attrs.evolve(record, generation="")
    try:
        candidate = Candidate.read(context, record.name, live)
    except StateCorruptError:
        return attrs.evolve(record, generation="")
    if candidate.cert_id != record.cert_id or not context.generations.is_whole(record.name, live):
        return attrs.evolve(record, generation="")
    stage = Stage.ACTIVATED if live == record.activated else Stage.COMMITTED
    return attrs.evolve(with_facts(record, candidate), stage=stage)


def _live_names(context: Context) -> set[str]:
    with closing(context.fs, context.fs.open_dir(context.layout.live)) as directory:
        return {name for name in context.fs.listdir(directory) if not name.startswith((".", ALIAS))}


def _sweep_alerts(context: Context) -> None:
    with closing(context.fs, context.fs.open_dir(context.layout.state)) as directory:
        for name in context.fs.listdir(directory):
            if name.startswith(ALERT_PREFIX):
                with suppress(DiskError):
                    context.fs.unlink(name, at=directory)
