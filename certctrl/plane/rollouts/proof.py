"""What devices have proven about renewed certificates, by what they report. All in the caller's unit of work."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence

from certctrl import lean
from certctrl.model.signals import CertRenewed, CsrWanted
from certctrl.plane.devices.deployments import WAITS
from certctrl.plane.orders.orders import BLOCKED, CSR_WANTED, FAILED
from certctrl.plane.rollouts.changes import DEVICES_PER_STATEMENT, FAILURES, PROOFS, SET_BACK_SECONDS, Settled
from certctrl.plane.rollouts.decision import Member
from certctrl.plane.storage.database import Database, Row, marks

SAME = Settled(Member.PROVEN, "nothing to change")
_RENEWED = (CertRenewed.type, "cert.updated")


@lean.frozen(kw_only=True)
class Copy:
    """A certificate of a rollout on a device."""

    cert_id: int
    former: str
    """Serial number at the start of the rollout."""
    present: str
    deployed: str
    """Serial number that the device has reported; empty: none."""
    is_failing: bool
    reported_at: float

    @property
    def is_renewed(self) -> bool:
        return self.present != self.former


class RenewalProof:
    """Reads the reports of devices about the certificates of rollouts."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def settled(self, rollout: Row, rows: Sequence[Row]) -> Mapping[int, Settled]:
        """Return the devices that have all of their renewed certificates in use, and those that have failed with one.

        A device has failed, too, if the order for it has ended, or if it could not make its key.
        """
        ids, found = [row["device_id"] for row in rows], {}
        for start in range(0, len(ids), DEVICES_PER_STATEMENT):
            some = rows[start : start + DEVICES_PER_STATEMENT]
            copies = self.copies(rollout, [row["device_id"] for row in some])
            reports = self._reports(some)
            orders = self._last_orders({one.cert_id for of in copies.values() for one in of if not one.is_renewed})
            for device_id, of_device in copies.items():
                verdicts = [
                    _verdict(one, reports.get((device_id, one.cert_id), ()), orders.get(one.cert_id), rollout)
                    for one in of_device
                ]
                if (settled := _together(verdicts)) is not None:
                    found[device_id] = settled
        return found

    def copies(self, rollout: Row, device_ids: Sequence[int]) -> dict[int, list[Copy]]:
        """Return the certificates of a rollout that each device has, without revoked ones."""
        found: dict[int, list[Copy]] = {one: [] for one in device_ids}
        rows = self._db.all(
            "SELECT a.device_id, t.cert_id, t.serial_number AS former, c.serial_number AS present,"
            " coalesce(x.serial_number, '') AS deployed, coalesce(x.failing, 0) AS failing, coalesce(x.at, 0) AS at"
            " FROM rollout_certificates t JOIN assignments a ON a.cert_id = t.cert_id"
            " JOIN certificates c ON c.id = t.cert_id AND c.status = 'active'"
            " LEFT JOIN deployments x ON x.device_id = a.device_id AND x.kind = 'cert' AND x.object_id = t.cert_id"
            f" WHERE t.rollout_id = ? AND a.device_id IN ({marks(device_ids)}) ORDER BY a.device_id, t.cert_id",
            *(rollout["id"], *device_ids),
        )
        for row in rows:
            copy = Copy(
                cert_id=row["cert_id"],
                former=row["former"],
                present=row["present"],
                deployed=row["deployed"],
                is_failing=bool(row["failing"]),
                reported_at=row["at"],
            )
            found[row["device_id"]].append(copy)
        return found

    def _reports(self, rows: Sequence[Row]) -> dict[tuple[int, int], list[Row]]:
        """Return the outcomes of each device and certificate since it was released, oldest first."""
        ids, types = [row["device_id"] for row in rows], (*_RENEWED, CsrWanted.type)
        since = min(row["released_at"] for row in rows) - SET_BACK_SECONDS
        found: dict[tuple[int, int], list[Row]] = {}
        for outcome in self._db.all(
            "SELECT device_id, type, ref, outcome, reason, detail, at FROM outcomes"
            f" WHERE device_id IN ({marks(ids)}) AND type IN ({marks(types)}) AND at > ? ORDER BY at, ts_ms",
            *(*ids, *types, since),
        ):
            cert_id = json.loads(outcome["ref"]).get("cert_id")  # whatever the device has sent
            if type(cert_id) is int:
                found.setdefault((outcome["device_id"], cert_id), []).append(outcome)
        return found

    def _last_orders(self, cert_ids: Collection[int]) -> dict[int, Row]:
        ids = sorted(cert_ids)
        sql = (
            "SELECT * FROM orders WHERE id IN (SELECT max(id) FROM orders"
            f" WHERE cert_id IN ({marks(ids)}) GROUP BY cert_id)"
        )
        return {row["cert_id"]: row for row in self._db.all(sql, *ids)} if ids else {}


def _verdict(copy: Copy, reports: Sequence[Row], order: Row | None, rollout: Row) -> Settled | None:
    """Return what a device has proven about a certificate; None: nothing yet."""
    if not copy.is_renewed:
        return _of_order(order, reports, rollout)
    about = [one for one in reports if one["type"] in _RENEWED and json.loads(one["ref"]).get("serial") == copy.present]
    final = [one for one in about if one["outcome"] in PROOFS or _has_failed(one)]
    last = final[-1] if final else None
    in_use = copy.deployed == copy.present and not copy.is_failing
    if last is not None and _has_failed(last) and not (in_use and copy.reported_at > last["at"]):
        return Settled(Member.FAILED, last["detail"])
    return Settled(Member.PROVEN) if in_use or last is not None else None


def _of_order(order: Row | None, reports: Sequence[Row], rollout: Row) -> Settled | None:
    """Return why a certificate cannot be renewed; None: it may be."""
    if order is None or (order["finished_at"] is not None and order["finished_at"] < rollout["created_at"]):
        return None
    if order["state"] in (FAILED, BLOCKED):
        return Settled(Member.FAILED, order["problem"])
    about = [
        one
        for one in reports
        if one["type"] == CsrWanted.type and json.loads(one["ref"]).get("order_id") == order["id"]
    ]
    if order["state"] == CSR_WANTED and about and _has_failed(about[-1]):
        return Settled(Member.FAILED, about[-1]["detail"])
    return None


def _has_failed(outcome: Row) -> bool:
    return outcome["outcome"] in FAILURES and outcome["reason"] not in WAITS


def _together(verdicts: Sequence[Settled | None]) -> Settled | None:
    """Return the state of a device with these verdicts about its certificates; None: it is still under way."""
    failed = next((one for one in verdicts if one is not None and one.state is Member.FAILED), None)
    if failed is not None or None in verdicts:
        return failed
    return verdicts[0] if verdicts else SAME
