"""The table of codes for the texts of older agents, in docs/protocol.md: each row has a test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from certctrl.errors import CommandError, DiskError, ProbeError, ProbeFault
from certctrl.model.causes import Reason, Step, cause_of
from certctrl.model.plan import OutcomeKind
from certctrl.plane.devices.older_texts import TEXTS, cause_of_report
from certctrl.plane.fleet.words import EXPIRING, NOT_HEARD, REASONS

PROTOCOL = Path(__file__).resolve().parents[3] / "docs" / "protocol.md"
FAILED = OutcomeKind.FAILED
EXAMPLES = (
    "malformed: ref.cert_id: expected an integer",
    "took longer than 300 s",
    "internal error (KeyError)",
    "removed; 127.0.0.1:443 still serves it from memory",
    "revoked, but kept in use: on_revoked is keep",
    "removed; /etc/nginx/x.pem stays: it is not the file that was written",
    "nothing of its atomic batch is switched, because of certificate 7: no room",
    "staged; waits for the window 02:00-04:00",
    "staged; held since 2026-01-01",
    "127.0.0.1:443 refuses the connection; the service is not running: nothing listens at 127.0.0.1:443",
    "127.0.0.1:443 for www.example.com serves another certificate",
    "127.0.0.1:443 does not complete a TLS handshake",
    "127.0.0.1:443 refuses the connection",
    "127.0.0.1:443 does not answer in time",
    "mail.example:25 cannot be resolved",
    "192.0.2.1:443 is not an address of this host",
    "item nginx: the check refuses the new certificate: exited with 1: no",
    "item nginx: its check may not run here: it is not listed",
    "item nginx: verify exited with 1: no",
    "item nginx: /usr/sbin/nginx did not finish within 30 s",
    "item nginx: /usr/sbin/nginx exited with 1: no",
    "cannot run /usr/sbin/nginx: No such file or directory",
    "cannot write /etc/x: No space left on device",
    "cannot write /etc/x: Read-only file system",
    "cannot write /etc/x: Permission denied",
    "cannot read /etc/x: Input/output error",
    'item nginx: not allowed; policy.json needs "write_roots": ["/etc"]',
    "item nginx: cannot write /etc/x: there is no such user",
    "the install config does not match its hash",
    "version 3 is older than version 5, which this host already has",
    "the plane announced serial 04, but still offers 03",
    "www: the plane offers an older one than is deployed",
    "the certificate is valid only in 90 s (from 2026-01-01 00:00:00Z)",
    "the certificate of its issuer has expired",
    "the private key does not belong to the certificate",
    "an RSA key of 1024 bits is too weak",
    "the bundle is sealed to another device's key",
)
"""One for each row of the table, in its order."""


@pytest.mark.parametrize(("row", "text"), list(zip(TEXTS, EXAMPLES, strict=True)))
def test_each_row_finds_its_text(row: tuple[str, Step, Reason], text: str) -> None:
    outcome = OutcomeKind.APPLIED if row[2] in (Reason.WINDOW, Reason.HELD, Reason.KEPT) else FAILED
    cause = cause_of_report(outcome, "", "", text)
    assert cause is not None and (cause.step, cause.reason) == row[1:]


@pytest.mark.parametrize("fault", ProbeFault)
def test_texts_of_probes_have_the_codes_of_their_errors(fault: ProbeFault) -> None:
    error = ProbeError(f"127.0.0.1:443 {fault}", fault=fault)
    assert cause_of_report(FAILED, "", "", str(error)) == cause_of(error)


@pytest.mark.parametrize(
    "error",
    [
        DiskError("cannot write x: No space left on device", errno=28),
        DiskError("cannot write x: Read-only file system", errno=30),
        CommandError("item a: /bin/x exited with 1", status=1),
        CommandError("item a: /bin/x did not finish within 3 s", status=-9, timed_out=True),
        CommandError("cannot run /bin/x: No such file or directory"),
    ],
)
def test_other_texts_have_the_codes_of_their_errors(error: Exception) -> None:
    assert cause_of_report(FAILED, "", "", str(error)) == cause_of(error)


def test_an_unknown_text_and_unknown_codes_are_other() -> None:
    for found in (
        cause_of_report(FAILED, "", "", "no"),
        cause_of_report(FAILED, "", "", ""),
        cause_of_report(FAILED, "of a later release", "x", "malformed: x"),
    ):
        assert found is not None and (found.step, found.reason) == (Step.OTHER, Reason.OTHER)
    known = cause_of_report(FAILED, "run", "of a later release", "")
    assert known is not None and (known.step, known.reason) == (Step.RUN, Reason.OTHER)


def test_a_success_has_no_cause() -> None:
    for text in ("", "placeholder put in its place", "tolerated: item a: /bin/x exited with 1"):
        assert cause_of_report(OutcomeKind.APPLIED, "", "", text) is None


@pytest.mark.parametrize("text", ["x" * 500, "item " * 100, ": " * 250, "staged; " + "waits " * 80])
def test_hostile_texts_take_no_time(text: str) -> None:
    for _ in range(200):
        cause_of_report(FAILED, "", "", text)


def documented(heading: str) -> list[list[str]]:
    """Return the rows of the table below a heading of docs/protocol.md, without their back quotes."""
    section = PROTOCOL.read_text().split(f"\n### {heading}\n")[1].split("\n#")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in rows]


def test_the_documents_list_all_steps_and_reasons() -> None:
    assert [row[0] for row in documented("Steps")] == [step.value for step in Step]
    assert [row[0] for row in documented("Reasons")] == [reason.value for reason in Reason]
    assert [tuple(row[1:]) for row in documented("Reasons")] == [REASONS[reason] for reason in Reason]


def test_the_documents_list_the_texts_of_older_agents() -> None:
    shown = [(row[0].replace("\\|", "|"), row[1], row[2]) for row in documented("Texts of older agents")]
    assert shown == [(pattern, step.value, reason.value) for pattern, step, reason in TEXTS]


def test_each_reason_has_its_words() -> None:
    assert set(REASONS) == {*Reason, NOT_HEARD, EXPIRING}
    assert all(what and fix for what, fix in REASONS.values())
