"""``setup``: everything from an installed program to a registered agent that runs.

The steps are those of an operator: the commands `init` and `register`, each in a process of its own that becomes the
owner of the config directory. Root itself reads nothing there, and keeps the rights for the unit. Each step is
idempotent, so an interrupted run is repeated.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import typer

from certctrl import lean
from certctrl.cli.commands.init import CA_FINGERPRINT, read_ca
from certctrl.cli.commands.register import TOKEN_VARIABLE, checked_token, find_token, show_prompt, show_prompt_as_json
from certctrl.cli.invocation import Invocation, invocation
from certctrl.cli.output import write_error
from certctrl.errors import ExitStatus, UsageError
from certctrl.protocol.wire.anchor import LEAST_DIGITS, STRONG_DIGITS, fingerprint_prefix

if TYPE_CHECKING:
    from certctrl.cli.host import Host, Place

TRIES = 3
_NO_CA = "add --ca-fingerprint SHA256, --ca FILE, or --system-ca"


Server = Annotated[
    str | None, typer.Option("--server", metavar="URL", help="URL of the control plane, https://…; default: asked for.")
]
Ca = Annotated[
    Path | None, typer.Option("--ca", metavar="FILE", help="PEM file with the CA of the control plane; -: stdin.")
]
SystemCa = Annotated[
    bool, typer.Option("--system-ca", help="The control plane's certificate is from a CA that this host trusts.")
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file", metavar="FILE", help="Read an enrolment token from FILE; -: stdin. Default: asked for."
    ),
]
Name = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="Name of this device; default: the host name.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done; change and ask nothing.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object per line: a code to approve, then what was done.")
]


def setup(
    ctx: typer.Context,
    server: Server = None,
    ca_fingerprint: Annotated[str | None, CA_FINGERPRINT] = None,
    ca: Ca = None,
    system_ca: SystemCa = False,
    token_file: TokenFile = None,
    name: Name = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Set this host up: directory, configuration, registration, service.

    On a terminal, asks for what is not given: the URL, the first digits of the CA's fingerprint, which `plane serve`
    prints, and an enrolment token, without showing it. Without a token, prints a code to approve at the control plane.
    The token may also come from the environment variable CERTCTRL_ENROLMENT_TOKEN.

    Run by root for /etc/cert-ctrl (or /etc/cert-ctrl-NAME), creates the user of the unit and its directory, and enables
    and starts cert-ctrl.service (or cert-ctrl@NAME). Without systemd, or for other directories, prints the command to
    run. Running it again changes only what is missing; an interrupted run can be repeated.

    Starts nothing with a mistake in the configuration, or a file that it names and that cannot be used.

    Exit status: that of the step that failed; 2 if something is not given and cannot be asked for.

    \b
    cert-ctrl setup
    cert-ctrl -c /etc/cert-ctrl setup --server https://plane.example.com:8443 \\
        --ca-fingerprint 9f86d081884c7d65 --token-file /root/token
    """
    from certctrl.cli.host import Host, place_of

    invoked, host = invocation(ctx), Host(dry_run=dry_run, as_json=as_json)
    if system_ca and (ca is not None or ca_fingerprint is not None):
        raise UsageError("--system-ca cannot be combined with another CA", fix="leave one of them out")
    if not invoked.directory:
        invoked.layout()  # raises the error for an empty -c
    place = place_of(invoked.directory)
    _require_rights(host, place)
    steps = _Steps(invoked, host)
    found = steps.configured()
    url = (server or found.url or _asked_url(host)).rstrip("/")
    known = found if found.url == url else _Configured()
    chosen = _chosen_ca(host, url, known, ca, ca_fingerprint, system_ca)
    token = None if known.is_registered else _token(host, token_file)
    return _carry_out(steps, place, chosen.words(url, name), chosen, token, found.settings)


@lean.frozen(kw_only=True)
class _Configured:
    """What the config directory has already."""

    url: str = ""
    has_ca: bool = False
    is_registered: bool = False
    settings: str = ""
    """All settings, to compare."""


@lean.frozen(kw_only=True)
class _Ca:
    """The CA of the control plane."""

    about: str
    options: tuple[str, ...] = ()
    """Of `init`."""
    pem: bytes = b""

    def words(self, url: str, name: str | None) -> list[str]:
        """Return the command that writes the configuration."""
        return ["init", "--server", url, *self.options, *(() if name is None else ("--name", name))]


@lean.frozen(kw_only=True)
class _Token:
    """The enrolment token; empty: an operator approves."""

    text: str = attrs.field(repr=False)


class _Steps:
    """The commands that the set-up consists of."""

    def __init__(self, invoked: Invocation, host: Host) -> None:
        self.invoked, self.host = invoked, host
        flags = [
            *(["--debug"] if invoked.debug else []),
            *([] if not invoked.verbosity else ["-v" if invoked.verbosity > 0 else "-q"]),
        ]
        self._words = ["-c", invoked.directory, *flags]
        self._environ = {key: text for key, text in os.environ.items() if key != TOKEN_VARIABLE}

    def run(self, *words: str, given: bytes = b"", quiet: bool = False, show: Any = None) -> tuple[int, dict[str, Any]]:
        """Run a command that prints JSON; return its exit status and its last JSON object.

        ``show`` gets that of a code to approve.
        """
        from certctrl.install.process.programs import own_program, run_program

        lines: list[str] = []

        def on_line(line: str) -> None:
            lines.append(line)
            if show is not None and (found := _object(line)).keys() >= {"user_code"}:
                show(SimpleNamespace(**found))

        status = run_program(
            own_program(*self._words, *words), given=given, on_line=on_line, environ=self._environ, quiet=quiet
        )
        return status, _object("\n".join(lines)) or _object(lines[-1] if lines else "")

    def configured(self) -> _Configured:
        """Return what the config directory has."""
        if not os.path.lexists(self.invoked.directory):
            return _Configured()
        status, settings = self.run("config", "show", "--json", quiet=True)
        if status != 0:  # nothing yet, or a mistake that `init` reports
            return _Configured()
        registered, _ = self.run("status", "--json", quiet=True)
        return _Configured(
            url=settings["application.server_url"]["value"].rstrip("/"),
            has_ca=bool(settings["httpclient.ca_files"]["value"]),
            is_registered=registered in (ExitStatus.DONE, ExitStatus.FAILED, ExitStatus.NOT_RUNNING),
            settings=json.dumps(settings, sort_keys=True),
        )

    def text(self, *words: str) -> str:
        """Return the command line of a step, for operators."""
        return shlex.join(["cert-ctrl", "-c", self.invoked.directory, *words])


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _require_rights(host: Host, place: Place | None) -> None:
    """Raise UsageError if only root can make the directory, or become its owner."""
    if host.is_root or place is None or host.dry_run:
        return
    try:
        owner = os.lstat(place.directory).st_uid
    except OSError:
        owner = None
    if owner != os.geteuid():
        what = f"only root and user {place.user} can set up {place.directory}"
        raise UsageError(what, fix="run as root, or choose another directory with -c")


def _on_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _asked_url(host: Host) -> str:
    if host.dry_run:
        return "URL"
    if not _on_terminal():
        raise UsageError("no control plane given, and stdin is not a terminal", fix="add --server URL")
    return str(typer.prompt("URL of the control plane", err=True)).strip()


def _chosen_ca(
    host: Host, url: str, known: _Configured, ca: Path | None, fingerprint: str | None, system_ca: bool
) -> _Ca:
    """Return the CA of the options, of the configuration, or of the operator's answer."""
    digits = None if fingerprint is None else fingerprint_prefix(fingerprint)
    compared = () if digits is None else ("--ca-fingerprint", digits)
    if ca is not None:
        return _Ca(about=f"from {ca}", options=("--ca", "-", *compared), pem=read_ca(ca))
    if digits is not None:
        return _Ca(about="the one with the given fingerprint", options=compared)
    if system_ca:
        return _Ca(about="one that this host trusts")
    if url.startswith("http:"):
        return _Ca(about="none: plain http")
    if known.is_registered or known.has_ca:
        return _Ca(about="as configured")
    return _Ca(about="the one with the typed fingerprint", options=("--ca-fingerprint", _asked_fingerprint(host)))


def _asked_fingerprint(host: Host) -> str:
    """Ask for the start of the fingerprint, before the control plane is contacted: nothing shown could be copied."""
    if host.dry_run:
        return "SHA256"
    if not _on_terminal():
        raise UsageError("no CA of the control plane given, and stdin is not a terminal", fix=_NO_CA)
    write_error("`cert-ctrl plane serve` prints the fingerprint of its CA at the control plane.")
    question = f"Its first {STRONG_DIGITS} digits or more (at least {LEAST_DIGITS})"
    for last_try in (False,) * (TRIES - 1) + (True,):
        try:
            return fingerprint_prefix(typer.prompt(question, err=True))
        except UsageError as error:
            if last_try:
                raise
            write_error(str(error))
    raise AssertionError("the loop ends by a return or an error")


def _token(host: Host, file: Path | None) -> _Token:
    """Return the token of a file or the environment, or of the operator's answer."""
    if host.dry_run:
        return _Token(text="")
    given = find_token(file, None, os.environ)
    if given is not None:
        return _Token(text=given)
    if not _on_terminal():
        raise UsageError("no enrolment token given, and stdin is not a terminal", fix="add --token-file FILE")
    typed = typer.prompt(
        "Enrolment token (none: approve a code)", default="", show_default=False, hide_input=True, err=True
    )
    return _Token(text=checked_token(typed, "the answer") if typed.strip() else "")


def _carry_out(
    steps: _Steps, place: Place | None, init: list[str], ca: _Ca, token: _Token | None, settings: str
) -> int:
    """Make the place, write the configuration, register, start; return the exit status. ``settings``: those before."""
    from certctrl.cli.host import find_unit

    host = steps.host
    unit = None if place is None else find_unit(place.unit)
    if place is not None and host.is_root:
        host.make_place(place, unit)
    elif not host.dry_run:
        steps.invoked.layout(must_exist=False)  # here nothing more needs root
    status = _configure(steps, init, ca)
    if status == 0 and not (host.dry_run and (ca.options or not settings)):  # what a dry run would have written first
        status, _ = steps.run("config", "check", "--json")
    if status == 0 and token is not None:
        status = _register(steps, token)
    if status != 0:
        return status
    changed = token is not None or (not host.dry_run and steps.configured().settings != settings)
    host.start(unit, place, steps.text("--keep-running"), restart=changed)
    if not host.dry_run and unit is not None and unit.is_installed:
        host.report("next", f"see {steps.text('status')}")
    host.finish()
    return ExitStatus.DONE


def _configure(steps: _Steps, init: list[str], ca: _Ca) -> int:
    directory = steps.invoked.directory
    if not steps.host.dry_run:
        status, done = steps.run(*init, "--json", given=ca.pem)
        if status != 0:
            return status
        steps.host.report("plane", f"{done['server_url']}; its CA: {ca.about}")
    else:
        steps.host.report("plane", "", f"would be configured: {steps.text(*init)}")
    steps.host.report("config", f"{directory} is ready", f"{directory} would be written")
    return ExitStatus.DONE


def _register(steps: _Steps, token: _Token) -> int:
    words = ["register", "--json", *(["--enrolment-token-file", "-"] if token.text else [])]
    if steps.host.dry_run:
        steps.host.report("device", "", f"would be registered: {steps.text('register')}")
        return ExitStatus.DONE
    show = show_prompt_as_json if steps.host.as_json else show_prompt
    status, done = steps.run(*words, given=token.text.encode("ascii"), show=show)
    if status != 0:
        return status
    steps.host.report(
        "device", f"registered as device {done.pop('device_id')} ({done.pop('name')}) of user {done.pop('user_id')}"
    )
    for setting, value in done.items():
        steps.host.report("setting", f"{setting} is {value}, as the control plane recommends")
    return ExitStatus.DONE
