"""What a poll's answer is called in status and logs."""

from __future__ import annotations

from certctrl.protocol import events as ev


def poll_code(event: ev.PollAnswer) -> int | None:
    """Return the HTTP status; None when nothing answered."""
    match event:
        case ev.TransportFailed():
            return None
        case ev.TokenExpired():
            return 401
        case ev.DeviceRevoked():
            return 403
        case ev.CursorExpired():
            return 409
        case ev.BadAnswer():
            return event.status or None
        case _:
            return event.status


def poll_text(event: ev.RoundEnd) -> str:
    """Return one short line for a person, such as ``204 No Content``."""
    match event:
        case ev.NoUpdates():
            return "204 No Content" if event.status == 204 else f"{event.status} OK, no signals"
        case ev.Updates():
            count = len(event.signals)
            return f"{event.status} OK, {count} signal{'s' if count != 1 else ''}"
        case ev.TokenExpired():
            return "401 access token expired"
        case ev.DeviceRevoked():
            return "403 device revoked"
        case ev.CursorExpired():
            return "409 cursor expired"
        case ev.ServerBusy():
            return f"{event.status} {event.key or 'server busy'}"
        case ev.Refused():
            return f"{event.status} {event.key or event.what}"
        case ev.BadAnswer():
            return f"unusable answer: {event.why}"
        case ev.TransportFailed():
            return f"no answer: {event.why}"
        case ev.RefreshFailed():
            return f"token refresh failed: {event.why}"
        case ev.RefreshRefused():
            return f"refresh token refused: {event.what}"
        case ev.ResyncFailed():
            return f"comparison with the plane failed: {event.why}"
