"""Certificates of a version that does not exist: the library's error for them is not a ValueError."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from made_chains import pki

from certctrl.errors import MaterialError
from certctrl.install.deploy.trust_store import checked_ca
from certctrl.install.material import bundle
from certctrl.install.probe.address import kind_of
from certctrl.plane import authorities
from certctrl.plane.acme.chains import read_chain
from certctrl.plane.certificates.chains import certificates_of
from certctrl.plane.errors import ErrorResponse
from certctrl.plane.issuers.issuer import IssuerError

V3, V8 = b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07"
DER = pki(1)[0].certificate.public_bytes(Encoding.DER).replace(V3, V8, 1)
PEM = "\n".join(
    ["-----BEGIN CERTIFICATE-----", *textwrap.wrap(base64.b64encode(DER).decode(), 64), "-----END CERTIFICATE-----", ""]
)


@pytest.mark.parametrize(
    ("read", "error"),
    [
        (lambda: certificates_of(PEM), MaterialError),
        (lambda: bundle._parsed(PEM, "leaf"), MaterialError),
        (lambda: checked_ca(PEM, 0.0), MaterialError),
        (lambda: read_chain(PEM.encode()), IssuerError),
        (lambda: authorities._ca_certificate(PEM), ErrorResponse),
    ],
)
def test_it_is_refused_as_unreadable(read: Callable[[], object], error: type[Exception]) -> None:
    assert V8 in DER
    with pytest.raises(error):
        read()


def test_a_server_with_one_has_no_known_kind_of_key() -> None:
    assert kind_of(DER) is None
