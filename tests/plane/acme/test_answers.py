"""Answers of a CA: whatever they contain, the result is a bounded value or an IssuerError in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from examples import at_most
from hypothesis import given, settings
from hypothesis import strategies as st

from certctrl.model.answer import Answer
from certctrl.plane.acme import answers
from certctrl.plane.acme.ari import read_window
from certctrl.plane.acme.chains import read_chain
from certctrl.plane.acme.http import CaPlaces
from certctrl.plane.acme.problems import read_problem, refusal
from certctrl.plane.issuers.issuer import IssuerError

BASE = "https://ca.test"
CHECK = CaPlaces(f"{BASE}/directory").check

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
VALUES = ANY | st.sampled_from(
    ["pending", "valid", "invalid", f"{BASE}/x", "https://evil.test/x", "dns", "dns-01", "tok"]
)
NAMES = (
    "status", "identifiers", "identifier", "authorizations", "finalize", "certificate", "challenges", "type", "value",
    "url", "token", "error", "newNonce", "newAccount", "newOrder", "revokeCert", "keyChange", "renewalInfo", "meta",
    "profiles", "termsOfService", "externalAccountRequired", "contact", "detail", "subproblems", "wildcard", "start",
    "end", "suggestedWindow", "explanationURL", "instance", "title",
)  # fmt: skip
OBJECTS = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=8),
    max_leaves=30,
).filter(lambda found: isinstance(found, dict))

READERS: list[Callable[[Any], Any]] = [
    lambda found: answers.read_directory(found, CHECK),
    lambda found: answers.read_account(found, f"{BASE}/acct/1"),
    lambda found: answers.read_order(found, f"{BASE}/order/1", CHECK),
    lambda found: answers.read_authorization(found, f"{BASE}/authz/1", CHECK),
    lambda found: answers.read_challenge(found, CHECK),
    lambda found: read_window(found, 0.0, None),
]


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=at_most(50))
@given(found=OBJECTS)
def test_any_object(reader: Callable[[Any], Any], found: dict[str, Any]) -> None:
    try:
        value = reader(found)
    except IssuerError as error:
        assert str(error).isprintable() and len(str(error)) < 500 and error.fix
    else:
        assert len(repr(value)) < 100_000


@settings(max_examples=at_most(50))
@given(ANY, st.integers(0, 999))
def test_any_problem_document(document: object, status: int) -> None:
    error = refusal("the order", read_problem(document, status))
    assert str(error).isprintable() and len(str(error)) < 4000 and error.fix


@settings(max_examples=at_most(50))
@given(st.binary() | st.binary().map(lambda data: b"-----BEGIN CERTIFICATE-----\n" + data))
def test_any_certificate(body: bytes) -> None:
    with pytest.raises(IssuerError, match="cannot be used"):
        read_chain(body)


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b'"text"', b"7", b"\xff\xfe", b"NaN"])
def test_what_is_no_object(body: bytes) -> None:
    with pytest.raises(IssuerError, match="the CA's order cannot be used"):
        answers.document(Answer(200, {}, body), "order")


def test_an_order() -> None:
    found = {
        "status": "pending", "identifiers": [{"type": "dns", "value": "WWW.example.com"}],
        "authorizations": [f"{BASE}/authz/1"], "finalize": f"{BASE}/finalize/1", "expires": "whenever",
    }  # fmt: skip
    order = answers.read_order(found, f"{BASE}/order/1", CHECK)
    assert order.identifiers == (answers.Identifier("dns", "www.example.com"),)
    assert (order.certificate, order.problem) == ("", None)


def test_challenges_that_are_unknown_are_kept_and_those_that_cannot_be_read_left_out() -> None:
    def challenge(**more: object) -> dict[str, Any]:
        return {"type": "dns-01", "url": f"{BASE}/chall/1", "status": "pending", "token": "abc"} | more

    found = {
        "identifier": {"type": "dns", "value": "a.test"}, "status": "pending",
        "challenges": [
            challenge(), challenge(type="future"), challenge(token=None), challenge(token="a/../b"), challenge(token="a" * 300),
            challenge(status="odd"), challenge(status=[]), challenge(type=7), 7, None,
        ],
    }  # fmt: skip
    read = answers.read_authorization(found, f"{BASE}/authz/1", CHECK)
    assert [one.kind for one in read.challenges] == ["dns-01", "future"]


def test_a_directory() -> None:
    urls = {name: f"{BASE}/{name}" for name in ("newNonce", "newAccount", "newOrder")}
    meta = {"termsOfService": f"{BASE}/terms\n", "externalAccountRequired": True, "profiles": {"a": 1, "b": "B"}}
    found = answers.read_directory(urls | {"meta": meta}, CHECK)
    assert (found.meta.terms_url, found.meta.needs_binding, found.meta.profiles) == (
        f"{BASE}/terms\\n",
        True,
        {"a": "", "b": "B"},
    )
    assert (found.revoke, found.key_change, found.renewal_info) == ("", "", "")
    for name in urls:
        with pytest.raises(IssuerError, match=f"directory.{name}: missing"):
            answers.read_directory({other: url for other, url in urls.items() if other != name}, CHECK)


@pytest.mark.parametrize(
    ("given", "found"),
    [(["a.test", 1, "", "b.test\n"], ("a.test", "b.test\\n")), ("a.test", ()), (["x"] * 100, ("x",) * 20), (None, ())],
)
def test_the_domains_of_a_ca_in_caa_records(given: object, found: tuple[str, ...]) -> None:
    urls = {name: f"{BASE}/{name}" for name in ("newNonce", "newAccount", "newOrder")}
    assert answers.read_directory(urls | {"meta": {"caaIdentities": given}}, CHECK).meta.caa_identities == found


def test_many_profiles_are_cut() -> None:
    urls = {name: f"{BASE}/{name}" for name in ("newNonce", "newAccount", "newOrder")}
    meta = {"profiles": {f"p{number}": "" for number in range(1000)}}
    assert len(answers.read_directory(json.loads(json.dumps(urls | {"meta": meta})), CHECK).meta.profiles) == 50


@pytest.mark.parametrize(
    ("kind", "status", "retry_after", "permanent", "fix"),
    [
        ("userActionRequired", 403, None, True, "terms_agreed"),
        ("agreementRequired", 403, None, True, "terms_agreed"),
        ("externalAccountRequired", 401, None, True, "eab_kid"),
        ("rejectedIdentifier", 400, None, True, "names"),
        ("badCSR", 400, None, True, "key type"),
        ("accountDoesNotExist", 400, None, True, "run the order again"),
        ("unauthorized", 403, None, True, "account at the CA"),
        ("rateLimited", 429, 60.0, False, "wait"),
        ("rateLimited", 429, None, False, "wait"),
        ("serverInternal", 500, None, False, "wait"),
        ("caa", 403, None, False, "CAA"),
        ("dns", 400, None, False, "DNS"),
        ("somethingNew", 400, None, False, "read the CA's reason"),
        ("", 502, None, False, "read the CA's reason"),
    ],
)  # fmt: skip
def test_refusals(kind: str, status: int, retry_after: float | None, permanent: bool, fix: str) -> None:
    document = {"type": f"urn:ietf:params:acme:error:{kind}", "detail": "because"}
    error = refusal("the order", read_problem(document, status), retry_after, of_request=True)
    assert str(error) == f"the CA refused the order: because ({kind or f'status {status}'})"
    assert (error.is_permanent, error.retry_after) == (permanent, retry_after)
    assert error.fix is not None and fix in error.fix
