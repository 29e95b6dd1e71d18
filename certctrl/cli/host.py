"""What the set-up commands change on a host as root: a user, its directory, a systemd unit.

Each change is idempotent and reported in one line. A dry run reports what would be done.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from certctrl import lean
from certctrl.cli.output import write_json, write_line
from certctrl.cli.owner import name_of
from certctrl.errors import CommandError, ConfigError
from certctrl.install.process.programs import SYSTEM_PATH, find_program, run_program
from certctrl.store.disk.fs import FileKind, RealFs, Stat, closing
from certctrl.store.layout import DIR_MODE

AGENTS_DIRECTORY, AGENT = "/etc/cert-ctrl", "cert-ctrl"
PLANES_DIRECTORY, PLANE = "/var/lib/cert-ctrl-plane", "cert-ctrl-plane"
_INSTANCE = re.compile(r"[a-z0-9_-]+")
_LABEL_WIDTH = 10
_ENVIRON = {"PATH": SYSTEM_PATH, "LANG": "C"}
"""Of the system's programs: nothing of the operator's, such as a token."""
_USERADD = ("useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin")


class Place(NamedTuple):
    """A directory that a unit of ``deploy/`` uses, with the unit's user."""

    directory: str
    user: str
    unit: str


def place_of(directory: str) -> Place | None:
    """Return the place of a directory; None for others, which no unit uses."""
    path = os.path.abspath(directory)
    if path == PLANES_DIRECTORY:
        return Place(path, PLANE, f"{PLANE}.service")
    if path == AGENTS_DIRECTORY:
        return Place(path, AGENT, f"{AGENT}.service")
    instance = path.removeprefix(f"{AGENTS_DIRECTORY}-")
    if instance == path or not _INSTANCE.fullmatch(instance) or f"{AGENT}-{instance}" == PLANE:
        return None
    return Place(path, f"{AGENT}-{instance}", f"{AGENT}@{instance}.service")


@lean.frozen(kw_only=True)
class Unit:
    """A systemd unit."""

    name: str
    is_installed: bool
    user: str
    """The user that it runs as; empty: not installed."""
    is_enabled: bool
    is_active: bool
    environment: str = ""
    """The variables that the unit and its drop-ins set, as systemd shows them."""


def find_unit(name: str) -> Unit | None:
    """Return the state of a unit; None if systemd does not run here."""
    systemctl = find_program("systemctl")
    if systemctl is None:
        return None
    lines: list[str] = []
    argv = [systemctl, "show", "--property=LoadState,User,UnitFileState,ActiveState,Environment", name]
    if run_program(argv, on_line=lines.append, environ=_ENVIRON, quiet=True) != 0:
        return None
    facts = dict(line.split("=", 1) for line in lines if "=" in line)
    is_installed = facts.get("LoadState") == "loaded"
    return Unit(
        name=name,
        is_installed=is_installed,
        user=(facts.get("User") or "root") if is_installed else "",
        is_enabled=facts.get("UnitFileState") == "enabled",
        is_active=facts.get("ActiveState") == "active",
        environment=facts.get("Environment", ""),
    )


class Host:
    """The changes of one set-up."""

    def __init__(self, *, dry_run: bool, as_json: bool = False) -> None:
        self.dry_run, self.as_json = dry_run, as_json
        self.is_root = os.geteuid() == 0
        self._reported: list[dict[str, str]] = []

    def report(self, label: str, done: str, planned: str = "") -> None:
        """Print a line: what was done, or in a dry run what would be; with JSON, keep it for `finish`."""
        text = planned if self.dry_run and planned else done
        self._reported.append({"about": label, "what": text})
        if not self.as_json:
            write_line(f"{label:<{_LABEL_WIDTH}} {text}")

    def finish(self, **facts: str) -> None:
        """Print everything as one JSON object, if JSON is wanted."""
        if self.as_json:
            write_json({"dry_run": self.dry_run, "steps": self._reported} | facts, pretty=False)

    def make_place(self, place: Place, unit: Unit | None) -> None:
        """Create user and directory of a unit; without the unit, an existing directory keeps its owner.

        Raises ConfigError, CommandError, DiskError.
        """
        path, user = Path(place.directory), place.user
        if unit is not None and unit.is_installed:
            user = unit.user
        elif (found := RealFs().lstat(path)) is not None and not self._is_half_made(path, found):
            self.report("directory", f"{path} exists")
            return
        self.make_user(user, place.directory)
        self.make_directory(path, user)

    def make_user(self, name: str, home: str) -> None:
        """Create a system user unless it exists. Raises CommandError."""
        if _ids_of(name) is not None:
            self.report("user", f"{name} exists")
            return
        argv = [*_USERADD, "--home-dir", home, name]
        if not self.dry_run:
            self.run(argv, fix=f"create the system user {name} with the home directory {home}")
        self.report("user", f"{name} created", f"would be created: {shlex.join(argv)}")

    def make_directory(self, path: Path, user: str) -> None:
        """Create a directory of a user, mode 0700. Raises ConfigError if it belongs to another one, DiskError."""
        fs = RealFs()
        ids, found = _ids_of(user), fs.lstat(path)
        is_given = found is not None and ids is not None and found.uid == ids[0]
        if found is not None and (is_given or not self._is_half_made(path, found)):
            _require_owner(path, found, user, ids)
            self.report("directory", f"{path} exists")
            return
        if not self.dry_run:
            assert ids is not None, "the user exists"
            if found is None:
                fs.mkdir(path, DIR_MODE)
            with closing(fs, fs.open_dir(path)) as handle:
                fs.chmod(handle, DIR_MODE)
                fs.chown(handle, *ids)
                if fs.listdir(handle):  # its former owner was faster
                    raise ConfigError("is no longer empty", file=str(path), fix="move it away")
        self.report(
            "directory", f"{path} created for user {user}", f"{path} would be created for user {user}, mode 0700"
        )

    def _is_half_made(self, path: Path, found: Stat) -> bool:
        """Return whether an interrupted run, or a package, may have made the directory: empty, of root or the usual user."""
        usual = _ids_of(AGENT)
        owners = (0, 0 if usual is None else usual[0])
        if found.kind is not FileKind.DIR or found.uid not in owners or not self.is_root:
            return False
        with closing(RealFs(), RealFs().open_dir(path)) as handle:
            return not RealFs().listdir(handle)

    def start(self, unit: Unit | None, place: Place | None, command: str, *, restart: bool) -> None:
        """Enable and start a unit, or restart it if it runs with something older; otherwise print the command to run.

        Raises CommandError.
        """
        if unit is None or not unit.is_installed or place is None:
            why = "not found" if unit is None else f"has no unit {unit.name}"
            self.report("service", f"systemd {why}; run: {command}" if place else f"run: {command}")
            return
        if unit.is_enabled and unit.is_active and not restart:
            self.report("service", f"{unit.name} is running")
            return
        restarts, is_complete = unit.is_active and restart, unit.is_enabled and unit.is_active
        argvs = [["systemctl", "restart", unit.name]] if restarts else []
        argvs += [] if is_complete else [["systemctl", "enable", "--now", unit.name]]
        commands = " && ".join(map(shlex.join, argvs))
        if not self.is_root:
            self.report("service", f"run as root: {commands}")
            return
        if not self.dry_run:
            for argv in argvs:
                self.run(argv, fix=f"journalctl -u {unit.name}")
        done = "restarted" if is_complete else "enabled and started"
        self.report("service", f"{unit.name} {done}", f"would be {done}: {commands}")

    def run(self, argv: Sequence[str], *, fix: str) -> None:
        """Run a program of the system. Raises CommandError if it fails or is missing."""
        program = find_program(argv[0])
        if program is None:
            raise CommandError(f"{argv[0]} is not installed", fix=fix)
        if (status := run_program([program, *argv[1:]], environ=_ENVIRON)) != 0:
            raise CommandError(f"`{shlex.join(argv)}` ended with status {status}", status=status, fix=fix)


def _require_owner(path: Path, found: Stat, user: str, ids: tuple[int, int] | None) -> None:
    if found.kind is not FileKind.DIR:
        raise ConfigError("is not a directory", file=str(path), fix="move it away")
    if ids is None or found.uid != ids[0]:
        what = f"belongs to {name_of(found.uid)}, but its unit runs as {user}"
        raise ConfigError(what, file=str(path), fix=f"chown -R {user}: {path}")


def _ids_of(user: str) -> tuple[int, int] | None:
    """Return the ids of a user and its group; None if it does not exist."""
    import pwd

    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return None
    return entry.pw_uid, entry.pw_gid
