"""TSIG keys: read as the tools of DNS servers write them, and chosen by zone.

Accepted are the output of BIND's ``tsig-keygen``, Knot's ``keymgr -t``, ``algorithm:name:secret`` as in
``nsupdate -y``, and a bare base64 secret whose name the settings give.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence

import attrs

from certctrl import lean
from certctrl.errors import ConfigError

ALGORITHMS = ("hmac-sha256", "hmac-sha384", "hmac-sha512")
_MAX_BYTES = 8192
_MIN_SECRET = 16

_BIND = re.compile(r'key\s+"?(?P<name>[^"\s{]+)"?\s*\{(?P<body>[^}]*)\}', re.DOTALL)
_BIND_FIELD = re.compile(r'(?P<field>algorithm|secret)\s+"?(?P<value>[^";\s]+)"?\s*;')
_KNOT_FIELD = re.compile(r'^\s*-?\s*(?P<field>id|algorithm|secret)\s*:\s*"?(?P<value>[^"\s]+)"?\s*$', re.MULTILINE)
_COLONS = re.compile(r"(?P<algorithm>hmac-[a-z0-9]+):(?P<name>[^:\s]+):(?P<secret>[A-Za-z0-9+/=]+)")


@lean.frozen(kw_only=True)
class TsigKey:
    """A key that signs updates of some zones."""

    name: str
    algorithm: str
    secret: bytes = attrs.field(repr=False)
    zones: tuple[str, ...] = ()
    """The zones that it updates, including those below; empty: every zone."""


def read_key(
    data: bytes, *, secret_name: str, name: str = "", algorithm: str = "", zones: Sequence[str] = ()
) -> TsigKey:
    """Return the key in a secret; ``name`` and ``algorithm`` complete a bare base64 secret. Raises ConfigError."""
    text = _text(data, secret_name)
    found = _fields(text)
    name, algorithm = found.get("name", name), (found.get("algorithm") or algorithm or ALGORITHMS[0]).lower()
    if not name:
        raise ConfigError(
            "has no name for the TSIG key", path=secret_name, fix="give the output of tsig-keygen, or set key_name"
        )
    if algorithm.rstrip(".") not in ALGORITHMS:
        raise ConfigError(
            f"has a TSIG key for {algorithm[:40]!r}", path=secret_name, fix=f"make one for {' or '.join(ALGORITHMS)}"
        )
    try:
        secret = base64.b64decode(found.get("secret", text.strip()), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if len(secret) < _MIN_SECRET:
        what = f"is not a TSIG key of at least {_MIN_SECRET} bytes in base64"
        raise ConfigError(what, path=secret_name, fix=f"tsig-keygen -a {ALGORITHMS[0]} {name} > FILE")
    return TsigKey(name=name, algorithm=algorithm.rstrip("."), secret=secret, zones=tuple(zones))


def _text(data: bytes, secret_name: str) -> str:
    if len(data) > _MAX_BYTES or not data.isascii():
        raise ConfigError("is not a TSIG key", path=secret_name, fix="give the output of tsig-keygen")
    return data.decode("ascii")


def _fields(text: str) -> dict[str, str]:
    """Return the name, algorithm and secret in a text, as far as it has them."""
    if block := _BIND.search(text):
        fields = {found["field"]: found["value"] for found in _BIND_FIELD.finditer(block["body"])}
        return {"name": block["name"]} | fields
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    fields = {found["field"]: found["value"] for found in _KNOT_FIELD.finditer("\n".join(lines))}
    if "id" in fields and "secret" in fields:
        return {"name": fields.pop("id")} | fields
    found = _COLONS.fullmatch(text.strip())
    return found.groupdict() if found else {}


def key_for(keys: Sequence[TsigKey], zone: str) -> TsigKey | None:
    """Return the key with the closest zone above this one; None without such a key."""
    zone = zone.rstrip(".").lower()
    best: tuple[int, TsigKey] | None = None
    for key in keys:
        fitting = [len(one) for one in map(_plain, key.zones) if zone == one or zone.endswith(f".{one}")]
        rank = max(fitting) if fitting else (0 if not key.zones else -1)
        if rank >= 0 and (best is None or rank > best[0]):
            best = rank, key
    return best and best[1]


def _plain(zone: str) -> str:
    return zone.rstrip(".").lower().removeprefix("*.")
