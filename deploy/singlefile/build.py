"""Build cert-ctrl and its control plane as a single file for the Python and the machine that run this.

The same commit gives the same bytes: all times are that of the commit, or SOURCE_DATE_EPOCH.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import lzma
import marshal
import platform
import string
import sys
import tempfile
import time
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "packages"))

import archive  # noqa: E402
import program  # noqa: E402


def main() -> None:
    """Build what the command line says; print its path."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="directory for the file")
    parser.add_argument("--bare", action="store_true", help="only what --version needs, to test everything else")
    given = parser.parse_args()
    date = program.prepare()
    with tempfile.TemporaryDirectory(prefix="cert-ctrl-file-") as scratch:
        tree = Path(scratch) / "tree"
        program.copy_deploy(tree / "deploy")
        modules, locks = tree / "python", ["agent", "plane"]
        program.install(modules, tree, Path(scratch), locks=locks, seen_as="cert-ctrl", bare=given.bare)
        content = packed(tree, date)
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / f"cert-ctrl-{program.version()}-python{program.PYTHON}-{platform.machine()}.pyz"
    path.write_bytes(whole(content, date))
    path.chmod(0o755)
    print(path)


def packed(tree: Path, date: int) -> bytes:
    """Return a tree as a compressed archive."""
    into = io.BytesIO()
    archive.write_tar(tree, into, date, as_root=True)
    return lzma.compress(into.getvalue(), preset=6)


def whole(content: bytes, date: int) -> bytes:
    """Return the single file: a line for the shell, and a zip file with what unpacks the archive."""
    digest = hashlib.sha256(content).hexdigest()
    values = {"PYTHON": program.PYTHON, "MACHINE": platform.machine(), "VERSION": program.version(), "DIGEST": digest}
    values["NAME"] = f"{program.version()}-python{program.PYTHON}-{digest[:16]}"
    boot = string.Template((HERE / "boot.py").read_text(encoding="utf-8")).substitute(values)
    entries = {"__main__.py": boot.encode(), "__main__.pyc": compiled(boot), "program.tar.xz": content}
    entries["unpack.py"] = (HERE / "unpack.py").read_bytes()
    into = io.BytesIO()
    into.write(string.Template((HERE / "header.sh").read_text(encoding="utf-8")).substitute(values).encode())
    with zipfile.ZipFile(into, "a") as file:
        for name, content in entries.items():
            entry = zipfile.ZipInfo(name, time.gmtime(date)[:6])
            entry.external_attr = 0o644 << 16
            file.writestr(entry, content)
    return into.getvalue()


def compiled(source: str) -> bytes:
    """Return a module as Python imports it, without comparing it with its source."""
    code = compile(source, "cert-ctrl.pyz/__main__.py", "exec", dont_inherit=True)
    flags = 0b01  # based on the hash of the source, which is not checked
    head = importlib.util.MAGIC_NUMBER + flags.to_bytes(4, "little") + importlib.util.source_hash(source.encode())
    return head + marshal.dumps(code)


if __name__ == "__main__":
    main()
