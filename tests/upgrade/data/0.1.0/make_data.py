"""Make the data of 0.1.0: the host and the plane of a release whose state formats users have on their disks.

This script runs only at commit 4eb9de0, whose agent, plane and simulation it drives; it is kept to show how the data
was made. In a clone of that commit, with the commit's requirements installed:

    PYTHONPATH=.:tests python /path/to/make_data.py /path/to/data

The agent of that commit deploys nine certificates, with these failures: two reload commands fail, one certificate is
rolled back by the operator, one waits for the maintenance window, one is revoked, one has another's key, and one
cannot be fetched. Then the plane stops taking reports, more signals arrive, and the process is killed between the
two renames of a copied pair. All keys, tokens and passwords are made here and used nowhere else.
"""
# ruff: noqa: I001 (these are the modules of that commit, which ruff does not find here)

from __future__ import annotations

import base64
import json
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import trio
from modeldisk import ModelFs
from simulation.authority import ca, leaf_facts
from simulation.clockwork import START, run_seeded
from simulation.disk import file_in
from simulation.history import heard, stand_ins
from simulation.machine import current
from simulation.network import NOTIFY_PATH, Weather
from simulation.scene import Scene
from simulation.world import COPIES, DEVICE, TRUSTED, USER, Setting, template

from certctrl.install.process import CommandResult
from certctrl.model.signals import identity
from certctrl.plane.schema import SCHEMA
from certctrl.store.layout import ConfigDir
from certctrl.store.state import StateStore

HOUR = 3600.0
KEYSTORE, COPIED, BROKEN, TOLERATED, HELD, WAITING, WILD, REVOKED, UNPROVEN, POISON = range(1, 11)
DOMAINS = (
    "keystore.example", "copied.example", "broken.example", "tolerated.example", "held.example", "waiting.example",
    "*.wild.example", "revoked.example", "unproven.example", "poison1.example",
)  # fmt: skip
SETTING = Setting(span=0.0, interval=300.0, access_seconds=4 * 86_400, reconcile=7 * 86_400, queue=6)
WINDOW = {"from": "14:00", "to": "16:00", "timezone": "UTC", "override_when_life_below": 0.2}
"""`START` is 14:13:20 UTC."""


def items(scene: Scene) -> list[dict[str, Any]]:
    """Return the install config of the host."""
    found = scene.operators.items([*range(1, POISON)])
    for item in found:
        if item["id"] == f"r{TOLERATED}":
            item["continue_on_error"] = True
    about = {"ob_type": "cert", "ob_id": KEYSTORE}
    found.append({"id": "p1", "type": "copy", "from": ["bundle.pfx"], "to": [f"{COPIES}/1.pfx"], **about})
    return found


class Story:
    """What happens to the host."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.plane = scene, scene.plane
        self.broken: set[int] = set()
        self.unreachable: set[int] = set()
        self.slow: set[int] = set()
        run, meets = scene.world.services.run, scene.network.meets

        async def reload(argv: Sequence[str], *more: Any) -> CommandResult:
            if argv[1] == "reload" and self.refuses(int(argv[-1])):
                await trio.sleep(0.05)
                return CommandResult(argv=tuple(argv), status=1, output="the service refuses its files")
            return await run(argv, *more)

        def weather(path: str) -> Weather | None:
            if any(f"/certificates/{cert_id}/" in path for cert_id in self.unreachable) or path.endswith("/issues"):
                return Weather(kind="status", status=503)
            if any(f"/certificates/{cert_id}/" in path for cert_id in self.slow):
                return Weather(kind="slow", seconds=5.0)
            return meets(path)

        scene.world.services.run = reload  # type: ignore[method-assign]
        scene.network.meets = weather  # type: ignore[method-assign]

    async def report(self) -> None:
        scene, plane = self.scene, self.plane
        await scene.until(lambda: len(scene.polls) >= 2)
        for number, domain in enumerate(DOMAINS, 1):
            row = await plane.certificates.issue(
                USER, [domain], validity_seconds=int(8 * HOUR if number == COPIED else 200 * 86_400),
                device_ids=[DEVICE],
            )  # fmt: skip
            assert row["id"] == number
            scene.operators.introduce(number, domain.replace("*", "_wildcard"))
        hook = {"id": "h", "type": "exec", "cmd_argv": [str(template().root / "hook.sh"), "once"]}
        await plane.installs.put(DEVICE, [*items(scene), hook])
        await scene.until(lambda: all(scene.live(number) for number in range(1, POISON)), HOUR)
        await scene.until(lambda: scene.agent.store.load_pins(), HOUR)
        await plane.installs.put(DEVICE, items(scene))  # without the hook, which is in a temporary directory
        await scene.operators.assign_ca()
        await trio.sleep(900)

        await plane.certificates.renew(USER, HELD)
        newest = self.serial(HELD)
        await scene.until(lambda: scene.record(HELD).serial == newest, HOUR)
        current.set(scene.machine.life)  # the probe's stand-in looks for its process there
        await scene.ask("rollback", domain="held.example")
        self.broken = {BROKEN, TOLERATED, UNPROVEN}
        for number in (BROKEN, TOLERATED, HELD, UNPROVEN):
            await plane.certificates.renew(USER, number)
        await plane.certificates.revoke(USER, REVOKED)
        await scene.until(lambda: scene.record(BROKEN).attempts and scene.record(TOLERATED).attempts, HOUR)
        await scene.until(lambda: scene.record(HELD).staged and not scene.record(REVOKED).generation, HOUR)

        await self.sleep_until(2.0 * HOUR)  # past 16:00
        await plane.certificates.renew(USER, WAITING)
        await scene.until(lambda: scene.record(WAITING).staged, HOUR)
        await self.sleep_until(6.8 * HOUR)  # less than a fifth of COPIED's life is left
        scene.network.weather = [Weather(kind="status", status=503, path=NOTIFY_PATH)]
        self.unreachable = {WILD}
        await plane.certificates.renew(USER, WILD)
        await scene.until(lambda: any(one.last_error and one.signal.cert_id == WILD for one in self.inbox()), HOUR)
        self.slow = {KEYSTORE, WAITING}
        for number in (KEYSTORE, COPIED, WAITING):
            await plane.certificates.renew(USER, number)
        await plane.authorities.assign(USER, DEVICE, plane.authorities.add(USER, "second", ca()[1])["id"])
        await scene.operators.send_unknown()
        self.kill_between_the_renames()
        with trio.fail_after(HOUR):
            while not scene.machine.crashes:
                await trio.sleep(0.01)

    def refuses(self, cert_id: int) -> bool:
        """Return whether a service cannot be reloaded; BROKEN's takes back its first certificate."""
        service, nodes = self.scene.world.services.known[cert_id], self.scene.machine.disk.now
        if cert_id == BROKEN and cert_id in self.broken:
            return leaf_facts(file_in(nodes, service.certificate) or b"")[0] != service.served
        return cert_id in self.broken

    def inbox(self) -> Any:
        return [one for one in self.scene.agent.inbox.entries() if hasattr(one.signal, "cert_id")]

    def serial(self, cert_id: int) -> str:
        rows = self.plane.certificates.page(DEVICE, 0, 100)
        return str(next(row["serial_number"] for row in rows if row["id"] == cert_id))

    async def sleep_until(self, seconds: float) -> None:
        await trio.sleep(START + seconds - self.scene.world.time.now())

    def kill_between_the_renames(self) -> None:
        machine = self.scene.machine
        disk = machine.disk
        rename = disk.rename

        def renamed(old: Any, new: Any, at: Any = None) -> None:
            rename(old, new, at)
            if at is not None and at.path == COPIES and not str(new).startswith(".") and not machine.crashes:
                machine.kill(power=False)

        disk.rename = renamed  # type: ignore[method-assign]


# --- writing it down ----------------------------------------------------------------------------------------


def manifest(disk: ModelFs, root: Path) -> dict[str, dict[str, str]]:
    """Return the host's files: path -> kind, mode and content."""
    found: dict[str, dict[str, str]] = {}
    for path, node in sorted(disk.tree().items()):
        if not path.startswith((f"{root}/", f"{COPIES}", f"{TRUSTED}")) and path != str(root):
            continue
        entry = {"kind": node.kind}
        if node.kind == "link":
            entry["text"] = node.text
        else:
            entry["mode"] = f"{node.mode:04o}"
        if node.kind == "file":
            try:
                entry["text"] = node.data.decode().replace(str(root), "{ROOT}")
            except UnicodeDecodeError:
                assert str(root).encode() not in node.data
                entry["base64"] = base64.b64encode(node.data).decode()
        found[path.replace(str(root), "{ROOT}")] = entry
    for name in ("application.json", "policy.json", "hook.sh"):
        path = root / name
        mode = f"{stat.S_IMODE(path.stat().st_mode):04o}"
        text = path.read_text().replace(str(root), "{ROOT}")
        found[f"{{ROOT}}/{name}"] = {"kind": "file", "mode": mode, "text": text}
    return dict(sorted(found.items()))


def materialise(files: dict[str, dict[str, str]], root: Path) -> None:
    """Write what is below ``{ROOT}`` to the real disk."""
    for name, entry in files.items():
        if not name.startswith("{ROOT}"):
            continue
        path = Path(name.replace("{ROOT}", str(root)))
        if entry["kind"] == "dir":
            path.mkdir(exist_ok=True)
        elif entry["kind"] == "link":
            path.symlink_to(entry["text"])
        else:
            data = entry["text"].replace("{ROOT}", str(root)).encode() if "text" in entry else None
            path.write_bytes(base64.b64decode(entry["base64"]) if data is None else data)
        if entry["kind"] != "link":
            path.chmod(int(entry["mode"], 8))


def printed(root: Path, *command: str) -> Any:
    """Return what the command line of this commit prints."""
    argv = [sys.executable, "-m", "certctrl", "-c", str(root), *command, "--json"]
    return json.loads(subprocess.run(argv, capture_output=True, check=False).stdout)


def facts(story: Story, root: Path, real: Path) -> dict[str, Any]:
    """Return what this commit says of the host."""
    world = story.scene.world
    disk = world.machine.disk
    store = StateStore(ConfigDir(root), disk)
    config = store.load_install_config()
    assert config is not None
    acks, done = store.load_outcomes()
    status = printed(real, "status")
    for machine_word in ("pid", "now", "cursor_at"):
        del status[machine_word]
    return {
        "now": world.time.now(),
        "environ": SETTING.environ(),
        "issued": world.issuer.count,
        "storage_key": base64.b64encode(STORAGE_KEY).decode(),
        "schema": len(SCHEMA),
        "status": status,
        "inbox": [
            {"identity": identity(one.signal), "type": one.signal.type, "attempts": one.attempts,
             "last_error": one.last_error, "next_try_at": one.next_try_at}
            for one in store.load_inbox()
        ],
        "acks": [ack.event for ack in acks],
        "done": list(done),
        "cursor": store.load_cursor(),
        "device_id": store.load_device_id(),
        "high_water": dict(config.high_water),
        "activations": store.load_activations(),
        "pins": store.load_pins(),
        "cas": sorted(store.load_cas()),
        "history": len(store.load_history()),
        "served": {number: one.served for number, one in world.services.known.items()},
    }  # fmt: skip


STORAGE_KEY = bytes(range(100, 132))


def write(story: Story, out: Path) -> None:
    root = template().root
    files = manifest(story.scene.machine.disk, root)
    with tempfile.TemporaryDirectory() as folder:
        real = Path(folder) / "etc"
        materialise(files, real)
        known = facts(story, root, real)
        text = json.dumps(known, indent=1, ensure_ascii=False).replace(str(root), "{ROOT}").replace(str(real), "{ROOT}")
    (out / "facts.json").write_text(text + "\n")
    (out / "disk.json").write_text(json.dumps(files, indent=1, ensure_ascii=False) + "\n")
    dump = "\n".join(story.scene.world.database._connection.iterdump())
    (out / "plane.sql").write_text(dump.replace(str(root), "{ROOT}") + "\n")


def main(out: Path) -> None:
    from certctrl.plane import keyring

    keyring._new_storage_key = lambda: STORAGE_KEY
    policy, hook = template().root / "policy.json", template().root / "hook.sh"
    hook.write_text("#!/bin/sh\nexit 0\n")
    hook.chmod(0o755)
    fields = json.loads(policy.read_text())
    fields["commands"]["hook"] = {"argv": [str(hook), "once"]}
    policy.write_text(json.dumps(fields | {"window": WINDOW, "trust_on_first_use": True}))

    async def run() -> None:
        scene = Scene(SETTING, {})
        story = Story(scene)
        try:
            with heard(scene.world), scene.world.auditor.over:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(scene.machine.run_forever)
                    await story.report()
                    nursery.cancel_scope.cancel()
            if scene.world.auditor.violation is not None:
                raise scene.world.auditor.violation
            write(story, out)
        finally:
            print(scene.world.journal.text(4000))
            scene.world.close()

    with (
        stand_ins(),
        patch("certctrl.agent.reporter.WRITE_EVERY", 60.0),
        patch("certctrl.agent.upkeep.LOOK_EVERY", 300.0),
    ):
        run_seeded(1, run)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
