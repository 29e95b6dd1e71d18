"""Rows of copies, a certificate on a device each, and the condition by which rows are searched. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from certctrl.plane.clock import when
from certctrl.plane.fleet.words import COPY_WORDS, cause_id, meaning
from certctrl.plane.storage.database import Row
from certctrl.text import one_line

MAX_SEARCH = 100
"""Characters of a search."""
_ESCAPED = re.compile("[!%_]")


def place_of_word(words: Sequence[str]) -> str:
    """Return the expression for the place of a row's word among these."""
    ranks = " ".join(f"WHEN '{word}' THEN {number}" for number, word in enumerate(words))
    return f"(CASE word {ranks} ELSE {len(words)} END)"


COPY_PLACE = f"{place_of_word(COPY_WORDS)} * 1000000000000 + device_id"
"""Orders the copies of a certificate: the worst first, then by device."""


def copy_of(row: Row) -> dict[str, Any]:
    """Return a certificate on a device as operators see it."""
    what, fix = meaning(row["reason"])
    return {
        "device_id": row["device_id"],
        "device": row["device"],
        "certificate_id": row["cert_id"],
        "certificate": row["certificate"],
        "state": row["word"],
        "step": row["step"],
        "reason": row["reason"],
        "cause": cause_id(row["word"], row["step"], row["reason"]),
        "what": what if row["reason"] else "",
        "message": row["detail"],
        "fix": fix if row["reason"] else "",
        "attempts": row["attempts"],
        "ends_at": when(row["ends_at"]),
        "since": when(row["since"]),
        "failing_since": when(row["failing_since"]),
        "served_at": when(row["served_at"]),
    }


def searched(text: str, column: str, *, of_certificates: bool) -> tuple[str, list[str]]:
    """Return the condition that a row is found by a text, and its parameters."""
    escaped = _ESCAPED.sub(r"!\g<0>", one_line(text.strip(), MAX_SEARCH))
    pattern = escaped.replace("*", "%") if "*" in text else f"%{escaped}%"
    like = "LIKE lower(?) ESCAPE '!'"  # by the engine: SQLite knows no other letters than those of ASCII
    if of_certificates:
        of_row = f"SELECT c.id FROM certificates c WHERE lower(c.sans) {like}"
        return f"(lower(name) {like} OR {column} IN ({of_row}))", [pattern, f"%{pattern}%"]
    named = f"SELECT a.device_id FROM assignments a JOIN certificates c ON c.id = a.cert_id WHERE lower(c.domain_name) {like}"
    at = f"SELECT d.id FROM devices d WHERE d.last_address {like}"
    return f"(lower(name) {like} OR {column} IN ({named}) OR {column} IN ({at}))", [pattern] * 3
