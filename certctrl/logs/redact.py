"""Mask secrets in text for output: tokens, JWTs, PEM private keys, credentials in URLs.

A second line of defence: code must not put secrets into messages in the first place.
"""

from __future__ import annotations

import re

MASK = "[secret]"

_FIELDS = "access_token|refresh_token|device_code|enrolment_token|registration_code|private_key_pem|password"
_PATTERNS = tuple(
    re.compile(pattern, flags)
    for pattern, flags in (
        (r"()-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\Z)", re.DOTALL),
        (r"()\beyJ[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*){0,4}", 0),  # a JWT, even if truncated
        (r"()\b(?:rt|et|ok)_[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]+)?", 0),  # refresh, enrolment, operator tokens
        (r"(://)[^/\s:@]+:[^/\s@]+(?=@)", 0),  # user:password@ in a URL
        (r"(\bbearer )[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE),
        (rf"([\"'](?:{_FIELDS})[\"']\s*:\s*[\"'])[^\"']+", re.IGNORECASE),
    )
)
_SUSPECT = re.compile(r"-----BEGIN|eyJ|[reo][tk]_|://|bearer |[\"']", re.IGNORECASE)
"""Matches every text that a pattern matches, and few others, so that most log lines are scanned once."""


def redact(text: str) -> str:
    """Return ``text`` with everything that looks like a secret replaced by ``[secret]``."""
    if _SUSPECT.search(text) is None:
        return text
    for pattern in _PATTERNS:
        text = pattern.sub(rf"\1{MASK}", text)
    return text
