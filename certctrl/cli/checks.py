"""Check the operator's files: configuration, policy, local install items, and the files they name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from certctrl.errors import CertctrlError, ConfigError

if TYPE_CHECKING:
    from certctrl.model.config import AgentConfig, ApplicationConfig
    from certctrl.store.layout import ConfigDir


def check_files(layout: ConfigDir, environ: Mapping[str, str]) -> list[str]:
    """Return the names of the checked files.

    Raises ConfigError, PlanError or another CertctrlError for the first mistake.
    """
    from certctrl.store.config.files import load_config, load_policy

    loaded = load_config(layout, environ)
    _check_named_files(layout, loaded.config)
    _check_metrics_extra(layout, loaded.config.application)
    load_policy(layout)
    try:
        _check_local_installs(layout)
    except CertctrlError as error:
        error.fix = error.fix or f"correct {layout.local_installs}"
        raise
    names = (
        layout.application, layout.httpclient, layout.ioc, layout.log_config, layout.policy, layout.local_installs,
    )  # fmt: skip
    return [path.name for path in names if path.exists()]


def _check_local_installs(layout: ConfigDir) -> None:
    from certctrl.protocol.wire.install_config import (
        check_local_dependencies,
        install_config_from_wire,
        items_from_local,
    )
    from certctrl.store.config.files import load_local_installs
    from certctrl.store.disk.fs import RealFs
    from certctrl.store.state.installed import InstalledState

    rows = items_from_local(load_local_installs(layout), strict=True)
    named, own = {name for row in rows for name in row.depends_on}, {row.id for row in rows}
    # Read the daemon's state only if an item depends on one outside the operator's file.
    stored = InstalledState(layout, RealFs()).load_install_config() if named - own else None
    planes = install_config_from_wire(stored.raw).items if stored is not None else ()
    check_local_dependencies(rows, [item.id for item in planes])


def _check_named_files(layout: ConfigDir, config: AgentConfig) -> None:
    """Load the files and extensions that the configuration names, as the daemon does at its start."""
    from certctrl.net.tls import Trust

    Trust(config.httpclient, layout.root)
    if config.ioc.handlers:
        from certctrl.agent.handlers import find_handler

        for signal_type in config.ioc.handlers:
            find_handler(config.ioc, signal_type)


def _check_metrics_extra(layout: ConfigDir, settings: ApplicationConfig) -> None:
    """Raise ConfigError if metrics are enabled but the package for them is not installed."""
    from importlib.util import find_spec

    enabled = [key for key in ("metrics_listen", "metrics_textfile") if getattr(settings, key)]
    if enabled and find_spec("prometheus_client") is None:
        what = "metrics need the Python package prometheus-client"
        raise ConfigError(what, file=str(layout.application), path=enabled[0], fix="pip install 'certctrl[metrics]'")
