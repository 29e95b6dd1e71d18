"""``plane approve`` and ``plane deny``: show the requesting device, then decide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from certctrl.cli.output import write_error
from certctrl.cli.plane.connection import OperatorApi, Yes, agreed, call_plane, shared_options, show
from certctrl.errors import ExitStatus, PlaneError

UserCode = Annotated[str, typer.Argument(metavar="USER_CODE", help="The code that `cert-ctrl register` printed.")]


def approve(ctx: typer.Context, user_code: UserCode, yes: Yes = False) -> int:
    """Approve the device showing this code.

    It gets the owner given by --user. First shows the requesting device, and known devices with its id or name. Asks
    for confirmation on a terminal. Exit status: 0 approved, 1 not confirmed.

    \b
    cert-ctrl plane approve --data /var/lib/plane BCDF-GHJK
    """

    async def request(api: OperatorApi) -> Any:
        with _code_explained():
            return await api.operator.fetch_grant(user_code)

    grant = call_plane(ctx, request)
    user = shared_options(ctx).user
    for line in _described(grant, user):
        write_error(line)
    waiting = grant["status"] == "pending"  # otherwise the plane refuses, with the reason
    if waiting and not agreed(ctx, f"Approve {_who(grant)} for user {user}?", yes=yes):
        return ExitStatus.FAILED
    done = _decide(ctx, user_code, approve=True)
    show(ctx, done, f"approved {_who(done)}; it now completes its registration")
    return ExitStatus.DONE


def deny(ctx: typer.Context, user_code: UserCode) -> None:
    """Deny the device showing this code.

    \b
    cert-ctrl plane deny --data /var/lib/plane BCDF-GHJK
    """
    done = _decide(ctx, user_code, approve=False)
    show(ctx, done, f"denied {_who(done)}")


def _decide(ctx: typer.Context, user_code: str, *, approve: bool) -> Any:
    async def request(api: OperatorApi) -> Any:
        with _code_explained():
            return await api.operator.answer_grant(user_code, approve=approve, user_id=api.user)

    return call_plane(ctx, request)


@contextmanager
def _code_explained() -> Iterator[None]:
    """Add the fix to the error of an unknown or expired code."""
    try:
        yield
    except PlaneError as error:
        if error.status in (404, 410):
            error.fix = "use the code that `cert-ctrl register` printed last"
        raise


def _who(grant: Mapping[str, Any]) -> str:
    return f"{grant['name'] or 'the device'} at {grant['address'] or 'an unknown address'}"


def _described(grant: Mapping[str, Any], user: int) -> Iterator[str]:
    """Return the lines that describe the requesting device."""
    yield f"device    {grant['name'] or 'unnamed'}, {grant['platform'] or 'unknown platform'}"
    yield f"address   {grant['address'] or 'unknown'}"
    yield f"asked at  {grant['created_at']}"
    yield f"id        {grant['device_public_id'] or 'not named; only a new device can register'}"
    for known in grant.get("known_devices", ()):
        yield _known(known, user)


def _known(device: Mapping[str, Any], user: int) -> str:
    named = f"device {device['id']} ({device['name'] or 'unnamed'}) of user {device['user_id']}"
    state = ", which is revoked" if device["status"] == "revoked" else ""
    if not device["same_id"]:
        return f"note: another device has this name: {named}{state}"
    if device["user_id"] != user:
        return f"note: the same id is {named}{state}; approving adds a device of user {user}"
    effect = "restores it" if state else "replaces its session"
    return f"note: this is {named}{state}; approving {effect}"
