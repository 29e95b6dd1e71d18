"""The command line as a whole: commands, imports, the position of ``-c``, usage errors."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import certctrl
from certctrl.cli.app import COMMANDS, load
from certctrl.store.layout import ConfigDir

from .conftest import Ran

PYTHON = [sys.executable, "-m", "certctrl"]


def program(*argv: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the program in a process."""
    return subprocess.run(
        [*PYTHON, *map(str, argv)], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, **env, "PYTHONPATH": str(Path(certctrl.__file__).parent.parent)},
    )  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_the_help_line_of_the_table(name: str) -> None:
    command = load(name, COMMANDS[name])
    assert command.name == name
    said = inspect.cleandoc(command.help).splitlines()[0]
    assert said == COMMANDS[name].about


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("plane", "config", "policy", "trust")])
def test_each_help_has_an_example(name: str) -> None:
    assert f"cert-ctrl {'' if name == 'sandbox' else '-c /etc/cert-ctrl '}{name}" in load(name, COMMANDS[name]).help


def test_help_lists_every_command(ran: Callable[..., Ran]) -> None:
    done = ran("--help")
    assert done.status == 0 and not done.err
    assert all(f"\n  {name} " in done.out for name in COMMANDS)


def test_version_with_and_without_the_parser(ran: Callable[..., Ran]) -> None:
    line = f"cert-ctrl {certctrl.__version__}\n"
    assert ran("--version") == (0, line, "")
    assert ran("--version", "--debug") == (0, line, "")
    assert program("--version").stdout == line


def test_no_command_prints_help_and_is_a_usage_error(ran: Callable[..., Ran]) -> None:
    done = ran()
    assert done.status == 2 and not done.out
    assert done.err.startswith("Usage: cert-ctrl")


@pytest.mark.parametrize(
    ("argv", "error", "fix"),
    [
        (["stauts"], "No such command 'stauts'. Did you mean status?", "run `cert-ctrl --help`"),
        (["status", "--nope"], "No such option: --nope", "run `cert-ctrl status --help`"),
        (["renew"], "Missing option '--domain'.", "run `cert-ctrl renew --help`"),
        (["status"], "no config directory given", "add -c DIR, for example -c /etc/cert-ctrl"),
        (["--keep-running"], "no config directory given", "add -c DIR, for example -c /etc/cert-ctrl"),
        (
            ["--keep-running", "status"],
            "--keep-running cannot be combined with the command 'status'.",
            "run `cert-ctrl --help`",
        ),
        (["-c"], "Option '-c' requires an argument.", "run `cert-ctrl --help`"),
    ],
)
def test_usage_errors_are_two_lines(argv: list[str], error: str, fix: str, ran: Callable[..., Ran]) -> None:
    assert ran(*argv) == (2, "", f"cert-ctrl: error: {error}\nfix: {fix}\n")


def test_a_missing_directory(ran: Callable[..., Ran], tmp_path: Path) -> None:
    done = ran("-c", tmp_path / "no", "status")
    assert done.status == 78
    assert done.err == (
        f"cert-ctrl: error: {tmp_path}/no: no such directory\nfix: cert-ctrl -c {tmp_path}/no init --server URL\n"
    )


@pytest.mark.parametrize("command", ["list-certs", "history", "policy show", "policy allow path /srv/x --yes", "plan"])
def test_another_directory_is_not_treated_as_an_empty_host(
    command: str, ran: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "passwd").touch()
    done = ran("-c", tmp_path, *command.split())
    assert (done.status, done.out) == (78, "") and "is not a config directory" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["passwd"]
    assert ran("-c", "", *command.split()).status == 2, "an empty value does not mean the working directory"
    monkeypatch.setenv("CERTCTRL_SERVER_URL", "https://plane.example")
    assert ran("-c", tmp_path, "list-certs").status == 0, "all settings may come from the environment"


@pytest.mark.parametrize("order", ["before", "after", "long", "attached", "twice"])
def test_the_directory_option_is_accepted_before_and_after_the_command(
    order: str, layout: ConfigDir, ran: Callable[..., Ran]
) -> None:
    argv = {
        "before": ["-c", layout.root, "list-certs"],
        "after": ["list-certs", "-c", layout.root],
        "long": ["list-certs", f"--config-dir={layout.root}"],
        "attached": [f"-c{layout.root}", "list-certs"],
        "twice": ["-c", "/nonexistent", "list-certs", "-c", layout.root],
    }[order]
    assert ran(*argv) == (0, "No certificates on this host yet.\n", "")


def test_the_directory_option_is_accepted_after_a_subcommand(layout: ConfigDir, ran: Callable[..., Ran]) -> None:
    assert ran("config", "check", "-c", layout.root).status == 0
    assert ran("config", "-c", layout.root, "check").status == 2, "a group does not take options of its commands"


def test_arguments_after_two_dashes_are_not_options(layout: ConfigDir, ran: Callable[..., Ran]) -> None:
    done = ran("-c", layout.root, "policy", "allow", "command", "--yes", "--", "/usr/bin/true", "-c", "/elsewhere")
    assert done.status == 0
    assert "/usr/bin/true -c /elsewhere" in ran("-c", layout.root, "policy", "show").out


def loaded_by(*argv: object) -> set[str]:
    """Return the modules that a command imports in a new process."""
    code = (
        "import sys; sys.argv[0] = 'cert-ctrl'\n"
        "from certctrl.__main__ import main\n"
        "main()\n"
        "print('loaded', *sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, argv)], capture_output=True, text=True, timeout=60, check=False
    )
    return set(done.stderr.splitlines()[-1].split()[1:])


def test_status_imports_only_its_own_command(layout: ConfigDir) -> None:
    loaded = loaded_by(f"--config-dir={layout.root}", "status")
    commands = {name for name in loaded if name.startswith("certctrl.cli.commands.")}
    assert commands == {"certctrl.cli.commands.status"}
    heavy = {"trio", "httpx", "attr", "attrs", "cryptography", "rich", "jwt", "logging", "asyncio"}
    assert not heavy & loaded, "status must start fast"


def test_list_certs_imports_nothing_heavy(layout: ConfigDir) -> None:
    heavy = {"trio", "httpx", "attr", "cryptography", "rich", "logging"}
    assert not heavy & loaded_by(f"--config-dir={layout.root}", "list-certs")
    assert not (heavy | {"typer", "inspect"}) & loaded_by("-c", layout.root, "list-certs"), (
        "list-certs does not need the parser"
    )


def test_a_closed_pipe_is_not_an_error(layout: ConfigDir) -> None:
    command = " ".join([*PYTHON, "-c", str(layout.root), "config", "show"])
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -1; exit ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(certctrl.__file__).parent.parent)},
    )  # fmt: skip
    assert done.stdout.startswith("application.server_url")
    assert done.stderr == ""


def test_shell_completion_offers_the_commands() -> None:
    done = program(_CERT_CTRL_COMPLETE="complete_bash", COMP_WORDS="cert-ctrl li", COMP_CWORD="1")
    assert "list-certs" in done.stdout.split()


def test_the_program_ends_with_the_exit_status(layout: ConfigDir) -> None:
    assert program("-c", layout.root, "status").returncode == 77
    assert program("-c", layout.root, "list-certs").stdout == "No certificates on this host yet.\n"
