"""One HTTP answer as a value, shared by the transport that reads it and the protocol that interprets it."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from certctrl import lean


@lean.frozen
class Answer:
    """An HTTP answer, complete and within the transport's size limits."""

    status: int
    headers: Mapping[str, str]
    """Lower-case names."""
    body: bytes = attrs.field(repr=False)
    """May contain tokens or keys: never logged."""

    @property
    def is_json(self) -> bool:
        """Whether the content type is JSON."""
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
