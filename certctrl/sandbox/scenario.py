"""The scenario: issue, deploy, serve, renew repeatedly, revoke one, and judge what the witness saw."""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import attrs
import trio

from certctrl import lean
from certctrl.agent.clock import wall_now
from certctrl.errors import CommandError, ExitStatus
from certctrl.net.operator import Operator
from certctrl.sandbox.narrator import Narrator
from certctrl.sandbox.report import Report
from certctrl.sandbox.serials import colons, short_serial
from certctrl.sandbox.servers import HOST, Server
from certctrl.sandbox.witness import NOTHING, plain_serial
from certctrl.sandbox.witness_client import WitnessClient
from certctrl.sandbox.workspace import install_items
from certctrl.store.layout import ConfigDir

DOMAIN = "sandbox.test"
DEPLOY_SECONDS = 30.0
SERVED_SECONDS = 30.0
"""Longer than the agent's probe deadline (15 s), so that a rollback and a second try still count."""


def names_of(count: int) -> list[str]:
    """Return the names of this many certificates."""
    return [f"app{number}.{DOMAIN}" for number in range(1, count + 1)]


@lean.define(kw_only=True, eq=False)
class Certificate:
    """One certificate of the run."""

    id: int
    name: str
    serial: str
    """The serial that the plane issued last."""
    revoked: bool = False


@lean.define(kw_only=True, eq=False)
class Scenario:
    """Acts as the operator and evaluates the witness; agent and service work on their own."""

    narrator: Narrator
    operator: Operator
    witness: WitnessClient
    layout: ConfigDir
    user_id: int
    device_id: int
    certificates: list[Certificate] = attrs.field(factory=list)
    report: Report = attrs.field(factory=Report)

    def names(self) -> list[str]:
        """Return the names of all certificates."""
        return [certificate.name for certificate in self.certificates]

    # --- before the service runs ----------------------------------------------------------------------------

    async def issue(self, count: int) -> None:
        """Issue certificates and assign them to the device."""
        for name in names_of(count):
            row = await self.operator.issue(self.user_id, name)
            certificate = Certificate(id=row["id"], name=row["domain_name"], serial=row["serial_number"])
            self.certificates.append(certificate)
            self._record_issued(certificate)
            self._plane_did("issued", certificate)
            await self.operator.assign(self.user_id, self.device_id, certificate.id)

    async def issue_with_agent(self, count: int) -> None:
        """Issue certificates that need a running agent: here none."""

    async def wait_until_deployed(self) -> None:
        """Wait until each certificate has its first generation; raises CommandError after ``DEPLOY_SECONDS``."""
        with trio.move_on_after(DEPLOY_SECONDS):
            while True:
                if self._deployed():
                    return
                await trio.sleep(0.02)
        raise CommandError(f"the agent did not deploy within {DEPLOY_SECONDS:.0f} s", fix="check the lines above")

    def _deployed(self) -> bool:
        return all(self.layout.live_link(name).exists() for name in self.names())

    # --- with the service ------------------------------------------------------------------------------------

    async def open_service(self, server: Server, *, ca_file: Path) -> None:
        """Report that the service is up, start the witness on it, and put the device's install config."""
        self.report.service = server.kind
        text = f"{server.label} serves {len(self.certificates)} names at {HOST}:{server.port}"
        self.narrator.write("service", "up", text, kind=server.kind, host=HOST, port=server.port)
        await self.witness.send(op="endpoint", host=HOST, port=server.port, ca_file=str(ca_file))
        await self.witness.send(op="disk", live={name: str(self.layout.live_link(name)) for name in self.names()})
        items = install_items(server, {certificate.id: certificate.name for certificate in self.certificates})
        await self.operator.put_install_config(self.user_id, self.device_id, items)
        for certificate in self.certificates:
            await self._expect_served(certificate)

    async def act(self, *, duration: float, every: float) -> None:
        """Renew the certificates in turn for ``duration`` seconds (0: forever); revoke the last one half-way."""
        began = trio.current_time()
        for number in itertools.count():
            due = began + number * every
            if duration and due >= began + duration:
                return
            await trio.sleep_until(due)
            if len(self.certificates) > 1 and not self.report.revocations and number * every * 2 >= (duration or 20):
                await self.revoke(self.certificates[-1])
            active = [certificate for certificate in self.certificates if not certificate.revoked]
            await self.renew(active[number % len(active)])

    async def renew(self, certificate: Certificate) -> None:
        """Renew one certificate and measure the time until the endpoint serves it."""
        old = certificate.serial
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._expect_changed, certificate, old, wall_now())
            await self.operator.renew(self.user_id, certificate.id)
            self.report.renewals += 1
            await self._fetch_serial(certificate, old)
            self._plane_did("renewed", certificate)

    async def revoke(self, certificate: Certificate) -> None:
        """Revoke one certificate and wait until the endpoint no longer serves it."""
        certificate.revoked = True
        self.report.revocations += 1
        await self.operator.revoke_certificate(self.user_id, certificate.id, "sandbox scenario")
        self._plane_did("revoked", certificate)
        answer = await self._ask("gone", certificate)
        if answer["ok"]:
            self.report.withdrawn += 1
            self.narrator.write("witness", "gone", f"{certificate.name} is no longer served", name=certificate.name)
        else:
            self._alert("still-served", f"{certificate.name} is still served", certificate)

    # --- the end ------------------------------------------------------------------------------------------------

    async def check_all(self) -> None:
        """Revoke one certificate if none is revoked yet, and check that each latest serial is served."""
        if not self.report.revocations:
            await self.revoke(self.certificates[-1])
        for row in await self.operator.fetch_certificates(self.user_id):
            for certificate in self.certificates:
                if certificate.id == row["id"] and not certificate.revoked:
                    certificate.serial = row["serial_number"]
                    self._record_issued(certificate)
                    await self._expect_served(certificate)

    async def conclude(self, *, interrupted: bool) -> ExitStatus:
        """Write the summary and return the verdict."""
        disk = await self.witness.ask(op="report")
        self.report.pair_checks = disk["checks"]
        self.report.mismatches = disk["mismatches"]
        self.report.first_mismatch = disk["first"]
        self.narrator.summary(self.report.as_json(), self.report.sentences(interrupted=interrupted))
        if self.report.problems():
            return ExitStatus.FAILED
        return ExitStatus.INTERRUPTED if interrupted else ExitStatus.DONE

    # --- observing ---------------------------------------------------------------------------------------------------

    def _plane_did(self, event: str, certificate: Certificate) -> None:
        self.narrator.write(
            "plane",
            event,
            f"{event} {certificate.name}, serial {short_serial(certificate.serial)}",
            cert_id=certificate.id,
            name=certificate.name,
            serial=certificate.serial,
        )

    def _record_issued(self, certificate: Certificate) -> None:
        self.report.issued.add((certificate.id, plain_serial(certificate.serial)))

    async def _fetch_serial(self, certificate: Certificate, old: str) -> None:
        """Ask the plane until it returns the serial that replaced ``old``."""
        with trio.move_on_after(SERVED_SECONDS):
            while certificate.serial == old:
                for row in await self.operator.fetch_certificates(self.user_id):
                    if row["id"] == certificate.id:
                        certificate.serial = row["serial_number"]
            self._record_issued(certificate)

    async def _expect_changed(self, certificate: Certificate, old: str, began: float) -> None:
        before = {serial for cert_id, serial in self.report.issued if cert_id == certificate.id} | {old}
        answer = await self._ask("changed", certificate, before)
        if not answer["ok"]:
            self._alert("not-served", f"{certificate.name}: no new serial within {SERVED_SECONDS:.0f} s", certificate)
            return
        published = self.narrator.published_at("cert.renewed")
        latency = None
        if published is not None and published > began - 1:  # not the signal of an earlier renewal
            latency = round((answer["at"] + wall_now() - time.monotonic() - published) * 1000, 2)
            self.report.latencies_ms.append(latency)
        self._record_served(certificate, answer["saw"], latency)

    async def _expect_served(self, certificate: Certificate) -> None:
        seen = (certificate.id, plain_serial(certificate.serial)) in self.report.served
        answer = await self._ask("served", certificate)
        if not answer["ok"]:
            saw = answer["saw"]
            seen_text = (saw or "nothing") if saw in NOTHING else short_serial(saw)
            self._alert("not-served", f"{certificate.name} serves {seen_text}", certificate)
        elif not seen:
            self._record_served(certificate, answer["saw"], None)

    async def _ask(self, op: str, certificate: Certificate, serials: Collection[str] = ()) -> dict[str, Any]:
        wanted = list(serials) or [certificate.serial]
        return await self.witness.ask(op=op, name=certificate.name, serials=wanted, within=SERVED_SECONDS)

    def _record_served(self, certificate: Certificate, serial: str, latency: float | None) -> None:
        self.report.served.add((certificate.id, serial))
        later = "" if latency is None else f" after {latency:.0f} ms"
        self.narrator.write(
            "witness",
            "served",
            f"{certificate.name} serves {short_serial(serial)}{later}",
            cert_id=certificate.id,
            name=certificate.name,
            serial=colons(serial),
            latency_ms=latency,
        )

    def _alert(self, event: str, text: str, certificate: Certificate) -> None:
        self.narrator.write("alert", event, text, cert_id=certificate.id, name=certificate.name)
