"""The host and the plane that release 0.1.0 left behind (`data/0.1.0`, see `make_data.py` there)."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import trio
from disk_changes import Node, with_entry
from modeldisk import ModelFs
from simulation.disk import file_in
from simulation.network import Exchange, NetworkFault
from simulation.scene import Scene, play
from simulation.service import Service
from simulation.world import COPIES, Setting, Template

from certctrl.install.process.result import CommandResult
from certctrl.plane.storage.keyring import Keyring

RELEASES = Path(__file__).with_name("data")
"""A directory for each release: what it leaves on the disks of its users."""
DATA = RELEASES / "0.1.0"
PRESENT = RELEASES / "present"
"""What the present version leaves, see `present.py`."""
PLACE = "{ROOT}"
"""Placeholder of the configuration directory, in paths and in contents."""
KEYSTORE, COPIED, BROKEN, TOLERATED, HELD, WAITING, WILD, REVOKED, UNPROVEN, POISON = range(1, 11)
"""Certificates by the state they were left in."""
SETTING = Setting(span=0.0, interval=300.0, access_seconds=4 * 86_400, reconcile=7 * 86_400, queue=6)
WINDOW_OPENS = 1_790_085_600.0
"""14:00 UTC on the day after; the window lasts for two hours."""


@cache
def facts() -> dict[str, Any]:
    """Return what the earlier release said of the host; see `make_data.py` for the keys."""
    known: dict[str, Any] = json.loads((DATA / "facts.json").read_text())
    assert SETTING.environ() == known["environ"]
    return known


def files(root: Path, data: Path = DATA) -> dict[str, dict[str, Any]]:
    """Return path -> kind, mode and content (``data`` or ``text``) of everything on the host."""
    found = {}
    for name, entry in json.loads((data / "disk.json").read_text()).items():
        if entry["kind"] == "file":
            text = entry.pop("text", None)
            raw = entry.pop("base64", "")
            entry["data"] = base64.b64decode(raw) if text is None else text.replace(PLACE, str(root)).encode()
        if "mode" in entry:
            entry["mode"] = int(entry["mode"], 8)
        found[name.replace(PLACE, str(root))] = entry
    return found


def write_real(root: Path, data: Path = DATA) -> None:
    """Write the configuration directory to the real disk."""
    for name, entry in files(root, data).items():
        path = Path(name)
        if not path.is_relative_to(root):
            continue
        if entry["kind"] == "dir":
            path.mkdir()
        elif entry["kind"] == "link":
            path.symlink_to(entry["text"])
        else:
            path.write_bytes(entry["data"])
        if entry["kind"] != "link":
            path.chmod(entry["mode"])


def model_disk(root: Path, data: Path = DATA) -> ModelFs:
    """Return the host's disk as a model, everything durable."""
    disk = ModelFs()
    disk.put_dir(root.parent)
    for name, entry in files(root, data).items():
        if entry["kind"] == "dir":
            disk.put_dir(name, entry["mode"])
        elif entry["kind"] == "file":
            disk.put(name, entry["data"], entry["mode"])
        else:
            parent, last = disk._resolve(name, None)
            number = next(disk._next)
            disk.now[number] = Node("link", 0o777, disk._uid, disk._uid, text=entry["text"])
            disk.now[parent] = with_entry(last, number)(disk.now[parent])
    return disk.settled()


def plane_image(root: Path, data: Path = DATA) -> bytes:
    """Return the plane's database."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.executescript((data / "plane.sql").read_text().replace(PLACE, str(root)))
        schema = json.loads((data / "facts.json").read_text())["schema"]
        connection.execute(f"PRAGMA user_version = {schema:d}")
        return connection.serialize()
    finally:
        connection.close()


def old_template(root: Path) -> Template:
    """Return host and plane in ``root``, whose configuration is written to the real disk."""
    write_real(root)
    keyring = Keyring(base64.b64decode(facts()["storage_key"]), "ok_of_the_operator_in_this_test")
    return Template(root, model_disk(root), plane_image(root), keyring, facts()["now"], facts()["issued"])


@attrs.define
class OldHost:
    """A scene that begins where the earlier release was killed."""

    scene: Scene
    failing: set[int] = attrs.field(factory=set)
    """Certificates whose service cannot be reloaded."""
    reloads: list[tuple[float, int]] = attrs.field(factory=list)
    """When a command ran (epoch seconds), and for which certificate."""
    requests: list[tuple[float, Exchange]] = attrs.field(factory=list)
    """What the agent sent, and when (epoch seconds)."""
    recovered: dict[int, Node] = attrs.field(factory=dict)
    """The disk at the first request: recovery comes before it."""

    def prepare(self) -> None:
        """Set up the services as they were, and give the auditor the state before."""
        world = self.scene.world
        for number, served in facts()["served"].items():
            cert_id, domain = int(number), self.domain(int(number))
            copies = cert_id % 2 == 0
            paths = (f"{COPIES}/{cert_id}.pem", f"{COPIES}/{cert_id}.key")
            names = (f"{world.layout.certs}/{domain}.crt", f"{world.layout.certs}/{domain}.key")
            world.services.known[cert_id] = Service(*(paths if copies else names), served=served)
        world.auditor.reported |= set(facts()["done"])
        real = world.services.run

        async def run(argv: Sequence[str], limit: float, dead: Callable[[], bool]) -> CommandResult:
            if argv[1] == "reload":
                self.reloads.append((world.clock.now(), int(argv[2])))
                if int(argv[2]) in self.failing:
                    await trio.sleep(0.05)
                    return CommandResult(argv=tuple(argv), status=1, output="the service refuses its files")
            return await real(argv, limit, dead)

        world.services.run = run  # type: ignore[method-assign]
        before = self.scene.network.before

        def sent(exchange: Exchange) -> None:
            self.recovered = self.recovered or dict(self.scene.host.disk.now)
            self.requests.append((self.now, exchange))
            before(exchange)

        self.scene.network.before = sent

    def domain(self, cert_id: int) -> str:
        """Return the file name of a certificate."""
        known = {row["cert_id"]: row["name"] for row in facts()["status"]["certificates"]}
        return str(known.get(cert_id, "poison1.example"))

    @property
    def now(self) -> float:
        return self.scene.world.clock.now()

    async def sleep_until(self, moment: float) -> None:
        """Wait for a moment of the wall clock."""
        await trio.sleep(max(0.0, moment - self.now))

    def read(self, path: str | Path) -> bytes:
        """Return the bytes of a file of the host."""
        found = file_in(self.scene.host.disk.now, path)
        assert found is not None, f"{path} is gone"
        return found

    def state(self, name: str) -> Any:
        """Return a JSON file of the state directory."""
        return json.loads(self.read(self.scene.world.layout.state / name))

    def fetched(self, cert_id: int) -> list[float]:
        """Return when the material of a certificate was fetched."""
        wanted = f"/certificates/{cert_id}/deploy-materials"
        return [moment for moment, exchange in self.requests if exchange.path.endswith(wanted)]

    async def status(self) -> Any:
        """Return what ``status --json`` answers."""
        return await self.scene.ask("status")


def resume(
    root: Path,
    scenario: Callable[[OldHost], Awaitable[None]],
    *,
    failing: Sequence[int] = (),
    faults: Sequence[NetworkFault] = (),
    power_cut: int | None = None,
) -> None:
    """Run the present agent on the host that the earlier release left, next to a scenario.

    ``failing`` are certificates whose service cannot be reloaded; ``faults`` last from the start.
    ``power_cut`` is the number of disk changes after which the power fails once.
    """
    hosts: list[OldHost] = []

    def prepare(scene: Scene) -> None:
        hosts.append(OldHost(scene, set(failing)))
        hosts[0].prepare()
        scene.network.faults = list(faults)
        if power_cut is not None:
            scene.host.kill_within(power_cut, power=True)

    async def act(scene: Scene) -> None:
        await scene.until(lambda: True, 300)
        await scenario(hosts[0])

    play(act, SETTING, made=old_template(root), prepare=prepare)
