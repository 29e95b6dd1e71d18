"""The files of the recipes in deploy/services/: plane and agent accept them, and their policy allows their items."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from certctrl.install.plan.dependencies import bind
from certctrl.install.plan.policy import AgentIdentity, Grant, judge_exec, refuse_owner, refuse_path
from certctrl.install.plan.refusals import argvs_of, judge_argv
from certctrl.model.plan import CopyAction, ExecAction, InstallItem
from certctrl.model.policy import HostPolicy
from certctrl.plane.installs import check_items
from certctrl.protocol.wire.install_config import items_from_local
from certctrl.protocol.wire.install_items import item_from_wire
from certctrl.store.config.files import load_policy
from certctrl.store.layout import ConfigDir

ROOT = Path(__file__).parents[1]
SERVICES = ROOT / "deploy" / "services"
HELPERS = sorted(path.name for path in (SERVICES / "lib").iterdir())
RECIPES = sorted(path.parent.name for path in SERVICES.glob("*/items.json"))
IDENTITY = AgentIdentity(config_dir="/etc/cert-ctrl", user="root", group="root")


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def raw_items(recipe: str) -> list[dict[str, Any]]:
    return list(json.loads((SERVICES / recipe / "items.json").read_text(encoding="utf-8")))


def items_of(recipe: str) -> list[InstallItem]:
    return [item_from_wire(raw, f"[{number}]") for number, raw in enumerate(raw_items(recipe))]


def policy_of(recipe: str, root: Path) -> HostPolicy:
    (root / "policy.json").write_bytes((SERVICES / recipe / "policy.json").read_bytes())
    (root / "policy.json").chmod(0o600)
    return load_policy(ConfigDir(root))


def test_there_are_recipes() -> None:
    assert {"apache", "dovecot", "haproxy", "haproxy-runtime", "java", "nginx", "postfix", "postgresql"} <= set(RECIPES)


def test_the_plane_accepts_the_items(recipe: str) -> None:
    check_items(raw_items(recipe))


def test_the_host_accepts_them_as_local_items(recipe: str) -> None:
    assert len(items_from_local(tuple(raw_items(recipe)))) == len(raw_items(recipe))


def test_the_policy_allows_the_items(recipe: str, tmp_path: Path) -> None:
    policy = policy_of(recipe, tmp_path)
    for item in items_of(recipe):
        if isinstance(item, CopyAction):
            assert [refuse_path(policy, path, IDENTITY) for path in item.targets] == [None] * len(item.targets)
            assert refuse_owner(policy, item, IDENTITY) is None
        if isinstance(item, ExecAction):
            assert isinstance(judge_exec(policy, item, IDENTITY), Grant)
        for argv in argvs_of(item):
            assert isinstance(judge_argv(policy, item.id, argv, IDENTITY), Grant)


def test_the_policy_allows_nothing_else(recipe: str, tmp_path: Path) -> None:
    policy, items = policy_of(recipe, tmp_path), items_of(recipe)
    assert policy.commands.keys() == {argv[0] for item in items for argv in argvs_of(item)}
    copies = [item for item in items if isinstance(item, CopyAction)]
    targets = [path for item in copies for path in item.targets]
    assert all(any(path.startswith(f"{root}/") for path in targets) for root in policy.write_roots)
    assert set(policy.owners) <= {name for item in copies for name in (item.owner, item.group)}
    assert not policy.shell
    assert not policy.plaintext_keys


def test_every_renewal_is_checked_reloaded_and_verified(recipe: str) -> None:
    items = items_of(recipe)
    copies = [item for item in items if isinstance(item, CopyAction)]
    reloads = [item for item in items if isinstance(item, ExecAction)]
    assert all(item.check and item.verify for item in copies)
    assert {name for item in reloads for name in item.depends_on} == {item.id for item in copies}
    # by name: the recipe does not know the certificate's id
    assert all(item.ob_name and item.ob_id is None for item in copies)
    assert all(bind(items, {}, {})[item.id].waits for item in items)


def test_named_helpers_exist(recipe: str) -> None:
    text = (SERVICES / recipe / "policy.json").read_text(encoding="utf-8")
    assert set(re.findall(r"/usr/local/lib/cert-ctrl/([a-z-]+)", text)) <= set(HELPERS)


@pytest.mark.parametrize("helper", HELPERS)
def test_helpers_are_executable_scripts(helper: str) -> None:
    path = SERVICES / "lib" / helper
    assert os.access(path, os.X_OK)
    assert path.read_text(encoding="utf-8").startswith("#!/bin/sh\n")


def test_every_recipe_has_its_page(recipe: str) -> None:
    pages = {page.stem: page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "services").glob("*.md")}
    page = next(text for name, text in pages.items() if f"deploy/services/{recipe}/" in text and name != "README")
    for command in json.loads((SERVICES / recipe / "policy.json").read_text(encoding="utf-8"))["commands"].values():
        program = command["argv"][0].rpartition("/")[2]
        assert program in page, f"{program} is not explained"
    assert "rolled_back" in page
