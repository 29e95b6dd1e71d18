"""An operator's own TLS certificate in the data directory of a control plane."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from certctrl.plane.ca.x509 import KEY_TYPES, Authority, key_pem, new_key, pem_of, sign_leaf

DAY = 86_400


def write_certificate(
    data: Path, company: Authority, days: float = 30, names: Sequence[str] = ("localhost", "127.0.0.1")
) -> None:
    """Put a certificate of the operator's into a data directory."""
    now, key = time.time(), new_key(KEY_TYPES[0])
    leaf = sign_leaf(company, key.public_key(), names, not_before=now - DAY, not_after=now + days * DAY)
    data.mkdir(mode=0o700, exist_ok=True)
    (data / "tls.pem").write_text(pem_of(leaf))
    (data / "tls.key").write_bytes(key_pem(key))
    (data / "tls.key").chmod(0o600)
