"""Renewal information (RFC 9773): when a CA wants a certificate to be renewed, and which one an order replaces."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from cryptography import x509

from certctrl import lean
from certctrl.plane.acme.answers import invalid_answer, read_as
from certctrl.plane.acme.encoding import to_base64url
from certctrl.plane.acme.problems import line
from certctrl.plane.issuers.issuer import RenewalWindow
from certctrl.protocol.wire.reader import Misfit, or_default, text, wire_class

MAX_CHECK_SECONDS = 86_400.0
DEFAULT_CHECK_SECONDS = 6 * 3600.0
_MIN_CHECK_SECONDS = 60.0


def certificate_id(certificate: x509.Certificate) -> str:
    """Return the id of a certificate (section 4.1); empty if it does not name its issuer's key."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return ""
    if not found:
        return ""
    serial = certificate.serial_number
    return f"{to_base64url(found)}.{to_base64url(serial.to_bytes(serial.bit_length() // 8 + 1, 'big'))}"


def read_window(found: Mapping[str, Any], now: float, retry_after: float | None) -> RenewalWindow:
    """Return the window of an answer (section 4.2); raises IssuerError."""
    info = read_as(_info, found, "renewal information")
    window = info.window
    if window.end <= window.start:
        raise invalid_answer("renewal information", "its window ends before it starts")
    pause = DEFAULT_CHECK_SECONDS if retry_after is None else min(retry_after, MAX_CHECK_SECONDS)
    return RenewalWindow(window.start, window.end, info.url, now + max(pause, _MIN_CHECK_SECONDS))


@lean.frozen
class _Window:
    start: float
    end: float


@lean.frozen
class _Info:
    window: _Window
    url: str = ""


def _time(value: Any, _: Any = None) -> float:
    try:
        at = datetime.fromisoformat(_time_text(value).replace("Z", "+00:00").replace("z", "+00:00"))
        if at.tzinfo is None:
            raise ValueError
        return at.timestamp()
    except (ValueError, OverflowError, OSError):  # including Misfit
        raise Misfit("expected a time") from None


_time_text = text(64)
wire_class(_Window, {"start": _time, "end": _time})
_info = wire_class(
    _Info, {"url": or_default(line(ascii_only=True), "")}, names={"window": "suggestedWindow", "url": "explanationURL"}
)
