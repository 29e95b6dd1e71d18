"""Registrations and refreshes from the plane."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_answers import GRANT

from certctrl.errors import BadAnswerError, PlaneError
from certctrl.model.records import Recommended
from certctrl.protocol.wire.device_grant import grant_from_wire
from certctrl.protocol.wire.registration import KeyChallenge, challenge_from_wire, key_proof, registration_from_wire
from certctrl.protocol.wire.tokens import refresh_refused, refreshed_from_wire

DEVICE = {"id": 5, "user_id": 14, "device_public_id": "23229bf7", "status": "active", "name": "web-1"}
SESSION = {"access_token": "hunter2a", "refresh_token": "rt_hunter2b", "token_type": "Bearer", "expires_in": 900}


@pytest.mark.parametrize(
    ("data", "challenge"),
    [
        ({"challenge_b64": "AP9h"}, KeyChallenge(b"\0\xffa")),
        ({"challenge_b64": ""}, KeyChallenge(b"")),
        ({"challenge_b64": None}, None),
        ({"device": {}}, None),
        ([], None),
        (None, None),
    ],
)
def test_challenges(data: object, challenge: KeyChallenge | None) -> None:
    assert challenge_from_wire(data) == challenge


@pytest.mark.parametrize("text", ["AP9", "A P9h", "AP9h\n", "-_8=", "é", 5, ["AP9h"]])
def test_a_challenge_that_is_not_base64(text: object) -> None:
    with pytest.raises(BadAnswerError, match=r"^the challenge is not base64$"):
        challenge_from_wire({"challenge_b64": text})


def test_a_key_is_proved_by_the_hash_of_the_secret() -> None:
    """The plane computes the same text, so the two may never differ."""
    assert key_proof(b"secret") == "LWDUtDmOVORy/iXzYMjDREeWw9OzBkQGPa22wmm1gwQ="


def test_a_registration() -> None:
    found = registration_from_wire({"device": DEVICE, "session": SESSION})
    assert (found.device_id, found.user_id, found.name, found.expires_in) == (5, 14, "web-1", 900.0)
    assert (found.access_token, found.refresh_token) == ("hunter2a", "rt_hunter2b")
    assert "hunter2" not in repr(found)


@pytest.mark.parametrize(
    ("sent", "recommended"),
    [
        ({"poll_mode": "long_poll"}, Recommended("long-poll")),
        ({"poll_mode": "interval", "poll_wait_seconds": 20}, Recommended("interval", 20)),
        ({"poll_mode": "long_poll", "poll_wait_seconds": 31}, Recommended("long-poll")),
        ({"poll_mode": "long_poll", "poll_wait_seconds": True, "more": 1}, Recommended("long-poll")),
        ({"poll_mode": "carrier_pigeon"}, None),
        ({"poll_mode": ["long_poll"]}, None),
        ({}, None),
        ("long_poll", None),
        (7, None),
        (None, None),
    ],
)
def test_a_recommendation_never_fails_a_registration(sent: object, recommended: Recommended | None) -> None:
    found = registration_from_wire({"device": DEVICE, "session": SESSION, "recommended": sent})
    assert found.recommended == recommended
    assert registration_from_wire({"device": DEVICE, "session": SESSION}).recommended is None


def test_refreshes() -> None:
    found = refreshed_from_wire({"access_token": "hunter2", "expires_in": 900})
    assert (found.access_token, found.refresh_token, found.expires_in) == ("hunter2", None, 900.0)
    assert refreshed_from_wire(SESSION).refresh_token == "rt_hunter2b"
    assert refreshed_from_wire(SESSION | {"refresh_token": ""}).refresh_token is None
    assert "hunter2" not in repr(refreshed_from_wire(SESSION))


@pytest.mark.parametrize("expires_in", [None, "900", -1, 0, True, 1e400, 2**31, [], float("nan")])
def test_an_invalid_lifetime_is_ignored(expires_in: object) -> None:
    assert refreshed_from_wire(SESSION | {"expires_in": expires_in}).expires_in is None


@pytest.mark.parametrize("expires_in", [1, 0.5, 2**31 - 1])
def test_a_lifetime_may_be_any_positive_number_of_seconds(expires_in: float) -> None:
    assert refreshed_from_wire(SESSION | {"expires_in": expires_in}).expires_in == expires_in


@pytest.mark.parametrize(
    ("sent", "anchor"),
    [("pem", "pem"), ("x" * 16_384, "x" * 16_384), ("x" * 16_385, None), ("ü", None), (b"pem", None), (5, None),
     (["pem"], None), ("", None), (None, None)],
)  # fmt: skip
def test_an_anchor_that_is_not_a_usable_text_is_ignored(sent: object, anchor: str | None) -> None:
    assert refreshed_from_wire(SESSION | {"plane_anchor_pem": sent}).plane_anchor_pem == anchor


@pytest.mark.parametrize(
    ("sent", "features"),
    [(["b", "a", "a"], {"a", "b"}), ([], set()), (None, set()), ("", set()), ("a", set()), ({"a": 1}, set()), (5, set()),
     (["a", 5, None, "", ["b"], "x\ny", "x" * 51, "x" * 50], {"a", "x" * 50}),
     ([str(n) for n in range(99)], {str(n) for n in range(50)})],
)  # fmt: skip
def test_features_of_the_plane_that_do_not_fit_are_left_out(sent: object, features: set[str]) -> None:
    assert refreshed_from_wire(SESSION | {"features": sent}).features == features
    assert registration_from_wire({"device": DEVICE, "session": SESSION, "features": sent}).features == features


def test_a_plane_that_announces_nothing_has_no_features() -> None:
    assert refreshed_from_wire(SESSION).features == frozenset()
    assert registration_from_wire({"device": DEVICE, "session": SESSION}).features == frozenset()


@pytest.mark.parametrize("token", ["!", "~", "!a~", "x" * 8192])
def test_a_token_may_consist_of_any_visible_ascii(token: str) -> None:
    found = refreshed_from_wire({"access_token": token, "refresh_token": token})
    assert (found.access_token, found.refresh_token) == (token, token)


@pytest.mark.parametrize("token", [None, "", 5, "two words", "a\r\nX-Evil: 1", "ü", "x" * 8193, "\x00"])
def test_a_token_that_is_not_valid_in_a_header(token: object) -> None:
    with pytest.raises(BadAnswerError, match=r"session\.access_token"):
        refreshed_from_wire(SESSION | {"access_token": token})
    if token not in (None, ""):
        with pytest.raises(BadAnswerError, match=r"session\.refresh_token"):
            refreshed_from_wire(SESSION | {"refresh_token": token})
    with pytest.raises(BadAnswerError, match=r"session\.access_token"):
        registration_from_wire({"device": DEVICE, "session": SESSION | {"access_token": token}})


@pytest.mark.parametrize(
    "data", [None, {}, {"device": DEVICE}, {"session": SESSION}, {"device": [], "session": SESSION}]
)
def test_a_registration_that_does_not_fit(data: object) -> None:
    with pytest.raises(BadAnswerError, match=r"^registration[.:]"):
        registration_from_wire(data)


@pytest.mark.parametrize(
    ("status", "key", "final"),
    [(401, "", True), (403, "FORBIDDEN", True), (400, "INVALID_TOKEN", True), (400, "TOKEN_EXPIRED", True),
     (400, "BAD_REQUEST", False), (404, "", False), (429, "", False), (500, "", False), (503, "INVALID_TOKEN", False),
     (399, "INVALID_TOKEN", False), (499, "INVALID_TOKEN", True), (500, "TOKEN_EXPIRED", False)],
)  # fmt: skip
def test_final_refusals_of_a_refresh(status: int, key: str, final: bool) -> None:
    assert refresh_refused(PlaneError("no", status=status, key=key)) is final


VALUE = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
)


@given(
    st.dictionaries(st.sampled_from([*GRANT, *DEVICE, *SESSION, "device", "session"]), VALUE)
    | st.dictionaries(st.sampled_from([*GRANT, *DEVICE, *SESSION]), VALUE, max_size=1).map(
        lambda change: GRANT | DEVICE | SESSION | change
    )
)
def test_any_value_is_accepted_or_refused(data: dict[str, Any]) -> None:
    for read, value in (
        (grant_from_wire, data),
        (refreshed_from_wire, data),
        (registration_from_wire, {"device": data, "session": data}),
    ):
        try:
            found = read(value)
        except BadAnswerError as error:
            assert str(error).isprintable()
            continue
        taken = {name: getattr(found, name, None) for name in ("device_code", "access_token") if hasattr(found, name)}
        assert taken and all(one and one == data[name] for name, one in taken.items()), "read as it was sent"
