"""Two notations of serial numbers: the plane's, and a short one for display."""

from __future__ import annotations


def colons(serial: str) -> str:
    """Return plain hex in the plane's form, ``04:ab:…``."""
    even = serial.zfill(len(serial) + len(serial) % 2)
    return ":".join(even[index : index + 2] for index in range(0, len(even), 2))


def short_serial(serial: str) -> str:
    """Return a serial in either form as its first and last bytes, ``27:7f…32:35``; a short one whole."""
    whole = serial if ":" in serial else colons(serial)
    return whole if len(whole) <= 14 else f"{whole[:5]}…{whole[-5:]}"
