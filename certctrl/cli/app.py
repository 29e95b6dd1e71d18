"""The Typer root: its options and the table of commands; only the requested command is imported.

``-c DIR``, ``-q``, ``-v`` and ``--debug`` are accepted before and after the command; the one after it wins. Any other
option that takes one value may be given once. Help is plain text, so that examples keep their line breaks and rich is
not imported.
"""

import os
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup, TyperOption

from certctrl.cli.invocation import DEFAULT_DIRECTORY as _DEFAULT
from certctrl.cli.invocation import DIRECTORY_VARIABLE as _VARIABLE
from certctrl.cli.invocation import Invocation, invocation
from certctrl.errors import ExitStatus

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
GROUP: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None, "no_args_is_help": True}
"""Settings of a Typer with subcommands."""


class Entry:
    """One command: its module and its line in ``--help``."""

    __slots__ = ("about", "module", "name", "own_directory")

    def __init__(self, module: str, about: str, name: str = "", own_directory: bool = False) -> None:
        self.module = module
        self.about = about
        self.name = name or module.rpartition(".")[2]
        """Attribute of the module: a function, or a Typer with subcommands."""
        self.own_directory = own_directory
        """Whether the command has other directory options instead of ``-c``."""


COMMANDS: dict[str, Entry] = {
    "setup": Entry("commands.setup", "Set this host up: directory, configuration, registration, service."),
    "init": Entry("commands.init", "Create a config directory for a control plane."),
    "register": Entry("commands.register", "Register this host with the control plane."),
    "move": Entry("commands.move", "Move this host to another control plane."),
    "status": Entry("commands.status", "Show the status of the agent; the exit status reflects its health."),
    "adopt": Entry("commands.adopt", "Find certificates in use on this host, and propose items that take them over."),
    "poll-now": Entry("commands.poll_now", "Poll immediately, print the result, and close an open breaker."),
    "list-certs": Entry("commands.list_certs", "List the certificates on this host."),
    "renew": Entry("commands.renew", "Request a new certificate from the control plane."),
    "plan": Entry("commands.plan", "Show what would change on this host; change nothing."),
    "apply": Entry("commands.apply", "Bring this host in line with the control plane and the install plan."),
    "rollback": Entry("commands.rollback", "Restore a previous certificate and hold it, or end the hold."),
    "forget": Entry("commands.forget", "Remove a certificate or CA from this host, even if the control plane assigns it."),
    "keystore-password": Entry("commands.keystore_password", "Set the password of a certificate's keystores."),
    "history": Entry("commands.history", "Show past deployments."),
    "doctor": Entry("commands.doctor", "Check host, control plane, certificates and daemon; print a fix for each problem."),
    "config": Entry("commands.config", "Show or check the configuration.", name="config"),
    "policy": Entry("commands.policy", "Show or extend what the control plane may do on this host.", name="policy"),
    "schema": Entry("commands.schema", "Print the JSON Schema of files with install items.", own_directory=True),
    "trust": Entry("commands.trust", "Show or reset minimum versions and script pins.", name="trust"),
    "sandbox": Entry("commands.sandbox", "Run a control plane, an agent and a TLS service on this machine.", own_directory=True),
    "plane": Entry("plane.commands", "Run and operate the reference control plane.", name="plane", own_directory=True),
}  # fmt: skip


class LazyGroup(TyperGroup):
    """A group that imports a command only when it runs, and none to list them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the command names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import and return a command; None if there is no such command."""
        entry = COMMANDS.get(cmd_name)
        return None if entry is None else load(cmd_name, entry)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the table of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.about) for name, entry in COMMANDS.items()])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command, or fail with similar names."""
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
    _refuse_repeats(command)
    return command


def _refuse_repeats(command: Any) -> None:
    """Make a command and its subcommands refuse a repeated option that takes one value, instead of the last one."""
    make = command.make_parser

    def make_parser(ctx: Any) -> Any:
        parser = make(ctx)
        parse = parser.parse_args

        def parse_args(args: list[str]) -> Any:
            values, rest, order = parse(args)
            for option in order:
                if _takes_one_value(option) and (times := order.count(option)) > 1:
                    ctx.fail(f"Option {max(option.opts, key=len)} takes one value, but is given {times} times.")
            return values, rest, order

        parser.parse_args = parse_args
        return parser

    command.make_parser = make_parser
    for inner in getattr(command, "commands", {}).values():
        _refuse_repeats(inner)


def _takes_one_value(param: Any) -> bool:
    return bool(param.param_type_name == "option" and not (param.multiple or param.is_flag or param.count))


def _add_root_options(command: Any, *, directory: bool) -> None:
    """Add the root's options to a command and its subcommands."""
    flags = ((["--debug"], _take_debug), (["-v", "--verbose"], _take_verbose), (["-q", "--quiet"], _take_quiet))
    taken = {name for param in command.params for name in param.opts}
    options = [
        TyperOption(
            param_decls=names,
            type=None,
            is_flag=True,
            default=False,
            expose_value=False,
            callback=take,
            hidden=True,
        )
        for names, take in flags
        if taken.isdisjoint(names)
    ]
    if directory:
        options.append(
            TyperOption(
                param_decls=["-c", "--config-dir"],
                metavar="DIR",
                expose_value=False,
                callback=_take_directory,
                help=f"Config directory; default: ${_VARIABLE}, then {_DEFAULT}.",
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


def _take_verbose(ctx: Any, _param: Any, value: bool) -> None:
    if value:
        invocation(ctx).verbosity = 1


def _take_quiet(ctx: Any, _param: Any, value: bool) -> None:
    if value:
        invocation(ctx).verbosity = -1


def _root(
    ctx: typer.Context,
    config_dir: Annotated[
        str | None,
        typer.Option(
            "-c", "--config-dir", metavar="DIR", help=f"Config directory; default: ${_VARIABLE}, then {_DEFAULT}."
        ),
    ] = None,
    keep_running: Annotated[
        bool, typer.Option("--keep-running", help="Run the daemon in the foreground until SIGTERM.")
    ] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Log each step of a command.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Log errors only; show no progress.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Log even more; print a traceback with an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> int:
    """Keep this host's certificates current: fetch, deploy, reload, and verify what is served.

    \b
    Set up:    cert-ctrl setup
    Run:       cert-ctrl -c /etc/cert-ctrl --keep-running
    Check:     cert-ctrl -c /etc/cert-ctrl status
    Try out:   cert-ctrl sandbox

    The config directory may be left out if it is /etc/cert-ctrl, or if $CERTCTRL_CONFIG_DIR names it.

    Exit status: 0 done, 1 failed, 2 usage, 69 control plane unavailable, 74 disk, 75 busy, 77 not registered or
    revoked, 78 configuration, 130 interrupted. `status` and `plan` have more; see their --help.
    """
    invoked: Invocation = invocation(ctx)
    invoked.config_dir, invoked.debug = config_dir, debug
    if verbose and quiet:
        ctx.fail("-v cannot be combined with -q.")
    invoked.verbosity = int(verbose) - int(quiet)
    if version:
        from certctrl import __version__

        typer.echo(f"cert-ctrl {__version__}")
        raise typer.Exit
    if keep_running:
        if ctx.invoked_subcommand is not None:
            ctx.fail(f"--keep-running cannot be combined with the command {ctx.invoked_subcommand!r}.")
        from certctrl.cli.daemon import keep_running as daemon

        return daemon(invoked)
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help(), err=True)
        raise typer.Exit(ExitStatus.USAGE)
    return ExitStatus.DONE


def root_command(argv: list[str]) -> Any:
    """Return the root command; shell completion is added only for command lines that can request it."""
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
    root = typer.main.get_command(app)
    _refuse_repeats(root)
    return root
