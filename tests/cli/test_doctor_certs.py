"""The doctor compares records, disk and endpoints, and waits for a daemon that is changing them."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest
import trio
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from certctrl.cli.doctor.certs import certificate_findings, check_endpoints, endpoints
from certctrl.cli.doctor.finding import CheckContext, Finding
from certctrl.model.plan import OutcomeKind
from certctrl.model.records import CertRecord, Retry, RetryKind, Standing
from certctrl.store.deployments.generations import GenerationStore

from .conftest import DAY, NOW, record
from .doctor_helpers import found


def deploy(
    context: CheckContext, *, mixed: bool = False, placeholder: bool = False, **changes: Any
) -> tuple[CertRecord, trustme.LeafCert]:
    """Put one real pair on disk as the pipeline would (``mixed``: with another certificate's key).

    ``placeholder``: as one that stands in for a revoked certificate.
    """
    ca = trustme.CA()
    leaf, other = ca.issue_cert("www.example.com"), ca.issue_cert("www.example.com")
    chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
    files = {
        "private.key": (other if mixed else leaf).private_key_pem.bytes(), "fullchain.pem": chain,
        "certificate.pem": leaf.cert_chain_pems[0].bytes(), "chain.pem": ca.cert_pem.bytes(),
    }  # fmt: skip
    store = GenerationStore(context.layout, context.fs)
    staged = store.stage("www.example.com", files, {"cert_id": 7} | ({"placeholder": True} if placeholder else {}))
    store.settle([staged])
    store.switch({"www.example.com": staged.id})
    fingerprint = x509.load_pem_x509_certificate(chain).fingerprint(hashes.SHA256()).hex()
    deployed = record(generation=staged.id, fingerprint_sha256=fingerprint, **changes)
    context.store.installed.save_certificates({7: deployed})
    return deployed, leaf


def test_a_valid_pair(context: CheckContext) -> None:
    deploy(context)
    assert [str(one.level) for one in certificate_findings(context)] == ["OK"]


def test_a_chain_that_ends_before_its_leaf(context: CheckContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that an earlier release deployed, whose record says otherwise."""
    monkeypatch.setattr(x509, "load_pem_x509_certificates", with_short_issuer(x509.load_pem_x509_certificates))
    deploy(context)
    ((level, what, fix),) = found(certificate_findings(context), "certificate")
    assert level == "WARN" and "expires in 3d 0h 0m with its issuer CN=short" in what and "renew" in fix


def with_short_issuer(load: Callable[[bytes], list[x509.Certificate]]) -> Callable[[bytes], list[x509.Certificate]]:
    """Return a function that reads certificates and adds an issuer that ends three days from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "short")])
    begins, ends = (datetime.fromtimestamp(NOW + days * DAY, UTC) for days in (-1, 3))
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, begins, ends)
    return lambda pem: [*load(pem), builder.sign(key, hashes.SHA256())]


def test_a_public_name_that_does_not_lead_to_its_certificate(context: CheckContext) -> None:
    deploy(context)
    link = context.layout.certs / "www.example.com.crt"
    link.unlink()
    ((level, what, fix),) = found(certificate_findings(context), "certificate")
    assert level == "FAIL" and f"{link} does not lead to it" in what and "apply" in fix


def test_a_mixed_pair_is_found(context: CheckContext) -> None:
    deploy(context, mixed=True)
    ((level, what, _),) = found(certificate_findings(context), "certificate")
    assert level == "FAIL" and "does not match its certificate" in what


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"not_after": NOW - 60}, "FAIL", "expired 1m 0s ago"),
        ({"not_after": NOW + 3 * DAY}, "WARN", "expires in 3d 0h 0m"),
        ({"not_before": NOW + 3600, "not_after": NOW + DAY}, "FAIL", "becomes valid in 1h 0m"),
        ({"last_outcome": OutcomeKind.FAILED}, "WARN", "last attempt: nginx: bad"),
        ({"held": True}, "WARN", "held after a rollback"),
        ({"placeholder": True, "revoked": True}, "FAIL", "revoked, replaced by a self-signed placeholder"),
        ({"placeholder": True}, "FAIL", "unassigned, replaced by a self-signed placeholder"),
        ({"standing": Standing.UNLISTED}, "WARN", "the control plane does not know it"),
        ({"standing": Standing.FOREIGN}, "WARN", "the control plane does not know it"),
        ({"revoked": True}, "FAIL", "revoked, but still in use"),
    ],
)
def test_validity_and_stages(changes: dict[str, Any], level: str, words: str, context: CheckContext) -> None:
    deploy(context, **changes)
    context.store.installed.save_retries([Retry(resource="cert:7", kind=RetryKind.REFUSED, last_error="nginx: bad")])
    assert any(
        said == level and words in what and fix
        for said, what, fix in found(certificate_findings(context), "certificate")
    )


def test_a_record_that_differs_from_the_disk(context: CheckContext) -> None:
    deployed, _ = deploy(context)
    context.store.installed.save_certificates(
        {7: attrs.evolve(deployed, facts=attrs.evolve(deployed.facts, fingerprint_sha256="00" * 32))}
    )
    assert "is not the recorded one" in found(certificate_findings(context), "certificate")[0][1]
    context.store.installed.save_certificates({7: attrs.evolve(deployed, generation="f" * 32)})
    assert "points to" in found(certificate_findings(context), "certificate")[0][1]


def test_a_certificate_that_the_daemon_is_changing_is_checked_again(
    context: CheckContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed, _ = deploy(context)
    context.store.installed.save_certificates({7: attrs.evolve(deployed, generation="f" * 32)})
    pauses = []

    def come_to_rest(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            context.store.installed.save_certificates({7: deployed})

    monkeypatch.setattr("certctrl.cli.doctor.certs.time.sleep", come_to_rest)
    monkeypatch.setattr("certctrl.cli.doctor.certs.gather", lambda _: {"running": True})
    assert "key matches" in found(certificate_findings(context), "certificate")[0][1]
    assert len(pauses) == 2
    context.store.installed.save_certificates({7: attrs.evolve(deployed, generation="f" * 32)})
    assert "points to" in found(certificate_findings(context), "certificate")[0][1], "a lasting difference is a finding"


async def serve(leaf: trustme.LeafCert, task_status: Any) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)

    async def handshake(stream: trio.SSLStream[trio.SocketStream]) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.do_handshake()

    await trio.serve_ssl_over_tcp(handshake, 0, context, host="127.0.0.1", task_status=task_status)


def local_plan(context: CheckContext, port: int, about: str = '"ob_type": "cert", "ob_id": 7,') -> None:
    context.layout.local_installs.write_text(
        f'[{{"id": "reload", "type": "exec", "cmd_argv": ["/bin/true"], {about}'
        f' "verify": {{"type": "tls", "host": "127.0.0.1", "port": {port}, "server_name": "www.example.com"}}}}]'
    )


async def test_endpoints_with_the_right_and_a_wrong_certificate(context: CheckContext) -> None:
    _, leaf = deploy(context)
    other = trustme.CA().issue_cert("www.example.com")
    for served, level, words in (
        (leaf, "OK", "serves the certificate on disk (www.example.com)"),
        (other, "FAIL", "than the one on disk (www.example.com)"),
    ):
        notes: list[Finding] = []
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(serve, served)
            local_plan(context, listeners[0].transport_listener.socket.getsockname()[1])
            await check_endpoints(context, notes.append)
            nursery.cancel_scope.cancel()
        assert [(str(one.level), words in one.what) for one in notes] == [(level, True)]


async def test_an_endpoint_with_the_certificate_of_another_name(context: CheckContext) -> None:
    _, mine = deploy(context)
    other = trustme.CA().issue_cert("other.example.com")
    fingerprint = x509.load_pem_x509_certificate(other.cert_chain_pems[0].bytes()).fingerprint(hashes.SHA256()).hex()
    second = record(
        cert_id=8, name="other.example.com", domains=("other.example.com",), fingerprint_sha256=fingerprint,
        generation="f" * 32,
    )  # fmt: skip
    context.store.installed.save_certificates(context.store.installed.load_certificates() | {8: second})
    notes: list[Finding] = []
    async with trio.open_nursery() as nursery:
        for served in (mine, other):
            listeners = await nursery.start(serve, served)
            local_plan(context, listeners[0].transport_listener.socket.getsockname()[1], about="")
            await check_endpoints(context, notes.append)
        nursery.cancel_scope.cancel()
    assert [str(one.level) for one in notes] == ["OK", "FAIL"]
    assert "than the one on disk (www.example.com)" in notes[1].what


async def test_an_endpoint_that_is_down(context: CheckContext) -> None:
    deploy(context)
    local_plan(context, 1)
    notes: list[Finding] = []
    await check_endpoints(context, notes.append)
    ((level, what, fix),) = found(notes, "endpoint")
    assert level == "FAIL" and "127.0.0.1:1" in what and fix


def test_items_without_a_deployed_certificate_have_no_endpoint(context: CheckContext) -> None:
    local_plan(context, 443)
    assert endpoints(context) == []
