"""Rollouts of renewals: certificates are renewed, and given to their devices, in waves.

When such a rollout starts, its devices are held at the certificates that they have (`certificates.holds`). A device that
is released is held no longer. The first one of a certificate orders its renewal; the others get what was issued for it.
So a certificate with one device, such as one whose key is made there, is renewed when that device is released. Revocations
end the holds of their certificate, and a certificate near its end those of its devices, whatever the rollout waits for.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import attrs

from certctrl import lean
from certctrl.model.signals import CertRenewed, CsrWanted
from certctrl.plane.access.roles import Caller
from certctrl.plane.audit.acts import Act
from certctrl.plane.audit.log import AuditLog
from certctrl.plane.certificates.certificates import refuse_imported, refuse_rollout
from certctrl.plane.certificates.table import KEY_AT_DEVICE, CertificateTable
from certctrl.plane.devices.deployments import WAITS
from certctrl.plane.devices.devices import require_user
from certctrl.plane.errors import ErrorResponse, bad_request, conflict
from certctrl.plane.orders.orders import BLOCKED, CSR_WANTED, FAILED, OrderRequest, Orders
from certctrl.plane.orders.renewal_times import ENDING_SHARE
from certctrl.plane.reserved_names import ReservedNames, refuse_reserved
from certctrl.plane.rollouts.changes import DEVICES_PER_STATEMENT, FAILURES, PROOFS, SET_BACK_SECONDS, Settled
from certctrl.plane.rollouts.decision import Member
from certctrl.plane.rollouts.plan import RENEWAL_PLAN
from certctrl.plane.rollouts.rollouts import RolloutRules, Rollouts, check_rules, rules_json, wave_counts
from certctrl.plane.storage.database import Database, Row, marks
from certctrl.text import counted

MAX_CERTIFICATES = 1000
"""Certificates of one rollout, with those that were made from templates."""
_RENEWED = (CertRenewed.type, "cert.updated")
_SAME = Settled(Member.PROVEN, "nothing to change")

log = logging.getLogger("certctrl.Plane")


@lean.frozen(kw_only=True)
class _Copy:
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


class RenewalRollouts:
    """Starts rollouts of renewals, and carries them out (`Change`). Methods run in the caller's unit of work."""

    def __init__(
        self,
        database: Database,
        rollouts: Rollouts,
        table: CertificateTable,
        orders: Orders,
        reserved: ReservedNames,
        audit: AuditLog,
        wall_now: Callable[[], float],
    ) -> None:
        self._db = database
        self._rollouts = rollouts
        self._table = table
        self._orders = orders
        self._reserved = reserved
        self._audit = audit
        self._wall_now = wall_now

    # --- start ----------------------------------------------------------------------------------------------------

    def start(
        self, user_id: int, cert_ids: Sequence[int], rules: RolloutRules, *, note: str = "", dry_run: bool = False
    ) -> dict[str, Any]:
        """Start the rollout of renewals; return it, or with ``dry_run`` its waves.

        Certificates made from a template are included. ErrorResponse 400, 404, and 409 if one cannot be renewed in waves.
        """
        check_rules(rules)
        require_user(self._db, user_id)
        rows = self._renewable(user_id, cert_ids)
        devices = self._devices([row["id"] for row in rows])
        if not devices:
            raise conflict("No device has any of these certificates: there is nothing to roll out")
        planned = self._rollouts.planned(devices, rules)
        certificates = [{"id": row["id"], "name": row["domain_name"]} for row in rows]
        summary = {"certificates": certificates, "devices": len(devices), "dry_run": dry_run}
        if dry_run:
            return summary | {"id": None, "waves": wave_counts(planned)}
        rollout_id = self._store(user_id, rows, planned, rules, note)
        shown = self._rollouts.show(user_id, rollout_id)
        return summary | {key: shown[key] for key in ("id", "what", "waves", "state")}

    def _renewable(self, user_id: int, cert_ids: Sequence[int]) -> list[Row]:
        """Return certificates and those made from them, by id and locked; ErrorResponse for one that cannot be renewed."""
        asked = sorted(set(cert_ids))
        made = self._db.all(
            f"SELECT c.id FROM certificates c WHERE c.user_id = ? AND c.template_id IN ({marks(asked)})"
            " AND c.status = 'active' AND c.serial_number != ''"
            " AND EXISTS (SELECT 1 FROM assignments a WHERE a.cert_id = c.id) ORDER BY c.id",
            *(user_id, *asked),
        )
        ids = sorted({*asked, *(row["id"] for row in made)})
        if len(ids) > MAX_CERTIFICATES:
            what = f"A rollout renews up to {MAX_CERTIFICATES} certificates, not {len(ids)}"
            raise bad_request(what, field="cert_ids")
        rows, reserved = [self._table.locked(user_id, cert_id) for cert_id in ids], self._reserved.all()
        for row in rows:
            refuse_reserved(json.loads(row["sans"]), reserved)
            refuse_imported(row)
            refuse_rollout(self._table, row["id"])
            if row["status"] == "revoked":
                raise conflict(f"Certificate {row['id']} is revoked", "CERT_REVOKED")
            if not row["serial_number"]:
                raise conflict(f"Certificate {row['id']} is not issued yet", "WRAP_PENDING")
            if name := self._set_of(row):
                what = f"Certificate {row['id']} is in the set {name}, which is renewed together"
                raise conflict(f"{what}: end the set first (cert-ctrl plane together)", "IN_SET")
            known = self._orders.open_of(row["id"])
            if known is not None and known["batch"]:
                what = f"Certificate {row['id']} is being renewed together with others"
                raise conflict(f"{what}: wait, or end batch {known['batch']}", "IN_SET")
        return rows

    def _set_of(self, certificate: Row) -> str:
        """Return the set of a certificate, or of its template; empty: none."""
        if certificate["template_id"] is None:
            return str(certificate["together"])
        row = self._db.one("SELECT together FROM certificates WHERE id = ?", certificate["template_id"])
        return str(certificate["together"] or ("" if row is None else row["together"]))

    def _devices(self, cert_ids: Sequence[int]) -> list[int]:
        rows = self._db.all(
            "SELECT DISTINCT a.device_id FROM assignments a JOIN devices d ON d.id = a.device_id"
            f" WHERE a.cert_id IN ({marks(cert_ids)}) AND d.status != 'revoked' ORDER BY a.device_id",
            *cert_ids,
        )
        return [row["device_id"] for row in rows]

    def _store(
        self, user_id: int, rows: Sequence[Row], planned: Sequence[tuple[int, int, str]], rules: RolloutRules, note: str
    ) -> int:
        rollout_id = self._rollouts.insert(user_id, None, 0, planned, rules, note)
        for row in rows:
            sql = "INSERT INTO rollout_certificates (rollout_id, cert_id, serial_number) VALUES (?, ?, ?)"
            self._db.run(sql, rollout_id, row["id"], row["serial_number"])
            self._table.holds.begin(row["id"], self._table.holders(row["id"]), rollout_id)
        what = counted(len(rows), "certificate"), counted(len(planned), "device")
        started = "rollout %d of the renewal of %s has started, for %s"
        self._db.after_commit(partial(log.info, started, rollout_id, *what))
        return rollout_id

    # --- renewals that are due ------------------------------------------------------------------------------------

    def default(self, user_id: int) -> dict[str, Any]:
        """Return the plan of renewals that are due: ``over``, the number of devices, and rules; ``over`` None: none."""
        require_user(self._db, user_id)
        stored = self._db.setting(f"{RENEWAL_PLAN}{user_id}")
        found: dict[str, Any] = json.loads(stored) if stored else {"over": None}
        return found

    def set_default(self, user_id: int, over: int | None, rules: RolloutRules) -> dict[str, Any]:
        """Set the plan of renewals that are due, of certificates on more devices than ``over``; None: no waves."""
        require_user(self._db, user_id)
        check_rules(rules)
        value = "" if over is None else json.dumps({"over": over} | json.loads(rules_json(rules)))
        if value != self._db.setting(f"{RENEWAL_PLAN}{user_id}"):
            self._db.run(
                "INSERT INTO settings VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                *(f"{RENEWAL_PLAN}{user_id}", value),
            )
        return self.default(user_id)

    def begin_due(self, certificate: Row) -> bool:
        """Roll out the renewal of a certificate that is due, if its user has a plan for it; return whether."""
        user_id, cert_id = certificate["user_id"], certificate["id"]
        plan = self.default(user_id)
        if plan["over"] is None or certificate["key_origin"] == KEY_AT_DEVICE:
            return False  # with keys made at devices, each has its own certificate, with its own time
        if len(self._devices([cert_id])) <= plan["over"] or self._set_of(certificate):
            return False
        rules = RolloutRules(**{field.name: plan[field.name] for field in attrs.fields(RolloutRules)})
        act = Act(self._audit, Caller.of_plane("renewals"), "rollout.start", detail={"note": "due"})
        act.note_fields({"uid": user_id, "cert_id": cert_id})
        rules = _without_canary(rules, self._has_canary(cert_id, rules))
        try:
            act.around(self._db, lambda: self.start(user_id, [cert_id], rules, note="due"))
        except ErrorResponse as error:
            log.warning("certificate %d is renewed without waves: %s", cert_id, error)
            return False
        return True

    def _has_canary(self, cert_id: int, rules: RolloutRules) -> bool:
        return bool(self._rollouts.canaries(self._devices([cert_id]), rules))

    # --- carried out ----------------------------------------------------------------------------------------------

    def release(self, rollout: Row, device_ids: Sequence[int]) -> Mapping[int, Settled]:
        """Give devices the renewed certificates, and order those that are not renewed yet."""
        rows = self._db.all(
            "SELECT DISTINCT t.cert_id, t.serial_number FROM rollout_certificates t JOIN assignments a ON a.cert_id = t.cert_id"
            f" WHERE t.rollout_id = ? AND a.device_id IN ({marks(device_ids)}) ORDER BY t.cert_id",
            *(rollout["id"], *device_ids),
        )
        for row in rows:
            self._release_one(rollout, row["cert_id"], row["serial_number"], device_ids)
        left = {device_id for device_id, copies in self._copies(rollout, device_ids).items() if copies}
        return {one: _SAME for one in device_ids if one not in left}

    def _release_one(self, rollout: Row, cert_id: int, former: str, device_ids: Sequence[int]) -> None:
        row = self._table.locked_by_id(cert_id)
        told = self._table.holds.end(cert_id, device_ids)
        if row is None or row["status"] != "active":
            return
        if row["serial_number"] == former:
            request = OrderRequest(action="renew", reason=_reason(rollout), in_background=True)
            self._orders.start(row, request)
        if told:
            self._table.announce_to(told, cert_id, row["serial_number"])

    def finish(self, rollout: Row) -> None:
        """Give all other devices the renewed certificates."""
        if held := self._held(rollout["id"]):
            self.release(rollout, held)

    def abort(self, rollout: Row, *, forward: bool) -> None:
        """End holds: with ``forward`` all, otherwise those of certificates that are not renewed, whose orders end."""
        if forward:
            self.finish(rollout)
            self._db.run(
                "UPDATE rollout_devices SET state = 'released', released_at = ? WHERE rollout_id = ?"
                " AND state IN ('held', 'skipped')",
                *(self._wall_now(), rollout["id"]),
            )
            return
        rows = self._db.all(
            "SELECT t.cert_id, t.serial_number FROM rollout_certificates t WHERE t.rollout_id = ? AND EXISTS (SELECT 1"
            " FROM certificate_holds h WHERE h.cert_id = t.cert_id AND h.rollout_id = t.rollout_id) ORDER BY t.cert_id",
            rollout["id"],
        )
        for row in rows:
            certificate = self._table.locked_by_id(row["cert_id"])
            if certificate is None or certificate["serial_number"] != row["serial_number"]:
                continue
            known = self._orders.open_of(row["cert_id"])
            if known is not None and known["reason"] == _reason(rollout):
                self._orders.end(known["id"], FAILED, f"rollout {rollout['id']} was aborted")
            self._table.holds.end(row["cert_id"])

    def near_end(self) -> dict[int, list[int]]:
        """Return the devices that are held at a certificate near its end, by rollout."""
        rows = self._db.all(
            "SELECT DISTINCT h.rollout_id, h.device_id FROM certificate_holds h JOIN held_certificates f"
            " ON f.cert_id = h.cert_id AND f.serial_number = h.serial_number"
            " WHERE f.not_after - (f.not_after - f.not_before) * ? <= ? ORDER BY h.rollout_id, h.device_id",
            *(ENDING_SHARE, self._wall_now()),
        )
        found: dict[int, list[int]] = {}
        for row in rows:
            found.setdefault(row["rollout_id"], []).append(row["device_id"])
        return found

    def obstacle(self, rollout: Row) -> str:
        """Return which certificate is not issued, and why."""
        row = self._db.one(
            "SELECT c.id, c.domain_name, o.problem FROM rollout_certificates t JOIN certificates c ON c.id = t.cert_id"
            " AND c.serial_number = t.serial_number JOIN orders o ON o.cert_id = c.id"
            " AND o.state IN ('csr_wanted', 'ready', 'blocked') AND o.problem != '' WHERE t.rollout_id = ?"
            " ORDER BY c.id LIMIT 1",
            rollout["id"],
        )
        return (
            "" if row is None else f"certificate {row['id']} ({row['domain_name']}) is not issued yet: {row['problem']}"
        )

    def void(self, rollout: Row) -> str:
        """Return why nothing is left to renew."""
        left = self._db.one(
            "SELECT 1 FROM rollout_certificates t JOIN certificates c ON c.id = t.cert_id AND c.status = 'active'"
            " WHERE t.rollout_id = ? LIMIT 1",
            rollout["id"],
        )
        return "its certificates are revoked" if left is None else ""

    def _held(self, rollout_id: int) -> list[int]:
        sql = "SELECT DISTINCT device_id FROM certificate_holds WHERE rollout_id = ? ORDER BY device_id"
        return [row["device_id"] for row in self._db.all(sql, rollout_id)]

    # --- what devices report --------------------------------------------------------------------------------------

    def settled(self, rollout: Row, rows: Sequence[Row]) -> Mapping[int, Settled]:
        """Return the devices that have all of their renewed certificates in use, and those that have failed with one.

        A device has failed, too, if the order for it has ended, or if it could not make its key.
        """
        ids, found = [row["device_id"] for row in rows], {}
        for start in range(0, len(ids), DEVICES_PER_STATEMENT):
            some = rows[start : start + DEVICES_PER_STATEMENT]
            copies = self._copies(rollout, [row["device_id"] for row in some])
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

    def _copies(self, rollout: Row, device_ids: Sequence[int]) -> dict[int, list[_Copy]]:
        """Return the certificates of a rollout that each device has, without revoked ones."""
        found: dict[int, list[_Copy]] = {one: [] for one in device_ids}
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
            copy = _Copy(
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


def _reason(rollout: Row) -> str:
    return f"rollout {rollout['id']}"


def _without_canary(rules: RolloutRules, has_canary: bool) -> RolloutRules:
    """Return rules without a canary that a certificate does not have."""
    return rules if has_canary else attrs.evolve(rules, canary="")


def _verdict(copy: _Copy, reports: Sequence[Row], order: Row | None, rollout: Row) -> Settled | None:
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
    return verdicts[0] if verdicts else _SAME
