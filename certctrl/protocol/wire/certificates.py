"""Certificates, deploy materials and CAs from the plane (docs/protocol.md)."""

from __future__ import annotations

from typing import Any

from certctrl import lean
from certctrl.errors import BadAnswerError, MaterialError, PlaneError
from certctrl.model.certificate import DEVICE_KEY, CaBundle, CertificateSummary, CsrOrder, DeployMaterials
from certctrl.protocol.wire.reader import (
    Hook,
    Misfit,
    bounded_list,
    from_answer,
    integer,
    moment,
    printable,
    text,
    texts,
    wire_class,
)
from certctrl.text import one_line

_SCHEMES = dict.fromkeys(("aes256gcm", "1", "aead"), "aes256gcm") | {name: name for name in ("plaintext", DEVICE_KEY)}
_WRAPS = {"x25519": "x25519", "x25519-v1": "x25519"}


def _one_of(spellings: dict[str, str], word: Hook) -> Hook:
    """Return a hook for the name of an algorithm in any of its spellings."""

    def structure(value: Any, _: Any = None) -> str:
        name = word(value)
        if (known := spellings.get(name.strip().lower())) is None:
            raise MaterialError(
                f"the private key is sealed with an unknown scheme: {one_line(name, 40)}",
                reason="unknown-scheme",
                fix="upgrade this agent",
            )
        return known

    return structure


_any_text = text()


def _text_or_number(value: Any, _: Any = None) -> str:
    found: str = _any_text(str(value) if type(value) is int else value)
    return found


MAX_NAMES = 100
"""Names of one certificate that this host makes a request for."""


def _names(value: Any, _: Any = None) -> tuple[str, ...]:
    found: tuple[str, ...] = texts(bounded_list(value, MAX_NAMES))
    for name in found:
        _name(name)
    return found


_name = printable(253)
wire_class(
    CsrOrder,
    {
        "id": integer(ge=1),
        "state": text(64),
        "key_type": text(64),
        "names": _names,
        "expires_ms": integer(),
    },
)
_certificate = wire_class(
    CertificateSummary,
    {
        "id": integer(ge=1),
        "domain_name": text(1024),
        "serial_number": text(256),
        "fingerprint_sha256": text(256),
        "not_before": moment,
        "not_after": moment,
        "status": text(64),
        "updated_at": moment,
        "key_origin": text(64),
        "public_key_sha256": text(64),
    },
)
_materials = wire_class(
    DeployMaterials,
    {
        "enc_scheme": _one_of(_SCHEMES, _text_or_number),
        "wrap_alg": _one_of(_WRAPS, text(64)),
        "serial_number": text(256),
        "public_key_sha256": text(64),
    },
    omit=("host_key_pem", "etag"),
    prepare=lambda row: {"enc_scheme": "aes256gcm"} | row,
)
_ca = wire_class(CaBundle, {"id": integer(ge=1), "name": text(1024), "serial_number": text(256), "status": text(64)})


@lean.frozen
class _CaName:
    id: int
    name: str = ""


_ca_name = wire_class(_CaName, {"id": integer(ge=1), "name": text(1024)})


def certificate_from_wire(data: object) -> CertificateSummary:
    """Return one row of the certificate list or the detail answer; raises BadAnswerError if it does not fit."""
    return from_answer(_certificate, data, "certificate")


def materials_from_wire(data: object) -> DeployMaterials:
    """Return the material of one certificate, its scheme normalized.

    Raises BadAnswerError if it does not fit, MaterialError (``unknown-scheme``) for an unknown scheme, PlaneError
    (409 ``WRAP_PENDING``) if the data key consists of zero bytes: it is not sealed to this device yet.
    """
    materials = from_answer(_materials, data, "materials")
    if materials.enc_data_key_b64 and _is_blank(materials.enc_data_key_b64):
        raise PlaneError("the key is not sealed to this device yet", status=409, key="WRAP_PENDING")
    return materials


def _is_blank(text: str) -> bool:
    """Return whether base64 text encodes only zero bytes."""
    return not text.strip("A=")


def ca_from_wire(data: object) -> CaBundle:
    """Return a private CA's certificate; raises BadAnswerError if it does not fit."""
    return from_answer(_ca, data, "ca")


def ca_names_from_wire(data: object) -> dict[int, str]:
    """Return the names of a list of CAs by id; raises BadAnswerError if a single row does not fit."""
    try:
        rows = bounded_list(data)
    except Misfit as misfit:
        raise BadAnswerError(f"cas: {misfit}") from None
    found = [from_answer(_ca_name, row, f"cas[{i}]") for i, row in enumerate(rows)]
    return {row.id: row.name for row in found}
