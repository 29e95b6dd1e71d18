"""Tag expressions: ``web and not (env=test or env=dev)``, which select devices by their tags.

The grammar, in which ``not`` binds closer than ``and``, and ``and`` closer than ``or``::

    expression = conjunction {"or" conjunction}
    conjunction = term {"and" term}
    term = "not" term | "(" expression ")" | TAG | "*"

``*`` selects all devices. ``env=*`` selects those with any value of a key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator

from certctrl import lean
from certctrl.plane.devices.tags import is_tag
from certctrl.text import nearest, one_line

MAX_CHARACTERS = 500
MAX_DEPTH = 20
"""Nested parentheses and negations."""
ALL = "*"
_WORDS = ("and", "or", "not")
_TOKEN = re.compile(r"\s*([()]|[^\s()]+)")
_SYMBOLS = {"&&": "and", "&": "and", "||": "or", "|": "or", "!": "not"}
"""Signs of other languages, and what they are here."""

Tags = Collection[str]
Matcher = Callable[[Tags], bool]


class ExpressionError(ValueError):
    """An expression is not valid; ``position`` counts its characters from 1."""

    def __init__(self, what: str, position: int) -> None:
        super().__init__(f"character {position}: {what}")
        self.position = position


@lean.frozen(eq=False)
class Expression:
    """A valid expression."""

    text: str
    """In canonical form: single spaces, words in lower case."""
    tags: frozenset[str]
    """The tags that it names, including ``env=*``."""
    matches: Matcher
    """Whether it selects a device with these tags."""
    required: frozenset[str] = frozenset()
    """Tags without which it selects no device, as far as its form shows; not ``env=*``."""


@lean.frozen(eq=False)
class _Part:
    """A part of an expression, with the tags without which it selects no device."""

    matches: Matcher
    required: frozenset[str] = frozenset()


@lean.frozen
class _Token:
    text: str
    position: int


def parse(text: str) -> Expression:
    """Return an expression. Raises ExpressionError."""
    if len(text) > MAX_CHARACTERS:
        raise ExpressionError(
            f"an expression has at most {MAX_CHARACTERS} characters; it is too long", MAX_CHARACTERS + 1
        )
    parser = _Parser(list(_tokens(text)), len(text) + 1)
    found = parser.expression(0)
    parser.end()
    text = " ".join(parser.canonical).replace("( ", "(").replace(" )", ")")
    return Expression(text, frozenset(parser.tags), found.matches, found.required)


def _tokens(text: str) -> Iterator[_Token]:
    for match in _TOKEN.finditer(text):
        yield _Token(match[1], match.start(1) + 1)


class _Parser:
    """Reads the tokens of one expression from left to right."""

    def __init__(self, tokens: list[_Token], end: int) -> None:
        self._tokens, self._next, self._end = tokens, 0, end
        self.canonical: list[str] = []
        self.tags: set[str] = set()

    def expression(self, depth: int) -> _Part:
        """Read alternatives."""
        found = [self._conjunction(depth)]
        while self._take("or"):
            found.append(self._conjunction(depth))
        if len(found) == 1:
            return found[0]
        required = frozenset.intersection(*(one.required for one in found))
        return _Part(lambda tags: any(one.matches(tags) for one in found), required)

    def end(self) -> None:
        """Raise ExpressionError unless all tokens were read."""
        if (token := self._peek()) is not None:
            if token.text == ")":
                raise ExpressionError("a closing parenthesis without an opening one", token.position)
            what = f"expected and, or, or the end instead of {_shown(token.text)}{_hint_word(token.text)}"
            raise ExpressionError(what, token.position)

    def _conjunction(self, depth: int) -> _Part:
        found = [self._term(depth)]
        while self._take("and"):
            found.append(self._term(depth))
        if len(found) == 1:
            return found[0]
        required = frozenset[str]().union(*(one.required for one in found))
        return _Part(lambda tags: all(one.matches(tags) for one in found), required)

    def _term(self, depth: int) -> _Part:
        token = self._peek()
        if token is None:
            raise ExpressionError("expected a tag", self._end)
        if depth > MAX_DEPTH:
            raise ExpressionError(f"nested more than {MAX_DEPTH} times", token.position)
        if self._take("not"):
            negated = self._term(depth + 1).matches
            return _Part(lambda tags: not negated(tags))
        if self._take("("):
            inner = self.expression(depth + 1)
            if not self._take(")"):
                raise ExpressionError(f"no closing parenthesis for the one at character {token.position}", self._end)
            return inner
        return self._tag(token)

    def _tag(self, token: _Token) -> _Part:
        word = token.text
        if word in (")", "and", "or"):
            raise ExpressionError(f"expected a tag instead of {word!r}", token.position)
        key = word[:-1] if word.endswith("=*") else ""
        if word != ALL and not is_tag(f"{key}x" if key else word):
            raise ExpressionError(f"{_shown(word)} is not a tag{_hint(word)}", token.position)
        self._next += 1
        self.canonical.append(word)
        if word == ALL:
            return _Part(lambda tags: True)
        self.tags.add(word)
        if key:
            return _Part(lambda tags: any(tag.startswith(key) for tag in tags))
        return _Part(lambda tags: word in tags, frozenset({word}))

    def _peek(self) -> _Token | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def _take(self, word: str) -> bool:
        """Take the next token if it is this word, in any case."""
        token = self._peek()
        if token is None or token.text.lower() != word:
            return False
        self._next += 1
        self.canonical.append(word)
        return True


def _shown(word: str) -> str:
    return repr(one_line(word, 40))


def _hint_word(word: str) -> str:
    """Return what an operator probably meant by a word where and, or, or the end belongs; empty: unknown."""
    if word in _SYMBOLS:
        return f"; write {_SYMBOLS[word]}"
    meant = nearest(word.lower(), _WORDS)
    return f"; did you mean {meant}?" if meant else ""


def _hint(word: str) -> str:
    if word.startswith("!") and is_tag(word[1:]):
        return f"; write not {word[1:]}"
    if is_tag(word.lower()):
        return f"; did you mean {word.lower()}?"
    return _hint_word(word) or ", such as web or env=prod"
