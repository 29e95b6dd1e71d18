"""Explain why an exchange failed, in one line, with a fix.

The HTTP library reports a refused certificate as an error without text; the reason is several causes below it.
Messages contain nothing of the request; texts of the peer are escaped and shortened.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime

from certctrl.errors import BadAnswerError, DeadlineError, TlsError, TransportError
from certctrl.text import one_line

_EXPIRED, _NOT_YET, _HOSTNAME, _ADDRESS = 10, 9, 62, 64  # OpenSSL's X509_V_ERR_*
_UNKNOWN_ISSUER = (2, 18, 19, 20, 21, 27)
_AGAIN = (  # TLS 1.3: a server that requires our certificate may close the connection before its alert is read
    "try again; if it persists, check the plane's log, proxies in between, and whether the plane requires a "
    "client certificate"
)

_NO_TLS = "if the control plane speaks TLS on that port, write https:// in server_url"
_PROXY = "proxy in httpclient_config.json"
_TLS_REASONS = {
    "WRONG_VERSION_NUMBER": ("does not speak TLS on that port", "check scheme and port of server_url"),
    "HTTP_REQUEST": ("does not speak TLS on that port", "check scheme and port of server_url"),
    "UNSUPPORTED_PROTOCOL": ("offers no TLS 1.2 or newer", "enable TLS 1.2 or 1.3 on the plane"),
    "TLSV1_ALERT_PROTOCOL_VERSION": ("offers no TLS 1.2 or newer", "enable TLS 1.2 or 1.3 on the plane"),
    "CERTIFICATE_REQUIRED": ("requires a client certificate", "set client_certificate in httpclient_config.json"),
    "UNKNOWN_CA": ("refused our client certificate", "check client_certificate in httpclient_config.json"),
    "BAD_CERTIFICATE": ("refused our client certificate", "check client_certificate in httpclient_config.json"),
    "HANDSHAKE_FAILURE": (
        "refused the TLS handshake: no common cipher, or it requires a client certificate",
        "check client_certificate in httpclient_config.json, then the plane's TLS settings",
    ),
    "CERTIFICATE_EXPIRED": (
        "refused our client certificate: it has expired",
        "renew client_certificate in httpclient_config.json",
    ),
    "UNEXPECTED_EOF": ("closed the connection during the TLS handshake", "check host and port of server_url"),
}


def utc(now: float | None) -> str:
    """Return a wall-clock time as text; never raises, even for an absurd time."""
    if now is None:
        return "the time of `date -u`"
    try:
        return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, OSError, ValueError):
        return f"{now:.0f} s after 1970"


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and, once each, its causes, contexts and members of groups."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        todo += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            todo += one.exceptions


def connect_error(
    error: BaseException, place: str, *, now: float | None, own_ca: bool, proxy: str = ""
) -> TransportError:
    """Return the error for a connection that could not be opened; nothing was sent.

    ``place`` and ``proxy`` are HOST:PORT; with a proxy, only TLS is spoken with ``place`` itself. ``now`` is this
    host's wall clock, ``own_ca`` whether ``ca_files`` replaces the system trust store.
    """
    below = list(causes(error))
    found = _tls_error(below, place, now=now, own_ca=own_ca) or _os_error(below, place, proxy)
    if found is None:
        whom, setting = (f"the proxy {proxy}", _PROXY) if proxy else (place, "server_url")
        found = TransportError(f"cannot connect to {whom}", fix=f"check {setting} and the network")
    return unsent(found)


def exchange_error(
    error: BaseException, place: str, *, now: float | None, own_ca: bool, plain: bool = False, proxy: str = ""
) -> TransportError:
    """Return the error for a connection that broke during an exchange.

    ``plain``: the plane's URL is http. ``proxy``: HOST:PORT of a proxy that broke it before it reached the plane.
    """
    place, setting = (f"the proxy {proxy}", _PROXY) if proxy else (place, "server_url")
    below = list(causes(error))
    found = _tls_error(below, place, now=now, own_ca=own_ca)
    if found is not None:
        return found
    again = _NO_TLS if plain else _AGAIN
    for one in below:
        if isinstance(one, OSError) and one.errno is not None:
            return TransportError(f"connection to {place} broke: {_strerror(one)}", fix=again)
    text = str(error)
    if "disconnected" in text or "closed connection" in text or not text:
        return TransportError(f"{place} closed the connection during an exchange", fix=again)
    if plain:
        return BadAnswerError(f"{place} does not answer in plain HTTP", fix=_NO_TLS)
    # All others are errors of the HTTP parser, whose texts may quote the peer's bytes.
    return BadAnswerError(
        f"{place} does not answer in HTTP: {one_line(text, ascii_only=True)}", fix=f"check host and port of {setting}"
    )


def deadline_error(seconds: float, place: str, *, sent: bool, proxy: str = "") -> DeadlineError:
    """Return the error for an exchange that exceeded its deadline."""
    fix = "check the network between this host and the plane, then the plane"
    what = f"no complete answer from {place}" if sent else f"no connection to {place}"
    if proxy and not sent:
        what, fix = f"{what} through the proxy {proxy}", f"check {_PROXY}, then the network between proxy and plane"
    error = DeadlineError(f"{what} within {seconds:g} s", fix=fix)
    error.maybe_sent = sent
    return error


def unsendable() -> TransportError:
    """Return the error for a header that cannot be sent; the header is not quoted."""
    what = "a request header cannot be sent: the stored token contains invalid characters"
    return unsent(TransportError(what, fix="run cert-ctrl register again"))


def unsent(error: TransportError) -> TransportError:
    """Mark an error of a request that never reached the plane."""
    error.maybe_sent = False
    return error


def _tls_error(below: list[BaseException], place: str, *, now: float | None, own_ca: bool) -> TlsError | None:
    for one in below:
        if isinstance(one, ssl.SSLCertVerificationError):
            return _refused_certificate(one, place, now=now, own_ca=own_ca)
    for one in below:
        if isinstance(one, ssl.SSLError):
            reason = f"{getattr(one, 'reason', None) or ''} {one}"
            for word, (what, fix) in _TLS_REASONS.items():
                if word in reason:
                    return TlsError(f"{place} {what}", fix=fix)
            return TlsError(
                f"TLS with {place} failed: {one_line(str(getattr(one, 'reason', None) or one), ascii_only=True)}",
                fix="check host and port of server_url, then the plane's TLS settings",
            )
    return None


def _refused_certificate(
    error: ssl.SSLCertVerificationError, place: str, *, now: float | None, own_ca: bool
) -> TlsError:
    code, message = error.verify_code, one_line(error.verify_message or "refused", ascii_only=True)
    if code == _EXPIRED:
        return TlsError(
            f"the certificate of {place} has expired, or this host's clock is wrong: it says {utc(now)}",
            fix="compare with `date -u` elsewhere; if the clock is right, renew the plane's own certificate",
        )
    if code == _NOT_YET:
        return TlsError(
            f"the certificate of {place} is not valid yet by this host's clock, which says {utc(now)}",
            fix="set this host's clock (timedatectl set-ntp true)",
        )
    if code in (_HOSTNAME, _ADDRESS):
        return TlsError(
            f"the certificate of {place} is for another name: {message}",
            fix="set server_url to a name in the certificate",
        )
    if code in _UNKNOWN_ISSUER:
        signer, fix = "a CA this host trusts", "add the plane's CA: cert-ctrl -c DIR init --ca FILE"
        if own_ca:
            signer = "the CA in ca_files"
            fix = "compare the plane's CA with ca_files in httpclient_config.json; if it changed on purpose, replace it"
        return TlsError(f"the certificate of {place} is not signed by {signer} ({message})", fix=fix)
    return TlsError(f"the certificate of {place} is refused: {message}", fix="check the plane's own certificate")


def _os_error(below: list[BaseException], place: str, proxy: str) -> TransportError | None:
    setting, it = (_PROXY, "the proxy") if proxy else ("server_url", "the plane")
    place = f"the proxy {proxy}" if proxy else place
    errors = [one for one in below if isinstance(one, OSError) and one.errno is not None]
    for one in errors:
        if isinstance(one, socket.gaierror):
            return TransportError(
                f"cannot resolve the host of {place}: {_strerror(one)}",
                fix=f"check the name in {setting}, then this host's DNS (getent hosts NAME)",
            )
    for one in errors:
        if one.errno == errno.ECONNREFUSED:
            return TransportError(
                f"nothing listens at {place} (connection refused)", fix=f"check {setting}, and that {it} runs"
            )
    for one in errors:
        return TransportError(
            f"cannot connect to {place}: {_strerror(one)}",
            fix=f"check {setting} and the network (ip route get ADDRESS)",
        )
    return None


def _strerror(error: OSError) -> str:
    return one_line(error.strerror or type(error).__name__, ascii_only=True)
