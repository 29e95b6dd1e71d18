"""The script of the show: issue, deploy, serve, renew again and again, revoke one, and judge what was seen."""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import attrs
import trio

from certctrl.agent.clock import wall_now
from certctrl.errors import CommandError, ExitStatus
from certctrl.net.operator import Operator
from certctrl.sandbox.narrator import Narrator
from certctrl.sandbox.report import Figures
from certctrl.sandbox.servers import HOST, Server
from certctrl.sandbox.witness import plain_serial
from certctrl.sandbox.witness_client import Witness
from certctrl.sandbox.workspace import install_items
from certctrl.store.layout import ConfigDir

DOMAIN = "sandbox.test"
DEPLOY_SECONDS = 30.0
SERVED_SECONDS = 30.0
"""Longer than the agent's probe deadline (15 s): a rollback and a second try still count."""


@attrs.define(kw_only=True, eq=False)
class Certificate:
    """One certificate of the show."""

    id: int
    name: str
    serial: str
    """The newest one that the plane issued."""
    revoked: bool = False


@attrs.define(kw_only=True, eq=False)
class Script:
    """Plays operator and spectator; the agent and the service do their work unasked."""

    narrator: Narrator
    operator: Operator
    witness: Witness
    layout: ConfigDir
    user_id: int
    device_id: int
    certificates: list[Certificate] = attrs.field(factory=list)
    figures: Figures = attrs.field(factory=Figures)

    def names(self) -> list[str]:
        """Return every name of the show."""
        return [certificate.name for certificate in self.certificates]

    # --- before the service runs ----------------------------------------------------------------------------

    async def issue(self, count: int) -> None:
        """Have certificates issued, and give them to the device."""
        for number in range(1, count + 1):
            row = await self.operator.issue(self.user_id, f"app{number}.{DOMAIN}")
            certificate = Certificate(id=row["id"], name=row["domain_name"], serial=row["serial_number"])
            self.certificates.append(certificate)
            self._issued(certificate)
            self.narrator.tell(
                "plane",
                "issued",
                f"issued {certificate.name}, serial {certificate.serial}",
                cert_id=certificate.id,
                name=certificate.name,
                serial=certificate.serial,
            )
            await self.operator.assign(self.user_id, self.device_id, certificate.id)

    async def wait_until_deployed(self) -> None:
        """Wait until the agent has made every certificate's first generation; CommandError when it does not."""
        with trio.move_on_after(DEPLOY_SECONDS):
            while True:
                if self._deployed():
                    return
                await trio.sleep(0.02)
        raise CommandError(
            f"the agent did not deploy within {DEPLOY_SECONDS:.0f} s", fix="see what the account above says"
        )

    def _deployed(self) -> bool:
        return all(self.layout.live_link(name).exists() for name in self.names())

    # --- with the service ------------------------------------------------------------------------------------

    async def open_service(self, server: Server, *, ca_file: Path) -> None:
        """Say that the service is up, show it to the witness, and give the device its plan."""
        self.figures.service = server.kind
        text = f"{server.kind} serves {len(self.certificates)} names at {HOST}:{server.port}"
        self.narrator.tell("service", "up", text, kind=server.kind, host=HOST, port=server.port)
        await self.witness.tell(op="endpoint", host=HOST, port=server.port, ca_file=str(ca_file))
        await self.witness.tell(op="disk", live={name: str(self.layout.live_link(name)) for name in self.names()})
        items = install_items(server, {certificate.id: certificate.name for certificate in self.certificates})
        await self.operator.put_install_config(self.user_id, self.device_id, items)
        for certificate in self.certificates:
            await self._see_served(certificate)

    async def act(self, *, duration: float, every: float) -> None:
        """Renew one certificate after the other until the time is over; revoke the last one half-way."""
        began = trio.current_time()
        for number in itertools.count():
            due = began + number * every
            if duration and due >= began + duration:
                return
            await trio.sleep_until(due)
            if len(self.certificates) > 1 and not self.figures.revocations and number * every * 2 >= (duration or 20):
                await self.revoke(self.certificates[-1])
            standing = [certificate for certificate in self.certificates if not certificate.revoked]
            await self.renew(standing[number % len(standing)])

    async def renew(self, certificate: Certificate) -> None:
        """Renew one certificate and take the time until the endpoint serves it."""
        old = certificate.serial
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._see_changed, certificate, old, wall_now())
            await self.operator.renew(self.user_id, certificate.id)
            self.figures.renewals += 1
            await self._learn_serial(certificate, old)
            self.narrator.tell(
                "plane",
                "renewed",
                f"renewed {certificate.name}, serial {certificate.serial}",
                cert_id=certificate.id,
                name=certificate.name,
                serial=certificate.serial,
            )

    async def revoke(self, certificate: Certificate) -> None:
        """Revoke one certificate and see that the endpoint serves it no more."""
        certificate.revoked = True
        self.figures.revocations += 1
        await self.operator.revoke_certificate(self.user_id, certificate.id, "the show")
        self.narrator.tell(
            "plane",
            "revoked",
            f"revoked {certificate.name}, serial {certificate.serial}",
            cert_id=certificate.id,
            name=certificate.name,
            serial=certificate.serial,
        )
        answer = await self._look("gone", certificate)
        if answer["ok"]:
            self.figures.withdrawn += 1
            self.narrator.tell("witness", "gone", f"{certificate.name} is served no more", name=certificate.name)
        else:
            self._trouble("still-served", f"{certificate.name} is still served", certificate)

    # --- the end ------------------------------------------------------------------------------------------------

    async def look_again(self) -> None:
        """Revoke one now if that has not happened, and see that everything the plane issued last is served."""
        if not self.figures.revocations:
            await self.revoke(self.certificates[-1])
        for row in await self.operator.fetch_certificates(self.user_id):
            for certificate in self.certificates:
                if certificate.id == row["id"] and not certificate.revoked:
                    certificate.serial = row["serial_number"]
                    self._issued(certificate)
                    await self._see_served(certificate)

    async def conclude(self, *, interrupted: bool) -> ExitStatus:
        """Tell the figures, and judge."""
        report = await self.witness.ask(op="report")
        self.figures.pair_checks = report["checks"]
        self.figures.mismatches = report["mismatches"]
        self.figures.first_mismatch = report["first"]
        self.narrator.summary(self.figures.as_json(), self.figures.sentences())
        if self.figures.problems():
            return ExitStatus.FAILED
        return ExitStatus.INTERRUPTED if interrupted else ExitStatus.DONE

    # --- seeing ---------------------------------------------------------------------------------------------------

    def _issued(self, certificate: Certificate) -> None:
        self.figures.issued.add((certificate.id, plain_serial(certificate.serial)))

    async def _learn_serial(self, certificate: Certificate, old: str) -> None:
        """Ask the plane until it tells the serial that replaced ``old``."""
        with trio.move_on_after(SERVED_SECONDS):
            while certificate.serial == old:
                for row in await self.operator.fetch_certificates(self.user_id):
                    if row["id"] == certificate.id:
                        certificate.serial = row["serial_number"]
            self._issued(certificate)

    async def _see_changed(self, certificate: Certificate, old: str, began: float) -> None:
        before = {serial for cert_id, serial in self.figures.issued if cert_id == certificate.id} | {old}
        answer = await self._look("changed", certificate, before)
        if not answer["ok"]:
            self._trouble("not-served", f"{certificate.name}: no new serial within {SERVED_SECONDS:.0f} s", certificate)
            return
        published = self.narrator.published_at("cert.renewed")
        latency = None
        if published is not None and published > began - 1:  # not the signal of an earlier renewal
            latency = round((answer["at"] + wall_now() - time.monotonic() - published) * 1000, 2)
            self.figures.latencies_ms.append(latency)
        self._saw(certificate, answer["saw"], latency)

    async def _see_served(self, certificate: Certificate) -> None:
        seen = (certificate.id, plain_serial(certificate.serial)) in self.figures.served
        answer = await self._look("served", certificate)
        if not answer["ok"]:
            self._trouble("not-served", f"{certificate.name} serves {answer['saw'] or 'nothing'}", certificate)
        elif not seen:
            self._saw(certificate, answer["saw"], None)

    async def _look(self, op: str, certificate: Certificate, serials: Collection[str] = ()) -> dict[str, Any]:
        wanted = list(serials) or [certificate.serial]
        return await self.witness.ask(op=op, name=certificate.name, serials=wanted, within=SERVED_SECONDS)

    def _saw(self, certificate: Certificate, serial: str, latency: float | None) -> None:
        self.figures.served.add((certificate.id, serial))
        later = "" if latency is None else f", {latency:.0f} ms after the signal"
        text = f"{certificate.name}: served serial {colons(serial)}"
        self.narrator.tell(
            "witness",
            "served",
            self.narrator.strong(text) + later,
            cert_id=certificate.id,
            name=certificate.name,
            serial=colons(serial),
            latency_ms=latency,
        )

    def _trouble(self, event: str, text: str, certificate: Certificate) -> None:
        self.narrator.tell("alert", event, text, cert_id=certificate.id, name=certificate.name)


def colons(serial: str) -> str:
    """Return plain hex in the plane's form, ``04:ab:…``."""
    even = serial.zfill(len(serial) + len(serial) % 2)
    return ":".join(even[index : index + 2] for index in range(0, len(even), 2))
