"""Tag expressions: what they select, and what they say about mistakes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.plane.profiles.expression import MAX_CHARACTERS, MAX_DEPTH, ExpressionError, parse

TAGS = ("web", "db", "env=prod", "env=test")


@pytest.mark.parametrize(
    ("text", "chosen", "left"),
    [
        ("web", {"web"}, {"db"}),
        ("*", set(), None),
        ("not web", set(), {"web"}),
        ("not not web", {"web"}, set()),
        ("web and env=prod", {"web", "env=prod"}, {"web", "env=test"}),
        ("web or db and env=prod", {"web"}, {"db"}),
        ("(web or db) and env=prod", {"db", "env=prod"}, {"web"}),
        ("not web or db", {"web", "db"}, {"web"}),
        ("not (web or db)", {"cache"}, {"db"}),
        ("env=*", {"env=test"}, {"env", "environ=x"}),
        ("WEB AND web".replace("WEB", "web"), {"web"}, set()),
        ("and-then", {"and-then"}, {"and"}),
        ("\tweb\n and(db)", {"web", "db"}, {"web"}),
    ],
)
def test_expressions_select(text: str, chosen: set[str], left: set[str] | None) -> None:
    found = parse(text)
    assert found.matches(chosen)
    assert left is None or not found.matches(left)
    assert parse(found.text).text == found.text


def test_the_text_is_the_expression_with_single_spaces() -> None:
    assert parse(" NOT(web OR  db ) and\t( env=* )").text == "not (web or db) and (env=*)"


@pytest.mark.parametrize(
    ("text", "required"),
    [
        ("web", {"web"}), ("web and env=prod", {"web", "env=prod"}), ("web or db", set()), ("*", set()), ("env=*", set()),
        ("web and (db or env=prod)", {"web"}), ("(web and db) or (web and x)", {"web"}), ("not web", set()),
        ("not (not web)", set()), ("web and not db", {"web"}), ("web and *", {"web"}), ("web or *", set()),
    ],
)  # fmt: skip
def test_the_tags_that_an_expression_requires(text: str, required: set[str]) -> None:
    assert parse(text).required == required


def test_as_many_levels_as_allowed() -> None:
    for text in ("not " * MAX_DEPTH + "web", "(" * MAX_DEPTH + "web" + ")" * MAX_DEPTH):
        assert parse(text).matches({"web"})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "character 1: expected a tag"),
        ("   ", "character 4: expected a tag"),
        ("web and", "character 8: expected a tag"),
        ("and web", "character 1: expected a tag instead of 'and'"),
        ("web db", "character 5: expected and, or, or the end instead of 'db'"),
        ("(web", "character 5: no closing parenthesis for the one at character 1"),
        ("web)", "character 4: a closing parenthesis without an opening one"),
        ("()", "character 2: expected a tag instead of ')'"),
        ("web && db", "character 5: expected and, or, or the end instead of '&&'; write and"),
        ("!web", "character 1: '!web' is not a tag; write not web"),
        ("!w", "character 1: '!w' is not a tag; write not w"),
        ("é" * 60, f"character 1: '{'é' * 39}…' is not a tag, such as"),
        ("Web", "character 1: 'Web' is not a tag; did you mean web?"),
        ("web adn db", "character 5: expected and, or, or the end instead of 'adn'; did you mean and?"),
        ("nott (web)", "character 6: expected and, or, or the end instead of '('"),
        ("env==x", "character 1: 'env==x' is not a tag, such as web or env=prod"),
        ("=*", "'=*' is not a tag"),
        ("not " * (MAX_DEPTH + 1) + "web", f"nested more than {MAX_DEPTH} times"),
        ("(" * (MAX_DEPTH + 1) + "web", f"nested more than {MAX_DEPTH} times"),
        ("w " * MAX_CHARACTERS, f"at most {MAX_CHARACTERS} characters"),
        ("web\x1b[31m", r"'web\\x1b[31m' is not a tag"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_place(text: str, says: str) -> None:
    with pytest.raises(ExpressionError) as refused:
        parse(text)
    assert says in str(refused.value)
    assert 1 <= refused.value.position <= MAX_CHARACTERS + 1


Tree = tuple[str, Callable[[set[str]], bool]]


def combined(inner: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    pairs = st.tuples(inner, inner)
    return st.one_of(
        inner.map(lambda one: (f"not ({one[0]})", lambda tags: not one[1](tags))),
        pairs.map(lambda two: (f"({two[0][0]}) and ({two[1][0]})", lambda tags: two[0][1](tags) and two[1][1](tags))),
        pairs.map(lambda two: (f"({two[0][0]}) or ({two[1][0]})", lambda tags: two[0][1](tags) or two[1][1](tags))),
    )


LEAF = st.sampled_from(TAGS).map(lambda tag: (tag, lambda tags: tag in tags))


@given(st.recursive(LEAF, combined, max_leaves=6), st.sets(st.sampled_from(TAGS)))
def test_an_expression_means_what_it_says(tree: Tree, tags: set[str]) -> None:
    text, expected = tree
    assert parse(text).matches(tags) == expected(tags)
    assert not parse(text).matches(tags) or parse(text).required <= tags


@given(st.text(st.sampled_from("wbn oadrt()=*!&\x00é"), max_size=40))
def test_any_text_is_an_expression_or_refused(text: str) -> None:
    try:
        found = parse(text)
    except ExpressionError as error:
        assert 1 <= error.position <= len(text) + 1
        return
    again = parse(found.text)
    assert again.text == found.text
    assert again.matches(TAGS) == found.matches(TAGS)
