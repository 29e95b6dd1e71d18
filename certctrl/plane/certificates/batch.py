"""The answer to a batch fetch: the materials of many certificates of one device, sealed and bounded.

Sealing a key takes a tenth of a millisecond, so that of many happens after their unit of work, off the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from certctrl.errors import CertctrlError
from certctrl.plane.errors import ErrorResponse

ANSWER_FULL = "ANSWER_FULL"
"""Error key of an item that did not fit into the answer; the agent requests it again."""
MAX_ANSWER_BYTES = 2 * 1024 * 1024
_RESERVED = 256
"""Bytes of an answer that are kept free for each item, for its error."""


class Material(NamedTuple):
    """The material of a certificate for a device."""

    etag: str
    """The same for the same certificate, chain and device key, although each answer is sealed again."""
    data: dict[str, Any] | None
    """``DeployMaterials``; None: the device has it."""


Seal = Callable[[], Material]
"""Returns the material of one certificate for one device. Raises ErrorResponse 409 or 410, CertctrlError."""


def sealed_or_error(seal: Seal | CertctrlError) -> Material | CertctrlError:
    """Return the material, or its error; a damaged key must not fail the others of its unit of work."""
    if isinstance(seal, CertctrlError):
        return seal
    try:
        return seal()
    except CertctrlError as error:
        return error


def batch(
    wanted: Sequence[tuple[int, Seal | CertctrlError]],
    json_of: Callable[[Any], bytes],
    response_of: Callable[[CertctrlError], ErrorResponse],
) -> bytes:
    """Return the items of an answer with many materials, as JSON of at most `MAX_ANSWER_BYTES`.

    All items from the first one that does not fit are `ANSWER_FULL`. ``response_of`` returns the response to an error.
    """
    items: list[bytes] = []
    left, is_full = MAX_ANSWER_BYTES - _RESERVED * len(wanted), False
    for cert_id, seal in wanted:
        found = _full() if is_full else sealed_or_error(seal)
        item = json_of(_item(cert_id, found, response_of))
        if not is_full and len(item) - _RESERVED > left:
            is_full = True
            item = json_of(_item(cert_id, _full(), response_of))
        left -= max(0, len(item) - _RESERVED)
        items.append(item)
    return b'{"data":[' + b",".join(items) + b"]}"


def _full() -> ErrorResponse:
    return ErrorResponse("The answer is full", status=503, key=ANSWER_FULL, code=5003)


def _item(
    cert_id: int, found: Material | CertctrlError, response_of: Callable[[CertctrlError], ErrorResponse]
) -> dict[str, Any]:
    if isinstance(found, CertctrlError):
        error = found if isinstance(found, ErrorResponse) else response_of(found)
        return {"cert_id": cert_id, "status": error.status, "error": error.body()}
    if found.data is None:
        return {"cert_id": cert_id, "status": 304, "etag": found.etag}
    return {"cert_id": cert_id, "status": 200, "etag": found.etag, "data": found.data}
