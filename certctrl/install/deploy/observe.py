"""Observe this host for the planner: live generations, destinations, users and executables.

Blocks on the disk and on the user database; the pipeline runs it in a thread.
"""

from __future__ import annotations

import grp
import hashlib
import pwd
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import attrs

from certctrl import lean
from certctrl.errors import CertctrlError, CommandError, DiskError, StateCorruptError
from certctrl.install.deploy.context import Context
from certctrl.install.deploy.retry_table import cert_resource
from certctrl.install.deploy.staging import Candidate
from certctrl.install.material.formats import ca_files
from certctrl.install.plan.inputs import DEBIAN, RED_HAT, Host
from certctrl.install.plan.planner import commands_of, plan_for, programs
from certctrl.install.plan.policy import is_local
from certctrl.install.plan.retries import without_not_due
from certctrl.install.plan.values import DesiredCa, DesiredCert, Destination, GivenRights, InstallPlan
from certctrl.install.process.vetting import file_of, vet_executable, vet_scripts
from certctrl.model.certificate import CertFacts
from certctrl.model.commands import script_words
from certctrl.model.paths import is_below, path_fault
from certctrl.model.plan import CopyAction, ExecAction, InstallItem, ObjectType, WriteMethod
from certctrl.model.policy import HostPolicy, TrustStore
from certctrl.model.records import CaRecord, CertRecord
from certctrl.store.disk.acl import ACCESS
from certctrl.store.disk.helper import FileHelper, FileRule, rule_for
from certctrl.text import one_line

_T = TypeVar("_T")


@lean.frozen(kw_only=True)
class ObservedState:
    """The state of this host."""

    certs: Mapping[int, DesiredCert]
    cas: Mapping[int, DesiredCa]
    destinations: Mapping[str, Destination]
    host: Host
    unrecorded: Mapping[int, Candidate] = attrs.field(factory=dict)
    """Live generations that are not in the records, or not as proven: left by a crash, or never accepted."""
    faults: Mapping[int, str] = attrs.field(factory=dict)
    """Certificate id -> why its generation cannot be read; it counts as absent."""


def observe(
    context: Context,
    items: Sequence[InstallItem],
    records: Iterable[CertRecord],
    candidates: Mapping[int, Candidate],
    *,
    policy: HostPolicy,
    unproven: Collection[int] = (),
    examine: Collection[int] | None = None,
) -> ObservedState:
    """Return the state of this host as far as the planner needs it for some certificates and items.

    ``candidates``: desired generations, if not the live ones. ``unproven``: certificates to verify again.
    ``examine``: as for `plan_for`.
    """
    wanted = [item for item in items if item.enabled]
    copies = [item for item in wanted if isinstance(item, CopyAction)]
    named = {item.ob_id for item in copies if item.ob_type is not ObjectType.CA}
    known = {record.cert_id: record for record in records}
    known |= {
        i: CertRecord(facts=CertFacts(cert_id=i, name=one.name)) for i, one in candidates.items() if i not in known
    }
    certs, unrecorded, faults = dict[int, DesiredCert](), dict[int, Candidate](), dict[int, str]()
    for cert_id, record in known.items():
        with_files = not named.isdisjoint((cert_id, None)) and (examine is None or cert_id in examine)
        try:
            cert, found = _cert(context, record, candidates.get(cert_id), with_files)
        except DiskError as error:
            cert, found = DesiredCert(facts=CertFacts(cert_id=cert_id, name=record.name)), None
            faults[cert_id] = str(error)
        certs[cert_id] = attrs.evolve(cert, proven=False) if cert_id in unproven else cert
        if found is not None:
            unrecorded[cert_id] = found
    cas = {int(ca_id): _ca(ca) for ca_id, ca in list(context.records.cas.items())}
    examined = [
        one for one in copies if examine is None or one.ob_id in (None, *examine) or one.ob_type is ObjectType.CA
    ]
    host = _host(context, wanted, policy)
    allowed = [item for item in wanted if is_local(item.id)]
    destinations = _destinations(context, examined, policy, host.users, _program_files(_run_files(allowed, policy)))
    return ObservedState(
        certs=certs, cas=cas, destinations=destinations, host=host, unrecorded=unrecorded, faults=faults
    )


async def observe_and_plan(
    context: Context,
    items: Sequence[InstallItem],
    records: Sequence[CertRecord],
    candidates: Mapping[int, Candidate],
    *,
    policy: HostPolicy,
    unproven: Collection[int] = (),
    examine: Collection[int] | None = None,
    first: Callable[[], None] = lambda: None,
    then: Callable[[InstallPlan], None] = lambda plan: None,
    due_now: Collection[int] | None = None,
    made: Mapping[int, Mapping[str, str]] | None = None,
    together: Mapping[int, str] = MappingProxyType({}),
) -> tuple[InstallPlan, ObservedState]:
    """Observe and plan in one thread job: with thousands of items, either would stall the event loop.

    ``first``: called before that in the same thread. ``then``: called with the plan after that. ``due_now``: leave out work that is not due yet, except for these
    certificates (see `without_not_due`); None: leave out nothing. ``made``: certificate id -> file that a preview
    treats as remade -> why. ``together``: as for `plan_for`.
    """
    activations, retries = dict(context.records.activations), context.records.retries

    def work() -> tuple[InstallPlan, ObservedState]:
        first()
        observed = observe(context, items, records, candidates, policy=policy, unproven=unproven, examine=examine)
        observed = _with_made(observed, made or {})
        plan = plan_for(
            items,
            observed.certs,
            observed.destinations,
            policy,
            activations,
            host=observed.host,
            cas=observed.cas,
            examine=examine,
            together=together,
        )
        if due_now is not None:
            not_due = [record for record in records if not retries.is_due(cert_resource(record.cert_id))]
            plan = without_not_due(plan, observed.certs, not_due, due_now, retries.items_not_due())
        then(plan)
        return plan, observed

    plan, observed = await context.offload(work)
    return plan, observed


def _with_made(observed: ObservedState, made: Mapping[int, Mapping[str, str]]) -> ObservedState:
    """Return the state as it would be with these files of certificates, whose contents are not known yet."""
    found = dict(observed.certs)
    for cert_id, files in made.items():
        cert = found[cert_id]
        found[cert_id] = attrs.evolve(
            cert,
            generation=f"{cert.generation} with {', '.join(files)}",
            files={**cert.files, **dict.fromkeys(files, "")},
            proven=False,
            made=f"a new generation: {'; '.join(files.values())}",
        )
    return attrs.evolve(observed, certs=found) if made else observed


def _cert(
    context: Context, record: CertRecord, candidate: Candidate | None, with_files: bool
) -> tuple[DesiredCert, Candidate | None]:
    """Return the desired state of one certificate, and its live generation if the record does not know it."""
    live = context.generations.live_id(record.name) or ""
    unrecorded = None
    if candidate is None and live and not (live == record.generation == record.activated):
        unrecorded = Candidate.read(context, record.name, live)
        if unrecorded.cert_id != record.cert_id:  # withdrawn; another certificate has its name now
            live, unrecorded = "", None
        elif live != record.generation and not context.generations.is_whole(record.name, live):
            path = context.layout.generation(record.name, live)
            raise StateCorruptError(f"files of {path} are missing or changed", path=str(path), fix="cert-ctrl apply")
    generation = candidate.generation if candidate is not None else live
    files: dict[str, str] = {}
    if with_files and generation:
        files = dict(context.generations.manifest(record.name, generation)["files"])
    return DesiredCert(
        facts=(candidate or unrecorded or record).facts,
        generation=generation,
        live=live,
        files=files,
        proven=generation == record.activated,
        pending=record.pending,
        outgoing=record.outgoing and candidate is None,
    ), unrecorded


def _ca(ca: CaRecord) -> DesiredCa:
    files = {
        name: hashlib.sha256(data).hexdigest() for name, data in ca_files(ca.ca_id, ca.name, ca.pem.encode()).items()
    }
    return DesiredCa(
        ca_id=ca.ca_id, name=ca.name, files=files, fingerprint=ca.fingerprint_sha256, imported=bool(ca.path)
    )


def _destinations(
    context: Context,
    copies: Sequence[CopyAction],
    policy: HostPolicy,
    users: Mapping[str, int],
    allowed: Mapping[str | tuple[int, int], str],
) -> dict[str, Destination]:
    found: dict[str, Destination] = {}
    rules = helper_rules(context) if copies else ()
    for item in copies:
        roots = roots_for(context, policy, item.id)
        for number, path in enumerate(item.targets):
            if path in found:
                continue
            if context.helper is not None and (rule := rule_for(rules, path)) is not None:
                found[path] = helped_destination(context.helper, path, roots, rule, allowed)
            else:
                owner, in_place = users.get(item.owner_of(number) or ""), item.write is WriteMethod.IN_PLACE
                found[path] = destination_of(context, path, roots, owner, allowed, in_place=in_place)
    return found


def helper_rules(context: Context) -> tuple[FileRule, ...]:
    """Return the files that the root helper writes for this agent; none if it does not answer, which is logged."""
    if context.helper is None:
        return ()
    try:
        return context.helper.rules()
    except CertctrlError as error:
        context.log.warning("The root helper is not used: %s", error)
        return ()


def helped_destination(
    helper: FileHelper,
    path: str,
    roots: Sequence[str],
    rule: FileRule,
    allowed: Mapping[str | tuple[int, int], str] = MappingProxyType({}),
) -> Destination:
    """Return the state of a destination that the root helper writes; arguments as for `destination_of`."""
    if not any(is_below(path, root) for root in roots):
        return Destination(refusal="it is not below an allowed directory")
    if (program := allowed.get(path)) is not None:
        return Destination(refusal=f"it is the program of the allowed command {one_line(program)}")
    if rule.uid is None or rule.gid is None:
        why = f"the root helper would give it to {one_line(rule.owner)}:{one_line(rule.group)}, which this host lacks"
        return Destination(refusal=why)
    try:
        found, _ = helper.observe(path)
    except CertctrlError as error:
        return Destination(refusal=str(error))
    return Destination(
        sha256=found.sha256,
        mode=found.mode or 0,
        uid=found.uid or 0,
        gid=found.gid or 0,
        refusal=f"the root helper: {found.refusal}" if found.refusal else "",
        given=GivenRights(owner=rule.owner, group=rule.group, uid=rule.uid, gid=rule.gid, mode=rule.mode),
    )


def _run_files(items: Sequence[InstallItem], policy: HostPolicy) -> list[str]:
    """Return the programs and scripts of allowed commands, even those that do not exist yet."""
    return [*programs(items, policy), *(one for argv in commands_of(items, policy) for one in script_words(argv))]


def _program_files(paths: Iterable[str]) -> dict[str | tuple[int, int], str]:
    """Return the files of allowed programs: final path, and device and inode -> listed path."""
    found: dict[str | tuple[int, int], str] = {}
    for path in paths:
        real, identity = file_of(path)
        found[real] = path
        if identity is not None:
            found[identity] = path
    return found


def roots_for(context: Context, policy: HostPolicy, item_id: str) -> tuple[str, ...]:
    """Return the directories below which an item may write; local items may write anywhere."""
    return ("/",) if is_local(item_id) else (*policy.write_roots, str(context.layout.certs))


def destination_of(
    context: Context,
    path: str,
    roots: Sequence[str],
    owner: int | None = None,
    allowed: Mapping[str | tuple[int, int], str] = MappingProxyType({}),
    *,
    in_place: bool = False,
) -> Destination:
    """Return the state of one destination; if it cannot be read, it is refused with the reason.

    ``owner``: the user who will own the file, and may own the directory. ``allowed``: programs (`_program_files`),
    which are never overwritten, not even through links. ``in_place``: as for `destination_facts`.
    """
    if fault := path_fault(path):
        return Destination(refusal=fault)
    from certctrl.store.disk.safe_path import destination_facts  # here: many hosts copy no files

    try:
        found = destination_facts(path, roots, fs=context.fs, owner=owner, in_place=in_place)
    except DiskError as error:
        return Destination(refusal=str(error))
    program = allowed.get(path) or (allowed.get(found.identity) if found.identity is not None else None)
    if program is not None:
        return Destination(refusal=f"it is the program of the allowed command {one_line(program)}")
    return Destination(
        sha256=found.sha256,
        mode=found.mode or 0,
        uid=found.uid or 0,
        gid=found.gid or 0,
        has_acl=ACCESS in found.attributes,
        refusal=found.refusal or "",
    )


def _host(context: Context, items: Sequence[InstallItem], policy: HostPolicy) -> Host:
    copies = [item for item in items if isinstance(item, CopyAction)]
    argvs = commands_of(items, policy)
    executables = {
        path: fault for path in dict.fromkeys(argv[0] for argv in argvs) if (fault := _fault(vet_executable, path))
    }
    users = {item.run_as for item in items if isinstance(item, ExecAction)}
    users |= {command.run_as for command in policy.commands.values()}
    return Host(
        identity=context.identity,
        users=_ids_of({one for item in copies for one in item.accounts[0]}, lambda name: pwd.getpwnam(name).pw_uid),
        groups=_ids_of({one for item in copies for one in item.accounts[1]}, lambda name: grp.getgrnam(name).gr_gid),
        executables=executables,
        scripts={argv: fault for argv in argvs if argv[0] not in executables and (fault := _fault(vet_scripts, argv))},
        absent_users=frozenset(user for user in users if user is not None and not _is_user(user)),
        trust_store=system_trust_store(),
    )


def system_trust_store() -> TrustStore:
    """Return this system's trust store: Red Hat's if its directory exists, otherwise Debian's."""
    return RED_HAT if Path(RED_HAT.directory or "").is_dir() else DEBIAN


def uid_of(name: str | None) -> int | None:
    """Return a user's id; None without a name, or if there is no such user."""
    return _ids_of({name}, lambda one: pwd.getpwnam(one).pw_uid).get(name or "")


def gid_of(name: str | None) -> int | None:
    """Return a group's id; None without a name, or if there is no such group."""
    return _ids_of({name}, lambda one: grp.getgrnam(one).gr_gid).get(name or "")


def _ids_of(names: Collection[str | None], find: Any) -> dict[str, int]:
    found = {}
    for name in names:
        if name is not None:
            try:
                found[name] = int(name) if name.isdecimal() else find(name)
            except (KeyError, ValueError):
                continue
    return found


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except (KeyError, ValueError):
        return False
    return True


def _fault(vet: Callable[[_T], None], what: _T) -> str:
    try:
        vet(what)
    except (CommandError, OSError) as error:
        return str(error)
    return ""
