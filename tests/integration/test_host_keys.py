"""Keys made on the host, for real: the control plane has them nowhere, and kill -9 loses nothing."""

from __future__ import annotations

import base64
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from fleet import Agent, Fleet, Plane, served, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.root]

DOMAIN = "kept.example"
FAST = {"poll_mode": "long-poll", "poll_interval_ms": 50, "first_poll_spread_seconds": 0, "debounce_ms": 0}


def forms(pem: bytes) -> dict[str, bytes]:
    """Return what would betray a key, by name: its secret number, as bytes, hex and base64, and the lines of its PEM."""
    key: Any = load_pem_private_key(pem, None)
    secret = key.private_numbers().private_value.to_bytes(32, "big")
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    found = {"raw": secret, "reversed": secret[::-1], "hex": secret.hex().encode(), "base64": base64.b64encode(secret)}
    lines = [line for line in pem.splitlines() if b" " not in line and len(line) > 40]
    return found | {f"line {n}": line for n, line in enumerate(lines)} | {"der": der[36:68]}


def memory_of(pid: int) -> bytes:
    """Return the readable memory of a process."""
    parts = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            span = re.match(r"([0-9a-f]+)-([0-9a-f]+) r", line)
            if span is None or "[v" in line:
                continue
            start, end = (int(part, 16) for part in span.groups())
            try:
                memory.seek(start)
                parts.append(memory.read(end - start))
            except (OSError, OverflowError, ValueError):
                continue
    return b"\0".join(parts)


def files_below(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file() and not path.is_symlink()}


def issue(plane: Plane, agent: Agent, name: str) -> int:
    row = plane.operator.call(
        "POST",
        "/apiv1/users/1/certificates",
        {"domain_name": f"{name}.{DOMAIN}", "device_ids": [agent.device_id], "key_origin": "device"},
    )
    return int(row["id"])


def serial(plane: Plane, cert_id: int) -> str:
    return str(plane.operator.call("GET", f"/apiv1/users/1/certificates/{cert_id}")["serial_number"])


def serves(plane: Plane, agent: Agent, cert_id: int, name: str = "device") -> bool:
    wanted = serial(plane, cert_id)
    return bool(wanted) and served(agent.layout, f"{name}.{DOMAIN}") == wanted


def test_the_plane_has_the_key_nowhere(fleet: Fleet) -> None:
    """Neither in its files nor in its memory; the search finds what is there."""
    plane = fleet.plane(poll_rate=1000.0, poll_burst=1000)
    agent = fleet.agent(plane, **FAST)
    agent.start()
    kept = issue(plane, agent, "device")
    wait_for(lambda: serves(plane, agent, kept), "the certificate")
    key = (agent.layout.live / f"device.{DOMAIN}" / "private.key").read_bytes()
    memory = memory_of(plane.child.pid)
    places = {"memory": memory} | files_below(plane.data)
    hits = [f"{form} in {place}" for place, data in places.items() for form, text in forms(key).items() if text in data]
    assert hits == []
    secret = (plane.data / "operator.key").read_bytes().strip()
    assert secret in memory, "the search does not find what is certainly in memory"
    leaf = (agent.layout.live / f"device.{DOMAIN}" / "certificate.pem").read_bytes()
    stored = b"".join(data for path, data in places.items() if "plane.db" in path)
    assert leaf.splitlines()[5] in stored, "the search does not find what is certainly in the database"
    wait_for(lambda: not has_key(agent), "the staged key to be removed")


def test_a_kill_loses_no_key(fleet: Fleet) -> None:
    """The agent is killed while it makes a key, waits for the certificate, or deploys it; the next one goes on."""
    plane = fleet.plane(poll_rate=1000.0, poll_burst=1000)
    agent = fleet.agent(plane, **FAST)
    child = agent.start()
    for name in ("making", "waiting", "deploying"):
        cert_id = issue(plane, agent, name)
        if name != "making":
            wait_for(lambda: has_key(agent) or serves(plane, agent, cert_id, name), "a staged key")  # noqa: B023
        if name == "deploying":
            wait_for(lambda: serial(plane, cert_id), "the certificate")  # noqa: B023
        os.kill(int(agent.layout.daemon_lock.read_text().split()[0]), signal.SIGKILL)
        child.wait()
        child = agent.start()
        wait_for(lambda: serves(plane, agent, cert_id, name), "the certificate after the kill")  # noqa: B023
        wait_for(lambda: not has_key(agent), "the staged key to be removed")


def has_key(agent: Agent) -> bool:
    return any(agent.layout.staged_keys.iterdir())
