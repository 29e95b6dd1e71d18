"""Which profiles a token with a scope sees and changes: those whose every version is for devices within the scope only.

That is read from the tag expressions, not from the devices of the moment, so that no device outside gets a profile later.
All in the caller's unit of work.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from certctrl.plane.errors import ErrorResponse, not_found, out_of_scope
from certctrl.plane.profiles.expression import Expression, parse
from certctrl.plane.storage.database import Database
from certctrl.text import counted, one_line


def scoped_profiles(database: Database, user_id: int, scope: Sequence[str]) -> set[str]:
    """Return the names of the profiles of a user that are within a scope."""
    rows = database.all(
        "SELECT DISTINCT p.name, v.devices FROM profiles p JOIN profile_versions v ON v.profile_id = p.id"
        " WHERE p.user_id = ?",
        user_id,
    )
    beyond = {row["name"] for row in rows if row["devices"] and not _is_within(parse(row["devices"]), scope)}
    return {row["name"] for row in rows} - beyond


def require_seen(database: Database, user_id: int, name: str, scope: Sequence[str]) -> None:
    """Raise ErrorResponse 404 unless a profile is within a scope; an empty one has all."""
    if scope and name not in scoped_profiles(database, user_id, scope):
        raise not_found(f"No such profile: {one_line(name, 80)}")


def require_within(database: Database, user_id: int, name: str, new: Expression, scope: Sequence[str]) -> None:
    """Raise ErrorResponse 403 unless a profile can have an expression within a scope: its versions are, and the new one is."""
    if not scope:
        return
    if not _is_within(new, scope):
        raise _reaches(database, user_id, name, new, scope)
    rows = database.all(
        "SELECT DISTINCT v.devices FROM profiles p JOIN profile_versions v ON v.profile_id = p.id"
        " WHERE p.user_id = ? AND p.name = ? AND v.devices != '' ORDER BY v.devices",
        *(user_id, name),
    )
    for row in rows:
        if not _is_within(parse(row["devices"]), scope):
            raise _reaches(database, user_id, name, parse(row["devices"]), scope, is_new=False)


def _is_within(expression: Expression, scope: Collection[str]) -> bool:
    return expression.required.issuperset(scope)


def _reaches(
    database: Database, user_id: int, name: str, expression: Expression, scope: Sequence[str], *, is_new: bool = True
) -> ErrorResponse:
    """Return 403 with the number of devices outside a scope that an expression selects now."""
    rows = database.all("SELECT id FROM devices WHERE user_id = ? AND status != 'revoked'", user_id)
    tags: dict[int, set[str]] = {row["id"]: set() for row in rows}
    sql = "SELECT t.device_id, t.tag FROM device_tags t JOIN devices d ON d.id = t.device_id WHERE d.user_id = ?"
    for row in database.all(sql, user_id):
        tags.get(row["device_id"], set()).add(row["tag"])
    outside = sum(not carried.issuperset(scope) and expression.matches(carried) for carried in tags.values())
    own = " and ".join(scope)
    if is_new:
        reach = (
            f"would reach {counted(outside, 'device')}, now or later,"
            if outside
            else "could reach devices later that are"
        )
        what = f"Profile {name} {reach} outside the scope of this token"
        error = out_of_scope(f"{what}: write the devices as {own} and (…)")
    else:
        what = f"Profile {name} has or had {counted(outside, 'device')} outside the scope of this token"
        error = out_of_scope(f"{what}, {own}: use another name")
    error.params |= {"devices": outside, "tags": list(scope)}
    return error
