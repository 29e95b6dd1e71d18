"""Revisions of a device's list of certificates, and the difference from a list that the device has.

A revision is a digest of the list's content, so nothing is stored and no change can be missed: not by a new kind of
change, another control plane on the database, or one that was restored from a backup. The list is divided into parts
by certificate id, and the revision has a digest for each; the parts whose digests differ are sent as a whole, because
a certificate that is missing in a part was removed.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from hashlib import blake2b
from typing import Self

from certctrl import lean

MAX_PARTS = 128
_DIGEST = 8
"""Bytes of a part's digest."""
MAX_REVISION = 2048
"""Characters."""


@lean.frozen
class ListedRow:
    """A certificate of a device's list."""

    id: int
    text: bytes
    """The JSON object that the device receives."""


@lean.frozen
class Revision:
    """The digests of the parts of a list."""

    digests: tuple[bytes, ...]

    @classmethod
    def of(cls, rows: Sequence[ListedRow], parts: int) -> Self:
        """Return the revision of a list, in order of id, divided into this number of parts."""
        hashes = [blake2b(digest_size=_DIGEST) for _ in range(parts)]
        for row in rows:
            hashes[row.id % parts].update(b"%d:%d:" % (row.id, len(row.text)))
            hashes[row.id % parts].update(row.text)
        return cls(tuple(one.digest() for one in hashes))

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the revision that a device has sent; None for any other text."""
        if not text or len(text) > MAX_REVISION or not text.isascii():
            return None
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except ValueError:
            return None
        parts, rest = divmod(len(raw), _DIGEST)
        if rest or not 1 <= parts <= MAX_PARTS:
            return None
        return cls(tuple(raw[start : start + _DIGEST] for start in range(0, len(raw), _DIGEST)))

    @property
    def text(self) -> str:
        """The revision as devices send it."""
        return base64.urlsafe_b64encode(b"".join(self.digests)).decode().rstrip("=")


@lean.frozen(kw_only=True)
class Changes:
    """The difference of a list from the one that a device has, or a page of the whole list."""

    revision: str
    """The revision of the whole list."""
    rows: tuple[ListedRow, ...]
    """All certificates of the parts that differ; or, of the whole list, those of this page."""
    parts: tuple[int, ...] | None = None
    """Numbers of the parts that differ; None: the rows are of the whole list."""
    divisor: int = 1
    """A certificate is in the part whose number is the remainder of its id."""


def changes(rows: Sequence[ListedRow], since: str, *, after_id: int, limit: int) -> Changes:
    """Return the difference of a list from the revision ``since``, or a page of the whole list.

    The whole list if the revision is unknown, if ``limit`` certificates are not enough, and for the pages after the first.
    """
    now = Revision.of(rows, _parts_for(len(rows)))
    known = Revision.parse(since) if after_id == 0 else None
    if known is not None:
        divisor = len(known.digests)
        then = now if divisor == len(now.digests) else Revision.of(rows, divisor)
        parts = tuple(
            number for number, pair in enumerate(zip(known.digests, then.digests, strict=True)) if pair[0] != pair[1]
        )
        wanted = set(parts)
        changed = tuple(row for row in rows if row.id % divisor in wanted)
        if len(changed) <= limit and (parts or known == now):
            return Changes(revision=now.text, rows=changed, parts=parts, divisor=divisor)
    page = tuple(row for row in rows if row.id > after_id)[:limit]
    return Changes(revision=now.text, rows=page)


def _parts_for(count: int) -> int:
    """Return the number of parts for a list: a power of two, about the number of its certificates."""
    return min(MAX_PARTS, 1 << max(count - 1, 0).bit_length())
