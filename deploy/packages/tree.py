"""Lay out the files of the packages as on a host, except libraries and generated pages."""

from __future__ import annotations

import os
from pathlib import Path

LIBRARIES = "/usr/lib/cert-ctrl"
OWN_PYTHON = f"{LIBRARIES}/python"
"""The interpreter of the packages that contain one; interpreter.py compiles it for this directory."""
PLUGINS = "/usr/local/lib/cert-ctrl/python"
UNITS = "usr/lib/systemd/system"
OTHER_UNITS = ("cert-ctrl-root.service", "cert-ctrl-plain.service")
"""Units that an operator installs instead of cert-ctrl.service."""
LAUNCHER = '''\
#!{interpreter} -IS
"""Run cert-ctrl with its own libraries, not with others that are installed for this Python."""

import sys

sys.path += ["{libraries}", "{plugins}"]

from certctrl.__main__ import program

program()
'''

UNIT_FILES = {
    "cert-ctrl": (
        "cert-ctrl.service",
        "cert-ctrl@.service",
        "cert-ctrl-reload@.service",
        "cert-ctrl-helper.service",
        "cert-ctrl-helper.socket",
    ),
    "cert-ctrl-plane": ("cert-ctrl-plane.service", "cert-ctrl-plane.socket"),
}
EXAMPLES = {
    "cert-ctrl": (
        "alerts",
        "config",
        "services",
        "grafana/cert-ctrl.json",
        "prometheus/alerts.yml",
        "cert-ctrl-helper.json",
        *OTHER_UNITS,
    ),
    "cert-ctrl-plane": ("issuers", "grafana/cert-ctrl-plane.json", "prometheus/plane-alerts.yml"),
}
OPTIONS = """\
# Options of the control plane, see cert-ctrl-plane(1), for example:
#PLANE_OPTIONS=--listen 0.0.0.0:8443 --hostname plane.example.com --metrics 127.0.0.1:9465
"""


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file and the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def as_packaged(text: str) -> str:
    """Return the text of a unit with the path of the packaged program."""
    return text.replace("/usr/local/bin/cert-ctrl", "/usr/bin/cert-ctrl")


def interpreter(python: str, own: bool) -> str:
    """Return the path of the interpreter that runs the packaged program: its own, or the distribution's."""
    return f"{OWN_PYTHON if own else '/usr'}/bin/python{python}"


def lay_out(project: Path, package: str, root: Path, runs: str) -> None:
    """Write the files of one package below ``root``; ``runs`` is the path of the interpreter."""
    deploy = project / "deploy"
    for name in UNIT_FILES[package]:
        write(root / UNITS / name, as_packaged((deploy / name).read_text(encoding="utf-8")))
    users = deploy / "sysusers.d" / f"{package}.conf"
    write(root / "usr/lib/sysusers.d" / users.name, users.read_text(encoding="utf-8"))
    for name in EXAMPLES[package]:
        _copy(deploy / name, root / "doc/examples" / name)
    if package == "cert-ctrl":
        launcher = LAUNCHER.format(interpreter=runs, libraries=LIBRARIES, plugins=PLUGINS)
        write(root / "usr/bin/cert-ctrl", launcher, 0o755)
        rule = Path("polkit/50-cert-ctrl.rules")
        write(root / "etc/polkit-1/rules.d" / rule.name, (deploy / rule).read_text(encoding="utf-8"))
        for page in sorted((project / "docs").rglob("*.md")):
            _copy(page, root / "doc" / page.relative_to(project))
        _copy(project / "README.md", root / "doc/README.md")
    else:
        write(root / "etc/default/cert-ctrl-plane", OPTIONS)


def _copy(source: Path, target: Path) -> None:
    """Copy a file or a directory; units get the path of the packaged program."""
    if source.is_dir():
        for path in sorted(source.iterdir()):
            _copy(path, target / path.name)
    elif source.suffix == ".service":
        write(target, as_packaged(source.read_text(encoding="utf-8")))
    else:
        write(target, source.read_text(encoding="utf-8"), source.stat().st_mode & 0o755)


def settle(root: Path, date: int) -> None:
    """Give all files the modes that they have on a host, independent of the umask, and one time stamp."""
    for path in root.rglob("*"):
        program = path.is_dir() or (path.stat().st_mode & 0o100 and path.suffix != ".so")
        path.chmod(0o755 if program else 0o644)
        os.utime(path, (date, date))
