"""The present formats: kept as a fixture, and read by the present version after a kill."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from simulation.scene import Scene, play
from simulation.service import Service
from simulation.world import COPIES, DEVICE, Template
from upgrade.old_host import PRESENT, RELEASES, model_disk, plane_image, write_real
from upgrade.present import BROKEN, COPIED, DOMAINS, HELD, PLAIN, REVOKED, SETTING, formats, made_now

from certctrl.plane.storage.keyring import Keyring
from certctrl.plane.storage.schema import SCHEMA
from certctrl.store import decode

STORIES = [PRESENT, *(path.parent for path in RELEASES.glob("*.*/facts.json") if "operator_key" in path.read_text())]
"""The present version, and the releases whose data are copies of what it was then."""
FIX = "make it again: PYTHONPATH=.:tests python -m upgrade.present"


def kept(data: Path = PRESENT) -> tuple[dict[str, Any], str, dict[str, Any]]:
    disk, facts = (json.loads((data / f"{name}.json").read_text()) for name in ("disk", "facts"))
    return disk, (data / "plane.sql").read_text(), facts


def test_the_fixture_has_the_formats_of_the_present_version() -> None:
    """A change of a format is seen in a review, and the next release finds its fixture made."""
    disk, plane, facts = kept()
    assert (facts["schema"], facts["state_version"]) == (len(SCHEMA), decode.VERSION), FIX
    made = made_now()
    assert formats(disk, plane) == formats(made["disk"], made["plane"]), FIX


def test_the_comparison_notices_a_new_key_a_new_file_and_a_new_column() -> None:
    disk, plane, _ = kept()
    before = formats(disk, plane)
    assert {"certificates.json", "retries.json", "inbox.json", "pending_acks.json", "table devices"} <= before.keys()
    assert ".certificates.*.former" in before["certificates.json"]
    path = "{ROOT}/state/certificates.json"
    row = json.loads(disk[path]["text"])
    row["certificates"]["1"]["of_the_next_release"] = [{"a": 1}]
    assert formats(disk | {path: disk[path] | {"text": json.dumps(row)}}, plane) != before
    assert formats(disk | {"{ROOT}/state/new.json": {"kind": "file", "text": "{}"}}, plane) != before
    assert formats(disk, plane.replace("CREATE TABLE devices (", "CREATE TABLE devices (more TEXT,", 1)) != before


@pytest.mark.parametrize("data", STORIES, ids=[path.name for path in STORIES])
def test_the_present_version_continues_with_it(tmp_path: Path, data: Path) -> None:
    disk, _, facts = kept(data)
    root = tmp_path / "etc"
    write_real(root, data)
    keyring = Keyring(base64.b64decode(facts["storage_key"]), facts["operator_key"])
    made = Template(root, model_disk(root, data), plane_image(root, data), keyring, facts["now"], facts["issued"])

    def prepare(scene: Scene) -> None:
        done = json.loads(disk["{ROOT}/state/pending_acks.json"]["text"])["done"]
        scene.world.auditor.reported |= set(done)
        for number, domain in enumerate(DOMAINS, 1):
            pair = (f"{COPIES}/{number}.pem", f"{COPIES}/{number}.key")
            own = (f"{scene.world.layout.certs}/{domain}.crt", f"{scene.world.layout.certs}/{domain}.key")
            served = facts["served"][str(number)]
            scene.world.services.known[number] = Service(*(own if number % 2 else pair), served=served)

    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: True, 300)
        newest = {row["id"]: row["serial_number"] for row in scene.plane.certificates.page(DEVICE, 0, 100)}
        for number in (PLAIN, COPIED, BROKEN):
            await scene.until(lambda number=number: scene.record(number).facts.serial == newest[number], 7200)  # type: ignore[misc]
        record = scene.record(HELD)
        assert record.held and record.staged and record.former, "what a rollback may choose is known"
        assert not scene.record(REVOKED).generation
        await scene.until(lambda: not scene.agent.inbox.depth)

    play(scenario, SETTING, made=made, prepare=prepare)
