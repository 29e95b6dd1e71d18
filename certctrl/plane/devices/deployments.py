"""Deployments: what is known of each certificate, CA and install config on each device, by its last outcome.

One row for each of them, so that the state of a fleet is read without its history. A device has rows only for what it is
assigned, so its reports cannot fill the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from certctrl.model.causes import Reason, Step
from certctrl.model.plan import OutcomeKind
from certctrl.model.signals import (
    CaAssigned,
    CaUnassigned,
    CertRenewed,
    CertRevoked,
    CertUnassigned,
    CsrWanted,
    InstallUpdated,
    ResyncRequired,
)
from certctrl.plane.devices.acks import Ack
from certctrl.plane.storage.database import Database, marks
from certctrl.text import one_line

CERTIFICATE, CA, INSTALL, RESYNC = "cert", "ca", "install", "resync"
"""Kinds of rows. The last two are one for each device, with id 0."""
UNKNOWN = "unknown"
"""Serial number of a certificate on a device that has not reported one; empty: none is in use."""
WAITS = frozenset({Reason.PLANE_LAGGING, Reason.PENDING, Reason.NOT_YET_VALID, Reason.WINDOW, Reason.HELD})
"""Reasons for which nothing has failed."""

_ROWS_PER_STATEMENT = 32
"""Rows of one statement."""
_MAX_ID = 2**53
_MAX_DEPLOYED = 100
"""Certificates of one outcome that are noted."""
_MAX_SERIAL = 128
_KINDS = {
    CertRenewed.type: (CERTIFICATE, "cert_id"),
    "cert.updated": (CERTIFICATE, "cert_id"),
    CertRevoked.type: (CERTIFICATE, "cert_id"),
    CertUnassigned.type: (CERTIFICATE, "cert_id"),
    CsrWanted.type: (CERTIFICATE, "cert_id"),
    CaAssigned.type: (CA, "ca_id"),
    CaUnassigned.type: (CA, "ca_id"),
    InstallUpdated.type: (INSTALL, ""),
    ResyncRequired.type: (RESYNC, ""),
}
"""Type of a signal -> kind of its row, and the field of ``ref`` with its id."""
_ENDS_USE = (CertRevoked.type, CertUnassigned.type)
_OK = frozenset(set(OutcomeKind) - {OutcomeKind.FAILED, OutcomeKind.ROLLED_BACK})
_SAME = (
    "deployments.failing = excluded.failing AND deployments.step = excluded.step"
    " AND deployments.reason = excluded.reason"
)
_ASSIGNED = (
    "v.column2 IN ('install', 'resync')"
    " OR (v.column2 = 'cert' AND EXISTS (SELECT 1 FROM assignments a WHERE a.device_id = v.column1 AND a.cert_id = v.column3))"
    " OR (v.column2 = 'ca' AND EXISTS (SELECT 1 FROM authority_assignments a WHERE a.device_id = v.column1"
    " AND a.ca_id = v.column3))"
    " OR EXISTS (SELECT 1 FROM deployments x WHERE x.device_id = v.column1 AND x.kind = v.column2 AND x.object_id = v.column3)"
)


class Deployments:
    """The table; all methods run in the caller's unit of work."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def note(self, acks: Sequence[tuple[int, Ack]], now: float) -> None:
        """Note the outcomes of devices, of each device oldest first."""
        rows: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        signed, ended = [], []
        for device_id, ack in acks:
            kind, object_id = _object_of(ack)
            if not kind or ack.outcome is OutcomeKind.SUPERSEDED:
                continue
            if ack.type == CsrWanted.type and ack.outcome in _OK:  # a request was sent; nothing is deployed
                signed.append((device_id, object_id))
                continue
            for row in _rows(device_id, kind, object_id, ack, now):
                rows[row[:3]] = row
            if ack.type in (CertUnassigned.type, CaUnassigned.type) and ack.outcome in _OK and ack.cause is None:
                ended.append((device_id, kind, object_id))
        self._store([rows[key] for key in sorted(rows)])
        for device_id, object_id in sorted(signed):
            self._db.run(
                "UPDATE deployments SET outcome = 'applied', step = '', reason = '', detail = '', failing = 0, since = ?,"
                " failing_since = NULL, at = ? WHERE device_id = ? AND kind = 'cert' AND object_id = ? AND step = ?",
                *(now, now, device_id, object_id, Step.ORDER.value),
            )
        for key in sorted(ended):
            self._end(*key)

    def forget(self, device_id: int) -> None:
        """Delete the rows of a device that no longer has what it reported: its identity is new."""
        self._db.run("DELETE FROM deployments WHERE device_id = ?", device_id)

    def _store(self, rows: Sequence[tuple[Any, ...]]) -> None:
        for start in range(0, len(rows), _ROWS_PER_STATEMENT):
            some = rows[start : start + _ROWS_PER_STATEMENT]
            self._db.run(
                "INSERT INTO deployments (device_id, kind, object_id, outcome, step, reason, detail, failing, attempts, since,"
                " failing_since, at, serial_number, served_at) SELECT v.column1, v.column2, v.column3, v.column4, v.column5,"
                " v.column6, v.column7, v.column8, 1, v.column9, CASE WHEN v.column8 = 1 THEN v.column9 ELSE NULL END,"
                " v.column9, v.column10, CASE WHEN v.column11 = 1 THEN v.column9 ELSE NULL END"
                f" FROM (VALUES {', '.join([f'({marks(some[0])})'] * len(some))}) AS v WHERE {_ASSIGNED}"
                " ON CONFLICT (device_id, kind, object_id) DO UPDATE SET outcome = excluded.outcome, step = excluded.step,"
                " reason = excluded.reason, detail = excluded.detail, failing = excluded.failing, at = excluded.at,"
                f" attempts = CASE WHEN {_SAME} THEN deployments.attempts + 1 ELSE 1 END,"
                f" since = CASE WHEN {_SAME} THEN deployments.since ELSE excluded.since END,"
                " failing_since = CASE WHEN excluded.failing = 0 THEN NULL"
                " ELSE coalesce(deployments.failing_since, excluded.failing_since) END,"
                " served_at = CASE WHEN excluded.served_at IS NOT NULL THEN excluded.served_at"
                f" WHEN excluded.serial_number IN ('{UNKNOWN}', deployments.serial_number) THEN deployments.served_at"
                " ELSE NULL END, serial_number ="
                f" CASE WHEN excluded.serial_number = '{UNKNOWN}' THEN deployments.serial_number"
                " ELSE excluded.serial_number END",
                *chain.from_iterable(some),
            )

    def _end(self, device_id: int, kind: str, object_id: int) -> None:
        """Delete the row of what is no longer assigned, and gone from the device."""
        table, column = ("assignments", "cert_id") if kind == CERTIFICATE else ("authority_assignments", "ca_id")
        self._db.run(
            "DELETE FROM deployments WHERE device_id = ? AND kind = ? AND object_id = ?"
            f" AND NOT EXISTS (SELECT 1 FROM {table} a WHERE a.device_id = ? AND a.{column} = ?)",
            *(device_id, kind, object_id, device_id, object_id),
        )


def _object_of(ack: Ack) -> tuple[str, int]:
    """Return the kind and id of what an outcome is about; an empty kind if it is about nothing that lasts."""
    kind, field = _KINDS.get(ack.type, ("", ""))
    if not field:
        return kind, 0
    object_id = _id(ack.ref.get(field))
    return (kind, object_id) if object_id else ("", 0)


def _id(value: Any) -> int:
    return value if type(value) is int and 0 < value < _MAX_ID else 0


def _rows(device_id: int, kind: str, object_id: int, ack: Ack, now: float) -> list[tuple[Any, ...]]:
    """Return the row of an outcome, and those of other certificates that were deployed with it."""
    ok, cause = ack.outcome in _OK, ack.cause
    step, reason = ("", "") if cause is None else (cause.step.value, cause.reason.value)
    failing = int(not ok and (cause is None or cause.reason not in WAITS))
    deployed = _deployed(ack.deployed)
    serial, served = deployed.pop(object_id, (UNKNOWN, 0)) if kind == CERTIFICATE else (UNKNOWN, 0)
    if ack.type in _ENDS_USE and ok and cause is None:
        serial, served = "", 0
    first = (device_id, kind, object_id, ack.outcome.value, step, reason, ack.detail, failing, now, serial, served)
    if not ok or ack.type in _ENDS_USE:
        return [first]
    applied = OutcomeKind.APPLIED.value
    more = [(device_id, CERTIFICATE, one, applied, "", "", "", 0, now, *found) for one, found in deployed.items()]
    return [first, *more]


def _deployed(listed: Sequence[Any]) -> dict[int, tuple[str, int]]:
    """Return certificate id -> its serial number and whether an endpoint was seen to serve it."""
    found = {}
    for one in listed[:_MAX_DEPLOYED]:
        if isinstance(one, Mapping) and (cert_id := _id(one.get("cert_id"))) and isinstance(one.get("serial"), str):
            serial = one_line(one["serial"].lower(), _MAX_SERIAL)
            found[cert_id] = (serial, int(one.get("served") is True))
    return found
