"""RenewalProblems: report certificates in use whose renewal is late, as problems and one by one in the log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import trio

from certctrl import lean
from certctrl.plane.clock import rfc3339
from certctrl.plane.health.problems import ProblemName, Problems
from certctrl.plane.issuers.registry import IMPORT
from certctrl.plane.orders.renewal_times import LATE_SHARE, Life, ending_at, late_at
from certctrl.plane.storage.database import Database, Row

EVERY_SECONDS = 30.0
_MOST = 1000
"""Most certificates that are checked; beyond them, the number in a problem is a lower bound."""
_STAGES = (ProblemName.IMPORTS_ENDING, ProblemName.RENEWALS_LATE, ProblemName.RENEWALS_ENDING)

log = logging.getLogger("certctrl.Renewals")


@lean.frozen(kw_only=True)
class LateRenewal:
    """A certificate that should have been renewed."""

    stage: ProblemName
    cert_id: int
    domain_name: str
    serial: str
    not_after: float
    why: str

    def __str__(self) -> str:
        return f"certificate {self.cert_id} ({self.domain_name}) ends at {rfc3339(self.not_after)}: {self.why}"


def late_problem_of(life: Life, now: float, *, is_imported: bool) -> ProblemName | None:
    """Return the problem of a certificate in use; None if there is none."""
    if now < late_at(life, is_imported=is_imported):
        return None
    if is_imported:
        return ProblemName.IMPORTS_ENDING
    return ProblemName.RENEWALS_ENDING if now >= ending_at(life) else ProblemName.RENEWALS_LATE


class RenewalProblems:
    """Keeps the problems of late renewals up to date; each plane reports them."""

    def __init__(self, database: Database, problems: Problems, wall_now: Callable[[], float]) -> None:
        self._db = database
        self._problems = problems
        self._wall_now = wall_now
        self._next = float("-inf")
        self._logged: set[tuple[int, str, ProblemName]] = set()

    async def update(self) -> None:
        """Check the certificates, unless they were checked recently."""
        if trio.current_time() < self._next:
            return
        self._next = trio.current_time() + EVERY_SECONDS
        late = await self._db.work_long(self.read)
        self._log(late)
        for stage in _STAGES:
            found = [one for one in late if one.stage is stage]
            if found:
                more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
                self._problems.report(stage, f"{found[0]}{more}")
            else:
                self._problems.clear(stage)

    def read(self) -> list[LateRenewal]:
        """Return the certificates on devices whose renewal is late, the most urgent first."""
        now = self._wall_now()
        rows = self._db.all(
            "SELECT c.id, c.domain_name, c.serial_number, c.issuer, c.not_before, c.not_after, o.problem, o.fix,"
            " o.id AS order_id, (SELECT min(h.rollout_id) FROM certificate_holds h WHERE h.cert_id = c.id"
            " AND h.serial_number = c.serial_number) AS rollout_id FROM certificates c"
            " LEFT JOIN orders o ON o.cert_id = c.id AND o.state IN ('csr_wanted', 'ready', 'blocked')"
            " WHERE c.status = 'active' AND c.serial_number != '' AND c.not_after - ? <= (c.not_after - c.not_before) * ?"
            " AND EXISTS (SELECT 1 FROM assignments a WHERE a.cert_id = c.id) ORDER BY c.not_after, c.id LIMIT ?",
            *(now, LATE_SHARE, _MOST),
        )
        return [late for row in rows if (late := _late(row, now)) is not None]

    def _log(self, late: Sequence[LateRenewal]) -> None:
        """Log each certificate once per stage."""
        present = {(one.cert_id, one.serial, one.stage) for one in late}
        self._logged &= present
        for one in late:
            if (one.cert_id, one.serial, one.stage) not in self._logged:
                level = logging.ERROR if one.stage is ProblemName.RENEWALS_ENDING else logging.WARNING
                log.log(level, "%s", one)
        self._logged = present


def _late(row: Row, now: float) -> LateRenewal | None:
    is_imported = row["issuer"] == IMPORT
    stage = late_problem_of(Life(row["not_before"], row["not_after"]), now, is_imported=is_imported)
    if stage is None:
        return None
    if is_imported:
        why = "it was imported: get the next one from its CA, then cert-ctrl plane import"
    elif row["order_id"] is None and row["rollout_id"] is not None:
        why = f"rollout {row['rollout_id']} is to renew it: cert-ctrl plane rollout status {row['rollout_id']}"
    elif row["order_id"] is None:
        why = "its renewal is not ordered yet"
    else:
        why = f"order {row['order_id']}: {row['problem'] or 'in progress'}"
    return LateRenewal(
        stage=stage,
        cert_id=row["id"],
        domain_name=row["domain_name"],
        serial=row["serial_number"],
        not_after=row["not_after"],
        why=why,
    )
