"""Get the CA of a control plane by its fingerprint, before anything of that control plane can be verified.

The connection is not verified and carries one request without credentials. An attacker who answers it cannot pass off
another CA, because that has another fingerprint. The next connection is verified by the CA.
"""

from __future__ import annotations

import hashlib
import os
import ssl
from typing import TYPE_CHECKING

from certctrl.cli.invocation import SERVER_VARIABLE
from certctrl.cli.output import write_error
from certctrl.errors import BadAnswerError, ConfigError, TlsError, UsageError
from certctrl.protocol.wire.anchor import CA_PATH, STRONG_DIGITS, fingerprint_prefix

if TYPE_CHECKING:
    from certctrl.store.layout import ConfigDir

SECONDS = 30.0
MAX_BYTES = 65_536
_BY_HAND = "copy ca.pem from the control plane's data directory and give it with --ca FILE"


def check_fingerprint(text: str) -> str:
    """Return the digits of a fingerprint or of its start; warn about few. Raises UsageError."""
    digits = fingerprint_prefix(text)
    if len(digits) < STRONG_DIGITS:
        write_error(
            f"warning: an attacker can make a CA with the same first {len(digits)} digits; compare {STRONG_DIGITS}"
        )
    return digits


def ca_with_fingerprint(layout: ConfigDir, url: str, digits: str) -> bytes:
    """Return the CA of the control plane at ``url`` whose fingerprint starts with ``digits``, in PEM.

    The CA of the config directory is used if it is this one; otherwise it is fetched. Raises TransportError and its
    subclasses, TlsError for another CA, and ConfigError for an invalid URL.
    """
    from certctrl.cli.runtime import run
    from certctrl.net.tls import PlaneCa
    from certctrl.store.config.files import SIZE_LIMIT
    from certctrl.store.disk.atomic import read_bytes
    from certctrl.store.disk.fs import RealFs

    _check_url(url)
    here, _ = PlaneCa.below(layout.root).in_use()  # perhaps one that the control plane has announced since
    configured, used = (read_bytes(RealFs(), path, SIZE_LIMIT) for path in (layout.plane_ca, here))
    if configured is not None and any(pem is not None and _matches(pem, digits) for pem in (used, configured)):
        return configured
    return run(_fetch, layout, url, digits)


def check_ca_file(pem: bytes, digits: str, file: object) -> None:
    """Raise UsageError unless the fingerprint of a CA file starts with ``digits``."""
    if not _matches(pem, digits):
        raise UsageError(f"--ca {file} has another fingerprint", fix="give the ca.pem of this control plane")


def _check_url(url: str) -> None:
    from certctrl.model.origin import parse_origin

    if url.startswith("http:"):
        raise UsageError("a CA fingerprint is for https only", fix="remove --ca-fingerprint, or use https://")
    try:
        parse_origin(url)
    except ConfigError as error:
        raise ConfigError(error.reason, file="server URL", fix=error.fix) from None


async def _fetch(layout: ConfigDir, url: str, digits: str) -> bytes:
    from certctrl.agent.clock import wall_now
    from certctrl.agent.plane_anchor import only_ca
    from certctrl.net.transport import HttpcoreHttp
    from certctrl.store.config.files import load_config

    config = load_config(layout, dict(os.environ) | {SERVER_VARIABLE: url}).config
    http = HttpcoreHttp(config, root=layout.root, wall_now=wall_now, verified=False)
    try:
        answer = await http.request("GET", CA_PATH, deadline=SECONDS, cap=MAX_BYTES)
    finally:
        await http.aclose()
    if answer.status != 200:
        raise BadAnswerError(f"{url} does not offer its CA (status {answer.status})", fix=_BY_HAND)
    der = only_ca(answer.body.decode("ascii", "replace"))
    if der is None:
        raise BadAnswerError(f"{url}{CA_PATH} is not one CA certificate in PEM", fix=_BY_HAND)
    if not _fingerprint(der).startswith(digits):
        fix = "check URL and fingerprint; if both are right, something between this host and the control plane answers"
        raise TlsError(f"the CA that answers at {url} has another fingerprint; nothing of it is used", fix=fix)
    return ssl.DER_cert_to_PEM_cert(der).encode("ascii")


def _matches(pem: bytes, digits: str) -> bool:
    from certctrl.agent.plane_anchor import only_ca

    der = only_ca(pem.decode("ascii", "replace"))
    return der is not None and _fingerprint(der).startswith(digits)


def _fingerprint(der: bytes) -> str:
    return hashlib.sha256(der).hexdigest()
