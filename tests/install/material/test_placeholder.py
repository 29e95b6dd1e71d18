"""The certificate that replaces a revoked one: its names, its dates, and nothing that a client would trust."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator

import pytest
from bundle_maker import DAY
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from certctrl.install.material.placeholder import placeholder_bundle


def test_a_placeholder_is_a_self_signed_leaf_with_its_own_key(now: float) -> None:
    bundle = placeholder_bundle(7, "web", ("a.example", "192.0.2.1"), not_before=now, now=now)
    leaf = x509.load_pem_x509_certificate(bundle.certificate_pem)
    leaf.verify_directly_issued_by(leaf)
    key = load_pem_private_key(bundle.key_pem, None)
    assert key.public_key() == leaf.public_key()
    assert bundle.key_pem.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert bundle.chain_pem == b""
    assert "revoked" in leaf.subject.rfc4514_string()
    constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca) == (True, False)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert not names.critical
    facts = bundle.facts
    assert (facts.cert_id, facts.name, facts.domains) == (7, "web", ("a.example", "192.0.2.1"))
    assert int(facts.serial.replace(":", ""), 16) == leaf.serial_number > 0
    again = placeholder_bundle(7, "web", ("a.example",), not_before=now, now=now)
    assert again.facts.serial != facts.serial and again.key_pem != bundle.key_pem


@pytest.mark.parametrize("before", [-DAY, -0.75, 0.0, DAY], ids=["older", "a second", "now", "in the future"])
def test_a_placeholder_is_valid_now_and_no_newer_than_its_predecessor(now: float, before: float) -> None:
    facts = placeholder_bundle(1, "x", ("a.example",), not_before=now + before, now=now).facts
    assert facts.not_before == int(now + min(before, 0.0))
    assert facts.not_after == now + 90 * DAY
    assert dt.datetime.fromtimestamp(facts.not_after, dt.UTC).timestamp() == facts.not_after


@pytest.fixture
def far_east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run on a host that is nine hours ahead."""
    monkeypatch.setenv("TZ", "JST-9")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("far_east")
def test_the_time_zone_of_the_host_does_not_matter(now: float) -> None:
    facts = placeholder_bundle(1, "x", ("a.example",), not_before=now - 5, now=now).facts
    assert (facts.not_before, facts.not_after) == (now - 5, now + 90 * DAY)


def test_a_placeholder_without_names_has_no_san(now: float) -> None:
    bundle = placeholder_bundle(1, "x", (), not_before=now, now=now)
    leaf = x509.load_pem_x509_certificate(bundle.certificate_pem)
    assert [type(extension.value) for extension in leaf.extensions] == [x509.BasicConstraints]
