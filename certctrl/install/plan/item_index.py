"""ItemIndex: find the copy items of a certificate without a scan of all items. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from certctrl.install.material.formats import VIRTUAL_FILES
from certctrl.model.certificate import CertFacts
from certctrl.model.plan import CopyAction, InstallItem


@attrs.frozen
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
            if isinstance(item, CopyAction) and item.enabled and not item.refused and item.ob_type != "ca":
                if item.ob_id is not None:
                    by_id.setdefault(item.ob_id, []).append(item)
                elif item.ob_name is not None:
                    by_name.setdefault(item.ob_name, []).append(item)
        return cls(items, by_id, by_name)

    @property
    def empty(self) -> bool:
        """Whether no item copies a certificate."""
        return not (self.by_id or self.by_name)

    def copies(self, facts: CertFacts) -> list[CopyAction]:
        """Return the copy items of a certificate: those with its id, then those that name it."""
        named = [item for one in dict.fromkeys((facts.name, *facts.domains[:1])) for item in self.by_name.get(one, ())]
        return self.by_id.get(facts.cert_id, []) + named

    def files(self, facts: CertFacts) -> frozenset[str]:
        """Return the virtual files of a certificate that its copy items want."""
        wanted = {source for item in self.copies(facts) for source in item.sources}
        return VIRTUAL_FILES.intersection(wanted)


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
