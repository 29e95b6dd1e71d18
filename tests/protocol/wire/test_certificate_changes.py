"""The certificate list by revision: pages of answers, and the list that a device keeps."""

from __future__ import annotations

import json
from typing import Any

import pytest

from certctrl.errors import BadAnswerError
from certctrl.model.answer import Answer
from certctrl.protocol.wire.certificate_changes import (
    MAX_PARTS,
    MAX_REVISION,
    KnownList,
    ListPage,
    Replaced,
    is_unchanged,
    list_page_from_wire,
)

KNOWN = KnownList("r1", {n: json.dumps({"id": n, "domain_name": f"c{n}.example"}) for n in (1, 2, 3, 5)})


def row(number: int, **fields: object) -> dict[str, Any]:
    return {"id": number, "domain_name": f"c{number}.example", **fields}


def answer(body: object, status: int = 200, etag: str | None = '"r2"') -> Answer:
    headers = {"content-type": "application/json"} | ({"etag": etag} if etag is not None else {})
    return Answer(status, headers, json.dumps(body).encode())


def page_of(**body: object) -> ListPage:
    return list_page_from_wire(answer({"data": []} | body), 100)


def test_a_page_of_the_whole_list() -> None:
    found = page_of(data=[row(4, extra=1), row(2)], complete=True)
    assert {number: json.loads(text) for number, text in found.rows.items()} == {4: row(4, extra=1), 2: row(2)}
    assert (found.revision, found.replaced, found.by_revision) == ("r2", None, True)


def test_changes() -> None:
    found = page_of(data=[row(5)], complete=False, replaced={"of": 4, "parts": [1]})
    assert found.replaced == Replaced(divisor=4, parts=frozenset({1}))
    later = KNOWN.after(found, found.replaced)
    assert later.revision == "r2" and {*later.rows} == {2, 3, 5}, "1 was in the part, and is gone"
    assert [one.id for one in later.certificates()] == [2, 3, 5]


def test_the_texts_of_a_detail_are_not_kept() -> None:
    found = page_of(data=[row(4, certificate_pem="PEM", chain_pem="PEM")], complete=True)
    assert json.loads(found.rows[4]) == row(4)


@pytest.mark.parametrize("complete", [None, 0, "false", [], "absent"])
def test_a_plane_that_does_not_say_whether_the_list_is_complete_has_no_revisions(complete: object) -> None:
    body = {} if complete == "absent" else {"complete": complete}
    found = page_of(data=[row(1)], replaced={"of": 1, "parts": []}, **body)
    assert (found.by_revision, found.replaced, {*found.rows}) == (False, None, {1})


@pytest.mark.parametrize(
    "replaced",
    [None, [], "x", {}, {"of": 4}, {"parts": []}, {"of": 0, "parts": []}, {"of": -1, "parts": []}, {"of": True, "parts": []},
     {"of": 4.0, "parts": []}, {"of": "4", "parts": []}, {"of": MAX_PARTS + 1, "parts": []}, {"of": 4, "parts": {}},
     {"of": 4, "parts": [4]}, {"of": 4, "parts": [-1]}, {"of": 4, "parts": ["x"]}, {"of": 4, "parts": [True]},
     {"of": 4, "parts": [0]}],
)  # fmt: skip
def test_changes_that_do_not_fit_fail_as_a_whole(replaced: object) -> None:
    """In the last one, the certificate is not in the part that is said to have changed."""
    with pytest.raises(BadAnswerError):
        page_of(data=[row(1)], complete=False, replaced=replaced)


def test_one_row_that_does_not_fit_fails_the_page() -> None:
    for broken in ({"id": 2}, {"id": True, "domain_name": "x"}, "x", None):
        with pytest.raises(BadAnswerError):
            page_of(data=[row(1), broken], complete=True)
    for data in (None, {"1": row(1)}, "x"):
        with pytest.raises(BadAnswerError):
            page_of(data=data, complete=True)
    with pytest.raises(BadAnswerError, match="more than 100"):
        page_of(data=[row(n) for n in range(1, 102)], complete=True)


@pytest.mark.parametrize(
    ("etag", "revision"),
    [('"r2"', "r2"), ("r2", "r2"), ('W/"r2"', "r2"), (None, ""), ("", ""), ('"a b"', ""), ('"a"b"', ""), ("é", ""),
     ("x" * MAX_REVISION, "x" * MAX_REVISION), ("x" * (MAX_REVISION + 1), "")],
)  # fmt: skip
def test_only_a_revision_that_can_be_sent_back_is_kept(etag: str | None, revision: str) -> None:
    assert list_page_from_wire(answer({"data": [], "complete": True}, etag=etag), 9).revision == revision


def test_a_list_is_unchanged_only_if_the_plane_names_its_revision() -> None:
    assert is_unchanged(answer({}, 304, '"r1"'), KNOWN)
    for status, etag in ((304, '"r2"'), (304, None), (304, ""), (200, '"r1"'), (204, '"r1"')):
        assert not is_unchanged(answer({}, status, etag), KNOWN)


def test_kept_rows_that_do_not_fit_are_a_bad_answer() -> None:
    for text in ("", "{", "[]", '{"id": 2}', "\ufffd"):
        with pytest.raises(BadAnswerError):
            KnownList("r", {1: text}).certificates()
