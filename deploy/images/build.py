"""Build the container images from a Debian root each, for the Debian release that has the Python that runs this.

Needs root, mmdebstrap and buildah. The same commit and the same Debian packages give the same bytes: all times are that of
the commit, or SOURCE_DATE_EPOCH.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import re
import shutil
import stat
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent / "packages"))

import archive  # noqa: E402
import libraries  # noqa: E402
import program  # noqa: E402
import tree  # noqa: E402

SUITES = {"3.11": "bookworm", "3.13": "trixie"}
"""Debian release whose own Python it is."""
SECOND = 1_000_000_000
"""In the nanoseconds of health checks."""
HELPERS = "/usr/local/lib/cert-ctrl"
DOCUMENTS = "usr/share/doc/cert-ctrl"
LEFT_OUT = ("doc/*", "man/*", "info/*", "locale/*", "lintian/*")
PERL = re.compile(
    r"usrmerge|perl|perl-modules-.*|libperl5.*|libfile-find-rule-perl|lib(number-compare|text-glob)-perl|libgdbm.*"
)
EMPTIED = (
    "dev",
    "proc",
    "sys",
    "run",
    "tmp",
    "var/cache",
    "var/log",
    "var/lib/apt",
    "var/tmp",
    "var/lib/postgresql",
    "boot",
)
REMOVED = ("etc/apt", "etc/hostname", "etc/resolv.conf", "etc/machine-id", "etc/.pwd.lock", "var/lib/dpkg/lock")
REMOVED += ("etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "var/lib/dpkg/lock-frontend")
REMOVED += ("var/lib/dpkg/status-old", "var/lib/dpkg/diversions-old", "etc/dpkg/dpkg.cfg.d/99mmdebstrap")
REMOVED += ("etc/ssl/private/ssl-cert-snakeoil.key", "etc/ssl/certs/ssl-cert-snakeoil.pem")


class User(NamedTuple):
    """The user that an image runs as, and its directory, which is a volume."""

    name: str
    uid: int
    home: str


class Image(NamedTuple):
    """What an image contains and runs."""

    title: str
    packages: tuple[str, ...] = ()
    locks: tuple[str, ...] = ()
    user: User | None = None
    command: tuple[str, ...] = ()
    health: str = ""
    port: str = ""
    shared: int = 0
    """User of /srv/tls, for a volume that an agent shares with a service; a new volume gets the owner of its place."""


IMAGES = {
    "cert-ctrl": Image(
        "Certificate agent",
        locks=("agent",),
        user=User("cert-ctrl", 988, "/etc/cert-ctrl"),
        command=("-c", "/etc/cert-ctrl", "--keep-running"),
        # 1: an operator is needed, such as for an expired certificate; the agent itself works, and a restart would not help.
        health="cert-ctrl status --daemon >/dev/null || [ $? -eq 1 ]",
        shared=988,
    ),
    "cert-ctrl-plane": Image(
        "Certificate control plane",
        packages=("libpq5",),
        locks=("agent", "plane"),
        user=User("cert-ctrl-plane", 987, "/var/lib/cert-ctrl-plane"),
        command=("plane", "serve", "--data", "/var/lib/cert-ctrl-plane", "--listen", "0.0.0.0:8443"),
        health=f"python{program.PYTHON} -IS {HELPERS}/plane_health.py",
        port="8443/tcp",
    ),
    "cert-ctrl-example-services": Image(
        "nginx and PostgreSQL for the examples in deploy/compose and deploy/kubernetes",
        packages=("nginx-light", "postgresql", "openssl"),
        shared=988,
    ),
}


def main() -> None:
    """Build what the command line says; print the path of each image."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="directory for the images")
    parser.add_argument("--sources", type=Path, action="append", help="apt's sources; default: those of this machine")
    parser.add_argument("--roots", type=Path, help="directory to keep the root file systems in")
    parser.add_argument("--image", action="append", choices=IMAGES, help="only this image; may be repeated")
    given = parser.parse_args()
    date = program.prepare()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="cert-ctrl-images-") as scratch:
        for name in given.image or IMAGES:
            root = (given.roots or Path(scratch)) / name
            snapshot = make_root(name, IMAGES[name], root, given.sources or debian_sources())
            path = given.out / f"{name}-{program.version()}-{platform.machine()}.tar"
            commit(name, IMAGES[name], root, snapshot, path, Path(scratch) / f"storage-{name}", date)
            print(path)


def debian_sources() -> list[Path]:
    """Return the files with the Debian sources of this machine."""
    known = (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d/debian.sources"))
    if found := [path for path in known if path.exists() and "debian" in path.read_text(encoding="utf-8")]:
        return found
    raise SystemExit("this machine has no Debian sources: name a file with --sources")


# --- the root -----------------------------------------------------------------------------------------------------


def make_root(name: str, image: Image, root: Path, sources: list[Path]) -> str:
    """Make the root file system of an image; return which state of Debian it is."""
    suite = SUITES.get(program.PYTHON)
    if suite is None:
        raise SystemExit(f"no Debian release has Python {program.PYTHON}: run this with one of {', '.join(SUITES)}")
    packages = [f"python{program.PYTHON}", "ca-certificates", "usr-is-merged"] if image.locks else []
    options = [f"--dpkgopt=path-exclude=/usr/share/{path}" for path in LEFT_OUT]
    options += [
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        "--dpkgopt=force-unsafe-io",
        "--skip=cleanup/apt/lists",
    ]
    words = ["--quiet", "--variant=essential", f"--include={','.join([*packages, *image.packages])}", *options]
    libraries.run("mmdebstrap", *words, suite, root, *sources, PYTHONHASHSEED="0", TMPDIR=str(root.parent))
    snapshot = snapshot_of(root)
    if image.locks:
        remove_perl(root)
    debian = installed(root)
    if image.user:
        add_user(root, image.user)
    if image.shared:
        own_directory(root / "srv/tls", image.shared)
    if image.locks:
        add_program(root, image.locks)
        describe(root / DOCUMENTS / "sbom.cdx.json", name, debian)
    clean(root)
    return snapshot


def remove_perl(root: Path) -> None:
    """Remove perl, except the essential part: it came with usrmerge, which usr-is-merged replaces."""
    found = [name for name, _, _ in installed(root) if PERL.fullmatch(name)]
    libraries.run("dpkg", f"--root={root}", "--purge", *found)


def snapshot_of(root: Path) -> str:
    """Return the suites with the times at which they were published."""
    found = set()
    for path in (root / "var/lib/apt/lists").glob("*Release"):
        fields = dict(line.split(": ", 1) for line in path.read_text(encoding="utf-8").splitlines() if ": " in line)
        found.add(f"{fields['Codename']} {fields['Date']}")
    return "; ".join(sorted(found))


def installed(root: Path) -> list[tuple[str, str, str]]:
    """Return name, version and architecture of the Debian packages."""
    show = "--showformat=${Package} ${Version} ${Architecture}\\n"
    lines = libraries.run("dpkg-query", f"--admindir={root}/var/lib/dpkg", show, "--show").splitlines()
    return [(one, two, three) for one, two, three in (line.split() for line in sorted(lines))]


def add_user(root: Path, user: User) -> None:
    """Add a user with its directory."""
    for file, line in (
        ("passwd", f"{user.name}:x:{user.uid}:{user.uid}::{user.home}:/usr/sbin/nologin"),
        ("group", f"{user.name}:x:{user.uid}:"),
    ):
        with (root / "etc" / file).open("a", encoding="utf-8") as opened:
            opened.write(f"{line}\n")
    own_directory(root / user.home.lstrip("/"), user.uid)


def own_directory(path: Path, uid: int) -> None:
    """Make a directory that only one user may enter."""
    path.mkdir(mode=0o700)
    os.chown(path, uid, uid)


def add_program(root: Path, locks: tuple[str, ...]) -> None:
    """Install the program as the packages do, without units."""
    with tempfile.TemporaryDirectory() as scratch:
        modules = root / tree.LIBRARIES.lstrip("/")
        (root / DOCUMENTS).mkdir(parents=True)
        program.install(modules, root / DOCUMENTS, Path(scratch), locks=list(locks), seen_as=tree.LIBRARIES, bare=False)
    runs = f"/usr/bin/python{program.PYTHON}"
    launcher = tree.LAUNCHER.format(
        python=program.PYTHON, interpreter=runs, libraries=tree.LIBRARIES, plugins=tree.PLUGINS
    )
    tree.write(root / "usr/bin/cert-ctrl", launcher, 0o755)
    helpers = root / HELPERS.lstrip("/")
    shutil.copytree(PROJECT / "deploy/services/lib", helpers)
    for helper in ("plane_health.py", "start-agent", "start-plane-on-postgresql"):
        shutil.copy(HERE / helper, helpers)
    for path in (modules, root / DOCUMENTS, helpers):
        tree.settle(path, int(os.environ["SOURCE_DATE_EPOCH"]))


def describe(bill: Path, name: str, debian: list[tuple[str, str, str]]) -> None:
    """Add the Debian packages to the bill of materials."""
    found = json.loads(bill.read_text(encoding="utf-8"))
    found["metadata"]["component"] |= {"name": name, "type": "container"}
    found["components"] += [
        {
            "type": "library",
            "name": package,
            "version": version,
            "purl": f"pkg:deb/debian/{package}@{version}?arch={arch}",
        }
        for package, version, arch in debian
    ]
    tree.write(bill, json.dumps(found, indent=1, sort_keys=True) + "\n")


def clean(root: Path) -> None:
    """Remove what an image does not need, what differs between builds, and what gives rights."""
    for name in EMPTIED:
        for path in (root / name).glob("*"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for name in REMOVED:
        path = root / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    for path in root.rglob("*"):
        found = path.lstat()
        if not path.is_symlink() and found.st_mode & (stat.S_ISUID | stat.S_ISGID):
            path.chmod(stat.S_IMODE(found.st_mode) & 0o1777)


# --- the image ----------------------------------------------------------------------------------------------------


def commit(name: str, image: Image, root: Path, snapshot: str, path: Path, storage: Path, date: int) -> None:
    """Make an image of one layer and write it as an archive for ``podman load``."""
    layer = storage.with_suffix(".tar")
    with layer.open("wb") as file:
        archive.write_tar(root, file, date)
    places = ["--root", str(storage), "--runroot", f"{storage}-run", "--storage-driver", "vfs"]
    try:
        container = libraries.run("buildah", *places, "from", "--format", "docker", "scratch").strip()
        libraries.run("buildah", *places, "add", "--quiet", container, layer, "/")
        libraries.run("buildah", *places, "config", *settings(image, snapshot), container)
        target = f"docker-archive:{path}:localhost/{name}:{program.version()}"
        path.unlink(missing_ok=True)
        exactly = (
            "--quiet",
            "--format",
            "docker",
            "--omit-history",
            "--identity-label=false",
            "--timestamp",
            str(date),
        )
        libraries.run("buildah", *places, "commit", *exactly, container, target)
        settle(path, image)
    finally:
        libraries.run("buildah", *places, "rm", "--all")
        shutil.rmtree(storage, ignore_errors=True)
        layer.unlink()


def settings(image: Image, snapshot: str) -> list[str]:
    """Return the options of ``buildah config``."""
    labels = {"title": image.title, "version": program.version(), "licenses": "Apache-2.0"}
    labels |= {"vendor": "The certctrl team", "base.name": f"Debian {snapshot}"}
    words = [f"--label=org.opencontainers.image.{key}={value}" for key, value in labels.items()]
    words += [
        "--workingdir=/",
        "--stop-signal=SIGTERM",
        "--env=PATH=/usr/sbin:/usr/bin:/sbin:/bin",
        "--env=LC_ALL=C.UTF-8",
    ]
    if image.user:
        words += [f"--user={image.user.uid}:{image.user.uid}", f"--volume={image.user.home}"]
        words += ['--entrypoint=["/usr/bin/cert-ctrl"]', f"--cmd={' '.join(image.command)}"]
    return [*words, *([f"--port={image.port}"] if image.port else [])]


def settle(path: Path, image: Image) -> None:
    """Rewrite an archive with the health check, whose shell line buildah would split, and without ids of its container."""
    with tarfile.open(path) as old:
        (manifest,) = json.loads(content(old, "manifest.json"))
        config = json.loads(content(old, manifest["Config"]))
        (layer,) = manifest["Layers"]
        for key in ("container", "container_config"):
            config.pop(key, None)
        config["config"].pop("Hostname", None)
        if image.health:
            config["config"]["Healthcheck"] = {"Test": ["CMD-SHELL", image.health], "Retries": 2}
            config["config"]["Healthcheck"] |= {
                "Interval": 60 * SECOND,
                "Timeout": 10 * SECOND,
                "StartPeriod": 20 * SECOND,
            }
        text = json.dumps(config, sort_keys=True).encode()
        manifest["Config"] = f"{hashlib.sha256(text).hexdigest()}.json"
        new = path.with_suffix(".new")
        with tarfile.open(new, "w") as into:
            for name, data in (("manifest.json", json.dumps([manifest]).encode()), (manifest["Config"], text)):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                into.addfile(entry, io.BytesIO(data))
            into.addfile(old.getmember(layer), old.extractfile(layer))
    new.replace(path)


def content(tar: tarfile.TarFile, name: str) -> bytes:
    """Return the bytes of a file in an archive."""
    file = tar.extractfile(name)
    assert file is not None
    return file.read()


if __name__ == "__main__":
    main()
