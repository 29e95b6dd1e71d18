"""Report mypy's errors about wrong types as JSON, for mutmut: the gate refuses such a mutant without any test.

Other strict checks (conditions that are always true, comparisons that never match) are left to the tests.
"""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

WRONG_TYPE = {
    "arg-type", "assignment", "attr-defined", "call-arg", "call-overload", "dict-item", "index", "list-item", "misc",
    "operator", "return", "return-value", "str-bytes-safe", "type-var", "union-attr",
}  # fmt: skip


@cache
def functions(file: str) -> list[tuple[int, int, str]]:
    """Return the first and last line and the name of each function that mutmut wrote."""
    found = (
        node
        for node in ast.walk(ast.parse(Path(file).read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return [(node.lineno, node.end_lineno or 0, node.name) for node in found if "__mutmut_" in node.name]


def place(error: dict[str, Any]) -> tuple[str, str, str]:
    """Return the function without its number, its number (``orig`` for the unchanged one) and the error's text."""
    line = error["line"]
    name = next((name for first, last, name in functions(error["file"]) if first <= line <= last), "")
    function, _, number = name.rpartition("__mutmut_")
    return error["file"] + function, number, error["message"]


def wrong_types() -> str:
    """Return the errors of mutants that the unchanged function has not, too, as lines of JSON."""
    done = subprocess.run([sys.executable, "-m", "mypy", "--output", "json"], stdout=subprocess.PIPE, text=True)
    errors = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    placed = [(error, *place(error)) for error in errors if error["code"] in WRONG_TYPE]
    everywhere = {(function, text) for _, function, number, text in placed if number == "orig"}
    return "".join(
        f"{json.dumps(error)}\n"
        for error, function, number, text in placed
        if number.isdecimal() and (function, text) not in everywhere
    )


def main() -> None:
    """Print the errors; those of the last run as long as no file has changed."""
    code = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(Path("certctrl").rglob("*.py")))).hexdigest()
    known = Path("..", f"wrong-types-{code[:16]}.json")
    if not known.exists():
        known.write_text(wrong_types())
    print(known.read_text(), end="")


main()
