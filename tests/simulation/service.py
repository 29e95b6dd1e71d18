"""Services of the simulated host, and the commands that reload them.

A service reads its files at a reload and serves them until the next; it refuses a key that does not match.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import trio
from simulation.authority import leaf_facts, leaf_of, public_half
from simulation.disk import SimulatedDisk, file_in

from certctrl.errors import ProbeError, ProbeFault
from certctrl.install.probe.looked import Leaf, Look
from certctrl.install.process.result import CommandResult
from certctrl.model.certificate import Wanted
from certctrl.model.plan import VerifyTls

RELOAD = "/bin/true"
FIRST_PORT = 10_000


@attrs.define
class Service:
    """One server; its port is `FIRST_PORT` plus the id of its certificate."""

    certificate: str
    key: str
    served: str = ""
    """Fingerprint; empty if it serves nothing."""
    reloads: int = 0
    stopped: bool = False
    """Whether it is not running; a start reads its files."""


class Services:
    """All services of the host."""

    def __init__(self, disk: Callable[[], SimulatedDisk], note: Callable[[str], None]) -> None:
        self.disk = disk
        self.note = note
        self.known: dict[int, Service] = {}
        self.failing: Callable[[], bool] = lambda: False
        self.refusing: dict[int, str] = {}
        """Services whose reloads fail -> fingerprint of the only certificate that they accept."""
        self.seconds: Callable[[], float] = lambda: 0.05
        self.mismatches: list[str] = []
        self.leaves: dict[str, Leaf] = {}
        """By fingerprint, all that services have ever served."""
        self.idle_reloads = self.looks = 0
        """Reloads after which the same certificate was served as before."""

    async def run(self, argv: Sequence[str], limit: float, dead: Callable[[], bool]) -> CommandResult:
        """Run one command; it never returns if the process that started it is killed meanwhile."""
        seconds = self.seconds()
        await trio.sleep(min(seconds, limit))
        if dead():
            await trio.sleep_forever()
        if seconds >= limit:
            return CommandResult(argv=tuple(argv), status=-15, timed_out=True, seconds=limit)
        status = 1 if self.failing() else self._reload(int(argv[-1])) if argv[1] == "reload" else 0
        self.note(f"{' '.join(argv[1:])} -> {status}")
        return CommandResult(argv=tuple(argv), status=status, output="the service refuses its files" if status else "")

    def _reload(self, cert_id: int) -> int:
        service, nodes = self.known[cert_id], self.disk().now
        service.reloads += 1
        if service.stopped:
            return 1
        pem, key = file_in(nodes, service.certificate), file_in(nodes, service.key)
        if pem is None or key is None:
            service.served = ""  # its configuration includes the files only if they exist
            return 0
        fingerprint, public = leaf_facts(pem)
        if public_half(key) != public:
            self.mismatches.append(f"service {cert_id} was reloaded with another certificate's key")
            return 3
        if self.refusing.get(cert_id, fingerprint) != fingerprint:
            return 1
        self.leaves[fingerprint] = leaf_of(pem)
        self.idle_reloads += service.served == fingerprint
        service.served = fingerprint
        return 0

    async def probe(self, verify: VerifyTls, wanted: Wanted, *, deadline: float, anywhere: bool = False) -> None:
        """Ask a simulated service what it serves (`Probe.probe`)."""
        await trio.sleep(0.01)
        service = self.known[verify.port - FIRST_PORT]
        if service.stopped or service.served not in wanted:
            await trio.sleep(max(0.0, deadline - trio.current_time()))
            raise ProbeError(f"port {verify.port} serves another certificate")

    async def look(self, verify: VerifyTls, wanted: Wanted, *, anywhere: bool = False) -> Look:
        """Look at what a simulated service serves (`Probe.look`)."""
        await trio.sleep(0.01)
        service = self.known[verify.port - FIRST_PORT]
        self.looks += 1
        if service.stopped or not service.served:
            return Look(fault=ProbeFault.REFUSED if service.stopped else ProbeFault.NO_TLS)
        if service.served in wanted:
            return Look(right=frozenset({service.served}))
        return Look(wrong=self.leaves[service.served], fault=ProbeFault.OTHER)

    async def is_down(self, host: str, port: int) -> bool:
        """Return whether a simulated service is stopped (`Probe.is_down`)."""
        await trio.sleep(0.001)
        return self.known[port - FIRST_PORT].stopped

    def refuse_renewals(self, cert_id: int) -> None:
        """Let the reloads of one service fail while it has another certificate than the served one."""
        self.refusing[cert_id] = self.known[cert_id].served

    def start(self, cert_id: int) -> None:
        """Start a service again: it reads its files, as at a reload."""
        self.known[cert_id].stopped = False
        self._reload(cert_id)

    async def after_removal(
        self, verify: VerifyTls, fingerprint: str, *, deadline: float, anywhere: bool = False
    ) -> tuple[bool, str]:
        """Ask a simulated service whether it still serves a removed leaf (`Probe.after_removal`)."""
        await trio.sleep(0.01)
        service = self.known[verify.port - FIRST_PORT]
        if service.served == fingerprint:
            await trio.sleep(max(0.0, deadline - trio.current_time()))
        still = service.served == fingerprint
        return still, f"port {verify.port} still serves it from memory" if still else ""


@attrs.frozen(eq=False)
class SimulatedProc:
    """The ``Proc`` of one agent process."""

    services: Services
    dead: Callable[[], bool]

    async def prepare(self, count: int = 1) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    async def run(self, argv: Sequence[str], **how: Any) -> CommandResult:
        return await self.services.run(argv, how["timeout"], self.dead)
