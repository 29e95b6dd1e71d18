"""The most open permission bits that any host gives to copied files."""

from __future__ import annotations

from certctrl import lean
from certctrl.model.plan import CopyAction

PUBLIC_MODES = 0o644
KEY_MODES = 0o640
KEY_FILES = frozenset(
    {
        "private.key",
        "private-traditional.key",
        "combined.pem",
        "combined-key-last.pem",
        "bundle.pfx",
        "bundle-legacy.pfx",
        "bundle.jks",
    }
)
"""Virtual files that contain a private key."""


def has_key(name: str) -> bool:
    """Return whether a file contains a private key, so that its default mode is 0600."""
    return name.partition("?")[0] in KEY_FILES


@lean.frozen
class OpenMode:
    """A mode of a copy that no host gives to its files."""

    mode: int
    place: str
    """Place in the item's list of modes, such as ``[1]``; empty: it has one mode for all files."""
    why: str


def open_mode(item: CopyAction) -> OpenMode | None:
    """Return the first mode of a copy that is too open for its files; None: there is none."""
    together = [("", item.mode, any(map(has_key, item.sources)))]
    each = zip(item.modes, item.sources, strict=False)
    for place, mode, key in (*together, *((f"[{n}]", mode, has_key(name)) for n, (mode, name) in enumerate(each))):
        if mode is not None and mode & ~(KEY_MODES if key else PUBLIC_MODES):
            most = f"a private key at most {KEY_MODES:04o}" if key else f"a public file at most {PUBLIC_MODES:04o}"
            return OpenMode(mode, place, f"too open: {most}")
    return None
