"""The seam between the deployment and the probe: `Probe`, and its real implementation, loaded with the first probe."""

from __future__ import annotations

from typing import Protocol

from certctrl.install.probe.looked import Look
from certctrl.model.certificate import Wanted
from certctrl.model.plan import VerifyTls


class Probe(Protocol):
    """Ask live endpoints what they serve; tests pass another one."""

    async def probe(self, verify: VerifyTls, wanted: Wanted, *, deadline: float, anywhere: bool = False) -> None:
        """Return once the endpoint serves one of these leaves; see `tls.probe_tls`."""

    async def after_removal(
        self, verify: VerifyTls, fingerprint: str, *, deadline: float, anywhere: bool = False
    ) -> tuple[bool, str]:
        """Return whether the endpoint still serves a removed leaf; see `tls.after_removal`."""

    async def is_down(self, host: str, port: int) -> bool:
        """Return whether nothing listens at an endpoint; see `tls.is_down`."""

    async def look(self, verify: VerifyTls, wanted: Wanted, *, anywhere: bool = False) -> Look:
        """Return what an endpoint serves now; see `tls.look`."""


class TlsProbe:
    """The real `Probe`: `certctrl.install.probe.tls`."""

    async def probe(self, verify: VerifyTls, wanted: Wanted, *, deadline: float, anywhere: bool = False) -> None:
        """Call `tls.probe_tls`."""
        from certctrl.install.probe import tls  # here and below: only hosts that probe need it

        await tls.probe_tls(verify, wanted, deadline=deadline, anywhere=anywhere)

    async def after_removal(
        self, verify: VerifyTls, fingerprint: str, *, deadline: float, anywhere: bool = False
    ) -> tuple[bool, str]:
        """Call `tls.after_removal`."""
        from certctrl.install.probe import tls

        return await tls.after_removal(verify, fingerprint, deadline=deadline, anywhere=anywhere)

    async def is_down(self, host: str, port: int) -> bool:
        """Call `tls.is_down`."""
        from certctrl.install.probe import tls

        return await tls.is_down(host, port)

    async def look(self, verify: VerifyTls, wanted: Wanted, *, anywhere: bool = False) -> Look:
        """Call `tls.look`."""
        from certctrl.install.probe import tls

        return await tls.look(verify, wanted, anywhere=anywhere)
