"""The plane's error responses, one function each (spec, "Error Responses"; docs/protocol.md).

``ErrorResponse`` is the error that a client raises for the same response, so code that calls ``Plane`` without HTTP
gets the same exception.
"""

from __future__ import annotations

import math
from typing import Any

from certctrl.errors import CertctrlError, DiskError, ExitStatus, PlaneError


class ErrorResponse(PlaneError):
    """A refused request, with status, key, code and parameters."""

    def __init__(
        self,
        what: str,
        *,
        status: int,
        key: str,
        code: int,
        params: dict[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(what, status=status, key=key, code=code, retry_after=retry_after)
        self.params = params or {}

    def body(self) -> dict[str, Any]:
        """Return the error object of the response."""
        return {"code": self.code, "what": self.what, "key": self.key, "params": self.params}


class DatabaseAwayError(CertctrlError):
    """The server of the plane's database does not answer, or is too busy."""

    exit_status = ExitStatus.UNAVAILABLE


class DatabaseLockedError(DiskError):
    """Another process has had a lock on the database for too long."""

    exit_status = ExitStatus.BUSY


def bad_request(what: str, **params: Any) -> ErrorResponse:
    """Return 400: the request does not follow the protocol."""
    return ErrorResponse(what, status=400, key="BAD_REQUEST", code=4000, params=params)


CSR_REFUSED = "CSR_REFUSED"


def csr_refused(what: str, reason: str, fix: str) -> ErrorResponse:
    """Return 400: a certificate signing request must not be signed; ``reason`` is a stable identifier."""
    params = {"field": "csr_pem", "reason": reason, "fix": fix}
    text = f"Certificate signing request refused: {what}; {fix}"
    return ErrorResponse(text, status=400, key=CSR_REFUSED, code=4000, params=params)


def token_expired(expired_at: float) -> ErrorResponse:
    """Return 401 with the expiry of the token (seconds since the epoch)."""
    params = {"expired_at": int(expired_at)}
    return ErrorResponse("Access token expired", status=401, key="TOKEN_EXPIRED", code=4001, params=params)


def invalid_token(what: str) -> ErrorResponse:
    """Return 401: the token is unknown, void, or from a session that has ended."""
    return ErrorResponse(what, status=401, key="INVALID_TOKEN", code=4002)


def device_revoked(revoked_at: float | None, reason: str) -> ErrorResponse:
    """Return 403: the device is revoked."""
    params = {"revoked_at": int(revoked_at or 0), "reason": reason}
    return ErrorResponse("Device has been revoked", status=403, key="DEVICE_REVOKED", code=4003, params=params)


def forbidden(what: str, key: str = "FORBIDDEN") -> ErrorResponse:
    """Return 403: authenticated, but not allowed."""
    return ErrorResponse(what, status=403, key=key, code=4031)


def out_of_scope(what: str) -> ErrorResponse:
    """Return 403: the scope of the operator's token does not include it."""
    return forbidden(what, "OUT_OF_SCOPE")


def not_found(what: str) -> ErrorResponse:
    """Return 404: missing, or not visible to this caller."""
    return ErrorResponse(what, status=404, key="NOT_FOUND", code=4004)


def conflict(what: str, key: str = "CONFLICT", **params: Any) -> ErrorResponse:
    """Return 409: the current state does not allow it."""
    return ErrorResponse(what, status=409, key=key, code=4009, params=params)


def cursor_expired() -> ErrorResponse:
    """Return 409: signals after this cursor are gone, or the cursor is from another stream."""
    return ErrorResponse("Cursor expired. Reset required.", status=409, key="CURSOR_EXPIRED", code=40901)


def gone(what: str, key: str) -> ErrorResponse:
    """Return 410: it is permanently gone."""
    return ErrorResponse(what, status=410, key=key, code=4010)


def too_large(limit: int) -> ErrorResponse:
    """Return 413 with the limit in bytes."""
    return ErrorResponse(
        "Request body too large", status=413, key="TOO_LARGE", code=4013, params={"limit_bytes": limit}
    )


def unsupported_media() -> ErrorResponse:
    """Return 415: the media type is not JSON."""
    return ErrorResponse("Send application/json", status=415, key="UNSUPPORTED_MEDIA_TYPE", code=4015)


def rate_limited(retry_after: float, allowed: str, what: str = "Rate limit exceeded") -> ErrorResponse:
    """Return 429; ``retry_after`` in seconds is rounded up, so that waiting that long suffices."""
    seconds = max(1, math.ceil(retry_after))
    params = {"retry_after": seconds, "allowed_rate": allowed}
    return ErrorResponse(what, status=429, key="RATE_LIMITED", code=4029, params=params, retry_after=seconds)


def unavailable(what: str, retry_after: int, problem: str = "") -> ErrorResponse:
    """Return 503 with the seconds until a retry, and the key of the problem in ``/health``."""
    params: dict[str, Any] = {"retry_after": retry_after} | ({"problem": problem} if problem else {})
    return ErrorResponse(what, status=503, key="SERVICE_UNAVAILABLE", code=5003, params=params, retry_after=retry_after)
