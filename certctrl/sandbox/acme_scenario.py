"""The scenario of `sandbox --acme`: order from an ACME authority and wait for renewals by time.

The agent answers the challenges. The plane renews without a request, after half of a certificate's life or in the
window that the authority suggests.
"""

from __future__ import annotations

from typing import Any

import attrs
import trio

from certctrl import lean
from certctrl.errors import CommandError
from certctrl.model.features import ACME_HTTP01
from certctrl.sandbox.acme_ca import AcmeCa
from certctrl.sandbox.scenario import Certificate, Scenario, names_of

ISSUER = "acme"
ISSUE_SECONDS = 60.0
RENEWAL_SECONDS = 150.0
"""Longest wait for a renewal: half of a life, and the plane's pauses."""
_LOOK_SECONDS = 0.3


@lean.define(kw_only=True, eq=False)
class AcmeScenario(Scenario):
    """Acts as the operator; agent, plane and authority do the rest."""

    ca: AcmeCa
    renewed: set[int] = attrs.field(factory=set)
    """Ids of the certificates that were renewed."""

    async def issue(self, count: int) -> None:
        """Add the issuer; certificates are ordered later, when the agent runs and can answer challenges."""
        settings = {
            "terms_agreed": True,
            "budget": "unlimited",
            "challenges": [{"type": "agent-http"}],
            **self.ca.settings,
        }
        body = {"name": ISSUER, "kind": "acme", "settings": settings}
        await self.operator.call("POST", "/apiv1/issuers", json=body)
        text = f"issuer {ISSUER} is {self.ca.label} at {self.ca.settings['directory_url']}"
        self.narrator.write("plane", "issuer", text, url=self.ca.settings["directory_url"])

    async def issue_with_agent(self, count: int) -> None:
        """Order all certificates, assigned to the device, and wait until they are issued."""
        with trio.move_on_after(ISSUE_SECONDS):
            await self._wait_for_feature()
            for name in names_of(count):
                options: dict[str, Any] = {"device_ids": [self.device_id], "issuer": ISSUER, "key_origin": "device"}
                row = await self.operator.issue(self.user_id, name, **options)
                self.certificates.append(Certificate(id=row["id"], name=name, serial=""))
                self.narrator.write("plane", "ordered", f"ordered {name}", name=name, cert_id=row["id"])
            while not all(certificate.serial for certificate in self.certificates):
                await self._note_issued()
                await trio.sleep(_LOOK_SECONDS)
            return
        raise CommandError(f"not issued within {ISSUE_SECONDS:.0f} s: {await self._why()}", fix="check the lines above")

    async def act(self, *, duration: float, every: float) -> None:
        """Wait until each certificate was renewed by time, and at least for ``duration`` seconds (0: forever)."""
        began = trio.current_time()
        with trio.move_on_after(max(duration, RENEWAL_SECONDS) if duration else float("inf")):
            while True:
                await self._note_issued()
                done = self.renewed >= {certificate.id for certificate in self.certificates}
                if duration and done and trio.current_time() >= began + duration:
                    return
                await trio.sleep(_LOOK_SECONDS)
        self.report.overdue += [one.name for one in self.certificates if one.id not in self.renewed]

    async def _wait_for_feature(self) -> None:
        path = f"/apiv1/users/{self.user_id}/devices/{self.device_id}"
        while True:
            if ACME_HTTP01 in (await self.operator.call("GET", path))["features"]:
                return
            await trio.sleep(_LOOK_SECONDS)

    async def _note_issued(self) -> None:
        """Record new serials, and let the witness check that the endpoint serves renewed ones."""
        rows = {row["id"]: row for row in await self.operator.fetch_certificates(self.user_id)}
        for certificate in self.certificates:
            serial, before = str(rows[certificate.id]["serial_number"]), certificate.serial
            if serial in ("", before):
                continue
            certificate.serial = serial
            self._record_issued(certificate)
            self._plane_did("renewed" if before else "issued", certificate)
            if before:
                self.renewed.add(certificate.id)
                self.report.renewals += 1
                await self._expect_served(certificate)

    async def _why(self) -> str:
        orders: list[dict[str, Any]] = await self.operator.call("GET", f"/apiv1/users/{self.user_id}/orders?open=1")
        return "; ".join(one["problem"] for one in orders if one["problem"]) or "the orders are still open"
