"""Certificate facts and records as JSON: one form for ``certificates.json`` and for generation manifests.

The facts stay flat: in a record they are next to its other fields, in a manifest the name is the directory's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from certctrl.model.certificate import CertFacts
from certctrl.model.records import CertRecord
from certctrl.store import decode
from certctrl.store.structure import Mismatch, structure

_FIX = "remove its directory; the agent then fetches the certificate again"


def facts_to_json(facts: CertFacts) -> dict[str, Any]:
    """Return the facts as JSON."""
    return attrs.asdict(facts, recurse=False) | {"domains": list(facts.domains)}


def record_to_json(record: CertRecord) -> dict[str, Any]:
    """Return a record as the row that `InstalledState.load_certificates` reads."""
    row = attrs.asdict(record, recurse=False)
    return facts_to_json(row.pop("facts")) | row


def manifest_facts(facts: CertFacts) -> dict[str, Any]:
    """Return the facts as a generation's manifest has them."""
    found = facts_to_json(facts)
    del found["name"]
    return found


def facts_of_manifest(name: str, manifest: Mapping[str, Any], path: str) -> CertFacts:
    """Return the facts of a generation below ``name``. Raises StateCorruptError, naming ``path``."""
    try:
        found: CertFacts = structure(CertFacts, {**manifest["facts"], "name": name}, "facts", spare_keys=True)
    except Mismatch as mismatch:
        raise decode.corrupt(path, str(mismatch), _FIX) from None
    return found
