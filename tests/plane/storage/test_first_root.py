"""PostgreSQL only: planes that make a CA at the same time make one."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import trio
from engine_plane import WALL, plane_on

from certctrl.plane.ca.issuer import PLANE_TLS, BuiltinCa, inline
from certctrl.plane.ca.x509 import Authority
from certctrl.plane.core import Plane
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring


@pytest.mark.parametrize("open_database", ["postgresql"], indirect=True)
async def test_planes_that_make_a_root_at_once_keep_one(
    open_database: Callable[[], Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    keyring = Keyring.open(None)
    planes = [plane_on(open_database(), keyring) for _ in range(2)]
    both, make_root = threading.Barrier(2), BuiltinCa._make_root
    found: list[str] = []

    def made_together(ca: BuiltinCa) -> Authority:
        both.wait(10)
        return make_root(ca)

    async def root_of(plane: Plane) -> str:
        ca = await plane.work(BuiltinCa, plane.database, keyring, lambda: WALL, inline, PLANE_TLS)
        return ca.root_fingerprint

    async def note(plane: Plane) -> None:
        found.append(await root_of(plane))

    with monkeypatch.context() as patched:
        patched.setattr(BuiltinCa, "_make_root", made_together)
        async with trio.open_nursery() as nursery:
            for plane in planes:
                nursery.start_soon(note, plane)
    assert found == [await root_of(planes[0])] * 2
