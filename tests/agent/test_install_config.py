"""Active items: a certificate and the install config that names it may arrive at the same time."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import attrs
import pytest
import trio
from wire_items import installs_hash

from certctrl.agent.context import Agent
from certctrl.agent.handlers import on_install_updated
from certctrl.agent.install_config import (
    check_not_replayed,
    converge_active_items,
    refresh_install_config,
    reload_items,
)
from certctrl.errors import DiskError, PlanError
from certctrl.model.plan import CopyAction, InstallConfig, Outcome, OutcomeKind
from certctrl.model.signals import InstallUpdated
from certctrl.protocol.wire.canonical import canonical_json
from certctrl.store.disk.fs import RealFs
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir
from certctrl.store.state.installed import StoredInstallConfig
from certctrl.store.state.store import StateStore

APPLIED, FAILED, UNCHANGED = (
    Outcome(kind=kind) for kind in (OutcomeKind.APPLIED, OutcomeKind.FAILED, OutcomeKind.UNCHANGED)
)
NEW = (CopyAction(id="c", ob_id=1, sources=("fullchain.pem",), targets=("/x/y",)),)


class Scene:
    """An agent whose install config changes while the first certificate is being switched."""

    def __init__(self, *answers: Outcome, comes: bool) -> None:
        store = SimpleNamespace(staged_keys=SimpleNamespace(all=tuple))
        self.agent = cast(Agent, SimpleNamespace(items=(), installer=self, store=store))
        self.calls: list[tuple[Any, Any, Any]] = []
        self._answers, self._comes = list(answers), comes

    async def converge(
        self, prepared: Sequence[Any], items: object, *, only: Collection[int], lasting: bool, together: object = None
    ) -> dict[int, Outcome]:
        assert not lasting, "the outcomes that follow see to it"
        self.calls.append((tuple(prepared), items, tuple(only)))
        await trio.lowlevel.checkpoint()
        if self._comes:
            self.agent.items = NEW
        return dict.fromkeys(only, self._answers.pop(0))


def test_equal_hashes_may_be_encoded_differently() -> None:
    stored = StoredInstallConfig(raw={"id": 1}, etag=None, version=3, hash="ab+/cd==", high_water={"1": 3})
    again = InstallConfig(id=1, version=3, items=(), installs_hash_b64="ab-_cd")
    check_not_replayed(again, stored)
    with pytest.raises(PlanError, match="different contents"):
        check_not_replayed(attrs.evolve(again, installs_hash_b64="ab-_ce"), stored)


def test_another_config_in_between_does_not_hide_an_equivocation(tmp_path: Path) -> None:
    """A plane that names config 1, then 2, then 1 again may not change what version 5 of 1 says."""
    scene = LocalScene(tmp_path)
    for config_id, version, digest in ((1, 5, "aaaa"), (2, 1, "bbbb")):
        scene.store.installed.save_install_config(
            StoredInstallConfig(raw={"id": config_id}, etag=None, version=version, hash=digest)
        )
    again = InstallConfig(id=1, version=5, items=(), installs_hash_b64="aaaa")
    check_not_replayed(again, scene.store.installed.load_install_config())
    check_not_replayed(
        attrs.evolve(again, version=6, installs_hash_b64="cccc"), scene.store.installed.load_install_config()
    )
    with pytest.raises(PlanError, match="different contents") as caught:
        check_not_replayed(attrs.evolve(again, installs_hash_b64="cccc"), scene.store.installed.load_install_config())
    assert caught.value.reason == "equivocation"


async def test_an_install_config_that_arrives_meanwhile_is_applied_to_the_certificate() -> None:
    scene = Scene(APPLIED, FAILED, comes=True)
    assert await converge_active_items(scene.agent, ["prepared"], [1]) == {1: FAILED}
    assert scene.calls == [(("prepared",), (), (1,)), ((), NEW, (1,))]


async def test_the_first_outcome_counts_when_the_new_config_changes_nothing() -> None:
    scene = Scene(APPLIED, UNCHANGED, comes=True)
    assert await converge_active_items(scene.agent, ["prepared"], [1]) == {1: APPLIED}


async def test_without_a_new_config_it_converges_once() -> None:
    scene = Scene(APPLIED, comes=False)
    assert await converge_active_items(scene.agent, ["prepared"], [1]) == {1: APPLIED}
    assert len(scene.calls) == 1


# --- this host's own rows --------------------------------------------------------------------------------------------


class LocalScene:
    """The part of an agent that reads items, on a real directory; it records problems and log lines."""

    def __init__(self, root: Path) -> None:
        self.layout, self.items, self.items_unread = ConfigDir(root), tuple[Any, ...](), False
        make_tree(RealFs(), self.layout)
        self.store, self.log = StateStore(self.layout, RealFs()), logging.getLogger("certctrl")
        self.problems: dict[str, tuple[str, str]] = {}

    def report_problem(self, key: str, what: str, fix: str) -> bool:
        before, self.problems[key] = self.problems.get(key), (what, fix)
        return before != (what, fix)

    def clear_problem(self, key: str) -> None:
        self.problems.pop(key, None)

    def planes(self, version: int, *ids: str) -> None:
        items = [{"id": name, "type": "import_ca"} for name in ids]
        digest = base64.b64encode(hashlib.sha256(canonical_json(items).encode()).digest()).decode()
        raw = {"id": 1, "version": version, "installs": items, "installs_hash_b64": digest}
        self.store.installed.save_install_config(StoredInstallConfig(raw=raw, etag=None, version=version, hash=digest))

    def read(self, text: str | None = None) -> list[str]:
        if text is not None:
            self.layout.local_installs.write_text(text)
        reload_items(self)  # type: ignore[arg-type]
        return [item.id for item in self.items]


STARTTLS = {"type": "tls", "host": "127.0.0.1", "port": 1, "starttls": "telnet"}
RELOAD = '[{"id": "reload", "type": "exec", "cmd_argv": ["/bin/true"], "depends_on": ["copy-7"]}]'


def test_an_unknown_dependency_is_reported_and_removes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scene = LocalScene(tmp_path)
    scene.planes(1, "copy-7", "copy-8")
    assert scene.read(RELOAD) == ["copy-7", "copy-8", "local:reload"] and not scene.problems
    scene.planes(2, "copy-8")
    for _ in range(2):
        assert scene.read() == ["copy-8", "local:reload"]
    what, fix = scene.problems["local-installs"]
    for part in ("installs.local.json", "$[0].depends_on", "item reload depends on copy-7", "reload here", "copy-8"):
        assert part in what
    assert str(scene.layout.local_installs) in fix
    (line,) = caplog.messages
    assert what in line
    scene.planes(3, "copy-7")
    assert scene.read() == ["copy-7", "local:reload"] and not scene.problems


def test_unreadable_local_items_leave_the_active_ones(tmp_path: Path) -> None:
    scene = LocalScene(tmp_path)
    scene.planes(1, "copy-7")
    scene.read(RELOAD)
    scene.planes(2, "copy-7", "copy-8")
    for wrong in ("[", '[{"type": "exec"}]', RELOAD.replace("]}]", "]}, 5]")):
        assert scene.read(wrong) == ["copy-7", "copy-8", "local:reload"], wrong
        assert "installs.local.json" in scene.problems["local-installs"][0]
    assert scene.read("[]") == ["copy-7", "copy-8"] and not scene.problems


def test_a_local_item_that_does_not_fit_is_refused_alone(tmp_path: Path) -> None:
    scene = LocalScene(tmp_path)
    scene.planes(1, "copy-7")
    strange = {"id": "probe", "type": "exec", "cmd_argv": ["/x"], "verify": STARTTLS, "depends_on": ["copy-7"]}
    assert scene.read(json.dumps([*json.loads(RELOAD), strange])) == ["copy-7", "local:reload", "local:probe"]
    assert [bool(item.refused) for item in scene.items] == [False, False, True]
    what, fix = scene.problems.pop("refused-items")
    assert "item local:probe: verify.starttls: expected one of smtp" in what
    assert fix == f"upgrade this agent, or correct the items in {scene.layout.local_installs}"
    assert not scene.problems
    assert scene.read(RELOAD) == ["copy-7", "local:reload"] and not scene.problems


# --- what the plane sends ---------------------------------------------------------------------------------------------


class FetchScene(LocalScene):
    """The part of an agent that fetches an install config; the plane answers with ``answer``."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.answer: Any = None
        self.is_known = False
        """Whether the plane answers 304."""
        self.outcome = UNCHANGED
        self.plane = self.tokens = self.installer = self

    async def converge_all(self, items: object, *, lasting: bool) -> Outcome:
        return self.outcome

    async def waiting_items(self, items: object) -> dict[str, str]:
        return {}

    async def identity(self) -> tuple[int, int]:
        return 14, 5

    async def authorized(self, call: Any) -> Any:
        return await call("token")

    async def fetch_install_config(self, *_: object) -> Any:
        return None if self.is_known else ("etag", self.answer)

    async def offload(self, call: Any, *args: Any) -> Any:
        return call(*args)

    def retry_now(self) -> None:
        pass

    async def fetch(self, items: list[dict[str, Any]], **more: object) -> bool:
        answer = {"id": 9, "version": 1, "installs": items, "installs_hash_b64": installs_hash(items)} | more
        self.answer = {name: value for name, value in answer.items() if value is not ...}
        return await refresh_install_config(self)  # type: ignore[arg-type]

    @property
    def ids(self) -> list[str]:
        return [item.id for item in self.items]


ITEM = {"id": "a", "type": "import_ca"}
NO_CONFIG = {"id": 0, "version": 0, "installs_hash_b64": "", "installs_json": ""}


async def test_a_device_without_an_install_config_has_no_problem(tmp_path: Path) -> None:
    scene = FetchScene(tmp_path)
    for _ in range(2):
        assert not await scene.fetch([], **NO_CONFIG)
        assert not scene.problems and scene.store.installed.load_install_config() is None
    assert await scene.fetch([ITEM]) and scene.ids == ["a"]


async def test_an_install_config_that_is_gone_from_the_plane_stays_active(tmp_path: Path) -> None:
    scene = FetchScene(tmp_path)
    await scene.fetch([ITEM], version=3)
    kept = scene.store.installed.load_install_config()
    with pytest.raises(PlanError, match="version 3 stays active") as caught:
        await scene.fetch([], **NO_CONFIG)
    assert caught.value.reason == "version-rollback" and "stays active" in scene.problems["install-config"][0]
    assert scene.ids == ["a"] and scene.store.installed.load_install_config() == kept
    scene.store.installed.forget_versions()  # the operator says so
    assert await scene.fetch([], **NO_CONFIG) and scene.ids == [] and not scene.problems
    assert not await scene.fetch([], **NO_CONFIG)
    assert await scene.fetch([ITEM], version=1) and scene.ids == ["a"]


async def test_items_that_the_disk_did_not_return_are_read_with_the_next_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a random history: version 3 was stored, could not be read at once, and version 2 stayed active forever."""
    scene = FetchScene(tmp_path)
    await scene.fetch([ITEM], version=2)
    load, loads = scene.store.installed.load_install_config, itertools.count()

    def failing() -> StoredInstallConfig | None:
        if next(loads) > 1:  # the first two are before the request and before the new one is stored
            raise DiskError("cannot read install_config.json: Input/output error")
        return load()

    with monkeypatch.context() as patch:
        patch.setattr(scene.store.installed, "load_install_config", failing)
        assert await scene.fetch([ITEM | {"id": "b"}], version=3)
    assert scene.ids == ["a"] and "Input/output error" in scene.problems["local-installs"][0]
    scene.is_known = True
    assert not await scene.fetch([])
    assert scene.ids == ["b"] and not scene.problems


async def test_local_items_with_a_mistake_wait_for_an_order_to_read_them(tmp_path: Path) -> None:
    scene = FetchScene(tmp_path)
    await scene.fetch([ITEM])
    scene.read("[")
    scene.layout.local_installs.write_text('[{"id": "b", "type": "import_ca"}]')
    scene.is_known = True
    assert not await scene.fetch([])
    assert scene.ids == ["a"] and "local-installs" in scene.problems


async def test_unknown_fields_of_an_install_config_are_not_stored(tmp_path: Path) -> None:
    """They could be a megabyte, which would be read at each start and each comparison."""
    scene = FetchScene(tmp_path)
    await scene.fetch([ITEM], updated_at="2026-01-01T00:00:00Z", more=["x"] * 1000, user_device_id=5)
    stored = scene.store.installed.load_install_config()
    assert stored is not None and not scene.problems
    assert stored.raw.keys() == {"id", "user_device_id", "version", "installs", "installs_hash_b64", "updated_at"}


@pytest.mark.parametrize("spelling", [None, "", "0", 0, "007", ...])
async def test_versions_count_however_the_id_is_spelled(tmp_path: Path, spelling: object) -> None:
    scene = FetchScene(tmp_path)
    more = {"id": spelling}
    await scene.fetch([ITEM], version=3, **more)
    for version, reason in ((2, "version-rollback"), (3, "equivocation")):
        with pytest.raises(PlanError) as caught:
            await scene.fetch([ITEM | {"id": "b"}], version=version, **more)
        assert caught.value.reason == reason
    assert await scene.fetch([ITEM | {"id": "b"}], version=4, **more)


async def test_items_that_this_version_does_not_know_are_named_and_the_others_count(tmp_path: Path) -> None:
    scene = FetchScene(tmp_path)
    strange = {"id": "s", "type": "reboot"}
    assert await scene.fetch([ITEM, strange])
    assert [(item.id, bool(item.refused)) for item in scene.items] == [("a", False), ("s", True)]
    what, fix = scene.problems["refused-items"]
    assert "item s: type: unknown item type reboot" in what and "upgrade" in fix
    assert await scene.fetch([ITEM, strange | {"enabled": False}], version=2) and not scene.problems


async def test_the_outcome_names_the_items_that_were_refused(tmp_path: Path) -> None:
    scene, signal = FetchScene(tmp_path), InstallUpdated(5)
    for outcome in (APPLIED, UNCHANGED, attrs.evolve(FAILED, detail="why")):
        scene.outcome = outcome
        await scene.fetch([ITEM, {"id": "s", "type": "reboot"}])
        ack = await on_install_updated(scene, signal)  # type: ignore[arg-type]
        assert ack.kind is OutcomeKind.FAILED and ack.deployed == outcome.deployed
        assert ack.detail.startswith("this version cannot carry out item s: type: unknown item type reboot")
        assert ack.detail.endswith(outcome.detail)
    await scene.fetch([ITEM], version=2)
    scene.layout.local_installs.write_text('[{"id": "s", "type": "reboot"}]')
    reload_items(scene)  # type: ignore[arg-type]
    assert "local:s" in scene.problems["refused-items"][0]
    scene.outcome = UNCHANGED  # a local item is not the plane's to correct
    assert (await on_install_updated(scene, signal)) == UNCHANGED  # type: ignore[arg-type]


async def test_nothing_unusable_is_stored(tmp_path: Path) -> None:
    scene = FetchScene(tmp_path)
    for items in ([ITEM | {"id": n} for n in range(1001)], [ITEM, ITEM], [ITEM | {"depends_on": ["x"]}]):
        with pytest.raises(PlanError):
            await scene.fetch(items)
        assert scene.store.installed.load_install_config() is None


async def test_a_stored_config_over_the_limits_leaves_the_agent_running(tmp_path: Path) -> None:
    scene = LocalScene(tmp_path)
    scene.planes(1, *map(str, range(1001)))
    assert scene.read(RELOAD.replace("copy-7", "")) == []
    assert "cannot be used (schema)" in scene.problems["stored-install-config"][0]
    scene.planes(2, "copy-7")
    assert scene.read(RELOAD) == ["copy-7", "local:reload"] and not scene.problems
