"""Find the copy items of a certificate, and those that are written together or not at all. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from certctrl import lean
from certctrl.install.material.formats import BARE_KEYS, WHOLE_FILES, base_of, is_virtual
from certctrl.install.plan.dependencies import names_given, ordered_steps
from certctrl.model.certificate import CertFacts
from certctrl.model.plan import CopyAction, InstallItem, ObjectType


@lean.frozen
class ItemIndex:
    """Enabled copy items by certificate id and name."""

    items: Sequence[InstallItem]
    by_id: dict[int, list[CopyAction]]
    by_name: dict[str, list[CopyAction]]

    @classmethod
    def of(cls, items: Sequence[InstallItem]) -> ItemIndex:
        """Return the index of some items."""
        by_id: dict[int, list[CopyAction]] = {}
        by_name: dict[str, list[CopyAction]] = {}
        for item in items:
            if isinstance(item, CopyAction) and item.enabled and not item.refused and item.ob_type is not ObjectType.CA:
                if item.ob_id is not None:
                    by_id.setdefault(item.ob_id, []).append(item)
                elif item.ob_name is not None:
                    for name in names_given(item.ob_name):
                        by_name.setdefault(name, []).append(item)
        return cls(items, by_id, by_name)

    @property
    def empty(self) -> bool:
        """Whether no item copies a certificate."""
        return not (self.by_id or self.by_name)

    def copies(self, facts: CertFacts) -> list[CopyAction]:
        """Return the copy items of a certificate: those with its id, then those that name it."""
        if self.empty:
            return []
        found = (item for one in dict.fromkeys((facts.name, *facts.domains[:1])) for item in self.by_name.get(one, ()))
        named = {item.id: item for item in found}
        return [*self.by_id.get(facts.cert_id, []), *named.values()]

    def files(self, facts: CertFacts) -> frozenset[str]:
        """Return the virtual files of a certificate that its copy items want."""
        return frozenset(source for item in self.copies(facts) for source in item.sources if is_virtual(source))


class Indexer:
    """Caches the last index: an agent's items change rarely."""

    def __init__(self) -> None:
        self._last = ItemIndex.of(())

    def of(self, items: Sequence[InstallItem]) -> ItemIndex:
        """Return the index of these items."""
        last = self._last
        if last.items is not items:
            self._last = last = ItemIndex.of(items)
        return last


def is_whole(item: CopyAction) -> bool:
    """Return whether an item alone contains a matching key and certificate."""
    names = set(map(base_of, item.sources))
    return bool(names & WHOLE_FILES) or bool(names & BARE_KEYS and names & {"certificate.pem", "fullchain.pem"})


@lean.frozen
class FileGroup:
    """Copy items that are written together."""

    name: str
    tolerant: bool


def file_groups_of(items: Sequence[InstallItem], about: Mapping[str, tuple[int, ...]]) -> dict[str, FileGroup]:
    """Return copy item id -> its file group; ``about``: item id -> certificates.

    An item with a whole pair is a separate group. The other items of a certificate form one group, because the key of
    one may belong to the certificate of another. A group may fail if all its items say ``continue_on_error`` and are in
    the same step: commands run between two steps, so half a group could not be undone silently.
    """
    members: dict[str, list[CopyAction]] = {}
    for item in items:
        if isinstance(item, CopyAction):
            certs = about[item.id]
            name = f"item:{item.id}" if is_whole(item) or not certs else f"cert:{certs[0]}"
            members.setdefault(name, []).append(item)
    may_fail = {name for name, file_group in members.items() if all(item.continue_on_error for item in file_group)}
    step_of = dict[str, int]()
    if any(len(members[name]) > 1 for name in may_fail):
        step_of = {one: n for n, step in enumerate(ordered_steps(items)) for group in step for one in group}
    found: dict[str, FileGroup] = {}
    for name, file_group in members.items():
        tolerant = name in may_fail and len({step_of.get(item.id) for item in file_group}) == 1
        found |= {item.id: FileGroup(name, tolerant) for item in file_group}
    return found
