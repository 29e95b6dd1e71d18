"""`init --ca-fingerprint`: the CA comes from the control plane, whoever answers, or is not used."""

from __future__ import annotations

import hashlib
import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import Plane, run_cli
from middleman import Middleman, middleman

from certctrl.store.layout import ConfigDir

pytestmark = pytest.mark.integration
OTHER = "0123456789abcdef"


def fingerprint(ca: Path) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(ca.read_text())).hexdigest()


@pytest.fixture
def between(tmp_path: Path) -> Iterator[Middleman]:
    with middleman(tmp_path) as made:
        yield made


def test_plane_serve_prints_the_fingerprint_of_its_ca_file(plane: Plane) -> None:
    assert f"CA fingerprint {fingerprint(plane.ca)}\n" in plane.child.text


@pytest.mark.parametrize("digits", [64, 16, 8])
def test_the_ca_with_the_fingerprint_is_fetched_and_used(plane: Plane, tmp_path: Path, digits: int) -> None:
    layout = ConfigDir(tmp_path / "agent")
    typed = fingerprint(plane.ca)[:digits].upper()
    done = run_cli("-c", layout.root, "init", "--server", plane.url, "--ca-fingerprint", typed)
    assert done.returncode == 0, done.stderr
    assert layout.plane_ca.read_bytes() == plane.ca.read_bytes()
    assert json.loads(layout.httpclient.read_text()) == {"ca_files": ["plane-ca.pem"]}
    weak = "warning: an attacker can make a CA with the same first 8 digits; compare 16\n"
    assert done.stderr == (weak if digits == 8 else "")
    token = tmp_path / "token"
    token.write_text(plane.operator.enrolment_token())
    done = run_cli("-c", layout.root, "register", "--enrolment-token-file", token)
    assert done.returncode == 0, done.stderr


def test_another_ca_is_not_used_and_learns_nothing(between: Middleman, plane: Plane, tmp_path: Path) -> None:
    root = tmp_path / "agent"
    words = ("-c", root, "init", "--server", between.url, "--ca-fingerprint", fingerprint(plane.ca)[:16])
    done = run_cli(*words, CERTCTRL_ENROLMENT_TOKEN="et_secret")
    assert done.returncode == 69 and "has another fingerprint; nothing of it is used" in done.stderr
    assert fingerprint(between.pem)[:16] not in done.stderr, "it would be copied as the right one"
    assert not root.exists()
    (request,) = between.received
    lines = request.decode().split("\r\n")
    assert lines[0] == "GET /ca.pem HTTP/1.1"
    sent = {line.partition(":")[0].lower() for line in lines[1:] if line}
    assert sent <= {"host", "user-agent", "accept", "accept-encoding", "connection"} and b"et_secret" not in request


def test_a_middleman_that_passes_on_the_right_ca_cannot_register_the_host(
    between: Middleman, plane: Plane, tmp_path: Path
) -> None:
    """The next connection is verified."""
    between.answer_with(plane.ca.read_bytes())
    layout, token = ConfigDir(tmp_path / "agent"), tmp_path / "token"
    token.write_text("et_secret")
    done = run_cli("-c", layout.root, "init", "--server", between.url, "--ca-fingerprint", fingerprint(plane.ca))
    assert done.returncode == 0, done.stderr
    done = run_cli("-c", layout.root, "register", "--enrolment-token-file", token)
    assert done.returncode == 69 and "certificate" in done.stderr
    assert len(between.received) == 1 and not layout.refresh_token.exists()


@pytest.mark.parametrize("kind", ["two", "text", "leaf", "nothing", "absent", "redirect", "long"])
def test_answers_that_are_not_one_ca(between: Middleman, plane: Plane, tmp_path: Path, kind: str) -> None:
    right = plane.ca.read_bytes()
    match kind:
        case "two":
            between.answer_with(right + between.pem.read_bytes())
        case "text":
            between.answer_with(b"<html>captive portal</html>")
        case "leaf":
            between.answer_with(between.ca.issue_cert("leaf.example").cert_chain_pems[0].bytes())
        case "nothing":
            between.answer_with(b"")
        case "absent":
            between.answer_with(right, status=404)
        case "redirect":
            between.answer_with(b"", status=302, headers="Location: https://elsewhere.example/ca.pem\r\n")
        case "long":
            between.answer_with(right + b"#" * 70_000)
    root = tmp_path / "agent"
    done = run_cli("-c", root, "init", "--server", between.url, "--ca-fingerprint", fingerprint(plane.ca))
    assert done.returncode == 69 and done.stderr.startswith("cert-ctrl: error: "), done.stderr
    assert not root.exists()


def test_text_around_the_right_ca_is_not_kept(between: Middleman, plane: Plane, tmp_path: Path) -> None:
    between.answer_with(b"Issuer: x\n" + plane.ca.read_bytes() + b"ssh-rsa AAAA\n")
    layout = ConfigDir(tmp_path / "agent")
    done = run_cli("-c", layout.root, "init", "--server", between.url, "--ca-fingerprint", fingerprint(plane.ca))
    assert done.returncode == 0 and layout.plane_ca.read_bytes() == plane.ca.read_bytes()


def test_the_ca_is_fetched_once(between: Middleman, plane: Plane, tmp_path: Path) -> None:
    between.answer_with(plane.ca.read_bytes())
    words = ("-c", tmp_path / "agent", "init", "--server", between.url, "--ca-fingerprint", fingerprint(plane.ca))
    for _ in range(2):
        assert run_cli(*words).returncode == 0
    assert len(between.received) == 1
    other = run_cli(*words[:-1], fingerprint(between.pem))
    assert other.returncode == 69, "the other CA is requested, and this is not it"


def test_a_given_ca_file_is_compared_with_the_fingerprint(plane: Plane, tmp_path: Path) -> None:
    root = tmp_path / "agent"
    words = ("-c", root, "init", "--server", plane.url, "--ca", plane.ca, "--ca-fingerprint")
    done = run_cli(*words, OTHER)
    assert done.returncode == 2 and f"--ca {plane.ca} has another fingerprint" in done.stderr and not root.exists()
    assert run_cli(*words, fingerprint(plane.ca)[:16]).returncode == 0


@pytest.mark.parametrize(("url", "status"), [("http://127.0.0.1:1", 2), ("plane", 78), ("https://127.0.0.1:1", 69)])
def test_no_ca_can_be_fetched(url: str, status: int, tmp_path: Path) -> None:
    root = tmp_path / "agent"
    done = run_cli("-c", root, "init", "--server", url, "--ca-fingerprint", OTHER)
    assert done.returncode == status and done.stderr.count("\n") == 2 and not root.exists(), done.stderr
