"""Fingerprints as operators type them."""

from __future__ import annotations

import pytest

from certctrl.errors import UsageError
from certctrl.protocol.wire.anchor import fingerprint_prefix

DIGITS = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


@pytest.mark.parametrize(
    ("text", "digits"),
    [
        (DIGITS, DIGITS),
        (DIGITS[:8], "9f86d081"),
        ("9F:86:D0:81:88", "9f86d08188"),
        (" 9f86 d081\t884c\n", "9f86d081884c"),
        ("SHA256:9f86d081", "9f86d081"),
    ],
)
def test_a_fingerprint_or_its_start(text: str, digits: str) -> None:
    assert fingerprint_prefix(text) == digits


@pytest.mark.parametrize("text", ["", "9f86d08", DIGITS + "0", "9f86d08g", "9f86d081…", "９f86d081", "sha1:9f86d081"])
def test_no_fingerprint(text: str) -> None:
    with pytest.raises(UsageError, match="8 to 64 hexadecimal digits"):
        fingerprint_prefix(text)
