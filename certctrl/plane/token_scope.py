"""The scope of an operator's token: it sees and changes devices that carry all of its tags, and what only they have.

The tables are read in the unit of work of the change, so that nothing can leave the scope in between.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from certctrl.plane.access.roles import Caller
from certctrl.plane.devices.tags import carried_by, key_of
from certctrl.plane.errors import ErrorResponse, not_found, out_of_scope
from certctrl.plane.storage.database import Database, marks
from certctrl.text import counted


class TokenScope:
    """Compares what a request names with the scope of its caller; all methods run in the caller's unit of work."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def require(self, caller: Caller, subjects: Collection[tuple[str, str]], *, whole: bool) -> None:
        """Raise ErrorResponse 404 for the first device, certificate or order, by kind and id, that the caller does not see.

        A certificate is seen if a device within the scope has it. ``whole``: 403 unless only such devices have it and what
        is renewed with it.
        """
        if not caller.tags:
            return
        devices = _numbers(subjects, "device")
        if devices and not self._carry_all(devices, caller.tags):
            raise not_found("No such device")
        orders, certificates = _numbers(subjects, "order"), _numbers(subjects, "certificate")
        of_orders = self._of_orders(orders)
        if orders and not (of_orders and self._see_all(of_orders, caller.tags)):
            raise not_found("There is no such order; see plane orders list --all")
        if certificates and not self._see_all(certificates, caller.tags):
            raise not_found("No such certificate")
        certificates = sorted({*certificates, *of_orders})
        if certificates and whole:
            self._require_whole(caller, certificates)

    def _carry_all(self, device_ids: Sequence[int], tags: Sequence[str]) -> bool:
        sql = (
            f"SELECT count(*) AS n FROM devices WHERE id IN ({marks(device_ids)}) AND {carried_by('devices.id', tags)}"
        )
        row = self._db.one(sql, *device_ids, *tags)
        return row is not None and row["n"] == len(device_ids)

    def _of_orders(self, order_ids: Sequence[int]) -> list[int]:
        """Return the certificates of orders."""
        sql = f"SELECT DISTINCT cert_id FROM orders WHERE id IN ({marks(order_ids)})"
        return [row["cert_id"] for row in self._db.all(sql, *order_ids)] if order_ids else []

    def _see_all(self, cert_ids: Sequence[int], tags: Sequence[str]) -> bool:
        row = self._db.one(
            f"SELECT count(DISTINCT a.cert_id) AS n FROM assignments a WHERE a.cert_id IN ({marks(cert_ids)})"
            f" AND {carried_by('a.device_id', tags)}",
            *(*cert_ids, *tags),
        )
        return row is not None and row["n"] == len(cert_ids)

    def _require_whole(self, caller: Caller, cert_ids: Sequence[int]) -> None:
        ids = self._changed_with(cert_ids)
        row = self._db.one(
            "SELECT count(DISTINCT a.device_id) AS n,"
            f" min(CASE WHEN a.cert_id IN ({marks(cert_ids)}) THEN a.cert_id ELSE NULL END) AS named"
            f" FROM assignments a WHERE a.cert_id IN ({marks(ids)}) AND NOT ({carried_by('a.device_id', caller.tags)})",
            *(*cert_ids, *ids, *caller.tags),
        )
        if row is not None and row["n"]:
            raise _reaches_outside(caller, int(row["n"]), row["named"])

    def _changed_with(self, cert_ids: Sequence[int]) -> list[int]:
        """Return certificates with all that are renewed with them: their sets and batches, and those made from them."""
        found = set(cert_ids)
        sets = self._db.all(
            "SELECT DISTINCT c.user_id, coalesce(nullif(c.together, ''), t.together) AS together FROM certificates c"
            f" LEFT JOIN certificates t ON t.id = c.template_id WHERE c.id IN ({marks(cert_ids)})",
            *cert_ids,
        )
        for row in sets:
            if row["together"]:
                sql = "SELECT id FROM certificates WHERE user_id = ? AND together = ?"
                found |= {one["id"] for one in self._db.all(sql, row["user_id"], row["together"])}
        ids = self._with_made(found)
        in_batches = self._db.all(
            "SELECT b.cert_id FROM orders o JOIN orders b ON b.batch = o.batch WHERE o.batch != '' AND o.state != 'done'"
            f" AND b.state != 'done' AND o.cert_id IN ({marks(ids)})",
            *ids,
        )
        return self._with_made({*ids, *(row["cert_id"] for row in in_batches)})

    def _with_made(self, cert_ids: Collection[int]) -> list[int]:
        """Return certificates with those made from them."""
        ids = sorted(cert_ids)
        made = self._db.all(f"SELECT id FROM certificates WHERE template_id IN ({marks(ids)})", *ids)
        return sorted({*ids, *(row["id"] for row in made)})


def _reaches_outside(caller: Caller, outside: int, cert_id: int | None) -> ErrorResponse:
    """Return 403: a change would reach devices outside the scope of the caller; ``cert_id``: a certificate that it names."""
    by = "" if cert_id is None else f", by certificate {cert_id},"
    error = out_of_scope(f"This would reach {counted(outside, 'device')}{by} outside the scope of {scoped(caller)}")
    error.params |= {"devices": outside, "tags": list(caller.tags)}
    return error


def whole_fleet(caller: Caller) -> ErrorResponse:
    """Return 403: what a request reads or changes is not a matter of single devices."""
    error = out_of_scope(f"This is outside the scope of {scoped(caller)}")
    error.params |= {"tags": list(caller.tags)}
    return error


def refuse_own_tags(caller: Caller, tags: Collection[str]) -> None:
    """Raise ErrorResponse 403 if a change of tags is about those on which the scope of the caller rests."""
    mine = {key_of(tag) or tag for tag in caller.tags}
    about = sorted(tag for tag in tags if (key_of(tag) or tag) in mine)
    if about:
        error = out_of_scope(
            f"The tag {about[0]} decides about the scope of {scoped(caller)}: it cannot be changed by it"
        )
        error.params |= {"tags": list(caller.tags)}
        raise error


def scoped(caller: Caller) -> str:
    """Return the words for a caller with a scope."""
    return f"{caller.via} of {caller.who}: devices with {' and '.join(caller.tags)}"


def _numbers(subjects: Collection[tuple[str, str]], kind: str) -> list[int]:
    """Return the ids of one kind, in order; 0, which no object has, for what is no id."""
    texts = {text for found, text in subjects if found == kind}
    return sorted({int(text) if text.isascii() and text.isdigit() and len(text) <= 16 else 0 for text in texts})
