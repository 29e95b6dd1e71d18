"""Certificate facts in generation manifests: as in ``certificates.json``, but the name is the directory's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from certctrl.model.certificate import CertFacts
from certctrl.store import decode
from certctrl.store.state.converter import state_converter
from certctrl.store.structure import Mismatch, structure

_FIX = "remove its directory; the agent then fetches the certificate again"


def manifest_facts(facts: CertFacts) -> dict[str, Any]:
    """Return the facts as a generation's manifest has them."""
    found: dict[str, Any] = state_converter().unstructure(facts)
    del found["name"]
    return found


def facts_of_manifest(name: str, manifest: Mapping[str, Any], path: str) -> CertFacts:
    """Return the facts of a generation below ``name``. Raises StateCorruptError, naming ``path``."""
    try:
        found: CertFacts = structure(
            CertFacts, {**manifest["facts"], "name": name}, "facts", converter=state_converter()
        )
    except Mismatch as mismatch:
        raise decode.corrupt(path, str(mismatch), _FIX) from None
    return found
