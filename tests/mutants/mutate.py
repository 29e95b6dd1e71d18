"""Run mutmut with tests that pytest collects once: each mutant is a fork that starts with the first test.

Otherwise pytest would start and collect for each mutant, which takes ten times as long as most of these tests. Tests
in `SLOW` files are left out: with them, each survivor would take minutes, and few mutants are noticed by them alone. Mutants
of functions that are called while modules are imported do need a new process: in a fork, the imports are over. Mutants
of a wrong type are left out (`wrong_types.py`).

With `MUTANTS_MINUTES`, the order is that of a hash of the names, so that what has been tested by the end is a random sample.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
from _pytest.config import _prepareconfig
from mutmut import __main__ as main
from mutmut.core import MutmutProgrammaticFailException
from mutmut.mutation.file_mutation import FailedTypeCheckMutant, MutatedMethodLocation
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.runners.harness import PytestRunner
from mutmut.state import state
from mutmut.type_checking import TypeCheckingError
from mutmut.utils.file_utils import change_cwd
from mutmut.workers import isolation, timeout
from wrong_types import wrong_types

SLOW = ("tests/protocol/test_session_random.py",)
"""Simulations of fleets and long histories."""
MINUTES = int(os.environ.get("MUTANTS_MINUTES", "0"))
IMPORT_ALL = """
import importlib, sys
from mutmut.state import state

for name in sys.argv[1:]:
    importlib.import_module(name)
print(*state()._stats)
"""


class CollectedOnce(PytestRunner):
    """Runs tests of mutants in forks of a process that has collected them."""

    session: pytest.Session
    tests: dict[str, pytest.Item]
    at_import: frozenset[str]

    def __init__(self) -> None:
        super().__init__()
        self._pytest_add_cli_args = [*self._pytest_add_cli_args, *(f"--ignore={file}" for file in SLOW)]

    def run_stats(self, *, tests: Iterable[str]) -> int:
        """Find out which tests reach which function; if that runs all tests, they need no other run without a mutant."""
        chosen = list(tests)
        result = super().run_stats(tests=chosen)
        if result == 0 and not chosen:
            Path("passed.txt").write_text(state_of_files())
        return result

    def run_forced_fail(self) -> int:
        """Check that a mutant can fail at all, which mutmut does right before the first one, and collect the tests."""
        try:
            failed = super().run_forced_fail()
        except MutmutProgrammaticFailException:
            failed = 1
        set_mutant_under_test("")
        with change_cwd("mutants"):
            selected = self._pytest_add_cli_args_test_selection
            config = _prepareconfig(["--rootdir=.", "-q", "-s", *selected, *self._pytest_add_cli_args])
            config._do_configure()
            self.session = pytest.Session.from_config(config)
            config.hook.pytest_sessionstart(session=self.session)
            config.hook.pytest_collection(session=self.session)
        self.tests = {plain(item.nodeid): item for item in self.session.items}
        self.at_import = called_at_import()
        state().tests_by_mangled_function_name.update((name, set(self.tests)) for name in self.at_import)
        if self.at_import and self.new_process("--collect-only"):
            raise RuntimeError("pytest fails in a new process, even without a mutant")
        if MINUTES:
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.alarm(60 * MINUTES)
        return failed

    def run_tests(self, *, mutant_name: str | None, tests: Iterable[str]) -> int:
        """Return 1 if a test fails; without a mutant, all must pass, which is not checked twice for the same files."""
        if mutant_name is None:
            return self.clean_run(tests)
        if mutant_name.partition("__mutmut_")[0] in self.at_import:
            return self.new_process("-x")
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        chosen = [self.tests[name] for name in map(plain, tests) if name in self.tests]
        with change_cwd("mutants"):
            for item, following in zip(chosen, [*chosen[1:], None], strict=True):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if self.session.testsfailed:
                    return 1
        return 0

    def new_process(self, *options: str) -> int:
        """Return 1 if a test of the package fails, or pytest itself, in a process that imports the active mutant."""
        chosen = [*self._pytest_add_cli_args_test_selection, *self._pytest_add_cli_args]
        command = [sys.executable, "-m", "pytest", "--rootdir=.", "-q", *options, *chosen]
        done = subprocess.run(command, cwd="mutants", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return int(done.returncode != 0)

    def clean_run(self, tests: Iterable[str]) -> int:
        """Run tests without a mutant, unless they have passed with these files."""
        current, passed = state_of_files(), Path("passed.txt")
        if passed.exists() and passed.read_text() == current and os.environ.get("MUTANT_UNDER_TEST") != "fail":
            return 0
        result = super().run_tests(mutant_name=None, tests=tests)
        if result == 0:
            passed.write_text(current)
        return result


def plain(test: str) -> str:
    """Return the name of a test with single backslashes: pytest doubles those of given ids whenever it collects again."""
    return re.sub(r"\\+", r"\\", test)


def state_of_files() -> str:
    """Return a hash of code and tests."""
    files = sorted(path for top in ("certctrl", "tests") for path in Path(top).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def called_at_import() -> frozenset[str]:
    """Return the functions that are called while the modules with mutants are imported."""
    top = Path("mutants").absolute()
    files = [file.relative_to(top).with_suffix("").with_suffix("") for file in (top / "certctrl").rglob("*.py.meta")]
    modules = [".".join(file.parts).removesuffix(".__init__") for file in files]
    path = os.pathsep.join(filter(None, (str(top), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path, "MUTANT_UNDER_TEST": "stats"}
    command = [sys.executable, "-P", "-c", IMPORT_ALL, *modules]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return frozenset(done.stdout.split())


def limit_waiting(pid: int, timeout_s: float) -> None:
    """End tests that only wait, long after the limit of processor time: a busy machine must not kill mutants."""
    timeout.register_timeout(pid, 20 * timeout_s)


def place_in_sample(mutant_name: str) -> float:
    """Return the place of a mutant in the order of tests: first those without any, then a random order that repeats."""
    tests = state().tests_by_mangled_function_name.get(mutant_name.partition("__mutmut_")[0])
    known = not tests or mutant_name in refused_by_types()
    return 0.0 if known else float(int(hashlib.sha256(mutant_name.encode()).hexdigest(), 16))


@cache
def refused_by_types() -> dict[str, FailedTypeCheckMutant]:
    """Return the mutants of a wrong type in the form that mutmut expects."""
    nowhere = MutatedMethodLocation(Path(), "", 0, 0)
    found = wrong_types(Path("mutants").absolute())
    return {
        name: FailedTypeCheckMutant(nowhere, name, TypeCheckingError(Path(), 0, text)) for name, text in found.items()
    }


main.filter_mutants_with_type_checker = refused_by_types
isolation.register_timeout = limit_waiting
if MINUTES:
    main.estimated_worst_case_time = place_in_sample
isolation.PytestRunner = CollectedOnce  # type: ignore[misc]
main.cli()
