"""Build the interpreter of the packages that need no Python of the distribution: ``nox -s packages``.

Debian's source packages of CPython and OpenSSL are compiled in a root of an older Debian, for its glibc and all later ones. OpenSSL and
libffi are linked statically, because distributions have different versions; SQLite, zlib and glibc are those of the host.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from roots import SourcePackages, make_root

OLDEST = "bullseye"
"""The release in whose root everything is compiled: glibc 2.31."""
SOURCES = "trixie"
"""The release that the source packages are from."""
PYTHON = "3.13"
PREFIX = "/usr/lib/cert-ctrl/python"
MODULES = ("_ctypes", "_hashlib", "_sqlite3", "_ssl", "zlib")
"""Modules that CPython leaves out without an error if it cannot build or load them."""
TOOLS = ("gcc", "libc6-dev", "make", "perl", "dpkg-dev", "xz-utils", "zlib1g-dev", "libsqlite3-dev", "libffi-dev")
ENTER = (
    "unshare",
    "--mount",
    "sh",
    "-c",
    'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$@"',
)
COMPILE = """\
set -eu
export LC_ALL=C.UTF-8
python=$1 version=$2 prefix=$3 jobs=$4 modules=$5
for name in "$python" openssl; do
    dpkg-source --no-check --extract /build/"$name"_*.dsc "/build/$name"
done
SOURCE_DATE_EPOCH=$(dpkg-parsechangelog -l "/build/$python/debian/changelog" -S Timestamp)
export SOURCE_DATE_EPOCH

cd /build/openssl
# The options of the host's openssl.cnf are for the host's OpenSSL. What TLS does not need, or no longer, is left out.
./Configure "linux-$(uname -m)" no-shared no-module no-dso no-tests no-apps no-docs no-autoload-config $(
    for part in quic dtls srp srtp cmp cms ts idea camellia seed aria bf cast rc2 rc4 sm2 sm4 mdc2 whirlpool gost; do
        echo "no-$part"
    done
) --prefix=/build/ssl --libdir=lib --openssldir=/etc/ssl
make -s -j "$jobs" build_libs
make -s install_dev

cd "/build/$python"
OPT="-DNDEBUG -O2 -Wall" LIBFFI_CFLAGS=" " LIBFFI_LIBS="$(echo /usr/lib/*/libffi_pic.a)" ./configure --prefix="$prefix" \
    --with-openssl=/build/ssl --without-ensurepip --without-readline --disable-test-modules
for module in $modules; do
    grep -q -i "^MODULE_${module}_STATE=yes" Makefile || { echo "Python would be without $module"; exit 1; }
done
make -s -j "$jobs"
make -s altbininstall sharedinstall DESTDIR=/build/out

library=/build/out$prefix/lib/python$version
cp -r Lib/. "$library"
cp build/lib.*/_sysconfigdata_*.py "$library"
cd "$library"
# Nothing reads XML, and expat would be one more library to update.
rm -rf test __phello__ idlelib tkinter turtledemo ensurepip venv pydoc_data lib2to3 xml xmlrpc ./plistlib.py
rm ../libpython"$version".a lib-dynload/pyexpat.* lib-dynload/_elementtree.*
find . -name __pycache__ -prune -exec rm -rf {} +
strip --strip-unneeded "/build/out$prefix/bin/python$version" lib-dynload/*.so

cd /build
for part in "$python/LICENSE cpython" "openssl/LICENSE.txt openssl" "/usr/share/doc/libffi-dev/copyright libffi"; do
    mkdir -p "/build/out/licences/${part#* }"
    cp "${part% *}" "/build/out/licences/${part#* }"
done
dpkg-query -W -f '${Version}' libffi-dev > /build/libffi.version
"""


def main() -> None:
    """Build the interpreter and write it into a tar file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="the tar file; nothing is done if it exists")
    parser.add_argument("--jobs", default="1", help="compilers at a time; default: 1")
    given = parser.parse_args()
    if given.out.exists():
        return
    with tempfile.TemporaryDirectory(prefix="cert-ctrl-interpreter-") as scratch:
        root = Path(scratch) / "root"
        make_root(OLDEST, root, TOOLS)
        build = root / "build"
        build.mkdir()
        versions = get_sources(build)
        compile_in(root, given.jobs)
        versions["libffi"] = (build / "libffi.version").read_text(encoding="utf-8")
        tree = build / "out"
        check(root, versions)
        (tree / "components.json").write_text(json.dumps(components(versions), indent=1) + "\n", encoding="utf-8")
        given.out.parent.mkdir(parents=True, exist_ok=True)
        partial = given.out.with_name(f"{given.out.name}.partial")
        shutil.make_archive(str(partial), "tar", tree)
        Path(f"{partial}.tar").replace(given.out)


def get_sources(build: Path) -> dict[str, str]:
    """Download the source packages into the root; return the version of each."""
    packages = SourcePackages(build, SOURCES)
    return {name: packages.get(source)[0] for name, source in (("cpython", f"python{PYTHON}"), ("openssl", "openssl"))}


def compile_in(root: Path, jobs: str) -> None:
    """Compile the sources in the root."""
    script = root / "build" / "compile.sh"
    script.write_text(COMPILE, encoding="utf-8")
    words = (f"python{PYTHON}", PYTHON, PREFIX, jobs, " ".join(MODULES))
    argv = [*ENTER, str(root), str(root), "sh", "/build/compile.sh", *words]
    with (root / "build" / "log").open("w+b") as log:
        done = subprocess.run(argv, stdout=log, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            log.seek(max(0, log.tell() - 5000))
            raise SystemExit(f"compiling failed:\n{log.read().decode(errors='replace')}")


def check(root: Path, versions: dict[str, str]) -> None:
    """Run the interpreter where it was built: its modules load, and OpenSSL is the one that was compiled."""
    shutil.copytree(root / "build" / "out" / PREFIX.lstrip("/"), root / PREFIX.lstrip("/"))
    code = f"import {', '.join(MODULES)}, ssl; print(ssl.OPENSSL_VERSION)"
    argv = ["chroot", str(root), f"{PREFIX}/bin/python{PYTHON}", "-IS", "-c", code]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit("the interpreter does not run, or lacks a module")
    found = done.stdout
    if not found.startswith(f"OpenSSL {versions['openssl'].partition('-')[0]} "):
        raise SystemExit(f"the interpreter uses {found.strip()} instead of the compiled one")


def components(versions: dict[str, str]) -> list[dict[str, object]]:
    """Return what the interpreter consists of, for the bill of materials."""
    licences = {"cpython": "PSF-2.0", "openssl": "Apache-2.0", "libffi": "MIT"}
    return [
        {"type": "library", "name": name, "version": version, "licenses": [{"license": {"id": licences[name]}}]}
        for name, version in sorted(versions.items())
    ]


if __name__ == "__main__":
    if platform.system() != "Linux":
        sys.exit("this builds for Linux only")
    main()
