"""The settings of alert channels: what a channel wants, when, and where it leads."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from datetime import UTC, datetime, tzinfo
from email.utils import getaddresses, parseaddr
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from certctrl import lean
from certctrl.errors import ConfigError
from certctrl.model.config import is_loopback
from certctrl.plane.alerts.addresses import refused
from certctrl.plane.alerts.conditions import Condition, Event
from certctrl.plane.alerts.decision import Rules
from certctrl.plane.alerts.mail import IMPLICIT, NONE, STARTTLS
from certctrl.plane.rollouts.plan import RulesError, windows_of
from certctrl.plane.setting_hooks import SettingsClass, Unfit, choice, flag, line, texts, whole
from certctrl.plane.settings import DAY
from certctrl.text import is_name, nearest, one_line

WEBHOOK, SLACK, PAGERDUTY, MAIL = "webhook", "slack", "pagerduty", "mail"
KINDS = (WEBHOOK, SLACK, PAGERDUTY, MAIL)
PAGERDUTY_URL = "https://events.pagerduty.com/v2/enqueue"
SECRETS: Mapping[str, tuple[str, ...]] = {
    WEBHOOK: ("url", "signing_secret"),
    SLACK: ("url",),
    PAGERDUTY: ("routing_key", "url"),
    MAIL: ("password",),
}
"""Kind -> the secrets that its channels may have; the first one is required, except a password."""
_MAX_CA = 64 * 1024
_MAX_URL = 2000
_PORTS = {STARTTLS: 587, IMPLICIT: 465, NONE: 25}
_OF_MAIL = ("host", "port", "tls", "user", "sender", "recipients")
_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,250}", re.ASCII)


@lean.frozen(kw_only=True)
class ChannelSettings:
    """The settings of one channel; empty texts are not set."""

    events: tuple[str, ...] = ()
    """Empty: all."""
    quiet: tuple[str, ...] = ()
    """``HH:MM-HH:MM``, in ``time_zone``."""
    time_zone: str = "UTC"
    wait_seconds: int = 60
    interval_seconds: int = 600
    repeat_seconds: int = DAY
    silent_seconds: int = 3600
    """A silent device counts only after so long."""
    allow_local: bool = False
    """Whether it may lead to the control plane's own host, and to link-local addresses."""
    ca_pem: str = ""
    """CA of the receiver; empty: the system's CAs."""
    host: str = ""
    port: int = 0
    """0: by ``tls``."""
    tls: str = STARTTLS
    user: str = ""
    sender: str = ""
    recipients: tuple[str, ...] = ()

    @property
    def rules(self) -> Rules:
        """When messages are due."""
        return Rules(
            wait_seconds=float(self.wait_seconds),
            interval_seconds=float(self.interval_seconds),
            repeat_seconds=float(self.repeat_seconds),
        )

    @property
    def mail_port(self) -> int:
        """The port of the mail server."""
        return self.port or _PORTS[self.tls]

    def is_quiet(self, now: float) -> bool:
        """Return whether a time is within the quiet hours."""
        if not self.quiet:
            return False
        offset = datetime.fromtimestamp(now, _zone(self.time_zone)).utcoffset()
        local = now + (offset.total_seconds() if offset is not None else 0.0)
        return any(window.contains(local) for window in windows_of(self.quiet))

    def wants(self, one: Condition, now: float, since: float) -> bool:
        """Return whether the channel is told of a condition; ``since``: when it was added."""
        if self.events and one.event.value not in self.events:
            return False
        if one.event is Event.DEVICE_SILENT:
            return now - one.since >= self.silent_seconds
        return one.has_end or one.since >= since


def _zone(name: str) -> tzinfo:
    """Return a time zone; UTC if this host does not know it, so that nothing is held back forever."""
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        return UTC


def _check_events(events: tuple[str, ...]) -> None:
    """Raise ConfigError for unknown ones; stored ones may be those of a later release."""
    known = [event.value for event in Event]
    for one in events:
        if one not in known:
            meant = nearest(one, known)
            fix = f"use {meant!r}" if meant else f"use {', '.join(known)}"
            raise ConfigError(f"contains {one_line(one, 40)!r}, which is not an event", path="events", fix=fix)


def _quiet(value: Any, _: Any = None) -> tuple[str, ...]:
    found = texts(value)
    try:
        windows_of(found)
    except RulesError:
        raise Unfit("contains a text that is not a time of the day", "use HH:MM-HH:MM, such as 22:00-06:00") from None
    return found


def _time_zone(value: Any, _: Any = None) -> str:
    name: str = line(60)(value, str)
    try:
        ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        fix = "use a name such as Europe/Berlin or UTC; the control plane's host needs the package tzdata"
        raise Unfit(f"is {one_line(name, 60)!r}, which is not a known time zone", fix) from None
    return name


def _pem(value: Any, _: Any = None) -> str:
    if value == "":
        return ""
    if not isinstance(value, str) or len(value) > _MAX_CA or "-----BEGIN CERTIFICATE-----" not in value:
        raise Unfit("is not a PEM certificate", "give the CA of the receiver in PEM")
    if "PRIVATE KEY" in value:
        raise Unfit("contains a private key", "give only the certificate")
    return value


def _host(value: Any, _: Any = None) -> str:
    found: str = line(255)(value, str).strip("[]")
    if not found:
        return ""
    try:
        ipaddress.ip_address(found)
    except ValueError:
        if not found.isascii() or not is_name(found) or found.replace(".", "").isdigit():
            raise Unfit(f"is {one_line(found, 60)!r}", "use the name or address of the mail server") from None
    return found


def _sender(value: Any, _: Any = None) -> str:
    return "" if value == "" else _address(value)


def _address(value: Any, _: Any = None) -> str:
    found: str = line(320)(value, str)
    is_one = len(getaddresses([found])) == 1  # the header would name all, but only the first would get the mail
    if not found.isascii() or not is_one or not _ADDRESS.fullmatch(parseaddr(found)[1]):
        raise Unfit(f"is {one_line(found, 60)!r}, which is not a mail address", "use NAME@DOMAIN")
    return found


def _addresses(value: Any, _: Any = None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_address(one) for one in texts(value)))


def _repeat(value: Any, _: Any = None) -> int:
    return 0 if value == 0 else whole(600, 30 * DAY)(value, int)


_CLASS = SettingsClass(
    ChannelSettings,
    {
        "events": texts,
        "quiet": _quiet,
        "time_zone": _time_zone,
        "wait_seconds": whole(0, 3600),
        "interval_seconds": whole(0, DAY),
        "repeat_seconds": _repeat,
        "silent_seconds": whole(0, 30 * DAY),
        "allow_local": flag,
        "ca_pem": _pem,
        "host": _host,
        "port": whole(0, 65_535),
        "tls": choice((STARTTLS, IMPLICIT, NONE)),
        "user": line(200),
        "sender": _sender,
        "recipients": _addresses,
    },
    unknown="is not a setting of a channel",
)


def given(kind: str, value: object) -> ChannelSettings:
    """Return the settings that an operator gives. Raises ConfigError, which names the field."""
    found = _CLASS.given(value)
    _check_events(found.events)
    if kind == MAIL:
        _check_mail(found)
        return found
    for name in _OF_MAIL:
        if isinstance(value, Mapping) and name in value:
            raise ConfigError(f"belongs to channels of kind {MAIL}", path=name, fix="leave it out")
    return found


def stored(text: object) -> ChannelSettings:
    """Return the settings that were stored. Raises ConfigError."""
    return _CLASS.stored(text)


def _check_mail(found: ChannelSettings) -> None:
    for name in ("host", "sender", "recipients"):
        if not getattr(found, name):
            raise ConfigError("is not set", path=name, fix="set it")
    if found.user and found.tls == NONE:
        raise ConfigError("would send the password without TLS", path="tls", fix=f"use {STARTTLS} or {IMPLICIT}")
    if not found.allow_local and _is_literal(found.host) and (why := refused(found.host)):
        raise ConfigError(f"is {why}", path="host", fix="if that is intended, add --allow-local")


def check_url(url: str, *, allow_local: bool) -> str:
    """Return a URL that alerts may be sent to; raises ConfigError, which does not contain it."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        parts, host = urlsplit(""), ""
    plain = url.isascii() and url.isprintable() and " " not in url and len(url) <= _MAX_URL
    usable = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host) and allow_local)
    if not host or not plain or not usable or parts.username is not None or parts.fragment:
        raise ConfigError("is not an https URL", path="url", fix="use https://HOST/PATH, without user and password")
    if not allow_local and (is_loopback(host) or (_is_literal(host) and refused(host))):
        what = f"leads to {host}, {refused(host) if _is_literal(host) else 'the control plane itself'}"
        raise ConfigError(what, path="url", fix="if that is intended, add --allow-local")
    return url


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
