"""PublishedProofs: which proofs are published, which orders need them, and which are to be taken back.

A CA may give two orders the same authorization, and so the same proof; the first to end must not remove it. Orders are
counted in the database, since several planes may work at them. A proof is noted before it is published, so that one that
a crash leaves is taken back once no order needs it any longer, or after ``HOLD_SECONDS``. One that cannot be removed is
tried again with growing pauses for ``GIVE_UP_SECONDS``. While a plane removes a proof, no order publishes it again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence

from certctrl.backoff import grown
from certctrl.plane.challenges.solver import Failures, Proof
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database, Row, marks
from certctrl.text import one_line

HOLD_SECONDS = DAY + 3600.0
"""How long an order that says nothing needs a proof; longer than an attempt."""
REMOVAL_SECONDS = 180.0
"""How long a removal may take; then another plane tries it."""
FIRST_PAUSE = 60.0
MAX_PAUSE = 6 * 3600.0
GIVE_UP_SECONDS = 7.0 * DAY
MAX_EXPIRED = 200
FOREVER = 1e15
_MAX_PROBLEM = 500

log = logging.getLogger("certctrl.Plane")


class PublishedProofs:
    """The tables of published proofs and of the orders that need them; methods run in units of work."""

    def __init__(self, database: Database, wall_now: Callable[[], float]) -> None:
        self._db = database
        self._wall_now = wall_now

    def take(self, issuer: str, holder: str, proofs: Sequence[Proof]) -> float:
        """Note that an order needs proofs, and return until when; 0, and nothing noted, while one is being removed."""
        now, by_answer = self._wall_now(), _by_answer(proofs)
        if self._is_busy([*by_answer]):
            return 0.0
        self._ensure(issuer, by_answer)
        if self._is_busy([*by_answer]):  # a removal has begun since
            return 0.0
        for answer, proof in by_answer.items():
            self._note(answer, issuer, proof, due=now + HOLD_SECONDS, busy_until=0.0)
            self._db.run(
                "INSERT INTO proof_holds (answer, holder, expires_at) VALUES (?, ?, ?)"
                " ON CONFLICT (answer, holder) DO UPDATE SET expires_at = excluded.expires_at",
                *(answer, holder, now + HOLD_SECONDS),
            )
        return now + HOLD_SECONDS

    def give_back(
        self, issuer: str, holder: str, proofs: Sequence[Proof], needed_until: float = FOREVER
    ) -> list[Proof]:
        """Note that an order needs proofs no longer; return those to remove now, even if they were never noted.

        Those that another plane is removing are left to it, unless there is no ``holder``: ``claim`` returned them. So
        are those that a later attempt of the order needs for longer than ``needed_until``.
        """
        now, by_answer = self._wall_now(), _by_answer(proofs)
        self._ensure(issuer, by_answer)
        unneeded = []
        for answer, proof in by_answer.items():
            sql = "DELETE FROM proof_holds WHERE answer = ? AND holder = ? AND expires_at <= ?"
            self._db.run(sql, answer, holder, needed_until)
            if self._needed_until(answer) > now or (holder and self._is_busy([answer])):
                continue
            until = now + REMOVAL_SECONDS
            self._note(answer, issuer, proof, due=until, busy_until=until)
            unneeded.append(proof)
        return unneeded

    def settle(self, proofs: Sequence[Proof], failures: Failures) -> None:
        """Note which proofs were removed, and plan the next attempt at those that were not."""
        by_answer = _by_answer(proofs)
        for row in self._locked([*by_answer]):
            proof = by_answer[row["answer"]]
            if proof not in failures:
                self._delete(row["answer"])
                continue
            error = failures[proof]
            self._failed(row, proof, one_line(f"{error}; {error.fix}" if error.fix else str(error), _MAX_PROBLEM))

    def claim(self) -> dict[str, list[Proof]]:
        """Return the proofs that are to be removed now, by issuer; other planes leave them alone meanwhile."""
        now = self._wall_now()
        rows = self._db.all_unlocked(
            "SELECT * FROM published_proofs WHERE due <= ? OR due > ? ORDER BY due, answer LIMIT ?",
            *(now, now + 2 * HOLD_SECONDS, MAX_EXPIRED),  # no proof is due that late, unless the clock was set back
        )
        found: dict[str, list[Proof]] = {}
        for row in rows:
            needed = self._needed_until(row["answer"])
            until = needed if now < needed <= now + HOLD_SECONDS else now + REMOVAL_SECONDS
            busy = 0.0 if until == needed else until
            sql = "UPDATE published_proofs SET due = ?, busy_until = ? WHERE answer = ?"
            self._db.run(sql, until, busy, row["answer"])
            if busy:
                self._db.run("DELETE FROM proof_holds WHERE answer = ?", row["answer"])
                found.setdefault(row["issuer"], []).append(_proof(row))
        return found

    def failing(self) -> tuple[int, Row | None]:
        """Return how many proofs could not be removed, and the one that has been failing for longest."""
        count = self._db.one("SELECT count(*) AS n FROM published_proofs WHERE attempts > 0")
        sql = "SELECT * FROM published_proofs WHERE attempts > 0 ORDER BY failed_at, answer LIMIT 1"
        return 0 if count is None else int(count["n"]), self._db.one(sql)

    def _ensure(self, issuer: str, by_answer: Mapping[str, Proof]) -> None:
        """Lock the rows of some answers, those that do not exist yet, too: others could note these meanwhile."""
        due = self._wall_now() + HOLD_SECONDS
        for answer, proof in by_answer.items():
            self._db.run(
                "INSERT INTO published_proofs (answer, issuer, kind, identifier, token, key_authorization, due)"
                " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (answer) DO UPDATE SET answer = excluded.answer",
                *(answer, issuer, proof.kind, proof.identifier, proof.token, proof.key_authorization, due),
            )

    def _is_busy(self, answers: Sequence[str]) -> bool:
        """Return whether one of some answers is being removed."""
        now = self._wall_now()
        return any(now < row["busy_until"] <= now + REMOVAL_SECONDS for row in self._locked(answers))

    def _locked(self, answers: Sequence[str]) -> list[Row]:
        """Return the rows of some answers, locked in one order, so that orders cannot block each other."""
        sql = f"SELECT * FROM published_proofs WHERE answer IN ({marks(answers)}) ORDER BY answer"
        return self._db.all_locked(sql, *answers) if answers else []

    def _note(self, answer: str, issuer: str, proof: Proof, *, due: float, busy_until: float) -> None:
        """Store a proof; its failures are over if it is published again."""
        again = "" if busy_until else ", attempts = 0, failed_at = NULL, problem = ''"
        self._db.run(
            "INSERT INTO published_proofs (answer, issuer, kind, identifier, token, key_authorization, due, busy_until)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (answer) DO UPDATE SET issuer = excluded.issuer,"
            f" due = excluded.due, busy_until = excluded.busy_until{again}",
            *(answer, issuer, proof.kind, proof.identifier, proof.token, proof.key_authorization, due, busy_until),
        )

    def _needed_until(self, answer: str) -> float:
        row = self._db.one("SELECT max(expires_at) AS at FROM proof_holds WHERE answer = ?", answer)
        return 0.0 if row is None or row["at"] is None else float(row["at"])

    def _failed(self, row: Row, proof: Proof, problem: str) -> None:
        now, attempts = self._wall_now(), row["attempts"] + 1
        failed_at = now if row["failed_at"] is None or row["failed_at"] > now else row["failed_at"]
        what = f"the {proof.kind} proof of {proof.identifier} (issuer {row['issuer']}) cannot be taken back: {problem}"
        if now - failed_at >= GIVE_UP_SECONDS:
            self._delete(row["answer"])
            log.error("%s; given up after %d attempts: remove it by hand", what, attempts)
            return
        pause = grown(FIRST_PAUSE, MAX_PAUSE, attempts)
        self._db.run(
            "UPDATE published_proofs SET attempts = ?, failed_at = ?, problem = ?, due = ?, busy_until = 0 WHERE answer = ?",
            *(attempts, failed_at, problem, now + pause, row["answer"]),
        )
        log.warning("%s; next attempt in %.0f s", what, pause)

    def _delete(self, answer: str) -> None:
        """Forget a proof, unless an order needs it: its removal took so long that the order did not wait."""
        if self._needed_until(answer) <= self._wall_now():
            self._db.run("DELETE FROM published_proofs WHERE answer = ?", answer)
            self._db.run("DELETE FROM proof_holds WHERE answer = ?", answer)


def _by_answer(proofs: Sequence[Proof]) -> Mapping[str, Proof]:
    """Return proofs by what is published for them, each once and in one order."""
    found = {_answer(proof): proof for proof in proofs}
    return {answer: found[answer] for answer in sorted(found)}


def _answer(proof: Proof) -> str:
    parts = [proof.kind, proof.identifier, proof.token, proof.key_authorization]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _proof(row: Row) -> Proof:
    return Proof(
        kind=row["kind"],
        identifier=row["identifier"],
        token=row["token"],
        key_authorization=row["key_authorization"],
    )
