"""When a certificate is due for renewal, and when it is late. Pure.

A CA may suggest a window (RFC 9773). Otherwise a certificate is due after two thirds of its life, or after half of a
short one. Certificates that were issued together come due spread over a part of the window or of their lives. The
spread depends on the serial number, so that all planes compute the same time.
"""

from __future__ import annotations

import hashlib

from certctrl import lean
from certctrl.plane.issuers.issuer import RenewalWindow
from certctrl.plane.settings import DAY

SHORT_LIFE = 10.0 * DAY
DUE_SHARE = 2 / 3
DUE_SHARE_SHORT = 1 / 2
SPREAD_SHARE = 1 / 12
"""Share of a life, before the latest due time, over which certificates come due."""
LATE_SHARE = 1 / 3
"""Remaining share of a certificate's life below which its renewal is late."""
ENDING_SHARE = 1 / 10
IMPORT_WARNING = 30.0 * DAY
"""Longest time before its end at which an imported certificate is reported."""
WINDOW_RETRY = 6 * 3600.0
"""Seconds until a CA is asked for a window again, if it does not say when."""
WINDOW_RETRIES = (600.0, float(DAY))
"""Bounds for the time that a CA says."""


@lean.frozen
class Life:
    """The validity of a certificate; seconds since the epoch."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return max(0.0, self.end - self.start)


def due_at(life: Life, serial: str, window: RenewalWindow | None = None) -> float:
    """Return when a certificate is due."""
    part = spread(serial)
    if window is not None and window.start <= window.end:
        chosen = window.start + part * (window.end - window.start)
        return min(chosen, life.end - ENDING_SHARE * life.seconds)
    share = DUE_SHARE_SHORT if life.seconds < SHORT_LIFE else DUE_SHARE
    return life.start + (share - part * SPREAD_SHARE) * life.seconds


def spread(serial: str) -> float:
    """Return a number in [0, 1) that depends on a serial number only."""
    return int.from_bytes(hashlib.sha256(serial.encode()).digest()[:6], "big") / 2**48


def late_at(life: Life, *, is_imported: bool) -> float:
    """Return when a certificate that has not been renewed is reported."""
    warning = LATE_SHARE * life.seconds
    return life.end - (min(warning, IMPORT_WARNING) if is_imported else warning)


def ending_at(life: Life) -> float:
    """Return when a certificate that has not been renewed is reported as urgent."""
    return life.end - ENDING_SHARE * life.seconds


def ask_again_at(window: RenewalWindow | None, now: float) -> float:
    """Return when to ask a CA for its window again; ``window`` None: the CA did not answer."""
    if window is None or window.check_again_at <= 0:
        return now + WINDOW_RETRY
    least, most = WINDOW_RETRIES
    return now + min(max(window.check_again_at - now, least), most)
