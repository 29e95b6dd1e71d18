"""Acts: requests of operators that change something. Each writes one entry, in the transaction of its first change.

`acting` makes an act the one of the current task: from then on, every unit of work that changes something adds what it
changed to the entry. A request that changes nothing, or is refused, leaves no entry.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import attrs

from certctrl.plane.access.roles import Caller
from certctrl.plane.audit import subjects
from certctrl.plane.audit.log import AuditLog, Change
from certctrl.plane.audit.subjects import KIND_OF_FIELD, KIND_OF_TABLE, OF_USER, Values
from certctrl.plane.storage.database import CURRENT_ACT, Database, UndoneError, without_act
from certctrl.text import one_line

T = TypeVar("T")

MAX_COMPARED = 100
"""Objects of an act whose values are compared; more are only named."""
_COMPARED_AGAIN = 10
"""Objects that are compared again in later units of work of the same request."""
_MAX_TEXT = 200
_MAX_ID = 300
_MAX_LISTED = 20
_INTO = re.compile(r"\s*INSERT INTO (\w+)")


class Act:
    """What one operator does with one request, or the plane by itself in one unit of work."""

    def __init__(
        self,
        audit: AuditLog,
        caller: Caller,
        action: str,
        kinds: Mapping[str, str] | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """``kinds``: by field, the kind of objects that it names, in addition to `KIND_OF_FIELD`."""
        self.check: Callable[[Collection[tuple[str, str]]], object] = lambda subjects: None
        """Called in each unit of work with the objects that the request names, by kind and id; may refuse them."""
        self._audit = audit
        self._caller = caller
        self._action = action
        self._kinds = KIND_OF_FIELD | dict(kinds or {})
        self._subjects: dict[tuple[str, str], None] = {}
        self._detail: Values = dict(detail or {})
        self._user_id = ""
        """That of the path, empty if it has none."""
        self._entry: int | None = None
        self.is_open = True
        """Whether changes are its own; False once its request has ended."""
        self._done_elsewhere = False

    def note_fields(self, fields: Mapping[str, Any]) -> None:
        """Note the objects that the fields of a path or a request name; first those of the path."""
        self._user_id = self._user_id or str(fields.get("uid", ""))
        for field, value in fields.items():
            if field in self._kinds and value not in (None, ""):
                kind = self._kinds[field]
                start = f"{self._user_id}/" if kind in OF_USER else ""
                for one in value if isinstance(value, tuple | list) else (value,):
                    self._subjects[kind, one_line(f"{start}{one}", _MAX_ID)] = None

    def note_request(self, body: attrs.AttrsInstance) -> None:
        """Note the fields of a request that are set, without its secrets (``repr=False``)."""
        fields = {field.name: getattr(body, field.name) for field in attrs.fields(type(body)) if field.repr}
        self.note_fields(fields)
        defaults = {field.name: field.default for field in attrs.fields(type(body))}
        self._detail |= {
            name: _brief(value)
            for name, value in fields.items()
            if value != defaults[name] and value not in ((), {}, "", None)
        }

    async def done_elsewhere(self, database: Database) -> None:
        """Write the entry, unless there is one: what was done is not in the database, but at a CA for example."""
        self._done_elsewhere = True
        await database.work(lambda: None)

    def around(self, database: Database, unit: Callable[[], T]) -> T:
        """Run a unit of work, and add what it changes to the entry, in the same transaction."""
        if not self.is_open:
            return unit()
        self.check(self._subjects.keys())
        compared = list(self._subjects)[: MAX_COMPARED if self._entry is None else _COMPARED_AGAIN]
        before = {subject: subjects.shown(database, *subject) for subject in compared}
        changes = database.changes()
        with database.noting_inserts() as inserts:
            result = unit()
        if database.changes() != changes or (self._done_elsewhere and self._entry is None):
            self._record(database, before, inserts)
        return result

    def _record(
        self, database: Database, before: Mapping[tuple[str, str], Values | None], inserts: list[tuple[str, int]]
    ) -> None:
        if not self.is_open:  # dismissed in this unit
            return
        is_first = self._entry is None
        entry = self._audit.add(self._caller, self._action, self._detail) if self._entry is None else self._entry
        database.after_commit(partial(self._stored, entry))
        for sql, new_id in inserts:
            table = _INTO.match(sql)
            kind = KIND_OF_TABLE.get(table[1]) if table is not None else None
            if kind is not None and (kind, str(new_id)) not in before:
                self._add(entry, (kind, str(new_id)), None, subjects.shown(database, kind, str(new_id)))
        for subject, old in before.items():
            new = subjects.shown(database, *subject)
            if is_first or new != old:
                self._add(entry, subject, old, new)
        for subject in list(self._subjects)[MAX_COMPARED:] if is_first else ():
            self._add(entry, subject, None, None)

    def _add(self, entry: int, subject: tuple[str, str], before: Values | None, after: Values | None) -> None:
        name = (after or before or {}).get("name") or ""
        less, more = subjects.difference(before, after)
        kind, object_id = subject
        self._audit.add_change(entry, Change(kind=kind, object_id=object_id, name=str(name), before=less, after=more))

    def _stored(self, entry: int) -> None:
        self._entry = entry


class Trial(Act):
    """A request that is tried only: each of its units of work is rolled back, after noting what it has changed."""

    def __init__(self, audit: AuditLog, caller: Caller, action: str, kinds: Mapping[str, str] | None = None) -> None:
        super().__init__(audit, caller, action, kinds)
        self._changes: dict[tuple[str, ...], dict[str, Any]] = {}

    @property
    def changes(self) -> list[dict[str, Any]]:
        """What would change: ``kind``, ``id`` (empty: new), ``name``, ``before`` and ``after``, as in the audit log."""
        return list(self._changes.values())

    def around(self, database: Database, unit: Callable[[], T]) -> T:
        """Run a unit of work, note what it changes, and roll it back."""
        if not self.is_open:
            return unit()
        self.check(self._subjects.keys())
        before = {subject: subjects.shown(database, *subject) for subject in list(self._subjects)[:MAX_COMPARED]}
        changes = database.changes()
        with database.noting_inserts() as inserts:
            result = unit()
        if database.changes() != changes:
            for sql, new_id in inserts:
                table = _INTO.match(sql)
                kind = KIND_OF_TABLE.get(table[1]) if table is not None else None
                if kind is not None and (kind, str(new_id)) not in before:
                    self._note((kind, str(new_id)), None, subjects.shown(database, kind, str(new_id)), is_new=True)
            for subject, old in before.items():
                self._note(subject, old, subjects.shown(database, *subject))
            for subject in list(self._subjects)[MAX_COMPARED:]:
                self._note(subject, None, None)
        raise UndoneError(result)

    def _note(
        self, subject: tuple[str, str], before: Values | None, after: Values | None, *, is_new: bool = False
    ) -> None:
        less, more = subjects.difference(before, after)
        kind, object_id = subject
        name = str((after or before or {}).get("name") or "")
        # Units are rolled back, so that new objects of different ones may have the same id.
        place = (kind, object_id, str(len(self._changes))) if is_new else subject
        known = self._changes.get(place, {"before": {}, "after": {}})  # by an earlier unit of the request
        changed = {"before": less | known["before"], "after": known["after"] | more}
        self._changes[place] = {"kind": kind, "id": "" if is_new else object_id, "name": name} | changed


@contextlib.contextmanager
def acting(act: Act) -> Iterator[None]:
    """Make an act the one of the current task for the block."""
    token = CURRENT_ACT.set(act)
    try:
        yield
    finally:
        CURRENT_ACT.reset(token)
        act.is_open = False


def aside() -> contextlib.AbstractContextManager[None]:
    """Run the block outside of the current act: what it changes is not the operator's change."""
    return without_act()


def dismiss() -> None:
    """End the current act: it is refused, although its unit of work stores something, such as the failure."""
    act = CURRENT_ACT.get()
    if isinstance(act, Act):
        act.is_open = False


async def done_elsewhere(database: Database) -> None:
    """Write the entry of the current act, which has changed something that is not in the database."""
    act = CURRENT_ACT.get()
    if isinstance(act, Act):
        await act.done_elsewhere(database)


def note_request(body: object) -> None:
    """Note the request of the current act, if there is one."""
    act = CURRENT_ACT.get()
    if isinstance(act, Act) and attrs.has(type(body)):
        act.note_request(body)  # type: ignore[arg-type]


def _brief(value: Any) -> Any:
    """Return a value of a request for the log: long texts and lists are shortened."""
    if isinstance(value, str):
        return value if len(value) <= _MAX_TEXT else f"{value[: _MAX_TEXT - 1]}…"
    if isinstance(value, tuple | list):
        listed = [_brief(one) for one in value[:_MAX_LISTED]]
        return listed + ([f"… {len(value)} in all"] if len(value) > _MAX_LISTED else [])
    if isinstance(value, Mapping):
        return {str(name): _brief(one) for name, one in list(value.items())[:_MAX_LISTED]}
    return value if isinstance(value, int | float | bool) or value is None else str(value)
