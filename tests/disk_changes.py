"""The nodes of a model disk, the changes to them, and what a power cut may leave of changes that are not durable.

Between two syncs a real kernel may write back anything in almost any order, so after a crash the disk may have

* any set of the directory changes that respects their order per name (a rename is one change),
* for each file any prefix of its writes, the last one whole, half, or as zeros of full length,
* for each file any prefix of its changes of mode and owner,

independently of each other.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple


class Node(NamedTuple):
    """One file, directory or link; ``entries`` is replaced, never modified."""

    kind: str
    mode: int
    uid: int
    gid: int
    data: bytes = b""
    text: str = ""
    entries: Mapping[str, int] = MappingProxyType({})
    attributes: Mapping[str, bytes] = MappingProxyType({})
    time: int = 0


@dataclass(frozen=True)
class Change:
    """One change that becomes durable whole or not at all; of data, `torn` lists partial states."""

    group: str  # entry, data, meta
    ino: int  # the directory or file that is changed
    names: tuple[str, ...] = ()
    apply: Callable[[Node], Node] = lambda node: node
    torn: tuple[Callable[[Node], Node], ...] = ()


def with_entry(name: str, ino: int) -> Callable[[Node], Node]:
    return lambda node: node._replace(entries={**node.entries, name: ino})


def without_entry(name: str) -> Callable[[Node], Node]:
    return lambda node: node._replace(entries={key: ino for key, ino in node.entries.items() if key != name})


def renamed(old: str, new: str, ino: int) -> Callable[[Node], Node]:
    return lambda node: with_entry(new, ino)(without_entry(old)(node))


def written(offset: int, data: bytes) -> Callable[[Node], Node]:
    def apply(node: Node) -> Node:
        before = node.data.ljust(offset, b"\0")
        return node._replace(data=before[:offset] + data + before[offset + len(data) :])

    return apply


def resized(size: int) -> Callable[[Node], Node]:
    return lambda node: node._replace(data=node.data[:size].ljust(size, b"\0"))


def crash_images(
    base: Mapping[int, Node], pending: Sequence[Change], limit: int, chance: random.Random
) -> Iterator[dict[int, Node]]:
    """Yield possible nodes after a power cut, extremes first: all if there are few, otherwise a seeded sample."""
    for chosen, levels in _choices(pending, limit, chance):
        yield _image(base, pending, chosen, levels)


def _choices(
    pending: Sequence[Change], limit: int, chance: random.Random
) -> Iterator[tuple[frozenset[int], dict[Any, int]]]:
    """Yield the numbers of durable entry changes, and how many steps of each file's changes are durable."""
    entries = [i for i, change in enumerate(pending) if change.group == "entry"]
    files: dict[tuple[str, int], list[Change]] = {}
    for change in pending:
        if change.group != "entry":
            files.setdefault((change.group, change.ino), []).append(change)
    sizes = {key: 1 + sum(1 + len(change.torn) for change in changes) for key, changes in files.items()}
    whole = {key: size - 1 for key, size in sizes.items()}
    none: dict[Any, int] = dict.fromkeys(sizes, 0)
    total = 2 ** len(entries) * math.prod(sizes.values())
    everything = frozenset(entries)
    for chosen, levels in ((everything, whole), (frozenset(), none), (everything, none), (frozenset(), whole)):
        yield _closed(pending, chosen), levels
    if total <= 4 * limit:
        for count in range(len(entries) + 1):
            for some in itertools.combinations(entries, count):
                if _closed(pending, frozenset(some)) == frozenset(some):
                    for levels_ in itertools.product(*(range(size) for size in sizes.values())):
                        yield frozenset(some), dict(zip(sizes, levels_, strict=True))
        return
    for one in entries:  # all but one, and one alone: these reveal most mistakes
        yield _closed(pending, everything - {one}), whole
        yield _closed(pending, frozenset({one})), whole
        yield _closed(pending, frozenset({one})), none
    for key, size in sizes.items():
        for level in range(size):
            yield everything, whole | {key: level}
    for _ in range(6 * limit):
        share = chance.random()
        chosen = frozenset(one for one in entries if chance.random() < share)
        yield (
            _closed(pending, chosen),
            {key: chance.choice((0, size - 1, chance.randrange(size))) for key, size in sizes.items()},
        )


def _closed(pending: Sequence[Change], chosen: frozenset[int]) -> frozenset[int]:
    """Drop changes that cannot be durable without an earlier one of the same name."""
    kept: set[int] = set()
    lost: set[tuple[int, str]] = set()
    for number, change in enumerate(pending):
        if change.group != "entry":
            continue
        touched = {(change.ino, name) for name in change.names}
        if number in chosen and not touched & lost:
            kept.add(number)
        else:
            lost |= touched
    return frozenset(kept)


def _image(
    base: Mapping[int, Node], pending: Sequence[Change], chosen: frozenset[int], levels: Mapping[Any, int]
) -> dict[int, Node]:
    nodes, left = dict(base), dict(levels)
    for number, change in enumerate(pending):
        if change.group == "entry":
            if number in chosen:
                nodes[change.ino] = change.apply(nodes[change.ino])
            continue
        key = (change.group, change.ino)
        steps = (*change.torn, change.apply)
        reached = min(left[key], len(steps))
        left[key] = left[key] - reached if reached == len(steps) else 0
        if reached:
            nodes[change.ino] = steps[reached - 1](nodes[change.ino])
    return nodes
