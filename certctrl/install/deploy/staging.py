"""Stage: write a checked bundle next to the live one and run the plan's checks on it. Nothing live changes.

A lone renewal that no item copies is only opened here, and `settle` writes it in the thread job that switches to it: each
job takes longer to start than its work. Salted files (PKCS#12, JKS) are reused from a generation of the same certificate,
so that the same material always makes the same generation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import attrs

from certctrl import lean
from certctrl.errors import CertctrlError, DiskError, PolicyRefusedError
from certctrl.install.deploy.commands import base_variables, checked_pin, files_of
from certctrl.install.deploy.context import Context
from certctrl.install.material.bundle import chain_end
from certctrl.install.material.formats import password_kind, virtual_files
from certctrl.install.plan.copy_items import ItemIndex
from certctrl.install.plan.policy import Grant, Refusal, explain
from certctrl.install.plan.refusals import judge_argv
from certctrl.model.certificate import Bundle, CertFacts
from certctrl.model.plan import CopyAction, InstallItem
from certctrl.store.deployments.generations import Staged
from certctrl.store.state.converter import facts_of_manifest, manifest_facts
from certctrl.text import one_line


@lean.frozen(kw_only=True)
class Candidate:
    """A generation to switch a certificate to."""

    facts: CertFacts
    generation: str
    """Its id; of an unwritten one, the fingerprint of the certificate."""
    placeholder: bool = False
    """True for a self-signed stand-in for a revoked certificate."""
    staged: Staged | None = None
    """For `settle`; None if the generation is already durable, or unwritten."""
    unwritten: Bundle | None = None
    """What `settle` writes first; None if the generation has been written."""
    etag: str = ""
    """The ETag of the plane's answer that it was made from; empty: not known."""

    @classmethod
    def read(cls, context: Context, name: str, generation: str) -> Candidate:
        """Return a generation that is on disk. Raises DiskError, StateCorruptError."""
        manifest = context.generations.manifest(name, generation)
        facts = facts_of_manifest(name, manifest, str(context.generations.path(name, generation)))
        facts = with_chain_end(context, facts, generation)
        return cls(facts=facts, generation=generation, placeholder=bool(manifest["facts"].get("placeholder")))

    @property
    def cert_id(self) -> int:
        """The control plane's id of the certificate."""
        return self.facts.cert_id

    @property
    def name(self) -> str:
        """The directory name of the certificate."""
        return self.facts.name


def with_chain_end(context: Context, facts: CertFacts, generation: str) -> CertFacts:
    """Return the facts of a generation with its end, which is that of the first certificate of its chain to end.

    Blocks on the disk.

    Earlier releases recorded the end of the leaf.
    """
    ends = facts.not_after
    with suppress(DiskError):  # a damaged chain is reported by its next reader
        ends = min(ends, chain_end(context.generations.read(facts.name, generation, "chain.pem")))
    return facts if ends == facts.not_after else attrs.evolve(facts, not_after=ends)


async def stage(
    context: Context,
    source: Bundle | Callable[[], Bundle],
    items: Sequence[InstallItem],
    *,
    placeholder: bool = False,
    check: bool = True,
    alone: bool = False,
) -> Candidate:
    """Write a bundle's files to a staging directory and run the checks of its copy items on them.

    Not durable until `settle`, which settles many together. ``alone``: no other comes with it, and it is opened in a
    moment, so this is not left to a thread; if no item copies a certificate, it is not written yet. Raises DiskError;
    CommandError if a check fails, and PolicyRefusedError if this host does not allow it (unchecked material never goes
    live).
    """
    bundle: Bundle
    index = context.indexer.of(items)
    if alone and index.empty:
        source = source if isinstance(source, Bundle) else source()
        if _is_renewal(context, source.facts):
            return Candidate(facts=source.facts, generation=source.facts.fingerprint_sha256, unwritten=source)
    bundle, staged = await context.shared_offload(_write, context, source, index, placeholder)
    if check:
        try:
            await _check(context, bundle, staged, index.copies(bundle.facts))
        except CertctrlError:
            await context.offload(context.generations.discard, staged)
            raise
    return Candidate(facts=bundle.facts, generation=staged.id, placeholder=placeholder, staged=staged)


def _write(
    context: Context, source: Bundle | Callable[[], Bundle], index: ItemIndex, placeholder: bool
) -> tuple[Bundle, Staged]:
    bundle = source if isinstance(source, Bundle) else source()
    wanted = index.files(bundle.facts)
    kinds = {file: kind for file in wanted if (kind := password_kind(file)) is not None}
    passwords = {kind: context.state.password(bundle.facts.name, kind)[0] for kind in kinds.values()}
    facts = manifest_facts(bundle.facts) | ({"placeholder": True} if placeholder else {})
    if passwords:
        facts["passwords"] = {kind: password_mark(password) for kind, password in passwords.items()}
    salted = _salted_files(context, bundle, kinds, facts)
    files = virtual_files(bundle, wanted - salted.keys(), passwords.__getitem__) | salted
    return bundle, context.generations.stage(bundle.facts.name, files, facts)


def _is_renewal(context: Context, facts: CertFacts) -> bool:
    """Return whether this is a renewal of a certificate that is live."""
    record = context.records.certificates.get(facts.cert_id)
    return (
        record is not None and bool(record.generation) and record.facts.fingerprint_sha256 != facts.fingerprint_sha256
    )


def settle(context: Context, candidates: Iterable[Candidate]) -> dict[int, Candidate]:
    """Write those that are not written yet, make all durable, and return them. Blocks on the disk.

    Raises DiskError, or CertctrlError for a certificate that was withdrawn since it was opened.
    """
    written = {
        one.cert_id: one if one.unwritten is None else _written(context, one, one.unwritten) for one in candidates
    }
    context.generations.settle([one.staged for one in written.values() if one.staged is not None])
    return written


def _written(context: Context, candidate: Candidate, bundle: Bundle) -> Candidate:
    record = context.records.certificates.get(candidate.cert_id)
    if record is None or not record.generation:
        raise CertctrlError(f"{candidate.name} was withdrawn while its renewal was fetched")
    _, staged = _write(context, bundle, ItemIndex.of(()), placeholder=False)
    return attrs.evolve(candidate, generation=staged.id, staged=staged, unwritten=None)


def password_mark(password: bytes) -> str:
    """Return a short hash of a keystore password, which identifies it in a manifest."""
    return sha256(password).hexdigest()[:16]


def _salted_files(
    context: Context, bundle: Bundle, kinds: Mapping[str, str], facts: Mapping[str, Any]
) -> dict[str, bytes]:
    """Return salted files of this certificate's generations that were made with the current passwords."""
    found: dict[str, bytes] = {}
    for generation in context.generations.ids(bundle.facts.name) if kinds else ():
        manifest = context.generations.manifest(bundle.facts.name, generation)
        other = manifest["facts"]
        if other.get("fingerprint_sha256") != bundle.facts.fingerprint_sha256:
            continue
        for file, kind in kinds.items():
            same = other.get("passwords", {}).get(kind) == facts["passwords"][kind]
            if same and file in manifest["files"] and file not in found:
                found[file] = context.generations.read(bundle.facts.name, generation, file)
    return found


async def _check(context: Context, bundle: Bundle, staged: Staged, copies: Sequence[CopyAction]) -> None:
    """Run each check of a certificate's copy items once, until one fails."""
    done: set[tuple[str, ...]] = set()
    for item in copies:
        if not item.check or item.check in done:
            continue
        done.add(item.check)
        judged = judge_argv(context.policy(), item.id, item.check, context.identity)
        if isinstance(judged, Refusal):
            raise PolicyRefusedError(
                f"item {one_line(item.id)}: its check may not run here: {judged.why}", fix=explain(judged)
            )
        await _run_check(context, bundle.facts.name, staged, item, judged)


async def _run_check(context: Context, name: str, staged: Staged, item: CopyAction, grant: Grant) -> None:
    directory = Path(staged.path)
    env, secrets = await context.offload(files_of, context, name, directory, staged.files)
    result = await context.proc.run(
        [word.replace("{staged}", str(directory)) for word in grant.argv],
        run_as=grant.run_as,
        timeout=grant.timeout,
        env_paths=dict(grant.env) | base_variables(context, [name]) | env | {"CERTCTRL_STAGED_DIR": str(directory)},
        sha256=await context.offload(checked_pin, context, grant),
        secrets=secrets,
    )
    result.check(f"item {one_line(item.id)}: the check refuses the new certificate:")
