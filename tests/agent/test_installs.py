"""An install config is never taken back: versions only grow, per config id, over restarts (T2)."""

from __future__ import annotations

from pathlib import Path

import pytest

from certctrl.agent.installs import check_not_replayed
from certctrl.errors import PlanError
from certctrl.model.plan import InstallConfig
from certctrl.store.atomic import make_tree
from certctrl.store.fs import RealFs
from certctrl.store.layout import ConfigDir
from certctrl.store.state import StateStore, StoredInstallConfig


@pytest.fixture
def layout(tmp_path: Path) -> ConfigDir:
    made = ConfigDir(tmp_path / "agent")
    make_tree(RealFs(), made)
    return made


def keep(layout: ConfigDir, config_id: int, version: int, hashed: str = "h") -> StoredInstallConfig:
    """Put a config in force and return what the next start reads."""
    store = StateStore(layout, RealFs())
    store.save_install_config(
        StoredInstallConfig(raw={"id": config_id, "version": version}, etag=None, version=version, hash=hashed)
    )
    found = StateStore(layout, RealFs()).load_install_config()
    assert found is not None
    return found


def config(config_id: int, version: int, hashed: str = "h") -> InstallConfig:
    return InstallConfig(id=config_id, version=version, items=(), installs_hash_b64=hashed)


def refusal(fetched: InstallConfig, stored: StoredInstallConfig | None) -> str:
    try:
        check_not_replayed(fetched, stored)
    except PlanError as error:
        return error.reason
    return ""


def test_a_lower_version_is_refused_over_a_restart(layout: ConfigDir) -> None:
    assert refusal(config(3, 5), keep(layout, 3, 6)) == "version-rollback"


def test_the_same_version_with_another_hash_is_refused(layout: ConfigDir) -> None:
    stored = keep(layout, 3, 6)
    assert refusal(config(3, 6, "other"), stored) == "equivocation"
    assert refusal(config(3, 6), stored) == ""


def test_a_higher_version_and_a_first_one_are_taken(layout: ConfigDir) -> None:
    assert refusal(config(3, 1), None) == ""
    assert refusal(config(3, 7, "other"), keep(layout, 3, 6)) == ""


def test_a_host_that_moves_to_another_device_begins_anew(layout: ConfigDir) -> None:
    """Found while the threat model was written: the mark of one config was held against every other."""
    stored = keep(layout, 3, 6)
    assert refusal(config(4, 1, "other"), stored) == ""


def test_another_config_in_between_does_not_lower_the_mark(layout: ConfigDir) -> None:
    keep(layout, 3, 6)
    stored = keep(layout, 4, 1)
    assert refusal(config(3, 5), stored) == "version-rollback"
    assert refusal(config(4, 1, "other"), stored) == "equivocation"
