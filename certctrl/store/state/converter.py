"""The converter of the state files: records, signals and certificate facts as JSON.

It ignores keys of later releases. Records stay flat: the facts of a certificate are next to its other fields,
because `CertRecord.facts` is marked ``inline``. Signals have the form of the wire, with their priority.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from cattrs import Converter

from certctrl.model.certificate import CertFacts
from certctrl.model.signals import Signal, to_state
from certctrl.protocol.wire.signals import signal_from_wire
from certctrl.store import decode
from certctrl.store.structure import Mismatch, structure, tolerant_converter


@cache
def state_converter() -> Converter:
    """Return the converter, built once."""
    converter = tolerant_converter()
    structure_object = converter.get_structure_hook(dict[str, Any])

    def structure_signal(raw: Any, _: Any) -> Signal:
        return signal_from_wire(structure_object(raw, dict[str, Any]))

    def structure_optional_signal(raw: Any, kind: Any) -> Signal | None:
        return None if raw is None else structure_signal(raw, kind)

    def unstructure_optional_signal(signal: Signal | None) -> dict[str, Any] | None:
        return None if signal is None else to_state(signal)

    converter.register_structure_hook_func(lambda kind: kind == Signal, structure_signal)
    converter.register_structure_hook_func(lambda kind: kind == Signal | None, structure_optional_signal)
    converter.register_unstructure_hook_func(lambda kind: kind in (Signal, Signal | None), unstructure_optional_signal)
    return converter


_FIX = "remove its directory; the agent then fetches the certificate again"


def manifest_facts(facts: CertFacts) -> dict[str, Any]:
    """Return the facts as a generation's manifest has them: without the name, which is the directory's."""
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
