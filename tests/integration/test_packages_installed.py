"""The packages in fresh Debian roots with a running systemd: ``nox -s packages``.

They are those for the Python that runs this, or with the interpreter in the tar file CERTCTRL_TEST_INTERPRETER; CERTCTRL_TEST_PACKAGES may have
release 1 of them. Roots are kept as tar files in the directory CERTCTRL_PACKAGES_CACHE, if it is set. Transcripts go to CERTCTRL_TEST_TRANSCRIPTS.
"""

from __future__ import annotations

import gzip
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from booted_root import BootedRoot, Transcript
from package_roots import PROJECT, Builds
from package_story import Story
from postgres_server import PostgresServer

pytestmark = [pytest.mark.integration, pytest.mark.root]
INTERPRETER = os.environ.get("CERTCTRL_TEST_INTERPRETER", "")
FLAVOUR = "own" if INTERPRETER else f"{sys.version_info.major}.{sys.version_info.minor}"
SUITES = {"3.11": ("bookworm",), "3.12": ("bookworm",), "3.13": ("trixie",), "own": ("bullseye",)}.get(FLAVOUR, ())
"""Releases whose Python the packages need; those with an interpreter are for the oldest. No Debian has Python 3.12."""
NEEDS = {
    "bookworm": ("python3.11", "polkitd"),
    "trixie": ("python3.13", "polkitd"),
    "bullseye": ("libsqlite3-0", "policykit-1"),
}
COMMON = ("procps", "systemd", "dbus", "ca-certificates", "libpq5", "nginx")
WITHOUT_RULES = ("bullseye",)
"""Releases whose polkit reads no rules in JavaScript: the root helper reloads nginx there."""


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory, need_module: Callable[[str], None]) -> Builds:
    """Return two whole builds, of different releases."""
    if os.environ.get("CERTCTRL_UNPINNED"):
        pytest.skip("the package index lacks pinned versions")
    for name in ("pip", "hatchling"):
        need_module(name)
    options, made = ["--interpreter", INTERPRETER] if INTERPRETER else [], os.environ.get("CERTCTRL_TEST_PACKAGES")
    folder = tmp_path_factory.mktemp("packages")
    return Builds(folder, "--compression", "gzip", *options, made=Path(made) if made else None)  # faster than xz


@pytest.fixture(scope="module", params=SUITES)
def archive(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, need: Callable[[str], str]
) -> Path:
    """Return a tar file of a fresh Debian with what the packages depend on."""
    need("mmdebstrap")
    folder = os.environ.get("CERTCTRL_PACKAGES_CACHE")
    tar = (Path(folder) if folder else tmp_path_factory.mktemp("roots")) / f"{request.param}.tar"
    if not tar.exists():
        argv = [sys.executable, PROJECT / "deploy/packages/roots.py", request.param, tar]
        subprocess.run([*argv, *COMMON, *NEEDS[request.param]], check=True)
    return tar


@pytest.fixture
def root(archive: Path, tmp_path: Path, builds: Builds) -> Path:
    """Return the directory of a fresh Debian."""
    (path := tmp_path / "root").mkdir()
    subprocess.run(["tar", "-xf", archive, "-C", path], check=True, timeout=600)
    (path / "etc/nginx/sites-enabled/default").unlink()  # it listens on port 80, also outside
    if FLAVOUR == "3.12":
        give_python(path)
    return path


def give_python(root: Path) -> None:
    """Install the Python that runs this as if it were a package of the release, which has another version."""
    release, prefix = platform.freedesktop_os_release().get("VERSION_CODENAME"), Path(sys.base_prefix)
    if release != "bookworm" or prefix == Path("/usr"):
        pytest.skip("needs a Python 3.12 that was compiled on Debian 12")
    name, files = f"python{FLAVOUR}", root / "root/files"
    parts = {f"bin/{name}": "usr/bin", f"lib/{name}": "usr/lib", f"lib/lib{name}.so*": "usr/lib/x86_64-linux-gnu"}
    for pattern, place in parts.items():
        (files / place).mkdir(parents=True)
        for path in prefix.glob(pattern):
            subprocess.run(["cp", "-a", path, files / place], check=True)
    for unused in ("test", "site-packages", "ensurepip", "idlelib"):
        shutil.rmtree(files / f"usr/lib/{name}/{unused}", ignore_errors=True)
    (files / "DEBIAN").mkdir()
    control = f"Package: {name}\nVersion: {platform.python_version()}\nArchitecture: all\nMaintainer: nobody\nDescription: Python\n"
    (files / "DEBIAN/control").write_text(control)
    subprocess.run(["dpkg-deb", "-Znone", "-b", files, root / "root/python.deb"], check=True, stdout=subprocess.PIPE)
    shutil.rmtree(files)
    subprocess.run(["chroot", root, "dpkg", "-i", "/root/python.deb"], check=True)


def transcript(name: str, archive: Path) -> Transcript:
    """Return the transcript of a test."""
    folder = os.environ.get("CERTCTRL_TEST_TRANSCRIPTS")
    return Transcript(Path(folder) / f"{name}-{archive.stem}.txt" if folder else None)


@pytest.fixture
def host(root: Path, archive: Path, request: pytest.FixtureRequest) -> Iterator[BootedRoot]:
    """Yield a running system."""
    name = request.node.originalname.removeprefix("test_")
    with BootedRoot(root, transcript(name, archive)) as booted:
        yield booted


@pytest.mark.timeout(1800)  # builds both packages twice, and a root
def test_installed_used_upgraded_removed_and_purged(
    host: BootedRoot, archive: Path, builds: Builds, tmp_path: Path
) -> None:
    story = Story(host, tmp_path)
    story.install(builds.debs("1"))
    host.run("cert-ctrl", "--version")
    host.run("cert-ctrl", "status", status=78)
    if archive.stem in WITHOUT_RULES:
        story.allow([], ["nginx.service"])
    story.set_up()
    story.issue()
    story.use_recipe()
    host.run("cert-ctrl", "status")
    story.upgrade_under_load(builds.debs("2"))
    story.remove()
    story.purge()


@pytest.mark.campaign
def test_the_control_plane_uses_postgresql(
    root: Path, archive: Path, builds: Builds, own_postgres: PostgresServer, tmp_path: Path
) -> None:
    """The server is outside, behind a Unix socket; psycopg is that of the package, with the libpq of the release."""
    words = transcript("postgresql", archive)
    with BootedRoot(root, words, {own_postgres.root: "/srv/postgres"}) as host:
        story = Story(host, tmp_path)
        story.install(builds.debs("1"))
        story.set_up()
        story.use_database(own_postgres.database().replace(quote(str(own_postgres.root), safe=""), "/srv/postgres"))
        story.issue()
        story.renew_certificate()


@pytest.mark.campaign
def test_the_sandbox_passes(host: BootedRoot, builds: Builds) -> None:
    host.dpkg("-i", *builds.debs("1"))
    host.run("cert-ctrl", "sandbox", "--duration", "10", "--service", "builtin")


@pytest.mark.campaign
def test_every_module_of_the_program_is_there(host: BootedRoot, builds: Builds) -> None:
    """Nothing that it imports is left out, or from another place."""
    host.dpkg("-i", *builds.debs("1"))
    code = (
        "import pkgutil, sys, certctrl, importlib; sys.argv = ['cert-ctrl']\n"
        "for one in pkgutil.walk_packages(certctrl.__path__, 'certctrl.'):\n"
        "    if not one.name.endswith('__main__'): importlib.import_module(one.name)\n"
        "print(sorted({m.__file__ for n, m in sys.modules.items() if n != '__main__' and getattr(m, '__file__', '') and '/usr/lib/' not in m.__file__}))"
    )
    launcher = host.file("/usr/bin/cert-ctrl").read_text()
    head, _, rest = launcher.partition("\nfrom certctrl")
    assert rest
    host.file("/root/all").write_text(f"{head}\n{code}\n")
    assert host.run("sh", "-c", "$(sed -n '1s/^#!//p' /usr/bin/cert-ctrl) /root/all").splitlines() == ["[]"]


@pytest.mark.campaign
def test_two_builds_of_one_commit_have_the_same_bytes(builds: Builds) -> None:
    again = builds.folder / "again"  # gzip takes less time; the default tests compare xz
    builds.build(again, "--release", "2", "--kind", "deb")
    for path in builds.debs("2"):
        (other,) = again.rglob(path.name)
        assert other.read_bytes() == path.read_bytes(), path.name


@pytest.mark.campaign
def test_lintian_and_rpmlint_have_no_findings(builds: Builds, need: Callable[[str], str]) -> None:
    config = PROJECT / "deploy/packages/rpmlint.toml"
    lintian = subprocess.run(
        [need("lintian"), "--fail-on", "warning", *map(str, builds.debs("1"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (lintian.returncode, lintian.stdout) == (0, "")
    rpmlint = subprocess.run(
        [need("rpmlint"), "-c", str(config), *map(str, builds.rpms())], capture_output=True, text=True, check=False
    )
    assert rpmlint.returncode == 0 and "0 errors, 0 warnings" in rpmlint.stdout, rpmlint.stdout


@pytest.mark.campaign
def test_manual_pages_are_correct(builds: Builds, tmp_path: Path, need: Callable[[str], str]) -> None:
    for path in builds.debs("1"):
        subprocess.run([need("dpkg-deb"), "-x", path, tmp_path], check=True)
    pages = sorted((tmp_path / "usr/share/man").rglob("cert-ctrl*.gz"))
    assert len(pages) >= 20
    for page in pages:
        argv, text = [need("mandoc"), "-Tlint", "-Wwarning"], gzip.decompress(page.read_bytes())
        done = subprocess.run(argv, input=text, capture_output=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (0, b""), page.name


@pytest.mark.campaign
def test_rpm_installs_the_whole_into_an_empty_root(builds: Builds, need: Callable[[str], str], tmp_path: Path) -> None:
    rpm = [need("rpm"), "--root", str(tmp_path), "--nodeps", "--noscripts"]
    subprocess.run([*rpm, "-i", *map(str, builds.rpms())], check=True, timeout=600)
    verified = subprocess.run([*rpm, "-Va"], capture_output=True, text=True, timeout=600, check=False)
    assert (verified.returncode, verified.stdout) == (0, "")
