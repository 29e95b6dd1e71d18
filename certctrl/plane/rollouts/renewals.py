"""Rollouts of renewals: certificates are renewed, and given to their devices, in waves.

When such a rollout starts, its devices are held at the certificates that they have (`certificates.holds`). A device that
is released is held no longer. The first one of a certificate orders its renewal; the others get what was issued for it.
So a certificate with one device, such as one whose key is made there, is renewed when that device is released. Revocations
end the holds of their certificate, and a certificate near its end those of its devices, whatever the rollout waits for.

Certificates of a group (``together``) are ordered in batches, and a device is released from all of them at once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import attrs

from certctrl.model.signals import MAX_IN_BATCH
from certctrl.plane.access.roles import Caller
from certctrl.plane.audit.acts import Act
from certctrl.plane.audit.log import AuditLog
from certctrl.plane.certificates.certificates import refuse_imported, refuse_rollout
from certctrl.plane.certificates.table import KEY_AT_DEVICE, CertificateTable
from certctrl.plane.devices.devices import require_user
from certctrl.plane.errors import ErrorResponse, bad_request, conflict
from certctrl.plane.orders.batches import Batches
from certctrl.plane.orders.orders import OrderRequest, Orders
from certctrl.plane.orders.renewal_times import ENDING_SHARE
from certctrl.plane.profiles.previews import preview_id, refuse_other
from certctrl.plane.reserved_names import ReservedNames, refuse_reserved
from certctrl.plane.rollouts import changes
from certctrl.plane.rollouts.changes import Settled
from certctrl.plane.rollouts.plan import RENEWAL_PLAN
from certctrl.plane.rollouts.proof import SAME, RenewalProof
from certctrl.plane.rollouts.rollouts import RolloutRules, Rollouts, check_rules, rules_json
from certctrl.plane.storage.database import Database, Row, marks
from certctrl.text import counted

MAX_CERTIFICATES = 1000
"""Certificates of one rollout, with those that were made from templates and the others of sets."""
ONE_GROUP = "*"
"""The group of all certificates of a rollout; no set has this name."""

log = logging.getLogger("certctrl.Plane")


class RenewalRollouts:
    """Starts rollouts of renewals, and carries them out (`Change`). Methods run in the caller's unit of work."""

    def __init__(
        self,
        database: Database,
        rollouts: Rollouts,
        table: CertificateTable,
        orders: Orders,
        batches: Batches,
        reserved: ReservedNames,
        audit: AuditLog,
        wall_now: Callable[[], float],
    ) -> None:
        self._db = database
        self._rollouts = rollouts
        self._table = table
        self._orders = orders
        self._batches = batches
        self._proof = RenewalProof(database)
        self._reserved = reserved
        self._audit = audit
        self._wall_now = wall_now

    # --- start ----------------------------------------------------------------------------------------------------

    def start(
        self,
        user_id: int,
        cert_ids: Sequence[int],
        rules: RolloutRules,
        *,
        together: bool = False,
        note: str = "",
        expected: str = "",
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """Start the rollout of renewals; return it, or with ``dry_run`` its waves.

        Certificates made from a template, and the others of a set, are included. ``together``: each device gets all of
        its certificates in one batch, as it does those of a set. ``expected``: the ``preview_id`` of a dry run; 409 if it
        would do something else by now. ErrorResponse 400, 404, and 409 if one cannot be renewed in waves.
        """
        check_rules(rules)
        require_user(self._db, user_id)
        groups = self._groups(user_id, cert_ids, together)
        rows = self._renewable(user_id, groups, set(cert_ids))
        if together and (len(rows) < 2 or len(set(cert_ids)) > MAX_IN_BATCH):
            raise bad_request(f"A batch has 2 to {MAX_IN_BATCH} certificates, not {len(rows)}", field="together")
        self._refuse_mixed(rows, groups)
        return self._begin(user_id, rows, groups, rules, note, expected=expected, dry_run=dry_run)

    def _begin(
        self,
        user_id: int,
        rows: Sequence[Row],
        groups: Mapping[int, str],
        rules: RolloutRules,
        note: str,
        *,
        expected: str = "",
        dry_run: bool = False,
    ) -> dict[str, Any]:
        devices = self._devices([row["id"] for row in rows])
        if not devices:
            raise conflict("No device has any of these certificates: there is nothing to roll out")
        planned = self._rollouts.planned(devices, rules)
        certificates = [{"id": row["id"], "name": row["domain_name"]} for row in rows]
        summary = {"certificates": certificates, "devices": len(devices), "dry_run": dry_run}
        serials = [(row["id"], row["serial_number"]) for row in rows]
        preview = preview_id(user_id, serials, groups, planned, rules_json(rules))
        if dry_run:
            return summary | {"id": None, "waves": self._rollouts.planned_waves(planned), "preview_id": preview}
        refuse_other(expected, preview)
        rollout_id = self._store(user_id, rows, groups, planned, rules, note)
        shown = self._rollouts.show(user_id, rollout_id)
        return summary | {key: shown[key] for key in ("id", "what", "waves", "state")}

    def begin_import(self, certificate: Row, rules: RolloutRules, note: str) -> dict[str, Any]:
        """Start the rollout of a certificate that is about to be imported, and whose row is locked; return it.

        ErrorResponse 400, and 409 if there is nothing to roll out.
        """
        check_rules(rules)
        if certificate["status"] != "active" or not certificate["serial_number"]:
            what = f"Certificate {certificate['id']} is not in use: import it without waves"
            raise conflict(what, "CERT_REVOKED" if certificate["status"] == "revoked" else "WRAP_PENDING")
        if certificate["key_origin"] == KEY_AT_DEVICE:  # further devices would be told one whose key they do not have
            what = f"The key of certificate {certificate['id']} is made at its only device: import it without waves"
            raise conflict(what, "KEYS_AT_DEVICES")
        return self._begin(certificate["user_id"], [certificate], {certificate["id"]: ""}, rules, note)

    def _groups(self, user_id: int, cert_ids: Sequence[int], together: bool) -> dict[int, str]:
        """Return certificates, those made from them and the others of their sets, by id, with the name of their group."""
        asked = sorted(set(cert_ids))
        made = self._db.all(
            f"SELECT c.id FROM certificates c WHERE c.user_id = ? AND c.template_id IN ({marks(asked)})"
            " AND c.status = 'active' AND c.serial_number != ''"
            " AND EXISTS (SELECT 1 FROM assignments a WHERE a.cert_id = c.id) ORDER BY c.id",
            *(user_id, *asked),
        )
        found = dict.fromkeys([*asked, *(row["id"] for row in made)], "")
        named = sorted(found)
        for row in self._db.all(
            f"SELECT * FROM certificates WHERE user_id = ? AND id IN ({marks(named)})", user_id, *named
        ):
            found |= dict.fromkeys(self._batches.ids_of_set(row), self._set_of(row))
        if len(found) > MAX_CERTIFICATES:
            what = f"A rollout renews up to {MAX_CERTIFICATES} certificates, not {len(found)}"
            raise bad_request(what, field="cert_ids")
        return {cert_id: ONE_GROUP if together else found[cert_id] for cert_id in sorted(found)}

    def _renewable(self, user_id: int, groups: Mapping[int, str], asked: Collection[int]) -> list[Row]:
        """Return certificates by id, and locked; ErrorResponse for one that cannot be renewed.

        One that was not ``asked`` for, but is in a set, is left out then, as in all renewals of sets.
        """
        rows, reserved = [self._table.locked(user_id, cert_id) for cert_id in groups], self._reserved.all()
        found = []
        for row in rows:
            try:
                self._refuse(row, reserved, groups)
            except ErrorResponse:
                if row["id"] in asked or not self._set_of(row):
                    raise
                continue
            found.append(row)
        return found

    def _refuse(self, row: Row, reserved: Collection[str], groups: Mapping[int, str]) -> None:
        refuse_reserved(json.loads(row["sans"]), reserved)
        refuse_imported(row)
        refuse_rollout(self._table, row["id"])
        if row["status"] == "revoked":
            raise conflict(f"Certificate {row['id']} is revoked", "CERT_REVOKED")
        if not row["serial_number"]:
            raise conflict(f"Certificate {row['id']} is not issued yet", "WRAP_PENDING")
        known = self._orders.open_of(row["id"])
        if known is not None and known["batch"]:
            what = f"Certificate {row['id']} is being renewed together with others"
            raise conflict(f"{what}: wait, or end batch {known['batch']}", "IN_SET")

    def _refuse_mixed(self, rows: Sequence[Row], groups: Mapping[int, str]) -> None:
        """Refuse a group in which a shared certificate would be ordered with keys that devices of later waves must make.

        A device is told the certificate for a key that it has made, whether it is held or not.
        """
        own = {groups[row["id"]] for row in rows if row["key_origin"] == KEY_AT_DEVICE} - {""}
        for row in rows:
            shares = groups[row["id"]] in own and row["key_origin"] != KEY_AT_DEVICE
            if shares and len(self._table.holders(row["id"])) > 1:
                what = (
                    f"Certificate {row['id']} is on several devices, and others of its batch have keys made at devices"
                )
                raise conflict(f"{what}: roll them out separately", "KEYS_AT_DEVICES")

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
        self,
        user_id: int,
        rows: Sequence[Row],
        groups: Mapping[int, str],
        planned: Sequence[tuple[int, int, str]],
        rules: RolloutRules,
        note: str,
    ) -> int:
        rollout_id = self._rollouts.insert(user_id, None, 0, planned, rules, note)
        for row in rows:
            sql = "INSERT INTO rollout_certificates (rollout_id, cert_id, serial_number, together) VALUES (?, ?, ?, ?)"
            self._db.run(sql, rollout_id, row["id"], row["serial_number"], groups[row["id"]])
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
        if self._table.holds.held_at(cert_id, certificate["serial_number"]):
            return True  # with another one of its set, a moment ago
        plan = self.default(user_id)
        if plan["over"] is None or certificate["key_origin"] == KEY_AT_DEVICE:
            return False  # with keys made at devices, each has its own certificate, with its own time
        ids = self._batches.ids_of_set(certificate) or [cert_id]
        if len(self._devices(ids)) <= plan["over"]:
            return False
        rules = RolloutRules(**{field.name: plan[field.name] for field in attrs.fields(RolloutRules)})
        act = Act(self._audit, Caller.of_plane("renewals"), "rollout.start", detail={"note": "due"})
        act.note_fields({"uid": user_id, "cert_id": cert_id})
        rules = _without_canary(rules, bool(self._rollouts.canaries(self._devices(ids), rules)))
        try:
            act.around(self._db, lambda: self.start(user_id, [cert_id], rules, note="due"))
        except ErrorResponse as error:
            log.warning("certificate %d is renewed without waves: %s", cert_id, error)
            return False
        return True

    # --- carried out ----------------------------------------------------------------------------------------------

    def release(self, rollout: Row, device_ids: Sequence[int]) -> Mapping[int, Settled]:
        """Give devices the renewed certificates, and order those that are not renewed yet."""
        of_rollout = self._db.all("SELECT * FROM rollout_certificates WHERE rollout_id = ?", rollout["id"])
        former = {row["cert_id"]: row["serial_number"] for row in of_rollout}
        groups = {row["cert_id"]: row["together"] for row in of_rollout}
        on_devices = self._on_devices(rollout, device_ids)
        touched = {groups[cert_id] for cert_id in on_devices} - {""}
        rows = self._batches.release({*on_devices, *(one for one in groups if groups[one] in touched)}, device_ids)
        due = [row for row in rows.values() if row["status"] == "active" and row["serial_number"] == former[row["id"]]]
        request = OrderRequest(action="renew", reason=_reason(rollout), in_background=True)
        for row in due:
            if not groups[row["id"]]:
                self._orders.start(row, request)
        for group in sorted(touched):
            self._batches.order_group([row for row in due if groups[row["id"]] == group], device_ids, request)
        left = {device_id for device_id, copies in self._proof.copies(rollout, device_ids).items() if copies}
        return {one: SAME for one in device_ids if one not in left}

    def _on_devices(self, rollout: Row, device_ids: Sequence[int]) -> list[int]:
        """Return the certificates of a rollout that devices have, or are held at."""
        chosen = f"rollout_id = ? AND device_id IN ({marks(device_ids)})"
        rows = self._db.all(
            "SELECT t.cert_id FROM rollout_certificates t JOIN assignments a ON a.cert_id = t.cert_id"
            f" WHERE {chosen} UNION SELECT cert_id FROM certificate_holds WHERE {chosen}",
            *(rollout["id"], *device_ids) * 2,
        )
        return [row["cert_id"] for row in rows]

    def settled(self, rollout: Row, rows: Sequence[Row]) -> Mapping[int, Settled]:
        """Return which devices have their renewed certificates in use, and which have failed."""
        return self._proof.settled(rollout, rows)

    def go_on(self, rollout: Row) -> bool:
        """Give the renewed certificates to some of the other devices if they are many; return whether they were."""
        held = self._held(rollout["id"], changes.MAX_RELEASED + 1)
        if len(held) <= changes.MAX_RELEASED:
            return False
        self.release(rollout, held[:-1])
        return True

    def finish(self, rollout: Row) -> None:
        """Give all other devices the renewed certificates, after `go_on`."""
        if held := self._held(rollout["id"], changes.MAX_RELEASED):
            self.release(rollout, held)

    def going_forward(self) -> list[int]:
        """Return the rollouts that were aborted forward, and have devices that do not have the renewed certificates yet."""
        return [row["id"] for row in self._db.all("SELECT id FROM rollouts WHERE forward != 0 ORDER BY id")]

    def forward(self, rollout: Row) -> bool:
        """Give the renewed certificates to some devices of a rollout that was aborted forward; return whether more are left."""
        held = self._held(rollout["id"], changes.MAX_RELEASED)
        if held:
            self.release(rollout, held)
        more = len(held) == changes.MAX_RELEASED
        chosen = f" AND device_id IN ({marks(held)})" if more else ""
        self._db.run(
            "UPDATE rollout_devices SET state = 'released', released_at = ? WHERE rollout_id = ?"
            f" AND state IN ('held', 'skipped'){chosen}",
            *(self._wall_now(), rollout["id"], *(held if more else ())),
        )
        if not more:
            self._db.run("UPDATE rollouts SET forward = 0 WHERE id = ?", rollout["id"])
        return more

    def abort(self, rollout: Row, *, forward: bool) -> None:
        """End holds: with ``forward`` all, otherwise those of certificates that are not renewed, whose orders end.

        With ``forward``, the runner goes on if the devices are many.
        """
        if forward:
            self._db.run("UPDATE rollouts SET forward = 1 WHERE id = ?", rollout["id"])
            self.forward(rollout)
            return
        rows = self._db.all(
            "SELECT t.cert_id, t.serial_number FROM rollout_certificates t WHERE t.rollout_id = ? AND EXISTS (SELECT 1"
            " FROM certificate_holds h WHERE h.cert_id = t.cert_id AND h.rollout_id = t.rollout_id) ORDER BY t.cert_id",
            rollout["id"],
        )
        locked = self._batches.lock_ids([row["cert_id"] for row in rows])
        for row in rows:
            if locked[row["cert_id"]]["serial_number"] != row["serial_number"]:
                continue
            known = self._orders.open_of(row["cert_id"])
            if known is None or known["reason"] == _reason(rollout):  # one that has failed keeps its batch waiting
                self._orders.cancel_of(row["cert_id"], f"rollout {rollout['id']} was aborted")
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

    def _held(self, rollout_id: int, limit: int) -> list[int]:
        sql = "SELECT DISTINCT device_id FROM certificate_holds WHERE rollout_id = ? ORDER BY device_id LIMIT ?"
        return [row["device_id"] for row in self._db.all(sql, rollout_id, limit)]


def _reason(rollout: Row) -> str:
    return f"rollout {rollout['id']}"


def _without_canary(rules: RolloutRules, has_canary: bool) -> RolloutRules:
    """Return rules without a canary that a certificate does not have."""
    return rules if has_canary else attrs.evolve(rules, canary="")
