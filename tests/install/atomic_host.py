"""A host with an atomic batch: three certificates at three services, and new material for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from install_host import APPLIED, OTHER, RELOAD, Host, commands, kinds, reload

from certctrl.model.certificate import Bundle
from certctrl.model.plan import InstallItem, Outcome

WEB, MAIL = ("/bin/true", "web"), ("/bin/true", "mail")
"""Commands of two services, so that their certificates are in separate groups."""


def items_of(*services: tuple[tuple[str, ...], int]) -> list[InstallItem]:
    """Return one command per certificate, each of its own service."""
    return [item for argv, cert_id in services for item in reload(cert_id, argv=argv)]


@attrs.define
class Batch:
    """A host with three certificates at three services, and new material for them."""

    host: Host
    items: list[InstallItem]
    bundles: dict[int, Bundle]
    before: dict[int, str]

    async def switch(self, *cert_ids: int, batch: str = "b", **options: Any) -> Mapping[int, Outcome]:
        """Deliver new material as one batch; without ids, all three."""
        ids = cert_ids or tuple(self.bundles)
        prepared = [await self.host.installer.stage(self.bundles[one], self.items) for one in ids]
        found = await self.host.installer.converge(
            prepared, self.items, only=ids, together=dict.fromkeys(ids, batch), **options
        )
        self.check_whole()
        return found

    def check_whole(self) -> None:
        """Check that all live links lead to the old or all to the new certificates."""
        assert len({self.is_new(one) for one in self.bundles}) == 1

    def is_new(self, cert_id: int) -> bool:
        live = self.host.live(cert_id)
        assert live in (self.before[cert_id], self.bundles[cert_id].facts.fingerprint_sha256)
        return live != self.before[cert_id]

    def served(self, cert_id: int) -> bool:
        """Return whether the service of a certificate serves the new one."""
        return self.host.served["127.0.0.1", 1000 + cert_id].served == self.bundles[cert_id].facts.fingerprint_sha256

    def refuse(self, cert_id: int) -> None:
        """Make the service of a certificate refuse the new one."""
        service = self.host.served["127.0.0.1", 1000 + cert_id]
        service.refuses.add(self.bundles[cert_id].facts.fingerprint_sha256)

    def accept(self) -> None:
        for service in self.host.served.values():
            service.refuses.clear()


async def batch_on(host: Host, items: list[InstallItem], third: tuple[str, ...] = MAIL) -> Batch:
    """Return a host whose services have the first certificates, and new ones for them."""
    host.allow(commands=commands(RELOAD, OTHER, WEB, MAIL))
    ids, argvs = (1, 2, 3), {1: RELOAD, 2: WEB, 3: third}
    for cert_id in ids:
        host.serve(argvs[cert_id], cert_id, 1000 + cert_id)
    assert set(kinds(await host.deliver(*ids, items=items)).values()) == {APPLIED}
    return Batch(host, items, {one: host.bundle(one) for one in ids}, {one: host.live(one) for one in ids})
