"""Every check of the project; nothing runs outside a session, and each session sets itself up.

``nox`` alone runs the gate: lint, types, tests, integration. Further sessions: ``bench``, ``demo``, ``crash``,
``daemon``, ``services``, ``simulation``, ``soak``, ``package``. Interpreters that are not installed are skipped, never downloaded.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = False  # a machine with one Python still gets a verdict, also under CI=true
nox.options.sessions = ["lint", "types", "tests", "integration"]
os.environ.setdefault("UV_PYTHON_DOWNLOADS", "never")

SUPPORTED = ("3.11", "3.12", "3.13")
HERE = platform.python_version().rpartition(".")[0]
PYTHONS = [*SUPPORTED, *([HERE] if HERE not in SUPPORTED else [])]
WORKERS = str(min(4, os.cpu_count() or 1))
HANGS = ("--timeout-method", "thread")
"""End the worker: after a signal, hypothesis would only try a property that loops once more."""


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format with ruff."""
    session.install(*requirements("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy strict."""
    session.install("-e", ".[plane,metrics,jks,types]")
    session.run("mypy")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run everything that needs no service, no real time and no root."""
    session.install("-e", ".[dev]")
    args = session.posargs or ["-n", WORKERS, "--dist", "worksteal", *HANGS]
    env = {} if session.python == HERE else {"CERTCTRL_TEST_HISTORIES": "100"}  # a thousand once is enough
    session.run("pytest", "-m", "not integration and not campaign", *args, env=env)


@nox.session
def integration(session: nox.Session) -> None:
    """Run against real processes, sockets and services; what is not installed is skipped, or fails under CI."""
    session.install("-e", ".[dev]")
    session.run("pytest", "-m", "integration and not campaign", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure the product beside its floors in the same run; arguments go to ``tests/bench/run.py``."""
    session.install(".[dev]")
    session.run("python", "tests/bench/run.py", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """Show a certificate issued, delivered, served, renewed and revoked; arguments go to ``cert-ctrl sandbox``."""
    session.install(".[plane]")
    session.run("cert-ctrl", "sandbox", *session.posargs)


@nox.session
def crash(session: nox.Session) -> None:
    """Kill, starve and cut the power at every syscall; needs root, strace and, for power cuts, loop devices."""
    session.install("-e", ".[dev]")
    session.run("pytest", "tests/crash", "-m", "root or campaign", *session.posargs)


@nox.session
def model(session: nox.Session) -> None:
    """Crash every protocol of the store in every way that a model of the disk knows."""
    session.install("-e", ".[dev]")
    session.run("pytest", "tests/store/test_crash_states.py", "-m", "campaign", *session.posargs)


@nox.session
def hostile(session: nox.Session) -> None:
    """Obey 100 000 hostile plans; deploy for a minute into a directory that another user attacks (as root)."""
    session.install("-e", ".[dev]")
    files = ["tests/install/test_hostile.py", "tests/store/deployments/test_file_set_refused.py"]
    session.run("pytest", *files, "-m", "campaign", *session.posargs)


@nox.session
def race(session: nox.Session) -> None:
    """Refresh one token from eight processes that are killed at random."""
    session.install("-e", ".[dev]")
    session.run("pytest", "tests/agent/test_token_race.py", "-m", "campaign", *session.posargs)


@nox.session
def services(session: nox.Session) -> None:
    """Renew 50 times under load at each service of deploy/services (as root, with the services installed)."""
    session.install("-e", ".[dev]")
    args = session.posargs or ["-s", "--timeout", "1800"]
    session.run("pytest", "tests/integration", "-k", "test_service_", "-m", "campaign", *args)


@nox.session
def daemon(session: nox.Session) -> None:
    """Kill daemons and planes 100 times each; count the connections of 100 long polls; live through 1 200 renewals."""
    session.install("-e", ".[dev]")
    files = [f"tests/integration/test_{name}.py" for name in ("kill", "connections", "directory")]
    session.run("pytest", *files, "-m", "campaign", *(session.posargs or ["-s", "--timeout", "3600"]))


@nox.session
def simulation(session: nox.Session) -> None:
    """Run 100 000 random histories of the whole agent under a virtual clock."""
    session.install("-e", ".[dev]")
    env = {"CERTCTRL_TEST_HISTORIES": os.environ.get("CERTCTRL_TEST_HISTORIES", "100000")}
    args = session.posargs or ["-n", WORKERS]
    session.run("pytest", "tests/simulation", "-m", "not integration", "--timeout", "0", *args, env=env)


@nox.session
def soak(session: nox.Session) -> None:
    """Let plane, agent and service run together for an hour; the sandbox's verdict is ours."""
    session.install(".[plane]")
    args = session.posargs or ["--duration", "3600", "--certs", "5"]
    session.run("cert-ctrl", "sandbox", "--json", *args)


@nox.session
def package(session: nox.Session) -> None:
    """Build sdist and wheel, install the wheel alone, and start it."""
    out = Path(session.create_tmp()) / "dist"
    session.install("build")
    session.run("python", "-m", "build", "--outdir", str(out), silent=True)
    wheel = max(out.glob("*.whl"), key=lambda path: path.stat().st_mtime)
    session.install("--force-reinstall", str(wheel))
    session.chdir(out)
    session.run("cert-ctrl", "--version")


def requirements(extra: str) -> list[str]:
    """Return the requirements of one extra, so that ruff is installed without installing the project."""
    return nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"][extra]
