"""The operator's api: which plane a `cert-ctrl plane …` command talks to, and how its options are taken.

The options that all operator commands share (``--data``, ``--server``, …) are put on each of them here, not written
out in each signature.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import attrs
import typer
from typer.core import TyperCommand, TyperOption

from certctrl.cli.output import write_json, write_line
from certctrl.errors import CertctrlError, ExitStatus, PlaneError, TransportError, UsageError

if TYPE_CHECKING:
    from certctrl.net.operator import Operator

T = TypeVar("T")
GROUP: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None, "no_args_is_help": True}
"""Settings of every group of commands here."""
OneDevice = Annotated[str, typer.Option("--device", metavar="ID|NAME", help="The device.")]
DATA_VARIABLE = "CERTCTRL_PLANE_DATA"
_META = "certctrl.plane"
_LARGEST_KEY = 4096
_REFUSALS = {
    400: ExitStatus.USAGE, 401: ExitStatus.NOT_REGISTERED, 403: ExitStatus.NOT_REGISTERED, 404: ExitStatus.FAILED,
    409: ExitStatus.FAILED, 410: ExitStatus.FAILED, 413: ExitStatus.USAGE,
}  # fmt: skip
"""What a plane's no means for an operator; the rest is its trouble: 69."""


@attrs.define
class SharedOptions:
    """What the shared options said."""

    data: str = ""
    server: str = ""
    ca: str = ""
    operator_key_file: str = ""
    user: int = 1
    as_json: bool = False


@attrs.frozen
class Connection:
    """Where the plane is and what opens it."""

    server: str
    ca: Path | None
    """None: the system trust store."""
    key: str = attrs.field(repr=False)


class OperatorCommand(TyperCommand):
    """A command with the shared options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(_options())


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
        text("--data", "data", "DIR", f"Data directory of a plane on this machine; also ${DATA_VARIABLE}."),
        text("--server", "server", "URL", "The plane; default: the one that serves --data."),
        text("--ca", "ca", "FILE", "CA of the plane; default: ca.pem of --data, else the system's."),
        text("--operator-key-file", "operator_key_file", "FILE", "Operator key; default: operator.key of --data."),
        TyperOption(
            param_decls=["--user"],
            metavar="ID",
            type=int,
            default=None,
            expose_value=False,
            callback=take("user"),
            help="User whose devices and certificates are meant; default 1.",
        ),
        TyperOption(
            param_decls=["--json"],
            type=None,
            is_flag=True,
            default=False,
            expose_value=False,
            callback=take("as_json"),
            help="Print the plane's answer as JSON.",
        ),
    ]


def shared_options(ctx: Any) -> SharedOptions:
    """Return what the shared options of this command line said."""
    found: SharedOptions = ctx.meta.setdefault(_META, SharedOptions())
    return found


def call_plane(ctx: typer.Context, request: Callable[[OperatorApi], Awaitable[T]]) -> T:
    """Return what ``request`` makes of the plane's answers; every failure names its fix."""
    from certctrl.cli.invocation import invocation
    from certctrl.cli.runtime import run
    from certctrl.logs.setup import log_for_command

    log_for_command(debug=invocation(ctx).debug)
    connection = find_connection(shared_options(ctx))

    async def main() -> T:
        from certctrl.model.config import AgentConfig, ApplicationConfig, HttpClientConfig
        from certctrl.net.operator import Operator
        from certctrl.net.transport import HttpxHttp

        ca_files = (str(connection.ca),) if connection.ca is not None else ()
        config = AgentConfig(
            application=ApplicationConfig(server_url=connection.server), httpclient=HttpClientConfig(ca_files=ca_files)
        )
        http = HttpxHttp(config, root=Path.cwd(), wall_now=_wall_now())
        try:
            return await request(
                OperatorApi(Operator(http, connection.key, wall_now=_wall_now()), shared_options(ctx).user)
            )
        except PlaneError as error:
            error.exit_status = _REFUSALS.get(error.status, error.exit_status)
            raise
        except TransportError as error:
            error.fix = f"is the plane at {connection.server} running, and --ca its CA? (cert-ctrl plane serve)"
            raise
        finally:
            await http.aclose()

    return run(main)


def _wall_now() -> Callable[[], float]:
    from certctrl.agent.clock import wall_now

    return wall_now


@attrs.frozen
class OperatorApi:
    """The operator API, for one user; certificates and devices may be named instead of numbered."""

    operator: Operator
    user: int

    async def call(self, method: str, path: str, json: Any = None) -> Any:
        """Return the plane's ``data`` for a path below the user (``devices``), or from the root (``/apiv1/…``)."""
        whole = path if path.startswith("/") else f"/apiv1/users/{self.user}/{path}"
        return await self.operator.call(method, whole, json=json)

    async def device(self, named: str) -> int:
        """Return the id of a device given by id, name or device_public_id."""
        return await self._find("devices", named, ("name", "device_public_id"), "device")

    async def certificate(self, named: str) -> int:
        """Return the id of a certificate given by id or primary domain; the unrevoked one when there are several."""
        return await self._find("certificates", named, ("domain_name",), "certificate")

    async def authority(self, named: str) -> int:
        """Return the id of a CA given by id or name."""
        return await self._find("cas", named, ("name",), "CA")

    async def _find(self, kind: str, named: str, keys: tuple[str, ...], word: str) -> int:
        if named.isascii() and named.isdigit():
            return int(named)
        rows = await self.call("GET", kind)
        found = [row for row in rows if named.lower() in [str(row[key]).lower() for key in keys]]
        found = [row for row in found if row.get("status") != "revoked"] or found
        if len(found) == 1:
            return int(found[0]["id"])
        if not found:
            raise UsageError(f"the plane has no {word} {named!r}", fix=f"cert-ctrl plane {_LISTS[kind]}")
        ids = ", ".join(str(row["id"]) for row in found)
        raise UsageError(f"several {word}s are called {named!r}", fix=f"give one of the ids {ids}")


_LISTS = {"devices": "devices", "certificates": "certificates", "cas": "ca list"}


def find_connection(options: SharedOptions) -> Connection:
    """Return which plane is meant; UsageError or ConfigError says which option is missing."""
    directory = options.data or os.environ.get(DATA_VARIABLE, "")
    data = Path(directory) if directory else None
    key_file = Path(options.operator_key_file) if options.operator_key_file else data and data / "operator.key"
    if key_file is None:
        fix = "add --data DIR on the plane's machine, or --server URL --operator-key-file FILE --ca FILE"
        raise UsageError("which plane?", fix=fix)
    server = options.server or (_read(data / "address", "the plane's address") if data is not None else "")
    if not server:
        raise UsageError("which plane?", fix="add --server URL")
    _check_url(server)
    ca = Path(options.ca) if options.ca else data and data / "ca.pem"
    return Connection(server, ca.absolute() if ca is not None else None, _read(key_file, "the operator key"))


def _check_url(server: str) -> None:
    from certctrl.net.origin import parse_origin

    try:
        parse_origin(server)
    except CertctrlError:
        raise UsageError(f"--server {server!r} is no plane's URL", fix="give https://HOST[:PORT]") from None


def _read(path: Path, what: str) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_KEY).decode("ascii", "replace").strip()
    except OSError as error:
        fix = "start the plane once (cert-ctrl plane serve --data DIR), or name the right file"
        raise UsageError(f"cannot read {what} from {path}: {error.strerror}", fix=fix) from None
    if not text or not text.isascii() or any(c.isspace() for c in text):
        raise UsageError(f"{path} does not hold {what}", fix="one word on one line, as the plane wrote it")
    return text


def show(ctx: typer.Context, data: Any, text: str | Callable[[], None]) -> None:
    """Print an answer: the JSON when asked for, else a sentence, or what ``text`` prints."""
    if shared_options(ctx).as_json:
        write_json(data)
    elif callable(text):
        text()
    else:
        write_line(text)
