"""The doctor: each check finds its fault, names the remedy, and changes nothing."""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from certctrl.cli.doctor import host
from certctrl.cli.doctor.certs import certificate_findings, endpoints, look_at_endpoints
from certctrl.cli.doctor.finding import Finding, Patient
from certctrl.cli.doctor.host import host_findings
from certctrl.cli.doctor.plane import look_at_plane
from certctrl.errors import TlsError, TransportError
from certctrl.model.config import AgentConfig, ApplicationConfig
from certctrl.model.policy import HostPolicy, NamedCommand
from certctrl.model.records import CertRecord, DeviceKeys, Tokens
from certctrl.protocol.wire import Answer
from certctrl.store.config import save_policy
from certctrl.store.fs import RealFs
from certctrl.store.generations import GenerationStore
from certctrl.store.layout import ConfigDir
from certctrl.store.state import StateStore

from .conftest import DAY, NOW, FakeDaemon, Ran, record, running_status

CONFIG = AgentConfig(application=ApplicationConfig(server_url="https://127.0.0.1:8443"))


@pytest.fixture
def patient(layout: ConfigDir, store: StateStore) -> Patient:
    return Patient(layout=layout, fs=RealFs(), store=store, environ={}, now=lambda: NOW, config=CONFIG)


def found(findings: Any, check: str) -> list[tuple[str, str, str]]:
    return [(str(one.level), one.what, one.fix) for one in findings if one.check == check]


def register(store: StateStore) -> None:
    key = X25519PrivateKey.generate()
    keys = DeviceKeys(public=key.public_key().public_bytes_raw(), secret=key.private_bytes_raw())
    store.save_device_id("23229bf7-5172-02c7-59a2-76d5b4a40090")
    store.save_device_keys(keys)
    store.save_tokens(Tokens(access_token="a.b.c", refresh_token="rt_x.y"))


# --- this host ----------------------------------------------------------------------------------------------------


def test_a_healthy_host(patient: Patient) -> None:
    register(patient.store)
    findings = list(host_findings(patient))
    assert [str(one.level) for one in findings] == ["OK"] * len(findings)
    assert {one.check for one in findings} == {"config", "permissions", "disk", "state", "device", "policy"}


def test_wrong_configuration(patient: Patient) -> None:
    patient.layout.application.write_text('{"server_url": "https://p", "poll_limt": 1}')
    ((level, what, fix),) = found(host_findings(patient), "config")
    assert level == "FAIL" and "poll_limt" in what and fix


def test_open_permissions_are_shown_and_left(patient: Patient) -> None:
    register(patient.store)
    patient.layout.refresh_token.chmod(0o644)
    ((level, what, fix),) = found(host_findings(patient), "permissions")
    assert level == "FAIL" and str(patient.layout.refresh_token) in what
    assert fix == f"chmod 0600 {patient.layout.refresh_token}"
    assert patient.layout.refresh_token.stat().st_mode & 0o777 == 0o644, "the doctor looks, it does not operate"


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"f_bavail": 1000, "f_frsize": 4096}, "FAIL", "4 MiB free"),
        ({"f_bavail": 20_000, "f_frsize": 4096}, "WARN", "78 MiB free"),
        ({"f_flag": os.ST_RDONLY}, "FAIL", "read-only"),
        ({"f_files": 1000, "f_favail": 3}, "FAIL", "3 inodes free"),
    ],
)
def test_disk_space(
    changes: dict[str, int], level: str, words: str, patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"f_bavail": 1 << 30, "f_frsize": 4096, "f_flag": 0, "f_files": 10_000, "f_favail": 9_000} | changes

    class Facts:
        def __init__(self) -> None:
            self.__dict__.update(facts)

    monkeypatch.setattr(host.os, "statvfs", lambda _path: Facts())
    assert any(said == level and words in what for said, what, _ in found(host_findings(patient), "disk"))


def test_each_damaged_state_file_is_named(patient: Patient) -> None:
    register(patient.store)
    for path in (patient.layout.inbox, patient.layout.certificates, patient.layout.pending_acks):
        path.write_text("{")
        path.chmod(0o600)
    damaged = found(host_findings(patient), "state")
    assert len(damaged) == 3 and all(level == "FAIL" and fix for level, _, fix in damaged)
    assert all(any(name in what for _, what, _ in damaged) for name in ("inbox", "certificates", "pending_acks"))


def test_not_registered(patient: Patient) -> None:
    assert found(host_findings(patient), "device") == [
        ("FAIL", "not registered: there is no device key", "cert-ctrl -c DIR register")
    ]


def test_a_device_key_that_does_not_fit(patient: Patient) -> None:
    register(patient.store)
    keys = patient.store.load_device_keys()
    assert keys is not None
    patient.layout.device_public_key.write_bytes(bytes(32))
    ((level, what, _),) = found(host_findings(patient), "device")
    assert (level == "FAIL" and "does not belong" in what) or "key" in what


def test_what_is_wrong_with_a_policy(patient: Patient, tmp_path: Path) -> None:
    real, link, loose = tmp_path / "real", tmp_path / "link", tmp_path / "loose"
    real.mkdir()
    link.symlink_to(real)
    loose.mkdir()
    loose.chmod(0o777)
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o777)
    policy = HostPolicy(
        write_roots=(str(real), str(link), str(loose), str(tmp_path / "missing")),
        commands={
            "good": NamedCommand(argv=("/bin/true",)),
            "bad": NamedCommand(argv=(str(script),), run_as="nosuchuser"),
        },
        run_as=("root",), owners=("root", "nosuchgroup"), shell=True, plaintext_keys=True,
        on_alert=("/nonexistent/page",),
    )  # fmt: skip
    save_policy(RealFs(), patient.layout, policy)
    findings = found(host_findings(patient), "policy")
    text = "\n".join(f"{level} {what}" for level, what, _ in findings)
    for words in (
        f"FAIL write_roots: {link} leads through a link", f"FAIL write_roots: others may write {loose}",
        f"WARN write_roots: {tmp_path}/missing: No such file", "FAIL commands.bad: ", "FAIL on_alert: ",
        "FAIL there is no user nosuchuser", "FAIL owners: there is no user or group nosuchgroup",
        "WARN shell lines", "WARN private keys that are not sealed",
    ):  # fmt: skip
        assert words in text
    assert "commands.good" not in text and f"{real}:" not in text
    assert all(fix for _, _, fix in findings)


# --- the way to the plane ---------------------------------------------------------------------------------------


class FakeHttp:
    """Answers /health with a Date, and the poll with what it is told."""

    def __init__(self, poll: Answer | Exception | None = None, *, health: Any = None, skew: float = 0.0) -> None:
        self.poll = poll or Answer(204, {"etag": "1-5"}, b"")
        self.health = health or Answer(200, {"date": formatdate(NOW + skew, usegmt=True)}, b"")
        self.closed = False
        self.paths: list[str] = []

    async def request(self, _method: str, path: str, **_named: Any) -> Answer:
        self.paths.append(path)
        answer = self.health if path == "/health" else self.poll
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        self.closed = True


async def asked(patient: Patient, http: FakeHttp, config: AgentConfig = CONFIG) -> list[Finding]:
    notes: list[Finding] = []
    await look_at_plane(patient, config, lambda _config, _layout: http, notes.append)
    assert http.closed
    return notes


async def test_a_plane_in_order(patient: Patient) -> None:
    register(patient.store)
    notes = await asked(patient, FakeHttp())
    assert [(one.check, str(one.level)) for one in notes] == [
        ("dns", "OK"), ("tls", "OK"), ("clock", "OK"), ("token", "OK"),
    ]  # fmt: skip


def error_answer(status: int, key: str) -> Answer:
    body = b'{"error": {"code": 1, "what": "w", "key": "%s"}}' % key.encode()
    return Answer(status, {"content-type": "application/json"}, body)


@pytest.mark.parametrize(
    ("poll", "level", "words"),
    [
        (
            Answer(200, {"content-type": "application/json"}, b'{"data": {"cursor": "1-6", "signals": []}}'),
            "OK",
            "takes",
        ),
        (error_answer(401, "TOKEN_EXPIRED"), "WARN", "expired"),
        (error_answer(403, "DEVICE_REVOKED"), "FAIL", "revoked this device"),
        (error_answer(403, "OTHER"), "FAIL", "refused: 403"),
        (error_answer(409, "CURSOR_EXPIRED"), "OK", "resync"),
        (error_answer(429, "RATE_LIMITED"), "WARN", "busy (status 429)"),
        (Answer(200, {"content-type": "text/html"}, b"<html>log in</html>"), "FAIL", "no usable answer"),
        (TransportError("connection reset"), "FAIL", "connection reset"),
    ],
    ids=lambda value: getattr(value, "status", str(value)[:12]),
)
async def test_what_the_plane_says_of_the_token(poll: Any, level: str, words: str, patient: Patient) -> None:
    register(patient.store)
    ((said, what, fix),) = found(await asked(patient, FakeHttp(poll)), "token")
    assert said == level and words in what
    assert bool(fix) == (level != "OK")
    assert "rt_x" not in what + fix and "a.b.c" not in what + fix


async def test_no_token_is_not_asked_about(patient: Patient) -> None:
    http = FakeHttp()
    assert found(await asked(patient, http), "token")[0][0] == "FAIL"
    assert http.paths == ["/health"]


@pytest.mark.parametrize(
    ("skew", "level"), [(0, "OK"), (4, "OK"), (-4, "OK"), (30, "WARN"), (-30, "WARN"), (900, "FAIL")]
)
async def test_the_clock_is_compared_with_the_planes(skew: float, level: str, patient: Patient) -> None:
    ((said, what, _),) = found(await asked(patient, FakeHttp(skew=skew)), "clock")
    assert said == level
    assert level == "OK" or f"{abs(skew):.0f} s {'behind' if skew > 0 else 'ahead of'}" in what


@pytest.mark.parametrize("date", [None, "", "yesterday", "Fri, 03 Oct 99999 05:45:56 GMT"])
async def test_a_plane_without_a_usable_date(date: str | None, patient: Patient) -> None:
    http = FakeHttp(health=Answer(404, {"date": date} if date is not None else {}, b""))
    notes = await asked(patient, http)
    assert found(notes, "clock") == []
    assert found(notes, "tls")[0][0] == "OK", "any answer proves the way"


async def test_a_refused_certificate_ends_the_questions(patient: Patient) -> None:
    http = FakeHttp(health=TlsError("the certificate is not trusted", fix="add its CA to ca_files"))
    notes = await asked(patient, http)
    assert found(notes, "tls") == [("FAIL", "the certificate is not trusted", "add its CA to ca_files")]
    assert found(notes, "token") == []


async def test_plain_http_is_told(patient: Patient) -> None:
    plain = AgentConfig(application=ApplicationConfig(server_url="http://127.0.0.1:80", allow_http_loopback=True))
    assert found(await asked(patient, FakeHttp(), plain), "tls")[0][0] == "WARN"


async def test_a_name_that_cannot_be_resolved(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_args: Any, **_named: Any) -> Any:
        raise trio.socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(trio.socket, "getaddrinfo", nothing)
    ((level, what, fix),) = found(await asked(patient, FakeHttp()), "dns")
    assert level == "FAIL" and "Name or service not known" in what and "resolv.conf" in fix


async def test_a_resolver_that_hangs(
    patient: Patient, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async def never(*_args: Any, **_named: Any) -> Any:
        await trio.sleep_forever()

    monkeypatch.setattr(trio.socket, "getaddrinfo", never)
    assert "within 5 s" in found(await asked(patient, FakeHttp()), "dns")[0][1]


# --- certificates and endpoints ---------------------------------------------------------------------------------


def deploy(patient: Patient, *, mixed: bool = False, **changes: Any) -> tuple[CertRecord, trustme.LeafCert]:
    """Put one real pair on disk as the pipeline would (``mixed``: with another certificate's key)."""
    ca = trustme.CA()
    leaf, other = ca.issue_cert("www.example.com"), ca.issue_cert("www.example.com")
    chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
    files = {
        "private.key": (other if mixed else leaf).private_key_pem.bytes(), "fullchain.pem": chain,
        "certificate.pem": leaf.cert_chain_pems[0].bytes(), "chain.pem": ca.cert_pem.bytes(),
    }  # fmt: skip
    store = GenerationStore(patient.layout, patient.fs)
    staged = store.stage("www.example.com", files, {"cert_id": 7})
    store.settle([staged])
    store.switch({"www.example.com": staged.id})
    fingerprint = x509.load_pem_x509_certificate(chain).fingerprint(hashes.SHA256()).hex()
    deployed = record(generation=staged.id, fingerprint_sha256=fingerprint, **changes)
    patient.store.save_certificates({7: deployed})
    return deployed, leaf


def test_a_pair_in_order(patient: Patient) -> None:
    deploy(patient)
    assert [str(one.level) for one in certificate_findings(patient)] == ["OK"]


def test_a_mixed_pair_is_found(patient: Patient) -> None:
    deploy(patient, mixed=True)
    ((level, what, _),) = found(certificate_findings(patient), "certificate")
    assert level == "FAIL" and "does not belong to the certificate" in what


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"not_after": NOW - 60}, "FAIL", "expired 1m 0s ago"),
        ({"not_after": NOW + 3 * DAY}, "WARN", "expires in 3d 0h 0m"),
        ({"not_before": NOW + 3600, "not_after": NOW + DAY}, "FAIL", "not valid for another 1h 0m"),
        ({"last_error": "nginx: bad"}, "WARN", "last attempt: nginx: bad"),
        ({"held": True}, "WARN", "held after a rollback"),
    ],
)
def test_lives_and_leftovers(changes: dict[str, Any], level: str, words: str, patient: Patient) -> None:
    deploy(patient, **changes)
    assert any(
        said == level and words in what and fix
        for said, what, fix in found(certificate_findings(patient), "certificate")
    )


def test_a_record_that_is_not_what_is_live(patient: Patient) -> None:
    deployed, _ = deploy(patient)
    patient.store.save_certificates({7: attrs.evolve(deployed, fingerprint_sha256="00" * 32)})
    assert "not the one that was recorded" in found(certificate_findings(patient), "certificate")[0][1]
    patient.store.save_certificates({7: attrs.evolve(deployed, generation="f" * 32)})
    assert "points at" in found(certificate_findings(patient), "certificate")[0][1]


def test_what_the_daemon_is_changing_is_looked_at_again(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    deployed, _ = deploy(patient)
    patient.store.save_certificates({7: attrs.evolve(deployed, generation="f" * 32)})
    pauses = []

    def come_to_rest(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            patient.store.save_certificates({7: deployed})

    monkeypatch.setattr("certctrl.cli.doctor.certs.time.sleep", come_to_rest)
    monkeypatch.setattr("certctrl.cli.doctor.certs.gather", lambda _: {"running": True})
    assert "fit" in found(certificate_findings(patient), "certificate")[0][1]
    assert len(pauses) == 2
    patient.store.save_certificates({7: attrs.evolve(deployed, generation="f" * 32)})
    assert "points at" in found(certificate_findings(patient), "certificate")[0][1], "in the end it is a finding"


async def serve(leaf: trustme.LeafCert, task_status: Any) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)

    async def handshake(stream: trio.SSLStream[trio.SocketStream]) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.do_handshake()

    await trio.serve_ssl_over_tcp(handshake, 0, context, host="127.0.0.1", task_status=task_status)


def local_plan(patient: Patient, port: int) -> None:
    patient.layout.local_installs.write_text(
        '[{"id": "reload", "type": "exec", "cmd_argv": ["/bin/true"], "ob_type": "cert", "ob_id": 7,'
        f' "verify": {{"type": "tls", "host": "127.0.0.1", "port": {port}, "server_name": "www.example.com"}}}}]'
    )


async def test_an_endpoint_that_serves_what_is_on_disk_and_one_that_does_not(patient: Patient) -> None:
    _, leaf = deploy(patient)
    other = trustme.CA().issue_cert("www.example.com")
    for served, level, words in ((leaf, "OK", "as it is on disk"), (other, "FAIL", "which is not www.example.com")):
        notes: list[Finding] = []
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(serve, served)
            local_plan(patient, listeners[0].transport_listener.socket.getsockname()[1])
            await look_at_endpoints(patient, notes.append)
            nursery.cancel_scope.cancel()
        assert [(str(one.level), words in one.what) for one in notes] == [(level, True)]


async def test_an_endpoint_that_is_down(patient: Patient) -> None:
    deploy(patient)
    local_plan(patient, 1)
    notes: list[Finding] = []
    await look_at_endpoints(patient, notes.append)
    ((level, what, fix),) = found(notes, "endpoint")
    assert level == "FAIL" and "127.0.0.1:1" in what and fix


def test_items_without_a_deployed_certificate_have_no_endpoint(patient: Patient) -> None:
    local_plan(patient, 443)
    assert endpoints(patient) == []


# --- the command ------------------------------------------------------------------------------------------------


def test_the_report_of_a_fresh_directory(layout: ConfigDir, ran: Callable[..., Ran]) -> None:
    done = ran("-c", layout.root, "doctor", "--offline")
    assert done.status == 1 and done.err == ""
    lines = done.out.splitlines()
    assert "FAIL  device: not registered: there is no device key" in lines
    assert lines[lines.index("FAIL  device: not registered: there is no device key") + 1] == (
        f"      fix: cert-ctrl -c {layout.root} register"
    )
    assert lines[-1].endswith("1 needs you, 1 warning")


def test_json_and_a_running_daemon(
    layout: ConfigDir, store: StateStore, daemon: Callable[..., FakeDaemon], ran: Callable[..., Ran]
) -> None:
    register(store)
    refusals = [{"what": "run /bin/x", "why": "not among commands", "setting": "commands", "value": {}}]
    replies = {
        "status": running_status(
            health="degraded", problems=[{"what": "breaker open", "since": NOW, "fix": "cert-ctrl -c DIR poll-now"}]
        ),
        "plan": {"refusals": refusals},
    }
    daemon(lambda request: {"ok": True, "data": replies[request["op"]]})
    done = ran("-c", layout.root, "doctor", "--offline", "--json")
    assert done.status == 1
    rows = {(row["check"], row["level"]): row for row in done.json()}
    assert rows["daemon", "FAIL"]["fix"] == f"cert-ctrl -c {layout.root} poll-now"
    assert rows["plan", "WARN"]["what"] == "refused: run /bin/x: not among commands"


def test_nothing_wrong_is_status_0(
    layout: ConfigDir, store: StateStore, daemon: Callable[..., FakeDaemon], ran: Callable[..., Ran]
) -> None:
    register(store)
    replies = {"status": running_status(), "plan": {"refusals": []}}
    daemon(lambda request: {"ok": True, "data": replies[request["op"]]})
    done = ran("-c", layout.root, "doctor", "--offline")
    assert done.status == 0 and done.out.splitlines()[-1].endswith("0 need you, 0 warnings")


def test_a_wrong_configuration_does_not_stop_the_other_checks(layout: ConfigDir, ran: Callable[..., Ran]) -> None:
    layout.application.write_text("{")
    rows = ran("-c", layout.root, "doctor", "--json").json()
    checks = [row["check"] for row in rows]
    assert {"config", "permissions", "disk", "state", "device", "policy", "daemon"} <= set(checks)
    assert "dns" not in checks, "without a configuration there is nobody to ask"
