"""A data directory as version 0.1 left it: one CA for everything, one device."""

from __future__ import annotations

from pathlib import Path

import pytest

from certctrl.plane.ca.issuer import BuiltinCa, inline
from certctrl.plane.storage.data_dir import make_data_dir, write_file
from certctrl.plane.storage.keyring import Keyring
from certctrl.plane.storage.schema import SCHEMA
from certctrl.plane.storage.sqlite import SqliteDatabase

WALL = 1_790_000_000.0


def earlier_data_dir(root: Path, monkeypatch: pytest.MonkeyPatch, *, wall: float = WALL) -> str:
    """Create it, with the active device 1 (``device-1``); return its CA in PEM."""
    with monkeypatch.context() as earlier:
        earlier.setattr("certctrl.plane.storage.schema.SCHEMA", SCHEMA[:1])
        data = make_data_dir(root)
        keyring, database = Keyring.open(data), SqliteDatabase(data.database)
    ca = BuiltinCa(database, keyring, lambda: wall, inline)
    write_file(data.ca, ca.root_pem.encode(), mode=0o644)
    database.run("INSERT INTO users VALUES (1, 'operator', ?)", wall)
    database.run(
        "INSERT INTO devices (user_id, device_public_id, status, name, created_at, public_key)"
        " VALUES (1, 'device-1', 'active', 'web-1', ?, ?)",
        wall,
        bytes(range(32)),
    )
    database.run("INSERT INTO streams (device_id, last_ms, last_seq, floor_ms, floor_seq) VALUES (1, 0, 0, 0, 0)")
    database.run("INSERT INTO install_configs VALUES (1, 1, 1, '[]', '', ?)", wall)
    database.close()
    return ca.root_pem
