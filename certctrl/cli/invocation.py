"""What one command line said before and beside its command: the config directory and ``--debug``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from certctrl.errors import ConfigError, DiskError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import typer

    from certctrl.store.layout import ConfigDir


_SERVER_URL = "CERTCTRL_SERVER_URL"
"""The one setting that must be given; with it in the environment an empty directory will do."""


class Invocation:
    """Root options of one run; Typer hands it to each command as ``ctx.obj``."""

    def __init__(self) -> None:
        self.config_dir: str | None = None
        self.debug = False

    def named(self, text: str) -> str:
        """Return a fix with this run's config directory in place of ``-c DIR``."""
        return text.replace("-c DIR", f"-c {self.config_dir}") if self.config_dir else text

    def layout(self, *, must_exist: bool = True) -> ConfigDir:
        """Return the config directory that ``-c`` named; UsageError without one, ConfigError when it is not there."""
        from pathlib import Path

        from certctrl.store.layout import ConfigDir

        if not self.config_dir:
            raise UsageError("this command needs a config directory", fix="add -c DIR, for example -c /etc/cert-ctrl")
        root = Path(os.path.abspath(self.config_dir))
        layout = ConfigDir(root)
        if must_exist:
            _require_directory(root)
            if not (os.path.lexists(layout.application) or os.path.lexists(layout.state) or _SERVER_URL in os.environ):
                fix = f"name another one with -c, or cert-ctrl -c {root} init --server URL"
                raise ConfigError("is no config directory: it has no application.json", file=str(root), fix=fix)
        return layout


def _require_directory(root: Path) -> None:
    try:
        found = root.is_dir()
    except OSError as error:
        fix = "run as root or as the agent's user"
        raise DiskError(f"cannot look at {root}: {error.strerror}", path=str(root), fix=fix) from None
    if not found:
        what = "is not a directory" if root.exists() else "there is no such config directory"
        raise ConfigError(what, file=str(root), fix=f"cert-ctrl -c {root} init --server URL")


def invocation(ctx: typer.Context) -> Invocation:
    """Return the invocation a command runs in."""
    found = ctx.find_object(Invocation)
    assert found is not None, "run_command passes one"
    return found
