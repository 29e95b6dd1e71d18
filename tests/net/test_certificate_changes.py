"""The certificate list by revision: requests, paging, and planes that lack it after all."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from plane_answers import HTML, FakeHttp, Sent, ok, plane_of, refusal

from certctrl.errors import BadAnswerError, PlaneError
from certctrl.model.answer import Answer
from certctrl.model.features import DELTA, PUSH
from certctrl.net import certificate_changes
from certctrl.net.control_plane import ControlPlane
from certctrl.protocol.wire.certificate_changes import KnownList

LIST = "/apiv1/devices/self/certificates"
MATERIALS = f"{LIST}/4/deploy-materials"
SEALED = {"certificate_pem": "PEM", "chain_pem": "", "serial_number": "0a", "enc_scheme": "aes256gcm"}


def row(number: int, **fields: object) -> dict[str, Any]:
    return {"id": number, "domain_name": f"c{number}.example", **fields}


def known(*numbers: int, revision: str = "r1") -> KnownList:
    return KnownList(revision, {number: json.dumps(row(number)) for number in numbers})


def listed(*numbers: int, revision: str = "r2", **body: object) -> Answer:
    whole = {"data": [row(number) for number in numbers], "complete": True} | body
    return Answer(200, {"content-type": "application/json", "etag": f'"{revision}"'}, json.dumps(whole).encode())


def same(revision: str = "r1") -> Answer:
    return Answer(304, {"etag": f'"{revision}"'}, b"")


def delta_plane(http: FakeHttp) -> ControlPlane:
    plane = plane_of(http)
    plane.features = frozenset({DELTA, PUSH})
    return plane


async def test_without_a_known_list_everything_is_fetched_with_its_revision() -> None:
    numbers = list(range(1, 1201))

    def pages(sent: list[Sent]) -> Callable[[], Answer]:
        return lambda: listed(*[n for n in numbers if n > sent[-1].query["after_id"]][: sent[-1].query["limit"]])

    http = FakeHttp()
    http.by_path[LIST] = pages(http.sent)
    found = await delta_plane(http).fetch_changes("t", None)
    assert found is not None and (found.revision, [*found.rows]) == ("r2", numbers)
    assert [sent.query for sent in http.sent] == [
        {"after_id": after, "limit": 500, "updated_since": ""} for after in (0, 500, 1000)
    ]
    assert all("if-none-match" not in sent.headers for sent in http.sent)


async def test_a_current_list_costs_one_request_without_a_body() -> None:
    http, mine = FakeHttp(same()), known(1, 2)
    assert await delta_plane(http).fetch_changes("t", mine) is mine
    assert [sent.query["updated_since"] for sent in http.sent] == ["r1"]
    assert [sent.headers["if-none-match"] for sent in http.sent] == ['"r1"']


async def test_changes_replace_the_parts_that_they_name() -> None:
    http = FakeHttp(listed(5, complete=False, replaced={"of": 4, "parts": [1]}))
    found = await delta_plane(http).fetch_changes("t", known(1, 2, 3))
    assert found is not None and (found.revision, {*found.rows}) == ("r2", {2, 3, 5})


async def test_an_unknown_revision_gets_the_whole_list_in_the_same_answer() -> None:
    http = FakeHttp(listed(7, 8))
    found = await delta_plane(http).fetch_changes("t", known(1, 2, 3))
    assert found is not None and {*found.rows} == {7, 8}
    assert len(http.sent) == 1


async def test_a_list_that_changes_between_its_pages_has_no_revision() -> None:
    """A revision of the first page would say that the later ones are unchanged."""
    first, second = listed(*range(1, 501), revision="a"), listed(501, revision="b")
    found = await delta_plane(FakeHttp(first, second)).fetch_changes("t", None)
    assert found is not None and (found.revision, len(found.rows)) == ("", 501)


@pytest.mark.parametrize("status", [400, 404, 405, 501])
@pytest.mark.parametrize("mine", [None, known(1)])
async def test_a_plane_that_refuses_revisions_lacks_the_feature(status: int, mine: KnownList | None) -> None:
    plane = delta_plane(FakeHttp(refusal(status)))
    assert await plane.fetch_changes("t", mine) is None
    assert plane.features == {PUSH}


@pytest.mark.parametrize("mine", [None, known(1)])
async def test_a_plane_that_ignores_revisions_lacks_the_feature(mine: KnownList | None) -> None:
    plane = delta_plane(FakeHttp(ok([row(1)])))
    assert await plane.fetch_changes("t", mine) is None
    assert plane.features == {PUSH}


async def test_a_plane_that_forgets_revisions_between_two_pages() -> None:
    plane = delta_plane(FakeHttp(listed(*range(1, 501)), ok([row(501)])))
    assert await plane.fetch_changes("t", None) is None
    assert plane.features == {PUSH}


@pytest.mark.parametrize("status", [401, 403, 429, 503])
async def test_other_refusals_are_those_of_the_list(status: int) -> None:
    plane = delta_plane(FakeHttp(refusal(status)))
    with pytest.raises(PlaneError) as caught:
        await plane.fetch_changes("t", known(1))
    assert caught.value.status == status
    assert DELTA in plane.features


@pytest.mark.parametrize(
    "answer",
    [HTML, same("r2"), Answer(304, {}, b""), Answer(200, {"content-type": "application/json"}, b"{"),
     listed(1, complete=False), listed(1, complete=False, replaced={"of": 2, "parts": [0]})],
)  # fmt: skip
async def test_an_answer_that_does_not_fit_is_no_list(answer: Answer) -> None:
    plane = delta_plane(FakeHttp(answer))
    with pytest.raises(BadAnswerError):
        await plane.fetch_changes("t", known(1))
    assert DELTA in plane.features


async def test_changes_of_a_list_that_is_not_here_are_no_list() -> None:
    for answers in ((same("r1"),), (listed(complete=False, replaced={"of": 1, "parts": []}),)):
        with pytest.raises(BadAnswerError):
            await delta_plane(FakeHttp(*answers)).fetch_changes("t", None)
    page = listed(complete=False, replaced={"of": 1, "parts": []})
    with pytest.raises(BadAnswerError):
        await delta_plane(FakeHttp(listed(*range(1, 501)), page)).fetch_changes("t", known(9))


async def test_a_plane_without_paging() -> None:
    everything = listed(*range(900, 0, -1))
    http = FakeHttp(everything, everything)
    found = await delta_plane(http).fetch_changes("t", None)
    assert found is not None and len(found.rows) == 900
    assert len(http.sent) == 2


async def test_an_endless_list_is_a_bad_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    start = iter(range(1, 10**9, 500))

    def more() -> Answer:
        first = next(start)
        return listed(*range(first, first + 500))

    with pytest.raises(BadAnswerError, match="does not end"):
        await delta_plane(FakeHttp(by_path={LIST: more})).fetch_changes("t", None)
    monkeypatch.setattr(certificate_changes, "MAX_LIST_BYTES", 30_000)
    with pytest.raises(BadAnswerError, match="memory"):
        await delta_plane(FakeHttp(by_path={LIST: more})).fetch_changes("t", None)


async def test_a_list_that_grows_by_one_certificate_a_page_is_a_bad_answer() -> None:
    """Found by review: a plane could keep a comparison, and its lock, busy with 20 000 requests."""
    start = iter(range(1, 10**9))

    def slowly() -> Answer:
        first = next(start)
        return listed(*range(first, first + 500))

    http = FakeHttp(by_path={LIST: slowly})
    with pytest.raises(BadAnswerError, match="does not end"):
        await delta_plane(http).fetch_changes("t", None)
    assert len(http.sent) <= 1 + certificate_changes.MAX_PAGES


async def test_changes_cannot_grow_a_list_beyond_that_of_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by review: each answer was bounded, but not the list that they were added to."""
    monkeypatch.setattr(certificate_changes, "MAX_CERTIFICATES", 40)
    mine, one_more = known(*range(0, 80, 2)), listed(1, complete=False, replaced={"of": 2, "parts": [1]})
    with pytest.raises(BadAnswerError, match="does not end"):
        await delta_plane(FakeHttp(one_more)).fetch_changes("t", mine)
    monkeypatch.setattr(certificate_changes, "MAX_LIST_BYTES", 60)
    with pytest.raises(BadAnswerError, match="memory"):
        await delta_plane(FakeHttp(one_more)).fetch_changes("t", known(2))


# --- features and materials ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "lacks"), [(404, True), (405, True), (501, True), (400, False), (503, False)])
def test_an_endpoint_that_is_not_there_ends_its_feature(status: int, lacks: bool) -> None:
    plane = delta_plane(FakeHttp())
    assert plane.lacks(DELTA, refusal(status)) is lacks
    assert (DELTA in plane.features) is not lacks
    assert PUSH in plane.features


async def test_the_etag_of_materials_comes_with_them_and_goes_back() -> None:
    http = FakeHttp(ok(SEALED, etag='"e1"'), Answer(304, {"etag": '"e1"'}, b""), ok(SEALED, etag='"e2"'))
    plane = plane_of(http)
    found = await plane.fetch_materials("t", 4)
    assert found.etag == "e1"
    assert await plane.fetch_changed_materials("t", 4, found.etag) is None
    changed = await plane.fetch_changed_materials("t", 4, found.etag)
    assert changed is not None and changed.etag == "e2"
    assert [sent.headers.get("if-none-match") for sent in http.sent] == [None, '"e1"', '"e1"']
    assert {sent.path for sent in http.sent} == {MATERIALS}


@pytest.mark.parametrize("etag", ["", "x" * 65, 'a"b', "a b", "\xe9"])
async def test_an_etag_that_cannot_be_sent_back_is_not_kept(etag: str) -> None:
    assert (await plane_of(FakeHttp(ok(SEALED, etag=etag))).fetch_materials("t", 4)).etag == ""


async def test_material_whose_texts_are_of_another_answer_has_no_etag() -> None:
    bare = ok({"enc_scheme": "aes256gcm"}, etag='"e1"')
    http = FakeHttp(
        by_path={MATERIALS: bare, f"{LIST}/4": ok(row(4, certificate_pem="PEM", chain_pem=""), etag='"e9"')}
    )
    assert (await plane_of(http).fetch_materials("t", 4)).etag == ""


async def test_a_304_that_was_not_asked_for_is_a_bad_answer() -> None:
    with pytest.raises(BadAnswerError):
        await plane_of(FakeHttp(Answer(304, {"etag": '"e1"'}, b""))).fetch_materials("t", 4)
    assert "etag" not in SEALED
    with_field = ok(SEALED | {"etag": "of the body"})
    assert (await plane_of(FakeHttp(with_field)).fetch_materials("t", 4)).etag == ""
