"""Challenges: what both sides accept as token, answer and name."""

from __future__ import annotations

import pytest

from certctrl.model.challenges import (
    covers,
    identifier_fault,
    key_authorization_fault,
    pattern_fault,
    server_name,
    token_fault,
)

TOKEN = "LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDfowyjxAjEuX0"
THUMBPRINT = "9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"


@pytest.mark.parametrize("token", [TOKEN, "a" * 16, "-" * 128, "_" * 20])
def test_tokens_are_base64url(token: str) -> None:
    assert not token_fault(token)


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a" * 15,
        "a" * 129,
        "..",
        "../" * 8,
        "/" + TOKEN,
        TOKEN + "/x",
        TOKEN + "\n",
        TOKEN + "=",
        TOKEN + ".",
        "ä" * 20,
    ],
)
def test_a_token_that_is_not_one_plain_name_is_refused(token: str) -> None:
    assert token_fault(token)


def test_a_key_authorization_is_its_token_and_a_thumbprint() -> None:
    assert not key_authorization_fault(TOKEN, f"{TOKEN}.{THUMBPRINT}")
    for wrong in (
        "",
        TOKEN,
        f"{TOKEN}.",
        f"x{TOKEN}.{THUMBPRINT}",
        f"{TOKEN}.{THUMBPRINT}.x",
        f"{TOKEN}.{THUMBPRINT}\n",
    ):
        assert key_authorization_fault(TOKEN, wrong)


@pytest.mark.parametrize(
    "name", ["www.example.com", "localhost", "xn--mnchen-3ya.de", "192.0.2.7", "2001:db8::1", "_a.b"]
)
def test_names_and_addresses(name: str) -> None:
    assert not identifier_fault(name)
    assert not pattern_fault(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "*.example.com",
        "WWW.example.com",
        "a..b",
        "a.b.",
        "-a.b",
        "a b",
        "1.2.3",
        "2001:DB8::1",
        "fe80::1%eth0",
        "a/b",
        "a" * 64,
    ],
)
def test_other_identifiers_are_refused(name: str) -> None:
    assert identifier_fault(name)


def test_patterns_have_names_below_a_domain() -> None:
    assert not pattern_fault("*.example.com")
    assert pattern_fault("*.192.0.2.7")
    assert pattern_fault("www.*.com")
    assert pattern_fault("*")


@pytest.mark.parametrize(
    ("patterns", "name", "covered"),
    [
        ((), "www.example.com", True),
        (("www.example.com",), "www.example.com", True),
        (("www.example.com",), "www2.example.com", False),
        (("*.example.com",), "www.example.com", True),
        (("*.example.com",), "a.b.example.com", True),
        (("*.example.com",), "example.com", False),
        (("*.example.com",), "example.com.evil.test", False),
        (("*.0.2.7",), "192.0.2.7", False),
        (("192.0.2.7",), "192.0.2.7", True),
    ],
)
def test_the_policy_covers_names(patterns: tuple[str, ...], name: str, covered: bool) -> None:
    assert covers(patterns, name) is covered


def test_an_address_is_asked_by_its_reverse_name() -> None:
    assert server_name("www.example.com") == "www.example.com"
    assert server_name("192.0.2.7") == "7.2.0.192.in-addr.arpa"
    assert server_name("2001:db8::1").endswith("8.b.d.0.1.0.0.2.ip6.arpa")
