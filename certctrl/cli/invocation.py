"""The root options of one command line: the config directory, ``-q``, ``-v`` and ``--debug``."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from certctrl.cli.owner import become_owner
from certctrl.errors import ConfigError, DiskError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import typer

    from certctrl.store.layout import ConfigDir


DEFAULT_DIRECTORY = "/etc/cert-ctrl"
DIRECTORY_VARIABLE = "CERTCTRL_CONFIG_DIR"
SERVER_VARIABLE = "CERTCTRL_SERVER_URL"
"""The only required setting; if the environment has it, an empty config directory is valid."""


class Invocation:
    """Root options of one command line; Typer passes it to commands as ``ctx.obj``."""

    def __init__(self) -> None:
        self.config_dir: str | None = None
        """The value of ``-c``; None without it."""
        self.debug = False
        self.verbosity = 0
        """1 with -v, -1 with -q."""

    @property
    def directory(self) -> str:
        """The config directory: ``-c``, otherwise the environment's, otherwise the default."""
        return os.environ.get(DIRECTORY_VARIABLE) or DEFAULT_DIRECTORY if self.config_dir is None else self.config_dir

    def with_directory(self, text: str) -> str:
        """Return a fix with ``-c DIR`` replaced by the actual config directory."""
        return text.replace("-c DIR", f"-c {self.directory}") if self.directory else text

    def layout(self, *, must_exist: bool = True) -> ConfigDir:
        """Return the config directory; root becomes its owner first (see `become_owner`).

        Raises UsageError for an empty ``-c``, ConfigError if it is a symbolic link, does not exist or is not a config
        directory, DiskError if this user may not read it.
        """
        from pathlib import Path

        from certctrl.store.layout import ConfigDir

        if not self.directory:
            fix = f"add -c DIR, or leave -c out for {DEFAULT_DIRECTORY}"
            raise UsageError("no config directory given", fix=fix)
        root = Path(os.path.abspath(self.directory))
        layout = ConfigDir(root)
        _refuse_link(root)
        become_owner(root)
        if must_exist:
            _require_directory(root)
            if not (is_present(layout.application) or is_present(layout.state) or SERVER_VARIABLE in os.environ):
                fix = f"give another directory with -c, or run {_making(root)}"
                raise ConfigError("is not a config directory: no application.json", file=str(root), fix=fix)
        return layout


def _refuse_link(root: Path) -> None:
    """Raise ConfigError for a symbolic link: the agent opens its directory only by its own path."""
    if not is_present(root) or not root.is_symlink():
        return
    try:
        root.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ConfigError(
                "is a symbolic link that leads to itself", file=str(root), fix=f"remove the link: rm {root}"
            ) from None
    real = os.path.realpath(root)
    raise ConfigError(f"is a symbolic link to {real}", file=str(root), fix=f"use -c {real}")


def _require_directory(root: Path) -> None:
    if not is_present(root):
        raise ConfigError("no such directory", file=str(root), fix=_making(root))
    if not root.is_dir():
        raise ConfigError("is not a directory", file=str(root), fix="give the agent's config directory with -c")


def _making(root: Path) -> str:
    """Return the command that makes a config directory: `setup` is for hosts, whose agent is a service."""
    return "cert-ctrl setup" if str(root) == DEFAULT_DIRECTORY else f"cert-ctrl -c {root} init --server URL"


def is_present(path: Path) -> bool:
    """Return whether a path exists. Raises DiskError if this user may not know."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        fix = "run as root or as the agent's user"
        raise DiskError(f"cannot access {path}: {error.strerror}", path=str(path), fix=fix) from None
    return True


def invocation(ctx: typer.Context) -> Invocation:
    """Return the root options of a command."""
    found = ctx.find_object(Invocation)
    assert found is not None, "run_command passes one"
    return found
