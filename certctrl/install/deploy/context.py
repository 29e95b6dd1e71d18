"""Context: the pipeline's collaborators, passed explicitly."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import attrs

from certctrl.install.deploy.offload import SharedOffload
from certctrl.install.deploy.record_store import RecordStore
from certctrl.install.deploy.retry_table import RetryTable
from certctrl.install.plan.item_index import Indexer
from certctrl.install.plan.policy import AgentIdentity
from certctrl.install.probe.tls import Probe
from certctrl.install.process import Proc
from certctrl.install.process.proc import own_names
from certctrl.model.config import AgentConfig
from certctrl.model.policy import HostPolicy
from certctrl.store.deployments.generations import GenerationStore
from certctrl.store.disk.fs import Fs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.installed import InstalledState


@attrs.frozen(kw_only=True, eq=False)
class Context:
    """The collaborators of `Installer`, and its record store."""

    layout: ConfigDir
    fs: Fs
    generations: GenerationStore
    state: InstalledState
    policy: Callable[[], HostPolicy]
    config: Callable[[], AgentConfig]
    proc: Proc
    probe: Probe
    wall_now: Callable[[], float]
    offload: Callable[..., Awaitable[Any]]
    """Runs a blocking function to its end in a thread; inline under a virtual clock."""
    shared_offload: SharedOffload
    """The same for short functions, which share thread jobs in a burst."""
    log: logging.Logger
    records: RecordStore
    identity: AgentIdentity
    indexer: Indexer = attrs.field(factory=Indexer)

    @classmethod
    def of(cls, *, random: Callable[[], float], **given: Any) -> Context:
        """Return a context with its records and its identity; ``random`` spreads retries."""
        user, group = own_names()
        root = given["layout"].root
        retries = RetryTable(
            load=given["state"].load_retries,
            wall_now=given["wall_now"],
            random=random,
            settings=lambda: given["config"]().application,
        )
        records = RecordStore(
            given["state"], given["offload"], lambda: given["config"]().application.history_entries, retries
        )
        identity = AgentIdentity(config_dir=str(root.resolve()), user=user, group=group)
        return cls(**given, shared_offload=SharedOffload(given["offload"]), records=records, identity=identity)
