"""http-01 and tls-alpn-01 answered by agents, on the hosts that serve the name.

Each device gets a signal with the answer and acknowledges it; the CA validates once all of them have. Answers are
recorded in the table ``host_challenges``, so that they are withdrawn even if the plane crashes in between: by the next
attempt of the order, or by housekeeping once they have expired. Agents drop expired answers on their own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

from certctrl import lean
from certctrl.model.challenges import identifier_fault, key_authorization_fault, token_fault
from certctrl.model.features import ACME_HTTP01, ACME_TLS_ALPN01
from certctrl.model.plan import OutcomeKind
from certctrl.model.signals import AcmeHttp01Start, AcmeHttp01Stop, AcmeTlsAlpn01Start, AcmeTlsAlpn01Stop
from certctrl.plane.challenges.solver import HTTP_01, TLS_ALPN_01, Failures, Proof
from certctrl.plane.devices.features import announced
from certctrl.plane.issuers.issuer import IssuerError
from certctrl.plane.storage.database import Database, Row, marks
from certctrl.plane.storage.signal_stream import SignalStream
from certctrl.text import one_line

ANSWER_SECONDS = 1800.0
"""Lifetime of an answer at a host that receives no stop."""
WAIT_SECONDS = 180.0
MAX_DEVICES = 100
"""Devices that answer for one name."""
SKEW_SECONDS = 3600.0
"""Allowed clock difference between planes on one database; signal times, which are compared, only grow."""
FIRST_PAUSE = 0.05
MAX_PAUSE = 1.0
_MAX_NAMED = 5

START = {HTTP_01: AcmeHttp01Start.type, TLS_ALPN_01: AcmeTlsAlpn01Start.type}
STOP = {HTTP_01: AcmeHttp01Stop.type, TLS_ALPN_01: AcmeTlsAlpn01Stop.type}
FEATURE = {HTTP_01: ACME_HTTP01, TLS_ALPN_01: ACME_TLS_ALPN01}
_SETTING = {HTTP_01: "acme.http01_directory or acme.http01_listen", TLS_ALPN_01: "acme.tls_alpn01_listen"}
_DONE = frozenset({OutcomeKind.APPLIED.value, OutcomeKind.UNCHANGED.value})
_REPLACED = OutcomeKind.SUPERSEDED.value
"""The outcome of a start that another order's start for the same token replaced."""


@lean.frozen(kw_only=True)
class Sent:
    """A start signal that was sent to a device."""

    device: str
    """Its name, for messages."""
    device_id: int
    kind: str
    token: str
    ts_ms: int


class HostSolver:
    """Answers one kind of challenge through the agents of devices."""

    def __init__(
        self,
        kind: str,
        database: Database,
        stream: SignalStream,
        wall_now: Callable[[], float],
        *,
        user_id: int,
        devices: Sequence[str] = (),
        wait_seconds: float = WAIT_SECONDS,
        explain: Callable[[Proof], Awaitable[str]] | None = None,
    ) -> None:
        """``user_id``: the certificate's user; devices of others prove nothing for it.

        ``devices``: ids or names of the devices that answer; empty: all with a certificate for the name.
        """
        self.kinds: tuple[str, ...] = (kind,)
        self._kind = kind
        self._db = database
        self._stream = stream
        self._wall_now = wall_now
        self._user_id = user_id
        self._devices = tuple(devices)
        self._wait_seconds = wait_seconds
        self._explain = explain

    def solves(self, kind: str, identifier: str, wildcard: bool) -> bool:
        """Return whether the challenge is of this kind; hosts cannot prove wildcards."""
        return kind == self._kind and not wildcard

    async def present(self, proofs: Sequence[Proof]) -> None:
        """Make the devices answer, and wait until all of them do. Raises IssuerError with the device and its reason."""
        since = self._wall_now() - SKEW_SECONDS
        waiting = await self._db.work_long(self._start, proofs)  # scans all certificates
        pause, deadline = FIRST_PAUSE, trio.current_time() + self._wait_seconds
        while waiting:
            waiting, refusals = await self._db.work(self._unanswered, waiting, since)
            if refusals:
                raise refusals[0]
            left = deadline - trio.current_time() if waiting else self._wait_seconds
            if left <= 0:
                raise self._silent(waiting)
            if waiting:
                await trio.sleep(min(pause, left))
                pause = min(pause * 1.5, MAX_PAUSE)

    async def clean_up(self, proofs: Sequence[Proof]) -> Failures:
        """Stop the answers."""
        await self._db.work(stop_answers, self._db, self._stream, [proof.token for proof in proofs])
        return {}

    async def explain(self, proof: Proof) -> str:
        """Return which devices answered, and what each address of the name answers."""
        names = await self._db.work(self._answering, proof.token)
        said = f"answered by {_listed(names)}" if names else "no device answers any longer"
        seen = await self._explain(proof) if self._explain is not None else ""
        return f"{said}; {seen}" if seen else said

    # --- in units of work ---------------------------------------------------------------------------------------

    def _start(self, proofs: Sequence[Proof]) -> list[Sent]:
        """Send the starts of all proofs, or raise IssuerError before any is sent."""
        for proof in proofs:
            _check(proof)
        chosen = [(proof, self._devices_for(proof.identifier)) for proof in proofs]
        for _, devices in chosen:
            for device in devices:
                self._require_able(device)
        pairs = [(proof, device) for proof, devices in chosen for device in devices]
        pairs.sort(key=lambda pair: int(pair[1]["id"]))  # lock streams in a fixed order, to avoid deadlocks
        return [self._send(proof, device) for proof, device in pairs]

    def _send(self, proof: Proof, device: Row) -> Sent:
        now = self._wall_now()
        expires = now + ANSWER_SECONDS
        ref = {
            "token": proof.token,
            "key_authorization": proof.key_authorization,
            "identifier": proof.identifier,
            "expires_ms": int(expires * 1000),
        }
        ts_ms = self._stream.append(device["id"], START[proof.kind], ref)
        self._db.run(
            "INSERT INTO host_challenges (device_id, token, kind, identifier, key_authorization, created_at, expires_at,"
            " sent_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (device_id, token) DO UPDATE SET"
            " expires_at = excluded.expires_at, sent_ms = excluded.sent_ms, ready_at = NULL, problem = ''",
            *(device["id"], proof.token, proof.kind, proof.identifier, proof.key_authorization, now, expires, ts_ms),
        )
        return Sent(device=_name(device), device_id=device["id"], kind=proof.kind, token=proof.token, ts_ms=ts_ms)

    def _unanswered(self, sent: Sequence[Sent], since: float) -> tuple[list[Sent], list[IssuerError]]:
        """Return the starts without an outcome, and the refusals and failures of devices."""
        outcomes = self._outcomes({one.device_id for one in sent}, since)
        left, refusals = [], []
        for one in sent:
            found = outcomes.get((one.device_id, one.token), {})
            outcome, detail = found.get(one.ts_ms, ("", ""))
            later = [done for ts_ms, (done, _) in found.items() if ts_ms >= one.ts_ms]  # may belong to another order
            if not _DONE.isdisjoint(later):
                self._note(one, "ready_at = ?", self._wall_now())
            elif outcome in ("", _REPLACED):
                left.append(one)
            else:
                self._note(one, "problem = ?", detail)
                refusals.append(self._refused(one, outcome, detail))
        return left, refusals

    def _outcomes(self, device_ids: set[int], since: float) -> dict[tuple[int, str], dict[int, tuple[str, str]]]:
        """Return outcome and detail of starts by device and token, then by ``ts_ms``."""
        rows = self._db.all(
            f"SELECT device_id, ts_ms, ref, outcome, detail FROM outcomes WHERE device_id IN ({marks([*device_ids])})"
            " AND at >= ? AND type = ? ORDER BY device_id, at",
            *(*sorted(device_ids), since, START[self._kind]),
        )
        found: dict[tuple[int, str], dict[int, tuple[str, str]]] = {}
        for row in rows:
            token = str(json.loads(row["ref"]).get("token"))
            found.setdefault((row["device_id"], token), {})[row["ts_ms"]] = (row["outcome"], row["detail"])
        return found

    def _note(self, one: Sent, assignment: str, value: Any) -> None:
        sql = f"UPDATE host_challenges SET {assignment} WHERE device_id = ? AND token = ?"
        self._db.run(sql, value, one.device_id, one.token)

    def _answering(self, token: str) -> list[str]:
        rows = self._db.all(
            "SELECT d.id, d.name FROM host_challenges h JOIN devices d ON d.id = h.device_id"
            " WHERE h.token = ? AND h.ready_at IS NOT NULL ORDER BY d.id",
            token,
        )
        return [_name(row) for row in rows]

    def _devices_for(self, identifier: str) -> list[Row]:
        """Return the devices that answer for a name. Raises IssuerError if there is none."""
        devices = self._named() if self._devices else self._serving(identifier)
        if not devices:
            raise IssuerError(
                f"no active device has a certificate for {identifier}, so none can answer the {self._kind} challenge",
                fix=f'assign the certificate to the devices that serve {identifier}, or list them as "devices" in the'
                " entry of challenges",
            )
        if len(devices) > MAX_DEVICES:
            raise IssuerError(
                f"{len(devices)} devices have a certificate for {identifier}, more than {MAX_DEVICES}",
                fix='list those that answer as "devices" in the entry of challenges',
                is_permanent=True,
            )
        return devices

    def _named(self) -> list[Row]:
        found: dict[int, Row] = {}
        for given in self._devices:
            number = int(given) if given.isascii() and given.isdecimal() and len(given) < 16 else 0
            rows = self._db.all(
                "SELECT * FROM devices WHERE (id = ? OR name = ? OR device_public_id = ?) AND status = 'active'"
                " AND user_id = ? ORDER BY id",
                *(number, given, given, self._user_id),
            )
            if not rows:
                raise IssuerError(
                    f"user {self._user_id}, whose certificate it is, has no active device {one_line(given, 60)}, which an"
                    " entry of challenges names",
                    fix=f"see `cert-ctrl plane devices --user {self._user_id}`, and correct the entry",
                    is_permanent=True,
                )
            found |= {row["id"]: row for row in rows}
        return [*found.values()]

    def _serving(self, identifier: str) -> list[Row]:
        rows = self._db.all(
            "SELECT id, sans FROM certificates WHERE user_id = ? AND sans LIKE ?", self._user_id, f'%"{identifier}"%'
        )
        ids = [row["id"] for row in rows if identifier in json.loads(row["sans"])]
        found: dict[int, Row] = {}
        for start in range(0, len(ids), 500):
            some = ids[start : start + 500]
            sql = f"SELECT device_id FROM assignments WHERE cert_id IN ({marks(some)})"
            devices = (
                f"SELECT * FROM devices WHERE status = 'active' AND user_id = ? AND id IN ({sql}) ORDER BY id LIMIT ?"
            )
            found |= {row["id"]: row for row in self._db.all(devices, self._user_id, *some, MAX_DEVICES + 1)}
        return [*found.values()]

    def _require_able(self, device: Row) -> None:
        """Raise IssuerError unless the agent of a device has announced this kind of challenge."""
        if FEATURE[self._kind] not in announced(device):
            raise IssuerError(
                f"device {_name(device)} does not answer {self._kind} challenges: its agent has not announced it",
                fix=f"set {_SETTING[self._kind]} in policy.json of that host and reload its agent, or update the agent",
            )

    def _refused(self, one: Sent, outcome: str, detail: str) -> IssuerError:
        says = one_line(detail, 300) or outcome
        return IssuerError(
            f"device {one.device} does not answer the {one.kind} challenge ({outcome}): {says}",
            fix="fix the reason on that host; the order is tried again",
        )

    def _silent(self, waiting: Sequence[Sent]) -> IssuerError:
        names = _listed([*dict.fromkeys(one.device for one in waiting)])
        return IssuerError(
            f"no answer within {math.ceil(self._wait_seconds)} s from {names}, to whom the {self._kind} challenge was sent",
            fix="check on that host that the agent runs and reaches the control plane: cert-ctrl status",
        )


def stop_answers(database: Database, stream: SignalStream, tokens: Sequence[str]) -> int:
    """Stop all answers with these tokens, and return how many stops were sent. Runs in a unit of work."""
    rows = [
        (row["device_id"], token, row["kind"])
        for token in dict.fromkeys(tokens)
        for row in database.all("SELECT device_id, kind FROM host_challenges WHERE token = ?", token)
    ]
    for device_id, token, kind in sorted(rows):
        stream.append(device_id, STOP[kind], {"token": token})
        database.run("DELETE FROM host_challenges WHERE device_id = ? AND token = ?", device_id, token)
    return len(rows)


def stop_expired(database: Database, stream: SignalStream, now: float) -> int:
    """Stop expired answers that no order has stopped, such as those of a crashed plane. Runs in a unit of work."""
    rows = database.all("SELECT DISTINCT token FROM host_challenges WHERE expires_at <= ? LIMIT 1000", now)
    return stop_answers(database, stream, [row["token"] for row in rows])


def _check(proof: Proof) -> None:
    """Raise IssuerError unless agents accept the CA's token and the key authorization made from it."""
    faults = {
        "token": token_fault(proof.token),
        "key authorization": key_authorization_fault(proof.token, proof.key_authorization),
        "identifier": identifier_fault(proof.identifier),
    }
    for what, fault in faults.items():
        if fault:
            raise IssuerError(
                f"the {what} of the challenge for {one_line(proof.identifier, 100)} cannot be sent to a host: {fault}",
                fix="use another type of challenge for this name",
                is_permanent=True,
            )


def _name(device: Row) -> str:
    return one_line(device["name"], 60) or str(device["id"])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f"{', '.join(names[:_MAX_NAMED])}{more}"
