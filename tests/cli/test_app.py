"""The command line as a whole: commands, imports, the position of ``-c``, usage errors."""

from __future__ import annotations

import inspect
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import certctrl
from certctrl.cli import invocation
from certctrl.cli.app import COMMANDS, load
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.store import StateStore

from .conftest import Ran
from .doctor_helpers import register

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
    assert (
        f"cert-ctrl {'' if COMMANDS[name].own_directory else '-c /etc/cert-ctrl '}{name}"
        in load(name, COMMANDS[name]).help
    )


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
        (["-c", "", "status"], "no config directory given", "add -c DIR, or leave -c out for /etc/cert-ctrl"),
        (["-c", "", "--keep-running"], "no config directory given", "add -c DIR, or leave -c out for /etc/cert-ctrl"),
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


def test_the_directory_of_a_host_is_made_by_setup(
    ran: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package makes it, empty."""
    monkeypatch.setattr(invocation, "DEFAULT_DIRECTORY", str(tmp_path))
    assert ran("status").err.endswith("fix: give another directory with -c, or run cert-ctrl setup\n")


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


def shell(line: str, layout: ConfigDir) -> int:
    """Return the exit status of a shell command; ``cc`` in it is the program with its directory."""
    program_ = " ".join([*PYTHON, "-c", str(layout.root)])
    done = subprocess.run(
        ["bash", "-c", line.replace("cc ", f"{program_} ")], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(certctrl.__file__).parent.parent)},
    )  # fmt: skip
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    return done.returncode


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("cc status | true; exit ${PIPESTATUS[0]}", 77),
        ("cc status --watch | true; exit ${PIPESTATUS[0]}", 77),
        ("cc config show 2>&1 | true; exit ${PIPESTATUS[0]}", 0),
        ("cc --nope 2>&1 | true; exit ${PIPESTATUS[0]}", 2),
        ("cc status <&- >&- 2>&-", 77),
        ("cc status >&-", 77),
        ("cc --nope 2>&-", 2),
        ("cc --help >&-", 0),
        ("cc apply <&- >&- 2>&-", 77),
        ("cc status >/dev/full", 74),
        ("cc --nope 2>/dev/full", 74),
    ],
)
def test_the_status_does_not_depend_on_the_output(line: str, status: int, layout: ConfigDir) -> None:
    assert shell(line, layout) == status


def test_a_closed_output_is_not_another_file(layout: ConfigDir) -> None:
    """Without standard streams, a file that the command opens would get their descriptors, and its messages."""
    assert shell("cc init --server https://plane.example >&- 2>&-", layout) == 0
    texts = {path: path.read_bytes() for path in layout.root.rglob("*") if path.is_file()}
    assert not any(b"is ready for" in text for text in texts.values())


# --- the config directory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["status", "list-certs", "--keep-running", "apply", "config show", "history"])
def test_the_directory_may_come_from_the_environment_or_be_the_default(
    command: str, tmp_path: Path, ran: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invocation, "DEFAULT_DIRECTORY", str(tmp_path / "default"))
    monkeypatch.setenv("CERTCTRL_CONFIG_DIR", "")
    for where in ("default", "from-environment", "given"):
        argv = ["-c", str(tmp_path / where)] if where == "given" else []
        error = f"cert-ctrl: error: {tmp_path}/{where}: no such directory\n"
        fix = "setup" if where == "default" else f"-c {tmp_path}/{where} init --server URL"
        assert ran(*argv, *command.split()) == (78, "", f"{error}fix: cert-ctrl {fix}\n")
        monkeypatch.setenv("CERTCTRL_CONFIG_DIR", str(tmp_path / "from-environment"))


def test_the_default_directory_is_that_of_the_packages() -> None:
    assert invocation.DEFAULT_DIRECTORY == "/etc/cert-ctrl"


@pytest.mark.parametrize(
    "command", ["status", "list-certs", "apply", "config check", "init --server https://plane.example"]
)
def test_a_symbolic_link_is_refused_with_its_target(
    command: str, layout: ConfigDir, tmp_path: Path, ran: Callable[..., Ran]
) -> None:
    link = tmp_path / "link"
    link.symlink_to(layout.root)
    error = f"cert-ctrl: error: {link}: is a symbolic link to {layout.root}\nfix: use -c {layout.root}\n"
    assert ran("-c", link, *command.split()) == (78, "", error)
    below = tmp_path / "parent"
    below.symlink_to(tmp_path)
    assert ran("-c", below / layout.root.name, "list-certs").status == 0


@pytest.mark.parametrize("targets", [("link",), ("other", "link")])
def test_a_link_that_leads_to_itself_is_to_be_removed(
    targets: tuple[str, ...], tmp_path: Path, ran: Callable[..., Ran]
) -> None:
    for name, target in zip(("link", "other"), targets, strict=False):
        (tmp_path / name).symlink_to(target)
    link = tmp_path / "link"
    error = f"cert-ctrl: error: {link}: is a symbolic link that leads to itself\nfix: remove the link: rm {link}\n"
    assert ran("-c", link, "status") == ran("-c", link, "apply") == (78, "", error)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Run as a user who owns nothing here."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("mode", [0o000, 0o600])
@pytest.mark.parametrize("command", ["status", "list-certs", "plan"])
def test_a_directory_of_another_user_is_not_a_missing_one(command: str, mode: int, ran: Callable[..., Ran]) -> None:
    outer = Path(tempfile.mkdtemp(dir="/tmp"))
    outer.chmod(0o755)
    root = outer / "agent"
    root.mkdir(mode)
    try:
        with as_nobody():
            done = ran("-c", root, *command.split())
    finally:
        root.rmdir()
        outer.rmdir()
    error = f"cert-ctrl: error: cannot access {root}/application.json: Permission denied"
    assert done == (74, "", f"{error}\nfix: run as root or as the agent's user\n")


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        ("-c a -c b status", "Option --config-dir takes one value, but is given 2 times."),
        ("-c a history --limit 1 --limit 2", "Option --limit takes one value, but is given 2 times."),
        ("-c a renew --domain a --domain b --domain c", "Option --domain takes one value, but is given 3 times."),
        ("-c a policy allow command --name a --name b", "Option --name takes one value, but is given 2 times."),
        ("plane issue x --data a --data b", "Option --data takes one value, but is given 2 times."),
        ("plane install-config show --device a --device b", "Option --device takes one value, but is given 2 times."),
        ("sandbox --every 1 --every 2", "Option --every takes one value, but is given 2 times."),
    ],
)
def test_a_repeated_option_is_refused(argv: str, error: str, ran: Callable[..., Ran]) -> None:
    done = ran(*argv.split())
    assert (done.status, done.out, done.err.splitlines()[0]) == (2, "", f"cert-ctrl: error: {error}")


def test_a_repeated_switch_is_harmless(layout: ConfigDir, ran: Callable[..., Ran]) -> None:
    assert ran("-c", layout.root, "list-certs", "--json", "--json") == (0, "[]\n", "")


def leaves(command: object, name: str) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield name, command
    for inner, found in getattr(command, "commands", {}).items():
        yield from leaves(found, f"{name} {inner}")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_print_json(name: str) -> None:
    for path, command in leaves(load(name, COMMANDS[name]), name):
        options = [option for param in command.params for option in param.opts]
        assert "--json" in options, path


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_made_verbose_or_quiet(name: str) -> None:
    for path, command in leaves(load(name, COMMANDS[name]), name):
        options = {option for param in command.params for option in param.opts}
        assert {"-q", "--quiet", "-v", "--verbose", "--debug"} <= options, path


@pytest.mark.parametrize("command", ["trust reset --scripts", "policy allow shell", "forget --ca 3"])
def test_a_question_is_not_among_the_json(
    command: str, layout: ConfigDir, ran: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = io.StringIO("y\n")
    stdin.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", stdin)
    register(StateStore(layout, RealFs()))
    done = ran("-c", layout.root, *command.split(), "--json")
    assert "[y/N]" in done.err
    assert not done.out or done.json()


def test_shell_completion_offers_the_commands() -> None:
    done = program(_CERT_CTRL_COMPLETE="complete_bash", COMP_WORDS="cert-ctrl li", COMP_CWORD="1")
    assert "list-certs" in done.stdout.split()


def test_the_program_ends_with_the_exit_status(layout: ConfigDir) -> None:
    assert program("-c", layout.root, "status").returncode == 77
    assert program("-c", layout.root, "list-certs").stdout == "No certificates on this host yet.\n"


@pytest.mark.integration
@pytest.mark.parametrize(("options", "said"), [((), ""), (("-W", "always"), "UserWarning: canary")])
def test_warnings_of_libraries_are_for_developers(options: tuple[str, ...], said: str) -> None:
    code = "import warnings, certctrl.__main__ as m; m.main = lambda: warnings.warn('canary') or 0; m.program()"
    env = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    done = subprocess.run([sys.executable, *options, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and said in done.stderr and bool(done.stderr) is bool(said)
