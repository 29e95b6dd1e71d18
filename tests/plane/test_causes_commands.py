"""`cert-ctrl plane causes`, and the lists of devices and certificates by state, against a real plane."""

from __future__ import annotations

import csv
import io
import json
import urllib.request
from ssl import create_default_context
from typing import Any

import pytest
from nacl.public import PrivateKey
from plane_commands import PlaneSite
from proving import registration

from certctrl.errors import ExitStatus

pytestmark = pytest.mark.integration


def report(site: PlaneSite, token: str, *events: dict[str, Any]) -> None:
    """Report events as a device."""
    body = json.dumps({"schema": "certctrl.device.notify.v1", "events": events}).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"{site.url}/apiv1/devices/self/notify", body, headers)
    context = create_default_context(cafile=str(site.data / "ca.pem"))
    with urllib.request.urlopen(request, context=context, timeout=10) as reply:
        assert reply.status == 204


def failure(cert_id: int, **fields: Any) -> dict[str, Any]:
    signal = {"type": "cert.renewed", "ts_ms": 7, "ref": {"cert_id": cert_id}}
    return {"type": "signal.ack", "signal": signal, "outcome": "failed", **fields}


def test_a_failing_host_is_found_and_explained(site: PlaneSite) -> None:
    enrolment = site("enrolment-token", "--uses", "0", "--tag", "causes").output.strip()
    tokens = {}
    for name in ("causes-1", "=cmd|causes-2"):
        body = registration(f"id-{name[-8:]}", PrivateKey.generate(), name) | {"enrolment_token": enrolment}
        tokens[name] = site.register(body)["session"]["access_token"]
    first, second = tokens
    cert = site("issue", "causes.example", "--device", first, "--json").json["id"]
    ids = {row["name"]: row["id"] for row in site("devices", "--tag", "causes", "--json").json}
    site("assign", str(cert), "--device", str(ids[second]))
    report(site, tokens[first], failure(cert, step="write", reason="disk-full", detail="cannot write /x: full"))
    report(site, tokens[second], failure(cert, detail="cannot write /x: No space left on device"))  # an older agent

    (cause,) = [one for one in site("causes", "--json").json["causes"] if one["reason"] == "disk-full"]
    assert (cause["id"], cause["devices"], cause["certificates"]) == ("stuck.write.disk-full", 2, 1)
    text = site("causes").output
    assert "stuck: the host's disk is full (write, disk-full)" in text and "fix:     make room on the host" in text
    assert "causes-1 causes.example: cannot write /x: full" in text

    answer = site("devices", "--reason", "disk-full", "--sort", "name", "--json").json
    assert ([row["name"] for row in answer["devices"]], answer["total"]) == ([second, first], 2)
    page = site("devices", "--reason", "disk-full", "--sort", "name", "--limit", "1")
    assert "1 of 2 devices that fit" in page.output and "add --after '" in page.err
    after = page.err.partition("add --after '")[2].rstrip().removesuffix("'")
    assert first in site("devices", "--reason", "disk-full", "--sort", "name", "--limit", "1", "--after", after).output
    rows = list(csv.DictReader(io.StringIO(site("devices", "--tag", "causes", "--csv").output)))
    assert sorted(row["name"] for row in rows) == ["'=cmd|causes-2", "causes-1"], "no formula for a spreadsheet"
    assert {row["fix"] for row in rows} == {"make room on the host"}

    (row,) = site("certificates", "--state", "stuck", "--tag", "causes", "--json").json["certificates"]
    assert (row["name"], row["state"], row["devices"], row["stuck"]) == ("causes.example", "renewing", 2, 2)
    assert "causes.example" in site("certificates", "--sort", "ends", "--limit", "500").output
    assert "causes.example" in site("certificates", "--csv").output
    assert site("causes", "--csv").output.startswith("id,state,step,reason,what,fix,")


def test_versions_and_ends_go_with_the_other_options(site: PlaneSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certctrl.cli.plane.fleet._WHOLE_PAGE", 2)
    enrolment = site("enrolment-token", "--uses", "0", "--tag", "versions").output.strip()
    for number in range(5):
        body = registration(f"id-versions-{number}", PrivateKey.generate(), f"versions-{number}")
        site.register(body | {"app_version": f"0.{number % 2}.0", "enrolment_token": enrolment})
    old = ("devices", "--tag", "versions", "--agent-version", "0.0.0")
    rows = list(csv.DictReader(io.StringIO(site(*old, "--csv").output)))
    assert sorted(row["name"] for row in rows) == ["versions-0", "versions-2", "versions-4"]
    assert {row["agent"] for row in rows} == {"0.0.0"}
    assert site(*old, "--state", "stale", "--json").json["devices"] == []
    names: list[str] = []
    after: tuple[str, ...] = ()
    for left in (3, 2, 1):
        page = site(*old, "--sort", "name", "--limit", "1", *after, "--json").json
        names += [row["name"] for row in page["devices"]]
        assert page["total"] == left
        after = ("--after", str(page["next"]))
    assert (names, page["next"]) == (["versions-0", "versions-2", "versions-4"], None)
    text = site(*old, "--limit", "2")
    assert "2 of 3 devices that fit" in text.output and "add --after '" in text.err

    site("issue", "soon.versions.example", "--validity-seconds", "3600", "--device", "versions-0")
    site("issue", "late.versions.example", "--device", "versions-0")
    soon = ("certificates", "--tag", "versions", "--expiring", "12h")
    (row,) = csv.DictReader(io.StringIO(site(*soon, "--csv").output))
    assert row["name"] == "soon.versions.example"
    assert (
        len(
            site("certificates", "--tag", "versions", "--expiring", "365d", "--sort", "name", "--json").json[
                "certificates"
            ]
        )
        == 2
    )
    site("revoke", "soon.versions.example", "--yes")
    assert site(*soon, "--limit", "9", "--json").json["certificates"] == []


def test_hostile_reports_are_bounded(site: PlaneSite, device: str) -> None:
    token = site("enrolment-token", "--uses", "0").output.strip()
    body = registration("id-hostile-causes", PrivateKey.generate(), "hostile-causes") | {"enrolment_token": token}
    session = site.register(body)["session"]["access_token"]
    cert = site("issue", "hostile-causes.example", "--device", "hostile-causes", "--json").json["id"]
    strange: list[Any] = [None, [1], {"x": 1}, True, 2**70, -1, "\x00" * 100, "x" * 1000, "run", "\u202e"]
    for value in strange:
        deployed = [value, {"cert_id": value}, {"cert_id": cert, "serial": value, "served": value}] * 40
        report(site, session, failure(cert, step=value, reason=value, detail="no", deployed=deployed))
    (row,) = [
        row
        for row in site("devices", "--state", "degraded", "--limit", "500", "--json").json["devices"]
        if row["name"] == "hostile-causes"
    ]
    assert (row["why"]["step"], row["why"]["reason"]) == ("other", "other")
    assert {one["reason"] for one in site("devices", "--outcomes", "hostile-causes", "--json").json} == {"other"}


def test_mistakes_are_explained(site: PlaneSite) -> None:
    for argv, what in (
        (("devices", "--state", "stuk"), "did you mean stuck?"),
        (("certificates", "--reason", "disk-ful"), "did you mean disk-full?"),
        (("devices", "--sort", "wurst"), "did you mean worst?"),
        (("devices", "--after", "x"), "after must be the next of a page"),
        (("devices", "--state", "stale", "--outcomes", "1"), "--outcomes does not go with"),
        (("certificates", "--csv", "--expiring", "7"), "'7' is not a duration"),
        (("devices", "--limit", "0"), "--limit"),
    ):
        result = site(*argv)
        assert (result.status, what in result.err) == (ExitStatus.USAGE, True), result.err
    assert site("causes", "--user", "99").status == ExitStatus.FAILED
