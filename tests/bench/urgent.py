"""Urgent signals: a revocation that is published right behind a burst of renewals, until its certificate is gone.

The burst goes on meanwhile. What counts is the link that services read: it must be gone, whatever the daemon reports.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from burst import SETTLE
from material import make_material
from measure import row, wait_quiet
from rig import Daemon, Plane, deployed, running_plane

from certctrl.model.features import PRIORITY
from certctrl.store.layout import ConfigDir

MUST, AIM = 2.0, 1.0
"""Seconds."""
PAGE = 20
"""The default: the burst has fifty pages."""
PATIENCE = 120.0


def measure(work: Path, *, count: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield the row: the slowest of ``rounds`` revocations, each behind ``count`` renewals."""
    material = make_material(work / "urgent", count=count + rounds, versions=rounds + 1)
    features = frozenset({PRIORITY})
    with (
        running_plane(material) as plane,
        deployed(plane, work / "urgent agent", poll_limit=PAGE, features=features) as daemon,
    ):
        times, left = [], []
        for number in range(1, rounds + 1):
            wait_quiet()
            plane.wait_parked()
            took, behind = _round(plane, daemon, count, number)
            times.append(took)
            left.append(behind)
            time.sleep(SETTLE)
    note = f"median {statistics.median(times):.2f}; outcomes of the burst still to come: {min(left)} to {max(left)}"
    yield row(f"a revocation behind {count} renewals, seconds", max(times), must=MUST, aim=AIM, note=note)


def _round(plane: Plane, daemon: Daemon, count: int, number: int) -> tuple[float, int]:
    """Return the seconds until the certificate is gone, and how many outcomes of the burst were not sent then."""
    cert_id = count + number
    link = ConfigDir(daemon.root).live_link(plane.material.name(cert_id))
    acked = plane.obey("stat")["acks"]
    plane.obey("publish", ids=list(range(1, count + 1)), version=number + 1)
    began = float(plane.obey("revoke", id=cert_id)["at"])
    while os.path.lexists(link):
        if time.monotonic() - began > PATIENCE:
            raise SystemExit(f"bench: {link} is still there after {PATIENCE:.0f} s")
        time.sleep(0.002)
    took = time.monotonic() - began
    behind = count + 1 - (plane.obey("stat")["acks"] - acked)
    daemon.until_done(count + 1)
    return took, behind
