"""``register``: register by operator approval (device grant) or with an enrolment token."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from certctrl.cli.invocation import Invocation, invocation, is_present
from certctrl.cli.output import duration, write_error, write_json, write_line
from certctrl.errors import CertctrlError, UsageError

if TYPE_CHECKING:
    from certctrl.model.records import Recommended
    from certctrl.store.layout import ConfigDir

TOKEN_VARIABLE = "CERTCTRL_ENROLMENT_TOKEN"  # noqa: S105 - a name, not a secret
CREDENTIAL = "certctrl.enrolment-token"
MAX_TOKEN_BYTES = 4096


def register(
    ctx: typer.Context,
    enrolment_token_file: Annotated[
        Path | None,
        typer.Option("--enrolment-token-file", metavar="FILE", help="Read an enrolment token from FILE; -: stdin."),
    ] = None,
    enrolment_token: Annotated[
        str | None,
        typer.Option("--enrolment-token", metavar="TOKEN", help="Enrolment token; visible to other users in `ps`."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line: the code, then the device.")
    ] = False,
) -> None:
    """Register this host with the control plane.

    Prints a code and a URL: open the URL, enter the code and approve this device. For unattended registration, give
    an enrolment token with --enrolment-token-file, in the environment variable CERTCTRL_ENROLMENT_TOKEN, or as the
    systemd credential certctrl.enrolment-token.

    Keys and tokens are stored in DIR/keys and DIR/state, readable only by the agent. A new host whose configuration
    has no poll_mode gets the one that the control plane recommends. Running it again issues new
    tokens for this device; an interrupted run can be repeated.

    \b
    cert-ctrl -c /etc/cert-ctrl register
    cert-ctrl -c /etc/cert-ctrl register --enrolment-token-file /root/token
    """
    from certctrl.cli.runtime import run

    invoked = invocation(ctx)
    token = find_token(enrolment_token_file, enrolment_token, os.environ)
    show = show_prompt_as_json if as_json else show_prompt
    layout = invoked.layout()
    is_known = is_present(layout.device_secret_key)
    done = run(_register, invoked, token, show)
    added = {} if is_known else _follow_advice(layout, done.recommended)
    if as_json:
        found = {"device_id": done.device_id, "name": done.name, "user_id": done.user_id}
        write_json(found | added, pretty=False)
        return
    write_line(f"registered as device {done.device_id} ({done.name}) of user {done.user_id}")
    for name, value in added.items():
        write_line(f"set {name} to {value} in application.json, as the control plane recommends")
    write_line(f"next: cert-ctrl -c {layout.root} --keep-running")


def _follow_advice(layout: ConfigDir, advice: Recommended | None) -> dict[str, Any]:
    """Write the recommended settings that no operator has chosen; return them."""
    from certctrl.store.config.files import add_settings, load_config
    from certctrl.store.disk.fs import RealFs

    if advice is None:
        return {}
    sources = load_config(layout, os.environ).sources
    if sources["application.poll_mode"] != "default":
        return {}
    settings: dict[str, Any] = {"poll_mode": advice.poll_mode}
    if advice.poll_wait_seconds is not None and sources["application.long_poll_wait_seconds"] == "default":
        settings["long_poll_wait_seconds"] = advice.poll_wait_seconds
    try:
        add_settings(RealFs(), layout, settings)
    except CertctrlError as error:  # this host is registered in any case
        write_error(f"warning: the recommended poll_mode {advice.poll_mode} is not set: {error}")
        return {}
    return settings


async def _register(invoked: Invocation, token: str | None, show: Callable[[Any], None]) -> Any:
    from certctrl.agent.clock import wall_now
    from certctrl.agent.register import register as register_device
    from certctrl.agent.setup import real_http
    from certctrl.logs.setup import log_for_command
    from certctrl.net.control_plane import ControlPlane
    from certctrl.store.config.files import load_config
    from certctrl.store.disk.fs import RealFs
    from certctrl.store.disk.tree import make_tree
    from certctrl.store.state.session import SessionState
    from certctrl.store.state.versions import refuse_later_state

    log_for_command(debug=invoked.debug, verbosity=invoked.verbosity)
    layout, fs = invoked.layout(), RealFs()
    config = load_config(layout, os.environ).config
    refuse_later_state(layout, fs)
    make_tree(fs, layout)
    http = real_http(config, layout)
    try:
        return await register_device(
            layout,
            SessionState(layout, fs),
            ControlPlane(http, config, wall_now=wall_now),
            config,
            enrolment_token=token,
            show=show,
            wall_now=wall_now,
        )
    finally:
        await http.aclose()


def show_prompt(prompt: Any) -> None:
    """Print where to approve this device, the code, and its lifetime."""
    write_line(f"Open     {prompt.verification_uri}")
    write_line(f"Code     {prompt.user_code}")
    if prompt.verification_uri_complete:
        write_line(f"or open  {prompt.verification_uri_complete}")
    write_line(f"Waiting for approval; the code expires in {duration(prompt.expires_in)}.")


def show_prompt_as_json(prompt: Any) -> None:
    """Print the same as one JSON object."""
    names = ("verification_uri", "user_code", "verification_uri_complete", "expires_in")
    write_json({name: getattr(prompt, name) for name in names}, pretty=False)


def find_token(file: Path | None, argument: str | None, environ: Mapping[str, str]) -> str | None:
    """Return the enrolment token, or None for the device grant.

    Sources in order: ``--enrolment-token-file``, ``--enrolment-token``, the environment, the systemd credential.
    """
    if file is not None and argument is not None:
        raise UsageError("two enrolment tokens", fix="give either --enrolment-token-file or --enrolment-token")
    if file is not None:
        return checked_token(_read(file), f"--enrolment-token-file {file}")
    if argument is not None:
        write_error("warning: other users can read --enrolment-token in the process list; use --enrolment-token-file")
        return checked_token(argument, "--enrolment-token")
    if environ.get(TOKEN_VARIABLE):
        return checked_token(environ[TOKEN_VARIABLE], TOKEN_VARIABLE)
    credential = Path(environ.get("CREDENTIALS_DIRECTORY", "/nonexistent")) / CREDENTIAL
    return checked_token(_read(credential), f"credential {CREDENTIAL}") if credential.is_file() else None


def _read(path: Path) -> str:
    try:
        with open(0 if str(path) == "-" else path, "rb", closefd=str(path) != "-") as file:
            return file.read(MAX_TOKEN_BYTES + 1).decode("ascii", "replace")
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}", fix="give a readable file with the enrolment token"
        ) from None


def checked_token(text: str, source: str) -> str:
    """Return a token without white space around it. Raises UsageError if it cannot be one."""
    token = text.strip()
    if not token or len(token) > MAX_TOKEN_BYTES or not token.isascii() or any(c.isspace() for c in token):
        raise UsageError(f"{source} does not contain an enrolment token", fix="give one token on one line")
    return token
