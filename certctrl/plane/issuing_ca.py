"""IssuingCa: show the built-in CA to operators, and constrain the domains for which it may issue."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from certctrl.plane.anchor import Anchor
from certctrl.plane.ca.constraints import Constraints, clean_constraints, constraints_of
from certctrl.plane.ca.issuer import BuiltinCa
from certctrl.plane.clock import when
from certctrl.plane.errors import conflict
from certctrl.plane.issuers.issuer import BUILTIN
from certctrl.plane.storage.database import Database

_MAX_NAMED = 100


class IssuingCa:
    """Shows and constrains the built-in CA."""

    def __init__(
        self, database: Database, ca: BuiltinCa, anchor: Anchor, crl_url: str, wall_now: Callable[[], float]
    ) -> None:
        self._db = database
        self._ca = ca
        self._anchor = anchor
        self._crl_url = crl_url
        self._wall_now = wall_now

    def show(self) -> dict[str, Any]:
        """Return the root and the intermediates, the current one first."""
        known = self._ca.intermediates
        found = [known.by_key_id(key_id) for key_id in known.key_ids()]
        shown = []
        for key_id, one in zip(known.key_ids(), found, strict=True):
            if one is not None:
                constraints = constraints_of(one.certificate)
                row: dict[str, Any] = {"key_id": key_id, "not_after": when(one.not_after), "certificate_pem": one.pem}
                row |= {"domains": list(constraints.domains), "networks": list(constraints.networks)}
                shown.append(row | {"crl_url": f"{self._crl_url}/{key_id}.crl" if self._crl_url else ""})
        root = {"root_sha256": self._ca.root_fingerprint, "root_pem": self._ca.root_pem}
        return root | {"crl_url": self._crl_url, "intermediates": shown}

    async def constrain(self, domains: Sequence[str], networks: Sequence[str]) -> dict[str, Any]:
        """Constrain the domains and networks to issue for, with a new intermediate; no domains: all names.

        Certificates keep their intermediates. ``outside`` lists the ids of those that can no longer be renewed.
        ErrorResponse 400, and 409 while the plane's own certificate is from this CA.
        """
        constraints = clean_constraints(domains, networks)
        if not self._anchor.switched:
            what = "The control plane's own certificate is from this CA, too; first: cert-ctrl plane tls switch"
            raise conflict(what, "CA_SHARED")
        await self._ca.constrain(constraints)
        return await self._db.work_long(self._constrained, constraints)

    def _constrained(self, constraints: Constraints) -> dict[str, Any]:
        sql = "SELECT id, sans FROM certificates WHERE status = 'active' AND issuer = ? ORDER BY id"
        rows = self._db.all(sql, BUILTIN)
        outside = [row["id"] for row in rows if constraints.forbidden(json.loads(row["sans"]))]
        return self.show() | {"outside": outside[:_MAX_NAMED], "outside_count": len(outside)}
