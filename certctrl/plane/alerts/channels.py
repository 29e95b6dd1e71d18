"""Channels: the receivers of alerts, with what each wants and when. Secrets are sealed with the storage key."""

from __future__ import annotations

import base64
import json
import re
import secrets as random
import ssl
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import attrs

from certctrl import lean
from certctrl.errors import ConfigError
from certctrl.plane.alerts import settings as channel_settings
from certctrl.plane.alerts.settings import KINDS, MAIL, PAGERDUTY, PAGERDUTY_URL, SECRETS, WEBHOOK, ChannelSettings
from certctrl.plane.alerts.webhook import SECRET_START, secret_bytes
from certctrl.plane.clock import when
from certctrl.plane.errors import ErrorResponse, bad_request, conflict, not_found
from certctrl.plane.setting_hooks import to_store
from certctrl.plane.storage.database import Database, Row
from certctrl.plane.storage.keyring import Keyring
from certctrl.text import nearest, one_line

MAX_CHANNELS = 50
MAX_SECRET_BYTES = 4096
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?", re.ASCII)


@lean.frozen(kw_only=True)
class NewChannel:
    """A channel as an operator describes it."""

    name: str
    kind: str
    settings: Mapping[str, Any]
    secrets: Mapping[str, str] = attrs.field(repr=False, factory=dict)
    replace: bool = False
    """Whether a channel of this name is replaced; secrets that are not given stay."""


@lean.frozen(kw_only=True)
class Channel:
    """A stored channel."""

    id: int
    name: str
    kind: str
    settings: ChannelSettings
    created_at: float
    secrets: Mapping[str, str] = attrs.field(repr=False)

    @property
    def url(self) -> str:
        """Where its bodies are posted."""
        return self.secrets.get("url") or PAGERDUTY_URL

    @property
    def to(self) -> str:
        """Where it leads, without secrets."""
        if self.kind == MAIL:
            return f"{', '.join(self.settings.recipients)} by {self.settings.host}:{self.settings.mail_port}"
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"


class Channels:
    """The table of channels; methods run in the caller's unit of work."""

    def __init__(self, database: Database, keyring: Keyring, wall_now: Callable[[], float]) -> None:
        self._db = database
        self._keyring = keyring
        self._wall_now = wall_now
        self.unreadable = ""
        """Why `all` has left out a channel."""

    def all(self) -> list[Channel]:
        """Return the channels by name, without those that cannot be read, such as one of a later release."""
        found, self.unreadable = [], ""
        for row in self._db.all("SELECT * FROM alert_channels ORDER BY name"):
            try:
                found.append(self._channel(row))
            except ConfigError as error:
                self.unreadable = f"channel {row['name']} cannot be used: {error}"
        return found

    def of_id(self, channel_id: int) -> Channel | None:
        """Return a channel; None if it was removed."""
        row = self._db.one("SELECT * FROM alert_channels WHERE id = ?", channel_id)
        return None if row is None else self._channel(row)

    def hold(self, channel_id: int) -> bool:
        """Keep a channel from being removed until this unit of work ends; False if it was removed."""
        return self._db.one_locked("SELECT id FROM alert_channels WHERE id = ?", channel_id) is not None

    def named(self, name: str) -> Channel:
        """Return a channel; ErrorResponse 404."""
        return self._channel(self._require(name))

    def put(self, new: NewChannel, *, dry_run: bool = False) -> dict[str, Any]:
        """Add or replace a channel; the answer has a secret that was made here. ErrorResponse 400 and 409."""
        self._check_name(new)
        known = self._db.one_locked("SELECT * FROM alert_channels WHERE name = ?", new.name)
        self._check_known(new, known)
        try:
            settings = channel_settings.given(new.kind, dict(new.settings))
            kept = {} if known is None else _kept(self._channel(known), new, settings)
            secrets, made = _secrets(new, settings, kept)
            context_of(settings)
        except ConfigError as error:
            raise bad_request(f"{error}; {error.fix}" if error.fix else str(error), field=error.path) from None
        if dry_run:
            shown = Channel(
                id=0, name=new.name, kind=new.kind, settings=settings, created_at=self._wall_now(), secrets=secrets
            )
            return self._shown(shown, None) | {"dry_run": True}
        self._store(new, settings, secrets, is_known=known is not None)
        return self.show(new.name) | {"dry_run": False} | ({"signing_secret": made} if made else {})

    def _store(self, new: NewChannel, settings: ChannelSettings, secrets: Mapping[str, str], *, is_known: bool) -> None:
        now, text = self._wall_now(), json.dumps(to_store(settings))
        sealed = self._keyring.seal(_purpose(new.name), json.dumps(dict(secrets)).encode())
        if is_known:
            sql = "UPDATE alert_channels SET settings = ?, secrets_enc = ?, updated_at = ? WHERE name = ?"
            self._db.run(sql, text, sealed, now, new.name)
            return
        sql = (
            "INSERT INTO alert_channels (name, kind, settings, secrets_enc, created_at, updated_at)"
            " VALUES (?, ?, ?, ?, ?, ?)"
        )
        self._db.run(sql, new.name, new.kind, text, sealed, now, now)

    def _check_name(self, new: NewChannel) -> None:
        if not _NAME.fullmatch(new.name):
            what = "A channel's name has up to 64 lower-case letters, digits, '-', '_' and '.'"
            raise bad_request(what, field="name")
        if new.kind not in KINDS:
            meant = nearest(new.kind, KINDS)
            hint = f"did you mean {meant}?" if meant else f"use {', '.join(KINDS)}"
            raise bad_request(f"{one_line(new.kind, 40)!r} is not a kind of channel: {hint}", field="kind")

    def _check_known(self, new: NewChannel, known: Row | None) -> None:
        if known is None:
            if len(self._db.all("SELECT id FROM alert_channels")) >= MAX_CHANNELS:
                raise conflict(f"There are {MAX_CHANNELS} alert channels already", "LIMIT")
            return
        if not new.replace or known["kind"] != new.kind:
            fix = "change it with --replace" if known["kind"] == new.kind else "choose another name"
            raise conflict(f"There is an alert channel {new.name} of kind {known['kind']}; {fix}", "EXISTS")

    def remove(self, name: str) -> None:
        """Remove a channel with its messages; ErrorResponse 404."""
        row = self._db.one_locked("SELECT * FROM alert_channels WHERE name = ?", name)  # waits for `hold`
        if row is None:
            raise self._unknown(name)
        sql = (
            "DELETE FROM jobs WHERE kind = 'alert'"
            " AND job_key IN (SELECT CAST(m.id AS TEXT) FROM alert_messages m WHERE m.channel_id = ?)"
        )
        self._db.run(sql, row["id"])
        for table in ("alert_messages", "alert_groups"):
            self._db.run(f"DELETE FROM {table} WHERE channel_id = ?", row["id"])
        self._db.run("DELETE FROM alert_channels WHERE id = ?", row["id"])

    def show_all(self) -> list[dict[str, Any]]:
        """Return all channels by name, without their secrets."""
        rows = self._db.all("SELECT * FROM alert_channels ORDER BY name")
        return [self._shown_row(row) for row in rows]

    def show(self, name: str) -> dict[str, Any]:
        """Return a channel, without its secrets; ErrorResponse 404."""
        return self._shown_row(self._require(name))

    def _shown_row(self, row: Row) -> dict[str, Any]:
        """Return a channel; of one that cannot be read, its name and why."""
        try:
            return self._shown(self._channel(row), row)
        except ConfigError as error:
            unread = Channel(
                id=row["id"],
                name=row["name"],
                kind=row["kind"],
                settings=ChannelSettings(),
                created_at=row["created_at"],
                secrets={"url": "//"},
            )
            return self._shown(unread, row) | {"to": "", "secrets": [], "problem": str(error)}

    def _shown(self, channel: Channel, row: Row | None) -> dict[str, Any]:
        counts = self._db.one(
            "SELECT coalesce(sum(CASE WHEN state = 'due' THEN 1 ELSE 0 END), 0) AS due,"
            " coalesce(sum(CASE WHEN state = 'dead' AND dismissed_at IS NULL THEN 1 ELSE 0 END), 0) AS dead,"
            " max(CASE WHEN state = 'sent' THEN ended_at END) AS sent_at FROM alert_messages WHERE channel_id = ?",
            channel.id,
        )
        failing = self._db.one(
            "SELECT problem FROM alert_messages WHERE channel_id = ? AND state != 'sent' AND problem != ''"
            " AND (state = 'due' OR dismissed_at IS NULL) ORDER BY id DESC LIMIT 1",
            channel.id,
        )
        return {
            "name": channel.name,
            "kind": channel.kind,
            "to": channel.to,
            "settings": to_store(channel.settings),
            "secrets": sorted(channel.secrets),
            "due": 0 if counts is None else int(counts["due"]),
            "dead": 0 if counts is None else int(counts["dead"]),
            "last_sent_at": None if counts is None else when(counts["sent_at"]),
            "problem": "" if failing is None else failing["problem"],
            "created_at": when(channel.created_at),
            "updated_at": when(channel.created_at if row is None else row["updated_at"]),
        }

    def _require(self, name: str) -> Row:
        row = self._db.one("SELECT * FROM alert_channels WHERE name = ?", name)
        if row is None:
            raise self._unknown(name)
        return row

    def _unknown(self, name: str) -> ErrorResponse:
        known = [row["name"] for row in self._db.all("SELECT name FROM alert_channels ORDER BY name")]
        meant = nearest(name, known)
        hint = f": did you mean {meant}?" if meant else "; see plane alerts list"
        return not_found(f"There is no alert channel {one_line(name, 64)!r}{hint}")

    def _channel(self, row: Row) -> Channel:
        if row["kind"] not in KINDS:
            raise ConfigError(
                f"is of kind {row['kind']}, which this release does not know", fix="run the newer release"
            )
        plain = self._keyring.unseal(_purpose(row["name"]), bytes(row["secrets_enc"]))
        return Channel(
            id=row["id"],
            name=row["name"],
            kind=row["kind"],
            settings=channel_settings.stored(json.loads(row["settings"])),
            created_at=row["created_at"],
            secrets=json.loads(plain),
        )


def context_of(settings: ChannelSettings) -> ssl.SSLContext:
    """Return the TLS context of a channel, which verifies its receiver. Raises ConfigError."""
    from certctrl.net.tls import client_context

    if not settings.ca_pem:
        return client_context([], None, None)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # includes CERT_REQUIRED and check_hostname
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cadata=settings.ca_pem)
    except ssl.SSLError:
        raise ConfigError("is not a PEM certificate", path="ca_pem", fix="give the CA of the receiver in PEM") from None
    return context


def _purpose(name: str) -> str:
    return f"alert channel {name}"


def _kept(known: Channel, new: NewChannel, settings: ChannelSettings) -> dict[str, str]:
    """Return the secrets that stay: none that would be sent to another receiver than before."""
    found = dict(known.secrets)
    if settings.host != known.settings.host:
        found.pop("password", None)
    if new.kind == PAGERDUTY and new.secrets.get("url", known.url) != known.url:
        found.pop("routing_key", None)
    return found


def _secrets(new: NewChannel, settings: ChannelSettings, kept: dict[str, str]) -> tuple[dict[str, str], str]:
    """Return all secrets of a channel, and the one that was made here, if any. Raises ConfigError."""
    allowed = SECRETS[new.kind]
    for name, value in new.secrets.items():
        if name not in allowed:
            raise ConfigError(
                f"is not a secret of channels of kind {new.kind}", path=name, fix=f"use {', '.join(allowed)}"
            )
        if not value or len(value) > MAX_SECRET_BYTES or not value.isprintable():
            raise ConfigError("is not one line of text", path=name, fix="write it to the file as one line")
    found, made = kept | dict(new.secrets), ""
    if new.kind == MAIL:
        if not settings.user:
            found.pop("password", None)
        if bool(found.get("password")) != bool(settings.user):
            raise ConfigError("must be given together with a user", path="password", fix="give both or none")
        return found, made
    if allowed[0] not in found:
        raise ConfigError("is not set", path=allowed[0], fix="give it")
    if "url" in found or new.kind != PAGERDUTY:
        channel_settings.check_url(found["url"], allow_local=settings.allow_local)
    if new.kind == WEBHOOK and "signing_secret" not in found:
        made = found["signing_secret"] = SECRET_START + base64.b64encode(random.token_bytes(32)).decode()
    elif new.kind == WEBHOOK:
        try:
            secret_bytes(found["signing_secret"])
        except ValueError:
            fix = "use whsec_ and 24 to 64 bytes in base64, or leave it out: the control plane makes one"
            raise ConfigError("is not a signing secret", path="signing_secret", fix=fix) from None
    return found, made
