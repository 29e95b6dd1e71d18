"""Hostile answers of a CA: wrong shapes, other hosts, other certificates, and random changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import trio
from acme_world import AcmeWorld, always, connect_to, make_world, names_of, refused
from examples import at_most
from hypothesis import given, settings
from hypothesis import strategies as st
from plane_world import WALL
from scripted_ca import BASE, Reply, ScriptedCa, self_signed
from trio.testing import MockClock

from certctrl.plane.issuers.issuer import IssuerError

WRONG = [b"", b"<html>", b"\xff", [], None, 7, "text", {}, {"status": "valid"}, {"status": 7}, {"status": "\x1b[1m"}]


@pytest.mark.parametrize(
    "path", ["/directory", "/newAccount", "/newOrder", "/authz/", "/chall/", "/finalize/", "/order/"]
)
@pytest.mark.parametrize("body", WRONG, ids=repr)
async def test_an_answer_of_the_wrong_shape(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock, path: str, body: object
) -> None:
    """An empty answer to newAccount is none: CAs may leave out the object."""
    ca.hooks.append(always(path, (200, {"Location": f"{BASE}/acct/9"}, body)))
    error = await refused(world)
    assert "cannot be used" in str(error) or "account" in str(error)
    assert not world.solver.published


@pytest.mark.parametrize(
    "url",
    ["http://ca.test/x", "https://evil.test/x", "https://ca.test:444/x", "file:///etc/passwd", "https://ca.test@evil.test/",
     "//evil.test/x", "https://ca.test\r\nX: y/", "https://[::1", "https://" + "a" * 5000, "", 7],
)  # fmt: skip
async def test_urls_at_other_hosts_are_not_requested(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock, url: object
) -> None:
    for path, change in (
        ("/newOrder", {"finalize": url}),
        ("/newOrder", {"authorizations": [url]}),
        ("/newOrder", {"certificate": url}),
    ):
        order = {"status": "valid", "identifiers": [{"type": "dns", "value": "a.test"}], "authorizations": [],
                 "finalize": f"{BASE}/finalize/1"} | change  # fmt: skip
        ca.hooks[:] = [always(path, (201, {"Location": f"{BASE}/order/1"}, order))]
        error = await refused(world)
        assert "cannot be used" in str(error) or "at another host" in str(error), str(error)
    ca.hooks[:] = [always("/newOrder", (201, {"Location": str(url)}, order | {"certificate": None}))]
    await refused(world)


async def test_an_order_for_other_names(world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock) -> None:
    def other(method: str, path: str, payload: object) -> Reply | None:
        if path != "/newOrder":
            return None
        status, headers, order = ca._new_order("", payload, {})
        return status, headers, order | {"identifiers": [{"type": "dns", "value": "evil.test"}]}

    ca.hooks.append(other)
    assert "it is for other names than those ordered" in str(await refused(world))


async def test_too_many_of_anything(world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock) -> None:
    order = {"status": "pending", "identifiers": [{"type": "dns", "value": "a.test"}],
             "authorizations": [f"{BASE}/authz/1"] * 101, "finalize": f"{BASE}/finalize/1"}  # fmt: skip
    ca.hooks[:] = [always("/newOrder", (201, {"Location": f"{BASE}/order/1"}, order))]
    assert "more than 100 items" in str(await refused(world))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "0 certificates"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "not PEM"),
        (b"x" * 1000, "0 certificates"),
        (self_signed("a", WALL) * 12, "12 certificates"),
        (self_signed("a", WALL) + self_signed("b", WALL), "1 of the certificates after it are not its issuers"),
        (self_signed("a.test", WALL), "another key"),
    ],
)
async def test_a_certificate_that_is_not_the_one(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock, body: bytes, why: str
) -> None:
    ca.hooks.append(always("/cert/", (200, {}, body)))
    assert why in str(await refused(world))


async def test_a_certificate_for_other_names(world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock) -> None:
    usual = ca.leaf
    ca.leaf = lambda number, order, index=0: usual(  # type: ignore[method-assign]
        number, order | {"identifiers": [{"type": "dns", "value": "evil.test"}]}, index
    )
    assert "its names differ from those ordered: a.test, evil.test" in str(await refused(world))


async def test_an_order_that_the_ca_ends(world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock) -> None:
    def end(method: str, path: str, payload: object) -> Reply | None:
        if not path.startswith("/order/") or not any("csr" in one for one in ca.orders.values()):
            return None
        order = ca._shown(f"{BASE}{path}")
        error = {"type": "urn:ietf:params:acme:error:badCSR", "detail": "weak key"}
        return 200, {}, order | {"status": "invalid", "error": error}

    ca.polls_until_issued = 3
    ca.hooks.append(end)
    error = await refused(world)
    assert str(error) == "the CA refused the order: weak key (badCSR)" and error.is_permanent
    assert json.loads(world.memos[-1])["order"] == ""


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 10**20)
    | st.text(max_size=20)
    | st.sampled_from(
        ["valid", "pending", "invalid", "processing", f"{BASE}/order/1", f"{BASE}/authz/1", "https://evil.test/"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
CHANGES = st.tuples(
    st.integers(0, 14),  # which answer
    st.sampled_from(["status", "field", "body", "header", "drop"]),
    st.integers(0, 20),  # which field
    JSON,
    st.sampled_from([200, 201, 204, 400, 403, 404, 429, 500, 503]),
)


class ChangingCa(ScriptedCa):
    """Changes some of its answers."""

    def __init__(self, changes: list[Any]) -> None:
        super().__init__(WALL)
        self.changes = {change[0]: change for change in changes}
        self.answered = -1

    def _answered(self, method: str, path: str, payload: object, usual: Callable[[], Reply]) -> Reply:
        status, headers, found = super()._answered(method, path, payload, usual)
        self.answered += 1
        change = self.changes.get(self.answered)
        if change is None:
            return status, headers, found
        _, how, number, value, code = change
        if how == "status":
            return code, headers, found
        if how == "body":
            return status, headers, value
        if how == "header":
            text = json.dumps(value)
            return status, headers | {"Location": text, "Link": text, "Retry-After": text, "Content-Type": text}, found
        if isinstance(found, dict) and found:
            name = sorted(found)[number % len(found)]
            return (
                status,
                headers,
                {key: one for key, one in found.items() if key != name} | ({name: value} if how == "field" else {}),
            )
        return status, headers, value


@settings(max_examples=at_most(120))
@given(changes=st.lists(CHANGES, min_size=1, max_size=4))
def test_any_changed_answers_end_in_a_certificate_or_a_clear_error(changes: list[Any]) -> None:
    async def main() -> None:
        world = make_world(lambda: WALL + trio.current_time())
        ca = ChangingCa(changes)
        with pytest.MonkeyPatch.context() as patch:
            connect_to(ca, patch)
            try:
                issued = await world.issuer().issue(world.request("a.test", "*.a.test"))
            except IssuerError as error:
                assert str(error).isprintable() and len(str(error)) < 3000
            else:
                assert names_of(issued) == {"a.test", "*.a.test"}
            assert not world.solver.published
            assert trio.current_time() < 3 * 3600
        world.plane.close()

    trio.run(main, clock=MockClock(autojump_threshold=0))
