"""The Typer root: ``-c``, ``--keep-running``, and a table of commands of which only the one asked for is imported.

``-c DIR`` and ``--debug`` are accepted before the command and among its own options; the later one wins. Help
is plain text: it needs no rich, and its examples keep their lines.
"""

import os
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup, TyperOption

from certctrl.cli.invocation import Invocation, invocation
from certctrl.errors import ExitStatus

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
GROUP: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None, "no_args_is_help": True}
"""Settings of a Typer that holds the commands below one of ours."""


class Entry:
    """One command: where it lives and what the list in ``--help`` says of it."""

    __slots__ = ("about", "module", "name", "own_directory")

    def __init__(self, module: str, about: str, name: str = "", own_directory: bool = False) -> None:
        self.module = module
        self.about = about
        self.name = name or module.rpartition(".")[2]
        """Attribute of the module: a function, or a Typer with commands of its own."""
        self.own_directory = own_directory
        """True: the command has directories of its own and takes no ``-c``."""


COMMANDS: dict[str, Entry] = {
    "init": Entry("commands.init", "Make a config directory for a control plane."),
    "register": Entry("commands.register", "Register this host at the control plane."),
    "status": Entry("commands.status", "Show how the agent is doing; the exit status tells its health."),
    "poll-now": Entry("commands.poll_now", "Poll at once, print what came, and close an open breaker."),
    "list-certs": Entry("commands.list_certs", "List the certificates on this host."),
    "renew": Entry("commands.renew", "Ask the control plane for a new certificate."),
    "plan": Entry("commands.plan", "Show what would change on this host, and change nothing."),
    "apply": Entry("commands.apply", "Bring this host to what the control plane and its own plan say."),
    "rollback": Entry("commands.rollback", "Put a previous certificate back and hold it, or let it go again."),
    "history": Entry("commands.history", "Show past deployments."),
    "doctor": Entry("commands.doctor", "Check everything an operator would check, with a fix for each finding."),
    "config": Entry("commands.config", "Show or check the configuration.", name="config"),
    "policy": Entry("commands.policy", "Show or extend what the control plane may do on this host.", name="policy"),
    "trust": Entry("commands.trust", "Show or forget what this host has learnt to insist on.", name="trust"),
    "sandbox": Entry("commands.sandbox", "Watch plane, agent and a TLS service work together here.", own_directory=True),
    "plane": Entry("plane.commands", "Run and operate the reference control plane.", name="plane", own_directory=True),
}  # fmt: skip


class LazyGroup(TyperGroup):
    """A group that imports a command's module when the command is run, and none to list them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import and return one command; None when the table has no such name."""
        entry = COMMANDS.get(cmd_name)
        return None if entry is None else load(cmd_name, entry)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the table, importing nothing."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.about) for name, entry in COMMANDS.items()])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command, or fail with the names that come near."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)


def load(name: str, entry: Entry) -> Any:
    """Return the click command of one entry."""
    found = getattr(import_module(f"certctrl.cli.{entry.module}"), entry.name)
    if isinstance(found, typer.Typer):
        command = typer.main.get_command(found)
        command.name = name
    else:
        alone = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=SETTINGS)
        alone.command(name)(found)
        command = typer.main.get_command(alone)
    _add_root_options(command, directory=not entry.own_directory)
    return command


def _add_root_options(command: Any, *, directory: bool) -> None:
    """Let a command (and those below it) take the root's options too."""
    options = [
        TyperOption(
            param_decls=["--debug"], type=None, is_flag=True, default=False, expose_value=False, callback=_take_debug,
            hidden=True,
        )
    ]  # fmt: skip
    if directory:
        options.append(
            TyperOption(
                param_decls=["-c", "--config-dir"],
                metavar="DIR",
                expose_value=False,
                callback=_take_directory,
                help="Config directory of the agent; may also stand before the command.",
            )
        )
    if isinstance(command, TyperGroup):
        for inner in command.commands.values():
            _add_root_options(inner, directory=directory)
    else:
        command.params.extend(options)


def _take_directory(ctx: Any, _param: Any, value: str | None) -> None:
    if value is not None:
        invocation(ctx).config_dir = value


def _take_debug(ctx: Any, _param: Any, value: bool) -> None:
    if value:
        invocation(ctx).debug = True


def _root(
    ctx: typer.Context,
    config_dir: Annotated[
        str | None, typer.Option("-c", "--config-dir", metavar="DIR", help="Config directory of the agent.")
    ] = None,
    keep_running: Annotated[
        bool, typer.Option("--keep-running", help="Run as the daemon, in the foreground, until SIGTERM.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Log more, and show where an unexpected error arose.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> int:
    """Keep this host's certificates as its control plane issues them: fetched, deployed, reloaded, served.

    \b
    Set up:    cert-ctrl -c /etc/cert-ctrl init --server https://plane.example.com
               cert-ctrl -c /etc/cert-ctrl register
    Run:       cert-ctrl -c /etc/cert-ctrl --keep-running
    Look:      cert-ctrl -c /etc/cert-ctrl status
    Try:       cert-ctrl sandbox

    Exit status: 0 done, 1 failed, 2 usage, 69 control plane unavailable, 74 disk, 75 busy, 77 not registered or
    revoked, 78 configuration, 130 interrupted; `status` and `plan` add their own, see their --help.
    """
    invoked: Invocation = invocation(ctx)
    invoked.config_dir, invoked.debug = config_dir, debug
    if version:
        from certctrl import __version__

        typer.echo(f"cert-ctrl {__version__}")
        raise typer.Exit
    if keep_running:
        if ctx.invoked_subcommand is not None:
            ctx.fail(f"--keep-running starts the daemon; it does not go with {ctx.invoked_subcommand!r}.")
        from certctrl.cli.daemon import keep_running as daemon

        return daemon(invoked)
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help(), err=True)
        raise typer.Exit(ExitStatus.USAGE)
    return ExitStatus.DONE


def root_command(argv: list[str]) -> Any:
    """Return the root as a command ready to run; shell completion is added where it can be asked for."""
    completion = "_CERT_CTRL_COMPLETE" in os.environ or COMMANDS.keys().isdisjoint(argv)
    app = typer.Typer(
        cls=LazyGroup,
        add_completion=completion,
        invoke_without_command=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        pretty_exceptions_show_locals=False,
        context_settings=SETTINGS,
    )
    app.callback()(_root)
    return typer.main.get_command(app)
