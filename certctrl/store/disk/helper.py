"""The interface of the root helper, as far as files are concerned, and the rules of its policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from certctrl import lean

if TYPE_CHECKING:
    from certctrl.store.disk.safe_path import DestinationFact


@lean.frozen(kw_only=True)
class FileRule:
    """Files that root's policy lets a user write, with the rights that they get."""

    path: str
    """Absolute path; the name may contain ``*``."""
    owner: str
    group: str
    mode: int
    uid: int | None = None
    """The owner's id; None if this host does not have the user."""
    gid: int | None = None

    def names(self, path: str) -> bool:
        """Return whether a normalized path is one of these files; hidden files match no pattern."""
        if "*" not in self.path:
            return path == self.path
        (directory, _, pattern), (other, _, name) = self.path.rpartition("/"), path.rpartition("/")
        return directory == other and not name.startswith(".") and _matches(name, pattern.split("*"))


def _matches(name: str, parts: Sequence[str]) -> bool:
    """Return whether a name consists of these parts, with anything between two of them."""
    first, *middle, last = parts
    if len(name) < len(first) + len(last) or not (name.startswith(first) and name.endswith(last)):
        return False
    at, end = len(first), len(name) - len(last)
    for part in middle:
        at = name.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


def rule_for(rules: Sequence[FileRule], path: str) -> FileRule | None:
    """Return the rule of a path: one for exactly this path, otherwise the first pattern; None if there is none."""
    found = [rule for rule in rules if rule.names(path)]
    return next((rule for rule in found if rule.path == path), found[0] if found else None)


class FileHelper(Protocol):
    """Steps of a deployment to a file that root's policy names. All block, and make their change durable.

    They raise PolicyRefusedError if the helper refuses, DiskError if it fails or does not answer.
    """

    def rules(self) -> tuple[FileRule, ...]:
        """Return the rules for this user; none if there is no helper."""

    def observe(self, path: str, temp: str = "") -> tuple[DestinationFact, str]:
        """Return the state of a destination without its bytes, and the SHA-256 of its new file, empty if it has none."""

    def stage(self, path: str, temp: str, backup: str, data: bytes) -> None:
        """Write the new file, and a copy of the old one if there is one, next to the destination."""

    def put(self, path: str, temp: str) -> None:
        """Rename the new file into place."""

    def restore(self, path: str, backup: str, sha256: str) -> None:
        """Restore the old file, if the destination still has the bytes with this hash; without one, remove it."""

    def drop(self, path: str, temp: str, backup: str) -> None:
        """Remove the new file that was not put in place, and the copy of the old one; idempotent."""

    def remove(self, path: str, sha256: str) -> str:
        """Remove a file if its bytes have this hash; return why it stays, empty if it is gone."""
