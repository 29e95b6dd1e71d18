"""Revisions of a list: whatever changes, the known list with the changes is the present one."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from certctrl.plane.certificates.revisions import MAX_PARTS, MAX_REVISION, Changes, ListedRow, Revision, changes

Rows = dict[int, bytes]

lists = st.dictionaries(st.integers(1, 400), st.binary(max_size=3), max_size=40)


def rows_of(content: Rows) -> list[ListedRow]:
    return [ListedRow(number, content[number]) for number in sorted(content)]


def ask(content: Rows, since: str = "", *, after_id: int = 0, limit: int = 500) -> Changes:
    return changes(rows_of(content), since, after_id=after_id, limit=limit)


def applied(known: Rows, found: Changes) -> Rows:
    """Return what a device that follows the answer has then."""
    new = {row.id: row.text for row in found.rows}
    if found.parts is None:
        return new
    return {number: text for number, text in known.items() if number % found.divisor not in found.parts} | new


@given(lists, lists)
@example({}, {1: b""})
@example({1: b"a", 2: b"a"}, {1: b"a"})
@example({1: b"a"}, {1: b"a", 129: b"a"})
@example({1: b"ab", 2: b"c"}, {1: b"a", 2: b"bc"})
def test_the_known_list_with_the_changes_is_the_present_one(before: Rows, after: Rows) -> None:
    found = ask(after, ask(before).revision)
    assert applied(before, found) == after
    assert found.revision == ask(after).revision
    assert (found.revision == ask(before).revision) == (before == after)


@given(lists)
def test_nothing_is_sent_for_the_present_revision(content: Rows) -> None:
    found = ask(content, ask(content).revision)
    assert (found.rows, found.parts) == ((), ())


@given(lists, st.lists(lists, min_size=1, max_size=5))
def test_changes_may_be_followed_for_ever(first: Rows, later: list[Rows]) -> None:
    known, revision = first, ask(first).revision
    for content in later:
        found = ask(content, revision)
        known, revision = applied(known, found), found.revision
        assert known == content


def test_one_change_among_many_sends_one_part() -> None:
    content = dict.fromkeys(range(1, 1001), b"x" * 300)
    found = ask(content | {500: b"new"}, ask(content).revision)
    assert found.parts == (500 % MAX_PARTS,) and found.divisor == MAX_PARTS
    assert {row.id for row in found.rows} == {number for number in content if number % MAX_PARTS == 500 % MAX_PARTS}
    removed = ask({number: text for number, text in content.items() if number != 500}, ask(content).revision)
    assert removed.parts == found.parts and 500 not in {row.id for row in removed.rows}


def test_a_short_list_has_a_short_revision() -> None:
    sizes = {count: len(ask(dict.fromkeys(range(count), b"")).revision) for count in (0, 1, 3, 65, 1000, 20_000)}
    assert sizes == {0: 11, 1: 11, 3: 43, 65: 1366, 1000: 1366, 20_000: 1366}


def test_more_changes_than_fit_mean_the_whole_list() -> None:
    content = dict.fromkeys(range(1, 31), b"a")
    revision = ask(content).revision
    found = ask(dict.fromkeys(content, b"b"), revision, limit=20)
    assert found.parts is None and [row.id for row in found.rows] == [*range(1, 21)]
    rest = ask(dict.fromkeys(content, b"b"), revision, after_id=20, limit=20)
    assert rest.parts is None and [row.id for row in rest.rows] == [*range(21, 31)]


@pytest.mark.parametrize(
    "revision",
    ["", "x", "AAAA", "é" * 11, "A" * 11 + "\n", "A" * 10 + "=", "A" * (MAX_REVISION + 1), "AAAAAAAAAAA.", "*",
     "A" * (11 * MAX_PARTS + 11), "A" * 12],
)  # fmt: skip
def test_any_other_text_is_an_unknown_revision(revision: str) -> None:
    found = ask({1: b"a"}, revision)
    assert found.parts is None and [row.id for row in found.rows] == [1]


@given(st.binary(min_size=8, max_size=8 * 130).filter(lambda raw: len(raw) % 8 == 0))
def test_a_made_up_revision_gets_the_present_list(raw: bytes) -> None:
    made = Revision(tuple(raw[start : start + 8] for start in range(0, len(raw), 8)))
    parsed = Revision.parse(made.text)
    assert parsed == (made if len(made.digests) <= MAX_PARTS else None)
    content = {1: b"a", 2: b"b", 7: b"c"}
    assert applied({}, ask(content, made.text)) == content


@given(lists, st.integers(1, 50), st.integers(0, 400))
def test_pages_of_the_whole_list_have_one_revision(content: Rows, limit: int, start: int) -> None:
    page = ask(content, after_id=start, limit=limit)
    assert page.revision == ask(content).revision
    assert [row.id for row in page.rows] == sorted(number for number in content if number > start)[:limit]
