"""The world of one history: plane, network, host, auditor. One host is registered per test process, then copied."""

from __future__ import annotations

import atexit
import gc
import json
import random
import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import attrs
import trio
from compat.peers import EarlierPlane
from modeldisk import ModelFs
from nacl.public import PrivateKey
from simulation.auditor import Auditor
from simulation.authority import SimulatedIssuer
from simulation.clock import START, Clock
from simulation.disk import SimulatedDisk
from simulation.host import Host
from simulation.journal import Journal
from simulation.network import Network, SimulatedHttp
from simulation.service import RELOAD, Services

from certctrl.agent.register import register
from certctrl.model.records import DeviceKeys
from certctrl.net.control_plane import ControlPlane
from certctrl.plane.ca.issuer import inline
from certctrl.plane.http.app import Plane, make_app
from certctrl.plane.pace import Pace
from certctrl.plane.settings import PlaneSettings
from certctrl.plane.storage.keyring import Keyring
from certctrl.plane.storage.sqlite import SqliteDatabase
from certctrl.store.config.files import load_config
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir
from certctrl.store.state.session import SessionState

USER, DEVICE = 1, 1
COPIES = "/srv/tls"
TRUSTED = "/srv/trusted"
MOST_CERTIFICATES = 40
GRACE = 600.0
"""Seconds between an unassignment and the removal: short, because histories are."""


@attrs.frozen(kw_only=True)
class Setting:
    """Settings of one history."""

    span: float
    """Seconds of trouble."""
    interval: float
    mode: str = "interval"
    page: int = 20
    reconcile: int = 21_600
    serving: int = 3600
    """Seconds between looks at what endpoints serve."""
    access_seconds: int = 3600
    rotate: bool = False
    queue: int = 1000
    poison_attempts: int = 3
    stream_length: int = 1000
    emphasis: Mapping[str, float] = attrs.field(factory=dict)
    """Name of an action -> factor on its weight."""
    changing: bool = False
    """Whether operators change the poll mode while the agent runs, and the release of the plane, with its features."""

    def environ(self) -> dict[str, str]:
        """Return the agent's configuration as environment variables."""
        looks = {} if self.serving == 3600 else {"CERTCTRL_SERVING_INTERVAL_SECONDS": str(self.serving)}
        return looks | {
            "CERTCTRL_POLL_INTERVAL_MS": str(round(self.interval * 1000)),
            "CERTCTRL_POLL_MODE": self.mode,
            "CERTCTRL_POLL_LIMIT": str(self.page),
            "CERTCTRL_RECONCILE_INTERVAL_SECONDS": str(self.reconcile),
            "CERTCTRL_QUEUE_SIZE": str(self.queue),
            "CERTCTRL_POISON_ATTEMPTS": str(self.poison_attempts),
        }

    def plane(self) -> PlaneSettings:
        """Return the plane's settings."""
        return PlaneSettings(
            access_token_seconds=self.access_seconds,
            rotate_refresh_tokens=self.rotate,
            stream_length=self.stream_length,
        )


@attrs.frozen
class Template:
    """A host registered at a plane."""

    root: Path
    """A real directory: configuration files are read from the real disk."""
    disk: ModelFs
    database: bytes
    keyring: Keyring
    moment: float = START
    """Epoch seconds at which the history begins."""
    issued: int = 0
    """Certificates that the plane has issued before."""


@cache
def template() -> Template:
    """Return the template of this test process."""
    root = Path(tempfile.mkdtemp(prefix="certctrl-simulation-")) / "etc"
    root.mkdir(mode=0o700)
    atexit.register(shutil.rmtree, root.parent, ignore_errors=True)
    (root / "application.json").write_text(json.dumps({"server_url": "https://plane.test"}))
    commands = {f"reload-{n}": {"argv": [RELOAD, "reload", str(n)]} for n in range(1, MOST_CERTIFICATES + 1)}
    trust = {"directory": TRUSTED, "command": [RELOAD, "update"]}
    policy = root / "policy.json"
    rules = {"write_roots": [COPIES], "commands": commands, "trust_store": trust, "unassign_grace": GRACE}
    policy.write_text(json.dumps(rules))
    policy.chmod(0o600)
    disk = ModelFs()
    disk.put_dir(root.parent.parent)
    disk.put_dir(COPIES)
    disk.put_dir(TRUSTED)
    layout = ConfigDir(root)
    make_tree(disk, layout)
    store, secret = SessionState(layout, disk), PrivateKey(bytes(range(32)))  # fixed, otherwise journals would differ
    store.save_device_id("23229bf7-5172-02c7-59a2-76d5b4a40090")
    store.save_device_keys(DeviceKeys(public=bytes(secret.public_key), secret=bytes(secret)))
    keyring, database = Keyring.open(None), SqliteDatabase(None)

    async def enrol() -> None:
        journal = Journal(trio.current_time)
        plane = Plane(
            None, database, keyring, settings=PlaneSettings(), wall_now=lambda: START, monotonic=trio.current_time,
            offload=inline, issuer=SimulatedIssuer(lambda: START),
        )  # fmt: skip
        network = Network(random.Random(0), journal)
        network.app = make_app(plane)
        await enrol_again(layout, disk, plane, network, lambda: START)
        plane.close()

    try:
        trio.run(enrol)
        gc.collect()
        gc.freeze()  # keep imported modules out of later collections
        return Template(root, disk.settled(), database._connection.serialize(), keyring)
    finally:
        database.close()


async def enrol_again(layout: ConfigDir, disk: ModelFs, plane: Plane, network: Network, wall_now: Any) -> None:
    """Register the host with an enrolment token, as ``cert-ctrl register`` does."""
    config = load_config(layout, {}).config
    client = ControlPlane(SimulatedHttp(network, lambda: False), config, wall_now=wall_now)
    token = plane.enrolment.new_token(USER)["token"]
    await register(
        layout, SessionState(layout, disk), client, config,
        enrolment_token=token, show=lambda prompt: None, wall_now=wall_now, fs=disk,
    )  # fmt: skip


def database_of(image: bytes) -> SqliteDatabase:
    """Return a database in memory with the tables of an image, instead of making them all anew."""
    with patch("certctrl.plane.storage.sqlite.scripts_to_run", lambda version, where: ()):
        database = SqliteDatabase(None)
    database._connection.deserialize(image)
    return database


class World:
    """The world of one history; create it inside its Trio run."""

    def __init__(self, seed: int, setting: Setting, made: Template | None = None) -> None:
        self.setting = setting
        self.made = made or template()
        self.chances = random.Random(seed)
        self.clock = Clock()
        self.clock.begin()
        self.clock.slept = self.made.moment - START
        start = trio.current_time()
        self.journal = Journal(lambda: trio.current_time() - start)
        self.layout = ConfigDir(self.made.root)
        self.issuer = SimulatedIssuer(self.clock.now)
        self.issuer.count = self.made.issued
        self.database = database_of(self.made.database)
        self.copies: list[SqliteDatabase] = []
        self.lacking: set[str] = set()
        """Features that the release of the plane lacks."""
        self.batches: dict[str, Any] = {}
        """Atomic batches that have left the plane (``batchauditor.py``)."""
        self.network = Network(self._chance(), self.journal)
        self.plane = self.open_plane(self.made.database)
        disk = SimulatedDisk()
        disk.chance = self._chance()
        disk = disk.successor(self.made.disk.copy())
        self.services = Services(lambda: self.host.disk, lambda what: self.journal.note("command", what))
        self.host = Host(
            self.made.root, disk, self.clock, self.network, self.services, self.journal, self._chance(),
            setting.environ(),
        )  # fmt: skip
        self.auditor = Auditor(self.layout, self.host, page=setting.page, rotates=setting.rotate)
        self.network.before, self.network.after = self.auditor.before, self.auditor.after
        self.network.told = self.auditor.told
        self.host.check_start = self.auditor.started
        disk.switched = self.auditor.switched

    def _chance(self) -> random.Random:
        """Return a separate random generator, so that parts do not influence each other."""
        return random.Random(self.chances.random())

    def open_plane(self, image: bytes) -> Plane:
        """Start a plane on a database image, replacing the running one."""
        self.database._connection.deserialize(image)
        self.database._prepare()  # an image of an earlier release is migrated, as its file would be
        plane = Plane(
            None, self.database, self.made.keyring, settings=self.setting.plane(), wall_now=self.clock.now,
            monotonic=trio.current_time, offload=inline, issuer=self.issuer,
        )  # fmt: skip
        plane.polls.pace = Pace(self._chance().random)
        self.network.cut_sockets()
        self.network.app = EarlierPlane(make_app(plane), self.lacking) if self.setting.changing else make_app(plane)
        return plane

    def lag(self) -> None:
        """Let the resources of the plane stay as they are now, for the host; signals keep coming."""
        database = database_of(self.image())
        self.copies.append(database)
        replica = Plane(
            None, database, self.made.keyring, settings=self.setting.plane(), wall_now=self.clock.now,
            monotonic=trio.current_time, offload=inline, issuer=self.issuer,
        )  # fmt: skip
        self.network.replica = make_app(replica)

    def image(self) -> bytes:
        """Return the plane's database as a backup."""
        return self.database._connection.serialize()

    def close(self) -> None:
        """Close the databases."""
        for database in (self.database, *self.copies):
            database.close()
