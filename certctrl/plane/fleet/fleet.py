"""Fleet: what needs an operator, and the states of devices and certificates; all methods only read.

Every list has the rows that fit a query, their number, the numbers of all states, and the place where the next page
begins. A page begins after a row, not at a number, so that changes in between neither repeat nor hide others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

from certctrl import lean
from certctrl.plane.clock import when
from certctrl.plane.devices.devices import require_user
from certctrl.plane.devices.endpoints import AGE_SECONDS
from certctrl.plane.devices.tags import DeviceTags, carried_by, checked_tags
from certctrl.plane.errors import bad_request, not_found
from certctrl.plane.fleet.copies import COPY_PLACE, copy_of, place_of_word, searched
from certctrl.plane.fleet.statements import Moment
from certctrl.plane.fleet.words import CERTIFICATE_WORDS, COPY_WORDS, DEVICE_WORDS, REASONS, STALE, cause_id, meaning
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database, Row, marks
from certctrl.text import nearest, one_line

MAX_PAGE = 500
MAX_CAUSES = 500
MAX_ENDS = 5000
_LAST = 1e11
"""More than any time: a row without a time comes last."""
_RANKED = {"expired": 0, "still served": 1, "not served": 2, "stuck": 3, "expiring": 4, STALE: 5}


@lean.frozen(kw_only=True)
class Query:
    """Which rows of a list, and in which order."""

    states: Collection[str] = ()
    reason: str = ""
    tags: Collection[str] = ()
    search: str = ""
    """Part of the name of the device or certificate, of its certificates, or its address; ``*`` stands for anything."""
    sort: str = "worst"
    after: str = ""
    """``next`` of the page before; empty: from the beginning."""
    limit: int = 50
    beyond: int = 0
    """Only rows with ids above this one, also in the total: the rest of a list that is worked through by id."""


def _rank(words: Sequence[str]) -> str:
    """Return the expression that orders rows by their word, and then by what ends first."""
    return f"{place_of_word(words)} * {2 * _LAST:.1f} + coalesce(ends_at, {_LAST:.1f})"


DEVICE_SORTS = {
    "worst": _rank(DEVICE_WORDS),
    "name": "name",
    "ends": f"coalesce(ends_at, {_LAST:.1f})",
    "contact": "coalesce(last_seen_at, 0.0)",
    "id": "id",
}
CERTIFICATE_SORTS = {
    "worst": _rank(CERTIFICATE_WORDS),
    "name": "name",
    "ends": f"coalesce(ends_at, {_LAST:.1f})",
    "id": "id",
}
"""Name of an order -> what rows are ordered by, ascending; rows with the same value by id."""


class Fleet:
    """Reads the state of the devices of a user; all methods run in the caller's unit of work."""

    def __init__(self, database: Database, stale_seconds: float, wall_now: Callable[[], float]) -> None:
        self._db = database
        self._stale_seconds = stale_seconds
        self._wall_now = wall_now
        self._tags = DeviceTags(database)

    def causes(self, user_id: int, scope: Sequence[str] = ()) -> dict[str, Any]:
        """Return all that needs an operator, grouped by cause, the worst first.

        ``scope``, here and below: only devices that carry all of these tags exist, and certificates that one of them has.
        """
        require_user(self._db, user_id)
        moment = self._moment(user_id, scope=scope)
        sql, parameters = moment.troubles
        rows = self._db.all(
            f"{sql}, ranked AS (SELECT t.*, row_number() OVER (PARTITION BY word, step, reason"
            " ORDER BY since, device_id, cert_id) AS place, row_number() OVER (PARTITION BY word, step, reason"
            f" ORDER BY coalesce(ends_at, {_LAST:.1f}), cert_id, device_id) AS end_place FROM troubles t)"
            " SELECT g.*, e.device_id, e.device, e.cert_id, e.certificate, e.detail, f.certificate AS first_to_end FROM"
            " (SELECT word, step, reason, count(DISTINCT device_id) AS devices,"
            " count(DISTINCT CASE WHEN cert_id = 0 THEN NULL ELSE cert_id END) AS certificates, min(since) AS since,"
            " min(ends_at) AS ends_at FROM troubles GROUP BY word, step, reason) g"
            " JOIN ranked e ON e.word = g.word AND e.step = g.step AND e.reason = g.reason AND e.place = 1"
            " JOIN ranked f ON f.word = g.word AND f.step = g.step AND f.reason = g.reason AND f.end_place = 1 LIMIT ?",
            *parameters,
            MAX_CAUSES,
        )
        found = [_cause(row) for row in sorted(rows, key=_worst)]
        return {
            "causes": found,
            "total": len(found),
            "counts": self._counts(moment.states, "states"),
            "at": when(moment.now),
        }

    def devices(self, user_id: int, query: Query, scope: Sequence[str] = ()) -> dict[str, Any]:
        """Return a page of devices. ErrorResponse 400 for a query that does not fit."""
        require_user(self._db, user_id)
        _check(query, (*DEVICE_WORDS, *COPY_WORDS), DEVICE_SORTS)
        moment = self._moment(user_id, scope=scope)
        where, fits = self._fits(query, "id", DEVICE_WORDS)
        rows, following = self._page(moment.states, "states", query, DEVICE_SORTS, where, fits)
        counts = self._counts(moment.states, "states")
        return {
            "devices": self._devices(moment, rows),
            "total": self._total(moment.states, "states", where, fits) if fits else sum(counts.values()),
            "counts": counts,
            "next": following,
            "at": when(moment.now),
        }

    def device(self, user_id: int, device_id: int) -> dict[str, Any]:
        """Return a device as in ``devices``, with ``copies``: its certificates, and ``others``: what else has failed.

        ErrorResponse 404.
        """
        moment = self._moment(user_id, device_id=device_id)
        sql, parameters = moment.states
        rows = self._db.all(f"{sql} SELECT * FROM states", *parameters)
        if not rows:
            raise not_found("No such device")
        sql, parameters = moment.troubles
        others = self._db.all(f"{sql} SELECT * FROM troubles WHERE cert_id = 0 AND word != ?", *parameters, STALE)
        return {
            "device": self._devices(moment, rows)[0],
            "copies": [copy_of(row) for row in self._copies(moment, "cert_id", 0, MAX_PAGE)],
            "others": [_why(row) for row in others],
            "at": when(moment.now),
        }

    def alike(self, user_id: int, word: str, step: str, reason: str) -> int:
        """Return the number of devices that fail at this step for this reason, with any certificate."""
        if word in ("not served", "still served") or reason == word:  # which no deployment says
            sql, parameters = self._moment(user_id).troubles
            sql = (
                f"{sql} SELECT count(DISTINCT device_id) AS n FROM troubles WHERE word = ? AND step = ? AND reason = ?"
            )
            row = self._db.one(sql, *parameters, word, step, reason)
        else:
            row = self._db.one(
                "SELECT count(DISTINCT x.device_id) AS n FROM deployments x JOIN devices d ON d.id = x.device_id"
                " WHERE x.failing = 1 AND x.step = ? AND x.reason = ? AND d.user_id = ? AND d.status = 'active'",
                *(step, reason, user_id),
            )
        return 0 if row is None else int(row["n"])

    def certificate(self, user_id: int, cert_id: int, after: int = 0, limit: int = 50) -> dict[str, Any]:
        """Return a certificate as in ``certificates``, with ``copies``: a page of its devices, the worst first.

        ``after``: ``next`` of the page before. ErrorResponse 404.
        """
        moment = self._moment(user_id, cert_id=cert_id)
        sql, parameters = moment.certs
        row = self._db.one(f"{sql} SELECT * FROM certs WHERE id = ?", *parameters, cert_id)
        if row is None:
            raise not_found("No such certificate")
        copies = self._copies(moment, COPY_PLACE, after, limit + 1)
        return {
            "certificate": _certificate(row),
            "copies": [copy_of(copy) for copy in copies[:limit]],
            "counts": self._counts(moment.copies, "copies"),
            "next": copies[limit - 1]["place"] if len(copies) > limit else None,
            "at": when(moment.now),
        }

    def summary(self, user_id: int, days: int) -> dict[str, Any]:
        """Return how many copies are in each state, and when what is in use ends: by certificate, in the next days."""
        moment = self._moment(user_id)
        sql, parameters = moment.copies
        ends = self._db.all(
            f"{sql} SELECT cert_id, certificate, min(ends_at) AS ends_at, count(*) AS devices,"
            " sum(CASE WHEN word = 'stuck' THEN 1 ELSE 0 END) AS stuck FROM copies"
            " WHERE ends_at >= ? AND ends_at < ? GROUP BY cert_id, certificate ORDER BY min(ends_at), cert_id LIMIT ?",
            *(*parameters, moment.now, moment.now + days * DAY, MAX_ENDS),
        )
        return {
            "copies": self._counts(moment.copies, "copies"),
            "ends": [
                {"id": row["cert_id"], "certificate": row["certificate"], "at": when(row["ends_at"])}
                | {"devices": row["devices"], "stuck": row["stuck"]}
                for row in ends
            ],
        }

    def certificates(self, user_id: int, query: Query, scope: Sequence[str] = ()) -> dict[str, Any]:
        """Return a page of certificates. ErrorResponse 400 for a query that does not fit."""
        require_user(self._db, user_id)
        _check(query, (*CERTIFICATE_WORDS, *COPY_WORDS), CERTIFICATE_SORTS)
        moment = self._moment(user_id, scope=scope)
        where, fits = self._fits(query, "id", CERTIFICATE_WORDS, of_certificates=True, scope=scope)
        rows, following = self._page(moment.certs, "certs", query, CERTIFICATE_SORTS, where, fits)
        counts = self._counts(moment.certs, "certs")
        return {
            "certificates": [_certificate(row) for row in rows],
            "total": self._total(moment.certs, "certs", where, fits) if fits else sum(counts.values()),
            "counts": counts,
            "next": following,
            "at": when(moment.now),
        }

    def _moment(self, user_id: int, *, device_id: int = 0, cert_id: int = 0, scope: Sequence[str] = ()) -> Moment:
        now = self._wall_now()
        before, believed_after = now - self._stale_seconds, now - AGE_SECONDS
        return Moment(
            user_id=user_id,
            now=now,
            stale_before=before,
            believed_after=believed_after,
            device_id=device_id,
            cert_id=cert_id,
            scope=tuple(scope),
        )

    def _devices(self, moment: Moment, rows: Sequence[Row]) -> list[dict[str, Any]]:
        ids = [row["id"] for row in rows]
        why, tags, ends = self._troubles_of(moment, ids), self._tags.of(ids), self._first_to_end(moment, ids)
        return [_device(row, why.get(row["id"]), ends.get(row["id"], ""), tags.get(row["id"], [])) for row in rows]

    def _copies(self, moment: Moment, key: str, after: int, limit: int) -> list[Row]:
        """Return copies with their ``place``, ordered by it, beyond one; ``key``: its expression."""
        sql, parameters = moment.copies
        sql = f"{sql} SELECT copies.*, {key} AS place FROM copies WHERE {key} > ? ORDER BY {key} LIMIT ?"
        return self._db.all(sql, *parameters, after, limit)

    def _fits(
        self,
        query: Query,
        column: str,
        words: Collection[str],
        *,
        of_certificates: bool = False,
        scope: Sequence[str] = (),
    ) -> tuple[str, tuple[Any, ...]]:
        """Return the condition that a row fits a query, and its parameters; a device fits with any of its copies."""
        mine, other = ("cert_id", "device_id") if of_certificates else ("device_id", "cert_id")
        parts: list[str] = []
        parameters: list[Any] = []
        if query.states:
            own = [word for word in query.states if word in words]
            copies = [word for word in query.states if word in COPY_WORDS]
            either = [f"word IN ({marks(own)})"] if own else []
            either += [f"{column} IN (SELECT {mine} FROM copies WHERE word IN ({marks(copies)}))"] if copies else []
            parts.append(f"({' OR '.join(either)})")
            parameters += [*own, *copies]
        if query.reason:
            source = "troubles"
            if of_certificates:  # troubles name the word where there is no other reason
                source = "(SELECT cert_id, CASE WHEN reason = '' THEN word ELSE reason END AS reason FROM copies) r"
            parts.append(f"{column} IN (SELECT {mine} FROM {source} WHERE reason = ?)")
            parameters.append(query.reason)
        if query.tags:
            asked = (*checked_tags(query.tags, "tag"), *scope)
            carried = carried_by(column if not of_certificates else f"a.{other}", asked)
            inner = f"SELECT a.cert_id FROM assignments a WHERE {carried}"
            parts.append(f"{column} IN ({inner})" if of_certificates else carried)
            parameters += asked
        if query.search:
            sql, found = searched(query.search, column, of_certificates=of_certificates)
            parts.append(sql)
            parameters += found
        if query.beyond:
            parts.append(f"{column} > ?")
            parameters.append(query.beyond)
        return " AND ".join(parts) or "1 = 1", tuple(parameters)

    def _page(
        self,
        source: tuple[str, tuple[Any, ...]],
        table: str,
        query: Query,
        sorts: dict[str, str],
        where: str,
        fits: tuple[Any, ...],
    ) -> tuple[list[Row], str | None]:
        """Return the rows of a page, and where the next one begins; None: this is the last."""
        sql, parameters = source
        key, begins, place = sorts[query.sort], "1 = 1", tuple[Any, ...]()
        if query.after:
            value, row_id = _place(query)
            begins, place = f"({key} > ? OR ({key} = ? AND id > ?))", (value, value, row_id)
        rows = self._db.all(
            f"{sql} SELECT {table}.*, {key} AS place FROM {table} WHERE {where} AND {begins} ORDER BY {key}, id LIMIT ?",
            *(*parameters, *fits, *place, query.limit + 1),
        )
        if len(rows) <= query.limit:
            return rows, None
        last = rows[query.limit - 1]
        return rows[: query.limit], json.dumps([query.sort, last["place"], last["id"]], separators=(",", ":"))

    def _total(self, source: tuple[str, tuple[Any, ...]], table: str, where: str, fits: tuple[Any, ...]) -> int:
        sql, parameters = source
        row = self._db.one(f"{sql} SELECT count(*) AS n FROM {table} WHERE {where}", *parameters, *fits)
        return 0 if row is None else int(row["n"])

    def _counts(self, source: tuple[str, tuple[Any, ...]], table: str) -> dict[str, int]:
        sql, parameters = source
        rows = self._db.all(f"{sql} SELECT word, count(*) AS n FROM {table} GROUP BY word", *parameters)
        return {row["word"]: row["n"] for row in sorted(rows, key=lambda row: str(row["word"]))}

    def _troubles_of(self, moment: Moment, device_ids: Sequence[int]) -> dict[int, Row]:
        """Return the worst trouble of each device that has any; of one that is not heard, that."""
        sql, parameters = moment.troubles
        wanted = f"{sql} SELECT * FROM troubles WHERE device_id IN ({marks(device_ids)})"
        rows = self._db.all(wanted, *parameters, *device_ids) if device_ids else []
        return {row["device_id"]: row for row in sorted(rows, key=lambda row: (row["word"] == STALE, _better(row)))}

    def _first_to_end(self, moment: Moment, device_ids: Sequence[int]) -> dict[int, str]:
        """Return for each device the certificate in use there that ends first."""
        sql, parameters = moment.copies
        where = f"ends_at IS NOT NULL AND device_id IN ({marks(device_ids)})"
        wanted = f"{sql} SELECT device_id, certificate FROM copies WHERE {where} ORDER BY ends_at DESC, cert_id DESC"
        rows = self._db.all(wanted, *parameters, *device_ids) if device_ids else []
        return {row["device_id"]: row["certificate"] for row in rows}


def _cause(row: Row) -> dict[str, Any]:
    what, fix = meaning(row["reason"])
    return {
        "id": cause_id(row["word"], row["step"], row["reason"]),
        "state": row["word"],
        "step": row["step"],
        "reason": row["reason"],
        "what": what,
        "fix": fix,
        "devices": row["devices"],
        "certificates": row["certificates"],
        "since": when(row["since"]),
        "ends_first": _ends_first(row["first_to_end"], row["ends_at"]),
        "example": {
            "device_id": row["device_id"],
            "device": row["device"],
            "certificate_id": row["cert_id"] or None,
            "certificate": row["certificate"],
            "message": row["detail"],
        },
    }


def _device(row: Row, trouble: Row | None, first_to_end: str, tags: Sequence[str]) -> dict[str, Any]:
    since = {
        "stale": row["last_seen_at"] or row["registered_at"],
        "degraded": row["failing_since"],
        "expected": row["created_at"],
        "revoked": row["revoked_at"],
    }
    return {
        "id": row["id"],
        "name": row["name"],
        "state": row["word"],
        "since": when(since.get(row["word"])),
        "why": None if trouble is None or row["word"] not in ("stale", "degraded") else _why(trouble),
        "ends_first": _ends_first(first_to_end, row["ends_at"]),
        "last_contact_at": when(row["last_seen_at"]),
        "agent": row["agent"],
        "tags": list(tags),
    }


def _ends_first(certificate: str, ends_at: float | None) -> dict[str, Any] | None:
    return None if ends_at is None else {"certificate": certificate, "at": when(ends_at)}


def _why(row: Row) -> dict[str, Any]:
    what, fix = meaning(row["reason"])
    return {
        "cause": cause_id(row["word"], row["step"], row["reason"]),
        "certificate": row["certificate"],
        "copy": row["word"],
        "step": row["step"],
        "reason": row["reason"],
        "what": what,
        "message": row["detail"],
        "fix": fix,
        "since": when(row["since"]),
        "attempts": row["attempts"],
    }


def _certificate(row: Row) -> dict[str, Any]:
    return {
        "id": row["id"],
        "name": row["name"],
        "state": row["word"],
        "issuer": row["issuer"],
        "ends_first_at": when(row["ends_at"]),
        "newest_ends_at": when(row["not_after"] or None),
        "devices": row["copies"],
        "newest_deployed": row["newest"],
        "newest_served": row["seen"],
        "not_served": row["not_served"],
        "stuck": row["stuck"],
        "last_proof_at": when(row["proven_at"]),
    }


def _better(row: Row) -> tuple[Any, ...]:
    """Return a key that orders troubles the other way round from ``_worst``."""
    return tuple(-value for value in _worst(row)[:3])


def _worst(row: Row) -> tuple[Any, ...]:
    """Return a key that orders troubles: expired, still served, then what ends first, then the longest."""
    return (_RANKED[row["word"]], row["ends_at"] or _LAST, row["since"] or _LAST, row["step"], row["reason"])


def _place(query: Query) -> tuple[Any, int]:
    """Return the value and id after which a page begins; ErrorResponse 400 for anything but a ``next`` of this order."""
    try:
        sort, value, row_id = json.loads(query.after)
    except (ValueError, TypeError, RecursionError):
        sort, value, row_id = "", None, 0
    if query.sort == "name":
        fits = isinstance(value, str) and value.isprintable()
    else:
        fits = type(value) in (int, float) and 0 <= value < 1e15
    if not fits or sort != query.sort or type(row_id) is not int or not 0 < row_id < 2**53:
        raise bad_request("after must be the next of a page with the same sort", field="after")
    return value, row_id


def _check(query: Query, words: Collection[str], sorts: Collection[str]) -> None:
    for word in query.states:
        _one_of(word, words, "state")
    _one_of(query.sort, sorts, "sort")
    if query.reason:
        _one_of(query.reason, REASONS, "reason")
    if not 1 <= query.limit <= MAX_PAGE:
        raise bad_request(f"limit must be 1 to {MAX_PAGE}", field="limit")


def _one_of(given: str, known: Collection[str], field: str) -> None:
    if given not in known:
        meant = nearest(given, known)
        hint = f"did you mean {meant}?" if meant else f"use {', '.join(dict.fromkeys(known))}"
        raise bad_request(f"{one_line(given, 40)!r} is not a {field}: {hint}", field=field)
