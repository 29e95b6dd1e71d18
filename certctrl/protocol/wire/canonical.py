"""RFC 8785 (JCS): the canonical text of a JSON value, to be hashed on both sides.

Numbers are printed as ECMAScript prints the double, including integers beyond 2^53.
"""

from __future__ import annotations

import base64
import hashlib
import math
from json.encoder import encode_basestring
from typing import Any


def canonical_json(value: Any) -> str:
    """Return the JCS form; raises ValueError for NaN, infinities, lone surrogates and values that JSON does not have."""
    try:
        return _canonical(value)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _canonical(value: Any) -> str:
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_canonical, value)) + "]"
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("the names of a JSON object must be text")
        names = sorted(value, key=_utf16)
        return "{" + ",".join(f"{_text(name)}:{_canonical(value[name])}" for name in names) + "}"
    raise ValueError(f"JSON has no {type(value).__name__}")


def _utf16(text: str) -> bytes:
    return text.encode("utf-16-be")  # RFC 8785 §3.2.3 sorts by UTF-16 code units; a lone surrogate raises


def _text(text: str) -> str:
    text.encode()  # raises for a lone surrogate
    return encode_basestring(text)


def _number(value: int | float) -> str:
    try:
        value = float(value)
    except OverflowError:
        raise ValueError("a number beyond the range of a double") from None
    if not math.isfinite(value):
        raise ValueError("JSON has neither NaN nor infinity")
    if value == 0:
        return "0"  # including -0
    sign = "-" if value < 0 else ""
    mantissa, _, power = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    return sign + _ecmascript((whole + fraction).rstrip("0"), len(whole) + int(power or 0))


def _ecmascript(digits: str, point: int) -> str:
    """Format ``0.digits × 10^point`` as Number::toString does (ECMA-262 §6.1.6.1.20)."""
    count = len(digits)
    if -6 < point <= 21:
        if point <= 0:
            return "0." + "0" * -point + digits
        return digits + "0" * (point - count) if count <= point else f"{digits[:point]}.{digits[point:]}"
    exponent = f"e{'+' if point > 0 else '-'}{abs(point - 1)}"
    return (digits if count == 1 else f"{digits[0]}.{digits[1:]}") + exponent


def standard_base64(text: str) -> str:
    """Return base64 or base64url text in one form: the standard alphabet, without padding."""
    return text.rstrip("=").replace("-", "+").replace("_", "/")


def text_hash(text: str) -> str:
    """Return base64(SHA-256(UTF-8 of ``text``)): ``installs_hash_b64`` of an ``installs_json``."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
