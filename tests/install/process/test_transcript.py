"""A command's output can neither forge log lines, control a terminal, nor leak a key."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from certctrl.install.process.transcript import last_line, transcript

KEY = b"-----BEGIN EC PRIVATE KEY-----\nc2VjcmV0LXNlY3JldA==\nbW9yZS1zZWNyZXQ=\n-----END EC PRIVATE KEY-----\n"


def whole(data: bytes, *secrets: bytes) -> str:
    return transcript(data, b"", len(data), secrets)


@given(st.one_of(st.binary(max_size=200), st.text(max_size=100).map(lambda text: text.encode())))
def test_nothing_but_printable_text_and_line_breaks_comes_out(data: bytes) -> None:
    for c in whole(data):
        assert c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Zl", "Zp", "Cs"), hex(ord(c))


def test_text_stays_readable() -> None:
    assert whole("Grüße, 世界 \U0001f512\r\nsecond".encode()) == "Grüße, 世界 \U0001f512\nsecond"
    assert whole(b"\n\nx\n\n") == "x"


def test_private_keys_are_removed() -> None:
    assert whole(b"before\n" + KEY + b"after") == "before\n[private key removed]\nafter"
    assert whole(KEY + KEY).count("[private key removed]") == 2
    assert whole(b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0") == "[private key removed]"


def test_a_key_cut_by_the_gap_is_removed_on_both_sides() -> None:
    for cut in range(1, len(KEY)):
        text = transcript(b"head\n" + KEY[:cut], KEY[cut:] + b"tail", len(KEY) + 1009)
        assert "bytes left out" in text
        if 31 <= cut <= len(KEY) - 31:  # both markers are whole
            assert "c2Vj" not in text and "bW9y" not in text and text.endswith("tail")


def test_a_certificate_stays() -> None:
    text = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"
    assert whole(text.encode()) == text


def test_given_secrets_are_removed() -> None:
    assert whole(b"password is hunter2!", b"hunter2", b"") == "password is [secret removed]!"


def test_last_line() -> None:
    assert last_line("a\nb \n\n") == "b"
    assert last_line("") == ""
    assert last_line("x" * 300).endswith("…") and len(last_line("x" * 300)) == 200
