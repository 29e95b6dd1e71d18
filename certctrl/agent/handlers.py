"""Handle one signal of each type.

A signal is only a hint: each handler fetches the current state from the plane, compares it with this host and
converges. So duplicate, reordered, replayed or missing signals cost a request and nothing else. A handler returns an
Outcome, or a Candidate to be switched in a batch; if it raises, the signal is retried. If the plane does not show yet
what the signal announced, it raises LaggingError (``announced.py``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cache
from typing import cast

import attrs

from certctrl.agent.alerts import REVOKED, clear_alerts, problem_key, raise_alert, revoked
from certctrl.agent.announced import (
    GONE,
    find_certificate,
    is_current,
    is_listed,
    missing_install_config,
    require_arrival,
    wait_is_over,
)
from certctrl.agent.context import Agent
from certctrl.agent.host_keys import forget_withdrawn_keys, on_csr_wanted, replace_lost_key, with_host_key
from certctrl.agent.install_config import MAX_NAMED, note_idle_items, refresh_install_config, refused_items
from certctrl.agent.log_lines import Line, log_line
from certctrl.agent.materials import changed_materials
from certctrl.agent.reconcile import compare, plan_resync
from certctrl.agent.signal_results import failed
from certctrl.agent.standing import (
    known_again,
    let_grace_pass,
    no_order,
    order_stands,
    recognise_plane,
    require_same,
    shares_name,
    too_early,
)
from certctrl.errors import (
    ConfigError,
    HostKeyMissingError,
    LaggingError,
    MaterialError,
    OlderMaterialError,
    PlaneError,
    VersionRollbackError,
    WrongNamesError,
)
from certctrl.install.installer import Candidate, in_use
from certctrl.install.plan.policy import is_local
from certctrl.model.certificate import Bundle, CertificateSummary, DeployMaterials
from certctrl.model.config import IocConfig
from certctrl.model.features import DELTA
from certctrl.model.plan import Outcome, OutcomeKind
from certctrl.model.policy import Retirement
from certctrl.model.records import CertRecord, Stage, Standing
from certctrl.model.signals import (
    AcmeHttp01Start,
    AcmeHttp01Stop,
    AcmeTlsAlpn01Start,
    AcmeTlsAlpn01Stop,
    CaAssigned,
    CaUnassigned,
    CertRenewed,
    CertRevoked,
    CertUnassigned,
    ChallengeStart,
    CsrWanted,
    InstallUpdated,
    ResyncRequired,
    Signal,
)
from certctrl.text import counted, one_line

Handler = Callable[[Agent, Signal], Awaitable[Outcome | Candidate]]

ENTRY_POINTS = "certctrl.signal_handlers"
"""The group of entry points in which other packages offer handlers."""

SMALL_MATERIAL = 6 * 1024
"""Characters of a lone certificate's material up to which it is opened in less time than a thread job starts."""

MAX_DETAIL = 500
"""Characters of the detail of an outcome."""


async def on_install_updated(agent: Agent, signal: Signal) -> Outcome:
    """Fetch the install config if it changed, then converge all certificates."""
    signal = cast(InstallUpdated, signal)
    config_id, version_sent = ("unknown" if one is None else one for one in (signal.config_id, signal.version))
    log_line(agent.log, Line.INSTALL_FETCHING, config_id=config_id, version=version_sent)
    changed = await _refresh_announced(agent, signal)
    outcome = await agent.installer.converge_all(agent.items, lasting=False)  # the outcome makes it durable
    stored = agent.store.installed.load_install_config()
    version = stored.version if stored else "none"
    if outcome.ok and (changed or outcome.kind is OutcomeKind.APPLIED):
        log_line(agent.log, Line.INSTALL_APPLIED, version=version, changed=len(outcome.deployed))
        outcome = Outcome(kind=OutcomeKind.APPLIED, detail=outcome.detail, deployed=outcome.deployed)
    elif outcome.ok:
        log_line(agent.log, Line.INSTALL_UNCHANGED, version=version)
    if idle := await note_idle_items(agent):
        said = "; ".join(f"item {one_line(item, 80)} is idle: {why}" for item, why in [*idle.items()][:MAX_NAMED])
        outcome = attrs.evolve(outcome, detail=one_line("; ".join(filter(None, (outcome.detail, said))), MAX_DETAIL))
    if outcome.ok and (missing := missing_install_config(signal, stored)):
        require_arrival(agent, signal, missing)
    # those of no certificate are in no certificate's outcome
    refused = refused_items([item for item in agent.items if not is_local(item.id)])
    if not refused:
        return outcome
    detail = one_line(f"{refused}; {outcome.detail}" if outcome.detail else refused, MAX_DETAIL)
    if not outcome.ok:
        return attrs.evolve(outcome, detail=detail)
    return attrs.evolve(failed(detail, "plan", "item-refused"), deployed=outcome.deployed)


async def _refresh_announced(agent: Agent, signal: InstallUpdated) -> bool:
    """Fetch the install config as `refresh_install_config`; an older one than this host has had may only lag."""
    try:
        return await refresh_install_config(agent)
    except VersionRollbackError as error:
        if wait_is_over(agent, signal):
            raise
        raise LaggingError(str(error), fix=error.fix) from None


async def on_cert_renewed(agent: Agent, signal: Signal) -> Outcome | Candidate:
    """Fetch, check and stage a certificate for the batch that switches, reloads and probes.

    Returns an Outcome if the plane has none for this device.
    """
    signal = cast(CertRenewed, signal)
    await agent.installer.prepare_commands(signal.cert_id, agent.items)
    try:
        candidate = await _stage(agent, signal.cert_id, signal.serial)
        await known_again(agent, signal.cert_id)
        return candidate
    except PlaneError as error:
        if error.status not in GONE:
            raise
    except OlderMaterialError as error:
        if wait_is_over(agent, signal):
            raise
        raise LaggingError(str(error), fix=error.fix) from None
    except HostKeyMissingError:
        return await replace_lost_key(agent, signal.cert_id)
    await _require_absent(agent, signal)
    await _resume_unassignment(agent, signal)
    return Outcome(kind=OutcomeKind.IGNORED, detail="the plane has no such certificate for this device")


async def _resume_unassignment(agent: Agent, signal: CertRenewed) -> None:
    """Admit an unassignment again that this signal superseded during its grace time, if it still holds."""
    record = agent.installer.records.get(signal.cert_id)
    if record is not None and order_stands(record, await recognise_plane(agent)):
        # later than what it replaces, which counts as done, and earlier than what the plane sends next
        agent.admit([CertUnassigned(ts_ms=signal.ts_ms + 1, cert_id=signal.cert_id)])
        await agent.inbox.secure()


async def _resume_renewal(agent: Agent, signal: Signal, summary: CertificateSummary | None) -> None:
    """Admit the renewal again that an unassignment superseded, if the plane still offers a certificate."""
    if summary is None:
        return
    for renewal in compare([summary], agent.installer.records, signal.ts_ms + 1).signals:
        if isinstance(renewal, CertRenewed):
            agent.admit([attrs.evolve(renewal, batch=summary.batch)])
            await agent.inbox.secure()


async def _require_absent(agent: Agent, signal: CertRenewed) -> None:
    """Raise LaggingError until the wait is over and both detail and list show no such certificate."""
    missing = f"the plane announced certificate {signal.cert_id}, but does not offer it"
    summary = await find_certificate(agent, signal.cert_id)
    revoked = summary is not None and summary.status == "revoked"
    if summary is not None and revoked and is_current(summary, signal):
        return
    require_arrival(agent, signal, missing)
    if not revoked and (summary is not None or await is_listed(agent, signal.cert_id)):
        raise LaggingError(missing)


async def _stage(agent: Agent, cert_id: int, announced: str | None) -> Candidate:
    """Fetch and stage one bundle; the live one again if the plane still has the same."""
    materials = await changed_materials(agent, cert_id, announced)
    if isinstance(materials, Bundle):
        return await agent.installer.stage(materials, agent.items)
    candidate = await _stage_fetched(agent, cert_id, materials)
    return attrs.evolve(candidate, etag=materials.etag) if DELTA in agent.plane.features else candidate


async def _stage_fetched(agent: Agent, cert_id: int, materials: DeployMaterials) -> Candidate:
    """Open and stage one bundle; its SAN must cover the assigned domains.

    A known certificate is checked against its recorded domains, which saves a request per renewal. If they differ,
    the assignment may have changed: it is fetched before the material is refused.
    """
    record = agent.installer.records.get(cert_id)
    materials = await with_host_key(agent, cert_id, materials)
    if record is not None and record.facts.domains:
        try:
            opener = _opener(agent, cert_id, record.facts.domains, materials)
            alone = agent.burst.is_alone and materials.size <= SMALL_MATERIAL
            return await agent.installer.stage(opener, agent.items, alone=alone)
        except WrongNamesError:
            pass
    summary: CertificateSummary = await agent.authorized(lambda token: agent.plane.fetch_certificate(token, cert_id))
    if record is not None and in_use(record):
        await require_same(agent, record, summary)
    domains = tuple(dict.fromkeys((summary.domain_name, *summary.sans)))
    return await agent.installer.stage(_opener(agent, cert_id, domains, materials), agent.items)


def _opener(agent: Agent, cert_id: int, domains: tuple[str, ...], materials: DeployMaterials) -> Callable[[], Bundle]:
    opened = agent.installer.opener(cert_id, materials, _secret_for(agent, materials), domains)

    def newest() -> Bundle:
        bundle = opened()
        refuse_older(agent, bundle)
        return bundle

    return newest


def _secret_for(agent: Agent, materials: DeployMaterials) -> bytes:
    """Return the device's secret key; while it is replaced, the one to which the material is sealed."""
    from certctrl.install.material.private_key import is_key_of  # here: as opening it

    sealed_to, last = materials.device_keyfp_b64, agent.store.session.last_device_keys
    if sealed_to and last is not None and is_key_of(sealed_to, last.public):
        return last.secret  # even if it was replaced since; a burst need not look at the files for each certificate
    keys = agent.store.session.load_device_keys()
    if keys is None:
        return b""
    if not sealed_to or is_key_of(sealed_to, keys.public) or not agent.store.session.has_rotated_secret():
        return keys.secret
    return agent.store.session.load_rotated_secret() or keys.secret


def refuse_older(agent: Agent, bundle: Bundle) -> None:
    """Refuse material older than the deployed one: a replay, or a plane restored from a backup."""
    record: CertRecord | None = agent.installer.records.get(bundle.facts.cert_id)
    if record is None or not record.generation or record.facts.fingerprint_sha256 == bundle.facts.fingerprint_sha256:
        return
    if record.standing is Standing.FOREIGN:  # another plane for the same names
        return
    if bundle.facts.not_before < record.facts.not_before:
        what = f"{bundle.facts}: the plane offers an older one than is deployed"
        log_line(agent.log, Line.SERVER_BEHIND, what=what)
        raise OlderMaterialError(what)


async def on_cert_revoked(agent: Agent, signal: Signal) -> Outcome:
    """Confirm the revocation with the plane, then withdraw the certificate according to the policy."""
    cert_id = cast(CertRevoked, signal).cert_id
    await forget_withdrawn_keys(agent, cert_id)
    record = agent.installer.records.get(cert_id)
    if record is None or not (has_left_something(record) or record.alert_pending):
        if _may_deploy_earlier(agent, signal):
            _require_current(agent, signal, await find_certificate(agent, cert_id))
        return Outcome(kind=OutcomeKind.UNCHANGED, detail="not in use on this host")
    summary = await find_certificate(agent, cert_id)
    if in_use(record) and (why := await _not_meant(agent, record, signal, summary)):
        return Outcome(kind=OutcomeKind.IGNORED, detail=why)
    if summary is None and await is_listed(agent, cert_id):
        require_arrival(agent, signal, "the revocation is not confirmed yet: the plane lists the certificate")
    if summary is not None and summary.status != "revoked":
        why = f"the plane says {summary.status or 'active'!r}"
        if not is_current(summary, signal):
            require_arrival(agent, signal, f"the revocation is not confirmed yet: {why}")
        log_line(agent.log, Line.CERT_REVOCATION_UNCONFIRMED, cert_id=cert_id, why=why)
        return Outcome(kind=OutcomeKind.UNCHANGED, detail=f"not confirmed: {why}")
    outcome = await agent.installer.withdraw(cert_id, revoked=True, items=agent.items)
    agent.report_problem(problem_key(REVOKED, cert_id), *revoked(record))
    if not agent.installer.records[cert_id].alarmed:  # each resync finds it again
        done = outcome.detail or "taken out of use"
        log_line(agent.log, Line.CERT_REVOKED, cert_id=cert_id, name=record.name, done=done)
        await raise_alert(agent, REVOKED, *revoked(record), cert_id=cert_id, name=record.name, done=done)
        await agent.installer.record_alert(cert_id)
    return outcome


def _may_deploy_earlier(agent: Agent, signal: Signal) -> bool:
    """Return whether a renewal from before a signal is pending: it may deploy what a lagging plane still offers."""
    pending = [
        *(one.signal for one in agent.inbox.entries()),
        *(one.signal for one in agent.installer.retries.signals()),
    ]
    renewals = [one for one in pending if isinstance(one, CertRenewed) and one.resource == signal.resource]
    return any(one.ts_ms <= signal.ts_ms for one in renewals)


def _require_current(agent: Agent, signal: Signal, summary: CertificateSummary | None) -> None:
    """Raise LaggingError until the wait is over if the plane's detail may be from before a withdrawal."""
    if summary is not None and summary.status != "revoked" and not is_current(summary, signal):
        require_arrival(agent, signal, f"not confirmed yet: the plane says {summary.status or 'active'!r}")


async def _not_meant(agent: Agent, record: CertRecord, signal: Signal, summary: CertificateSummary | None) -> str:
    """Return why a signal does not concern the certificate that has its id on this host; empty: it does."""
    known = await recognise_plane(agent)
    if summary is None:
        return no_order(agent, record, signal, known)
    return "" if shares_name(summary, record) else f"the plane's certificate is for {summary.domain_name}"


async def on_cert_unassigned(agent: Agent, signal: Signal) -> Outcome:
    """Apply `on_unassigned` to a certificate once the plane has confirmed that it is unassigned.

    Raises GraceError until its grace time is over.
    """
    cert_id = cast(CertUnassigned, signal).cert_id
    record = agent.installer.records.get(cert_id)
    await forget_withdrawn_keys(agent, cert_id)
    if record is None or not has_left_something(record):
        clear_alerts(agent, cert_id)
        summary = await find_certificate(agent, cert_id)
        _require_current(agent, signal, summary)
        await _resume_renewal(agent, signal, summary)
        return Outcome(kind=OutcomeKind.UNCHANGED, detail="not in use on this host")
    if why := no_order(agent, record, signal, await recognise_plane(agent)):
        return Outcome(kind=OutcomeKind.IGNORED, detail=why)
    if (summary := await find_certificate(agent, cert_id)) is not None or await is_listed(agent, cert_id):
        why = f"still assigned: the plane says {(summary and summary.status) or 'active'!r}"
        require_arrival(agent, signal, why)
        await _resume_renewal(agent, signal, summary)
        return Outcome(kind=OutcomeKind.UNCHANGED, detail=why)
    if in_use(record) and agent.policy.on_unassigned is not Retirement.KEEP:
        await let_grace_pass(agent, agent.installer.records[cert_id])
    outcome = await agent.installer.withdraw(cert_id, revoked=False, items=agent.items)
    clear_alerts(agent, cert_id)
    if outcome.ok:
        done = outcome.detail or "removed"
        log_line(agent.log, Line.CERT_UNASSIGNED, cert_id=cert_id, name=record.name, done=done)
    return outcome


def has_left_something(record: CertRecord) -> bool:
    """Return whether a certificate is in use, staged, still served, or only partly removed by a crash."""
    return in_use(record) or record.withdrawal_incomplete or record.stage in (Stage.COMMITTED, Stage.ACTIVATED)


async def on_ca_assigned(agent: Agent, signal: Signal) -> Outcome:
    """Fetch a private CA and import it into the trust store, if the policy has one."""
    ca_id = cast(CaAssigned, signal).ca_id
    here = agent.installer.ca_name(ca_id)
    try:
        ca = await agent.authorized(lambda token: agent.plane.fetch_ca(token, ca_id))
    except PlaneError as error:
        if error.status in GONE:
            require_arrival(agent, signal, f"the plane announced CA {ca_id}, but does not offer it")
        raise
    if here and ca.name and here != ca.name:  # another plane's CA with the same id: its place is not taken
        what = f"CA {ca_id} of this host is {one_line(here)}, that of the plane {one_line(ca.name)}"
        raise MaterialError(what, reason="other-ca", fix=f"to remove this host's: cert-ctrl forget --ca {ca_id}")
    outcome = await agent.installer.import_ca(ca_id, ca.name, ca.ca_certificate_pem, agent.items)
    if outcome.kind is OutcomeKind.APPLIED:
        log_line(agent.log, Line.CA_IMPORTED, ca_id=ca_id, name=ca.name)
    return outcome


async def on_ca_unassigned(agent: Agent, signal: Signal) -> Outcome:
    """Remove a private CA from the trust store, after the plane confirmed it if it has a list of CAs."""
    signal = cast(CaUnassigned, signal)
    if signal.ca_id in agent.installer.cas and (why := await _other_ca(agent, signal)):
        return Outcome(kind=OutcomeKind.IGNORED, detail=why)
    if signal.ca_id in agent.installer.cas and signal.ca_id in (await agent.authorized(agent.plane.fetch_cas) or {}):
        require_arrival(agent, signal, f"CA {signal.ca_id} is still assigned")
        return Outcome(kind=OutcomeKind.UNCHANGED, detail="still assigned")
    outcome = await agent.installer.remove_ca(signal.ca_id)
    if outcome.kind is OutcomeKind.APPLIED:
        log_line(agent.log, Line.CA_REMOVED, ca_id=signal.ca_id, name=signal.ca_name or "")
    return outcome


async def _other_ca(agent: Agent, signal: CaUnassigned) -> str:
    """Return why a signal does not concern the CA that has its id on this host; empty: it does."""
    here = agent.installer.ca_name(signal.ca_id)
    if here and signal.ca_name and here != signal.ca_name:
        return f"CA {signal.ca_id} of this host is {one_line(here)}"
    return too_early(agent, signal, await recognise_plane(agent))


async def on_challenge(agent: Agent, signal: Signal) -> Outcome:
    """Start or stop to answer a challenge."""
    from certctrl.agent.challenge_handlers import on_challenge_start, on_challenge_stop  # here: few hosts have any

    return await (on_challenge_start if isinstance(signal, ChallengeStart) else on_challenge_stop)(agent, signal)


async def on_resync_required(agent: Agent, signal: Signal) -> Outcome:
    """Compare the whole host with the plane; differences become separate signals."""
    found = await plan_resync(agent, cast(ResyncRequired, signal).reason or "requested by the plane")
    return Outcome(kind=OutcomeKind.APPLIED, detail=counted(found, "difference"))


HANDLERS: dict[str, Handler] = {
    InstallUpdated.type: on_install_updated,
    CertRenewed.type: on_cert_renewed,
    CertRevoked.type: on_cert_revoked,
    CertUnassigned.type: on_cert_unassigned,
    CsrWanted.type: on_csr_wanted,
    CaAssigned.type: on_ca_assigned,
    CaUnassigned.type: on_ca_unassigned,
    AcmeHttp01Start.type: on_challenge,
    AcmeHttp01Stop.type: on_challenge,
    AcmeTlsAlpn01Start.type: on_challenge,
    AcmeTlsAlpn01Stop.type: on_challenge,
    ResyncRequired.type: on_resync_required,
}


def find_handler(ioc: IocConfig, signal_type: str) -> Handler | None:
    """Return the handler of a signal type; None if there is none or ``ioc_config.json`` disables it.

    Raises ConfigError if ``handlers`` names an entry point that is not installed.
    """
    if signal_type in ioc.disabled_handlers:
        return None
    if name := ioc.handlers.get(signal_type):
        return _installed_handler(name)
    return HANDLERS.get(signal_type)


@cache
def _installed_handler(name: str) -> Handler:
    from importlib.metadata import entry_points  # here: few hosts have extensions, and it costs a megabyte

    for point in entry_points(group=ENTRY_POINTS):
        if point.name == name:
            return cast(Handler, point.load())
    raise ConfigError(
        f"no installed package offers the entry point {name!r} in {ENTRY_POINTS}",
        file="ioc_config.json",
        path="handlers",
        fix="install the package, or remove the line",
    )
