"""Issuers on both engines: settings and secrets, changes that every plane sees, rules, checks."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import trio
from engine_plane import plane_on
from scripted_issuer import ScriptedKind, scripted

from certctrl.errors import CertctrlError, PlaneError
from certctrl.plane.core import Plane
from certctrl.plane.health.problems import ProblemName
from certctrl.plane.issuers.acme import KIND as ACME
from certctrl.plane.issuers.issuer import IssuerContext, IssuerError
from certctrl.plane.issuers.registry import NewIssuer, installed_kinds
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring

LE = NewIssuer(name="le", kind="scripted", settings={}, secrets={"eab": b"very secret"})


@pytest.fixture
def kind() -> Any:
    with scripted() as kind:
        yield kind


@pytest.fixture
def planes(open_database: Callable[[], Database], kind: ScriptedKind) -> list[Plane]:
    keyring = Keyring.open(None)
    return [plane_on(open_database(), keyring) for _ in range(2)]


async def put(plane: Plane, new: NewIssuer = LE) -> dict[str, Any]:
    return await plane.work(plane.issuers.put, new)


async def test_settings_are_checked_and_completed_and_secrets_sealed(planes: list[Plane]) -> None:
    plane = planes[0]
    shown = await put(plane)
    assert (shown["settings"], shown["secrets"]) == ({"url": "https://ca.example"}, ["eab"])
    assert "very secret" not in str(shown) + repr(LE)
    row = await plane.work(plane.database.one, "SELECT * FROM issuers")
    assert row is not None
    assert b"very secret" not in bytes(row["secrets_enc"])


@pytest.mark.parametrize(
    ("new", "status", "what"),
    [
        (NewIssuer(name="le", kind="scripted", settings={"colour": 1}), 400, "colour: is unknown; remove it"),
        (NewIssuer(name="builtin", kind="scripted", settings={}), 400, "name"),
        (NewIssuer(name="Le", kind="scripted", settings={}), 400, "name"),
        (NewIssuer(name="x", kind="builtin", settings={}), 400, "kind"),
        (NewIssuer(name="x", kind="nothing", settings={}), 400, "kind"),
        (NewIssuer(name="x", kind="scripted", settings={"url": "x" * 70_000}), 400, "settings"),
        (NewIssuer(name="x", kind="scripted", settings={}, secrets={"a": b"x" * 70_000}), 400, "secrets"),
        (NewIssuer(name="x", kind="scripted", settings={}, secrets={"../a": b"x"}), 400, "name of a secret"),
        (NewIssuer(name="x", kind="scripted", settings={}, secrets={f"s{n}": b"" for n in range(51)}), 400, "At most"),
    ],
)
async def test_bad_issuers_are_refused(planes: list[Plane], new: NewIssuer, status: int, what: str) -> None:
    with pytest.raises(PlaneError) as refused:
        await put(planes[0], new)
    assert (refused.value.status, what in str(refused.value)) == (status, True), str(refused.value)


async def test_every_plane_sees_a_change(planes: list[Plane], kind: ScriptedKind) -> None:
    await put(planes[0])
    for plane in planes:
        assert await plane.issuers.get("le") is await plane.issuers.get("le")
    assert [secrets for _, secrets, _ in kind.made] == [{"eab": b"very secret"}] * 2, "made once by each plane"
    with pytest.raises(PlaneError, match="There is an issuer le"):
        await put(planes[0])
    await put(planes[0], NewIssuer(name="le", kind="scripted", settings={"url": "https://other"}, replace=True))
    await planes[1].issuers.get("le")
    settings, secrets, _ = kind.made[-1]
    assert (settings, secrets) == ({"url": "https://other"}, {"eab": b"very secret"}), "secrets that are not given stay"


async def test_an_issuer_in_use_is_not_removed(planes: list[Plane]) -> None:
    plane = planes[0]
    await put(plane)
    await plane.work(plane.issuers.put_rule, "*", "le")
    with pytest.raises(PlaneError, match="The rule for"):
        await plane.work(plane.issuers.remove, "le")
    await plane.work(plane.issuers.remove_rule, "*")
    row = await plane.certificates.issue(1, ["a.example"], issuer="le")
    with pytest.raises(PlaneError, match="Issuer le renews 1 certificate:"):
        await plane.work(plane.issuers.remove, "le")
    await plane.certificates.change(1, row["id"], issuer="builtin")
    await plane.work(plane.issuers.remove, "le")
    with pytest.raises(IssuerError, match="was removed"):
        await planes[1].issuers.get("le")
    assert [shown["name"] for shown in await plane.work(plane.issuers.show_all)] == ["builtin"]


@pytest.mark.parametrize(
    ("names", "issuer"),
    [
        (["a.example"], "builtin"), (["www.shop.example"], "le"), (["shop.example", "*.shop.example"], "le"),
        (["deep.lab.shop.example"], "lab"), (["lab.shop.example"], "le"), (["*.lab.shop.example"], "lab"),
        (["10.1.2.3"], "lab"), (["192.0.2.1"], "builtin"), (["myshop.example"], "builtin"),
    ],
)  # fmt: skip
async def test_the_most_specific_rule_chooses(planes: list[Plane], names: list[str], issuer: str) -> None:
    plane = planes[0]
    await put(plane)
    await put(plane, NewIssuer(name="lab", kind="scripted", settings={}))
    for domain, name in (("Shop.Example", "le"), ("*.lab.shop.example", "lab"), ("10.0.0.0/8", "lab")):
        await plane.work(plane.issuers.put_rule, domain, name)
    assert (await planes[1].certificates.issue(1, names))["issuer"] == issuer
    await plane.work(plane.issuers.put_rule, "*", "lab")
    expected = "lab" if issuer == "builtin" else issuer
    assert (await planes[1].certificates.issue(1, names))["issuer"] == expected
    assert (await planes[1].certificates.issue(1, names, issuer="builtin"))["issuer"] == "builtin"


async def test_names_of_several_issuers_need_a_choice(planes: list[Plane]) -> None:
    plane = planes[0]
    await put(plane)
    await plane.work(plane.issuers.put_rule, "shop.example", "le")
    with pytest.raises(PlaneError, match=r"shop\.example to issuer le and a\.example to issuer builtin"):
        await plane.certificates.issue(1, ["shop.example", "a.example"])
    for domain in ("a b", "10.0.0.1/8", "x/y", ""):
        with pytest.raises(PlaneError) as refused:
            await plane.work(plane.issuers.put_rule, domain, "le")
        assert refused.value.status == 400
    with pytest.raises(PlaneError, match="There is no issuer 'nobody'"):
        await plane.work(plane.issuers.put_rule, "a.example", "nobody")


async def test_checks_show_facts_or_the_problem(planes: list[Plane], kind: ScriptedKind) -> None:
    plane = planes[0]
    await put(plane)
    shown = await plane.issuers.check("le")
    assert (shown["ok"], shown["facts"], shown["problem"]) == (True, {"orders_left": "50"}, "")

    async def broken() -> dict[str, str]:
        raise IssuerError("the account is gone", fix="register again")

    kind.ca.check = broken  # type: ignore[method-assign]
    await plane.issuers.check("le")
    stored = await planes[1].work(planes[1].issuers.show, "le")
    assert (stored["problem"], stored["fix"]) == ("the account is gone", "register again")
    assert stored["problem_at"] is not None
    assert (await plane.issuers.check("builtin"))["ok"] is True


async def test_an_issuer_keeps_secrets_of_its_own(planes: list[Plane], kind: ScriptedKind) -> None:
    await put(planes[0])
    for plane in planes:
        await plane.issuers.get("le")
    contexts: list[IssuerContext] = [context for _, _, context in kind.made]
    assert await contexts[0].load("account") is None
    await contexts[0].store("account", b"first")
    await contexts[0].store("account", b"second")
    assert await contexts[1].load("account") == b"second"
    row = await planes[0].work(planes[0].database.one, "SELECT * FROM issuer_items")
    assert row is not None
    assert b"second" not in bytes(row["value_enc"])


async def test_an_issuer_that_cannot_be_made_is_a_problem(planes: list[Plane], monkeypatch: pytest.MonkeyPatch) -> None:
    plane = planes[0]
    await put(plane)
    monkeypatch.setattr("certctrl.plane.issuers.registry.installed_kinds", dict)
    plane.issuers._kinds = None
    with pytest.raises(CertctrlError, match="of kind scripted, which is not installed here"):
        await plane.issuers.get("le")
    await plane.order_runner._problems.update()
    assert ProblemName.ISSUER in plane.problems
    row = await plane.certificates.issue(1, ["a.example"], issuer="le")
    await plane.order_runner.run_once()
    order = await plane.work(plane.orders.show, 1, row["order_id"])
    assert (order["state"], "not installed" in order["problem"]) == ("ready", True), "it may be installed soon"


def test_the_kinds_of_this_package_are_installed() -> None:
    kinds = installed_kinds()
    assert {"builtin", "command"} <= set(kinds)
    assert all(hasattr(kind, "check_settings") and hasattr(kind, "make") for kind in kinds.values())


def test_rows_compare_by_content() -> None:
    """The cache of issuers relies on it: drivers return new objects for equal values."""
    from certctrl.plane.issuers.registry import _Known

    connection = sqlite3.connect(":memory:")
    value = connection.execute("SELECT x'01'").fetchone()[0]
    connection.close()
    assert _Known("a", "{}", value) == _Known("a", "{}", b"\x01") != _Known("a", "{}", None)


async def test_a_bug_of_a_kind_is_a_problem_and_ends_nothing(
    planes: list[Plane], monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = planes[0]
    await put(plane)

    def fail(*args: object) -> None:
        raise KeyError("proxy")

    monkeypatch.setattr(ScriptedKind, "make", fail)
    await plane.order_runner._problems.update()
    assert ProblemName.ISSUER in plane.problems
    assert (await plane.issuers.check("le"))["ok"] is False
    row = await plane.certificates.issue(1, ["a.example"], issuer="le")
    await plane.order_runner.run_once()
    order = await plane.work(plane.orders.show, 1, row["order_id"])
    assert (order["state"], "unexpected KeyError in kind scripted" in order["problem"]) == ("ready", True)


def test_a_kind_that_cannot_be_loaded_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        name = "broken"

        def load(self) -> None:
            raise AttributeError("module has no attribute KIND")

    monkeypatch.setattr("certctrl.plane.issuers.registry.entry_points", lambda group: [Broken()])
    assert installed_kinds() == {}


async def test_a_secret_of_before_that_is_of_no_use_any_more_is_removed(
    planes: list[Plane], monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = planes[0]
    acme = {"scripted": ACME}
    monkeypatch.setattr("certctrl.plane.issuers.registry.installed_kinds", lambda: acme)
    settings = {"directory_url": "https://ca.test/directory", "challenges": [{"type": "plane-http"}]}
    proxy = {"proxy": "http://proxy.test:3128"}
    login = {"proxy_login": b"user:password"}
    given = NewIssuer(name="le", kind="scripted", settings=settings | proxy, secrets=login)
    assert (await put(plane, given))["secrets"] == ["proxy_login"]
    kept = NewIssuer(name="le", kind="scripted", settings=settings | proxy, replace=True)
    assert (await put(plane, kept))["secrets"] == ["proxy_login"]
    without = NewIssuer(name="le", kind="scripted", settings=settings, replace=True)
    assert (await put(plane, without))["secrets"] == []
    with pytest.raises(PlaneError, match="proxy_login: is given, but proxy is not set"):
        await put(plane, NewIssuer(name="le", kind="scripted", settings=settings, secrets=login, replace=True))


async def test_secrets_of_before_count(planes: list[Plane]) -> None:
    for prefix in "ab":
        secrets = {f"{prefix}{number}": b"x" for number in range(30)}
        given = NewIssuer(name="le", kind="scripted", settings={}, secrets=secrets, replace=True)
        if prefix == "a":
            await put(planes[0], given)
        else:
            with pytest.raises(PlaneError, match="at most 50 secrets, including the earlier ones"):
                await put(planes[0], given)


class Meeting:
    """Checks of settings that wait a moment for one another, so that two changes overlap if the database lets them."""

    def __init__(self, kind: ScriptedKind) -> None:
        self._barrier = threading.Barrier(2)
        self._check, kind.check_settings = kind.check_settings, self.check  # type: ignore[method-assign]

    def check(self, settings: Mapping[str, Any], secrets: Mapping[str, bytes]) -> dict[str, Any]:
        with contextlib.suppress(threading.BrokenBarrierError):
            self._barrier.wait(0.5)
        return self._check(settings, secrets)


async def put_together(planes: list[Plane], *new: NewIssuer) -> list[str]:
    """Put issuers at the same time; return what is refused."""
    refused = []

    async def put_one(plane: Plane, one: NewIssuer) -> None:
        try:
            await put(plane, one)
        except PlaneError as error:
            refused.append(str(error))

    async with trio.open_nursery() as nursery:
        for plane, one in zip(planes, new, strict=True):
            nursery.start_soon(put_one, plane, one)
    return refused


async def test_two_operators_who_replace_an_issuer_lose_no_secret(planes: list[Plane], kind: ScriptedKind) -> None:
    """Found by review: the second one stored the secrets that it had read before the first one's change."""
    await put(planes[0])
    Meeting(kind)
    secrets = {"one": b"first"}, {"two": b"second"}
    new = [NewIssuer(name="le", kind="scripted", settings={}, secrets=one, replace=True) for one in secrets]
    assert await put_together(planes, *new) == []
    await planes[0].issuers.get("le")
    assert kind.made[-1][1] == {"eab": b"very secret", "one": b"first", "two": b"second"}


async def test_two_operators_who_add_an_issuer_do_not_replace_it(planes: list[Plane], kind: ScriptedKind) -> None:
    Meeting(kind)
    other = NewIssuer(name="le", kind="scripted", settings={}, secrets={"other": b"secret"})
    (refused,) = await put_together(planes, LE, other)
    assert "There is an issuer le of kind scripted" in refused
    await planes[0].issuers.get("le")
    assert kind.made[-1][1] in ({"eab": b"very secret"}, {"other": b"secret"})


async def test_what_two_operators_give_one_after_the_other_is_kept_together(
    planes: list[Plane], kind: ScriptedKind
) -> None:
    """If both may replace it, the one that comes second keeps the secrets of the first, even if neither existed."""
    Meeting(kind)
    new = [NewIssuer(name="le", kind="scripted", settings={}, secrets={s: b"x"}, replace=True) for s in ("one", "two")]
    assert await put_together(planes, *new) == []
    await planes[0].issuers.get("le")
    assert kind.made[-1][1] == {"one": b"x", "two": b"x"}
