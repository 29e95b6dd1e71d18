"""The readers of source code find what they look for, and stay quiet on its neighbour."""

from __future__ import annotations

import ast

import pytest
from source_code import code_lines, cycles, dotted, found_imports, long_functions, skipped_outside_tables


def test_dotted_names_stop_at_calls() -> None:
    assert dotted(ast.parse("a.b().c", mode="eval").body) == "?.c"


@pytest.mark.parametrize(
    ("arrows", "found"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}, []),
        ({"a": {"b"}, "b": {"a"}}, [["a", "b"]]),
        ({"a": {"a"}, "b": set()}, [["a"]]),
        ({"start": {"a"}, "a": {"b"}, "b": {"c"}, "c": {"a", "end"}, "end": set()}, [["a", "b", "c"]]),
        ({"a": {"b"}, "b": {"a", "c"}, "c": {"d"}, "d": {"c"}}, [["a", "b"], ["c", "d"]]),
    ],
)
def test_cycles_are_found(arrows: dict[str, set[str]], found: list[list[str]]) -> None:
    assert cycles(arrows) == found


def test_imports_are_found_wherever_they_are() -> None:
    tree = ast.parse(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from certctrl.agent import run\nelse:\n    import trio\n"
        "class A:\n    def b(self):\n        from . import errors\n"
    )
    assert list(found_imports(tree, "certctrl")) == [
        ("typing", 1, False, False),
        ("certctrl.agent.run", 3, False, True),
        ("trio", 5, False, False),
        ("certctrl.errors", 8, True, False),
    ]


def test_formatting_skipped_outside_tables_is_found() -> None:
    text = (
        "A = {\n    1, 2,\n}  # fmt: skip\n"
        "B: tuple[int, ...] = (\n    1, 2,\n)  # fmt: skip\n"
        "C = call(\n    1, 2,\n)  # fmt: skip\n"
        "def d(\n    e, f,\n):  # fmt: skip\n    return [\n    e, f,\n    ]  # fmt: skip\n"
    )
    assert skipped_outside_tables(ast.parse(text), text) == [9, 12, 15]


def test_lengths_count_neither_docstrings_nor_tables() -> None:
    text = '"""Module.\n\nMore.\n"""\nA = [\n    1,\n]\nB: int = 1\n"""Attribute."""\n\n\ndef c():\n    """C."""\n    x = 1\n    return x\n'
    tree = ast.parse(text)
    assert code_lines(tree, text) == 6
    assert long_functions(tree, 2) == ["c (line 12): 3 lines"]
    assert not long_functions(tree, 3)
