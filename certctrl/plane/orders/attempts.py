"""Attempts: begin and end attempts at orders; all in the caller's unit of work.

Every change checks the claim of the job, so that a plane that has lost its claim changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import attrs

from certctrl import lean
from certctrl.backoff import grown, jittered
from certctrl.errors import CertctrlError
from certctrl.plane.ca.issuer import Issued
from certctrl.plane.certificates.table import KEY_AT_DEVICE
from certctrl.plane.errors import ErrorResponse
from certctrl.plane.issuers.issuer import IssuerError
from certctrl.plane.jobs import Job, Jobs
from certctrl.plane.orders.batches import Batches, OrderParts
from certctrl.plane.orders.orders import DONE, FAILED, READY
from certctrl.plane.orders.requests import new_request
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Row
from certctrl.text import one_line

FIRST_PAUSE = 30.0
MAX_PAUSE = 6 * 3600.0
REFUSED_PAUSE = float(DAY)
"""Longest pause after a refused renewal."""
REFUSED_SHARE = 1 / 16
"""Share of a certificate's life that this pause takes at first, so that short-lived ones get several attempts."""
NEW_KEY_SHARE = 1 / 8
"""Share of a certificate's life that the pause grows to while each new key of its device is refused."""
MAX_NEW_KEY_PAUSE = 7.0 * DAY
MAX_RETRY_AFTER = 7.0 * DAY
GIVE_UP_SECONDS = 7.0 * DAY
"""Seconds for which a first order is retried."""
MAX_PROBLEM = 500
MAX_MEMO = 256 * 1024
_OTHER_KEY = "the device makes another key for the next attempt"


class ClaimLostError(ErrorResponse):
    """Another plane has claimed the order, or it has ended; raised before any change."""

    def __init__(self, order_id: int) -> None:
        what = f"order {order_id} is worked on by another plane, or has ended"
        super().__init__(what, status=409, key="ORDER_STATE", code=4009)


@lean.frozen(kw_only=True)
class Attempt:
    """One attempt at an order."""

    job: Job
    order_id: int
    cert_id: int
    domain_name: str
    issuer: str
    action: str
    attempts: int
    """Including this one."""
    names: tuple[str, ...]
    key_type: str
    validity_seconds: int
    profile: str
    must_staple: bool
    csr_der: bytes
    """Empty if the plane makes key and CSR."""
    key_der: bytes = attrs.field(repr=False)
    """Unencrypted PKCS#8; empty if a device has the key, or if there is none yet."""
    old_key_der: bytes = attrs.field(repr=False)
    """The key of the certificate in use if the order reuses it; otherwise empty."""
    memo: str = attrs.field(repr=False)
    replaces_pem: str
    device_ids: tuple[int, ...]
    user_id: int


class Attempts:
    """Begins and ends attempts."""

    def __init__(self, parts: OrderParts, jobs: Jobs, batches: Batches, random: Callable[[], float]) -> None:
        """``random`` returns numbers in [0, 1)."""
        self._db, self._keyring, self._table = parts.database, parts.keyring, parts.table
        self._orders, self._issuers, self._wall_now = parts.orders, parts.issuers, parts.wall_now
        self._jobs = jobs
        self._batches = batches
        self._random = random

    def begin(self, job: Job) -> Attempt | None:
        """Return the attempt of a claimed job; None if the claim is lost, or if there is nothing to do, which ends the job."""
        certificate, order = self._rows(int(job.key))
        if not self._jobs.holds(job):  # it waited for its turn for too long
            return None
        if certificate is None or order is None or order["state"] != READY:
            self._jobs.finish(job)
            return None
        if order["csr_der"] is None and certificate["key_origin"] == KEY_AT_DEVICE:
            self._orders.start_over(certificate, order)  # which ends the job
            return None
        order_id, now = order["id"], self._wall_now()
        self._db.run("UPDATE orders SET attempts = attempts + 1, updated_at = ? WHERE id = ?", now, order_id)
        return self._with_quick_key(self._attempt(job, certificate, order))

    def _with_quick_key(self, attempt: Attempt) -> Attempt:
        """Return an attempt with its key, unless the key is slow to make (RSA)."""
        if attempt.csr_der or attempt.key_type.startswith("rsa"):
            return attempt
        key, csr = new_request(attempt.key_type, attempt.names, attempt.must_staple, attempt.old_key_der)
        self.keep_key(attempt, key, csr)
        return attrs.evolve(attempt, key_der=key, csr_der=csr)

    def _attempt(self, job: Job, certificate: Row, order: Row) -> Attempt:
        order_id = order["id"]
        active = certificate["status"] == "active" and certificate["serial_number"]
        reuses = certificate["reuse_key"] and active and order["action"] != "replace"
        old_key = self._table.key_of(certificate) if reuses else b""
        return Attempt(
            job=job,
            order_id=order_id,
            cert_id=order["cert_id"],
            domain_name=certificate["domain_name"],
            issuer=order["issuer"],
            action=order["action"],
            attempts=order["attempts"] + 1,
            names=tuple(json.loads(certificate["sans"])),
            key_type=certificate["key_type"],
            validity_seconds=certificate["validity_seconds"],
            profile=certificate["profile"],
            must_staple=bool(certificate["must_staple"]),
            csr_der=bytes(order["csr_der"] or b""),
            key_der=self._unsealed(f"order {order_id} key", order["key_enc"]),
            old_key_der=old_key,
            memo=self._unsealed(f"order {order_id} memo", order["memo_enc"]).decode(),
            replaces_pem=certificate["certificate_pem"] if active else "",
            device_ids=tuple(self._table.holders(order["cert_id"])),
            user_id=certificate["user_id"],
        )

    def keep_key(self, attempt: Attempt, key_der: bytes, csr_der: bytes) -> None:
        """Store the key that the plane made for an order, with its CSR."""
        self._require_claim(attempt)
        sealed = self._keyring.seal(f"order {attempt.order_id} key", key_der)
        sql = "UPDATE orders SET key_enc = ?, csr_der = ?, updated_at = ? WHERE id = ?"
        self._db.run(sql, sealed, csr_der, self._wall_now(), attempt.order_id)

    def remember(self, attempt: Attempt, memo: str) -> None:
        """Store the memo of an order; ValueError if it is too long."""
        plain = memo.encode()
        if len(plain) > MAX_MEMO:
            raise ValueError("the memo of an order is too long")
        self._require_claim(attempt)
        sealed = self._keyring.seal(f"order {attempt.order_id} memo", plain)
        self._db.run(
            "UPDATE orders SET memo_enc = ?, updated_at = ? WHERE id = ?", sealed, self._wall_now(), attempt.order_id
        )

    def succeed(self, attempt: Attempt, issued: Issued) -> None:
        """Store the issued certificate, end the order, and signal the devices; in a batch, once all are issued."""
        batch = self._batches.lock(attempt.order_id)
        certificate, _ = self._rows(attempt.order_id)
        self._require_claim(attempt)
        assert certificate is not None  # a claimed order refers to an existing certificate
        if batch:
            self._batches.keep(attempt.order_id, issued)
            return
        order = self._db.one("SELECT reason, device_id FROM orders WHERE id = ?", attempt.order_id)
        assert order is not None
        self._table.store(attempt.cert_id, issued, attempt.action, order["reason"], order["device_id"])
        self._orders.end(attempt.order_id, DONE)
        self._issuers.note_success(attempt.issuer, used=True)
        self._table.announce(attempt.cert_id, issued.serial_number, replaces_revoked=attempt.action == "replace")

    def fail(self, attempt: Attempt, error: CertctrlError) -> float | None:
        """Record a failure; return when the next attempt is due, or None if the order has ended."""
        certificate, order = self._rows(attempt.order_id)
        self._require_claim(attempt)
        assert certificate is not None and order is not None  # it has a job
        problem, fix = one_line(str(error), MAX_PROBLEM), one_line(error.fix or "", MAX_PROBLEM)
        self._issuers.note_failure(attempt.issuer, problem, fix)
        refused = isinstance(error, IssuerError) and error.is_permanent
        about_request = isinstance(error, IssuerError) and error.about_request
        other_key = refused and about_request and order["key_enc"] is None and order["csr_der"] is not None
        now, is_first = self._wall_now(), attempt.action == "issue"
        if is_first and (refused or now - order["created_at"] > GIVE_UP_SECONDS):
            self._orders.end(attempt.order_id, FAILED, problem, fix)
            return None
        refused_requests = order["refused_requests"] + int(other_key)
        if other_key:
            fix = one_line(f"{_OTHER_KEY}; {fix}" if fix else _OTHER_KEY, MAX_PROBLEM)
        life = certificate["not_after"] - certificate["not_before"]
        due = now + self._pause(attempt, error, life if refused else None, refused_requests if other_key else 0)
        self._db.run(
            "UPDATE orders SET problem = ?, fix = ?, refused_requests = ?, updated_at = ?, next_at = ? WHERE id = ?",
            *(problem, fix, refused_requests, now, due, attempt.order_id),
        )
        if refused:  # start over at the CA, with a new key unless that of a device may be accepted
            self._db.run("UPDATE orders SET memo_enc = NULL WHERE id = ?", attempt.order_id)
            sql = "UPDATE orders SET key_enc = NULL, csr_der = NULL WHERE id = ? AND (key_enc IS NOT NULL OR ? = 1)"
            self._db.run(sql, attempt.order_id, int(other_key))
        self._jobs.reschedule(attempt.job, due)
        return due

    def give_back(self, job: Job) -> None:
        """Release the claim of an interrupted attempt, so that any plane can continue it immediately."""
        self._jobs.reschedule(job, self._wall_now())

    def _pause(self, attempt: Attempt, error: CertctrlError, life: float | None, keys: int) -> float:
        """Return the seconds until the next attempt.

        ``life`` is that of the certificate if the order was refused, ``keys`` how many a device has made in vain.
        """
        if life is None:
            grows = grown(FIRST_PAUSE, MAX_PAUSE, attempt.attempts)
        else:
            least = min(life * REFUSED_SHARE, REFUSED_PAUSE)
            grows = max(least, grown(FIRST_PAUSE, REFUSED_PAUSE, attempt.attempts))
            if keys:
                most = min(life * NEW_KEY_SHARE, MAX_NEW_KEY_PAUSE)
                grows = max(grows, grown(least, max(least, most), keys))
        pause = jittered(grows, self._random())
        after = min(getattr(error, "retry_after", None) or 0.0, MAX_RETRY_AFTER)
        return max(pause, after * (1 + 0.05 * self._random()))

    def _rows(self, order_id: int) -> tuple[Row | None, Row | None]:
        """Return certificate and order; the certificate is locked first, as in all other changes of orders."""
        order = self._db.one("SELECT cert_id FROM orders WHERE id = ?", order_id)
        if order is None:
            return None, None
        certificate = self._table.locked_by_id(order["cert_id"])
        return certificate, self._db.one("SELECT * FROM orders WHERE id = ?", order_id)

    def _require_claim(self, attempt: Attempt) -> None:
        row = self._db.one_locked("SELECT owner FROM jobs WHERE id = ?", attempt.job.id)
        if row is None or row["owner"] != self._jobs.owner:
            raise ClaimLostError(attempt.order_id)

    def _unsealed(self, purpose: str, sealed: bytes | None) -> bytes:
        return b"" if sealed is None else self._keyring.unseal(purpose, bytes(sealed))
