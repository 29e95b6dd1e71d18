"""Check that only root and the agent's user can have changed what a command runs: its program and its script."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from certctrl.errors import CommandError
from certctrl.model.commands import script_words
from certctrl.store.disk.path_walk import steps_to, writers_of

NO_PINS: Mapping[str, str] = MappingProxyType({})


def vet_command(argv: Sequence[str], pins: Mapping[str, str] = NO_PINS) -> None:
    """Require that others can change neither the program nor the script that it is to run (`scripts_of`).

    ``pins``: path -> SHA-256 (hex) of its bytes. Blocks on the disk. Raises CommandError.
    """
    vet_executable(argv[0], pins.get(argv[0]))
    vet_scripts(argv, pins)


def vet_scripts(argv: Sequence[str], pins: Mapping[str, str] = NO_PINS) -> None:
    """Require that others cannot change the script of a command, as `vet_command` does; not its program."""
    for script in scripts_of(argv):
        vet_file(script, pins.get(script))


def scripts_of(argv: Sequence[str]) -> list[str]:
    """Return the existing files among the words of a command that name what its program runs, the script last."""
    found = []
    for word in script_words(argv):
        try:
            if stat.S_ISREG(os.stat(word).st_mode):
                found.append(word)
        except (OSError, ValueError):
            continue  # not a file: the value of an option, or a mistake that the program will report
    return found


def script_of(argv: Sequence[str]) -> list[str]:
    """Return the files of a command that a pin of its script is for: the last absolute one, without its interpreter.

    Among relative words, the text does not show which one is the script, so all of them are returned.
    """
    found = scripts_of(argv)
    return found[-1:] if found and found[-1] in argv else found


def vet_executable(path: str, sha256: str | None = None) -> None:
    """Require an executable that others cannot change, by mode or ACL: root-owned or the agent's, like its parents.

    Symlinks in the path (``/bin`` → ``usr/bin``) are followed and checked step by step. A world-writable directory
    is accepted only with the sticky bit; the next step then must belong to a trusted user. ``sha256``: a pin of its
    bytes (lower-case hex). Blocks on the disk. Raises CommandError.
    """
    vet_file(path, sha256, executable=True)


def vet_file(path: str, sha256: str | None = None, *, executable: bool = False) -> None:
    """Require a regular file that others cannot change, as `vet_executable` does."""
    real = _walk(path)
    mode = os.stat(real).st_mode
    if not stat.S_ISREG(mode) or (executable and not mode & 0o111):
        raise CommandError(f"{path} is not {'an executable' if executable else 'a regular'} file", fix=f"ls -l {path}")
    if sha256 is not None and (actual := sha256_of(real)) != sha256.lower():
        raise CommandError(
            f"{path} has changed: its SHA-256 is {actual}, the policy pins {sha256.lower()}",
            fix="check what changed it; then put the new sha256 into policy.json, "
            "or, if it was pinned on first use: cert-ctrl -c DIR trust reset --scripts",
        )


def sha256_of(path: str) -> str:
    """Return the SHA-256 of a file's bytes in lower-case hex. Raises CommandError."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    except OSError as error:
        raise CommandError(f"cannot read {path} to compare its SHA-256: {error.strerror}") from None
    return digest.hexdigest()


def file_of(path: str) -> tuple[str, tuple[int, int] | None]:
    """Return the path that an executable leads to, all links followed, and that file's device and inode.

    The second value is None if the file does not exist.
    """
    real = path
    try:
        real = os.path.realpath(path)
        found = os.stat(real)
    except (OSError, ValueError):
        return real, None
    return real, (found.st_dev, found.st_ino)


def is_script(path: str) -> bool:
    """Return whether an executable is a script (``#!``), which `trust_on_first_use` pins."""
    try:
        with open(path, "rb") as file:
            return file.read(2) == b"#!"
    except (OSError, ValueError):
        return False


def _walk(path: str) -> str:
    """Resolve a path from the root, checking every step; return the final path."""
    here = path
    try:
        for here, found in steps_to(path):
            _judge(found, here, path)
    except OSError as error:
        step = error.filename or here
        raise CommandError(f"cannot run {path}: {step}: {error.strerror}", fix=f"ls -l {step}") from None
    except ValueError:  # a NUL, or characters that no file name can contain
        raise CommandError(f"cannot run {path!r}: no file can have this name") from None
    return here


def _judge(found: os.stat_result, here: str, path: str) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise CommandError(
            f"will not run {path}: {here} belongs to uid {found.st_uid}, who could change it",
            fix=f"chown root {here}",
        )
    try:
        who = writers_of(here, found, (0, os.geteuid()), ())
    except OSError as error:
        raise CommandError(f"cannot run {path}: {here}: {error.strerror}", fix=f"getfacl {here}") from None
    if who:
        raise CommandError(f"will not run {path}: {who} may write to {here}", fix=f"chmod go-w {here}")
