"""Shared by all tests: installed programs by name, campaigns, hypothesis profiles, the report of long modules."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

hypothesis.settings.register_profile("default", deadline=None, database=None)  # deadlines measure the machine
hypothesis.settings.register_profile(  # few examples, the same for each mutant
    "mutants", deadline=None, database=None, derandomize=True, max_examples=30,
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),  # one failure is enough: no search for the shortest
    suppress_health_check=list(hypothesis.HealthCheck),
)  # fmt: skip
hypothesis.settings.load_profile("default")
if EXAMPLES := os.environ.get("CERTCTRL_TEST_EXAMPLES"):
    hypothesis.settings.register_profile("sample", deadline=None, database=None, max_examples=int(EXAMPLES))
    hypothesis.settings.load_profile("sample")

SERVICE_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin", "/usr/local/sbin"))
REQUIRE_REAL = os.environ.get("CERTCTRL_REQUIRE_REAL", "") not in ("", "0")


def missing(what: str) -> None:
    """Skip the running test; fail it if CERTCTRL_REQUIRE_REAL is set."""
    if REQUIRE_REAL:
        pytest.fail(f"{what}, but CERTCTRL_REQUIRE_REAL is set", pytrace=False)
    pytest.skip(what)


@pytest.fixture(scope="session")
def need() -> Callable[[str], str]:
    """``need("nginx")`` returns the absolute path of an installed program or ends the test (see `missing`)."""

    def find(program: str) -> str:
        path = shutil.which(program, path=SERVICE_PATH)
        if path is None:
            missing(f"{program} is not installed")
        return str(path)

    return find


@pytest.fixture(scope="session")
def need_module() -> Callable[[str], None]:
    """``need_module("selenium")`` ends the test if the module is not installed (see `missing`)."""

    def check(name: str) -> None:
        if importlib.util.find_spec(name) is None:
            missing(f"the Python module {name} is not installed")

    return check


@pytest.fixture(scope="session")
def need_acl() -> Callable[[Path], None]:
    """``need_acl(directory)`` ends the test if its file system has no access control lists (see `missing`)."""

    def check(place: Path) -> None:
        import acl

        if not acl.supported(place):
            missing(f"the file system of {place} has no access control lists")

    return check


@pytest.fixture
def forget_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """``forget_modules("certctrl.plane")`` lets a module and those below it be imported anew, until the test ends.

    Then what the test imported is forgotten, too: it refers to other classes than the modules from before. Also restores
    the attribute of the parent package: a later patch by a dotted name follows attributes, and would find the module
    that this test imported.
    """
    forgotten: list[str] = []

    def loaded(prefixes: Iterable[str]) -> list[str]:
        return [name for name in sys.modules if f"{name}.".startswith(tuple(f"{one}." for one in prefixes))]

    def forget(*prefixes: str) -> None:
        forgotten.extend(prefixes)
        for name in loaded(prefixes):
            package, _, last = name.rpartition(".")
            if hasattr(sys.modules.get(package), last):
                monkeypatch.setattr(sys.modules[package], last, sys.modules[name])
            monkeypatch.delitem(sys.modules, name)

    yield forget
    for name in loaded(forgotten):
        del sys.modules[name]


@pytest.fixture
def start_browser(
    need: Callable[[str], str], need_module: Callable[[str], None], tmp_path: Path
) -> Iterator[Callable[..., Any]]:
    """``start_browser(*flags)`` starts a headless Chromium with a new profile; it ends with the test."""
    need_module("selenium")
    import browser

    started: list[Any] = []

    def start(*flags: str) -> Any:
        profile = tmp_path / f"profile-{len(started)}"
        started.append(browser.start(need("chromium"), need("chromedriver"), profile, *flags))
        return started[-1]

    yield start
    for one in started:
        one.quit()


@pytest.fixture
def own_logging() -> Iterator[None]:
    """Restore the root logger; commands add handlers to it."""
    root, ours = logging.getLogger(), logging.getLogger("certctrl")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    for handler in root.handlers[:]:
        if handler not in handlers:
            root.removeHandler(handler)
            handler.close()
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect campaigns unless ``-m`` names them; each has its own nox session."""
    if "campaign" in (config.getoption("markexpr") or ""):
        return
    campaigns = [item for item in items if item.get_closest_marker("campaign")]
    if campaigns:
        config.hook.pytest_deselected(items=campaigns)
        items[:] = [item for item in items if item not in campaigns]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked ``root`` for other users (see `missing`)."""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        missing("needs root")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """List the modules over 300 lines (``test_architecture.py``); works under pytest-xdist, too."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    long = {value for one in reports for name, value in getattr(one, "user_properties", ()) if name == "long_module"}
    if long:
        terminalreporter.section("modules over 300 lines")
        for line in sorted(long):
            terminalreporter.write_line(line)
