"""The account of an ACME issuer: its key is stored before the registration, its URL afterwards.

After a crash in between, the registration is repeated with the same key, for which a CA returns the same account. Two
planes that register at the same time also share one account, because both use the key that was stored first. A new key
is stored before the CA is asked to change it, and the CA then decides which of the two is current.
"""

from __future__ import annotations

import hashlib
import json

import attrs
import trio

from certctrl import lean
from certctrl.errors import ConfigError
from certctrl.plane.acme import accounts
from certctrl.plane.acme.client import AcmeClient, CaState
from certctrl.plane.acme.http import CaHttp
from certctrl.plane.acme.jws import AccountKey
from certctrl.plane.acme.problems import AcmeError
from certctrl.plane.issuers.acme_settings import AcmeSettings
from certctrl.plane.issuers.issuer import IssuerContext
from certctrl.protocol.wire.reader import wire_class


@lean.frozen(kw_only=True)
class StoredAccount:
    """The stored, sealed form of an account."""

    key_pem: str = attrs.field(repr=False)
    url: str = ""
    """Empty: not registered yet, or the CA no longer knows it."""
    contact: tuple[str, ...] = ()
    next_key_pem: str = attrs.field(default="", repr=False)
    """A key that may have replaced ``key_pem`` at the CA."""

    def dump(self) -> bytes:
        """Return the stored form."""
        return json.dumps(attrs.asdict(self)).encode()

    @classmethod
    def parse(cls, stored: bytes) -> StoredAccount:
        """Return a stored account; raises ConfigError."""
        try:
            return _read_account(json.loads(stored))
        except ValueError:  # Misfit is one, too
            raise ConfigError("the stored ACME account is damaged", fix="restore the database") from None


_read_account = wire_class(StoredAccount)


class AcmeAccount:
    """The account of one issuer."""

    def __init__(self, context: IssuerContext, settings: AcmeSettings, known: CaState) -> None:
        self._context = context
        self._settings = settings
        self._known = known
        self._item = f"account {hashlib.sha256(settings.directory_url.encode()).hexdigest()[:16]}"
        self._lock = trio.Lock()
        self._ready: StoredAccount | None = None
        """The account; None until this process knows that it is registered."""

    async def client(self, http: CaHttp) -> AcmeClient:
        """Return a client of the account, and register it if needed."""
        async with self._lock:
            if self._ready is None:
                self._ready = await self._registered(http)
            return self._client(http, self._ready)

    async def stored(self) -> StoredAccount | None:
        """Return the stored account; None if the issuer was never used."""
        stored = await self._context.load(self._item)
        return None if stored is None else StoredAccount.parse(stored)

    async def was_changed(self) -> bool:
        """Return whether another plane has changed the account since it was read here."""
        return self._ready is not None and await self.stored() != self._ready

    def reload(self) -> None:
        """Read the stored account before the next order: another plane may have changed it."""
        self._ready = None

    async def mark_unregistered(self) -> None:
        """Record that the CA no longer knows the account: the next order registers one with the same key."""
        async with self._lock:
            self._ready = None
            stored = await self.stored()
            if stored is not None:
                await self._store(attrs.evolve(stored, url=""))

    async def change_key(self, http: CaHttp) -> None:
        """Replace the key of the account."""
        client = await self.client(http)
        async with self._lock:
            stored, new = await self.stored(), AccountKey.new()
            assert stored is not None  # client() has stored it
            self._ready = None
            stored = attrs.evolve(stored, next_key_pem=new.pem().decode("ascii"))
            await self._store(stored)
            await accounts.change_key(client, new)
            await self._store(attrs.evolve(stored, key_pem=stored.next_key_pem, next_key_pem=""))

    async def deactivate(self, http: CaHttp) -> None:
        """End the account at the CA; later orders fail."""
        client = await self.client(http)
        async with self._lock:
            self._ready = None
            await accounts.deactivate(client)

    async def _registered(self, http: CaHttp) -> StoredAccount:
        stored = await self.stored()
        if stored is None:
            new = StoredAccount(key_pem=AccountKey.new().pem().decode("ascii"))
            stored = StoredAccount.parse(await self._context.store_first(self._item, new.dump()))
        if stored.next_key_pem:
            stored = await self._finish_key_change(http, stored)
        settings = self._settings
        if not stored.url:
            account = await accounts.register(
                self._client(http, stored),
                contact=settings.contact,
                terms_agreed=settings.terms_agreed,
                binding=settings.binding,
            )
            stored = attrs.evolve(stored, url=account.url, contact=settings.contact)
            await self._store(stored)
        elif stored.contact != settings.contact:
            await accounts.set_contact(self._client(http, stored), settings.contact)
            stored = attrs.evolve(stored, contact=settings.contact)
            await self._store(stored)
        return stored

    async def _finish_key_change(self, http: CaHttp, stored: StoredAccount) -> StoredAccount:
        """Return the account after an interrupted key change."""
        replaced = attrs.evolve(stored, key_pem=stored.next_key_pem, next_key_pem="")
        try:
            await accounts.find(self._client(http, replaced))
        except AcmeError as error:
            if error.problem.kind != "accountDoesNotExist":
                raise
            replaced = attrs.evolve(stored, next_key_pem="")
        await self._store(replaced)
        return replaced

    async def _store(self, account: StoredAccount) -> None:
        await self._context.store(self._item, account.dump())

    def _client(self, http: CaHttp, account: StoredAccount) -> AcmeClient:
        key = AccountKey.from_pem(account.key_pem.encode("ascii"))
        return AcmeClient(
            http, self._settings.directory_url, key, self._known, self._context.wall_now, account_url=account.url
        )
