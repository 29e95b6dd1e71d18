"""All checks of the project; each session installs what it needs.

``nox`` runs the gate: lint, types, tests, integration. ``nox -l`` lists the other sessions. Interpreters that are not
installed are skipped, never downloaded.
"""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = False  # one installed Python is enough, even under CI=true
nox.options.sessions = ["lint", "types", "tests", "integration"]
os.environ.setdefault("UV_PYTHON_DOWNLOADS", "never")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each of thousands of processes would compile all modules again

SUPPORTED = ("3.11", "3.12", "3.13")
HERE = platform.python_version().rpartition(".")[0]
PYTHONS = [*SUPPORTED, *([HERE] if HERE not in SUPPORTED else [])]
WORKERS = str(min(4, os.cpu_count() or 1))
LOCKS = Path("deploy/packages/requirements")
FLAVOURS = [
    *(nox.param(version, False, id=f"python{version}") for version in SUPPORTED),
    nox.param("3.13", True, id="own"),
]
"""The Python that the packages are for, and whether they contain it (deploy/packages/interpreter.py has the version)."""
HANGS = ("--timeout-method", "thread")
"""Timeouts end the worker: after a signal, hypothesis would run a property that hangs once more."""
ONCE = [
    *(f"tests/simulation/test_{name}.py" for name in ("teeth", "hostile_planes", "fleet")),
    *(f"tests/test_{name}.py" for name in ("architecture", "evidence", "references", "deploy")),
    *(f"tests/{path}" for path in ("compat", "mutants", "store/test_crash_mutants.py")),
]
"""Tests that one Python is enough for: of the wire contract, of a fleet's load, of other tests, and of the text of files."""


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting with ruff."""
    session.install(*requirements("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with strict mypy, also of the fakes and helpers of tests."""
    session.install("-e", ".[dev,types]")
    session.run("mypy")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests that need no services, real time or root."""
    session.install("-e", ".[dev]")
    args = session.posargs or ["-n", WORKERS, "--dist", "worksteal", *HANGS]
    env: dict[str, str] = {}
    if session.python != HERE:  # one full run is enough
        env = {"CERTCTRL_TEST_HISTORIES": "50", "CERTCTRL_TEST_EXAMPLES": "25"}
        args = [*args, *(f"--ignore={path}" for path in ONCE)]
    session.run("pytest", "-m", "not integration and not campaign", *args, env=env)


@nox.session
def integration(session: nox.Session) -> None:
    """Run against real processes, sockets and services; skips missing ones, or fails with CERTCTRL_REQUIRE_REAL."""
    session.install("-e", ".[dev]", "--group", "packages")
    args = session.posargs or ["-n", WORKERS, "--dist", "loadfile"]  # they mostly wait; a file shares its servers
    session.run("pytest", "-m", "integration and not campaign", *args)


@nox.session
def compat(session: nox.Session) -> None:
    """Run each pair of an older and a newer peer, for each feature; the tests run a sample."""
    session.install("-e", ".[dev]")
    session.run("pytest", "tests/compat", "-m", "campaign or not campaign", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Compare the product with its floors; arguments go to ``tests/bench/run.py``."""
    session.install(".[dev]")
    session.run("python", "tests/bench/run.py", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """Run ``cert-ctrl sandbox`` with the given arguments."""
    session.install(".[plane]")
    session.run("cert-ctrl", "sandbox", *session.posargs)


@nox.session
def crash(session: nox.Session) -> None:
    """Kill, fail and cut the power at every syscall; needs root, strace and, for power cuts, loop devices."""
    session.install("-e", ".[dev]")
    session.run("pytest", "tests/crash", "-m", "root or campaign", *session.posargs)


@nox.session
def model(session: nox.Session) -> None:
    """Crash every protocol of the store in every way that the disk model allows."""
    session.install("-e", ".[dev]")
    session.run("pytest", "tests/store/test_crash_states.py", "-m", "campaign", *session.posargs)


@nox.session
def hostile(session: nox.Session) -> None:
    """Run 100 000 hostile plans, all hostile answers and planes; deploy into a directory under attack (needs root)."""
    session.install("-e", ".[dev]")
    files = ["tests/install/test_hostile.py", "tests/store/deployments/test_file_set_refused.py"]
    files += ["tests/bench/test_hostile.py", "tests/simulation/test_hostile_planes.py"]
    files += ["tests/simulation/test_scenarios_priorities.py"]
    session.run("pytest", *files, "-m", "campaign", *session.posargs)


@nox.session
def race(session: nox.Session) -> None:
    """Refresh one token from eight processes that are killed at random."""
    session.install("-e", ".[dev]")
    session.run("pytest", "tests/agent/test_token_race.py", "-m", "campaign", *session.posargs)


@nox.session
def services(session: nox.Session) -> None:
    """Renew 50 times under load for each recipe in deploy/services (needs root and the services)."""
    session.install("-e", ".[dev]")
    args = session.posargs or ["-s", "--timeout", "1800"]
    session.run("pytest", "tests/integration", "-k", "test_service_", "-m", "campaign", *args)


@nox.session
def daemon(session: nox.Session) -> None:
    """Kill daemons and planes 100 times each; count the connections of 100 long-polls; renew 1 200 times."""
    session.install("-e", ".[dev]")
    files = [f"tests/integration/test_{name}.py" for name in ("kill", "connections", "directory")]
    session.run("pytest", *files, "-m", "campaign", *(session.posargs or ["-s", "--timeout", "3600"]))


@nox.session
def issuers(session: nox.Session) -> None:
    """Renew by ARI in the sandbox, and issue by OpenBao, whose third-party package has 170 MiB."""
    session.install("-e", ".[dev,openbao]")
    files = ["tests/integration/test_issuer_commands.py", "tests/integration/test_sandbox.py"]
    session.run("pytest", *files, "-m", "campaign", *session.posargs)


@nox.session
def planes(session: nox.Session) -> None:
    """Kill three planes, PostgreSQL and its connections at random, and fail over to a standby, during 1 000 appends."""
    session.install("-e", ".[dev]")
    files = [f"tests/integration/test_{name}.py" for name in ("planes_killed", "standby")]
    session.run("pytest", *files, "-m", "campaign", *(session.posargs or ["-s", "--timeout", "3600"]))


@nox.session
def herd(session: nox.Session) -> None:
    """Stop and restart a plane with 10 000 waiting agents, then renew the certificate of all."""
    session.install("-e", ".[dev]")
    session.run("pytest", "tests/bench/test_fleet.py", "-m", "campaign", *(session.posargs or ["-s"]))


@nox.session
def simulation(session: nox.Session) -> None:
    """Run 100 000 random histories of the whole agent under a virtual clock."""
    session.install("-e", ".[dev]")
    env = {"CERTCTRL_TEST_HISTORIES": os.environ.get("CERTCTRL_TEST_HISTORIES", "100000")}
    args = session.posargs or ["-n", WORKERS]
    session.run("pytest", "tests/simulation", "-m", "not integration", "--timeout", "0", *args, env=env)


@nox.session
def bad_days(session: nox.Session) -> None:
    """Halt rollouts to 1 000 virtual devices at their limit, while a plane is lost and a certificate is revoked."""
    session.install("-e", ".[dev]")
    args = session.posargs or ["-s", "-n", WORKERS, "--timeout", "0"]
    session.run("pytest", "tests/simulation/test_bad_day.py", "-m", "campaign", *args)


@nox.session
def watched(session: nox.Session) -> None:
    """Watch rollouts over 50 real agents, to an end and to a halt, in Chromium; pictures of the page go to dist/watched."""
    session.install("-e", ".[dev]")
    pictures = Path(os.environ.get("CERTCTRL_TEST_PICTURES") or "dist/watched").absolute()
    pictures.mkdir(parents=True, exist_ok=True)
    env = {"CERTCTRL_TEST_WATCHED": "50", "CERTCTRL_TEST_PICTURES": str(pictures)}
    args = session.posargs or ["-s", "--timeout", "0"]
    session.run("pytest", "tests/integration/test_rollout_watched.py", *args, env=env)


@nox.session
def mutants(session: nox.Session) -> None:
    """Change one expression of a package at a time, such as install/plan: its own tests must notice."""
    session.install("-e", ".[dev,types,mutants]")
    session.run("python", "tests/mutants/run.py", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Run plane, agent and service together for an hour; succeeds if the sandbox does."""
    session.install(".[plane]")
    args = session.posargs or ["--duration", "3600", "--certs", "5"]
    session.run("cert-ctrl", "sandbox", "--json", *args)


@nox.session
@nox.parametrize("python,own", FLAVOURS)
def packages(session: nox.Session, own: bool) -> None:
    """Build .deb and .rpm into dist/; set up, upgrade, remove and purge them in a Debian with systemd (needs root).

    One package per Python of a distribution, and one with an interpreter; `nox -s "packages(own)"` makes one of them.
    CERTCTRL_PACKAGES_CACHE names a directory to keep roots and the interpreter in.
    """
    session.install("-e", ".[dev]")
    session.install("-r", str(LOCKS / "build.txt"))
    session.run("python", "-m", "hatchling", "build", "-d", "dist", silent=True)
    made = Path("dist") / ("own-python" if own else f"python{session.python}")
    cache = Path(os.environ.get("CERTCTRL_PACKAGES_CACHE") or session.create_tmp())
    env, options = {"CERTCTRL_TEST_PACKAGES": str(made), "CERTCTRL_TEST_TRANSCRIPTS": str(made / "transcripts")}, []
    if own:
        recipe = LOCKS.parent / "interpreter.py"
        name = f"interpreter-{hashlib.sha256(recipe.read_bytes()).hexdigest()[:8]}.tar"  # another recipe, another interpreter
        env["CERTCTRL_TEST_INTERPRETER"] = str((cache / name).absolute())
        session.run("python", str(recipe), env["CERTCTRL_TEST_INTERPRETER"])
        options = ["--interpreter", env["CERTCTRL_TEST_INTERPRETER"]]
    session.run("python", str(LOCKS.parent / "build.py"), "dist", *options)
    args = session.posargs or ["-s", "--timeout", "3600"]
    files = [f"tests/integration/test_{name}.py" for name in ("packages_installed", "wheel")]
    session.run("pytest", *files, *args, env=env)


@nox.session
def images(session: nox.Session) -> None:
    """Build the single file and the container images into dist/; run them, in the Compose example and in pods (needs root)."""
    session.install("-e", ".[dev]")
    session.install("-r", str(LOCKS / "build.txt"), "podman-compose")
    session.run("python", "deploy/singlefile/build.py", "dist")
    session.run("python", "deploy/images/build.py", "dist/images")
    args = session.posargs or ["-s", "--timeout", "3600"]
    session.env["CERTCTRL_TEST_IMAGES"] = str(Path("dist/images").resolve())
    session.run("pytest", "tests/integration/test_images.py", "-m", "campaign", *args)


@nox.session
def helper(session: nox.Session) -> None:
    """Let the packaged root helper work for the services of the recipes in a Debian with systemd (needs root)."""
    session.install("-e", ".[dev]")
    session.install("-r", str(LOCKS / "build.txt"))
    args = session.posargs or ["-s", "--timeout", "3600"]
    session.run("pytest", "tests/integration/test_helper_booted.py", "-m", "campaign", *args)


@nox.session
def locks(session: nox.Session) -> None:
    """Write what packages and the gate install anew, with the newest releases that ``pyproject.toml`` allows."""
    session.install("uv")
    always = ["--python-version", SUPPORTED[0], "--generate-hashes", "--no-emit-index-url", "--upgrade"]
    always += ["--custom-compile-command", "nox -s locks", "--no-annotate", "--quiet"]
    common = ["--python-platform", "linux", *always]
    # twofish is a source only, for keystores that certctrl does not make; psycopg finds the libpq of the distribution.
    without = ["--no-emit-package", "twofish", "--no-emit-package", "psycopg-binary"]
    compile_ = ("uv", "pip", "compile", "pyproject.toml", *common)
    agent, plane, build = (str(LOCKS / f"{name}.txt") for name in ("agent", "plane", "build"))
    session.run("uv", "pip", "compile", *common, "--group", "packages", "-o", build, silent=True)
    extras = ["--extra", "metrics", "--extra", "jks"]
    session.run(*compile_, *extras, *without, "-o", agent, silent=True)
    for line in Path(agent).read_text(encoding="utf-8").splitlines():
        if "==" in line:
            without += ["--no-emit-package", line.partition("==")[0]]
    extras += ["--extra", "plane-postgres", "--constraint", agent]
    session.run(*compile_, *extras, *without, "-o", plane, silent=True)
    gate = ("uv", "pip", "compile", *always, "--universal")  # for all Pythons and machines
    session.run(*gate, "--group", "nox", "-o", ".ci/nox.txt", silent=True)
    of_gate = [word for extra in ("dev", "lint", "types") for word in ("--extra", extra)]
    same = [word for lock in (agent, plane, build) for word in ("--constraint", lock)]  # versions as in the packages
    session.run(
        *gate, "pyproject.toml", *of_gate, "--group", "packages", *same, "-o", ".ci/constraints.txt", silent=True
    )


def requirements(extra: str) -> list[str]:
    """Return the requirements of an extra, to install them without the project."""
    return nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"][extra]
