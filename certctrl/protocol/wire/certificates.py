"""Certificates, deploy materials and CAs in (api.md §4 and §8)."""

from __future__ import annotations

from certctrl.errors import BadAnswerError, MaterialError
from certctrl.model.bundle import CaBundle, CertificateSummary, DeployMaterials
from certctrl.protocol.wire.reader import Misfit, Reader
from certctrl.text import one_line

_SCHEMES = {"aes256gcm": "aes256gcm", "1": "aes256gcm", "aead": "aes256gcm", "plaintext": "plaintext"}
_WRAPS = {"x25519": "x25519", "x25519-v1": "x25519"}


def certificate_from_wire(data: object) -> CertificateSummary:
    """Return one row of the certificate list or the detail answer; BadAnswerError when it does not fit."""
    try:
        row = Reader(data, "certificate")
        return CertificateSummary(
            id=row.integer("id", ge=1),
            domain_name=row.text("domain_name", limit=1024),
            sans=row.texts("sans"),
            serial_number=row.maybe_text("serial_number", limit=256) or "",
            fingerprint_sha256=row.maybe_text("fingerprint_sha256", limit=256) or "",
            not_before=row.moment("not_before"),
            not_after=row.moment("not_after"),
            status=row.maybe_text("status", limit=64) or "",
            updated_at=row.moment("updated_at"),
            certificate_pem=row.maybe_text("certificate_pem"),
            chain_pem=row.maybe_text("chain_pem"),
        )
    except Misfit as misfit:
        raise BadAnswerError(str(misfit)) from None


def materials_from_wire(data: object) -> DeployMaterials:
    """Return the sealed (or plaintext) material of one certificate with its scheme normalised.

    Raises BadAnswerError when it does not fit, MaterialError (``unknown-scheme``) for a scheme of another time.
    """
    try:
        row = Reader(data, "materials")
        return DeployMaterials(
            enc_scheme=_scheme(row),
            wrap_alg=_known(row.maybe_text("wrap_alg", limit=64) or "x25519", _WRAPS),
            device_keyfp_b64=row.maybe_text("device_keyfp_b64"),
            enc_data_key_b64=row.maybe_text("enc_data_key_b64"),
            enc_privkey_b64=row.maybe_text("enc_privkey_b64"),
            privkey_nonce_b64=row.maybe_text("privkey_nonce_b64"),
            privkey_tag_b64=row.maybe_text("privkey_tag_b64"),
            private_key_der_b64=row.maybe_text("private_key_der_b64"),
            private_key_pem=row.maybe_text("private_key_pem"),
            certificate_pem=row.maybe_text("certificate_pem"),
            chain_pem=row.maybe_text("chain_pem"),
            serial_number=row.maybe_text("serial_number", limit=256) or "",
        )
    except Misfit as misfit:
        raise BadAnswerError(str(misfit)) from None


def _scheme(row: Reader) -> str:
    value = row.find("enc_scheme")[1]
    if value is None:
        return "aes256gcm"
    if type(value) is int:
        value = str(value)
    return _known(value if isinstance(value, str) else row.text("enc_scheme"), _SCHEMES)


def _known(word: str, table: dict[str, str]) -> str:
    if (known := table.get(word.strip().lower())) is None:
        raise MaterialError(
            f"the key is sealed in a way this version does not know: {one_line(word, 40)}",
            reason="unknown-scheme",
            fix="upgrade this agent",
        )
    return known


def ca_from_wire(data: object) -> CaBundle:
    """Return a private CA's certificate; BadAnswerError when it does not fit."""
    try:
        row = Reader(data, "ca")
        return CaBundle(
            id=row.integer("id", ge=1),
            name=row.maybe_text("name", limit=1024) or "",
            serial_number=row.maybe_text("serial_number", limit=256) or "",
            status=row.maybe_text("status", limit=64) or "",
            ca_certificate_pem=row.text("ca_certificate_pem"),
        )
    except Misfit as misfit:
        raise BadAnswerError(str(misfit)) from None
