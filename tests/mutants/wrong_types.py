"""Find the mutants that mypy refuses as wrong types: the gate fails without any test, so they are not tested.

Other strict checks (conditions that are always true, comparisons that never match) are left to the tests. mutmut can
call mypy, too, but counts all its checks, and takes longer to assign them than mypy to find them.
"""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

CODES = {
    "arg-type", "assignment", "attr-defined", "call-arg", "call-overload", "dict-item", "index", "list-item", "misc",
    "operator", "return", "return-value", "str-bytes-safe", "type-var", "union-attr",
}  # fmt: skip


def wrong_types(top: Path) -> dict[str, str]:
    """Return the error of each mutant below a directory by its name; the last result if no file has changed."""
    sources = sorted((top / "certctrl").rglob("*.py"))
    code = hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()
    known = top.parent / f"wrong-types-{code[:16]}.json"
    if not known.exists():
        known.write_text(json.dumps(found_by_mypy(top)))
    found: dict[str, str] = json.loads(known.read_text())
    return found


def found_by_mypy(top: Path) -> dict[str, str]:
    """Return the errors of mutants that the unchanged function has not, too."""
    command = [sys.executable, "-m", "mypy", "--output", "json", "certctrl"]
    done = subprocess.run(command, cwd=top, stdout=subprocess.PIPE, text=True)
    errors = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    placed = [
        (error["file"], mutant, error["message"])
        for error in errors
        if error["code"] in CODES and (mutant := function_at(top / error["file"], error["line"]))
    ]
    unchanged = {(file, name.rpartition("_")[0], text) for file, name, text in placed if name.endswith("_orig")}
    return {
        f"{file.removesuffix('.py').replace('/', '.')}.{name}": text
        for file, name, text in placed
        if not name.endswith("_orig") and (file, name.rpartition("_")[0], text) not in unchanged
    }


def function_at(file: Path, line: int) -> str:
    """Return the name of the function that mutmut wrote around a line; empty: there is none."""
    return next((name for first, last, name in functions(file) if first <= line <= last), "")


@cache
def functions(file: Path) -> list[tuple[int, int, str]]:
    """Return the first and last line and the name of each function that mutmut wrote."""
    nodes = [
        node
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return [(node.lineno, node.end_lineno or 0, node.name) for node in nodes if "__mutmut_" in node.name]
