"""``plane device …`` against a real plane: what it prints, previews, mistakes, many devices by tag."""

from __future__ import annotations

import json

import pytest
from nacl.public import PrivateKey
from plane_commands import PlaneSite
from proving import registration

from certctrl.errors import ExitStatus

pytestmark = pytest.mark.integration


def enrol(site: PlaneSite, *names: str, tag: str = "") -> None:
    tags = ("--tag", tag) if tag else ()
    token = site("enrolment-token", "--uses", "0", *tags).output.strip()
    for name in names:
        site.register(registration(f"id-of-{name}", PrivateKey.generate(), name) | {"enrolment_token": token})


def row(site: PlaneSite, name: str) -> dict[str, object]:
    (found,) = [one for one in site("devices", "--json").json if one["name"] == name]
    return dict(found)


def test_rename(site: PlaneSite) -> None:
    enrol(site, "life-rename")
    done = site("device", "rename", "life-rename", "life-shop", "--dry-run")
    assert done.output == f"device {row(site, 'life-rename')['id']} (life-rename) would be named life-shop\n"
    assert site("device", "rename", "life-rename", "life-shop").output.endswith("(life-rename) is named life-shop\n")
    assert site("device", "rename", "life-shop", "life-shop").output.endswith(" is named life-shop already\n")
    missed = site("device", "rename", "life-shpo", "x1")
    assert missed.status == ExitStatus.USAGE and "did you mean life-shop?" in missed.err
    enrol(site, "life-taken")
    taken = site("device", "rename", "life-taken", "LIFE-shop")
    assert (taken.status, "has the name LIFE-shop" in taken.err, "fix: " in taken.err) == (1, True, True)
    assert site("audit", "--what", "device.rename", "--json").json[0]["objects"][0]["after"]["name"] == "life-shop"


def test_replace(site: PlaneSite) -> None:
    enrol(site, "life-old")
    assert site("issue", "life-old.example", "--device", "life-old").status == 0
    preview = site("device", "replace", "life-old", "--dry-run")
    assert "would be device" in preview.output and "get 1 certificate" in preview.output
    assert "has no replacement token" in site("device", "replace", "life-old", "--cancel").output
    done = site("device", "replace", "life-old")
    assert done.output.startswith("dr_") and "(life-old): 1 certificate" in done.err
    new = registration("id-of-new-hardware", PrivateKey.generate(), "other") | {"enrolment_token": done.output.strip()}
    assert site.register(new)["device"]["name"] == "life-old"
    assert row(site, "life-old")["device_public_id"] == "id-of-new-hardware"
    assert "token" in site("device", "replace", "life-old", "--json").json
    assert site("device", "replace", "life-old", "--cancel").output.endswith("(life-old) is void\n")


def test_devices_try_again_by_name_and_by_tag(site: PlaneSite) -> None:
    enrol(site, "life-again-1", "life-again-2", tag="again=1")
    first = row(site, "life-again-1")
    done = site("device", "retry", "life-again-1", "--dry-run")
    assert done.output == f"device {first['id']} (life-again-1) would be asked to try again\n"
    assert row(site, "life-again-1")["signals_waiting"] == first["signals_waiting"]
    done = site("device", "retry", "--tag", "again=1")
    assert done.output.endswith("(life-again-2) is asked to try again\n2 of 2 devices are asked to try again\n")
    assert site("device", "retry", "life-again-1", "--json").json[0]["name"] == "life-again-1"
    assert site("device", "retry").status == ExitStatus.USAGE


def test_many_devices_are_decommissioned_by_tag_and_again(site: PlaneSite) -> None:
    enrol(site, "life-a", "life-b", "life-c", tag="rack=7")
    assert site("issue", "life-a.example", "--device", "life-a", "--key", "plane").status == 0
    command = ("device", "decommission", "--tag", "rack=7")
    preview = site(*command, "--revoke-certificates", "--dry-run")
    assert "(life-a) would be decommissioned; 1 certificate withdrawn; revoked: life-a.example" in preview.output
    assert "3 of 3 devices would be decommissioned" in preview.output
    assert row(site, "life-a")["status"] == "active"
    assert site("device", "decommission", "life-b").output.endswith(
        "(life-b) is decommissioned; 0 certificates withdrawn\n"
    )
    done = site(*command, "--reason", "scrapped")
    assert "no other device has life-a.example" in done.output and "2 of 2 devices are decommissioned" in done.output
    assert site(*command).output == "no such device is left\n"
    assert " was decommissioned at " in site("device", "decommission", "life-a").output
    assert row(site, "life-a")["revoke_reason"] == "scrapped"
    assert "decommissioned" in site("devices", "--tag", "rack=7").output
    refused = site("device", "replace", "life-a")
    assert refused.status == 1 and "is revoked" in refused.err and "plane approve" in refused.err
    assert json.loads(site(*command, "--json").output) == []


MISTAKES = [
    (["decommission"], "name devices or give --tag, not both"),
    (["decommission", "life-bad", "--tag", "x"], "name devices or give --tag, not both"),
    (["decommission", "--tag", "none-has-it"], "no device has the tag 'none-has-it'"),
    (["decommission", "life-bad", "--reason-code", "superseded"], "--reason-code is for revocations"),
    (["decommission", "life-bad", "--revoke-certificates", "--reason-code", "x"], "reason_code must be one of"),
    (["rename", "life-bad", "17"], "needs a name that is not a number"),
    (["replace", "life-bad", "--expires-in", "999999999"], "expires_in must be 1 to"),
    (["replace", "life-bad", "--expires-in", "1y"], "'1y' is not a duration"),
]


def test_mistakes(site: PlaneSite) -> None:
    enrol(site, "life-bad")
    for argv, what in MISTAKES:
        result = site("device", *argv)
        assert result.status == ExitStatus.USAGE and what in result.err, argv
