"""Plane: the whole control plane without sockets.

Its parts are public attributes, each with the rules of one table; ``http`` only translates. Their synchronous methods
run in units of work (``work``), their asynchronous ones start them. Waiting uses Trio, and time comes from ``wall_now``
(for stored times) and ``monotonic`` (for durations), so the plane also runs under a virtual clock.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trio

from certctrl.errors import CertctrlError, ConfigError, DiskError
from certctrl.model.offload import Offload
from certctrl.plane import clock
from certctrl.plane.access.access import OperatorAccess
from certctrl.plane.alerts.alerts import Alerts
from certctrl.plane.anchor import Anchor
from certctrl.plane.audit.log import AuditLog
from certctrl.plane.authorities import Authorities
from certctrl.plane.ca.denied_keys import DeniedKeys, read_denied_keys
from certctrl.plane.ca.issuer import BuiltinCa, Issuer, inline
from certctrl.plane.challenges import plane_http
from certctrl.plane.challenges.at_hosts import stop_expired
from certctrl.plane.device_life import DeviceLife, LifeParts
from certctrl.plane.devices import features
from certctrl.plane.devices.clones import CloneDetector
from certctrl.plane.devices.devices import Devices
from certctrl.plane.devices.enrolment import Enrolment
from certctrl.plane.devices.grants import Grants
from certctrl.plane.devices.key_proofs import KeyProofs
from certctrl.plane.devices.key_rotation import KeyRotation
from certctrl.plane.devices.reports import Reports
from certctrl.plane.devices.sessions import Sessions
from certctrl.plane.errors import DatabaseLockedError, ErrorResponse
from certctrl.plane.fleet.fleet import Fleet
from certctrl.plane.health.census import Census
from certctrl.plane.health.counters import PlaneCounters
from certctrl.plane.health.problems import ProblemName, Problems
from certctrl.plane.health.storage_check import StorageCheck
from certctrl.plane.housekeeping import Housekeeping
from certctrl.plane.installs import Installs
from certctrl.plane.issuance import Issuance, PlaneParts
from certctrl.plane.issuing_ca import IssuingCa
from certctrl.plane.jobs import Jobs
from certctrl.plane.operators import Operators
from certctrl.plane.planes import Planes, plane_name
from certctrl.plane.polls import Polls
from certctrl.plane.profiles.profiles import Profiles
from certctrl.plane.profiles.stored import StoredProfiles
from certctrl.plane.push.hub import Alike, Push
from certctrl.plane.push.sockets import Sockets
from certctrl.plane.reserved_names import ReservedNames
from certctrl.plane.revocation.crls import Crls
from certctrl.plane.rollouts.changes import ProfileChanges
from certctrl.plane.rollouts.renewals import RenewalRollouts
from certctrl.plane.rollouts.rollouts import PROFILE, RENEWAL, Rollouts
from certctrl.plane.rollouts.runner import RolloutRunner
from certctrl.plane.settings import PlaneSettings
from certctrl.plane.sign_in.provider import provider_of
from certctrl.plane.storage.data_dir import DataDir, GivenKeys, keep_file, locked, make_data_dir
from certctrl.plane.storage.database import Database, P, T
from certctrl.plane.storage.gathering import A, Gathering, Rush, one_of
from certctrl.plane.storage.key_rotation import refuse_rotating
from certctrl.plane.storage.keyring import Keyring
from certctrl.plane.storage.signal_stream import SignalStream
from certctrl.plane.storage.sqlite import SqliteDatabase

log = logging.getLogger("certctrl.Plane")


def check_secrets(database: Database, data: DataDir | None, *, is_shared: bool) -> None:
    """Raise ConfigError if the secrets are under two keys, or if there are none: several planes do not create them."""
    if data is not None:
        refuse_rotating(database, data.storage_key)
    if is_shared and database.one("SELECT 1 FROM secrets WHERE name = 'ca-root'") is None:
        raise ConfigError(
            "the database has no CA keys", fix="move a control plane into it: cert-ctrl plane migrate-to --data DIR URL"
        )


class Plane:
    """One control plane; created by ``open``, closed by ``close`` or as a context manager."""

    def __init__(
        self,
        data: DataDir | None,
        database: Database,
        keyring: Keyring,
        *,
        settings: PlaneSettings,
        wall_now: Callable[[], float],
        monotonic: Callable[[], float],
        offload: Offload,
        issuer: Issuer | None = None,
    ) -> None:
        """Assemble the parts; ``issuer`` None: the built-in CA. Use ``open``, which also takes the lock."""
        self.data = data
        self.settings = settings
        self.wall_now, self.offload = wall_now, offload
        self.database, self.keyring = db, keys = database, keyring
        self._assemble_ca(offload, monotonic)
        self.audit = AuditLog(db, wall_now, days=settings.audit_days)
        self.stream = SignalStream(db, length=settings.stream_length, wall_now=wall_now)
        self.clones = CloneDetector(db, wall_now)
        self.sessions = Sessions(db, keys, settings, wall_now)
        self.installs = Installs(db, self.stream, wall_now)
        self.devices = Devices(db, self.stream, self.sessions, self.installs, self.clones, wall_now)
        self.grants = Grants(db, settings, wall_now, monotonic)
        self._assemble_enrolment()
        self.jobs = Jobs(db, wall_now)
        self._observe()
        self._assemble_issuance(issuer or self.ca, offload)
        self.authorities = Authorities(db, self.stream, lambda: self.ca.root_pem, wall_now)
        self.reports = Reports(db, settings, wall_now)
        self.fleet = Fleet(db, settings.stale_seconds, wall_now)
        self.reports.on_announced = self.device_keys.announced
        self._assemble_profiles()
        self.access = OperatorAccess(db, keys, wall_now, monotonic)
        self.operators = Operators(db, keys, self.access, settings, wall_now)
        self.provider = None if settings.oidc is None else provider_of(settings.oidc, wall_now)
        self._assemble_push(monotonic)
        self._assemble_housekeeping()
        self._closing = contextlib.ExitStack()

    def _assemble_enrolment(self) -> None:
        """Assemble the registration of devices and the rotation of their keys."""
        parts = (self.devices, self.grants, self.sessions, self.stream)
        db, proofs = self.database, KeyProofs(self.keyring, self.wall_now)
        self.enrolment = Enrolment(db, *parts, proofs, self.settings, self.wall_now)
        self.rotation = KeyRotation(db, self.devices, proofs, self.wall_now)

    def _assemble_profiles(self) -> None:
        """Assemble the profiles; each part that a device's config depends on reports its changes to them."""
        stored = StoredProfiles(self.database, self.installs, self.devices.tags)
        self.profiles = Profiles(self.database, stored, self.installs, self.wall_now)
        db, devices, wall_now = self.database, self.devices, self.wall_now
        self.rollouts = Rollouts(db, self.profiles, devices, wall_now)
        renewing = (self._certificate_table, self.orders, self.batches, self.reserved, self.audit)
        self.renewal_rollouts = RenewalRollouts(db, self.rollouts, *renewing, wall_now)
        changes = ProfileChanges(db, self.profiles, stored, self.installs)
        self.rollouts.changes = {PROFILE: changes, RENEWAL: self.renewal_rollouts}
        self.renewals.roll_out = self.renewal_rollouts.begin_due
        parts = (self.rollouts, self.renewal_rollouts, self.profiles, devices, self.problems, self.audit)
        self.rollout_runner = RolloutRunner(db, *parts, wall_now)
        self.installs.merge = stored.merge_own
        self.installs.on_created = lambda device_id: stored.refresh([device_id], strict=False)
        self.devices.tags.on_changed = lambda device_ids, strict: stored.refresh(device_ids, strict=strict)
        self._certificate_table.on_assigned = partial(stored.refresh, strict=False, certificates_only=True)

        def registered(device_id: int, new_identity: bool) -> None:
            stored.refresh([device_id], strict=False)  # its name may have changed; first: see CertificateTable.unassign
            if new_identity:
                self.reports.deployments.forget(device_id)
                self.reports.endpoints.forget(device_id)
            self.device_keys.registered(device_id, new_identity)

        self.enrolment.on_registered = registered
        involved = LifeParts(devices, self.enrolment, self.certificates, self.authorities, self.audit, self.rotation)
        self.life = DeviceLife(db, involved, wall_now)
        self.life.on_renamed = lambda device_ids: stored.refresh(device_ids, strict=True)

    def _assemble_push(self, monotonic: Callable[[], float]) -> None:
        """Assemble the gathering of units of work, the polls, and the hub of push sockets."""
        self._gathering, self._reads = Gathering(self.database), Gathering(self.database, reads=True)
        self._rush = Rush()
        polled = (self.stream, self.devices, self.counters)
        self.polls = Polls(polled, self.read_alone, self.settings, self.wall_now, monotonic)
        self.sockets = Sockets(self.database, self.planes, self.wall_now)
        parts = (self.stream, self.sessions, self.devices, self.reports)
        alike = Alike(self.read_alone, self.change_alike)
        self.push = Push(self.database, parts, self.sockets, self.counters, self.wall_now, alike)
        self.devices.opened, self.stream.also_sweep = self.push.opened, self.push.sweep

    def _assemble_housekeeping(self) -> None:
        db, wall_now = self.database, self.wall_now
        parts = (self.jobs, self.devices, self.stream, self.planes, self.reserved, self.anchor)
        expiring = (
            self.grants.delete_expired,
            self.operators.delete_expired,
            self.sessions.delete_expired,
            self.certificates.delete_expired,
            self.orders.delete_expired,
            lambda: stop_expired(db, self.stream, wall_now()),
            self.crls.delete_expired,
            lambda: plane_http.delete_expired(db, wall_now()),
            self.device_keys.replace_expired,
            self.sockets.delete_expired,
            self.push.questions.delete_expired,
            self.planes.delete_expired,
            self.reports.note_earlier,
            self.reserved.delete_expired,
            self.audit.delete_expired,
        )
        self.housekeeping = Housekeeping(db, parts, (self.counters, self.storage_check), expiring, wall_now)
        self.housekeeping.plan()

    def _assemble_ca(self, offload: Offload, monotonic: Callable[[], float]) -> None:
        """Assemble the built-in CA, its lists, and the CA of the plane's own certificate."""
        db, keys, wall_now, crl_url = self.database, self.keyring, self.wall_now, self.settings.crl_url
        denied = DeniedKeys() if self.data is None else read_denied_keys(self.data.denied_keys)
        self.ca = BuiltinCa(db, keys, wall_now, offload, crl_url=crl_url, denied=denied)
        self.crls = Crls(db, self.ca.intermediates, wall_now, monotonic)
        self.anchor = Anchor(db, keys, wall_now, offload, self.ca)
        self.issuing_ca = IssuingCa(db, self.ca, self.anchor, crl_url, wall_now)

    def _assemble_issuance(self, issuer: Issuer, offload: Offload) -> None:
        """Assemble the parts that issue certificates; ``issuer`` issues within a request."""
        parts = PlaneParts(
            database=self.database,
            keyring=self.keyring,
            stream=self.stream,
            jobs=self.jobs,
            settings=self.settings,
            ca=self.ca,
            crls=self.crls,
            counters=self.counters,
            problems=self.problems,
            storage_check=self.storage_check,
            wall_now=self.wall_now,
            offload=offload,
            reserved=self.reserved,
        )
        made = Issuance(parts, issuer)
        self.issuers, self.orders, self.certificates = made.issuers, made.orders, made.certificates
        self.order_runner, self.revocation_runner = made.order_runner, made.revocation_runner
        self.imports, self.renewals, self.bulk = made.imports, made.renewals, made.bulk
        self.batches, self._certificate_table = made.batches, made.table
        self.device_keys, self.leftovers = made.device_keys, made.leftovers

    def _observe(self) -> None:
        """Assemble the parts for health, metrics and ``plane status``."""
        self.counters = PlaneCounters()
        self.problems = Problems(self.wall_now)
        self.storage_check = StorageCheck(self.database, self.problems, None if self.data is None else self.data.root)
        name = self.jobs.owner if self.data is None else plane_name(self.data.root)
        self.planes = Planes(self.database, name, self.wall_now)
        self.reserved = ReservedNames(self.database, name, self.wall_now)
        self.census = Census(self.database, self.wall_now)
        parts = (self.jobs, self.problems, self.planes)
        self.alerts = Alerts(self.database, self.keyring, parts, self.settings, self.wall_now)

    @classmethod
    def open(
        cls,
        data: Path | None = None,
        *,
        settings: PlaneSettings | None = None,
        wall_now: Callable[[], float] = clock.wall_now,
        monotonic: Callable[[], float] | None = None,
        offload: Offload = inline,
        issuer: Issuer | None = None,
        connect: Callable[[], Database] | None = None,
        keys: GivenKeys | None = None,
    ) -> Self:
        """Open the plane of a data directory, and create it if needed; None: a plane in memory.

        ``connect`` opens the database of a fleet, which has its secrets already; ``keys`` replace those of the
        directory. Raises ConfigError (another user's directory, missing keys), BusyError (in use by another plane),
        DiskError and DatabaseAwayError.
        """
        with contextlib.ExitStack() as stack:
            directory = None if data is None else make_data_dir(data, keys)
            if directory is not None:
                stack.enter_context(locked(directory))
            keyring = Keyring.open(directory, create=connect is None)
            database: Database
            if connect is None:
                database = SqliteDatabase(None if directory is None else directory.database, offload)
                monotonic = monotonic or trio.current_time
            else:
                database, monotonic = connect(), monotonic or clock.monotonic
            stack.callback(database.close)
            with database.transaction():
                check_secrets(database, directory, is_shared=connect is not None)
                plane = cls(
                    directory,
                    database,
                    keyring,
                    settings=settings or PlaneSettings(),
                    wall_now=wall_now,
                    monotonic=monotonic,
                    offload=offload,
                    issuer=issuer,
                )
                plane.write_cas()
            plane._closing = stack.pop_all()
        return plane

    def write_cas(self) -> None:
        """Write the anchor that agents pin, and the CA of their certificates, to the data directory."""
        anchor = self.anchor.ca.root_pem  # loads it: later it is served from memory
        if self.data is not None:
            keep_file(self.data.ca, anchor.encode(), mode=0o644)
            keep_file(self.data.issuing_ca, self.ca.root_pem.encode(), mode=0o644)

    def close(self) -> None:
        """Save the sightings in memory and close the database."""
        with self._closing:
            try:
                self.devices.save_sightings()
            except CertctrlError as error:
                log.error("the last polls of devices are not saved: %s", error)
            if self.planes.noted:
                with contextlib.suppress(CertctrlError), self.database.transaction():
                    self.sockets.remove_all()
                    self.planes.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def operator_key(self) -> str:
        """The key to the operator API and the approval page."""
        return self.keyring.operator_key

    async def work(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a synchronous function of the parts in one unit of work; see ``Database.work``."""
        return await self.database.work(function, *args, **kwargs)

    async def work_long(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a unit of work that may take long, off the event loop; see ``Database.work_long``."""
        return await self.database.work_long(function, *args, **kwargs)

    async def work_together(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a unit of work of a device's request in one transaction with those of others; see ``Gathering.work``."""
        return await self._gathering.work(function, *args, **kwargs)

    async def read_alike(self, function: Callable[[Sequence[A]], Sequence[T | ErrorResponse]], item: A) -> T:
        """Read in one unit of work, which changes nothing, for the items of several requests; see ``Gathering.work_alike``."""
        return await self._reads.work_alike(function, item)

    async def read_alone(self, function: Callable[[Sequence[A]], Sequence[T | ErrorResponse]], item: A) -> T:
        """Read as ``read_alike``, but for this request alone where that costs less than to gather others."""
        if not self.database.reads_inline or self._rush.note():
            return await self.read_alike(function, item)
        try:
            return await self.database.work_read(one_of, function, item)
        except DatabaseLockedError:  # wait for the other process, as all others do
            return await self.database.work(one_of, function, item)

    async def change_alike(self, function: Callable[[Sequence[A]], Sequence[T | ErrorResponse]], item: A) -> T:
        """Run one unit of work for the items of several requests; see ``Gathering.work_alike``."""
        return await self._gathering.work_alike(function, item)

    def decide(self, user_code: str, *, approve: bool, user_id: int) -> dict[str, Any]:
        """Approve a device grant for a user, or deny it; ErrorResponse 404, or 409 if it was already decided."""
        self.devices.require_user(user_id)
        return self.grants.decide(user_code, approve=approve, user_id=user_id)

    async def refresh(self, refresh_token: str, device_public_id: str, anchors: Collection[str]) -> dict[str, Any]:
        """Return a new access token, with the plane's features and the anchor that it will switch to.

        See ``Sessions.refresh``. It also succeeds if nothing can be stored, unless refresh tokens rotate.
        """
        try:
            return await self.work(self._refresh, refresh_token, device_public_id, anchors)
        except DiskError as error:
            if self.settings.rotate_refresh_tokens:
                raise
            self.storage_check.note_failure(error)
        return await self.work(self._refresh, refresh_token, device_public_id, None)

    def _refresh(self, refresh_token: str, device_public_id: str, anchors: Collection[str] | None) -> dict[str, Any]:
        """Refresh a token; ``anchors`` are those that the device trusts, None: store nothing."""
        store = anchors is not None
        answer = self.sessions.refresh(refresh_token, device_public_id, store=store)
        device_id = self.sessions.claimed_device(answer["access_token"])
        if anchors is not None:
            self.anchor.note(device_id, anchors)
        more = self.anchor.offer() | self.rotation.offer(device_id)
        return answer | {"features": features.of_plane()} | more

    async def resync(self, user_id: int, device_id: int, reason: str = "") -> None:
        """Make a device fetch everything again (signal ``state.resync_required``)."""
        await self.work(self._resync, user_id, device_id, reason)

    def _resync(self, user_id: int, device_id: int, reason: str) -> None:
        self.devices.row(user_id, device_id)
        self.stream.append(device_id, "state.resync_required", {"reason": reason} if reason else {})

    def stop_polls(self) -> None:
        """Answer all held polls now, and hold none from now on; end the questions of operators."""
        self.push.stopping = True
        self.problems.report(ProblemName.STOPPING, "asked to stop")
        self.polls.stop()

    async def exchange_wakes(self) -> None:
        """Exchange wakes with the other planes on this database, forever; return if there can be none."""
        await self.database.exchange_wakes(self.stream)
