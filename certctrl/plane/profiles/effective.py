"""Effective install configs: the items of profiles, in order, and a device's own items. Pure.

An item with ``{cert.name}`` or ``{cert.id}`` is repeated for each certificate of the device, or for that of its ``ob_id``
or ``ob_name``; the copies have the id of the certificate after their own. Items that depend on it depend on the copy for
the same certificate, otherwise on all copies. An item all of whose dependencies are left out is left out, too.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import attrs

from certctrl import lean
from certctrl.errors import PlanError
from certctrl.model.plan import CopyAction
from certctrl.plane.profiles.placeholders import (
    OF_CERTIFICATE,
    DeviceValues,
    PlaceholderError,
    filled,
    used_in,
    values_of,
)
from certctrl.protocol.wire.install_config import check_modes, items_from_operator
from certctrl.protocol.wire.install_items import item_from_operator
from certctrl.protocol.wire.item_fields import MAX_ITEMS
from certctrl.protocol.wire.reader import Misfit, bounded_list
from certctrl.text import one_line

OWN = ""
"""The source of a device's own items, in place of the name of a profile."""
_SAMPLE = DeviceValues(
    id=1, name="sample-device", public_id="sample-public-id", tags=(), certificates=((1, "sample.example.com"),)
)
MAX_ANSWER = 1_000_000
"""Bytes of a config in the answer to an agent, which contains it as a list and as a text, and reads 1 MiB."""
_KEPT = 256
"""Configs whose check is remembered: most devices of a profile have the same one."""


class EffectiveError(ValueError):
    """Items are not valid, alone or together; ``path`` is that in the profile, if it is known."""

    def __init__(self, what: str, path: str = "") -> None:
        super().__init__(f"{path}: {what}" if path else what)
        self.path = path


@lean.frozen(eq=False)
class ProfileItems:
    """The items of one profile."""

    name: str
    items: Sequence[Mapping[str, Any]]
    placeholders: Sequence[frozenset[str]]
    """Those of each item."""

    @property
    def repeated(self) -> list[str]:
        """The ids of the items that are repeated for certificates."""
        pairs = zip(self.items, self.placeholders, strict=True)
        return [str(item["id"]) for item, used in pairs if not used.isdisjoint(OF_CERTIFICATE)]


@lean.frozen
class _Row:
    source: str
    name: str
    """The id of the item before it is repeated."""
    cert_id: int | None
    item: dict[str, Any]


def json_of(items: Sequence[Any]) -> str:
    """Return the text of items that is stored and hashed."""
    return json.dumps(items, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def profile_items(name: str, items: Sequence[Mapping[str, Any]]) -> ProfileItems:
    """Return items that were checked when they were stored."""
    return ProfileItems(name, items, tuple(map(used_in, items)))


def checked_profile(name: str, items: Any) -> ProfileItems:
    """Return the items of a new profile, checked as far as that is possible without a device. Raises EffectiveError."""
    try:
        rows = bounded_list(items, MAX_ITEMS)
    except Misfit as misfit:
        raise EffectiveError(misfit.what, "installs") from None
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise EffectiveError("expected an object", f"installs[{number}]")
    try:
        profile = ProfileItems(name, rows, tuple(_used(row, f"installs[{number}]") for number, row in enumerate(rows)))
        for number, row in enumerate(rows):
            _check_alone(row, profile.placeholders[number], f"installs[{number}]")
    except Misfit as misfit:
        raise EffectiveError(misfit.what, misfit.path) from None
    expanded = [_Row(name, str(row["id"]), None, _sample(row)) for row in rows]
    _check_ids(expanded)
    _check_targets(expanded)
    return profile


def _used(row: Mapping[str, Any], path: str) -> frozenset[str]:
    try:
        return used_in(row)
    except PlaceholderError as error:
        raise EffectiveError(str(error), path + error.path) from None


def _sample(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item with sample values, which no real item has."""
    certificate = (1, str(row.get("ob_name") or f"sample-{row.get('ob_id') or 1}.example.com"))
    value_of = values_of(_SAMPLE, certificate)
    return filled(row, lambda name: "sample-value" if name.startswith("device.tag.") else value_of(name))


def _check_alone(row: Mapping[str, Any], placeholders: frozenset[str], path: str) -> None:
    """Check an item with sample values. Raises Misfit."""
    item = item_from_operator(_sample(row), path)
    check_modes(item, path)
    repeated = not placeholders.isdisjoint(OF_CERTIFICATE)
    if not repeated or row.get("ob_id") or row.get("ob_name") or not isinstance(item, CopyAction):
        return
    for number, target in enumerate(row["to"]):
        if not any(f"{{{name}}}" in target for name in OF_CERTIFICATE):
            what = "is the same for each certificate: use {cert.name} or {cert.id} in it, or set ob_name"
            raise Misfit(what, f"{path}.to[{number}]")


# --- the config of one device ---------------------------------------------------------------------------------------


class Merger:
    """Merges items for many devices, and remembers what it has checked."""

    def __init__(self) -> None:
        self._checked: dict[str, str] = {}
        """Text of a config -> why it is not valid; empty: it is."""

    def merged(self, profiles: Sequence[ProfileItems], device: DeviceValues, own: str) -> str:
        """Return the text of the config of a device: its own, unchanged, without profiles. Raises EffectiveError."""
        if not profiles:
            return own
        rows = [row for profile in profiles for row in _expanded(profile, device)]
        rows += [_Row(OWN, str(item.get("id")), None, item) for item in _own_items(own)]
        repeated = {name for profile in profiles for name in profile.repeated}
        declared = {str(item["id"]) for profile in profiles for item in profile.items} | {row.name for row in rows}
        rows = _resolved(rows, declared, repeated)
        text = json_of([row.item for row in rows])
        if (why := self._checked.get(text)) is None:
            if len(self._checked) >= _KEPT:
                self._checked.clear()
            why = self._checked[text] = _reason(rows) or _size_reason(text)
        if why:
            raise EffectiveError(why)
        return text


def _reason(rows: Sequence[_Row]) -> str:
    """Return why items are not valid together; empty: they are."""
    try:
        if len(rows) > MAX_ITEMS:
            raise EffectiveError(f"{len(rows)} items are more than {MAX_ITEMS}")
        _check_ids(rows)
        items_from_operator([row.item for row in rows])
        _check_targets(rows)
    except Misfit as misfit:
        return _with_item(misfit, rows)
    except (PlanError, EffectiveError) as error:
        return str(error)
    return ""


def _size_reason(text: str) -> str:
    """Return why no agent would read a config; empty: agents do."""
    size = len(text.encode()) + len(json.dumps(text, ensure_ascii=False).encode())
    return (
        f"the config has {size // 1000} kB with its text, more than {MAX_ANSWER // 1000} kB"
        if size > MAX_ANSWER
        else ""
    )


def _with_item(misfit: Misfit, rows: Sequence[_Row]) -> str:
    """Return a reason that names the item by its source and id instead of its place in the whole list."""
    place, _, rest = misfit.path.partition("]")
    number = place.removeprefix("installs[")
    if not number.isdigit():
        return str(misfit)
    row = rows[int(number)]
    return f"{_named(row)}{': ' if rest else ''}{rest.removeprefix('.')}: {misfit.what}"


def _own_items(own: str) -> list[dict[str, Any]]:
    items = json.loads(own)
    if not isinstance(items, list) or not all(isinstance(one, dict) for one in items):
        raise EffectiveError("the device's own items are not valid: put them again")
    return items


def _expanded(profile: ProfileItems, device: DeviceValues) -> Iterator[_Row]:
    for item, placeholders in zip(profile.items, profile.placeholders, strict=True):
        name = str(item["id"])
        try:
            if placeholders.isdisjoint(OF_CERTIFICATE):
                yield _Row(profile.name, name, None, filled(item, values_of(device)))
                continue
            for cert_id, domain in device.certificates:
                if not _is_for(item, cert_id, domain):
                    continue
                made = filled(item, values_of(device, (cert_id, domain)))
                bound = {"id": f"{name}:{cert_id}", "ob_type": "cert", "ob_id": cert_id, "ob_name": domain}
                yield _Row(profile.name, name, cert_id, made | bound)
        except PlaceholderError as error:
            raise EffectiveError(f"item {one_line(name, 80)} of profile {profile.name}: {error}") from None


def _is_for(item: Mapping[str, Any], cert_id: int, domain: str) -> bool:
    """Return whether a repeated item is for a certificate; by id, or by name, or for all."""
    if item.get("ob_id"):
        return str(item["ob_id"]) in (str(cert_id), "{cert.id}")
    return item.get("ob_name") in (None, "", domain, "{cert.name}")


def _resolved(rows: Sequence[_Row], declared: Collection[str], repeated: Collection[str]) -> list[_Row]:
    """Return the rows with dependencies on copies of repeated items, without those whose dependencies are left out."""
    kept = list(rows)
    while True:
        present = {(row.name, row.cert_id) for row in kept}
        found = [_resolve(row, present, declared, repeated) for row in kept]
        if None not in found:
            return [row for row in found if row is not None]
        kept = [row for row, resolved in zip(kept, found, strict=True) if resolved is not None]


def _resolve(
    row: _Row, present: Collection[tuple[str, int | None]], declared: Collection[str], repeated: Collection[str]
) -> _Row | None:
    """Return a row with its dependencies as they are called in the config; None: all of them are left out."""
    needs = row.item.get("depends_on")
    if not isinstance(needs, list) or not needs:
        return row
    found: list[Any] = []
    for one in needs:
        name = str(one)
        if name not in declared:  # the check of the whole config names it
            found.append(one)
        elif name not in repeated:
            found += [one] if (name, None) in present else []
        else:
            copies = sorted(cert_id for other, cert_id in present if other == name and cert_id is not None)
            found += [f"{name}:{cert_id}" for cert_id in copies if row.cert_id in (None, cert_id)]
    return attrs.evolve(row, item=row.item | {"depends_on": found}) if found else None


def _check_ids(rows: Sequence[_Row]) -> None:
    seen: dict[str, _Row] = {}
    for row in rows:
        item_id = str(row.item.get("id"))
        if (other := seen.get(item_id)) is not None:
            raise EffectiveError(f"{_named(row)} has the same id as {_named(other)}")
        seen[item_id] = row


def _check_targets(rows: Sequence[_Row]) -> None:
    """Raise EffectiveError if two items write one path: a host would refuse the second one."""
    writers: dict[str, _Row] = {}
    for row in rows:
        if row.item.get("type") != "copy" or row.item.get("enabled") is False:
            continue
        for target in row.item.get("to") or ():
            if (other := writers.get(target)) is not None:
                what = f"{_named(row)} writes {one_line(target, 100)}"
                raise EffectiveError(f"{what} twice" if other is row else f"{what}, as {_named(other)} does")
            writers[target] = row


def _named(row: _Row) -> str:
    item_id = one_line(str(row.item.get("id")), 80)
    return f"item {item_id} of {f'profile {row.source}' if row.source else 'the device itself'}"
