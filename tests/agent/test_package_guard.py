"""Late imports from packages that were replaced while the process runs."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from certctrl.agent.package_guard import PackageChangedError, guarded_packages, raise_if_replaced
from certctrl.errors import DiskError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the directory of a package that is in use, with a module that is not."""
    place = tmp_path / "guarded_by_test"
    place.mkdir()
    (place / "__init__.py").write_text('__version__ = "1.2"\n')
    (place / "late.py").write_text("")
    (place / "later.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("guarded_by_test")
    yield place
    for name in [name for name in sys.modules if name.startswith("guarded_by_test")]:
        del sys.modules[name]


def test_an_unchanged_package_is_imported_from(package: Path) -> None:
    with guarded_packages():
        importlib.import_module("guarded_by_test.late")
        raise_if_replaced(RuntimeError("a bug"))


@pytest.mark.parametrize("how", ["written", "replaced", "gone"])
def test_nothing_is_imported_from_a_changed_one(package: Path, how: str) -> None:
    init, found = package / "__init__.py", len(sys.meta_path)
    with guarded_packages():
        importlib.import_module("guarded_by_test.late")
        match how:
            case "written":
                init.write_text('__version__ = "1.3"\n# more\n')
            case "replaced":
                new = package / "new"
                new.write_bytes(init.read_bytes())
                os.utime(new, ns=(0, init.stat().st_mtime_ns))
                new.replace(init)
            case "gone":
                package.rename(package.with_name("~"))
        with pytest.raises(PackageChangedError, match=r"the installed package guarded_by_test changed \(was 1\.2\)"):
            importlib.import_module("guarded_by_test.later")
        importlib.import_module("guarded_by_test.late")  # what is in memory can be used
        with pytest.raises(PackageChangedError):
            raise_if_replaced(AttributeError("of another release"))
        raise_if_replaced(DiskError("not a bug"))
    assert len(sys.meta_path) == found
    raise_if_replaced(AttributeError("no daemon"))


def test_it_is_no_failure_of_what_needed_the_module() -> None:
    assert not issubclass(PackageChangedError, Exception)
