"""The install items in force: fetched, checked against replay, kept, joined with this host's own rows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

from certctrl.agent.context import Agent
from certctrl.agent.log_lines import Line, log_line
from certctrl.errors import CertctrlError, DiskError, PlaneError, PlanError
from certctrl.install.installer import Candidate
from certctrl.install.plan.policy import is_local
from certctrl.model.plan import InstallConfig, InstallItem, Outcome, OutcomeKind
from certctrl.protocol.wire.install_config import check_local_dependencies, install_config_from_wire, items_from_local
from certctrl.store.config.files import load_local_installs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.installed import InstalledState, StoredInstallConfig


def active_items(layout: ConfigDir, store: InstalledState) -> tuple[InstallItem, ...]:
    """Return the plane's items and then the local ones; a local row with the same id is another item."""
    return plane_items(store) + items_from_local(load_local_installs(layout))


def plane_items(store: InstalledState) -> tuple[InstallItem, ...]:
    """Return the items of the install config that is kept here."""
    stored = store.load_install_config()
    return install_config_from_wire(stored.raw).items if stored is not None else ()


def local_items(items: Sequence[InstallItem]) -> tuple[InstallItem, ...]:
    """Return this host's own among some items."""
    return tuple(item for item in items if is_local(item.id))


def plain_hash(text: str) -> str:
    """Return a hash in one spelling: base64 and base64url, padded or not, are one value."""
    return text.rstrip("=").replace("-", "+").replace("_", "/")


def check_not_replayed(fetched: InstallConfig, stored: StoredInstallConfig | None) -> None:
    """Refuse a lower version (rollback) and the same version with another hash (equivocation): T2.

    Versions count per config id: a host that moves to another device or another plane begins anew.
    """
    if stored is None:
        return
    mark = stored.high_water.get(str(fetched.id), 0)
    if fetched.version < mark:
        raise PlanError(
            f"version {fetched.version} is older than version {mark}, which this host has had",
            reason="version-rollback",
            fix="publish it again with a higher version; if the plane lost its count: "
            "cert-ctrl -c DIR trust reset --install-config",
        )
    seen = stored.hash_seen(str(fetched.id), fetched.version)  # also when another config was in force meanwhile
    if seen and plain_hash(fetched.installs_hash_b64) != plain_hash(seen):
        raise PlanError(
            f"version {fetched.version} came again with other contents",
            reason="equivocation",
            fix="publish the install config again with a higher version",
        )


async def refresh_install_config(agent: Agent) -> bool:
    """Fetch the install config and put it in force; True when it changed.

    Raises PlanError (kept out of the active state), PlaneError, TransportError, DiskError.
    """
    stored = agent.store.installed.load_install_config()
    user_id, device_id = await agent.tokens.identity()

    async def fetch(token: str) -> tuple[str, dict[str, Any]] | None:
        return await agent.plane.fetch_install_config(token, user_id, device_id, stored.etag if stored else None)

    try:
        answer = await agent.authorized(fetch)
    except PlaneError as error:
        if error.status == 404:  # a device without an install config: only its own rows count
            return False
        raise
    if answer is None:  # what was refused, if anything was, has been taken back
        agent.clear_problem("install-config")
        return False
    etag, raw = answer
    try:
        config = install_config_from_wire(raw)
        check_not_replayed(config, stored)
    except PlanError as error:
        log_line(
            agent.log,
            Line.INSTALL_REFUSED,
            reason=error.reason,
            what=error,
            version=stored.version if stored else "none",
        )
        agent.report_problem("install-config", f"install config refused ({error.reason}): {error}", error.fix or "")
        raise
    agent.clear_problem("install-config")
    changed = stored is None or config.installs_hash_b64 != stored.hash or config.version != stored.version
    if changed or (stored is not None and stored.etag != etag):
        fresh = StoredInstallConfig(raw=raw, etag=etag, version=config.version, hash=config.installs_hash_b64)
        await agent.offload(agent.store.installed.save_install_config, fresh)
    if changed:
        agent.retry_now()
    reload_items(agent)
    return changed


async def converge_active_items(
    agent: Agent, prepared: Sequence[Candidate], cert_ids: Collection[int]
) -> dict[int, Outcome]:
    """Switch to what is prepared by the items in force; again when an install config came meanwhile.

    That one has looked at this host too early to see these certificates, and nobody else would bring them in line.
    The outcomes that follow make lasting what is noted here.
    """
    items = agent.items
    outcomes = await agent.installer.converge(prepared, items, only=cert_ids, lasting=False)
    while items != agent.items:
        items = agent.items
        again = await agent.installer.converge((), items, only=cert_ids, lasting=False)
        outcomes |= {cert_id: one for cert_id, one in again.items() if one.kind is not OutcomeKind.UNCHANGED}
    return outcomes


def item_problems(agent: Agent) -> list[dict[str, Any]]:
    """Return what keeps items out of force, as status JSON: a plan or an apply without them is not the whole one."""
    return [agent.problems[key].shown() for key in ("install-config", "local-installs") if key in agent.problems]


def reload_items(agent: Agent) -> None:
    """Read the items again; local rows that are wrong are reported, and those in force stay beside the plane's items.

    A row that depends on what is not there stays in force too, without that name: its item may be one that the plane
    has just taken out.
    """
    try:
        agent.items = active_items(agent.layout, agent.store.installed)
        check_local_dependencies(local_items(agent.items), [one.id for one in agent.items if not is_local(one.id)])
        agent.clear_problem("local-installs")
    except CertctrlError as error:
        fix = error.fix or f"correct {agent.layout.local_installs}"
        if agent.report_problem("local-installs", str(error), fix):
            log_line(agent.log, Line.LOCAL_INSTALLS_WRONG, what=error)
        with suppress(DiskError):  # a disk that cannot be read leaves in force what was
            agent.items = plane_items(agent.store.installed) + local_items(agent.items)
