"""The source code as syntax trees: modules, imports, names, lengths."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import certctrl

PACKAGE = Path(certctrl.__file__).parent
MODULES = {
    ".".join((PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


class Import(NamedTuple):
    """One imported name."""

    target: str
    """Dotted name: a module, if the name is one."""
    line: int
    lazy: bool
    """Whether it is inside a function."""
    typing: bool
    """Whether it is only for type annotations."""


def within(name: str, places: tuple[str, ...]) -> bool:
    """Return whether a dotted name is one of ``places`` or below one of them."""
    return any(name == place or name.startswith(place + ".") for place in places)


@cache
def text_of(module: str) -> str:
    return MODULES[module].read_text(encoding="utf-8")


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(text_of(module), filename=str(MODULES[module]))


@cache
def nodes_of(module: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree_of(module)))


@cache
def imports_of(module: str) -> tuple[Import, ...]:
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    return tuple(found_imports(tree_of(module), package))


def found_imports(node: ast.AST, package: str, lazy: bool = False, typing: bool = False) -> Iterator[Import]:
    """Yield the imports below a node of a module in ``package``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            yield from found_imports(ast.Module(child.body, []), package, lazy, True)
            yield from found_imports(ast.Module(child.orelse, []), package, lazy, typing)
        elif isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, lazy, typing)
        elif isinstance(child, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - child.level + 1]) if child.level else ""
            source = ".".join(part for part in (base, child.module or "") if part)
            for alias in child.names:
                full = f"{source}.{alias.name}"
                yield Import(full if full in MODULES or source == "certctrl" else source, child.lineno, lazy, typing)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from found_imports(child, package, lazy or inside, typing)


def dotted(node: ast.expr) -> str:
    """Return ``a.b.c`` of a name or attribute chain; a call or subscript in it becomes ``?``."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return "?"


@cache
def names_in(module: str) -> tuple[tuple[str, ast.expr], ...]:
    """Return every dotted name used in a module; ``from os import rename`` is seen as ``os.rename``."""
    aliases: dict[str, str] = {}
    for node in nodes_of(module):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            aliases |= {alias.asname: alias.name for alias in node.names if alias.asname}
    found = []
    for node in nodes_of(module):
        if isinstance(node, ast.Name | ast.Attribute):
            head, dot, rest = dotted(node).partition(".")
            found.append((aliases.get(head, head) + dot + rest, node))
    return tuple(found)


# --- lengths ------------------------------------------------------------------------------------------------------


def height(node: ast.stmt | ast.expr) -> int:
    """Return how many lines a node has."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def docstring_of(node: ast.AST) -> ast.Expr | None:
    """Return the docstring statement of a module, class or function."""
    body = getattr(node, "body", None)
    return body[0] if isinstance(body, list) and body and is_docstring(body[0]) else None


def is_docstring(node: ast.AST) -> bool:
    """Return whether a statement is a bare string, such as the docstring of an attribute."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def is_table(node: ast.AST) -> bool:
    """Return whether a statement assigns one literal dict, list, set or tuple."""
    displays = ast.Dict | ast.List | ast.Set | ast.Tuple
    return isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, displays)


def code_lines(tree: ast.Module, text: str) -> int:
    """Return the lines of a module without docstrings and without the tables at its top level."""
    docstrings = [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and is_docstring(node)]
    tables = [node for node in tree.body if is_table(node)]
    return len(text.splitlines()) - sum(height(node) for node in (*docstrings, *tables))


def long_functions(tree: ast.AST, most: int) -> list[str]:
    """Return the functions over ``most`` lines, docstring not counted; one that only assigns is a table."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = docstring_of(node)
            length = height(node) - (height(docstring) if docstring is not None else 0)
            if length > most and not all(isinstance(statement, ast.Assign) for statement in node.body):
                found.append(f"{node.name} (line {node.lineno}): {length} lines")
    return found


def skipped_outside_tables(tree: ast.AST, text: str) -> list[int]:
    """Return the lines with a ``fmt: skip`` that is not at the end of a table."""
    ends = {node.end_lineno for node in ast.walk(tree) if isinstance(node, ast.stmt) and is_table(node)}
    return [number for number, line in enumerate(text.splitlines(), 1) if "fmt: skip" in line and number not in ends]


# --- graphs -------------------------------------------------------------------------------------------------------


def cycles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the groups of nodes that reach each other (Tarjan's strongly connected components), sorted."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in arrows[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            found.append(sorted(stack[at:]))
            del stack[at:]

    for node in arrows:
        if node not in index:
            visit(node)
    return sorted(group for group in found if len(group) > 1 or group[0] in arrows[group[0]])
