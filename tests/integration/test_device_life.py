"""The life of devices with real agents: new hardware takes over, a key is rotated while renewals are in flight."""

from __future__ import annotations

import json

import pytest
from fleet import Agent, Fleet, Plane, run_cli, wait_for

from certctrl.errors import ExitStatus

pytestmark = pytest.mark.integration


def command(plane: Plane, *words: str) -> str:
    done = run_cli("plane", *words, "--data", plane.data)
    assert done.returncode == 0, done.stderr
    return done.stdout


def device(plane: Plane, name: str) -> dict[str, object]:
    (found,) = [row for row in json.loads(command(plane, "devices", "--json")) if row["name"] == name]
    return dict(found)


def test_new_hardware_takes_over_and_the_former_is_recognised(fleet: Fleet) -> None:
    plane = fleet.plane()
    old = fleet.agent(plane, "web-1")
    old.start()
    for name, key in (("a.example", "plane"), ("b.example", "device")):
        command(plane, "issue", name, "--device", "web-1", "--key", key)
    old.catches_up()
    former = old.serials()
    token = command(plane, "device", "replace", "web-1").strip()

    new = Agent(fleet, plane, "web-1-new")
    new.enrol(token)
    assert new.device_id == old.device_id
    assert old.daemon.wait() == ExitStatus.NOT_REGISTERED
    new.start()
    new.catches_up()
    serials = new.serials()
    assert serials.keys() == former.keys()
    changed = {cert_id for cert_id in serials if serials[cert_id] != former[cert_id]}
    keys = {row["id"]: row["key_origin"] for row in json.loads(command(plane, "certificates", "--json"))}
    assert {keys[cert_id] for cert_id in changed} == {"device"}, "only keys of the former host are replaced"
    assert old.serials() == former, "the former host keeps what is on its disk"

    shown = device(plane, "web-1")
    assert (shown["status"], shown["copies_suspected"]) == ("active", True)
    assert shown["replaced_hardware_seen_at"] and shown["replaced_hardware_address"] == "127.0.0.1"
    assert old.start(ready=False).wait() == ExitStatus.NOT_REGISTERED
    new.catches_up()
    assert new.daemon.running


def test_a_key_is_rotated_while_renewals_are_in_flight_and_the_agent_is_killed(fleet: Fleet) -> None:
    plane = fleet.plane(access_token_seconds=3, poll_rate=1000.0, poll_burst=1000)
    agent = fleet.agent(plane, "web-1")
    ids = [plane.operator.issue(f"{name}.example", agent.device_id)["id"] for name in ("a", "b", "c")]
    agent.start()
    agent.catches_up()
    before = agent.layout.device_secret_key.read_bytes()
    wait_for(lambda: "key-rotation" in str(device(plane, "web-1")["features"]), "the features of the agent")
    command(plane, "device", "rotate-key", "web-1")
    for _ in range(3):
        for cert_id in ids:
            plane.operator.renew(cert_id)
        agent.daemon.kill()
        agent.start(ready=False)
    wait_for(lambda: agent.layout.device_secret_key.read_bytes() != before, "the new key")
    wait_for(lambda: device(plane, "web-1")["key_rotation_wanted_at"] is None, "the plane to have it")
    for cert_id in ids:
        plane.operator.renew(cert_id)
    agent.catches_up()
    wait_for(lambda: not agent.layout.rotated_secret_key.exists(), "the former key to be gone")
    keys = agent.state.session.load_device_keys()
    assert keys is not None
    from nacl.public import PrivateKey

    assert bytes(PrivateKey(keys.secret).public_key) == keys.public


def test_a_host_keeps_what_is_withdrawn_and_the_plane_shows_it(fleet: Fleet) -> None:
    plane = fleet.plane()
    agent = fleet.agent(plane, "web-1")
    agent.configure("policy.json", on_unassigned="keep")
    ids = [plane.operator.issue(f"{name}.example", agent.device_id)["id"] for name in ("a", "b")]
    agent.start()
    agent.catches_up()
    before = agent.serials()
    command(plane, "unassign", str(ids[0]), "--device", "web-1")

    def kept() -> bool:
        rows = plane.operator.outcomes(agent.device_id)
        return any(row["signal"]["type"] == "cert.unassigned" and "ke" in row["detail"] for row in rows)

    wait_for(kept, "the plane to know that the certificate is kept")
    assert "cert.unassigned" in command(plane, "devices", "--outcomes", "web-1")
    done = command(plane, "device", "decommission", "web-1", "--reason", "retired", "--revoke-certificates")
    assert "revoked: b.example" in done
    assert agent.daemon.wait() == ExitStatus.NOT_REGISTERED
    assert agent.serials() == before, "no order of a control plane whose session is void removes anything"
    again = json.loads(command(plane, "device", "decommission", "web-1", "--json"))
    assert [row["changed"] for row in again] == [False]
