"""The converter of the state files: how records, signals and certificate facts are written as JSON.

It ignores keys of later releases. Records stay flat: the facts of a certificate are next to its other fields,
because `CertRecord.facts` is marked ``inline``. Signals have the form of the wire.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from cattrs import Converter

from certctrl.model.signals import Signal, to_wire
from certctrl.protocol.wire.signals import signal_from_wire
from certctrl.store.structure import tolerant_converter


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
        return None if signal is None else to_wire(signal)

    converter.register_structure_hook_func(lambda kind: kind == Signal, structure_signal)
    converter.register_structure_hook_func(lambda kind: kind == Signal | None, structure_optional_signal)
    converter.register_unstructure_hook_func(lambda kind: kind in (Signal, Signal | None), unstructure_optional_signal)
    return converter
