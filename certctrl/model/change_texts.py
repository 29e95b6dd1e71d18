"""What a change of a profile or a rollout would do, in the words of both the command line and the console. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from certctrl.text import counted, one_line

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

Row = Mapping[str, Any]


def by_change(changes: Row) -> list[tuple[str, Sequence[Row]]]:
    """Return the devices of a preview by what changes for them."""
    groups: dict[str, list[Row]] = {}
    for row in changes["devices"]:
        groups.setdefault(change_of(row), []).append(row)
    return list(groups.items())


def change_of(row: Row) -> str:
    """Return the changes of a device in one line."""
    if row["problem"]:
        return f"not valid: {row['problem']}"
    parts = [f"+ {name}" for name in row["added"]] + [f"- {name}" for name in row["removed"]]
    parts += [f"~ {one['id']} ({', '.join(one['keys'])})" for one in row["changed"]]
    return ", ".join(map(one_line, parts)) or "the items in another order"


def profile_summary(done: Row) -> str:
    """Return what a change of a profile does, or with a dry run would do."""
    changes, name = done["changes"], done["name"]
    if done["unchanged"]:
        return f"profile {name} is already {'so' if done['devices'] else 'deleted'}; nothing is changed"
    if not done["devices"]:
        subject = f"profile {name} {'would be' if done['dry_run'] else 'is'} deleted"
    else:
        subject = f"profile {name} {'would have' if done['dry_run'] else 'has'} version {done['version']}"
        subject += f" on {counted(changes['matched'], 'device')}"
    verb = "would change" if done["dry_run"] else "changed"
    problems = f", and {counted(changes['problems'], 'device')} would have a problem: put refuses it"
    config = f"the config of {counted(len(changes['devices']) - changes['problems'], 'device')} {verb}"
    return f"{subject}; {config}{problems if changes['problems'] else ''}"


def waves_text(done: Row) -> str:
    """Return the number and the sizes of the waves of a rollout."""
    sizes = ", ".join(str(wave["devices"]) for wave in done["waves"])
    return f"{counted(len(done['waves']), 'wave')} of {sizes} devices"


def plan_summary(done: Row) -> str:
    """Return what the dry run of a rollout says."""
    if "certificates" in done:
        return f"a rollout of the renewal of {counted(len(done['certificates']), 'certificate')} would have {waves_text(done)}"
    problems = done["changes"]["problems"]
    refused = f"; it would be refused: {counted(problems, 'device')} would have a problem" if problems else ""
    return f"a rollout of profile {done['profile']} would have {waves_text(done)}{refused}"


def seconds_of(text: str) -> int | None:
    """Return a time such as ``90s``, ``10m``, ``2h`` or ``1d`` in seconds; None for anything else."""
    digits, unit = text[:-1], text[-1:]
    if not (digits.isascii() and digits.isdigit() and len(digits) < 8 and unit in _SECONDS):
        return None
    return int(digits) * _SECONDS[unit]


def time_of(seconds: int) -> str:
    """Return a time as `seconds_of` reads it, in the largest unit that fits."""
    unit = next(unit for unit in reversed(_SECONDS) if seconds % _SECONDS[unit] == 0 and (seconds or unit == "s"))
    return f"{seconds // _SECONDS[unit]}{unit}"
