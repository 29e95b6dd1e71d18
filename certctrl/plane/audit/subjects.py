"""What the audit log shows of an object: the values that operators change, without secrets."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from certctrl.plane.clock import when
from certctrl.plane.devices.grants import canonical_code
from certctrl.plane.rollouts.plan import FROZEN, RENEWAL_PLAN
from certctrl.plane.storage.database import Database, Row

Values = dict[str, Any]

KIND_OF_FIELD = {
    "did": "device", "device_ids": "device", "cid": "certificate", "cert_id": "certificate", "cert_ids": "certificate",
    "caid": "ca", "ca_id": "ca", "tid": "enrolment-token", "oid": "order", "code": "grant", "user_code": "grant",
    "operator": "operator", "ktid": "token", "rid": "rollout", "channel": "alert-channel", "mid": "alert-message",
}  # fmt: skip
"""Field of a path or request -> the kind of the objects that it names."""
KIND_OF_TABLE = {
    "users": "user", "devices": "device", "certificates": "certificate", "orders": "order", "authorities": "ca",
    "enrolment_tokens": "enrolment-token", "operator_tokens": "token", "rollouts": "rollout",
}  # fmt: skip
"""Table -> the kind of the objects that a new row adds."""
OF_USER = frozenset({"certificate-set", "profile"})
"""Kinds whose names are unique for each user only: the id of such an object is ``USER/NAME``."""
_HIDDEN = "***"


def shown(database: Database, kind: str, object_id: str) -> Values | None:
    """Return the values of an object, ``name`` among them; None if there is none."""
    read = _READERS.get(kind)
    return None if read is None else read(database, object_id)


def difference(before: Values | None, after: Values | None) -> tuple[Values, Values]:
    """Return the values before and after that differ; objects within them are compared by their own fields."""
    old, new = before or {}, after or {}
    less: Values = {}
    more: Values = {}
    for name in {**old, **new}:
        one, other = old.get(name), new.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            one, other = difference(one, other)
        if one != other:
            if name in old:
                less[name] = one
            if name in new:
                more[name] = other
    return less, more


def _number(object_id: str) -> int:
    return int(object_id) if object_id.isascii() and object_id.isdigit() and len(object_id) <= 16 else 0


def _row_of(table: str, *columns: str, times: tuple[str, ...] = ()) -> Callable[[Database, str], Values | None]:
    """Return a reader of some columns of the row with an id."""
    sql = f"SELECT {', '.join((*columns, *times))} FROM {table} WHERE id = ?"

    def read(database: Database, object_id: str) -> Values | None:
        row = database.one(sql, _number(object_id))
        return None if row is None else _plain(row, columns, times)

    return read


def _plain(row: Row, columns: tuple[str, ...], times: tuple[str, ...] = ()) -> Values:
    return {name: row[name] for name in columns} | {name: when(row[name]) for name in times}


def _ids(database: Database, sql: str, *parameters: Any) -> list[Any]:
    return [row["found"] for row in database.all(sql, *parameters)]


def _device(database: Database, object_id: str) -> Values | None:
    device_id = _number(object_id)
    columns = ("name", "status", "device_public_id", "revoke_reason")
    row = database.one(f"SELECT {', '.join(columns)} FROM devices WHERE id = ?", device_id)
    if row is None:
        return None
    config = database.one("SELECT version, installs_json FROM install_configs WHERE device_id = ?", device_id)
    return _plain(row, columns) | {
        "tags": _ids(database, "SELECT tag AS found FROM device_tags WHERE device_id = ? ORDER BY tag", device_id),
        "certificates": _ids(
            database, "SELECT cert_id AS found FROM assignments WHERE device_id = ? ORDER BY cert_id", device_id
        ),
        "cas": _ids(
            database, "SELECT ca_id AS found FROM authority_assignments WHERE device_id = ? ORDER BY ca_id", device_id
        ),
        "config_version": 0 if config is None else config["version"],
        "items": {} if config is None else _items(config["installs_json"]),
    }


def _items(text: str) -> Values:
    """Return install items by their id; the values of environment variables may be secrets and are hidden."""
    found: Values = {}
    items = json.loads(text)
    for number, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, Mapping):
            values = dict(item)
            if isinstance(values.get("env"), Mapping):
                values["env"] = dict.fromkeys(map(str, values["env"]), _HIDDEN)
            found[str(values.pop("id", number))] = values
    return found


def _certificate(database: Database, object_id: str) -> Values | None:
    cert_id = _number(object_id)
    columns = ("status", "serial_number", "issuer", "key_origin", "profile", "revoke_reason", "revoke_code", "together")
    row = database.one(
        f"SELECT domain_name, sans, not_after, {', '.join(columns)} FROM certificates WHERE id = ?", cert_id
    )
    if row is None:
        return None
    order = database.one(
        "SELECT id FROM orders WHERE cert_id = ? AND state IN ('csr_wanted', 'ready', 'blocked')", cert_id
    )
    devices = "SELECT device_id AS found FROM assignments WHERE cert_id = ? ORDER BY device_id"
    return (
        {"name": row["domain_name"], "names": json.loads(row["sans"])}
        | _plain(row, columns)
        | {"not_after": when(row["not_after"]) if row["serial_number"] else None}
        | {"order": None if order is None else order["id"], "devices": _ids(database, devices, cert_id)}
    )


def _authority(database: Database, object_id: str) -> Values | None:
    row = database.one("SELECT name, serial_number FROM authorities WHERE id = ?", _number(object_id))
    if row is None:
        return None
    devices = "SELECT device_id AS found FROM authority_assignments WHERE ca_id = ? ORDER BY device_id"
    return _plain(row, ("name", "serial_number")) | {"devices": _ids(database, devices, _number(object_id))}


def _grant(database: Database, object_id: str) -> Values | None:
    columns = ("name", "status", "device_public_id", "address", "user_id")
    row = database.one(f"SELECT {', '.join(columns)} FROM grants WHERE user_code = ?", canonical_code(object_id))
    return None if row is None else _plain(row, columns)


def _issuer(database: Database, object_id: str) -> Values | None:
    row = database.one("SELECT kind, settings, problem, updated_at FROM issuers WHERE name = ?", object_id)
    if row is None:
        return None
    settings = {"settings": json.loads(row["settings"])}
    return {"name": object_id} | _plain(row, ("kind", "problem"), ("updated_at",)) | settings


def _rule(database: Database, object_id: str) -> Values | None:
    domain = object_id.strip().rstrip(".").lower()
    row = database.one("SELECT issuer FROM issuer_rules WHERE domain = ?", domain)
    return None if row is None else {"issuer": row["issuer"]}


def _user(database: Database, object_id: str) -> Values | None:
    row = database.one("SELECT name FROM users WHERE id = ?", _number(object_id))
    if row is None:
        return None
    user_id = _number(object_id)
    frozen, renewals = database.setting(f"{FROZEN}{user_id}"), database.setting(f"{RENEWAL_PLAN}{user_id}")
    return {"name": row["name"], "rollouts_frozen": frozen, "renewal_rollouts": renewals}


def _set(database: Database, object_id: str) -> Values | None:
    user_id, _, name = object_id.partition("/")
    sql = "SELECT id AS found FROM certificates WHERE user_id = ? AND together = ? ORDER BY id"
    found = _ids(database, sql, _number(user_id), name)
    return {"name": name, "certificates": found} if found else None


def _profile(database: Database, object_id: str) -> Values | None:
    """Return the version of a profile that devices have, except those that a rollout has released."""
    user_id, _, name = object_id.partition("/")
    row = database.one(
        "SELECT p.name, p.version, v.devices, v.position, v.items_json FROM profiles p JOIN profile_versions v"
        " ON v.profile_id = p.id AND v.version = p.version WHERE p.user_id = ? AND p.name = ?",
        *(_number(user_id), name),
    )
    if row is None:
        return None
    return _plain(row, ("name", "version", "devices")) | {"order": row["position"], "items": _items(row["items_json"])}


def _rollout(database: Database, object_id: str) -> Values | None:
    row = database.one(
        "SELECT coalesce(p.name, 'renewal') AS name, r.version, r.state, r.reason FROM rollouts r"
        " LEFT JOIN profiles p ON p.id = r.profile_id"
        " WHERE r.id = ?",
        _number(object_id),
    )
    if row is None:
        return None
    sql = "SELECT count(*) AS n FROM rollout_devices WHERE rollout_id = ? AND state = 'failed'"
    failed = database.one(sql, _number(object_id))
    return _plain(row, ("name", "version", "state", "reason")) | {"failed": 0 if failed is None else failed["n"]}


def _batch(database: Database, object_id: str) -> Values | None:
    found = _ids(database, "SELECT id AS found FROM orders WHERE batch = ? ORDER BY id", object_id)
    return {"orders": found} if found else None


def _setting(database: Database, object_id: str) -> Values | None:
    return {"value": database.setting(object_id)}


def _token(database: Database, object_id: str) -> Values | None:
    columns, times = ("name", "role", "tags"), ("expires_at", "revoked_at")
    row = database.one(
        "SELECT t.name, t.role, t.tags, t.expires_at, t.revoked_at, o.name AS operator FROM operator_tokens t"
        " JOIN operators o ON o.id = t.operator_id WHERE t.id = ?",
        _number(object_id),
    )
    return None if row is None else _plain(row, (*columns, "operator"), times)


def _alert_channel(database: Database, object_id: str) -> Values | None:
    """Return a channel by name; its URL, which may be a secret, is not among its settings."""
    row = database.one("SELECT name, kind, settings, updated_at FROM alert_channels WHERE name = ?", object_id)
    if row is None:
        return None
    settings = json.loads(row["settings"])
    return _plain(row, ("name", "kind"), ("updated_at",)) | {"settings": settings}


def _operator(database: Database, object_id: str) -> Values | None:
    """Return an operator by name, which may be a number."""
    columns, times = ("name", "role"), ("disabled_at", "deleted_at")
    row = database.one(
        f"SELECT {', '.join((*columns, *times))} FROM operators WHERE name = ? AND deleted_at IS NULL", object_id
    )
    return None if row is None else _plain(row, columns, times)


_READERS: dict[str, Callable[[Database, str], Values | None]] = {
    "user": _user,
    "device": _device,
    "certificate": _certificate,
    "order": _row_of("orders", "cert_id", "issuer", "action", "reason", "state", "problem"),
    "ca": _authority,
    "enrolment-token": _row_of("enrolment_tokens", "label", "max_uses", "tags", times=("expires_at", "ended_at")),
    "grant": _grant,
    "issuer": _issuer,
    "issuer-rule": _rule,
    "certificate-set": _set,
    "batch": _batch,
    "setting": _setting,
    "operator": _operator,
    "token": _token,
    "profile": _profile,
    "rollout": _rollout,
    "alert-channel": _alert_channel,
    "alert-message": _row_of(
        "alert_messages", "group_name", "kind", "state", "attempts", "problem", times=("dismissed_at",)
    ),
}
