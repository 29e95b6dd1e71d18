"""Revocations of certificates at their CAs, and their states; all in the caller's unit of work.

The built-in CA revokes through its list, immediately. At another CA, a job revokes, and is retried until the CA has
confirmed or the certificate has expired; until then it is revoked only here, and shown as such. A certificate that is
being replaced is revoked once its replacement is issued.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from certctrl.backoff import grown, jittered
from certctrl.errors import CertctrlError
from certctrl.plane.ca.crl import REASONS, issuer_key_id
from certctrl.plane.clock import when
from certctrl.plane.errors import bad_request, conflict, not_found
from certctrl.plane.issuers.issuer import BUILTIN
from certctrl.plane.issuers.registry import IMPORT
from certctrl.plane.jobs import Job, Jobs
from certctrl.plane.revocation.crls import Crls
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database, Row, marks
from certctrl.text import one_line

WAITING, DUE, DONE, MANUAL = "waiting", "due", "done", "manual"
JOB = "revocation"
KEY_COMPROMISE = "keyCompromise"
FIRST_PAUSE = 30.0
MAX_PAUSE = 6 * 3600.0
REFUSED_PAUSE = float(DAY)
MAX_RETRY_AFTER = 2.0 * DAY
MAX_PROBLEM = 500
_KEPT_SECONDS = 30 * DAY
"""Seconds for which revocations are kept after their certificates have expired."""
_MAX_LIFE = 366 * DAY
_SERIAL = re.compile(r"[0-9a-f]{1,64}", re.ASCII)


def clean_reason_code(text: str) -> str:
    """Return a reason name of RFC 5280, or an empty one; ErrorResponse 400."""
    if text and text not in REASONS:
        raise bad_request(f"reason_code must be one of {', '.join(REASONS)}", field="reason_code", value=text[:100])
    return text


def clean_serial(text: str) -> str:
    """Return a serial number in its stored form; ErrorResponse 400 if it is not hexadecimal."""
    digits = text.strip().lower().replace(":", "").replace(" ", "").removeprefix("0x").lstrip("0")
    if not _SERIAL.fullmatch(digits):
        what = "serial_number must be hexadecimal, as cert-ctrl plane certificates --json shows it"
        raise bad_request(what, field="serial_number", value=text[:100])
    return bytes.fromhex(digits.zfill(len(digits) + len(digits) % 2)).hex(":")


class Revocations:
    """The table of revocations."""

    def __init__(
        self,
        database: Database,
        jobs: Jobs,
        crls: Crls,
        wall_now: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        """``random`` returns numbers in [0, 1)."""
        self._db = database
        self._jobs = jobs
        self._crls = crls
        self._wall_now = wall_now
        self._random = random
        self.on_due: Callable[[], object] = lambda: None
        """Called after the commit when a revocation has become due."""

    def start(self, certificate: Row, code: str, serial: str = "") -> None:
        """Revoke a certificate, whose row is locked, or an earlier one; repeating makes the next attempt due now.

        ErrorResponse 404 if the certificate never had this serial number.
        """
        self._add(certificate, serial or certificate["serial_number"], code, DUE)

    def start_when_replaced(self, certificate: Row, code: str) -> None:
        """Revoke a certificate, whose row is locked, once its replacement is stored."""
        self._add(certificate, certificate["serial_number"], code, WAITING)

    def confirm(self, cert_id: int, serial: str = "") -> None:
        """Record that an operator revoked a certificate at its CA; without ``serial``, for all of its revocations.

        ErrorResponse 409 if none is left to be confirmed.
        """
        rows = self._db.all(
            "SELECT serial_number FROM revocations WHERE cert_id = ? AND state IN (?, ?) AND ? IN ('', serial_number)",
            *(cert_id, DUE, MANUAL, serial),
        )
        if not rows:
            raise conflict("No revocation of this certificate is left to be confirmed", "NOT_REVOKED")
        for row in rows:
            self._db.run("DELETE FROM jobs WHERE kind = ? AND job_key = ?", JOB, _key(cert_id, row["serial_number"]))
            self._end(cert_id, row["serial_number"], "confirmed by an operator")

    def note_replaced(self, cert_id: int) -> None:
        """Revoke the certificates that waited for the replacement, which has just been stored."""
        for row in self._db.all(
            "SELECT r.* FROM revocations r JOIN certificates c ON c.id = r.cert_id"
            " WHERE r.cert_id = ? AND r.state = ? AND r.serial_number != c.serial_number ORDER BY r.serial_number",
            *(cert_id, WAITING),
        ):
            self._begin(row)

    def of(self, cert_ids: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
        """Return the revocations of certificates as operators see them."""
        found: dict[int, list[dict[str, Any]]] = {cert_id: [] for cert_id in cert_ids}
        rows = (
            ()
            if not found
            else self._db.all(
                f"SELECT * FROM revocations WHERE cert_id IN ({marks(cert_ids)}) ORDER BY created_at, serial_number",
                *cert_ids,
            )
        )
        for row in rows:
            found[row["cert_id"]].append(_shown(row))
        return found

    def pending(self) -> tuple[int, Row | None]:
        """Return how many revocations a CA has refused or failed so far, and the oldest of them."""
        failing = f"state = '{DUE}' AND problem != ''"
        count = self._db.one(f"SELECT count(*) AS n FROM revocations WHERE {failing}")
        oldest = self._db.one(f"SELECT * FROM revocations WHERE {failing} ORDER BY created_at LIMIT 1")
        return 0 if count is None else int(count["n"]), oldest

    def delete_expired(self) -> None:
        """Delete expired earlier certificates, and old revocations."""
        now = self._wall_now()
        self._db.run("DELETE FROM former_certificates WHERE not_after < ?", now - DAY)
        sql = f"DELETE FROM revocations WHERE not_after < ? AND state != '{DUE}'"
        self._db.run(sql, now - _KEPT_SECONDS)

    # --- attempts at the CA -------------------------------------------------------------------------------------

    def begin_attempt(self, job: Job) -> Row | None:
        """Return the revocation of a claimed job; if there is nothing to do, end the job and return None."""
        row = self._row(*_of_key(job.key))
        if row is not None and row["state"] == DUE and row["not_after"] > self._wall_now():
            return row
        if row is not None and row["state"] == DUE:
            self._end(row["cert_id"], row["serial_number"], "it expired before the CA revoked it")
        self._jobs.finish(job)
        return None

    def succeed(self, job: Job) -> None:
        """Record that the CA has revoked it."""
        if self._jobs.finish(job):
            self._end(*_of_key(job.key), "")

    def fail(self, job: Job, error: CertctrlError) -> float:
        """Record why the CA has not revoked it; return when the next attempt is due."""
        cert_id, serial = _of_key(job.key)
        row, now = self._row(cert_id, serial), self._wall_now()
        attempts = 1 if row is None else row["attempts"] + 1
        refused = getattr(error, "is_permanent", False)
        pause = jittered(REFUSED_PAUSE if refused else grown(FIRST_PAUSE, MAX_PAUSE, attempts), self._random())
        after = min(getattr(error, "retry_after", None) or 0.0, MAX_RETRY_AFTER)
        due = now + max(pause, after)
        if self._jobs.reschedule(job, due):
            self._db.run(
                "UPDATE revocations SET attempts = ?, problem = ?, fix = ?, next_at = ?"
                " WHERE cert_id = ? AND serial_number = ?",
                *(attempts, one_line(str(error), MAX_PROBLEM), one_line(error.fix or "", MAX_PROBLEM), due),
                *(cert_id, serial),
            )
        return due

    def _end(self, cert_id: int, serial: str, problem: str) -> None:
        self._db.run(
            "UPDATE revocations SET state = ?, problem = ?, fix = '', next_at = NULL, done_at = ?"
            " WHERE cert_id = ? AND serial_number = ?",
            *(DONE, problem, self._wall_now(), cert_id, serial),
        )

    # --- new revocations -----------------------------------------------------------------------------------------------

    def _add(self, certificate: Row, serial: str, code: str, state: str) -> None:
        cert_id = certificate["id"]
        known = self._row(cert_id, serial)
        if known is None:
            self._insert(certificate, serial, code, state)
        elif known["state"] == WAITING:
            sql = "UPDATE revocations SET code = ? WHERE cert_id = ? AND serial_number = ?"
            self._db.run(sql, code, cert_id, serial)
        row = self._row(cert_id, serial)
        assert row is not None
        if state == DUE and row["state"] in (WAITING, DUE):
            self._begin(row)

    def _insert(self, certificate: Row, serial: str, code: str, state: str) -> None:
        pem, chain, issuer, not_after = self._material(certificate, serial)
        self._db.run(
            "INSERT INTO revocations (serial_number, cert_id, issuer, code, certificate_pem, chain_pem, not_after, state,"
            " created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *(serial, certificate["id"], issuer, code, pem, chain, not_after, state, self._wall_now()),
        )

    def _material(self, certificate: Row, serial: str) -> tuple[str, str, str, float]:
        """Return certificate, chain, issuer and expiry; ErrorResponse 404."""
        if serial == certificate["serial_number"]:
            row: Row | None = certificate
            issuer = certificate["issued_by"] or certificate["issuer"]
        else:
            sql = "SELECT * FROM former_certificates WHERE serial_number = ? AND cert_id = ?"
            row = self._db.one(sql, serial, certificate["id"])
            issuer = "" if row is None else row["issuer"]
        if row is not None:
            pem = row["certificate_pem"]
            ours = self._crls.signs(issuer_key_id(pem))
            return pem, row["chain_pem"], BUILTIN if ours else issuer or certificate["issuer"], row["not_after"]
        # Replaced before the release that keeps earlier certificates; all of them were issued by the built-in CA.
        sql = (
            "SELECT max(at) AS at FROM issues WHERE cert_id = ? AND serial_number = ? AND action IN ('issue', 'renew')"
        )
        issue = self._db.one(sql, certificate["id"], serial)
        if issue is None or issue["at"] is None:
            raise not_found("This certificate never had that serial number")
        return "", "", BUILTIN, issue["at"] + _MAX_LIFE

    def _begin(self, row: Row) -> None:
        """Revoke at the CA: now if it is the built-in one, otherwise by a job."""
        cert_id, serial, now = row["cert_id"], row["serial_number"], self._wall_now()
        if row["issuer"] == BUILTIN:
            of = issuer_key_id(row["certificate_pem"]) if row["certificate_pem"] else ""
            self._crls.add(serial, of, cert_id=cert_id, reason=row["code"], not_after=row["not_after"])
            self._end(cert_id, serial, "")
        elif row["issuer"] == IMPORT:
            what = "it was imported, so the control plane cannot revoke it at its CA"
            fix = (
                f"revoke the serial number {serial} at the CA that issued it, then: cert-ctrl plane revoke --confirmed"
            )
            sql = "UPDATE revocations SET state = ?, problem = ?, fix = ? WHERE cert_id = ? AND serial_number = ?"
            self._db.run(sql, MANUAL, what, fix, cert_id, serial)
        else:
            sql = "UPDATE revocations SET state = ?, next_at = ? WHERE cert_id = ? AND serial_number = ?"
            self._db.run(sql, DUE, now, cert_id, serial)
            key = _key(cert_id, serial)
            job = self._db.one("SELECT lease FROM jobs WHERE kind = ? AND job_key = ?", JOB, key)
            if job is None or job["lease"] <= now:  # otherwise an attempt is running
                self._jobs.put(JOB, key, now)
            self._db.after_commit(self._wake)

    def _wake(self) -> None:
        self.on_due()

    def _row(self, cert_id: int, serial: str) -> Row | None:
        return self._db.one("SELECT * FROM revocations WHERE cert_id = ? AND serial_number = ?", cert_id, serial)


def _key(cert_id: int, serial: str) -> str:
    """Return the key of a job; the serial number alone is not unique across CAs."""
    return f"{cert_id} {serial}"


def _of_key(key: str) -> tuple[int, str]:
    cert_id, _, serial = key.partition(" ")
    return int(cert_id), serial


def _shown(row: Row) -> dict[str, Any]:
    plain = ("serial_number", "issuer", "state", "attempts", "problem", "fix")
    times = ("created_at", "next_at", "done_at")
    return (
        {name: row[name] for name in plain} | {"reason_code": row["code"]} | {name: when(row[name]) for name in times}
    )
