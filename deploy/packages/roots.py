"""Make the root file system of a Debian release with mmdebstrap, and get Debian's source packages.

Both use the mirrors that this machine uses. They change nothing in its configuration.
"""

from __future__ import annotations

import argparse
import functools
import platform
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

APT = Path("/etc/apt")
MERGE = 'for one in bin sbin lib lib32 lib64 libx32; do mkdir -p "$1/usr/$one"; ln -s "usr/$one" "$1/$one"; done'
"""Makes /bin and the like links to /usr, as Debian's installer does. Later releases have no other layout."""


def main() -> None:
    """Make the root that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("suite", help="the release, such as bookworm")
    parser.add_argument("out", type=Path, help="a tar file or a directory")
    parser.add_argument("packages", nargs="*", help="packages beyond the essential ones")
    given = parser.parse_args()
    make_root(given.suite, given.out, given.packages)


def make_root(suite: str, out: Path, packages: Sequence[str]) -> None:
    """Install a minimal release with packages into a directory or a tar file, which is complete if it exists."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="cert-ctrl-root-") as scratch:
        target = Path(scratch) / out.name if out.suffix == ".tar" else out
        argv = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}"]
        argv += [f"--setup-hook={MERGE}"] if suite == "bullseye" else []
        subprocess.run([*argv, suite, target, *write_sources(Path(scratch), suite, "deb")], check=True)
        if target != out:
            partial = out.with_name(f"{out.name}.partial")
            partial.write_bytes(target.read_bytes())
            partial.replace(out)


def write_sources(folder: Path, suite: str, kind: str) -> list[Path]:
    """Write this machine's apt sources for another release; ``kind`` is deb or deb-src."""
    here = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    written = []
    for path in (APT / "sources.list", APT / "sources.list.d" / "debian.sources"):
        if here and path.exists() and here in (text := path.read_text(encoding="utf-8")):
            text = re.sub(r"^Types: .*$", f"Types: {kind}", text, flags=re.M)
            text = re.sub(r"^deb ", f"{kind} ", text, flags=re.M)
            written.append(folder / path.name)
            written[-1].write_text(text.replace(here, suite), encoding="utf-8")
    return written


class SourcePackages:
    """The source packages of a release, in a directory of their own."""

    def __init__(self, folder: Path, suite: str) -> None:
        self.folder = folder
        self._apt = folder / "apt"
        for name in ("parts", "state/lists/partial", "cache/archives/partial"):
            (self._apt / name).mkdir(parents=True)
        (self._apt / "status").touch()
        for path in write_sources(folder, suite, "deb-src"):
            path.rename(self._apt / "parts" / path.name)
        self._run("apt-get", "--quiet", "update")

    def get(self, name: str) -> tuple[str, Path]:
        """Download the newest version that the mirror has; return the version and the path of its .dsc.

        A mirror may list versions whose files it does not have yet, or no longer.
        """
        found = re.findall(r"^Version: (.+)$", self._run("apt-cache", "showsrc", name), re.M)
        for version in sorted(set(found), key=functools.cmp_to_key(_compare), reverse=True):
            try:
                self._run("apt-get", "--quiet", "--download-only", "--only-source", "source", f"{name}={version}")
            except subprocess.CalledProcessError:
                continue
            return version, self.folder / f"{name}_{version.partition(':')[2] or version}.dsc"
        raise SystemExit(f"no version of the source package {name} can be downloaded; listed: {', '.join(found)}")

    def _run(self, program: str, *words: str) -> str:
        """Run a program of apt with its own sources and state."""
        places = {"Etc::SourceList": "/dev/null", "Etc::SourceParts": self._apt / "parts", "Cache": self._apt / "cache"}
        places |= {"State": self._apt / "state", "State::status": self._apt / "status"}
        options = [word for name, path in places.items() for word in ("-o", f"Dir::{name}={path}")]
        argv = [program, *options, "-o", "APT::Sandbox::User=root", *words]
        return subprocess.run(argv, cwd=self.folder, stdout=subprocess.PIPE, text=True, check=True).stdout


def _compare(one: str, other: str) -> int:
    """Compare two versions as dpkg does."""
    if one == other:
        return 0
    return -1 if subprocess.run(["dpkg", "--compare-versions", one, "lt", other], check=False).returncode == 0 else 1


if __name__ == "__main__":
    main()
