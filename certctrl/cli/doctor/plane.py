"""Check the connection to the control plane: DNS, TLS, clock, token."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio

from certctrl.cli.doctor.clock import CLOCK_FIX
from certctrl.cli.doctor.finding import CheckContext, Finding, Report, fail, failed, ok, warn
from certctrl.errors import CertctrlError

if TYPE_CHECKING:
    from certctrl.model.config import AgentConfig
    from certctrl.net.http import Http
    from certctrl.store.layout import ConfigDir

ANSWER_SECONDS = 10.0
DNS_SECONDS = 5.0
ANSWER_CAP = 256 * 1024
SKEW_WARN, SKEW_FAIL = 5.0, 120.0
"""Seconds between the plane's Date and this clock; an access token is valid for 900 s."""
HEALTH = "/health"

OpenHttp = Callable[["AgentConfig", "ConfigDir"], "Http"]


async def check_plane(context: CheckContext, config: AgentConfig, open_http: OpenHttp, report: Report) -> None:
    """Report on the connection to the plane; skip checks that depend on a failed one."""
    proxy = _unused_proxy(config)
    if proxy is not None:
        report(proxy)
    report(await _dns(config))
    try:
        http = open_http(config, context.layout)
    except CertctrlError as error:
        report(failed("tls", error))
        return
    try:
        await _exchange(context, config, http, report)
    finally:
        with trio.move_on_after(2, shield=True):
            await http.aclose()


def _unused_proxy(config: AgentConfig) -> Finding | None:
    """Return a warning for a proxy that a loopback URL bypasses."""
    from certctrl.model.config import is_loopback
    from certctrl.model.origin import parse_origin, parse_proxy

    host = parse_origin(config.application.server_url, allow_http_loopback=True).host
    proxy = parse_proxy(config.httpclient.proxy)
    if proxy is None or not is_loopback(host):
        return None
    what = f"the proxy {proxy.place} is not used: {host} is a loopback address"
    return warn("proxy", what, "remove proxy from httpclient_config.json, or correct server_url")


async def _dns(config: AgentConfig) -> Finding:
    from urllib.parse import urlsplit

    proxy = "" if _unused_proxy(config) is not None else config.httpclient.proxy
    target = urlsplit(proxy or config.application.server_url)
    host, whose = target.hostname or "", "proxy" if proxy else "control plane"
    setting = "proxy in httpclient_config.json" if proxy else "server_url"
    port = target.port or (443 if target.scheme == "https" else 80)
    with trio.move_on_after(DNS_SECONDS):
        try:
            found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or str(error)
            return fail("dns", f"cannot resolve {host} ({whose}): {why}", f"correct {setting} or /etc/resolv.conf")
        addresses = ", ".join(dict.fromkeys(str(address[0]) for *_, address in found))
        return ok("dns", f"{whose} {host}: {addresses}")
    return fail("dns", f"no DNS answer for {host} within {DNS_SECONDS:g} s", "check the resolvers in /etc/resolv.conf")


async def _exchange(context: CheckContext, config: AgentConfig, http: Http, report: Report) -> None:
    try:
        answer = await http.request("GET", HEALTH, deadline=ANSWER_SECONDS, cap=ANSWER_CAP)
    except CertctrlError as error:
        report(failed("tls", error))
        return
    server = f"{config.application.server_url} answers"
    if config.application.server_url.startswith("https:"):
        report(ok("tls", f"{server}; its certificate is trusted"))
    else:
        report(
            warn("tls", f"{server} without TLS", "use an https:// server_url; plain http is only for tests on loopback")
        )
    clock = _clock(answer.headers.get("date"), context.now())
    if clock is not None:
        report(clock)
    report(await _token(context, config, http))


def _clock(date: str | None, now: float) -> Finding | None:
    """Compare the plane's Date header with this clock; None without a valid header."""
    from email.utils import parsedate_to_datetime

    if not date:
        return None
    try:
        skew = parsedate_to_datetime(date).timestamp() + 0.5 - now
    except (ValueError, OverflowError):
        return None
    what = f"this host's clock is {abs(skew):.0f} s {'behind' if skew > 0 else 'ahead of'} the control plane's"
    if abs(skew) > SKEW_FAIL:
        return fail("clock", what, CLOCK_FIX)
    if abs(skew) > SKEW_WARN:
        return warn("clock", what, CLOCK_FIX)
    return ok("clock", f"within {SKEW_WARN:g} s of the control plane's")


async def _token(context: CheckContext, config: AgentConfig, http: Http) -> Finding:
    """Check with one short poll whether the plane accepts the access token."""
    from certctrl.net.control_plane import ControlPlane
    from certctrl.protocol import steps

    try:
        tokens, cursor = context.store.session.load_tokens(), context.store.session.load_cursor()
    except CertctrlError as error:
        return failed("token", error)
    if tokens is None:
        return fail("token", "no access token: this device is not registered", "cert-ctrl -c DIR register")
    plane = ControlPlane(http, config, wall_now=context.now)
    return _token_finding(await plane.poll(tokens.access_token, steps.Poll(cursor, 1, 0)))


def _token_finding(event: Any) -> Finding:
    from certctrl.protocol import events

    register = "cert-ctrl -c DIR register"
    match event:
        case events.NoUpdates() | events.Updates():
            return ok("token", "the control plane accepts the access token")
        case events.CursorExpired():
            return ok(
                "token", "the control plane accepts the access token; the cursor has expired, so the next poll resyncs"
            )
        case events.TokenExpired():
            what = "the access token has expired; the next poll refreshes it"
            return warn("token", what, "cert-ctrl -c DIR poll-now, or start the daemon")
        case events.DeviceRevoked():
            return fail("token", f"the control plane has revoked this device: {event.what}", register)
        case events.ServerBusy():
            return warn("token", f"not checked: the control plane is busy (status {event.status})", "try again later")
        case events.Refused():
            return fail("token", f"refused: {event.status} {event.key} {event.what}".rstrip(), register)
        case _:
            return fail(
                "token",
                f"no usable answer: {getattr(event, 'why', event)}",
                "check server_url, and any proxy in between",
            )
