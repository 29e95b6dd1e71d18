"""Read settings from environment variables such as ``CERTCTRL_NAME`` and ``CERTCTRL_HTTPCLIENT_PROXY``.

Booleans are ``true`` or ``false``; lists are JSON or separated by commas; mappings are JSON. A variable whose name is
close to that of a setting is refused; other names with the prefix are ignored. The agent sets all `COMMAND_VARIABLES`
for the commands of items; if all of them are set, none is a setting, not even ``CERTCTRL_NAME``.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from typing import Any

import attrs

from certctrl import lean
from certctrl.errors import ConfigError
from certctrl.model.plan import COMMAND_VARIABLES
from certctrl.store.structure import Mismatch, check_bounds, hints, structure
from certctrl.text import nearest

PREFIX = "CERTCTRL_"
_SIMILAR = 0.93
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@lean.frozen
class Override:
    """One setting from the environment."""

    variable: str
    value: Any = attrs.field(repr=False)


def variable_names(classes: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the (section, field) of each variable."""
    names: dict[str, tuple[str, str]] = {}
    for section, kind in classes.items():
        prefix = PREFIX if section == "application" else f"{PREFIX}{section.upper()}_"
        names |= {f"{prefix}{field.name.upper()}": (section, field.name) for field in attrs.fields(kind)}
    return names


def overrides(classes: Mapping[str, Any], environ: Mapping[str, str]) -> dict[tuple[str, str], Override]:
    """Return the overrides in the environment by (section, field). Raises ConfigError, which never shows a value."""
    names = variable_names(classes)
    # a command of an item has started this process, so CERTCTRL_NAME is the name of a certificate
    others = COMMAND_VARIABLES if environ.keys() >= set(COMMAND_VARIABLES) else ()
    found = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable in others:
            continue
        if variable not in names:
            if variable in COMMAND_VARIABLES:
                continue
            if near := nearest(variable, names, cutoff=_SIMILAR):
                fix = f"did you mean {near}?"
                raise ConfigError("no such setting", file="environment", path=variable, fix=fix)
            continue
        section, name = names[variable]
        found[section, name] = Override(variable, _value(classes[section], name, variable, text))
    return found


def _value(kind: Any, name: str, variable: str, text: str) -> Any:
    field, hint = hints(kind)[name]
    try:
        value = structure(hint, _parsed(hint, text))
        check_bounds(value, field.metadata, "")
    except Mismatch as mismatch:
        fix = mismatch.fix or "correct or unset the variable"
        raise ConfigError(mismatch.what, file="environment", path=variable + mismatch.path, fix=fix) from None
    return value


def _parsed(hint: Any, text: str) -> Any:
    """Return the JSON value of a text; text that does not parse is returned unchanged."""
    if isinstance(hint, type) and issubclass(hint, str):
        return text
    if typing.get_origin(hint) is tuple and not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    lowered = text.strip().lower()
    if hint is bool:
        return _BOOLEANS.get(lowered, text)
    try:
        return json.loads(lowered if hint in (int, float) else text)
    except (ValueError, RecursionError):
        return text
