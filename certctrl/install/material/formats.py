"""Make the virtual files of a certificate or CA (`docs/protocol.md`, "Virtual files").

PKCS#12 and JKS files contain a random salt, so the same bundle gives different bytes each time. To keep unchanged
files unchanged, ``install/deploy/staging.py`` reuses those of an existing generation.
"""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Callable, Iterable

from certctrl.errors import MaterialError, PlanError
from certctrl.model.certificate import Bundle
from certctrl.model.plan import CERT_FILES

BASE_FILES = ("private.key", "certificate.pem", "chain.pem", "fullchain.pem")
"""Files that every generation contains."""
SALTED_FILES = {"bundle.pfx": "pfx", "bundle.jks": "jks"}
"""Virtual file -> kind of its password."""
KEY_FILES = frozenset({"private.key", "combined.pem", *SALTED_FILES})
"""Files that contain a private key: mode 0600 unless an item sets another."""


def virtual_files(bundle: Bundle, wanted: Iterable[str], password: Callable[[str], bytes]) -> dict[str, bytes]:
    """Return the base files and all wanted ones by name.

    ``password(kind)`` returns the password for ``pfx`` or ``jks``; it is called for those only. Raises PlanError for
    an unknown name, MaterialError if this host cannot make a format.
    """
    names = {*BASE_FILES, *wanted}
    if unknown := sorted(names.difference(CERT_FILES)):
        raise PlanError(f"there is no virtual file {', '.join(unknown)}", reason="unknown-file")
    return {name: _file(bundle, name, password) for name in sorted(names)}


def _file(bundle: Bundle, name: str, password: Callable[[str], bytes]) -> bytes:
    match name:
        case "private.key":
            return bundle.key_pem
        case "certificate.pem":
            return bundle.certificate_pem
        case "chain.pem":
            return bundle.chain_pem
        case "fullchain.pem":
            return bundle.certificate_pem + bundle.chain_pem
        case "combined.pem":
            return bundle.key_pem + bundle.certificate_pem + bundle.chain_pem
        case "certificate.der":
            return pem_to_der(bundle.certificate_pem)
        case "bundle.pfx":
            return _pkcs12(bundle, password("pfx"))
        case "bundle.jks":
            return _jks(bundle, password("jks"))
        case _:
            return _meta(bundle)


def pem_to_der(pem: bytes) -> bytes:
    """Return the DER of a PEM with one certificate."""
    return ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))


def _meta(bundle: Bundle) -> bytes:
    facts = {
        "cert_id": bundle.facts.cert_id,
        "name": bundle.facts.name,
        "domains": list(bundle.facts.domains),
        "serial_number": bundle.facts.serial,
        "fingerprint_sha256": bundle.facts.fingerprint_sha256,
        "not_before": int(bundle.facts.not_before),
        "not_after": int(bundle.facts.not_after),
    }
    return (json.dumps(facts, indent=2, sort_keys=True) + "\n").encode()


def _pkcs12(bundle: Bundle, password: bytes) -> bytes:
    from cryptography import x509  # imported late: few hosts need PKCS#12
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption
    from cryptography.hazmat.primitives.serialization.pkcs12 import serialize_key_and_certificates

    from certctrl.install.material.private_key import load_key

    (leaf,) = x509.load_pem_x509_certificates(bundle.certificate_pem)
    chain = x509.load_pem_x509_certificates(bundle.chain_pem) if bundle.chain_pem else []
    key = load_key(bundle.key_pem)
    return serialize_key_and_certificates(
        bundle.facts.name.encode(), key, leaf, chain, BestAvailableEncryption(password)
    )


def _jks(bundle: Bundle, password: bytes) -> bytes:
    try:
        import jks
    except ImportError:
        raise MaterialError(
            "bundle.jks needs the package pyjks", reason="jks-missing", fix='pip install "certctrl[jks]"'
        ) from None
    key_der = pem_to_key_der(bundle.key_pem)
    chain = [pem_to_der(block) for block in split_pem(bundle.certificate_pem + bundle.chain_pem)]
    entry = jks.PrivateKeyEntry.new(bundle.facts.name.lower(), chain, key_der, "pkcs8")
    store = jks.KeyStore.new("jks", [entry])
    return bytes(store.saves(password.decode("ascii")))


def split_pem(pem: bytes) -> list[bytes]:
    """Return the certificate blocks of a PEM that this module wrote."""
    end = b"-----END CERTIFICATE-----\n"
    return [block + end for block in pem.split(end) if block.strip()]


def pem_to_key_der(key_pem: bytes) -> bytes:
    """Return the PKCS#8 DER of a key PEM that ``checked_key_pem`` wrote."""
    return base64.b64decode(b"".join(key_pem.splitlines()[1:-1]))


def ca_files(ca_id: int, name: str, pem: bytes) -> dict[str, bytes]:
    """Return the virtual files of a CA; ``pem`` is one checked certificate."""
    meta = json.dumps({"ca_id": ca_id, "name": name}, indent=2, sort_keys=True) + "\n"
    return {"ca.pem": pem, "ca.der": pem_to_der(pem), "meta.json": meta.encode()}
