"""Certificates, deploy materials and CAs from the plane (docs/protocol.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from certctrl import lean
from certctrl.errors import BadAnswerError, CertctrlError, MaterialError, PlaneError
from certctrl.model.certificate import DEVICE_KEY, CaBundle, CertificateSummary, CsrOrder, DeployMaterials
from certctrl.protocol.wire.answer import BUNDLE_CAP, MAX_ETAG, ErrorBody, error_from, plain_etag, read_error
from certctrl.protocol.wire.reader import (
    Hook,
    Misfit,
    bounded_list,
    from_answer,
    integer,
    json_object,
    moment,
    or_default,
    printable,
    text,
    texts,
    wire_class,
)
from certctrl.protocol.wire.signals import atomic_batch
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
        "batch": or_default(atomic_batch),  # must not hide the other certificates
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


@lean.frozen(kw_only=True)
class _Item:
    """One item of many materials; without a usable material or error, it is fetched alone."""

    cert_id: int
    status: int = 0
    data: dict[str, Any] | None = None
    error: ErrorBody | None = None
    etag: str | None = None


_read_item = wire_class(
    _Item,
    {
        "cert_id": integer(digits=False),
        "status": or_default(integer(digits=False), 0),
        "data": or_default(json_object),
        "error": or_default(read_error),
        "etag": or_default(text()),
    },
)


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


MAX_FETCHED = 100
"""Certificates of one request for many materials."""
Fetched = DeployMaterials | CertctrlError | None
"""The material of one certificate, its error, or None: this host has it (304)."""


def many_materials_from_wire(data: object, wanted: Mapping[int, str]) -> dict[int, Fetched]:
    """Return the items of an answer with many materials by certificate id.

    ``wanted``: id -> ETag of the live material, or empty. The result lacks items that must be fetched alone: absent
    ones, those that did not fit into the answer, and those without certificates. Raises BadAnswerError if it is not a list of requested items.
    """
    try:
        items = [_read_item(item, f"materials[{i}]") for i, item in enumerate(bounded_list(data, len(wanted)))]
    except Misfit as misfit:
        raise BadAnswerError(f"materials: {misfit}") from None
    found: dict[int, Fetched] = {}
    seen = set[int]()
    for item in items:
        if item.cert_id not in wanted or item.cert_id in seen:
            raise BadAnswerError("materials: an item is not of a requested certificate")
        seen.add(item.cert_id)
        if item.status == 304 and wanted[item.cert_id]:
            found[item.cert_id] = None
        elif (one := _fetched(item)) is not None:
            found[item.cert_id] = one
    return found


def _fetched(item: _Item) -> DeployMaterials | CertctrlError | None:
    """Return the material or error in one item; None: fetch it alone."""
    if 402 <= item.status <= 499 and item.error is not None:
        return error_from(item.status, item.error, None)
    data = item.data
    if item.status != 200 or data is None:
        return None
    if sum(len(value) for value in data.values() if isinstance(value, str)) > BUNDLE_CAP:
        return BadAnswerError(f"the material is larger than {BUNDLE_CAP} bytes")
    try:
        materials = materials_from_wire(data)
    except CertctrlError as failure:
        return failure
    if not materials.certificate_pem or not (materials.chain_pem or "chain_pem" in data):
        return None
    return attrs.evolve(materials, etag=plain_etag(item.etag, MAX_ETAG))


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
