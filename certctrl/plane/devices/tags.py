"""Tags: short words on devices, by which operators select them.

``web`` is a plain tag; ``env=prod`` has a key, of which a device has one value: another one takes its place.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, pairwise
from typing import Any

from certctrl.plane.errors import bad_request, conflict, not_found
from certctrl.plane.storage.database import Database, marks
from certctrl.text import counted, one_line

MAX_TAGS = 32
"""Tags of one device, of one enrolment token, and of one request."""
MAX_CHARACTERS = 64
MAX_CHANGED = 1000
"""Devices of one request."""
_WORD = r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?"
_TAG = re.compile(rf"{_WORD}(?:={_WORD})?")

log = logging.getLogger("certctrl.Plane")


def checked_tags(given: Iterable[str], field: str) -> tuple[str, ...]:
    """Return tags in order, each once; ErrorResponse 400 for anything else, too many, and two values of one key."""
    tags = tuple(sorted(set(given)))
    for tag in tags:
        if not is_tag(tag):
            what = f"{one_line(tag, MAX_CHARACTERS)!r} is not a tag: use up to {MAX_CHARACTERS} lower-case letters, digits,"
            raise bad_request(f"{what} '-', '_' and '.', such as web or env=prod", field=field)
    if len(tags) > MAX_TAGS:
        raise bad_request(f"{len(tags)} tags are more than {MAX_TAGS}", field=field)
    for tag, following in pairwise(tags):
        if key_of(tag) and key_of(tag) == key_of(following):
            raise bad_request(f"{tag} and {following} are two values of one key", field=field)
    return tags


def is_tag(text: str) -> bool:
    """Return whether a text is a tag."""
    return len(text) <= MAX_CHARACTERS and _TAG.fullmatch(text) is not None


def carried_by(column: str, tags: Sequence[str]) -> str:
    """Return the condition that the device in a column carries all of these tags, which are its parameters."""
    found = f"EXISTS (SELECT 1 FROM device_tags t WHERE t.device_id = {column} AND t.tag = ?)"
    return " AND ".join([found] * len(tags)) or "1 = 1"


def key_of(tag: str) -> str:
    """Return the key of a tag; empty for a plain one."""
    key, equals, _ = tag.partition("=")
    return key if equals else ""


def _changed(row: Any, present: Sequence[str], added: Sequence[str], removed: Sequence[str]) -> dict[str, Any]:
    """Return the tags of a device after a change, and what it changes; ErrorResponse 409 beyond the limit."""
    keys = {key_of(tag) for tag in added} - {""}
    kept = {tag for tag in present if tag not in removed and key_of(tag) not in keys}
    tags = sorted(kept | set(added))
    if len(tags) > MAX_TAGS:
        what = f"Device {row['id']} ({row['name']}) would have {len(tags)} tags; {MAX_TAGS} are possible"
        raise conflict(what, "LIMIT")
    gone, new = sorted(set(present) - set(tags)), sorted(set(tags) - set(present))
    return {"id": row["id"], "name": row["name"], "tags": tags, "added": new, "removed": gone}


class DeviceTags:
    """The table of tags; all methods run in the caller's unit of work."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self.on_changed: Callable[[Sequence[int], bool], object] = lambda device_ids, strict: None
        """Called in the unit of work with devices whose tags have changed, and whether it may refuse that."""

    def of(self, device_ids: Sequence[int]) -> dict[int, list[str]]:
        """Return the tags of devices, in order, for those that have any."""
        found: dict[int, list[str]] = {}
        sql = f"SELECT device_id, tag FROM device_tags WHERE device_id IN ({marks(device_ids)})"
        for row in self._db.all(sql, *device_ids) if device_ids else ():
            found.setdefault(row["device_id"], []).append(row["tag"])
        return {device_id: sorted(tags) for device_id, tags in found.items()}

    def used(self, user_id: int, scope: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Return the tags of a user's devices, in order, with the number of devices that carry each.

        ``scope``: only devices that carry all of these.
        """
        rows = self._db.all(
            "SELECT u.tag AS tag, count(*) AS n FROM device_tags u JOIN devices d ON d.id = u.device_id"
            f" WHERE d.user_id = ? AND {carried_by('d.id', scope)} GROUP BY u.tag",
            *(user_id, *scope),
        )
        return sorted(({"tag": row["tag"], "devices": row["n"]} for row in rows), key=lambda row: str(row["tag"]))

    def change(
        self, user_id: int, device_ids: Collection[int], *, add: Iterable[str] = (), remove: Iterable[str] = ()
    ) -> list[dict[str, Any]]:
        """Add tags to devices and remove others, on all of them or none; return what each of them has now.

        Besides ``id``, ``name`` and ``tags``, it is ``added`` and ``removed``: a tag that a device has already is not
        added, and one that it lacks not removed. ErrorResponse 400, 404, and 409 beyond the limit.
        """
        added, removed = checked_tags(add, "add"), sorted(set(remove))
        both = next((tag for tag in added if tag in removed), None)
        if both is not None:
            raise bad_request(f"{both} cannot be both added and removed", field="remove")
        ids = sorted(set(device_ids))
        sql = f"SELECT id, name FROM devices WHERE user_id = ? AND id IN ({marks(ids)}) ORDER BY id"
        rows = self._db.all_locked(sql, user_id, *ids) if ids else []
        if len(rows) < len(ids):
            unknown = min(set(ids) - {row["id"] for row in rows})
            raise not_found(f"No such device: {unknown}")
        tags = self.of(ids)
        shown = [_changed(row, tags.get(row["id"], []), added, removed) for row in rows]
        self._store(shown)
        self.on_changed([row["id"] for row in shown if row["added"] or row["removed"]], True)
        words = " ".join([*(f"+{tag}" for tag in added), *(f"-{tag}" for tag in removed)])
        self._db.after_commit(partial(log.info, "tags of %s changed: %s", counted(len(ids), "device"), one_line(words)))
        return shown

    def _store(self, changed: Sequence[Mapping[str, Any]]) -> None:
        """Store the changes of devices, those of each tag together."""
        for tag in sorted({tag for row in changed for tag in row["removed"]}):
            ids = [row["id"] for row in changed if tag in row["removed"]]
            self._db.run(f"DELETE FROM device_tags WHERE tag = ? AND device_id IN ({marks(ids)})", tag, *ids)
        for tag in sorted({tag for row in changed for tag in row["added"]}):
            pairs = [(row["id"], tag) for row in changed if tag in row["added"]]
            values = ", ".join(["(?, ?)"] * len(pairs))
            self._db.run(f"INSERT INTO device_tags VALUES {values}", *chain.from_iterable(pairs))

    def enrol(self, device_id: int, tags: Iterable[str]) -> None:
        """Add the tags of an enrolment token to a device that registers; what operators gave it before stays."""
        present = self.of([device_id]).get(device_id, [])
        keys = {key_of(tag) for tag in present} - {""}
        new = [tag for tag in tags if tag not in present and key_of(tag) not in keys]
        fitting = new[: MAX_TAGS - len(present)]
        if len(fitting) < len(new):
            log.warning(
                "device %d has %d tags: %d of its token are left out", device_id, MAX_TAGS, len(new) - len(fitting)
            )
        for tag in fitting:
            self._db.run("INSERT INTO device_tags VALUES (?, ?)", device_id, tag)
        self.on_changed([device_id], False)
