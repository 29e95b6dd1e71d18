"""The program with its libraries in one directory, for the single file and the images.

Needs pip and hatchling of the Python that runs this, as pinned in ``requirements/build.txt``.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import libraries
import tree

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
DEPLOYED = ("alerts", "config", "grafana", "issuers", "polkit", "prometheus", "services", "sysusers.d", "tmpfiles.d")
"""Directories of ``deploy`` for hosts, besides the units."""


def prepare() -> int:
    """Make this process independent of its caller's umask; return the time stamp of all files that it will write."""
    os.umask(0o022)
    os.environ.setdefault("SOURCE_DATE_EPOCH", libraries.run("git", "-C", PROJECT, "log", "-1", "--format=%ct").strip())
    return int(os.environ["SOURCE_DATE_EPOCH"])


def version() -> str:
    """Return the version of the project."""
    found = re.search(r'^__version__ = "(.+)"$', (PROJECT / "certctrl/__init__.py").read_text(encoding="utf-8"), re.M)
    if found is None:
        raise ValueError("certctrl/__init__.py has no version")
    return found[1]


def install(modules: Path, documents: Path, scratch: Path, *, locks: list[str], seen_as: str, bare: bool) -> None:
    """Install the program and what the named requirement files pin into ``modules``, compiled.

    Licences and a bill of materials go to ``documents``. Tracebacks name the modules below ``seen_as``. ``bare``: install
    only what ``--version`` needs.
    """
    modules.mkdir(parents=True)
    hashes: dict[str, str] = {}
    for lock in [] if bare else locks:
        hashes |= libraries.install_libraries(HERE / "requirements" / f"{lock}.txt", modules, scratch / "report.json")
    libraries.copy_licences(modules, HERE / "licences", documents / "licences")
    shutil.copy(PROJECT / "LICENSE", documents / "LICENSE")
    bill = libraries.bill_of_materials(modules, hashes, "cert-ctrl", version())
    tree.write(documents / "sbom.cdx.json", bill)
    if bare:
        for name in ("__init__.py", "__main__.py"):
            tree.write(modules / "certctrl" / name, (PROJECT / "certctrl" / name).read_text(encoding="utf-8"))
    else:
        libraries.install_program(PROJECT, scratch, modules)
    libraries.prune(modules)
    libraries.compile_all(modules, seen_as)


def copy_deploy(into: Path) -> None:
    """Copy the units, recipes and examples for hosts."""
    into.mkdir(parents=True)
    for path in sorted((PROJECT / "deploy").iterdir()):
        if path.suffix in (".service", ".socket", ".json"):
            shutil.copy(path, into / path.name)
        elif path.name in DEPLOYED:
            shutil.copytree(path, into / path.name)
