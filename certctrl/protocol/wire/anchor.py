"""The CA of the control plane's own certificate, and the fingerprint by which an operator recognises it."""

from __future__ import annotations

import re

from certctrl.errors import UsageError

CA_PATH = "/ca.pem"
FULL_DIGITS, STRONG_DIGITS, LEAST_DIGITS = 64, 16, 8
"""Hexadecimal digits of a SHA-256: all, enough against an attacker who makes CAs until one fits, and the minimum."""
_SEPARATORS = re.compile(r"[\s:]")


def fingerprint_prefix(text: str) -> str:
    """Return the digits of a typed fingerprint, or of its start, in lower case.

    Raises UsageError for fewer than `LEAST_DIGITS`, or other characters.
    """
    digits = _SEPARATORS.sub("", text.lower().removeprefix("sha256:"))
    if not re.fullmatch(f"[0-9a-f]{{{LEAST_DIGITS},{FULL_DIGITS}}}", digits):
        what = f"a CA fingerprint has {LEAST_DIGITS} to {FULL_DIGITS} hexadecimal digits"
        raise UsageError(what, fix="copy it from the output of cert-ctrl plane serve")
    return digits
