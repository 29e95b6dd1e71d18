"""``plane issue --from-file``: issue the certificates of a file, each once, even if the command is repeated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from certctrl import lean
from certctrl.cli.output import write_error, write_line
from certctrl.cli.plane.bar import Bar
from certctrl.cli.plane.connection import OperatorApi, agreed, call_plane, note_revoked, show
from certctrl.cli.plane.issue_file import SHOWN_ERRORS, Entry, LineError, read_entries
from certctrl.errors import CertctrlError, ExitStatus, PlaneError, TransportError, UsageError
from certctrl.text import counted

MAX_CHECKED = 100
MAX_CONCURRENT = 8


@lean.frozen
class Checked:
    """An entry, its request, and the existing certificate for it, if there is one."""

    entry: Entry
    body: dict[str, Any]
    known: dict[str, Any] | None

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do for it."""
        return self.known is not None and set(self.body["device_ids"]) <= set(self.known["device_ids"])


def issue_from_file(ctx: typer.Context, file: Path, defaults: Mapping[str, Any], *, yes: bool) -> int:
    """Check a whole file, ask for confirmation, and issue the missing certificates; return the exit status."""
    entries, errors = read_entries(file)
    if errors:
        raise _refused(file, errors)

    async def check(api: OperatorApi) -> tuple[list[Checked], list[LineError]]:
        return await _checked(api, entries, defaults)

    checked, errors = call_plane(ctx, check)
    if errors:
        raise _refused(file, errors)
    left = [one for one in checked if not one.is_done]
    there = len(checked) - len(left)
    if left and not agreed(
        ctx, f"Issue or assign {counted(len(left), 'certificate')} ({there} already there)?", yes=yes
    ):
        return ExitStatus.FAILED
    done = call_plane(ctx, lambda api: _issued(api, left))
    results = [
        *(
            {"line": one.entry.line, "cert_id": one.known["id"], "result": "known", "problem": ""}
            for one in checked
            if one.is_done and one.known
        ),
        *done,
    ]
    results.sort(key=lambda row: row["line"])
    show(ctx, results, lambda: _print(file, results))
    return ExitStatus.FAILED if any(row["problem"] for row in results) else ExitStatus.DONE


def _refused(file: Path, errors: Sequence[LineError]) -> UsageError:
    for error in errors[:SHOWN_ERRORS]:
        write_error(f"{file}: {error}")
    return UsageError(
        f"{file} has {counted(len(errors), 'error')}; nothing was issued", fix="correct the file and repeat the command"
    )


async def _checked(
    api: OperatorApi, entries: Sequence[Entry], defaults: Mapping[str, Any]
) -> tuple[list[Checked], list[LineError]]:
    """Return the entries as the control plane understands them, and all errors that it finds."""
    known_devices = await api.operator.fetch_devices(api.user) if any(entry.devices for entry in entries) else []
    bodies, errors = [], []
    for entry in entries:
        ids, unknown = _device_ids(entry, known_devices)
        errors += [LineError(entry.line, "devices", problem) for problem in unknown]
        request = {"domain_name": entry.domains[0], "sans": list(entry.domains[1:]), "device_ids": ids}
        bodies.append(request | dict(defaults) | dict(entry.fields))
    receiving = {device_id for body in bodies for device_id in body["device_ids"]}
    for row in known_devices:
        if row["id"] in receiving:
            note_revoked(row)
    checked = []
    with Bar("certificates checked", len(entries)) as bar:
        for begin in range(0, len(entries), MAX_CHECKED):
            part = bodies[begin : begin + MAX_CHECKED]
            answers = await api.call("POST", "certificate-checks", {"certificates": part})
            for entry, body, answer in zip(entries[begin:], part, answers, strict=False):
                if answer["problem"]:
                    errors.append(LineError(entry.line, _field(answer["field"]), answer["problem"]))
                else:
                    checked.append(Checked(entry, body, answer["known"]))
            bar.reached(begin + len(part))
    return checked, [*sorted(errors, key=lambda error: error.line), *_same(checked)]


def _same(checked: Sequence[Checked]) -> list[LineError]:
    """Return an error for each entry that is the same certificate as an earlier one in another spelling."""
    first: dict[int, int] = {}
    errors = []
    for one in checked:
        if one.known is not None:
            line = first.setdefault(one.known["id"], one.entry.line)
            if line != one.entry.line:
                errors.append(LineError(one.entry.line, "domains", f"the same certificate as in line {line}"))
    return errors


def _field(name: str) -> str:
    """Return the field of the file for one of a request."""
    return {"device_ids": "devices", "domain_name": "domains", "sans": "domains"}.get(name, name)


def _device_ids(entry: Entry, known: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[str]]:
    """Return the ids of an entry's devices, and its unknown or ambiguous names."""
    ids, unknown = [], []
    for named in entry.devices:
        found = [
            row["id"]
            for row in known
            if named.lower() in (str(row["id"]), row["name"].lower(), row["device_public_id"].lower())
        ]
        if len(found) == 1:
            ids.append(found[0])
        else:
            unknown.append(
                f"{len(found)} devices are named {named!r}: use an id" if found else f"there is no device {named!r}"
            )
    return list(dict.fromkeys(ids)), unknown


async def _issued(api: OperatorApi, left: Sequence[Checked]) -> list[dict[str, Any]]:
    """Issue or assign the rest, a few at a time; after TransportError or an interrupt, a second run continues."""
    import trio

    results: list[dict[str, Any]] = []
    failures: list[CertctrlError] = []
    with Bar("certificates issued", len(left)) as bar:
        limiter = trio.CapacityLimiter(MAX_CONCURRENT)

        async def work(one: Checked) -> None:
            async with limiter:
                if failures:
                    return
                try:
                    results.append(await _issue(api, one))
                except TransportError as error:
                    failures.append(error)
                bar.reached(len(results))

        async with trio.open_nursery() as nursery:
            for one in left:
                nursery.start_soon(work, one)
    if failures:
        write_error(f"{len(results)} of {len(left)} certificates are done; repeat the command to continue")
        raise failures[0]
    return results


async def _issue(api: OperatorApi, one: Checked) -> dict[str, Any]:
    cert_id, result = None, "assigned"
    try:
        if one.known is None:
            row = await api.call("POST", "certificates", one.body)
            cert_id, result = row["id"], "ordered" if row["status"] == "pending" else "issued"
        else:
            cert_id = one.known["id"]
            for device_id in one.body["device_ids"]:
                await api.call("POST", f"devices/{device_id}/certificates", {"cert_id": cert_id})
    except PlaneError as error:
        if error.status >= 500:
            raise TransportError(f"the control plane cannot continue: {error}") from None
        return {"line": one.entry.line, "cert_id": cert_id, "result": "failed", "problem": str(error)}
    return {"line": one.entry.line, "cert_id": cert_id, "result": result, "problem": ""}


def _print(file: Path, results: Sequence[Mapping[str, Any]]) -> None:
    for row in results:
        if row["problem"]:
            write_error(f"{file}: line {row['line']}: {row['problem']}")
    counts = {
        word: sum(row["result"] == word for row in results)
        for word in ("issued", "ordered", "assigned", "known", "failed")
    }
    words = {
        "ordered": "ordered (cert-ctrl plane orders list)",
        "assigned": "assigned to further devices",
        "known": "there already",
    }
    said = [f"{count} {words.get(word, word)}" for word, count in counts.items() if count]
    write_line(f"{file}: {', '.join(said)}")
