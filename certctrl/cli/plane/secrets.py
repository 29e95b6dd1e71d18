"""Secrets of a control plane on the command line: files that options name, and systemd credentials."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from certctrl.errors import ConfigError, UsageError

STORAGE_CREDENTIAL = "certctrl-storage-key"
OPERATOR_CREDENTIAL = "certctrl-operator-key"
_MAX_BYTES = 64 * 1024

StorageKeyFile = Annotated[
    str,
    typer.Option(
        "--storage-key-file",
        metavar="FILE",
        help=f"The key that seals stored secrets; default: the systemd credential {STORAGE_CREDENTIAL}, then "
        "storage.key in DIR.",
    ),
]
OperatorKeyFile = Annotated[
    str,
    typer.Option(
        "--operator-key-file",
        metavar="FILE",
        help=f"The operator key; default: the systemd credential {OPERATOR_CREDENTIAL}, then operator.key in DIR.",
    ),
]


class Secret(NamedTuple):
    """The line of a file."""

    text: str
    path: Path

    def __repr__(self) -> str:
        return f"Secret(…, {self.path})"


def read_secret(
    file: str, credential: str, environ: Mapping[str, str], contents: str, *, one_line: bool = True
) -> Secret | None:
    """Return the line of a file, otherwise of a systemd credential; None without both.

    ``contents`` says what the line is; without ``one_line``, it may have several. Raises ConfigError for an
    unusable file, and one that others can read.
    """
    directory = environ.get("CREDENTIALS_DIRECTORY", "")
    given = Path(directory) / credential
    if not file and not (directory and given.exists()):
        return None
    path = Path(file) if file else given
    try:
        with path.open("rb") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            text = opened.read(_MAX_BYTES).decode("utf-8").strip()
    except UnicodeDecodeError:
        raise ConfigError("is not text", file=str(path), fix=f"write {contents} to it") from None
    except OSError as error:
        fix = f"write {contents} to it, mode 0600, or name another file"
        raise ConfigError(f"cannot be read: {error.strerror or error}", file=str(path), fix=fix) from None
    if file and mode & 0o077:
        raise ConfigError("is readable by other users", file=str(path), fix=f"chmod 0600 {path}")
    if not text or ("\n" in text and one_line):
        raise ConfigError(f"must contain one line: {contents}", file=str(path), fix=f"write {contents} to it")
    return Secret(text, path)


def refuse_readable(mode: int, what: str, file: str) -> None:
    """Raise UsageError if the mode of a secret's file lets other users read it; ``-`` is standard input."""
    if file != "-" and mode & 0o077:
        raise UsageError(f"{what} is readable by other users", fix=f"chmod 0600 {file}")


def given_keys(storage_file: str, operator_file: str, environ: Mapping[str, str]) -> Any:
    """Return the ``GivenKeys`` of the options and the credentials. Raises ConfigError."""
    storage = read_secret(storage_file, STORAGE_CREDENTIAL, environ, "the storage key")
    operator = read_secret(operator_file, OPERATOR_CREDENTIAL, environ, "the operator key")
    from certctrl.plane.storage.data_dir import GivenKey, GivenKeys

    return GivenKeys(storage=storage and GivenKey(*storage), operator=operator and GivenKey(*operator))
