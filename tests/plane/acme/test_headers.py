"""Headers of a CA's answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.plane.acme.headers import MAX_RETRY_AFTER, links, replay_nonce, retry_after
from certctrl.plane.acme.nonces import Nonces

NOW = 1_790_000_000.0  # Mon, 21 Sep 2026 14:13:20 GMT


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", None), ("5", 5), (" 0 ", 0), ("-1", None), ("1.5", None), ("soon", None), ("٣", None),
        ("999999999999999999999999", MAX_RETRY_AFTER), ("9" * 5000, MAX_RETRY_AFTER),
        ("Mon, 21 Sep 2026 14:14:20 GMT", 60), ("Mon, 21 Sep 2026 14:12:20 GMT", 0),
        ("Mon, 21 Sep 2026 16:14:20 +0200", 60), ("Monday, 21-Sep-26 14:14:20 GMT", 60), ("Mon Sep 21 14:14:20 2026", 60),
        ("Mon, 21 Sep 9999 14:14:20 GMT", MAX_RETRY_AFTER), ("Mon, 99 Sep 2026 14:14:20 GMT", None), ("x" * 5000, None),
    ],
)  # fmt: skip
def test_retry_after(text: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": text}, NOW) == seconds


def test_no_retry_after() -> None:
    assert retry_after({}, NOW) is None


@given(st.text())
def test_any_retry_after_is_a_bounded_time(text: str) -> None:
    seconds = retry_after({"retry-after": text}, NOW)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ('<https://ca.test/dir>;rel="index", <https://ca.test/c/1>;rel="alternate"', ["https://ca.test/c/1"]),
        ("<https://ca.test/1>; rel=alternate; title=x, <2>;rel=ALTERNATE", ["https://ca.test/1", "https://ca.test/cert/2"]),
        ('<https://ca.test/1>; title="a"; rel="other alternate"', ["https://ca.test/1"]),
        ("<https://ca.test/1>", []), ("garbage", []), ("<>;rel=alternate", []),
        (", ".join(f"<{n}>;rel=alternate" for n in range(50)), [f"https://ca.test/cert/{n}" for n in range(10)]),
        ("<https://[::1>;rel=alternate", []),
    ],
)  # fmt: skip
def test_links(text: str, found: list[str]) -> None:
    assert links({"link": text}, "alternate", "https://ca.test/cert/0") == found


@given(st.text())
def test_any_link_header_is_read(text: str) -> None:
    assert len(links({"link": text}, "alternate", "https://ca.test/")) <= 10


@pytest.mark.parametrize(
    ("text", "nonce"), [("abc-_1", "abc-_1"), ("", None), ("a b", None), ("é", None), ("a" * 513, None)]
)
def test_nonces_of_answers(text: str, nonce: str | None) -> None:
    assert replay_nonce({"replay-nonce": text}) == nonce
    assert replay_nonce({}) is None


def test_the_pool_of_nonces() -> None:
    now = 0.0
    pool = Nonces(lambda: now)
    assert pool.take() is None
    for nonce in ("a", None, "b", "b"):
        pool.put(nonce)
    assert [pool.take(), pool.take(), pool.take()] == ["b", "a", None], "each once, the newest first"
    for number in range(1000):
        pool.put(str(number))
    kept = 0
    while pool.take() is not None:
        kept += 1
    assert kept == 64
    pool.put("old")
    now = 601.0
    assert pool.take() is None
