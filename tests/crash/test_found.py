"""What the campaigns found, each brought about again by its shortest way."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import crash_checks as checks
import pytest
from crash_stage import Stage
from crash_stories import DOMAIN, Install, Story, Withdraw
from crash_trials import LATER, Tally, kill_at, killed, points_of, trial

from certctrl.model.policy import MaintenanceWindow

pytestmark = [pytest.mark.root, pytest.mark.integration]


def test_a_removal_cut_off_after_its_links_still_removes_the_key_and_raises_the_alarm(stage: Stage) -> None:
    """Found by kill -9: with the live link gone, the next run took the certificate for "not in use here"."""
    story, tally = Withdraw(), Tally()
    (point,) = [
        one for one in points_of(stage, story) if one.call == "renameat" and '.generations>, ".tmp-' in one.text
    ]
    trial(stage, story, kill_at(point), tally, str(point), reached=killed)
    assert not tally.failures and not tally.missed, tally.failures
    reported = [event for event in stage.plane.told if event["signal"]["type"] == "cert.revoked"]
    assert [event["outcome"] for event in reported] == ["applied"]


class StagedOnly(Story):
    """Staged in a closed maintenance window, and revoked before it opens."""

    name = "staged, then revoked"
    policy: ClassVar[dict[str, Any]] = {
        "window": MaintenanceWindow(days=(time.strftime("%a", time.gmtime(time.time() + 3 * 86400)).lower(),))
    }

    def prepare(self, stage: Stage) -> None:
        self.enrol(stage)
        self.issue(stage)
        stage.must("poll")
        stage.facts["staged"] = len(list((stage.layout.generations / DOMAIN).glob("*/private.key")))
        stage.plane.operate("POST", "/apiv1/users/1/certificates/1/revoke", {"reason": "key lost"})
        stage.facts |= {"names": {DOMAIN: [None]}, "after": {DOMAIN: None}, "signals": 1}


def test_a_certificate_revoked_while_it_waits_for_its_window_is_removed(stage: Stage) -> None:
    StagedOnly().begin(stage)
    assert stage.facts["staged"] == 1
    stage.must("poll", later=LATER)
    checks.in_the_end(stage)


def test_a_killed_registration_leaves_no_secret_in_a_temporary_file(stage: Stage) -> None:
    """Found by kill -9: nothing swept the state's temporary files."""

    class FromScratch(Install):
        name = "register, killed"
        act = "enrol"

        def arguments(self, stage: Stage) -> dict[str, Any]:
            return {"token": stage.facts["token"]}

        def prepare(self, stage: Stage) -> None:
            stage.facts["token"] = stage.plane.operate("POST", "/apiv1/users/1/enrolment-tokens")["token"]

    story, tally = FromScratch(), Tally()
    (point,) = [one for one in points_of(stage, story) if one.call == "fsync" and ".dev_sk.bin" in one.text]
    trial(stage, story, kill_at(point), tally, str(point), reached=killed)
    assert not tally.failures and not tally.missed, tally.failures
