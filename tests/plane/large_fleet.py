"""A fleet of any size with every state, made in the database: what thousands of devices would have reported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from certctrl.plane.core import Plane
from certctrl.plane.devices.devices import DeviceFacts
from certctrl.plane.settings import DAY

SITES = ("fra", "ber", "ams", "muc")
ROLES = ("web", "edge", "db", "mail")
NGINX = 'item "nginx": the command exited with 1: nginx: [emerg] host not found in upstream "cart-7" in /etc/nginx/conf.d/shop.conf:14'
POLICY = 'policy.json of the host does not allow the command "reload-haproxy"'
STILL = "Postfix still serves it on port 465"


async def fill(plane: Plane, count: int, certificates: int = 24) -> list[int]:
    """Add devices with certificates to a plane; return the ids of devices that fail alike."""
    names = ["www.shop.example", "api.shop.example", "static.shop.example", "legacy.shop.example", "pay.shop.example"]
    names += [f"svc-{number:03}.shop.example" for number in range(certificates - len(names))]
    ids = [int((await plane.certificates.issue(1, [name]))["id"]) for name in names]
    return await plane.work_long(_devices, plane, count, ids)


def _devices(plane: Plane, count: int, cert_ids: Sequence[int]) -> list[int]:
    db, now = plane.database, plane.wall_now()
    for place, cert_id in enumerate(cert_ids):
        end = now + (9, 12, 61, 23, 6)[place] * DAY if place < 5 else now + (14 + 3 * place) * DAY
        db.run("UPDATE certificates SET not_after = ? WHERE id = ?", end, cert_id)
    serials = {row["id"]: row["serial_number"] for row in db.all("SELECT id, serial_number FROM certificates")}
    failing = []
    for number in range(count):
        role, site = ROLES[number % 4], SITES[number // 4 % 4]
        name = f"{role}-{site}-{number // 16:03}"
        facts = DeviceFacts(
            device_public_id=f"{number:08x}-0000-4000-8000-000000000000", name=name, platform="Debian GNU/Linux 12"
        )
        device_id = plane.devices.add(1, facts)
        db.run(
            "UPDATE devices SET status = 'active', registered_at = ?, last_seen_at = ?, app_version = ?, last_address = ?,"
            " key_fingerprint = ? WHERE id = ?",
            *(now - 200 * DAY, now - number % 50, "0.3.0" if number % 9 else "0.2.1"),
            *(f"10.12.{number // 250}.{number % 250 + 1}", f"{number:064x}", device_id),
        )
        db.run("INSERT INTO device_tags VALUES (?, ?), (?, ?)", device_id, role, device_id, f"site={site}")
        for cert_id in (cert_ids[0], cert_ids[5 + number % (len(cert_ids) - 5)]):
            _assign(db, device_id, cert_id, now)
            _deployed(db, device_id, cert_id, serials[cert_id], now - 300 - number)
        if number % 4 == 0 and number // 16 in range(3, 9) and number // 4 % 4 == 0:
            _fails(db, device_id, cert_ids[0], ("run", "command-failed", NGINX), now - 5100 - number)
            failing.append(device_id)
            if len(failing) == 1:
                _reported(db, device_id, cert_ids[0], now)
    some = [row["id"] for row in db.all("SELECT id FROM devices ORDER BY id LIMIT 40")]
    for device_id in some[17:19]:
        _assign(db, device_id, cert_ids[1], now)
        _fails(db, device_id, cert_ids[1], ("plan", "policy", POLICY), now - 430)
    _assign(db, some[3], cert_ids[3], now)
    _deployed(db, some[3], cert_ids[3], serials[cert_ids[3]], now - 90 * DAY)
    db.run("UPDATE certificates SET status = 'revoked', revoked_at = ? WHERE id = ?", now - 40_000, cert_ids[3])
    _fails(db, some[3], cert_ids[3], ("withdraw", "still-served", STILL), now - 39_600)
    for device_id in some[10:14]:
        db.run("UPDATE devices SET last_seen_at = ? WHERE id = ?", now - 2460 - device_id, device_id)
    for device_id in some[30:32]:
        db.run(
            "UPDATE devices SET status = 'revoked', revoked_at = ?, revoke_reason = 'stolen' WHERE id = ?",
            now - DAY,
            device_id,
        )
    for number in range(4):
        plane.devices.add(1, DeviceFacts(device_public_id=f"new-{number}", name=f"edge-muc-9{number}"))
    return failing


def _assign(db: Any, device_id: int, cert_id: int, now: float) -> None:
    db.run("INSERT INTO assignments VALUES (?, ?, ?) ON CONFLICT DO NOTHING", device_id, cert_id, now)


def _deployed(db: Any, device_id: int, cert_id: int, serial: str, at: float) -> None:
    db.run(
        "INSERT INTO deployments (device_id, kind, object_id, outcome, step, reason, detail, failing, attempts, since, at,"
        " serial_number, served_at) VALUES (?, 'cert', ?, 'applied', '', '', '', 0, 1, ?, ?, ?, ?)",
        *(device_id, cert_id, at, at, serial, at if cert_id % 7 else None),
    )


def _fails(db: Any, device_id: int, cert_id: int, why: tuple[str, str, str], at: float) -> None:
    db.run(
        "INSERT INTO deployments (device_id, kind, object_id, outcome, step, reason, detail, failing, attempts, since,"
        " failing_since, at, serial_number, served_at) VALUES (?, 'cert', ?, 'rolled_back', ?, ?, ?, 1, 5, ?, ?, ?, '', NULL)"
        " ON CONFLICT (device_id, kind, object_id) DO UPDATE SET outcome = 'rolled_back', step = excluded.step, reason ="
        " excluded.reason, detail = excluded.detail, failing = 1, attempts = 5, since = excluded.since,"
        " failing_since = excluded.failing_since",
        *(device_id, cert_id, *why, at, at, at),
    )


def _reported(db: Any, device_id: int, cert_id: int, now: float) -> None:
    """Add a history."""
    for number, (outcome, age) in enumerate(
        (("applied", 90 * DAY), ("applied", 9 * DAY), ("rolled_back", 5100.0), ("rolled_back", 1900.0))
    ):
        failed = outcome == "rolled_back"
        db.run(
            "INSERT INTO outcomes (device_id, signal, type, ts_ms, ref, outcome, detail, step, reason, deployed, duration_ms, at)"
            " VALUES (?, ?, 'cert.renewed', ?, ?, ?, ?, ?, ?, '[]', ?, ?)",
            *(device_id, f"cert.renewed|{number}", number, json.dumps({"cert_id": cert_id}), outcome),
            *(NGINX if failed else "", "run" if failed else "", "command-failed" if failed else "", 1200, now - age),
        )
