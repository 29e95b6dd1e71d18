"""Redaction masks every kind of secret and leaves ordinary text unchanged."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.logs.redact import _PATTERNS, _SUSPECT, MASK, redact

JWT = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxNCJ9.c2lnbmF0dXJl-_x"
KEY = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMG\nByqGSM49\n-----END PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (f"token {JWT} end", f"token {MASK} end"),
        (f"cut {JWT[:40]}", f"cut {MASK}"),
        ("x rt_271f3eca9daa6b1a.OEftln9mNb7H-_y x", f"x {MASK} x"),
        ("et_mNCLTgVblu4jMZEGF ok_abcdefgh12", f"{MASK} {MASK}"),
        (f"a {KEY} b", f"a {MASK} b"),
        (f"half {KEY[:40]}", f"half {MASK}"),
        ("-----BEGIN RSA PRIVATE KEY-----\nx", MASK),
        ("http://user:pa%40ss@proxy:3128/", f"http://{MASK}@proxy:3128/"),
        ("Authorization: Bearer abcdef123456", f"Authorization: Bearer {MASK}"),
        ("{'refresh_token': 'opaque-value', 'n': 1}", f"{{'refresh_token': '{MASK}', 'n': 1}}"),
        ('{"device_code":"abc def"}', f'{{"device_code":"{MASK}"}}'),
    ],
)
def test_secrets_are_masked(raw: str, shown: str) -> None:
    assert redact(raw) == shown


@pytest.mark.parametrize(
    "text",
    [
        "Certificate 9981 updated: www.example.com, serial=04:ab",
        "cert_id=7, cert_renewed, export_policy_value, start_date",
        "https://plane.example:8443/device?user_code=ABCD-EFGH",
        "-----BEGIN CERTIFICATE-----",
        "Response: 204 No Content, cursor=1736900000-5",
    ],
)
def test_ordinary_text_is_unchanged(text: str) -> None:
    assert redact(text) == text


@given(st.text(), st.text())
def test_a_token_is_masked_in_any_text(before: str, after: str) -> None:
    body = "271f3eca9daa6b1a317a89cac16d38b0"
    assert body not in redact(f"{before} rt_{body}.OEftln9m {after}")


@pytest.mark.parametrize("pattern", _PATTERNS, ids=lambda pattern: pattern.pattern[:20])
@given(data=st.data())
def test_the_first_scan_finds_everything_that_the_patterns_mask(pattern: re.Pattern[str], data: st.DataObject) -> None:
    """Check that the first scan matches every text that a pattern masks."""
    text = data.draw(st.from_regex(pattern))
    if pattern.search(text):
        assert _SUSPECT.search(text)
