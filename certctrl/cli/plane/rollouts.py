"""``plane rollout``: changes of profiles, and renewals, in waves, each released by the proof of the one before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from certctrl.cli.output import table, write_error, write_line
from certctrl.cli.plane.connection import GROUP, OperatorApi, OperatorCommand, Yes, agreed, call_plane, show
from certctrl.cli.plane.profiles import Devices, DryRun, Earlier, File, Name, Note, Order, print_change, request_body
from certctrl.errors import ExitStatus, UsageError
from certctrl.model.change_texts import plan_summary, seconds_of, waves_text
from certctrl.text import counted, nearest, one_line

_SHOWN_DEVICES = 20
_PAGE = 100
_ROLLOUT_STATES = ("running", "paused", "halted", "done", "aborted")
_STATES = ("proven", "released", "failed", "accepted", "skipped", "held")

rollout = typer.Typer(help="Changes in waves, each released by proof.", **GROUP)

Waves = Annotated[
    str, typer.Option("--waves", metavar="SIZES", help="Devices or shares of each wave; the rest is the last one.")
]
InWaves = Annotated[
    str,
    typer.Option("--rollout", metavar="SIZES", help="In waves: devices or shares of each; the rest is the last one."),
]
Canary = Annotated[
    str, typer.Option("--canary", metavar="TAGS", help="Devices with these tags are a wave before all others.")
]
MaxFailures = Annotated[
    int, typer.Option("--max-failures", metavar="N", min=0, help="Halt if more devices than this fail.")
]
Pause = Annotated[
    str, typer.Option("--pause", metavar="TIME", help="Time between proof and the next wave: 90s, 10m, 2h, 1d.")
]
Windows = Annotated[
    list[str] | None,
    typer.Option("--window", metavar="HH:MM-HH:MM", help="Release only at this time (UTC); may be repeated."),
]
Serial = Annotated[
    str,
    typer.Option("--serial", metavar="TAG", help="Never two devices with this tag at once; KEY=: for each value."),
]
Id = Annotated[int, typer.Argument(metavar="ID", min=1, help="The rollout.")]


@rollout.command("start", cls=OperatorCommand)
def start(
    ctx: typer.Context,
    name: Name,
    file: File = "",
    devices: Devices = "",
    order: Order = None,
    version: Earlier = None,
    note: Note = "",
    waves: Waves = "1,10%",
    canary: Canary = "",
    max_failures: MaxFailures = 0,
    pause: Pause = "0s",
    window: Windows = None,
    serial: Serial = "",
    dry_run: DryRun = False,
) -> None:
    """Change a profile in waves.

    FILE, --devices, --order and --version are as for plane profile put. The next wave is released once the devices of
    the ones before report that the change is applied and, where items verify it, served. A failure beyond
    --max-failures halts the rollout. Devices that have not been heard from for 15 minutes are skipped until they are.

    \b
    cert-ctrl plane rollout start --data /var/lib/plane nginx nginx.json \\
        --waves 1,10%,50% --pause 10m --dry-run
    """
    rules = rules_of(waves, canary, max_failures, pause, window, serial)

    async def request(api: OperatorApi) -> Any:
        body = await request_body(api, name, file, devices, order, version, note)
        query = {"dry_run": "1"} if dry_run else None
        return await api.call("POST", "rollouts", body | rules | {"profile": name}, query=query)

    done = call_plane(ctx, request)
    show(ctx, done, lambda: _print_start(done))


def rules_of(
    waves: str, canary: str, max_failures: int, pause: str, window: Sequence[str] | None, serial: str
) -> dict[str, Any]:
    """Return the rules of a rollout as the API takes them."""
    return {
        "waves": [one for one in waves.split(",") if one.strip()],
        "canary": canary,
        "max_failures": max_failures,
        "pause_seconds": _seconds(pause),
        "windows": list(window or ()),
        "serial": serial,
    }


def refuse_rules(rules: Mapping[str, Any], fix: str) -> None:
    """Raise UsageError for rules of a command without --rollout."""
    if any(rules.values()):
        raise UsageError("--canary, --max-failures, --pause, --window and --serial are for --rollout", fix=fix)


def print_started(done: Mapping[str, Any], what: str) -> None:
    """Print that a rollout has started, or what it would be."""
    if done["dry_run"]:
        write_line(f"a rollout of {what} would have {waves_text(done)}")
        return
    write_line(f"rollout {done['id']} of {what} has started: {waves_text(done)}")
    write_line(f"follow it with: cert-ctrl plane rollout status {done['id']}")


def _seconds(text: str) -> int:
    seconds = seconds_of(text)
    if seconds is None:
        raise UsageError(f"{text!r} is not a time", fix="use 90s, 10m, 2h or 1d")
    return seconds


def _print_start(done: Mapping[str, Any]) -> None:
    print_change(done["changes"])
    if done["dry_run"]:
        write_line(plan_summary(done))
        return
    waves = waves_text(done)
    write_line(f"rollout {done['id']} of profile {done['profile']}, version {done['version']}, has started: {waves}")
    write_line(f"follow it with: cert-ctrl plane rollout status {done['id']}")


@rollout.command("list", cls=OperatorCommand)
def list_rollouts(
    ctx: typer.Context,
    state: Annotated[
        str, typer.Option("--state", metavar="STATE", help="Only running, paused, halted, done or aborted ones.")
    ] = "",
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=0, help="At most N rollouts; 0: all.")] = 100,
    before_id: Annotated[
        int, typer.Option("--before-id", metavar="ID", min=0, help="Only rollouts before this one: the next page.")
    ] = 0,
) -> None:
    """List the rollouts, the newest first.

    \b
    cert-ctrl plane rollout list --data /var/lib/plane --state halted
    """
    if state not in ("", *_ROLLOUT_STATES):
        meant = nearest(state, _ROLLOUT_STATES)
        fix = f"did you mean {meant}?" if meant else "use running, paused, halted, done or aborted"
        raise UsageError(f"{state!r} is not a state", fix=fix)
    rows = call_plane(ctx, lambda api: _rollouts(api, state, limit, before_id))
    show(ctx, rows, lambda: _print_list(rows))
    if limit and len(rows) == limit:
        write_error(f"note: there may be more: add --before-id {rows[-1]['id']}")


async def _rollouts(api: OperatorApi, state: str, limit: int, before_id: int) -> list[dict[str, Any]]:
    """Return rollouts page by page; an older control plane sends its last 500 and ignores the query."""
    found: list[dict[str, Any]] = []
    while True:
        query = {"limit": str(_PAGE), "before_id": str(before_id)} | ({"state": state} if state else {})
        page = [row for row in await api.call("GET", "rollouts", query=query) if not before_id or row["id"] < before_id]
        found += [row for row in page if state in ("", row["state"])]
        if limit and len(found) >= limit:
            return found[:limit]
        if len(page) < _PAGE:
            return found
        before_id = page[-1]["id"]


def _print_list(rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        write_line("no rollouts")
        return
    heads = ("id", "what", "state", "proven", "started", "why")
    cells = []
    for row in rows:
        counts = _totals(row["waves"])
        progress = f"{counts['proven']} of {sum(counts.values())}"
        why = row["reason"] or (f"waits for {row['waits']}" if row["waits"] else "")
        cells.append((str(row["id"]), row["what"], row["state"], progress, row["created_at"], why))
    table(heads, cells)


def _totals(waves: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {state: sum(wave["states"].get(state, 0) for wave in waves) for state in _STATES}


@rollout.command("status", cls=OperatorCommand)
def status(ctx: typer.Context, rollout_id: Id) -> int:
    """Show what a rollout waits for, and its waves.

    Also the devices that are under way, have failed or are skipped, with the words of their agents. Exit status: 0, or 1 if
    it has halted or was aborted.

    \b
    cert-ctrl plane rollout status --data /var/lib/plane 3
    """
    found = call_plane(ctx, lambda api: api.call("GET", f"rollouts/{rollout_id}"))
    show(ctx, found, lambda: _print_status(found))
    return ExitStatus.FAILED if found["state"] in ("halted", "aborted") else ExitStatus.DONE


def _print_status(found: Mapping[str, Any]) -> None:
    why = f": {found['reason']}" if found["reason"] else f", waits for {found['waits']}" if found["waits"] else ""
    comma = "," if found["kind"] == "profile" else ""  # after its version
    write_line(f"rollout {found['id']} of {found['what']}{comma} is {found['state']}{why}")
    cells = [
        (
            str(wave["wave"]),
            str(wave["devices"]),
            ", ".join(f"{wave['states'][one]} {one}" for one in _STATES if one in wave["states"]),
        )
        for wave in found["waves"]
    ]
    table(("wave", "devices", "states"), cells)
    devices = sorted(found["devices"], key=lambda one: one["state"] != "failed")
    for one in devices[:_SHOWN_DEVICES]:
        since = f" since {one['released_at']}" if one["state"] == "released" else ""
        detail = f": {one_line(one['detail'])}" if one["detail"] else ""
        write_line(
            f"device {one['id']} ({one_line(one['name'], 60)}), wave {one['wave']}: {one['state']}{since}{detail}"
        )
    if len(devices) > _SHOWN_DEVICES:
        write_line(f"… and {len(devices) - _SHOWN_DEVICES} more devices; --json lists all")
    if found["state"] == "halted":
        write_line(f"fix: cert-ctrl plane rollout resume {found['id']} accepts the failures; abort ends the rollout")


@rollout.command("pause", cls=OperatorCommand)
def pause_rollout(ctx: typer.Context, rollout_id: Id) -> None:
    """Release nothing more until the rollout is resumed.

    \b
    cert-ctrl plane rollout pause --data /var/lib/plane 3
    """
    _act(ctx, rollout_id, "pause")


@rollout.command("resume", cls=OperatorCommand)
def resume(ctx: typer.Context, rollout_id: Id, yes: Yes = False) -> int:
    """Resume a rollout that is paused or has halted.

    After a halt, the failures until then no longer count. Asks for confirmation on a terminal if devices have
    failed. Exit status: 0 resumed, 1 not confirmed.

    \b
    cert-ctrl plane rollout resume --data /var/lib/plane 3
    """
    found = call_plane(ctx, lambda api: api.call("GET", f"rollouts/{rollout_id}"))
    failed = _totals(found["waves"])["failed"]
    if failed and not agreed(ctx, f"Go on although {counted(failed, 'device')} failed?", yes=yes):
        return ExitStatus.FAILED
    _act(ctx, rollout_id, "resume")
    return ExitStatus.DONE


@rollout.command("abort", cls=OperatorCommand)
def abort(
    ctx: typer.Context,
    rollout_id: Id,
    forward: Annotated[
        bool, typer.Option("--forward", help="Give all devices the renewed certificates; only for renewals.")
    ] = False,
    yes: Yes = False,
) -> int:
    """End a rollout; devices that have the new version keep it.

    The others keep the former version. plane profile put gives all devices one version again, and so does another rollout.
    A former certificate is kept until it is near its end; plane renew gives all devices another one at once. Asks for
    confirmation on a terminal. Exit status: 0 aborted, 1 not confirmed.

    \b
    cert-ctrl plane rollout abort --data /var/lib/plane 3
    """
    if not agreed(ctx, f"Abort rollout {rollout_id}?", yes=yes):
        return ExitStatus.FAILED
    _act(ctx, rollout_id, "abort", {"forward": True} if forward else {})
    return ExitStatus.DONE


def _act(ctx: typer.Context, rollout_id: int, action: str, body: Mapping[str, Any] | None = None) -> None:
    found = call_plane(ctx, lambda api: api.call("POST", f"rollouts/{rollout_id}/{action}", dict(body or {})))
    counts = _totals(found["waves"])
    released = sum(counts.values()) - counts["held"] - counts["skipped"]
    new = f"version {found['version']}" if found["kind"] == "profile" else "the renewed certificates"
    of = f"{released} of {counted(sum(counts.values()), 'device')} have {new}"
    show(ctx, found, f"rollout {rollout_id} is {found['state']}; {of}")


@rollout.command("renewals", cls=OperatorCommand)
def renewals(
    ctx: typer.Context,
    over: Annotated[
        int | None, typer.Option("--over", metavar="N", min=1, help="Of certificates on more than so many devices.")
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Renew without waves, which is the default.")] = False,
    waves: Waves = "1,10%",
    canary: Canary = "",
    max_failures: MaxFailures = 0,
    pause: Pause = "0s",
    window: Windows = None,
    serial: Serial = "",
) -> None:
    """Show or set whether renewals that are due go in waves.

    Only those of certificates that many devices share. A certificate near its end waits for no wave.

    \b
    cert-ctrl plane rollout renewals --data /var/lib/plane --over 10
    cert-ctrl plane rollout renewals --data /var/lib/plane --off
    """
    if over is not None and off:
        raise UsageError("both --over and --off are given", fix="leave one of them out")
    rules = rules_of(waves, canary, max_failures, pause, window, serial)

    async def request(api: OperatorApi) -> Any:
        if over is None and not off:
            return await api.call("GET", "renewal-rollouts")
        return await api.call("POST", "renewal-rollouts", {"over": over} | (rules if over is not None else {}))

    found = call_plane(ctx, request)
    show(ctx, found, lambda: _print_renewals(found))


def _print_renewals(found: Mapping[str, Any]) -> None:
    if found["over"] is None:
        write_line("renewals that are due reach all devices at once")
        return
    waves = ", ".join((*found["waves"], "the rest"))
    write_line(
        f"renewals that are due go in waves of {waves} if more than {counted(found['over'], 'device')} share them"
    )


@rollout.command("freeze", cls=OperatorCommand)
def freeze(
    ctx: typer.Context,
    reason: Annotated[str, typer.Argument(metavar="[REASON]", help="Why; shown to all operators.")] = "",
    end: Annotated[bool, typer.Option("--end", help="End the freeze.")] = False,
) -> None:
    """Release nothing in all rollouts, or show or end that.

    \b
    cert-ctrl plane rollout freeze --data /var/lib/plane "until the fair is over"
    cert-ctrl plane rollout freeze --data /var/lib/plane --end
    """
    if reason and end:
        raise UsageError("both REASON and --end are given", fix="leave one of them out")

    async def request(api: OperatorApi) -> Any:
        if not reason and not end:
            return await api.call("GET", "rollout-freeze")
        return await api.call("POST", "rollout-freeze", {"reason": reason})

    found = call_plane(ctx, request)
    show(ctx, found, f"rollouts are frozen: {found['reason']}" if found["frozen"] else "rollouts are not frozen")
