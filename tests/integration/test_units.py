"""The systemd files in deploy/: accepted by systemd's checkers, and as hardened as documented."""

from __future__ import annotations

import re
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted(path.name for path in DEPLOY.glob("*.service"))
EXPOSURE = {  # highest exposure level of systemd-analyze security, from 0 to 10
    "cert-ctrl.service": 1.5,
    "cert-ctrl@.service": 1.5,
    "cert-ctrl-reload@.service": 1.5,
    "cert-ctrl-helper.service": 1.5,
    "cert-ctrl-root.service": 2.8,
    "cert-ctrl-plane.service": 1.5,
}

pytestmark = pytest.mark.integration


def run(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def installed(tmp_path: Path) -> Callable[[str], Path]:
    """Copy a unit as on a host: with the program installed, and templates with an instance name."""
    program = tmp_path / "cert-ctrl"
    program.write_text("#!/bin/sh\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)

    def install(name: str) -> Path:
        text = (DEPLOY / name).read_text(encoding="utf-8").replace("/usr/local/bin/cert-ctrl", str(program))
        copy = tmp_path / name.replace("@.", "@nginx.")
        copy.write_text(text, encoding="utf-8")
        return copy

    return install


@pytest.mark.parametrize("name", UNITS)
def test_systemd_accepts_every_line(name: str, need: Callable[[str], str], installed: Callable[[str], Path]) -> None:
    unit = installed(name)
    done = run(need("systemd-analyze"), "verify", "--man=no", "--recursive-errors=no", unit)
    # warnings, such as an unknown key, come with status 0: any line that names the unit is a finding
    findings = [line for line in done.stderr.splitlines() if unit.name in line and "nginx.service" not in line]
    assert (done.returncode, findings) == (0, []), done.stderr


def test_verify_finds_an_unknown_key(need: Callable[[str], str], installed: Callable[[str], Path]) -> None:
    unit = installed("cert-ctrl.service")
    unit.write_text(unit.read_text().replace("ProtectHome=yes", "ProtectHone=yes"))
    done = run(need("systemd-analyze"), "verify", "--man=no", "--recursive-errors=no", unit)
    assert any(unit.name in line and "ProtectHone" in line for line in done.stderr.splitlines())


@pytest.mark.parametrize("name", sorted(EXPOSURE))
def test_exposure_is_low(name: str, need: Callable[[str], str], installed: Callable[[str], Path]) -> None:
    done = run(need("systemd-analyze"), "security", "--offline=true", "--no-pager", installed(name))
    found = re.search(r"Overall exposure level for \S+: (\d+\.\d+)", done.stdout)
    assert found, done.stderr
    assert float(found[1]) <= EXPOSURE[name]


def test_every_hardened_unit_has_a_limit() -> None:
    assert set(UNITS) - set(EXPOSURE) == {"cert-ctrl-plain.service"}


@pytest.mark.parametrize(("name", "home"), [("cert-ctrl", "/etc"), ("cert-ctrl-plane", "/var/lib")])
def test_sysusers_makes_the_user(need: Callable[[str], str], tmp_path: Path, name: str, home: str) -> None:
    (tmp_path / "etc").mkdir()
    done = run(need("systemd-sysusers"), f"--root={tmp_path}", DEPLOY / "sysusers.d" / f"{name}.conf")
    assert done.returncode == 0, done.stderr
    user = next(line for line in (tmp_path / "etc/passwd").read_text().splitlines() if line.startswith(f"{name}:"))
    assert user.split(":")[5] == f"{home}/{name}"
    assert user.endswith("nologin")


@pytest.mark.root
def test_tmpfiles_makes_a_private_directory(need: Callable[[str], str], tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    assert run(need("systemd-sysusers"), f"--root={tmp_path}", DEPLOY / "sysusers.d" / "cert-ctrl.conf").returncode == 0
    done = run(need("systemd-tmpfiles"), "--create", f"--root={tmp_path}", DEPLOY / "tmpfiles.d" / "cert-ctrl.conf")
    assert done.returncode == 0, done.stderr
    made = (tmp_path / "etc/cert-ctrl").stat()
    uid = next(
        line.split(":")[2] for line in (tmp_path / "etc/passwd").read_text().splitlines() if "cert-ctrl:" in line
    )
    assert (stat.S_IMODE(made.st_mode), made.st_uid) == (0o700, int(uid))
