"""Renewal information (RFC 9773): when a CA wants a certificate to be renewed, and which one an order replaces."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from cryptography import x509

from certctrl.plane.acme.answers import invalid_answer
from certctrl.plane.acme.encoding import to_base64url
from certctrl.plane.issuers.issuer import RenewalWindow
from certctrl.text import one_line

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
    window = found.get("suggestedWindow")
    if not isinstance(window, dict):
        raise invalid_answer("renewal information", "it has no suggestedWindow")
    start, end = _time(window.get("start"), "start"), _time(window.get("end"), "end")
    if end <= start:
        raise invalid_answer("renewal information", "its window ends before it starts")
    url = found.get("explanationURL")
    pause = DEFAULT_CHECK_SECONDS if retry_after is None else min(retry_after, MAX_CHECK_SECONDS)
    return RenewalWindow(
        start,
        end,
        one_line(url, ascii_only=True) if isinstance(url, str) else "",
        now + max(pause, _MIN_CHECK_SECONDS),
    )


def _time(value: Any, name: str) -> float:
    try:
        if not isinstance(value, str) or len(value) > 64:
            raise ValueError
        at = datetime.fromisoformat(value.replace("Z", "+00:00").replace("z", "+00:00"))
        if at.tzinfo is None:
            raise ValueError
        return at.timestamp()
    except (ValueError, OverflowError, OSError):
        raise invalid_answer("renewal information", f"its {name} is not a time") from None
