"""Settings from the environment: ``CERTCTRL_<FIELD>`` for the application, ``CERTCTRL_HTTPCLIENT_<FIELD>`` & co.

Text for text, ``true`` or ``false`` for a switch, numbers as numbers, a list as JSON or with commas, a mapping
as JSON. A variable that nearly is the name of a setting is a mistake; others with the prefix are not ours.
"""

from __future__ import annotations

import difflib
import json
import typing
from collections.abc import Mapping
from typing import Any

import attrs

from certctrl.errors import ConfigError
from certctrl.store.structure import Mismatch, check_bounds, hints, structure

PREFIX = "CERTCTRL_"
_NEARLY = 0.93
_SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@attrs.frozen
class Override:
    """One setting given by the environment."""

    variable: str
    value: Any = attrs.field(repr=False)


def variable_names(classes: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return variable -> (section, field) for every setting."""
    names: dict[str, tuple[str, str]] = {}
    for section, kind in classes.items():
        prefix = PREFIX if section == "application" else f"{PREFIX}{section.upper()}_"
        names |= {f"{prefix}{field.name.upper()}": (section, field.name) for field in attrs.fields(kind)}
    return names


def overrides(classes: Mapping[str, Any], environ: Mapping[str, str]) -> dict[tuple[str, str], Override]:
    """Return (section, field) -> what the environment says. Raises ConfigError, which never holds a value."""
    names = variable_names(classes)
    found = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX):
            continue
        if variable not in names:
            if near := difflib.get_close_matches(variable, names, n=1, cutoff=_NEARLY):
                fix = f"did you mean {near[0]}?"
                raise ConfigError("no such setting", file="environment", path=variable, fix=fix)
            continue
        section, name = names[variable]
        found[section, name] = Override(variable, _value(classes[section], name, variable, text))
    return found


def _value(kind: Any, name: str, variable: str, text: str) -> Any:
    field, hint = hints(kind)[name.rstrip("_")]
    try:
        value = structure(hint, _parsed(hint, text))
        check_bounds(value, field.metadata, "")
    except Mismatch as mismatch:
        fix = mismatch.fix or "correct or unset the variable"
        raise ConfigError(mismatch.what, file="environment", path=variable + mismatch.path, fix=fix) from None
    return value


def _parsed(hint: Any, text: str) -> Any:
    """Return the text as the JSON it stands for; what does not parse stays text, and is refused as such."""
    if hint is str:
        return text
    if typing.get_origin(hint) is tuple and not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    lowered = text.strip().lower()
    if hint is bool:
        return _SWITCH.get(lowered, text)
    try:
        return json.loads(lowered if hint in (int, float) else text)
    except (ValueError, RecursionError):
        return text
