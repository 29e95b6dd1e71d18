"""`plane revoke` and `plane ca constrain`: questions, answers, and wrong options."""

from __future__ import annotations

from typing import Any

import pytest

from certctrl.cli.main import run_command
from certctrl.cli.plane.revocation import _CODES, _done, _question, unfinished
from certctrl.errors import ExitStatus
from certctrl.plane.ca.crl import REASONS


def row(*revocations: dict[str, Any], order_id: int | None = None, devices: tuple[int, ...] = (7,)) -> dict[str, Any]:
    return {
        "id": 3, "domain_name": "www.example.com", "serial_number": "04:ab", "device_ids": devices, "order_id": order_id,
        "revocations": revocations,
    }  # fmt: skip


def one(state: str, problem: str = "", fix: str = "") -> dict[str, Any]:
    return {"serial_number": "04:ab", "issuer": "le", "state": state, "problem": problem, "fix": fix}


def defaults(options: dict[str, Any]) -> dict[str, Any]:
    return {"serial": "", "replace": False} | options


def test_the_command_knows_the_reasons_of_the_control_plane() -> None:
    assert tuple(REASONS) == _CODES


@pytest.mark.parametrize(
    ("options", "devices", "text"),
    [
        ({}, (7, 8), "Revoke certificate 3 (www.example.com), used by device 7, 8, and destroy its key?"),
        ({"replace": True}, (), "Replace and revoke certificate 3 (www.example.com), used by no device?"),
        ({"serial": "0a"}, (7,), "Revoke the earlier serial number 0a of certificate 3 (www.example.com)?"),
    ],
)
def test_questions(options: dict[str, Any], devices: tuple[int, ...], text: str) -> None:
    assert _question(row(devices=devices), **defaults(options)) == text


@pytest.mark.parametrize(
    ("shown", "options", "text"),
    [
        (row(one("done")), {}, "revoked certificate 3 (www.example.com)"),
        (row(one("due")), {}, "revoked certificate 3 (www.example.com); issuer le is asked to revoke it"),
        (row(one("done")), {"replace": True}, "replaced certificate 3 (www.example.com), serial 04:ab, and revoked the previous one"),
        (
            row(one("waiting"), order_id=5), {"replace": True},
            "ordered a replacement of certificate 3 (www.example.com): order 5; the current one is revoked once it is issued",
        ),
        (
            row(one("done"), order_id=5), {"replace": True},  # a leaked key of the plane's own CA
            "ordered a replacement of certificate 3 (www.example.com): order 5; the current one is revoked already",
        ),
        (
            row(one("due"), order_id=5), {"replace": True},
            "ordered a replacement of certificate 3 (www.example.com): order 5; issuer le is asked to revoke it",
        ),
        (row(one("done")), {"serial": "0a"}, "revoked serial number 0a of certificate 3 (www.example.com)"),
    ],
)  # fmt: skip
def test_answers(shown: dict[str, Any], options: dict[str, Any], text: str) -> None:
    assert _done(shown, **defaults(options)) == text


def test_what_the_ca_has_not_confirmed_is_shown() -> None:
    every = row(one("done"), one("waiting"), one("due"), one("due", "away", "wait"), one("manual", "imported", "do it"))
    assert list(unfinished(every)) == [
        "certificate 3, serial 04:ab: not revoked until its replacement is issued",
        "certificate 3, serial 04:ab: not revoked at issuer le yet",
        "certificate 3, serial 04:ab: not revoked at issuer le yet: away; wait",
        "certificate 3, serial 04:ab: imported; do it",
    ]


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["revoke", "3", "--reason-code", "stolen"], "--reason-code 'stolen' is unknown"),
        (["revoke", "3", "--serial", "0a", "--replace"], "--serial and --replace exclude each other"),
        (["revoke", "3", "--confirmed", "--replace"], "--confirmed can be combined with --serial only"),
        (["ca", "constrain"], "give --domain, or --any alone"),
        (["ca", "constrain", "--any", "--domain", "a.example"], "give --domain, or --any alone"),
        (["ca", "constrain", "--any", "--network", "10.0.0.0/8"], "give --domain, or --any alone"),
        (["ca", "constrain", "--network", "10.0.0.0/8"], "give --domain, or --any alone"),
    ],
)
def test_wrong_options_reach_no_control_plane(argv: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["plane", *argv, "--data", "/nonexistent/plane"]) == ExitStatus.USAGE
    error = capsys.readouterr().err
    assert text in error
    assert "fix: " in error
