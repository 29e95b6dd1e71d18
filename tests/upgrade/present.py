"""The host and the plane that the present version leaves behind, in `data/present`.

Make them again when a format changes, and for a release, whose directory is a copy:

    PYTHONPATH=.:tests python -m upgrade.present

The agent deploys five certificates, with these failures: one is held by a rollback, the service of one refuses its renewal, one is revoked, and
the material of one cannot be fetched. Then the plane stops taking reports, more signals arrive, and the process is killed. All keys, tokens
and passwords are made here and used nowhere else.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import trio
from simulation.network import NOTIFY_PATH, NetworkFault
from simulation.scene import Scene, play
from simulation.world import COPIES, DEVICE, TRUSTED, USER, Setting, template
from upgrade.old_host import PLACE, PRESENT

from certctrl.plane.storage.schema import SCHEMA
from certctrl.store import decode

PLAIN, COPIED, BROKEN, HELD, REVOKED = range(1, 6)
DOMAINS = ("plain.example", "copied.example", "broken.example", "held.example", "revoked.example")
SETTING = Setting(span=0.0, interval=60.0, access_seconds=30 * 86_400, reconcile=7 * 86_400)
STORAGE_KEY = bytes(range(32))


async def story(scene: Scene) -> dict[str, Any]:
    """Let the host come into that state; return what the three files contain."""
    plane, network = scene.plane, scene.network
    for number, domain in enumerate(DOMAINS, 1):
        assert (await scene.issue(domain))["id"] == number
        scene.operators.introduce(number, domain)
    await plane.installs.put(DEVICE, scene.operators.items([*range(1, len(DOMAINS) + 1)]))
    await scene.until(lambda: all(scene.live(number) for number in range(1, len(DOMAINS) + 1)))
    await scene.operators.assign_ca()
    await trio.sleep(600)
    before = scene.record(HELD).generation
    await plane.certificates.renew(USER, HELD)
    await scene.until(lambda: scene.record(HELD).generation != before and not scene.agent.inbox.depth)
    await scene.ask("rollback", domain=DOMAINS[HELD - 1])
    scene.world.services.refuse_renewals(BROKEN)
    for number in (BROKEN, HELD):
        await plane.certificates.renew(USER, number)
    await plane.certificates.revoke(USER, REVOKED)
    await scene.until(lambda: bool(scene.retry(BROKEN).failures and scene.record(HELD).staged))
    await scene.until(lambda: not scene.record(REVOKED).generation)
    await trio.sleep(600)
    unreachable = f"/certificates/{COPIED}/deploy-materials"
    network.faults = [NetworkFault(kind="status", status=503, path=path) for path in (NOTIFY_PATH, unreachable)]
    for number in (PLAIN, COPIED):
        await plane.certificates.renew(USER, number)
    await scene.operators.send_unknown()
    await trio.sleep(300)
    return left_behind(scene)


def left_behind(scene: Scene) -> dict[str, Any]:
    """Return the contents of the files: those of the host by path, the dump of the database, and facts."""
    root, world = str(template().root), scene.world
    database = world.database._connection
    return {
        "disk": dict(sorted(_files(scene, root))),
        "plane": "\n".join(database.iterdump()).replace(root, PLACE),
        "facts": {
            "now": world.clock.now(),
            "environ": SETTING.environ(),
            "issued": world.issuer.count,
            "storage_key": base64.b64encode(world.made.keyring._key).decode(),
            "operator_key": world.made.keyring.operator_key,
            "schema": len(SCHEMA),
            "state_version": decode.VERSION,
            "served": {number: one.served for number, one in world.services.known.items()},
        },
    }


def _files(scene: Scene, root: str) -> Iterator[tuple[str, dict[str, str]]]:
    for path, node in scene.host.disk.tree().items():
        if path != root and not path.startswith((f"{root}/", COPIES, TRUSTED)):
            continue
        entry = {"kind": node.kind}
        entry |= {"text": node.text} if node.kind == "link" else {"mode": f"{node.mode:04o}"}
        if node.kind == "file":
            try:
                entry["text"] = node.data.decode().replace(root, PLACE)
            except UnicodeDecodeError:
                entry["base64"] = base64.b64encode(node.data).decode()
        yield path.replace(root, PLACE), entry
    for name in ("application.json", "policy.json"):
        path = template().root / name
        text = path.read_text().replace(root, PLACE)
        yield f"{PLACE}/{name}", {"kind": "file", "mode": f"{path.stat().st_mode & 0o777:04o}", "text": text}


def made_now() -> dict[str, Any]:
    """Return what the present version leaves behind."""
    found = dict[str, Any]()

    async def scenario(scene: Scene) -> None:
        found.update(await story(scene))

    play(scenario, SETTING)
    return found


# --- formats ----------------------------------------------------------------------------------------------------------


def formats(disk: Mapping[str, Mapping[str, str]], plane: str) -> dict[str, list[str]]:
    """Return state file or table -> the keys in it, at any depth, and its columns."""
    found: dict[str, list[str]] = {}
    for path, entry in disk.items():
        if re.fullmatch(r"\{ROOT\}/state/(journal/)?[^/]+", path) and entry["kind"] == "file":
            name = "journal" if "/journal/" in path else path.rpartition("/")[2]
            found[name] = sorted(set(_keys(entry.get("text", ""))))
    for name, columns in re.findall(r'^CREATE TABLE "?(\w+)"? ?(\(.*?);$', plane, flags=re.M | re.S):
        found[f"table {name}"] = [" ".join(columns.split())]
    return found


def _keys(text: str) -> Iterator[str]:
    for line in text.splitlines():
        try:
            yield from _keys_of(json.loads(line), "")
        except ValueError:
            yield "text"


def _keys_of(value: Any, above: str) -> Iterator[str]:
    """Yield the paths of keys; names that are data, such as ids, are shown as ``*``."""
    if isinstance(value, dict):
        for key, inner in value.items():
            path = f"{above}.{key if re.fullmatch(r'[a-z_]+', key) else '*'}"
            yield path
            yield from _keys_of(inner, path)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys_of(inner, f"{above}[]")


def main() -> None:
    """Write the files."""
    found = made_now()
    PRESENT.mkdir(exist_ok=True)
    for name in ("disk", "facts"):
        text = json.dumps(found[name], indent=1, ensure_ascii=False)
        (PRESENT / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")
    (PRESENT / "plane.sql").write_text(f"{found['plane']}\n", encoding="utf-8")
    print(Path(PRESENT))


if __name__ == "__main__":
    main()
