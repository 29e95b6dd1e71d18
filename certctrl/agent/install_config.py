"""Keep the active install items: the plane's, checked against replay, and the local ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any

from certctrl.agent.context import Agent
from certctrl.agent.host_keys import forget_live_keys
from certctrl.agent.log_lines import Line, log_line
from certctrl.agent.lost import LOST, NAMES
from certctrl.errors import CertctrlError, DiskError, PlaneError, PlanError, VersionRollbackError
from certctrl.install.installer import Candidate
from certctrl.install.plan.policy import is_local
from certctrl.model.plan import InstallConfig, InstallItem, Outcome, OutcomeKind
from certctrl.protocol.wire.canonical import standard_base64
from certctrl.store.config.files import load_local_installs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.installed import InstalledState, StoredInstallConfig
from certctrl.text import one_line

MAX_NAMED = 5
"""Refused items that status and outcomes name."""


def active_items(layout: ConfigDir, store: InstalledState) -> tuple[InstallItem, ...]:
    """Return the plane's items, then the local ones; equal ids are different items."""
    rows = load_local_installs(layout)
    if not rows:
        return plane_items(store)
    from certctrl.protocol.wire.install_config import items_from_local  # here and below: hosts without items

    return plane_items(store) + items_from_local(rows)


def plane_items(store: InstalledState) -> tuple[InstallItem, ...]:
    """Return the items of the stored install config."""
    stored = store.load_install_config()
    return _items_of(stored) if stored is not None else ()


def _items_of(stored: StoredInstallConfig) -> tuple[InstallItem, ...]:
    return _read(stored.raw).items


def _read(raw: Mapping[str, Any]) -> InstallConfig:
    from certctrl.protocol.wire.install_config import install_config_from_wire

    return install_config_from_wire(raw)


def _kept(raw: Mapping[str, Any], config: InstallConfig) -> dict[str, Any]:
    """Return what to store of an install config, with the id by which its versions are counted."""
    from certctrl.protocol.wire.install_config import FIELDS

    return {name: raw[name] for name in FIELDS if name in raw} | {"id": config.id}


def local_items(items: Sequence[InstallItem]) -> tuple[InstallItem, ...]:
    """Return the local items among ``items``."""
    return tuple(item for item in items if is_local(item.id))


def check_not_replayed(fetched: InstallConfig, stored: StoredInstallConfig | None) -> None:
    """Refuse a lower version (rollback) and the same version with another hash (equivocation).

    Versions count per config id: a host that moves to another device or plane starts again. Raises PlanError.
    """
    if stored is None:
        return
    if fetched.absent and (stored.version or stored.hash):
        raise VersionRollbackError(
            f"the plane no longer has an install config for this device; version {stored.version} stays active",
            fix="publish one with a higher version; to do without: cert-ctrl -c DIR trust reset --install-config",
        )
    mark = stored.high_water.get(str(fetched.id), 0)
    if fetched.version < mark:
        raise VersionRollbackError(
            f"version {fetched.version} is older than version {mark}, which this host already has",
            fix="publish it again with a higher version; if the plane lost its count: "
            "cert-ctrl -c DIR trust reset --install-config",
        )
    seen = stored.hash_seen(str(fetched.id), fetched.version)  # even if another config was active since
    if seen and standard_base64(fetched.installs_hash_b64) != standard_base64(seen):
        raise PlanError(
            f"version {fetched.version} came again with different contents",
            reason="equivocation",
            fix="publish the install config again with a higher version",
        )


async def refresh_install_config(agent: Agent) -> bool:
    """Fetch and activate the install config; return whether it changed.

    Raises PlanError (the old one stays active), PlaneError, TransportError, DiskError.
    """
    stored = agent.store.installed.load_install_config()
    user_id, device_id = await agent.tokens.identity()

    async def fetch(token: str) -> tuple[str, dict[str, Any]] | None:
        return await agent.plane.fetch_install_config(token, user_id, device_id, stored.etag if stored else None)

    try:
        answer = await agent.authorized(fetch)
    except PlaneError as error:
        if error.status == 404:  # no install config for this device: only local items apply
            return False
        raise
    if answer is None:  # a refused version, if any, was withdrawn
        agent.clear_problem("install-config")
        if agent.items_unread:  # otherwise the items of an earlier version would stay active
            reload_items(agent)
        return False
    etag, raw = answer
    try:
        config = await agent.offload(_read, raw)
        check_not_replayed(config, stored)
    except PlanError as error:
        version = stored.version if stored else "none"
        log_line(agent.log, Line.INSTALL_REFUSED, reason=error.reason, what=error, version=version)
        agent.report_problem("install-config", f"install config refused ({error.reason}): {error}", error.fix or "")
        raise
    agent.clear_problem("install-config")
    changed = _is_change(config, stored)
    if changed or (stored is not None and stored.etag != etag):
        fresh = StoredInstallConfig(
            raw=_kept(raw, config), etag=etag, version=config.version, hash=config.installs_hash_b64
        )
        await agent.offload(agent.store.installed.save_install_config, fresh)
    if changed:
        agent.retry_now()
    reload_items(agent)
    return changed


def _is_change(config: InstallConfig, stored: StoredInstallConfig | None) -> bool:
    if config.absent:  # nothing to store; after `trust reset`, the stored items end
        return stored is not None and bool(_items_of(stored))
    return stored is None or config.installs_hash_b64 != stored.hash or config.version != stored.version


async def converge_active_items(
    agent: Agent,
    prepared: Sequence[Candidate],
    cert_ids: Collection[int],
    together: Mapping[int, str] = MappingProxyType({}),
) -> dict[int, Outcome]:
    """Switch to prepared certificates with the active items; repeat if the items changed during that.

    A new install config does not include certificates that are switched while it is applied. The outcomes that
    follow make the records durable. ``together``: as for `Installer.converge`.
    """
    items = agent.items
    outcomes = await agent.installer.converge(prepared, items, only=cert_ids, lasting=False, together=together)
    while items != agent.items:
        items = agent.items
        again = await agent.installer.converge((), items, only=cert_ids, lasting=False)
        outcomes |= {cert_id: one for cert_id, one in again.items() if one.kind is not OutcomeKind.UNCHANGED}
    await forget_live_keys(agent, [cert_id for cert_id, outcome in outcomes.items() if outcome.ok])
    return outcomes


def item_problems(agent: Agent) -> list[dict[str, Any]]:
    """Return why items or certificates are missing, as status JSON; a plan without them is incomplete."""
    keys = ("install-config", "stored-install-config", "local-installs", LOST, NAMES)
    return [agent.problems[key].shown() for key in keys if key in agent.problems]


async def note_idle_items(agent: Agent) -> dict[str, str]:
    """Record, for the status, items that name what is not on this host: not issued yet, or misspelt."""
    agent.idle_items = await agent.installer.waiting_items(agent.items)
    return agent.idle_items


def reload_items(agent: Agent) -> None:
    """Read the items again; invalid local items are reported, and the active local ones stay.

    A local item with an unknown dependency stays active without it: the plane may just have removed that item.
    """
    agent.items_unread = False
    try:
        agent.items = active_items(agent.layout, agent.store.installed)
        _check_local(agent.items)
        agent.clear_problem("local-installs")
        agent.clear_problem("stored-install-config")
    except PlanError as error:  # stored by a version without these limits
        what = f"the stored install config cannot be used ({error.reason}): {error}"
        agent.report_problem("stored-install-config", what, "publish it again with a higher version")
    except CertctrlError as error:
        fix = error.fix or f"correct {agent.layout.local_installs}"
        if agent.report_problem("local-installs", str(error), fix):
            log_line(agent.log, Line.LOCAL_INSTALLS_WRONG, what=error)
        agent.items_unread = isinstance(error, DiskError)
        with suppress(DiskError, PlanError):  # if the disk cannot be read, the active items stay
            agent.items = plane_items(agent.store.installed) + local_items(agent.items)
    _note_refused(agent)


def _check_local(items: Sequence[InstallItem]) -> None:
    """Check that the local items' dependencies exist. Raises ConfigError."""
    if local := local_items(items):
        from certctrl.protocol.wire.install_config import check_local_dependencies

        check_local_dependencies(local, [one.id for one in items if not is_local(one.id)])


def _note_refused(agent: Agent) -> None:
    """Name the refused items in status; the plan leaves them out, and the others run."""
    if refused := refused_items(agent.items):
        ours = refused_items(local_items(agent.items))
        places = [f"in {agent.layout.local_installs}"] if ours else []
        places += ["at the plane"] if refused != ours else []
        fix = f"upgrade this agent, or correct the items {' and '.join(places)}"
        agent.report_problem("refused-items", refused, fix)
    else:
        agent.clear_problem("refused-items")


def refused_items(items: Sequence[InstallItem]) -> str:
    """Return which items this version cannot carry out, and why, in one line; empty: none."""
    refused = [item for item in items if item.refused and item.enabled]
    if not refused:
        return ""
    named = "; ".join(f"item {one_line(item.id, 80)}: {item.refused}" for item in refused[:MAX_NAMED])
    more = f"; and {len(refused) - MAX_NAMED} more" if len(refused) > MAX_NAMED else ""
    return f"this version cannot carry out {named}{more}"
