"""Operators at the plane: certificates, assignments, install configs, backups; and the state the host must reach."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Awaitable, Callable
from typing import Any

from simulation.authority import POISON, ca, leaf_facts
from simulation.batchauditor import renew_together
from simulation.disk import file_in, names_in
from simulation.service import FIRST_PORT, RELOAD, Service
from simulation.world import COPIES, DEVICE, MOST_CERTIFICATES, TRUSTED, USER, World

from certctrl.agent.alerts import problem_key
from certctrl.agent.context import Agent
from certctrl.agent.reconcile import UNKNOWN_CAS
from certctrl.agent.standing import MASS, UNKNOWN
from certctrl.model.records import Standing
from certctrl.plane.core import Plane
from certctrl.plane.errors import ErrorResponse

Action = tuple[float, Callable[[], Awaitable[Any]]]
REMAINING = ("alert:revoked:", "disk", "local-installs")
"""Problems that may remain: a revocation while the plane lists it; file problems until the next access."""
VALIDITY = 200 * 86_400


class Operators:
    """Operators' actions at the plane."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self.world, self.chance = world, chance
        self.backup: bytes | None = None
        self.backup_version = 1
        self.restored = False
        self.configured: list[int] = []
        self.bad_configs = 0

    @property
    def plane(self) -> Plane:
        return self.world.plane

    def actions(self) -> list[Action]:
        """Return the possible actions with their weights."""
        return [
            (3, self.issue), (5, self.renew), (1.5, self.renew_together), (1.5, self.revoke), (1.5, self.unassign), (1.5, self.assign),
            (3, self.configure), (0.7, self.configure_badly), (0.7, self.ask_for_resync), (1, self.trim),
            (1, self.send_unknown), (1, self.send_malformed), (1, self.send_again), (0.7, self.burst),
            (1, self.assign_ca), (1, self.unassign_ca), (1, self.back_up), (0.4, self.restore), (0.3, self.revoke_device),
        ]  # fmt: skip

    async def begin(self) -> None:
        """Issue the first certificates and publish an install config."""
        for _ in range(self.chance.choice((1, 1, 2, 3))):
            await self.issue()
        await self.configure()

    # --- certificates -----------------------------------------------------------------------------------------

    def certificates(self, *statuses: str) -> list[dict[str, Any]]:
        found = self.plane.certificates.page_of_user(USER, 0, 500)
        return [one for one in found if not statuses or one["status"] in statuses]

    async def issue(self) -> None:
        number = self.world.issuer.count + 1
        if len(self.certificates()) >= MOST_CERTIFICATES // 2:
            return
        prefix = POISON if self.chance.random() < 0.1 else "c"
        made = await self.plane.certificates.issue(
            USER, [f"{prefix}{number}.example"], validity_seconds=VALIDITY, device_ids=[DEVICE]
        )
        self.introduce(made["id"], made["domain_name"])

    def introduce(self, cert_id: int, domain: str) -> None:
        """Set up the service of a certificate; those with an even id read copies."""
        certs = self.world.layout.certs
        paths = (f"{certs}/{domain}.crt", f"{certs}/{domain}.key")
        if cert_id % 2 == 0:
            paths = (f"{COPIES}/{cert_id}.pem", f"{COPIES}/{cert_id}.key")
        self.world.services.known[cert_id] = Service(*paths)

    async def _with_one(self, call: Callable[[int], Awaitable[Any]], *statuses: str) -> None:
        if found := self.certificates(*statuses):
            with contextlib.suppress(ErrorResponse):  # not assigned, or revoked meanwhile
                await call(self.chance.choice(found)["id"])

    async def renew(self) -> None:
        await self._with_one(lambda cert_id: self.plane.certificates.renew(USER, cert_id), "active")

    async def renew_together(self) -> None:
        """Renew some certificates of the host as one atomic batch."""
        found = [one["id"] for one in self.certificates("active") if DEVICE in one["device_ids"]]
        if len(found) > 1:
            chosen = self.chance.sample(found, self.chance.randint(2, min(4, len(found))))
            with contextlib.suppress(ErrorResponse):
                await renew_together(self.world, chosen, VALIDITY)

    async def revoke(self) -> None:
        await self._with_one(lambda cert_id: self.plane.certificates.revoke(USER, cert_id), "active")

    async def assign(self) -> None:
        await self._with_one(lambda cert_id: self.plane.certificates.assign(USER, DEVICE, cert_id), "active")

    async def unassign(self) -> None:
        await self._with_one(lambda cert_id: self.plane.certificates.unassign(USER, DEVICE, cert_id))

    async def burst(self) -> None:
        """Renew all active certificates, some of them twice."""
        for one in self.certificates("active"):
            for _ in range(self.chance.choice((1, 1, 2))):
                await self.plane.certificates.renew(USER, one["id"])

    # --- install configs ----------------------------------------------------------------------------------------

    def items(self, cert_ids: list[int]) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        for n in cert_ids:
            about = {"ob_type": "cert", "ob_id": n}
            verify = {"type": "tls", "host": "127.0.0.1", "port": FIRST_PORT + n}
            reload = {"id": f"r{n}", "type": "exec", "cmd_argv": [RELOAD, "reload", str(n)], "verify": verify, **about}
            if n % 2 == 0:
                reload["depends_on"] = [f"c{n}"]
                to = [f"{COPIES}/{n}.pem", f"{COPIES}/{n}.key"]
                items.append(
                    {"id": f"c{n}", "type": "copy", "from": ["fullchain.pem", "private.key"], "to": to, **about}
                )
            items.append(reload)
        return items

    async def configure(self) -> None:
        """Publish an install config for some of the certificates."""
        known = [one["id"] for one in self.certificates()]
        self.configured = sorted(self.chance.sample(known, self.chance.randint(0, len(known))))
        items = self.items(self.configured)
        if self.chance.random() < 0.2:
            items.append({"id": "no", "type": "exec", "cmd_argv": ["/bin/false", "forbidden"]})
        if self.chance.random() < 0.1 and known:
            about = {"ob_type": "cert", "ob_id": known[0]}
            items.append({"id": "no2", "type": "copy", "from": ["chain.pem"], "to": ["/etc/forbidden.pem"], **about})
        await self.plane.installs.put(DEVICE, items)

    async def configure_badly(self) -> None:
        """Publish a config that is refused, as a whole (an id used twice) and in one item (its type) by turns."""
        self.bad_configs += 1
        await self.plane.installs.put(
            DEVICE, [{"id": "x", "type": "teleport"}] * (1 + self.bad_configs % 2), check=False
        )

    # --- the stream -----------------------------------------------------------------------------------------------

    async def _send(self, kind: str, ref: dict[str, Any]) -> None:
        with self.plane.database.transaction():
            self.plane.stream.append(DEVICE, kind, ref)

    async def ask_for_resync(self) -> None:
        await self.plane.resync(USER, DEVICE, "simulated")

    async def trim(self) -> None:
        self.plane.stream.trim(DEVICE, self.chance.choice((0, 1, 3)))

    async def send_unknown(self) -> None:
        await self._send(f"future.kind{self.chance.randint(1, 3)}", {"cert_id": 1})

    async def send_malformed(self) -> None:
        ref: Any = self.chance.choice([{}, {"cert_id": -1}, {"cert_id": "x"}, {"cert_id": 2**70}])
        await self._send(self.chance.choice(("cert.renewed", "install.updated", "cert.revoked")), ref)

    async def send_again(self) -> None:
        """Send a signal that is out of date or was never true: signals are hints."""
        kind = self.chance.choice(("cert.renewed", "cert.updated", "cert.revoked", "cert.unassigned"))
        await self._send(kind, {"cert_id": self.chance.randint(1, 6)})

    # --- CAs ----------------------------------------------------------------------------------------------------------

    async def assign_ca(self) -> None:
        """Assign one of two CAs to the host."""
        known = [one["id"] for one in self.plane.authorities.show_all(USER)]
        if len(known) < 2:
            known.append(self.plane.authorities.add(USER, f"private {len(known)}", ca()[1])["id"])
        await self.plane.authorities.assign(USER, DEVICE, self.chance.choice(known))

    async def unassign_ca(self) -> None:
        if found := self.plane.authorities.of_device(DEVICE):
            await self.plane.authorities.unassign(USER, DEVICE, self.chance.choice(found)["id"])

    # --- the plane itself -------------------------------------------------------------------------------------------

    async def back_up(self) -> None:
        self.backup = self.world.image()

    async def restore(self) -> None:
        """Restore the plane from the last backup."""
        if self.backup is None:
            return
        most = max((one["id"] for one in self.certificates()), default=0)
        version = self.plane.installs.versions([DEVICE])[DEVICE]
        self.world.network.break_connections()
        self.world.plane = self.world.open_plane(self.backup)
        self.world.auditor.session_lost("the plane was restored")
        self.restored = True
        self.backup_version = max(version, self.backup_version)
        while max((one["id"] for one in self.certificates()), default=0) < most:  # ids are not reused
            made = await self.plane.certificates.issue(USER, ["spare.example"], validity_seconds=VALIDITY)
            if made["id"] > most:
                break
        self.configured = []

    async def revoke_device(self) -> None:
        self.world.auditor.device_revoked = True
        self.plane.devices.revoke(USER, DEVICE, "simulated")

    # --- what the agent asks ----------------------------------------------------------------------------------------

    async def answer(self, ask: Callable[..., Awaitable[Any]], agent: Agent) -> None:
        """Forget the certificates and CAs that the plane does not know, if the agent asks for that."""
        listed = {row["id"] for row in self.plane.certificates.page(DEVICE, 0, 500)}
        records = [one for one in agent.installer.records.values() if one.generation and one.cert_id not in listed]
        known = agent.store.session.load_known_plane()
        asked = set[Standing]()
        if problem_key(UNKNOWN) in agent.problems:
            asked |= {Standing.UNLISTED, Standing.FOREIGN}
        if problem_key(MASS) in agent.problems or (asked and known is not None and known.since):
            asked.add(Standing.UNASSIGNED)  # otherwise the agent has to obey the order by itself
        for record in records:
            if record.standing in asked:
                await ask("forget", domain=record.facts.domains[0])
        if UNKNOWN_CAS in agent.problems:
            for ca_id in agent.installer.cas - {one["id"] for one in self.plane.authorities.of_device(DEVICE)}:
                await ask("forget", ca_id=ca_id)

    # --- in the end -------------------------------------------------------------------------------------------------

    async def tidy_up(self) -> None:
        """Repair mismatched keys and bad configs, and catch up with what a restored plane has forgotten."""
        self.world.issuer.bad = False
        for one in self.certificates("active"):
            if self.restored or one["domain_name"].startswith(POISON):
                await self.plane.certificates.renew(USER, one["id"])
        listed = {row["id"] for row in self.plane.certificates.page(DEVICE, 0, 500) if row["status"] == "active"}
        self.configured = sorted(listed)
        await self.plane.installs.put(DEVICE, self.items(self.configured))
        while self.restored and self.plane.installs.versions([DEVICE])[DEVICE] <= self.backup_version + 1:
            await self.plane.installs.put(DEVICE, [{"id": "no", "type": "import_ca", "ob_id": 1, "enabled": False}])
            await self.plane.installs.put(DEVICE, self.items(self.configured))

    def differences(self) -> list[str]:
        """Return the differences between host and plane; empty once the host has converged."""
        world, disk, found = self.world, self.world.host.disk, list[str]()
        rows = self.plane.certificates.page(DEVICE, 0, 500)
        wanted = {row["fingerprint_sha256"]: row["id"] for row in rows if row["status"] == "active"}
        live = {}
        for name in names_in(disk.now, world.layout.live):
            if name[0] != "." and (pem := file_in(disk.now, world.layout.live / name / "fullchain.pem")):
                live[leaf_facts(pem)[0]] = name
        found += [f"certificate {wanted[one]} is not live" for one in wanted.keys() - live.keys()]
        found += [f"{live[one]} is live and should not be" for one in live.keys() - wanted.keys()]
        for fingerprint, cert_id in wanted.items():
            if cert_id in self.configured and world.services.known[cert_id].served != fingerprint:
                found.append(f"service {cert_id} serves another certificate")
        trusted = {name.removesuffix(".crt").rpartition("-")[2] for name in names_in(disk.now, TRUSTED)}
        if (cas := {str(one["id"]) for one in self.plane.authorities.of_device(DEVICE)}) != trusted:
            found.append(f"trusted CAs are {sorted(trusted)}, expected {sorted(cas)}")
        process = world.host.process
        if process is None or process.over.is_set() or process.agent is None:
            return [*found, f"no process: {world.host.parked}"]
        return found + self._unfinished(process.agent)

    def _unfinished(self, agent: Agent) -> list[str]:
        world, disk, found = self.world, self.world.host.disk, list[str]()
        world.auditor.inspect(disk)
        if world.auditor.waiting:
            found.append(f"signals are pending: {sorted(world.auditor.waiting)}")
        if agent.inbox.acks_pending:
            found.append(f"{agent.inbox.acks_pending} outcomes are not reported")
        homes = [world.layout.generations / name for name in names_in(disk.now, world.layout.generations)]
        staged = {one.name: names_in(disk.now, one) for one in homes}
        if left := [name for names in (staged, *staged.values()) for name in names if name.startswith(".tmp-")]:
            found.append(f"nobody will switch to {left}, but they are still there")
        cursor = file_in(disk.now, world.layout.last_cursor) or b""
        newest = self.plane.stream._stream(DEVICE)
        if cursor.decode() != f"{newest['last_ms']}-{newest['last_seq']}":
            found.append(f"the cursor is {cursor!r}")
        stored = json.loads(file_in(disk.now, world.layout.install_config) or b"{}").get("config", {})
        if stored.get("version") != self.plane.installs.versions([DEVICE])[DEVICE]:
            found.append(f"install config {stored.get('version')} is active")
        if problems := sorted(key for key in agent.problems if not key.startswith(REMAINING)):
            found.append(f"problems: {problems}")  # a revocation stays a problem while the plane lists it
        return found
