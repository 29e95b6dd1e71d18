"""OrderProblems: report orders that keep failing, and issuers that cannot be used, as problems of the plane."""

from __future__ import annotations

import trio

from certctrl.errors import CertctrlError
from certctrl.plane.health.problems import ProblemName, Problems
from certctrl.plane.issuers.registry import Issuers
from certctrl.plane.orders.orders import BLOCKED, CSR_WANTED, FAILED, READY
from certctrl.plane.storage.database import Database, Row

FAILURES = 3
"""Failed attempts after which an order is a problem: fewer may be a temporary fault of the CA."""
EVERY_SECONDS = 30.0
FAILING = (
    f"((o.state = '{READY}' AND o.attempts >= {FAILURES} AND o.problem != '') OR o.state = '{BLOCKED}'"
    f" OR (o.state IN ('{READY}', '{CSR_WANTED}') AND o.refused_requests > 0 AND o.problem != '')"
    f" OR (o.state = '{FAILED}' AND o.batch != ''))"  # others wait for it
)
"""The condition that an order ``o`` keeps failing."""


class OrderProblems:
    """Keeps the problems of orders and issuers up to date, for all planes on the database."""

    def __init__(self, database: Database, problems: Problems, issuers: Issuers) -> None:
        self._db = database
        self._problems = problems
        self._issuers = issuers
        self._next = float("-inf")

    async def update(self) -> None:
        """Check the orders, unless they were checked recently."""
        if trio.current_time() < self._next:
            return
        self._next = trio.current_time() + EVERY_SECONDS
        count, worst, names = await self._db.work(self._read)
        if worst is None:
            self._problems.clear(ProblemName.ORDERS)
        else:
            what = f"order {worst['id']} ({worst['domain_name']}, issuer {worst['issuer']}): {worst['problem']}"
            self._problems.report(ProblemName.ORDERS, f"{count} orders fail; {what}" if count > 1 else what)
        await self._check_issuers(names)

    async def _check_issuers(self, names: list[str]) -> None:
        for name in names:
            try:
                await self._issuers.get(name)
            except CertctrlError as error:
                self._problems.report(ProblemName.ISSUER, f"{name}: {error}")
                return
        self._problems.clear(ProblemName.ISSUER)

    def _read(self) -> tuple[int, Row | None, list[str]]:
        """Return the number of failing orders, the oldest of them, and the names of all issuers."""
        count = self._db.one(f"SELECT count(*) AS n FROM orders o WHERE {FAILING}")
        worst = self._db.one(
            "SELECT o.id, o.issuer, o.problem, c.domain_name FROM orders o JOIN certificates c ON c.id = o.cert_id"
            f" WHERE {FAILING} ORDER BY o.id LIMIT 1"
        )
        names = [row["name"] for row in self._db.all("SELECT name FROM issuers ORDER BY name")]
        return 0 if count is None else int(count["n"]), worst, names
