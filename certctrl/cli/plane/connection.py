"""The connection of `cert-ctrl plane …` commands to a control plane, and the options they share.

`OperatorCommand` adds the shared options (``--data``, ``--server``, …) to each command, and ``--dry-run`` to those that
change something.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from json import dumps as to_json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import attrs
import typer
from typer.core import TyperCommand, TyperOption

from certctrl import lean
from certctrl.cli.daemon_or_local import answered_yes
from certctrl.cli.output import write_error, write_json, write_line
from certctrl.cli.owner import become_owner
from certctrl.cli.plane.secrets import refuse_readable
from certctrl.errors import CertctrlError, ExitStatus, PlaneError, TransportError, UsageError
from certctrl.text import ascii_name, nearest, one_line

if TYPE_CHECKING:
    from certctrl.net.operator import Operator

T = TypeVar("T")
GROUP: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None, "no_args_is_help": True}
"""Settings of the command groups of this package."""
OneDevice = Annotated[str, typer.Option("--device", metavar="ID|NAME", help="The device.")]
SomeDevices = Annotated[list[str], typer.Option("--device", metavar="ID|NAME", help="The device; may be repeated.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation on a terminal.")]
DATA_VARIABLE = "CERTCTRL_PLANE_DATA"
OWN_FILE_VARIABLE = "CERTCTRL_PLANE_TOKEN_FILE"
WITHOUT_TRIAL = frozenset(
    {
        "ask",
        "audit",
        "causes",
        "certificates",
        "check",
        "devices",
        "diff",
        "history",
        "list",
        "outcomes",
        "show",
        "status",
        "whoami",
        "change-key",
        "constrain",
        "deactivate",
        "switch",
        "test",
    }
)
"""Names of commands that change nothing, and of those whose requests have no dry run."""
_META = "certctrl.plane"
_MAX_KEY_BYTES = 4096
_SHOWN_CHANGES = 20
_EXIT_STATUSES = {
    400: ExitStatus.USAGE, 401: ExitStatus.NOT_REGISTERED, 403: ExitStatus.NOT_REGISTERED, 404: ExitStatus.FAILED,
    409: ExitStatus.FAILED, 410: ExitStatus.FAILED, 413: ExitStatus.USAGE,
}  # fmt: skip
"""HTTP status of an error response -> exit status; otherwise 69."""
_FIXES = {
    "DEVICE_REVOKED": "on the new host: cert-ctrl register, then: cert-ctrl plane approve CODE",
    "CERT_REVOKED": "cert-ctrl plane renew ID makes it valid again, with a new key",
    "NAME_TAKEN": "cert-ctrl plane devices shows all names; decommission a device that is gone",
    "NAME_RESERVED": "give the service another name",
    "NOT_CONNECTED": "cert-ctrl plane devices shows who is online; at the host, check the daemon and its poll_mode",
    "ROTATION_UNSUPPORTED": "update the agent of that device",
    "PUSH_UNSUPPORTED": "update the agent of that device",
    "REFUSED_BY_POLICY": "the host decides: remote_questions in its policy.json",
    "OUT_OF_SCOPE": "use a token without tags, or one with tags that fit: cert-ctrl plane token create NAME --tag TAG",
    "ROLE_REQUIRED": "use a token with that role, or ask an admin for it: cert-ctrl plane operator role NAME ROLE",
    "OPERATOR_TOKEN_EXPIRED": "ask an admin for a new one: cert-ctrl plane token create",
    "OPERATOR_TOKEN_REVOKED": "ask an admin for a new one: cert-ctrl plane token create",
    "OPERATOR_DISABLED": "an admin can enable the operator: cert-ctrl plane operator enable NAME",
    "OPERATOR_KEY_OFF": "add --token-file FILE; or on the control plane's machine: cert-ctrl plane operator-key on --data DIR",
    "NO_ADMIN_LEFT": "first: cert-ctrl plane operator add NAME --role admin, and plane token create for that operator",
    "TIMED_OUT": "ask again with a longer --timeout, and check the host",
}
"""Key of an error response -> what the operator can do."""


@lean.define
class SharedOptions:
    """Values of the shared options."""

    data: str = ""
    server: str = ""
    ca: str = ""
    operator_key_file: str = ""
    token_file: str = ""
    user: int = 1
    as_json: bool = False
    dry_run: bool = False
    """Whether the first change is tried only."""
    has_warned: bool = False
    """Whether the operator key's mode was warned of."""


@lean.frozen
class Connection:
    """Address, CA and operator key of a control plane."""

    server: str
    ca: Path | None
    """None means the system trust store."""
    key: str = attrs.field(repr=False)


class OperatorCommand(TyperCommand):
    """A command with the shared options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend([*self.own_options(), *_options()])
        if self.name not in WITHOUT_TRIAL and not any("--dry-run" in param.opts for param in self.params):
            self.params.append(_dry_run())

    def own_options(self) -> list[TyperOption]:
        """Return further options of a kind of commands."""
        return []

    def invoke(self, ctx: Any) -> Any:
        """Run the command, unless two forms of output are asked for."""
        csv = [param.name for param in self.params if "--csv" in param.opts]
        if any(ctx.params[name] for name in csv) and shared_options(ctx).as_json:
            raise UsageError("--csv and --json are given", fix="leave one of them out")
        return super().invoke(ctx)


def _dry_run() -> TyperOption:
    def take(ctx: Any, _param: Any, value: Any) -> None:
        shared_options(ctx).dry_run = bool(value)

    return TyperOption(
        param_decls=["--dry-run"],
        is_flag=True,
        default=False,
        expose_value=False,
        callback=take,
        help="Show what would change, and change nothing.",
    )


def _options() -> list[TyperOption]:
    def take(name: str) -> Callable[[Any, Any, Any], Any]:
        def callback(ctx: Any, _param: Any, value: Any) -> None:
            if value is not None:
                setattr(shared_options(ctx), name, value)

        return callback

    def text(flag: str, name: str, metavar: str, about: str) -> TyperOption:
        return TyperOption(
            param_decls=[flag], metavar=metavar, help=about, expose_value=False, callback=take(name), default=None
        )

    return [
        text("--data", "data", "DIR", f"Data directory of a control plane on this machine; also ${DATA_VARIABLE}."),
        text("--server", "server", "URL", "URL of the control plane; default: locally, the one that serves --data."),
        text("--ca", "ca", "FILE", "CA of the control plane; default: ca.pem in --data, otherwise the system's CAs."),
        text("--operator-key-file", "operator_key_file", "FILE", "Operator key; default: operator.key in --data."),
        text(
            "--token-file", "token_file", "FILE", f"Your operator token instead of the key; also ${OWN_FILE_VARIABLE}."
        ),
        TyperOption(
            param_decls=["--user"],
            metavar="ID",
            type=int,
            default=None,
            expose_value=False,
            callback=take("user"),
            help="Owner of the devices and certificates; default: 1.",
        ),
        TyperOption(
            param_decls=["--json"],
            type=None,
            is_flag=True,
            default=False,
            expose_value=False,
            callback=take("as_json"),
            help="Print the control plane's answer as JSON.",
        ),
    ]


def shared_options(ctx: Any) -> SharedOptions:
    """Return the shared options of this command line."""
    found: SharedOptions = ctx.meta.setdefault(_META, SharedOptions())
    return found


def call_plane(ctx: typer.Context, request: Callable[[OperatorApi], Awaitable[T]]) -> T:
    """Connect to the plane and return the result of ``request``; errors have a fix."""
    from certctrl.cli.invocation import invocation
    from certctrl.cli.runtime import run
    from certctrl.logs.setup import log_for_command

    log_for_command(debug=invocation(ctx).debug, verbosity=invocation(ctx).verbosity)
    connection = find_connection(shared_options(ctx))

    async def main() -> T:
        from certctrl.model.config import AgentConfig, ApplicationConfig, HttpClientConfig
        from certctrl.net.operator import Operator, TriedError
        from certctrl.net.transport import HttpcoreHttp

        ca_files = (str(connection.ca),) if connection.ca is not None else ()
        config = AgentConfig(
            application=ApplicationConfig(server_url=connection.server), httpclient=HttpClientConfig(ca_files=ca_files)
        )
        http = HttpcoreHttp(config, root=Path.cwd(), wall_now=_wall_now())
        try:
            dry_run = shared_options(ctx).dry_run
            operator = Operator(http, connection.key, wall_now=_wall_now(), dry_run=dry_run)
            return await request(OperatorApi(operator, shared_options(ctx).user))
        except TriedError as tried:
            show(ctx, tried.answer, partial(_print_trial, tried.answer))
            raise typer.Exit(ExitStatus.DONE) from None
        except PlaneError as error:
            error.exit_status = _EXIT_STATUSES.get(error.status, error.exit_status)
            error.fix = _FIXES.get(error.key, error.fix or "")
            raise
        except TransportError as error:
            error.fix = f"check that `cert-ctrl plane serve` runs at {connection.server} and that --ca is its CA"
            raise
        finally:
            await http.aclose()

    return run(main)


def agreed(ctx: typer.Context, question: str | Callable[[OperatorApi], Awaitable[str]], *, yes: bool) -> bool:
    """Ask the operator on a terminal; scripts and --yes agree."""
    if yes or shared_options(ctx).dry_run or not sys.stdin.isatty():
        return True
    return answered_yes(question if isinstance(question, str) else call_plane(ctx, question))


def _wall_now() -> Callable[[], float]:
    from certctrl.agent.clock import wall_now

    return wall_now


@lean.frozen
class OperatorApi:
    """The operator API on behalf of one user; finds certificates, devices and CAs by name."""

    operator: Operator
    user: int

    async def call(self, method: str, path: str, json: Any = None, *, query: Mapping[str, str] | None = None) -> Any:
        """Return the ``data`` of a response; ``path`` is relative to the user (``devices``) or absolute (``/apiv1/…``)."""
        whole = path if path.startswith("/") else f"/apiv1/users/{self.user}/{path}"
        return await self.operator.call(method, whole, json=json, query=query)

    async def time(self) -> str:
        """Return the control plane's time; a token with a scope may not read the status."""
        try:
            return str((await self.call("GET", "/apiv1/plane/status"))["time"])
        except PlaneError as error:
            if error.key != "OUT_OF_SCOPE":
                raise
        return str((await self.call("GET", "fleet/certificates", query={"limit": "1"}))["at"])

    async def device(self, named: str) -> int:
        """Return the id of a device, by id, name or device_public_id."""
        return await self._find("devices", named, ("name", "device_public_id"), "device")

    async def devices(self, named: Sequence[str]) -> list[int]:
        """Return the ids of devices; a device that is given twice counts once, with a note."""
        found: dict[int, str] = {}
        for name in named:
            device_id = await self.device(name)
            if device_id in found:
                write_error(f"note: device {device_id} is given twice: {found[device_id]} and {name}")
            found.setdefault(device_id, name)
        return list(found)

    async def receivers(self, named: Sequence[str]) -> list[int]:
        """Return the ids of devices that are to get something, with a note for each that is revoked."""
        ids = await self.devices(named)
        for device_id in ids:
            try:
                note_revoked(await self.call("GET", f"devices/{device_id}"))
            except PlaneError as error:
                if error.status not in (403, 404):  # the change itself reports those
                    raise
        return ids

    async def shown_devices(self, ids: Sequence[int]) -> str:
        """Return ids with their names, for a question before these devices are changed."""
        rows = [await self.call("GET", f"devices/{device_id}") for device_id in ids]
        return ", ".join(f"{row['id']} ({one_line(str(row['name']), 80)})" for row in rows)

    async def certificate(self, named: str) -> int:
        """Return the id of a certificate, by id or primary domain; prefer certificates that are not revoked."""
        return await self._find("certificates", ascii_name(named.lower()), ("domain_name",), "certificate")

    async def authority(self, named: str) -> int:
        """Return the id of a CA, by id or name."""
        return await self._find("cas", named, ("name",), "CA")

    async def _find(self, kind: str, named: str, keys: tuple[str, ...], word: str) -> int:
        if named.isascii() and named.isdigit():
            return int(named)
        rows = await self.operator.fetch_list(self.user, kind)
        found = [row for row in rows if named.lower() in [str(row[key]).lower() for key in keys]]
        found = [row for row in found if row.get("status") != "revoked"] or found
        if len(found) == 1:
            return int(found[0]["id"])
        if not found:
            meant = nearest(named.lower(), sorted({str(row[keys[0]]) for row in rows}))
            hint = f"did you mean {meant}? " if meant else ""
            raise UsageError(f"the control plane has no {word} {named!r}", fix=f"{hint}cert-ctrl plane {_LISTS[kind]}")
        ids = ", ".join(str(row["id"]) for row in found)
        raise UsageError(f"{len(found)} {word}s are named {named!r}", fix=f"use one of the ids {ids}")


_LISTS = {"devices": "devices", "certificates": "certificates", "cas": "ca list"}


def find_connection(options: SharedOptions) -> Connection:
    """Return the connection that the options describe; root becomes the owner of the data directory first.

    Raises UsageError if an option is missing or invalid.
    """
    directory = options.data or os.environ.get(DATA_VARIABLE, "")
    data = Path(directory) if directory else None
    token = _token(options)  # before this process becomes another user
    if data is not None:
        become_owner(data)
    key_file = Path(options.operator_key_file) if options.operator_key_file else data and data / "operator.key"
    if key_file is None and not token:
        fix = "add --data DIR on the control plane's machine, otherwise --server URL --token-file FILE --ca FILE"
        raise UsageError("no control plane given", fix=fix)
    server = options.server or (_address(data) if data is not None else "")
    if not server:
        raise UsageError("no control plane URL given", fix="add --server URL")
    _check_url(server)
    ca = Path(options.ca) if options.ca else data and data / "ca.pem"
    key = token or _read(key_file or Path(), "the operator key")
    if key_file is not None and not token:
        _warn_of_mode(key_file, options)
    return Connection(server, ca.absolute() if ca is not None else None, key)


def _warn_of_mode(key_file: Path, options: SharedOptions) -> None:
    """Warn once of an operator key that other users can read."""
    with contextlib.suppress(OSError):
        if key_file.stat().st_mode & 0o077 and not options.has_warned:
            options.has_warned = True
            write_error(f"warning: other users can read {key_file}; see chmod 0600")


def _token(options: SharedOptions) -> str:
    """Return the operator's token, empty if none is given. Raises UsageError."""
    given = options.token_file or ("" if options.operator_key_file else os.environ.get(OWN_FILE_VARIABLE, ""))
    if not given:
        return ""
    if options.token_file and options.operator_key_file:
        raise UsageError("--token-file and --operator-key-file are given", fix="leave one of them out")
    path = Path(given)
    with contextlib.suppress(OSError):
        refuse_readable(path.stat().st_mode, "the token file", given)
    return _read(path, "an operator token", "write the token to it, mode 0600; cert-ctrl plane token create makes one")


def _address(data: Path) -> str:
    """Return the URL of the plane of a data directory: on this machine, without its public name."""
    local = data / "local_address"
    return _read(local if os.path.lexists(local) else data / "address", "the control plane's address")


def _check_url(server: str) -> None:
    from certctrl.model.origin import parse_origin

    try:
        parse_origin(server)
    except CertctrlError:
        raise UsageError(
            f"--server {server!r} is not a URL of a control plane", fix="use https://HOST[:PORT]"
        ) from None


def _read(path: Path, what: str, hint: str = "") -> str:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_KEY_BYTES).decode("ascii", "replace").strip()
    except OSError as error:
        fix = hint or "start the control plane once (cert-ctrl plane serve --data DIR), or give the right file"
        fix = "run as root or as the control plane's user" if isinstance(error, PermissionError) else fix
        raise UsageError(f"cannot read {what} from {path}: {error.strerror}", fix=fix) from None
    if not text or not text.isascii() or any(c.isspace() for c in text):
        raise UsageError(
            f"{path} does not contain {what}",
            fix=hint or "restore the file as the control plane wrote it: one word on one line",
        )
    return text


def note_revoked(row: Mapping[str, Any]) -> None:
    """Announce that a device is revoked although it is to get something."""
    if row.get("status") == "revoked":
        state = "decommissioned" if row.get("decommissioned_at") else "revoked"
        what = f"device {row['id']} ({one_line(str(row['name']), 80)}) is {state}"
        write_error(f"note: {what}: it receives nothing until it is registered and approved again")


def note_duplicates(names: Sequence[str]) -> None:
    """Announce names that a certificate contains once although they are given several times."""
    plain = [name.strip().rstrip(".").lower() for name in names]
    for name in dict.fromkeys(name for name in plain if plain.count(name) > 1):
        write_error(f"note: {name} is given {plain.count(name)} times; the certificate contains it once")


def _print_trial(answer: Mapping[str, Any]) -> None:
    """Print what a change would do; the values of new objects, and those that differ of others."""
    for one in answer["changes"][:_SHOWN_CHANGES]:
        name = f" ({one_line(one['name'], 60)})" if one["name"] else ""
        is_new = not one["before"]
        values = [
            f"{field} {'' if is_new else _brief(one['before'].get(field)) + ' -> '}{_brief(one['after'].get(field))}"
            for field in {**one["before"], **one["after"]}
            if field != "name" and not (is_new and one["after"].get(field) in ("", None, [], {}))
        ]
        what = f"{one['kind']} {one['id']}".rstrip() if one["id"] else f"new {one['kind']}"
        write_line(f"{what}{name}{': ' if values else ''}{'; '.join(values)}")
    if len(answer["changes"]) > _SHOWN_CHANGES:
        write_line(f"… and {len(answer['changes']) - _SHOWN_CHANGES} more; --json lists all")
    what = "nothing was changed" if answer["changes"] else "nothing would change"
    write_line(f"dry run of {answer['action']}: {what}")


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else to_json(value, ensure_ascii=False)
    return one_line(text or '""', 60)


def show(ctx: typer.Context, data: Any, text: str | Callable[[], None]) -> None:
    """Print ``data`` as JSON with --json; otherwise print or call ``text``."""
    if shared_options(ctx).as_json:
        write_json(data)
    elif callable(text):
        text()
    else:
        write_line(text)
