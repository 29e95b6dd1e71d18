"""Protocols of the state: registration, tokens, signals, retries and records."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import trio
from crash_protocol import (
    LAYOUT,
    NAME,
    Protocol,
    live_number,
    publish,
)
from modeldisk import ModelFs

from certctrl.agent.inbox import Inbox
from certctrl.install.deploy.record_store import RecordStore
from certctrl.install.deploy.retry_table import RetryTable
from certctrl.install.plan.retries import Failure
from certctrl.model.certificate import CertFacts
from certctrl.model.config import ApplicationConfig
from certctrl.model.records import Ack, CertRecord, DeviceKeys, InboxEntry, Retry, RetryKind, Tokens
from certctrl.model.signals import CertRenewed, CertRevoked, Signal, identity, to_wire
from certctrl.store import decode
from certctrl.store.disk.atomic import read_bytes
from certctrl.store.state.installed import StoredInstallConfig
from certctrl.store.state.store import StateStore


class Register(Protocol):
    name = "register"

    def act(self, fs: ModelFs) -> None:
        store = StateStore(LAYOUT, fs)
        if store.session.load_device_id() is None:
            store.session.save_device_id("23229bf7-5172-42c7-89a2-76d5b4a40090")
        keys = store.session.load_device_keys()
        if keys is None:
            count = fs.promises.get("pairs", 0) + 1
            fs.promise(pairs=count)
            keys = DeviceKeys(
                public=b"PUBLIC-%d".ljust(32, b".") % count, secret=(b"SECRET-%d" % count).ljust(32, b".")
            )
            keys = DeviceKeys(public=(b"PUBLIC-%d" % count).ljust(32, b"."), secret=keys.secret)
            store.session.save_device_keys(keys)
        issued = fs.promises.get("issued", 0) + 1
        fs.promise(sent_key=keys.public, issued=issued)  # the plane responds with tokens
        store.session.save_tokens(
            Tokens(access_token=f"SECRET-access-{issued}", refresh_token=f"SECRET-refresh-{issued}")
        )
        fs.promise(stored=issued)  # "registered" is printed

    def always(self, fs: ModelFs) -> None:
        store = StateStore(LAYOUT, fs)
        keys, tokens = store.session.load_device_keys(), store.session.load_tokens()
        if "sent_key" in fs.promises:
            assert keys is not None, "the plane encrypts to a lost key"
            assert keys.public == fs.promises["sent_key"]
        if keys is not None:
            assert keys.public.strip(b".")[7:] == keys.secret.strip(b".")[7:], "halves of different pairs"
        if tokens is not None:
            assert store.session.load_device_id() is not None
            assert_session(tokens, fs.promises)
        assert tokens is not None or "stored" not in fs.promises, "registered, but the tokens are lost"


def assert_session(tokens: Tokens, promises: Mapping[str, Any]) -> None:
    refresh = int(tokens.refresh_token.rpartition("-")[2])
    access = int(tokens.access_token.rpartition("-")[2] or 0)
    assert access <= refresh, "the access token is newer than the refresh token that came with it"
    assert promises.get("stored", 0) <= refresh <= promises["issued"], "stored tokens are lost"


class Refresh(Protocol):
    name = "refresh with rotation"

    def prepare(self, fs: ModelFs) -> None:
        StateStore(LAYOUT, fs).session.save_tokens(
            Tokens(access_token="SECRET-access-1", refresh_token="SECRET-refresh-1")
        )
        fs.promise(issued=1, stored=1)

    def act(self, fs: ModelFs) -> None:
        store = StateStore(LAYOUT, fs)
        with store.session.reserve_tokens(4096) as reservation:
            issued = fs.promises["issued"] + 1
            fs.promise(issued=issued)
            tokens = Tokens(access_token=f"SECRET-access-{issued}", refresh_token=f"SECRET-refresh-{issued}")
            reservation.commit(tokens)
        fs.promise(stored=issued)

    def always(self, fs: ModelFs) -> None:
        tokens = StateStore(LAYOUT, fs).session.load_tokens()
        assert tokens is not None, "the tokens are lost"
        assert_session(tokens, fs.promises)


class Signals(Protocol):
    """A page with one signal: received, handled, reported."""

    name = "signal to ack"
    signal = CertRenewed(ts_ms=5, cert_id=7, serial="02")

    def prepare(self, fs: ModelFs) -> None:
        StateStore(LAYOUT, fs).session.save_cursor("1-1")
        publish(fs, {NAME: 1})

    def act(self, fs: ModelFs) -> None:
        store = StateStore(LAYOUT, fs)
        key = identity(self.signal)
        entries, (acks, done) = store.session.load_inbox(), store.session.load_outcomes()
        if store.session.load_cursor() != "2-2":
            if not entries and key not in done:
                entries = (InboxEntry(signal=self.signal),)
                store.session.save_inbox(entries)
            store.session.save_cursor("2-2")
        if entries:
            publish(fs, {NAME: 2})
            store.installed.save_certificates(
                {7: CertRecord(facts=CertFacts(cert_id=7, name=NAME, serial="02"))}, sync_parent=False
            )
            acks, done = (*acks, Ack(event={"signal": key})), (*done, key)
            store.session.save_progress(acks, done, ())
        if acks:
            fs.promise(reported=True)
            store.session.save_outcomes((), done, sync_parent=False)

    def recover(self, fs: ModelFs) -> None:
        super().recover(fs)
        store = StateStore(LAYOUT, fs)
        if live_number(fs) == 2 and 7 not in store.installed.load_certificates():  # as install/deploy/recovery.py
            store.installed.save_certificates({7: CertRecord(facts=CertFacts(cert_id=7, name=NAME, serial="02"))})

    def always(self, fs: ModelFs) -> None:
        store = StateStore(LAYOUT, fs)
        cursor, pending = store.session.load_cursor(), store.session.load_inbox()
        acks, known = store.session.load_outcomes()
        done = identity(self.signal) in known
        assert cursor in ("1-1", "2-2")
        reported = bool(acks) or "reported" in fs.promises
        assert pending or reported or cursor == "1-1", "the cursor passed a signal that was not saved"
        if reported or (done and not pending):
            assert live_number(fs) == 2, "reported as done, but not installed"
        if "reported" in fs.promises:  # until then a lost record is created again from the live generation
            record = store.installed.load_certificates().get(7)
            assert record is not None and record.facts.serial == "02", "reported as done, but not recorded"
        assert live_number(fs) in (1, 2)


class SignalsWithoutPage(Signals):
    """The same, if the signal completes before its page is written, which then never is."""

    name = "signal to ack, no page"

    def act(self, fs: ModelFs) -> None:
        store = StateStore(LAYOUT, fs)
        key = identity(self.signal)
        acks, done = store.session.load_outcomes()
        if store.session.load_cursor() != "2-2":
            if key not in done:
                publish(fs, {NAME: 2})
                store.installed.save_certificates(
                    {7: CertRecord(facts=CertFacts(cert_id=7, name=NAME, serial="02"))}, sync_parent=False
                )
                acks, done = (*acks, Ack(event={"signal": key})), (*done, key)
                store.session.save_progress(acks, done, ())
            store.session.save_cursor("2-2")
        if acks:
            fs.promise(reported=True)
            store.session.save_outcomes((), done, sync_parent=False)


class FailedSignals(Protocol):
    """A page whose signals fail or succeed; what failed waits as a retry, is handled again and succeeds.

    Runs the agent's own inbox, retry table and record store, in the order in which the dispatcher calls them.
    """

    name = "failed signals to retries to acks"
    page: tuple[Signal, ...] = (CertRenewed(5, 7, "02"), CertRevoked(6, 7), CertRenewed(7, 9, "03"))
    before: tuple[Signal, ...] = ()
    """Signals that were received before the first start."""
    fails = frozenset(("cert:7",))

    def prepare(self, fs: ModelFs) -> None:
        StateStore(LAYOUT, fs).session.save_cursor("1-1")

    def act(self, fs: ModelFs) -> None:
        run_apart(lambda: self.work(fs))

    async def work(self, fs: ModelFs) -> None:
        store = StateStore(LAYOUT, fs)
        retries = RetryTable(
            load=store.installed.load_retries,
            wall_now=lambda: 1000.0,
            steady_now=lambda: 1000.0,
            random=lambda: 0.5,
            settings=ApplicationConfig,
        )
        records = RecordStore(store.installed, inline, lambda: 1000, retries)
        inbox = Inbox(store.session, inline, retries, records.secure_retries, limit=10)
        await records.save()  # as `Installer.recover`
        if store.session.load_cursor() != "2-2":
            inbox.admit(self.page)
            await inbox.secure()
            store.session.save_cursor("2-2")
        for entry in inbox.entries():
            await self.handle(entry, inbox, retries)
        fs.promise(handled=True)
        for retry in retries.signals():
            await self.handle_again(retry, inbox, retries, records)
        fs.promise(ended=True)
        for retry in list(retries.rows().values()):
            retries.succeeded(retry.resource)
        await records.save()

    async def handle(self, entry: InboxEntry, inbox: Inbox, retries: RetryTable) -> None:
        signal = entry.signal
        if signal.resource in self.fails:
            retries.failed(
                Failure(resource=signal.resource, kind=RetryKind.REFUSED, error="check failed", signal=signal)
            )
            await inbox.hand_over(entry, {"failed": identity(signal)})
        else:
            await inbox.finish([entry], [{"done": identity(signal)}])

    async def handle_again(self, retry: Retry, inbox: Inbox, retries: RetryTable, records: RecordStore) -> None:
        """Finish a signal that succeeds now, as `Dispatcher._save`."""
        assert retry.signal is not None
        await inbox.finish([InboxEntry(signal=retry.signal, retry=retry)], [{"done": identity(retry.signal)}])
        retries.ended(retry.signal)
        await records.secure_retries()

    def always(self, fs: ModelFs) -> None:
        store = StateStore(LAYOUT, fs)
        cursor, waiting = store.session.load_cursor(), [entry.signal for entry in store.session.load_inbox()]
        retries, _ = store.installed.load_retries()
        acks, done = store.session.load_outcomes()
        assert cursor in ("1-1", "2-2")
        retried = [retry.signal for retry in retries if retry.signal is not None]
        here = {*map(identity, waiting), *map(identity, retried), *done}
        received = {identity(signal) for signal in (*self.before, *(self.page if cursor == "2-2" else ()))}
        assert received <= here, f"lost: {received - here}"
        events = [ack.event for ack in acks]
        assert all({"done": key} in events for key in done), "done, but no outcome to report"
        self.always_retried(fs, {retry.key: retry for retry in retries}, received, done)

    def always_retried(
        self, fs: ModelFs, retries: Mapping[str, Retry], received: set[str], done: tuple[str, ...]
    ) -> None:
        """Check the retries; ``received`` and ``done``: identities of signals."""
        for retry in retries.values():
            assert retry.last_error, f"{retry.key} is retried without a reason"
        if "handled" in fs.promises:
            succeeded = {identity(one) for one in (*self.before, *self.page) if one.resource not in self.fails}
            assert succeeded <= {*done}, "handled, but not known to be done"
        if "ended" in fs.promises:
            assert received <= {*done}, "the retries ended, but their signals are not known to be done"
            assert not [key for key, retry in retries.items() if retry.signal is not None], "a retry that ended is back"


class EarlierFailures(FailedSignals):
    """The first start after an update from a release that kept failures with signals and certificates.

    A new page comes in meanwhile.
    """

    name = "failures of an earlier release become retries"
    before = (CertRenewed(1, 7, "02"), CertRevoked(2, 7), CertRenewed(3, 9, "03"))
    page = (CertRenewed(5, 10, "04"),)

    def prepare(self, fs: ModelFs) -> None:
        super().prepare(fs)
        failed: dict[str, object] = {"attempts": 4, "last_error": "reload failed", "next_try_at": 500.0}
        renewed, revoked, fresh = (dict[str, object](signal=to_wire(signal)) for signal in self.before)
        renewed |= {"attempts": 2, "last_error": "check failed", "next_try_at": 900.0}
        revoked |= {"attempts": 0, "last_error": "no route", "next_try_at": 70.0}
        pending = {"cert_id": 8, "name": "8.example", "last_outcome": "applied", "owed": ["r"], "generation": "g"}
        for path, body in (
            (LAYOUT.inbox, {"entries": [renewed, revoked, fresh]}),
            (LAYOUT.certificates, {"certificates": {"8": pending | failed}}),
        ):
            fs.put(str(path), json.dumps({"state_version": 1} | body).encode(), 0o600)

    def always_retried(
        self, fs: ModelFs, retries: Mapping[str, Retry], received: set[str], done: tuple[str, ...]
    ) -> None:
        super().always_retried(fs, retries, received, done)
        if "ended" not in fs.promises:
            retry = retries.get("cert:8")
            assert retry is not None, "what is pending for a certificate is lost"
            assert (retry.kind, retry.attempts, retry.next_try_at) == (RetryKind.PENDING, 4, 500.0)


def run_apart(work: Callable[[], Awaitable[None]]) -> None:
    """Run async code in a separate thread: an act runs while another is interrupted, and trio runs do not nest."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(trio.run, work).result()


async def inline(call: Callable[..., Any], *args: object) -> Any:
    await trio.lowlevel.checkpoint()
    return call(*args)


class Resync(Protocol):
    name = "409 and resync"

    def prepare(self, fs: ModelFs) -> None:
        StateStore(LAYOUT, fs).session.save_cursor("1-1")

    def act(self, fs: ModelFs) -> None:
        store = StateStore(LAYOUT, fs)
        if store.session.load_cursor() != "9-9":
            store.session.clear_cursor()
            store.session.save_inbox(
                [InboxEntry(signal=CertRenewed(ts_ms=9, cert_id=cert_id)) for cert_id in (1, 2, 3)]
            )
            store.session.save_cursor("9-9")

    def always(self, fs: ModelFs) -> None:
        store = StateStore(LAYOUT, fs)
        cursor = store.session.load_cursor()
        assert cursor in (None, "1-1", "9-9")
        if cursor == "9-9":
            assert len(store.session.load_inbox()) == 3, "the cursor passed the signals of the resync"


class Records(Protocol):
    name = "records, status, history, passwords"

    def prepare(self, fs: ModelFs) -> None:
        StateStore(LAYOUT, fs).installed.save_install_config(self.config(1))

    def config(self, version: int) -> StoredInstallConfig:
        return StoredInstallConfig(raw={"id": 3, "version": version}, etag=f"e{version}", version=version, hash="h")

    def act(self, fs: ModelFs) -> None:
        store = StateStore(LAYOUT, fs)
        store.installed.save_install_config(self.config(2))
        fs.promise(version=2)
        store.installed.save_activations({"reload": "key"})
        fs.promise(activated=True)
        store.installed.save_status({"state": "Polling"})
        store.session.save_last_poll(1_800_000_000.5)
        for number in range(3):
            store.installed.append_history([{"number": number}], 2)
        fs.promise(password=store.installed.password(NAME, "pfx")[0])

    def always(self, fs: ModelFs) -> None:
        store = StateStore(LAYOUT, fs)
        config = store.installed.load_install_config()
        assert config is not None
        assert config.version in ((2,) if "version" in fs.promises else (1, 2))
        assert store.installed.load_activations() == {"reload": "key"} or "activated" not in fs.promises
        last_poll = read_bytes(fs, LAYOUT.last_poll_time, decode.TEXT_LIMIT)
        assert last_poll is None or decode.poll_time_of(last_poll) in (None, 1_800_000_000.0)
        assert all(set(entry) == {"number"} for entry in store.installed.load_history())
        if "password" in fs.promises:
            assert store.installed.password(NAME, "pfx")[0] == fs.promises["password"]
