"""Names in certificates: their canonical form, which are refused and why, and which overlap."""

from __future__ import annotations

import pytest

from certctrl.plane.ca.domains import clean_name, clean_names, collides, is_address
from certctrl.plane.errors import ErrorResponse

LABEL = "a" * 63


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("www.Example.COM", "www.example.com"),
        ("  www.example.com.  ", "www.example.com"),
        ("*.example.com", "*.example.com"),
        ("localhost", "localhost"),
        ("xn--strae-oqa.example", "xn--strae-oqa.example"),
        ("straße.example", "xn--strae-oqa.example"),
        ("a-b.example", "a-b.example"),
        ("3com.example", "3com.example"),
        ("192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        (f"{LABEL}.example", f"{LABEL}.example"),
        (".".join([LABEL] * 3 + ["a" * 61]), ".".join([LABEL] * 3 + ["a" * 61])),  # 253 characters
    ],
)
def test_canonical_names(text: str, name: str) -> None:
    assert clean_name(text) == name
    assert clean_name(name) == name


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "a..b", "-a.example", "a-.example", "a_b.example", "a b.example", "*", "*.", "www.*.example", "*a.example",
        "*.*.example", f"{LABEL}a.example", ".".join([LABEL] * 3 + ["a" * 62]), "example.123", "1.2.3", "256.1.1.1", "a/b",
        "user@example.com", "https://example.com", "*.192.0.2.1", "a\nb.example", "a.example\x00",
    ],
)  # fmt: skip
def test_what_no_certificate_can_contain_is_refused(text: str) -> None:
    with pytest.raises(ErrorResponse) as caught:
        clean_name(text)
    assert (caught.value.status, caught.value.params["field"]) == (400, "domains")
    assert caught.value.params["value"] == text[:100]
    assert repr(text[:100]) in caught.value.what


def test_a_wildcard_needs_a_domain() -> None:
    with pytest.raises(ErrorResponse, match="needs a domain after its wildcard"):
        clean_name("*.example")


def test_names_keep_their_order_once_each() -> None:
    assert clean_names(["b.example", "A.example", "B.EXAMPLE", "a.example."]) == ("b.example", "a.example")


def test_from_one_name_to_a_hundred() -> None:
    assert len(clean_names(f"{number}.example" for number in range(100))) == 100
    assert len(clean_names(["a.example"] * 101)) == 1
    for names, what in (([], "At least one domain"), ([f"{number}.example" for number in range(101)], "at most 100")):
        with pytest.raises(ErrorResponse, match=what) as caught:
            clean_names(names)
        assert caught.value.params["field"] == "domains"


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a.example", "a.example", True),
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "*.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "a.b.example.com", False),
        ("a.example.com", "b.example.com", False),
        ("example.com", "a.example.com", False),
        ("*.0.2.1", "192.0.2.1", False),  # a wildcard never covers an address
        ("192.0.2.1", "192.0.2.1", True),
    ],
)
def test_names_that_share_a_certificate(one: str, other: str, expected: bool) -> None:
    assert collides(one, other) is collides(other, one) is expected


def test_addresses() -> None:
    assert [is_address(name) for name in ("192.0.2.1", "2001:db8::1", "a.example", "1.2.3")] == [
        True,
        True,
        False,
        False,
    ]
