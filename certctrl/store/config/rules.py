"""Rules for the operator's files beyond types and bounds: URLs, addresses, paths, combinations of settings."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from certctrl.errors import ConfigError
from certctrl.model.challenges import pattern_fault
from certctrl.model.commands import script_words
from certctrl.model.config import AgentConfig, listen_address
from certctrl.model.origin import parse_origin, parse_proxy
from certctrl.model.paths import path_fault
from certctrl.model.policy import DAYS, AcmeAnswers, HostPolicy, KeyType, MaintenanceWindow, NamedCommand, minutes_of
from certctrl.model.priority import Priority
from certctrl.store.structure import Mismatch, check_choice
from certctrl.text import is_name

_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_config(config: AgentConfig) -> None:
    """Check values and combinations of settings. Raises Mismatch; its path begins with the section."""
    settings, client = config.application, config.httpclient
    check_server_url(settings.server_url, loopback_http=settings.allow_http_loopback)
    if settings.approval_host and not _is_host(settings.approval_host):
        raise Mismatch("application.approval_host", "expected a host name without scheme and port")
    if not settings.refresh_path.startswith("/"):
        raise Mismatch("application.refresh_path", "expected a path that starts with /")
    if settings.metrics_listen:
        try:
            listen_address(settings.metrics_listen, public=settings.metrics_public)
        except ValueError as error:
            fix = "use 127.0.0.1:9464, or set metrics_public to true for other addresses"
            raise Mismatch("application.metrics_listen", str(error), fix) from None
    if settings.metrics_textfile and not settings.metrics_textfile.startswith("/"):
        raise Mismatch("application.metrics_textfile", "expected an absolute path")
    for signal, seconds in settings.signal_timeouts.items():
        if not 1 <= seconds <= 3600:
            raise Mismatch(f"application.signal_timeouts.{signal}", "expected 1 to 3600 seconds")
    check_order(settings.priority_order)
    try:
        parse_proxy(client.proxy)
    except ConfigError as error:
        raise Mismatch("httpclient.proxy", error.reason, error.fix) from None
    for one, other in (("client_certificate", "client_key"), ("client_key", "client_certificate")):
        if getattr(client, one) and not getattr(client, other):
            raise Mismatch(f"httpclient.{other}", f"is missing, but {one} is set")
    if "/" in config.log.file or config.log.file in (".", ".."):
        raise Mismatch("log.file", "expected a file name, not a path: it is created in logs/")


def check_order(order: Sequence[Priority]) -> None:
    """Check that an order has each class of signals once."""
    where = "application.priority_order"
    for number, one in enumerate(order):
        if one in order[:number]:
            raise Mismatch(f"{where}[{number}]", f"{one.value} is there twice", "name each class once")
    if missing := [one.value for one in Priority if one not in order]:
        raise Mismatch(where, f"lacks {', '.join(missing)}", f"name each class once: {', '.join(Priority)}")


def check_server_url(url: str, *, loopback_http: bool) -> None:
    """Check the control plane's URL as `parse_origin` does."""
    try:
        parse_origin(url, allow_http_loopback=loopback_http)
    except ConfigError as error:
        raise Mismatch("application.server_url", error.reason, error.fix) from None


def _is_host(text: str) -> bool:
    try:
        return urlsplit(f"https://{text}").hostname == text.lower()
    except ValueError:
        return False


def check_policy(policy: HostPolicy) -> None:
    """Check the host's policy. Raises Mismatch."""
    for number, root in enumerate(policy.write_roots):
        check_absolute(root, f"write_roots[{number}]")
        if root == "/":
            raise Mismatch(f"write_roots[{number}]", "expected a directory below /", "name a directory")
    for name, command in policy.commands.items():
        _check_command(command, f"commands.{name}")
    for number, endpoint in enumerate(policy.probe):
        _check_endpoint(endpoint, f"probe[{number}]")
    if not policy.key_types:
        kinds = ", ".join(kind.value for kind in KeyType)
        raise Mismatch("key_types", f"expected at least one of {kinds}", "remove the line to allow all")
    if not 0 <= policy.unassign_grace <= 30 * 86_400:
        raise Mismatch("unassign_grace", "expected 0 to 2592000 seconds")
    if policy.on_alert is not None:
        _check_argv(policy.on_alert, "on_alert")
    if policy.window is not None:
        _check_window(policy.window)
    if policy.trust_store.directory is not None:
        check_absolute(policy.trust_store.directory, "trust_store.directory")
    if policy.trust_store.command is not None:
        _check_argv(policy.trust_store.command, "trust_store.command")
    _check_acme(policy.acme)


def _check_acme(acme: AcmeAnswers) -> None:
    if acme.http01_directory is not None:
        check_absolute(acme.http01_directory, "acme.http01_directory")
        if acme.http01_directory == "/":
            raise Mismatch("acme.http01_directory", "expected a directory below /", "name a directory")
    listens = {"http01_listen": (acme.http01_listen, 80), "tls_alpn01_listen": (acme.tls_alpn01_listen, 443)}
    for name, (listen, port) in listens.items():
        try:
            bound = listen_address(listen, public=True)[1] if listen is not None else port
        except ValueError:
            bound = 0
        if not bound:
            raise Mismatch(f"acme.{name}", "expected ADDRESS:PORT", f"use 0.0.0.0:{port} or [::]:{port}")
    for number, pattern in enumerate(acme.names):
        if fault := pattern_fault(pattern):
            raise Mismatch(f"acme.names[{number}]", fault)


def check_absolute(path: str, where: str) -> None:
    """Check that a path is absolute and normalized: no ``..``, no ``//``, no final slash."""
    if path != "/" and path_fault(path):
        raise Mismatch(where, "expected an absolute path without . or .. and without a final slash")


def _check_endpoint(endpoint: str, where: str) -> None:
    """Check an address, a name, or one of them with a port."""
    host, port = endpoint, "1"
    if not _is_address(endpoint) and ":" in endpoint:
        host, _, port = endpoint.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not (is_name(host) or _is_address(host)) or not port.isdecimal() or not 0 < int(port) <= 65_535:
        raise Mismatch(where, "expected HOST or HOST:PORT, an IPv6 address with a port in brackets")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def _check_command(command: NamedCommand, where: str) -> None:
    _check_argv(command.argv, f"{where}.argv")
    if not 1 <= command.timeout_seconds <= 600:
        raise Mismatch(f"{where}.timeout_seconds", "expected 1 to 600 seconds")
    if command.sha256 is not None and not _SHA256.fullmatch(command.sha256):
        raise Mismatch(f"{where}.sha256", "expected 64 lower-case hex digits", "sha256sum the executable")
    if command.script_sha256 is not None:
        if not _SHA256.fullmatch(command.script_sha256):
            raise Mismatch(f"{where}.script_sha256", "expected 64 lower-case hex digits", "sha256sum the script")
        if not script_words(command.argv):
            fix = "use sha256, which pins the program"
            raise Mismatch(f"{where}.script_sha256", "argv does not name an interpreter and a script", fix)


def _check_argv(argv: Sequence[str], where: str) -> None:
    if not argv:
        raise Mismatch(where, "expected an executable and its arguments, found an empty list")
    check_absolute(argv[0], f"{where}[0]")


def _check_window(window: MaintenanceWindow) -> None:
    if not window.days:
        raise Mismatch("window.days", "expected at least one day")
    for number, day in enumerate(window.days):
        check_choice(day, DAYS, f"window.days[{number}]")
    times: Mapping[str, str] = {"window.from": window.from_, "window.to": window.to}
    for where, text in times.items():
        if minutes_of(text) is None:
            raise Mismatch(where, "expected HH:MM from 00:00 to 24:00")
    if not 0 <= window.override_when_life_below <= 1:
        raise Mismatch("window.override_when_life_below", "expected 0 to 1")
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # here: few hosts have a window

    try:
        ZoneInfo(window.timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        fix = "use a name such as UTC or Europe/Berlin; the tzdata package must be installed"
        raise Mismatch("window.timezone", "expected the name of a time zone", fix) from None
