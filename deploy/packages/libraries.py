"""Install the pinned libraries below one directory, with their licences and a bill of materials.

The wheels are chosen for the oldest glibc that the packages support, not for that of the machine that builds.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

GLIBC = (28, 17, 12, 5)
"""Minor versions of glibc 2 that wheels may be built for: up to that of RHEL 8."""
UNUSED_DIRECTORIES = {"tests", "_tests", "test", "SelfTest", "bin", "__pycache__"}
UNUSED_SUFFIXES = {".pyi", ".pyx", ".pxd", ".c", ".h"}
UNUSED_PARTS = ("javaobj/v3",)  # not imported by pyjks; has syntax of Python 3.12
USED_METADATA = {"METADATA", "entry_points.txt"}
LICENCE = re.compile(r"licen[cs]e|copying|notice|authors", re.IGNORECASE)


def run(*argv: str | Path, **environment: str) -> str:
    """Run a program with additions to the environment; return what it prints."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}, check=False)
    except FileNotFoundError:
        raise SystemExit(f"{words[0]} is not installed") from None
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stdout}")
    return done.stdout


def pip(*argv: str | Path) -> None:
    """Run pip without its notices."""
    run(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", *argv)


def install_libraries(lock: Path, into: Path, report: Path) -> dict[str, str]:
    """Install what a requirement file pins, from wheels with the hashes in it; return the hash of each wheel."""
    tags = [f"manylinux_2_{minor}_{platform.machine()}" for minor in GLIBC]
    platforms = [word for tag in tags for word in ("--platform", tag)]
    exactly = ("--no-deps", "--no-compile", "--only-binary=:all:", "--require-hashes", *platforms)
    pip("install", *exactly, "--report", report, "--target", into, "-r", lock)
    found = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {normal(one["metadata"]["name"]): one["download_info"]["archive_info"]["hashes"]["sha256"] for one in found}


def install_program(project: Path, scratch: Path, into: Path) -> None:
    """Install the project itself, without its dependencies."""
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", scratch, project)
    (wheel,) = scratch.glob("certctrl-*.whl")
    pip("install", "--no-deps", "--no-compile", "--upgrade", "--target", into, wheel)


def prune(tree: Path) -> None:
    """Remove tests, sources of extension modules, type stubs, and metadata that only pip reads or that was copied."""
    for part in UNUSED_PARTS:
        shutil.rmtree(tree / part, ignore_errors=True)
    for path in [path for path in tree.rglob("*") if path.name in UNUSED_DIRECTORIES or path.name.startswith(".")]:
        shutil.rmtree(path, ignore_errors=True)
    for path in [path for path in tree.rglob("*") if path.is_file()]:
        metadata = any(part.endswith(".dist-info") for part in path.relative_to(tree).parts)
        if path.suffix in UNUSED_SUFFIXES or (metadata and path.name not in USED_METADATA):
            path.unlink()
    without_programs(tree)


def without_programs(tree: Path) -> None:
    """Remove the mode and the line that make some modules programs: none of them is one here."""
    for path in tree.rglob("*.py"):
        path.chmod(0o644)
        if (code := path.read_bytes()).startswith(b"#!"):
            path.write_bytes(code[code.index(b"\n") :])


def compile_all(tree: Path, installed_at: str) -> None:
    """Compile all modules; Python will not compare them with their sources, whose times differ on each host."""
    code = (
        "import compileall, py_compile, sys; "
        "sys.exit(not compileall.compile_dir(sys.argv[1], quiet=1, stripdir=sys.argv[1], prependdir=sys.argv[2], "
        "invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH))"
    )
    run(sys.executable, "-c", code, tree, installed_at, PYTHONHASHSEED="0")  # modules contain sets


def libraries(tree: Path) -> list[Path]:
    """Return the metadata directories of the libraries in a tree, by name."""
    return sorted(tree.glob("*.dist-info"), key=lambda path: normal(path.name))


def normal(name: str) -> str:
    """Return the normalised name of a distribution."""
    return re.sub(r"[-_.]+", "-", name).lower()


def name_of(folder: Path) -> str:
    """Return the normalised name of the library with this metadata directory."""
    return normal(Distribution.at(folder).metadata["Name"])


def licence_of(folder: Path) -> str:
    """Return the licence that a library declares, as an expression or in words."""
    found: Any = Distribution.at(folder).metadata
    if expression := found.get("License-Expression"):
        return str(expression)
    words = [line.rpartition(" :: ")[2] for line in found.get_all("Classifier") or () if line.startswith("License :: ")]
    return ", ".join(words) or str(found.get("License") or "").strip().partition("\n")[0]


def licence_in_bill(folder: Path) -> dict[str, Any]:
    """Return the licence of a library as CycloneDX has it: an SPDX expression, or a name in words."""
    if "License-Expression" in Distribution.at(folder).metadata:
        return {"expression": licence_of(folder)}
    return {"license": {"name": licence_of(folder)}}


def copy_licences(tree: Path, others: Path, into: Path) -> None:
    """Copy the licence files of each library; ``others`` has those of wheels without any.

    Raises ValueError for a library without a licence file.
    """
    for folder in libraries(tree):
        name = name_of(folder)
        found = [path for path in folder.rglob("*") if LICENCE.search(str(path.relative_to(folder))) and path.is_file()]
        base = folder if found else others / name
        for path in found or sorted(base.glob("*")):
            parts = [part for part in path.relative_to(base).parts if part != "licenses"]
            target = into / name / "-".join(parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        if not (into / name).exists():
            raise ValueError(f"{name} has no licence file: add it to {others}")


def bill_of_materials(
    tree: Path, hashes: dict[str, str], name: str, version: str, others: Sequence[dict[str, Any]] = ()
) -> str:
    """Return the bill of materials of a package in CycloneDX, with what its wheels say that they contain.

    ``others`` are components that are not from wheels.
    """
    components = [*others]
    for folder in libraries(tree):
        own, found = name_of(folder), Distribution.at(folder).version
        component: dict[str, Any] = {"type": "library", "name": own, "version": found}
        component |= {"bom-ref": f"pkg:pypi/{own}@{found}", "purl": f"pkg:pypi/{own}@{found}"}
        component |= {"licenses": [licence_in_bill(folder)]}
        if own in hashes:
            component["hashes"] = [{"alg": "SHA-256", "content": hashes[own]}]
        if inner := contained(folder, own):
            component["components"] = inner
        components.append(component)
    about = {"type": "application", "name": name, "version": version, "licenses": [{"license": {"id": "Apache-2.0"}}]}
    bill = {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "metadata": {"component": about}}
    if date := os.environ.get("SOURCE_DATE_EPOCH"):
        bill["metadata"] = {
            "component": about,
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(date))),
        }
    return json.dumps(bill | {"components": components}, indent=1, sort_keys=True) + "\n"


def contained(folder: Path, own: str) -> list[dict[str, Any]]:
    """Return the components in the bills of materials that a wheel has."""
    found = []
    for path in sorted(folder.glob("sboms/*.json")):
        for part in json.loads(path.read_text(encoding="utf-8")).get("components", ()):
            kept = {key: part[key] for key in ("type", "name", "version", "licenses") if part.get(key)}
            purl = part.get("purl", "")
            kept |= {"purl": purl} if purl and "file:" not in purl else {}
            if normal(part["name"]) != own:
                found.append(kept)
    return found
