"""Mutation tests of one package with that package's own tests: ``nox -s mutants -- PACKAGE [--again]``.

mutmut changes one expression at a time in ``certctrl/PACKAGE`` and runs the tests in ``tests/PACKAGE`` that reach it.
It works on a copy below ``build/mutants`` and keeps its results there: an interrupted run continues where it stopped.
Survivors are compared with the accepted ones in ``tests/mutants/PACKAGE.toml``.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import attrs
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
COPIED = ("certctrl", "tests", "docs", "deploy", "README.md", "CHANGELOG.md", "noxfile.py", "pyproject.toml")
COLUMNS = ("mutants", "untested", "killed", "wrong type", "wording", "equivalent", "survived", "score")
UNNOTICED = ("survived", "no tests", "suspicious")
TEXT = r"'[^'\n]*'" + '|"[^"\n]*"'
SETTINGS = """
[tool.mutmut]
source_paths = ["certctrl"]
only_mutate = ["{sources}"]
also_copy = ["docs", "deploy", "README.md", "CHANGELOG.md", "noxfile.py"]
pytest_add_cli_args = [
    "--hypothesis-profile=mutants", "-p", "no:xdist", "-p", "fastest_first", "--no-header", "-o", "timeout=0",
]
pytest_add_cli_args_test_selection = [
    "{tests}", "-m", "not integration and not campaign",
    # mutants import mutmut, have no caches, and would each start a server
    "-k", "not imports_nothing_heavy and not built_once and not postgres",
]
type_check_command = ["mypy"]
timeout_multiplier = 5.0
timeout_constant = 5.0
track_dependencies = false
use_git_change_detection = false
"""


@attrs.frozen
class Change:
    """A mutant by what it changes: its number would change with the code."""

    function: str
    before: str
    after: str

    @property
    def is_wording(self) -> bool:
        """Whether only letters of a text of several words differ: a message, not a key or a value."""
        texts = [re.findall(TEXT, line) for line in (self.before, self.after)]
        differing = [pair for pair in zip(*texts, strict=False) if pair[0] != pair[1]]
        rest = [re.sub(TEXT, '""', line) for line in (self.before, self.after)]
        return rest[0] == rest[1] and bool(differing) and all(" " in old[1:-1].strip() for old, _ in differing)


def main() -> int:
    """Run, print the table and the survivors; 1 if a mutant survives that no file accepts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", help="below certctrl/, such as install/plan, or a module: store/layout")
    parser.add_argument("--again", action="store_true", help="test the survivors once more, after new tests")
    parser.add_argument("--report", action="store_true", help="print the results of the last run, test nothing")
    parser.add_argument("--minutes", type=int, help="end after that many: a random sample has been tested by then")
    parser.add_argument("--children", type=int, default=os.cpu_count(), help="mutants tested at a time")
    asked = parser.parse_args()
    package = asked.package.strip("/")
    if not all((PROJECT / place).exists() for place in places(package)):
        parser.error(f"{package} is not a directory of both certctrl/ and tests/, nor a module with tests of its own")
    work = PROJECT / "build" / "mutants" / package.replace("/", "-")
    if not asked.report:
        prepare(work, package)
        if asked.again:
            forget_survivors(work, package)
        test(work, asked.children, asked.minutes)
    return report(work, package)


def places(package: str) -> tuple[str, str]:
    """Return the code and the tests of a package, or of a module that has a file of tests."""
    folder, _, name = package.rpartition("/")
    if (PROJECT / "certctrl" / f"{package}.py").exists():
        return f"certctrl/{package}.py", f"tests/{folder}/test_{name}.py"
    return f"certctrl/{package}", f"tests/{package}"


def prepare(work: Path, package: str) -> None:
    """Copy the project to the working directory; unchanged files keep their time, by which mutmut knows them."""
    work.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(work / "mutants" / "tests", ignore_errors=True)
    for name in COPIED:
        if (PROJECT / name).is_dir():
            shutil.rmtree(work / name, ignore_errors=True)
            shutil.copytree(PROJECT / name, work / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(PROJECT / name, work / name)
    sources, tests = places(package)
    for source in files_at(work / sources):
        without_caches(source)
    forget_removed_modules(work)
    measure_again_if_changed(work, tests)
    mutated = sources if sources.endswith(".py") else f"{sources}/*"
    settings = SETTINGS.format(sources=mutated, tests=tests)
    with (work / "pyproject.toml").open("a") as file:
        file.write(settings)


def files_at(place: Path) -> list[Path]:
    """Return a file, or the Python files below a directory."""
    return [place] if place.is_file() else sorted(place.rglob("*.py"))


def without_caches(source: Path) -> None:
    """Remove the caches of functions: mutmut changes no decorated ones, and a cache would hide changes."""
    text, times = source.read_text(), source.stat()
    bare = re.sub(r"^ *@(lru_)?cache(\(.*\))?\n", "", text, flags=re.MULTILINE)
    if bare != text:
        source.write_text(bare)
        os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))


def forget_removed_modules(work: Path) -> None:
    """Remove the mutants and the results of modules that the project no longer has."""
    for meta in (work / "mutants" / "certctrl").rglob("*.meta"):
        mutants = meta.with_suffix("")
        if not (work / mutants.relative_to(work / "mutants")).exists():
            meta.unlink()
            mutants.unlink(missing_ok=True)


def measure_again_if_changed(work: Path, tests: str) -> None:
    """Make mutmut find out again which tests reach which function: on its own, it does so for new tests only."""
    files = [file for top in ("certctrl", tests) for file in files_at(work / top)]
    code = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    measured = work / "measured.txt"
    if not measured.exists() or measured.read_text() != code:
        (work / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)
        measured.write_text(code)


def test(work: Path, children: int, minutes: int | None) -> None:
    """Test all mutants that have no result yet, or those that the time is enough for."""
    command = [sys.executable, str(HERE / "mutate.py"), "run", "--max-children", str(children)]
    path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path} | ({"MUTANTS_MINUTES": str(minutes)} if minutes else {})
    subprocess.run(command, cwd=work, env=environment, check=True)


def results(work: Path) -> Iterator[tuple[Path, str, str]]:
    """Yield the source file, the name and the status of each mutant."""
    for meta in sorted((work / "mutants" / "certctrl").rglob("*.meta")):
        source = meta.relative_to(work / "mutants").with_suffix("")
        for name, status in json.loads(meta.read_text())["exit_code_by_key"].items():
            yield source, name, status_by_exit_code[status]


def forget_survivors(work: Path, package: str) -> None:
    """Remove the results of all mutants that no test noticed, except wording and accepted ones."""
    known, counted = accepted(package), dict[Path, list[str]]()
    with contextlib.chdir(work):
        for source, name, status in results(work):
            if status in UNNOTICED and not (found := change(name, source)).is_wording and found not in known:
                counted.setdefault(source, []).append(name)
    for source, names in counted.items():
        meta = work / "mutants" / f"{source}.meta"
        data = json.loads(meta.read_text())
        data["exit_code_by_key"] |= dict.fromkeys(names)
        meta.write_text(json.dumps(data))


def change(name: str, source: Path) -> Change:
    """Describe a mutant by its function and the lines that it changes (call it in the working directory)."""
    lines = get_diff_for_mutant(name, path=source).splitlines()[3:]
    old, new = ([line[1:].strip() for line in lines if line[:1] == sign] for sign in "-+")
    module, _, function = name.removeprefix("certctrl.").rpartition(".")
    readable = function.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".").partition("__mutmut_")[0]
    return Change(f"{module}.{readable}", "\n".join(old), "\n".join(new))


def accepted(package: str) -> dict[Change, str]:
    """Return the mutants that no test can or should notice, with the reason."""
    file = HERE / f"{package.replace('/', '-')}.toml"
    entries = tomllib.loads(file.read_text())["equivalent"] if file.exists() else []
    return {Change(one["function"], one["before"], one["after"]): one["reason"] for one in entries}


def report(work: Path, package: str) -> int:
    """Print a line per module and each survivor that is neither a wording nor accepted."""
    known, seen, open_ones = accepted(package), set[Change](), []
    rows: dict[str, Counter[str]] = {}
    os.chdir(work)
    for source, name, status in results(work):
        row = rows.setdefault(str(source.relative_to("certctrl").with_suffix("")), Counter())
        row["mutants"] += 1
        match status:
            case "killed" | "timeout" | "segfault":
                row["killed"] += 1
            case "caught by type check":
                row["wrong type"] += 1
            case "not checked" | "check was interrupted by user":
                row["untested"] += 1
            case _:
                found = change(name, source)
                seen.add(found)
                kind = "equivalent" if found in known else "wording" if found.is_wording else "survived"
                row[kind] += 1
                open_ones += [(name, status, found)] if kind == "survived" else []
    for name, status, found in open_ones:
        print(
            f"{name} ({status})\n- " + found.before.replace("\n", "\n- ") + "\n+ " + found.after.replace("\n", "\n+ ")
        )
    stale = [one for one in known if one not in seen]
    for one in stale:
        print(f"accepted in tests/mutants, but no survivor: {one.function}: {one.before} -> {one.after}")
    print_table(rows)
    return 1 if open_ones or stale or any(row["untested"] for row in rows.values()) else 0


def print_table(rows: dict[str, Counter[str]]) -> None:
    """Print the figures as Markdown; the score leaves out what mypy refuses, wording and equivalents."""
    rows["**all**"] = sum(rows.values(), Counter())
    print(f"| module | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for module, row in rows.items():
        counted = row["killed"] + row["survived"]
        score = f"{100 * row['killed'] / counted:.1f} %" if counted else ""
        print(f"| {module} | {' | '.join(str(row[column]) for column in COLUMNS[:-1])} | {score} |")


if __name__ == "__main__":
    sys.exit(main())
