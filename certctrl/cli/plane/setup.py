"""``plane setup``: everything from an installed program to a control plane that runs, and the line for its hosts."""

from __future__ import annotations

import os
import re
import shlex
import socket
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import attrs
import typer

from certctrl import lean
from certctrl.cli.owner import become_owner
from certctrl.cli.plane.addresses import DEFAULT_LISTEN, parse_listen
from certctrl.cli.plane.connection import DATA_VARIABLE
from certctrl.cli.plane.database import needed_modules
from certctrl.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from certctrl.cli.host import Host, Place, Unit

OPTIONS_FILE = Path("/etc/default/cert-ctrl-plane")
VARIABLE = "PLANE_OPTIONS"
ALL_ADDRESSES = "0.0.0.0:8443"
_MAX_BYTES = 65_536


@lean.frozen(kw_only=True)
class _Serving:
    """How the control plane is served."""

    listen: str
    hostnames: tuple[str, ...]
    public_url: str = ""
    """The URL for hosts, if the options have another one than follows from the rest."""

    def options(self) -> list[str]:
        """Return the options of `plane serve`."""
        names = [word for name in self.hostnames for word in ("--hostname", name)]
        return ["--listen", self.listen, *names]

    def url(self) -> str:
        """Return the URL for hosts."""
        if self.public_url:
            return self.public_url.rstrip("/")
        from certctrl.plane.tls import host_for_url

        host, port = parse_listen(self.listen)
        return f"https://{host_for_url(host, self.hostnames)}:{port}"


Data = Annotated[
    str | None,
    typer.Option("--data", metavar="DIR", help=f"Data directory; also ${DATA_VARIABLE}; default: that of the unit."),
]
Hostnames = Annotated[
    list[str] | None,
    typer.Option(
        "--hostname", metavar="NAME", help="DNS name or address that hosts use; may be repeated; default: asked for."
    ),
]
Listen = Annotated[
    str | None, typer.Option("--listen", metavar="HOST:PORT", help=f"Address to listen on; default: {ALL_ADDRESSES}.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done; change and ask nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print what was done, URL and fingerprint as JSON.")]


def setup(
    data: Data = None,
    hostname: Hostnames = None,
    listen: Listen = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Set a control plane up on this machine.

    Run by root, creates the user cert-ctrl-plane and /var/lib/cert-ctrl-plane, writes /etc/default/cert-ctrl-plane, and
    enables and starts cert-ctrl-plane.service. Without systemd, or with --data for another directory, prints the command
    to run. Then prints the line to paste on each host: URL and fingerprint of the CA, without any secret.

    Running it again changes only what is missing, and prints that line again. It never overwrites other options in
    /etc/default/cert-ctrl-plane. Exit status 2 if the host name is not given and cannot be asked for.

    \b
    cert-ctrl plane setup --hostname plane.example.com
    cert-ctrl plane setup --data ./plane --hostname localhost \\
        --listen 127.0.0.1:8443
    """
    from certctrl.cli.host import PLANES_DIRECTORY, Host, find_unit, place_of

    with needed_modules("plane"):
        import certctrl.plane.core  # noqa: F401 - before anything is changed

    host = Host(dry_run=dry_run, as_json=as_json)
    directory = os.path.abspath(data or os.environ.get(DATA_VARIABLE) or PLANES_DIRECTORY)
    place = place_of(directory) if directory == PLANES_DIRECTORY else None
    if place is not None and not host.is_root and not dry_run:
        fix = "run as root, or choose another directory with --data"
        raise UsageError(f"only root can set up {directory}", fix=fix)
    unit = None if place is None else find_unit(place.unit)
    kept = _kept_options() if unit is not None and unit.is_installed else None
    serving = _chosen(host, hostname or (), listen, kept)
    if place is not None:
        host.make_place(place, unit)
    _start(host, place, unit, serving, directory, kept)
    _print_line(host, directory, serving)


def _chosen(host: Host, hostnames: Sequence[str], listen: str | None, kept: _Serving | None) -> _Serving:
    """Return the options given, kept in the file of the unit, or the operator's answers. Raises UsageError."""
    parse_listen(listen or ALL_ADDRESSES)
    if kept is not None and not hostnames:
        return attrs.evolve(kept, listen=listen or kept.listen)
    names = tuple(map(_checked_name, hostnames or [_asked_name(host)]))
    if kept is not None:
        return attrs.evolve(kept, listen=listen or kept.listen, hostnames=names)
    return _Serving(listen=listen or ALL_ADDRESSES, hostnames=names)


def _asked_name(host: Host) -> str:
    if host.dry_run:
        return socket.getfqdn()
    if not sys.stdin.isatty():
        raise UsageError("no host name given, and stdin is not a terminal", fix="add --hostname NAME")
    return str(typer.prompt("Name by which hosts reach this machine", default=socket.getfqdn(), err=True)).strip()


def _checked_name(name: str) -> str:
    """Return the canonical form of a name for the certificate. Raises UsageError."""
    from certctrl.plane.ca.domains import clean_name
    from certctrl.plane.errors import ErrorResponse

    try:
        return clean_name(name)
    except ErrorResponse as error:
        raise UsageError(
            f"--hostname {name!r}: {error.what}", fix="use a DNS name or an address of this machine"
        ) from None


def _kept_options() -> _Serving | None:
    """Return the options that the unit's file has; None without any. Raises ConfigError."""
    from certctrl.store.disk.atomic import read_bytes
    from certctrl.store.disk.fs import RealFs

    text = (read_bytes(RealFs(), OPTIONS_FILE, _MAX_BYTES) or b"").decode("utf-8", "replace")
    lines = [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{VARIABLE}=")]
    if not lines:
        return None
    words = lines[-1].strip("\"' ").replace("=", " ").split()
    values = {name: [b for a, b in pairwise(words) if a == name] for name in ("--listen", "--hostname", "--public-url")}
    return _Serving(
        listen=(values["--listen"] or [DEFAULT_LISTEN])[-1],
        hostnames=tuple(values["--hostname"]),
        public_url=(values["--public-url"] or [""])[-1],
    )


def _start(
    host: Host, place: Place | None, unit: Unit | None, serving: _Serving, directory: str, kept: _Serving | None
) -> None:
    """Write the options of the unit and start it; without a unit, print the command."""
    words = ["cert-ctrl", "plane", "serve", "--data", directory, *serving.options()]
    if unit is not None and unit.is_installed:
        if kept is None and re.search(rf'{VARIABLE}=[^\s"]', unit.environment):
            fix = f"move them to {OPTIONS_FILE}, in a line {VARIABLE}=…"
            raise ConfigError(f"a drop-in of {unit.name} sets {VARIABLE}", file=str(OPTIONS_FILE), fix=fix)
        if kept is None:
            _write_options(host, serving)
        elif kept != serving:
            what = f"has other options: {' '.join(kept.options())}"
            raise ConfigError(what, file=str(OPTIONS_FILE), fix=f"edit it, then run systemctl restart {unit.name}")
        else:
            host.report("options", f"{OPTIONS_FILE} is kept")
    host.start(unit, place, shlex.join(words), restart=kept is None)


def _write_options(host: Host, serving: _Serving) -> None:
    from certctrl.store.disk.atomic import read_bytes, write_atomic
    from certctrl.store.disk.fs import RealFs
    from certctrl.store.layout import PUBLIC_MODE

    fs, line = RealFs(), f"{VARIABLE}={' '.join(serving.options())}"
    if not host.dry_run:
        if fs.lstat(OPTIONS_FILE.parent) is None:
            fs.mkdir(OPTIONS_FILE.parent, 0o755)
        before = read_bytes(fs, OPTIONS_FILE, _MAX_BYTES) or b""  # other variables, and the comments of a package
        before += b"" if before.endswith(b"\n") or not before else b"\n"
        write_atomic(fs, OPTIONS_FILE, before + f"{line}\n".encode(), mode=PUBLIC_MODE, keep_attributes=True)
    host.report("options", f"{OPTIONS_FILE}: {line}", f"{OPTIONS_FILE} would be written: {line}")


def _print_line(host: Host, directory: str, serving: _Serving) -> None:
    """Print the command for the hosts; creates the CA if the control plane has not run yet."""
    data = Path(directory)
    fingerprint = "SHA256" if host.dry_run else _fingerprint(data)
    words = ["cert-ctrl", "setup", "--server", serving.url(), "--ca-fingerprint", fingerprint]
    token = shlex.join(["cert-ctrl", "plane", "enrolment-token", "--data", directory])
    host.report("hosts", f"paste on each: {shlex.join(words)}")
    host.report("", f"it asks for a token ({token}), or shows a code to approve at {serving.url()}/device")
    host.finish(url=serving.url(), ca_sha256=fingerprint)


def _fingerprint(data: Path) -> str:
    """Return the fingerprint of the CA, as the owner of the data directory."""
    from certctrl.agent.plane_anchor import fingerprints
    from certctrl.cli.runtime import run
    from certctrl.store.disk.atomic import read_bytes
    from certctrl.store.disk.fs import RealFs

    become_owner(data)
    ca = data / "ca.pem"
    pem = read_bytes(RealFs(), ca, _MAX_BYTES)
    if pem is None:
        run(_create, data)
        pem = read_bytes(RealFs(), ca, _MAX_BYTES)
    found = fingerprints(pem or b"")
    if not found:
        raise ConfigError(
            "contains no certificate in PEM", file=str(ca), fix="restart the control plane, which writes it"
        )
    return found[0]


async def _create(data: Path) -> None:
    """Create database, keys and CA, as the first start does."""
    from certctrl.plane.core import Plane

    Plane.open(data).close()
