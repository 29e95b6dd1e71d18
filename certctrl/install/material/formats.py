"""Make the virtual files of a certificate or CA (`docs/protocol.md`, "Virtual files").

PKCS#12 and JKS files contain a random salt, so the same bundle gives different bytes each time. To keep unchanged
files unchanged, ``install/deploy/staging.py`` reuses those of an existing generation.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
from collections.abc import Callable, Iterable

from certctrl.errors import MaterialError, PlanError
from certctrl.model.certificate import Bundle
from certctrl.model.plan import CERT_FILES

LEGACY_ROUNDS = 50_000
BASE_FILES = ("private.key", "certificate.pem", "chain.pem", "fullchain.pem")
"""Files that every generation contains."""
_SALTED_FILES = {"bundle.pfx": "pfx", "bundle-legacy.pfx": "pfx", "bundle.jks": "jks"}
"""Keystore -> kind of its password."""
WHOLE_FILES = frozenset({"combined.pem", "combined-key-last.pem", *_SALTED_FILES})
"""Files that contain a matching key and certificate."""
BARE_KEYS = frozenset({"private.key", "private-traditional.key"})
_ALIAS = re.compile(r"\?alias=([A-Za-z0-9][A-Za-z0-9._-]{0,63})", re.ASCII)
"""Suffix of a keystore's name: the alias of its entry."""


def is_virtual(name: str) -> bool:
    """Return whether certificates have a virtual file of this name."""
    base, mark, alias = name.partition("?")
    return base in CERT_FILES and (not mark or (base in _SALTED_FILES and bool(_ALIAS.fullmatch(mark + alias))))


def base_of(name: str) -> str:
    """Return the name of a virtual file without the alias: ``bundle.jks?alias=tomcat`` → ``bundle.jks``."""
    return name.partition("?")[0]


def password_kind(name: str) -> str | None:
    """Return the kind of a keystore's password; None if the file has none. Such files contain a random salt."""
    return _SALTED_FILES.get(base_of(name))


def password_fault(kind: str, password: str) -> str:
    """Return why keystores of a kind (``pfx``, ``jks``) cannot have this password; empty: they can."""
    if not password:
        return "is empty"
    if password != password.strip() or not password.isprintable():
        return "begins or ends with a space, or has characters that are not printable"
    if kind == "jks" and not password.isascii():
        return "has characters that are not ASCII, which Java does not accept"
    return ""


def virtual_files(bundle: Bundle, wanted: Iterable[str], password: Callable[[str], bytes]) -> dict[str, bytes]:
    """Return the base files and all wanted ones by name.

    ``password(kind)`` returns the password for ``pfx`` or ``jks``; it is called for those only. Raises PlanError for
    an unknown name, MaterialError if this host cannot make a format.
    """
    names = {*BASE_FILES, *wanted}
    if unknown := sorted(name for name in names if not is_virtual(name)):
        raise PlanError(f"there is no virtual file {', '.join(unknown)}", reason="unknown-file")
    return {name: _file(bundle, name, password) for name in sorted(names)}


def _file(bundle: Bundle, name: str, password: Callable[[str], bytes]) -> bytes:
    alias = name.partition("?alias=")[2] or bundle.facts.name
    match base_of(name):
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
        case "combined-key-last.pem":
            return bundle.certificate_pem + bundle.chain_pem + bundle.key_pem
        case "private-traditional.key":
            return _traditional(bundle.key_pem)
        case "certificate.der":
            return pem_to_der(bundle.certificate_pem)
        case "bundle.pfx":
            return _pkcs12(bundle, password("pfx"), alias)
        case "bundle-legacy.pfx":
            return _pkcs12(bundle, password("pfx"), alias, legacy=True)
        case "bundle.jks":
            return _jks(bundle, password("jks"), alias)
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


def _traditional(key_pem: bytes) -> bytes:
    """Return a key as PKCS#1 (RSA) or SEC1 (EC), which some programs need."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    from certctrl.install.material.private_key import load_key

    key = load_key(key_pem)
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        what = "private-traditional.key exists for RSA and EC keys only"
        raise MaterialError(what, reason="key-format", fix="use private.key")
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def _pkcs12(bundle: Bundle, password: bytes, alias: str, *, legacy: bool = False) -> bytes:
    """``legacy``: 3DES and SHA-1, for readers that do not know AES (old Java, Windows and devices)."""
    from cryptography import x509  # imported late: few hosts need PKCS#12
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.hashes import SHA1
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, PrivateFormat
    from cryptography.hazmat.primitives.serialization.pkcs12 import PBES, serialize_key_and_certificates

    from certctrl.install.material.private_key import load_key

    (leaf,) = x509.load_pem_x509_certificates(bundle.certificate_pem)
    chain = x509.load_pem_x509_certificates(bundle.chain_pem) if bundle.chain_pem else []
    key = load_key(bundle.key_pem)
    try:
        builder = PrivateFormat.PKCS12.encryption_builder()
        old = builder.kdf_rounds(LEGACY_ROUNDS).key_cert_algorithm(PBES.PBESv1SHA1And3KeyTripleDESCBC).hmac_hash(SHA1())
        encryption = old.build(password) if legacy else BestAvailableEncryption(password)
        return serialize_key_and_certificates(alias.encode(), key, leaf, chain, encryption)
    except (UnsupportedAlgorithm, ValueError):
        what = "this system cannot make a PKCS#12 file with this encryption and password"
        raise MaterialError(what, reason="pkcs12", fix="use bundle.pfx, and a password that is not empty") from None


def _jks(bundle: Bundle, password: bytes, alias: str) -> bytes:
    try:
        import jks
    except ImportError:
        raise MaterialError(
            "bundle.jks needs the package pyjks", reason="jks-missing", fix='pip install "certctrl[jks]"'
        ) from None
    key_der = pem_to_key_der(bundle.key_pem)
    chain = [pem_to_der(block) for block in split_pem(bundle.certificate_pem + bundle.chain_pem)]
    entry = jks.PrivateKeyEntry.new(alias.lower(), chain, key_der, "pkcs8")
    store = jks.KeyStore.new("jks", [entry])
    try:
        return bytes(store.saves(password.decode("ascii")))
    except UnicodeDecodeError:
        what = "the password of bundle.jks has characters that are not ASCII"
        raise MaterialError(what, reason="jks-password", fix="choose another password") from None


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
