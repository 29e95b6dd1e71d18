"""Claims are read without verification, so anything in them may be wrong."""

from __future__ import annotations

import base64
import json

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.agent.token_claims import MAX_TOKEN, Claims, read_claims

KEY = "k" * 32


def token(payload: object, header: object = None) -> str:
    """Return an unsigned token with any header and payload."""

    def part(value: object) -> str:
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    return f"{part(header or {'alg': 'HS256', 'typ': 'JWT'})}.{part(payload)}.{part(b'signature')}"


def test_a_token_of_the_planes() -> None:
    made = jwt.encode({"sub": "14", "device_id": 9, "iat": 1759470355, "exp": 1759471255, "aud": "x"}, KEY)
    claims = read_claims(made)
    assert claims == Claims(expires_at=1759471255.0, issued_at=1759470355.0, user_id=14, device_id=9)
    assert claims.lifetime == 900.0


def test_the_specs_example_names_no_device() -> None:
    claims = read_claims(token({"aud": "a", "exp": 1759471255, "iat": 1759470355, "iss": "a", "sub": "14"}))
    assert (claims.user_id, claims.device_id) == (14, None)


@pytest.mark.parametrize("exp", ["soon", "1759471255", -1, 0, 1e308, float("inf"), True, None, [], {}, 2**70, 10**400])
def test_a_nonsensical_expiry_is_unknown(exp: object) -> None:
    claims = read_claims(token({"exp": exp, "iat": exp, "sub": "14"}))
    assert (claims.expires_at, claims.lifetime, claims.user_id) == (None, None, 14)


@pytest.mark.parametrize("sub", ["x", "", "-1", "1" * 30, "٣", 0, -5, 2**64, True, 1.0, None, []])
def test_a_nonsensical_id_is_none(sub: object) -> None:
    assert read_claims(token({"sub": sub, "device_id": sub})) == Claims()


def test_the_algorithm_does_not_matter() -> None:
    for header in ({"alg": "none"}, {"alg": "none", "crit": ["exp"]}, {"alg": "RS256", "kid": "../../etc"}):
        assert read_claims(token({"exp": 1759471255, "nbf": 2**40}, header)).expires_at in (1759471255.0, None)


def test_a_huge_or_deep_token_is_not_parsed() -> None:
    assert read_claims(token({"exp": 1759471255, "pad": "x" * MAX_TOKEN})) == Claims()
    assert read_claims(token(b"[" * 5000)) == Claims()
    assert read_claims(token(b'{"a":' * 900)) == Claims()


@given(st.one_of(st.text(max_size=200), st.binary(max_size=200).map(lambda raw: raw.decode("latin-1"))))
def test_junk_has_no_claims(text: str) -> None:
    assert read_claims(text) == Claims()


PAYLOADS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.one_of(PAYLOADS, st.fixed_dictionaries({"exp": PAYLOADS, "iat": PAYLOADS, "sub": PAYLOADS})))
def test_any_payload_gives_claims_that_can_be_used(payload: object) -> None:
    claims = read_claims(token(payload))
    assert claims.expires_at is None or 0 < claims.expires_at < 1e12
    assert claims.lifetime is None or 0 < claims.lifetime < 1e12
    assert claims.user_id is None or 0 < claims.user_id < 2**63
