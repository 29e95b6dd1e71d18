"""Faults that the campaigns found, each reproduced in the shortest way."""

from __future__ import annotations

from typing import Any

import pytest
from crash_stage import Stage
from crash_stories import Install, Withdraw
from crash_trials import Tally, kill_at, killed, points_of, trial

pytestmark = [pytest.mark.root, pytest.mark.integration]


def test_an_interrupted_removal_still_removes_the_key_and_alerts(stage: Stage) -> None:
    """Found by kill -9: without the live link the next run treated the certificate as not in use on this host."""
    story, tally = Withdraw(), Tally()
    (point,) = [
        one for one in points_of(stage, story) if one.call == "renameat" and '.generations>, ".tmp-' in one.text
    ]
    trial(stage, story, kill_at(point), tally, str(point), reached=killed)
    assert not tally.failures and not tally.missed, tally.failures
    reported = [event for event in stage.plane.events if event["signal"]["type"] == "cert.revoked"]
    assert [event["outcome"] for event in reported] == ["applied"]


def test_a_killed_registration_leaves_no_secret_in_a_temporary_file(stage: Stage) -> None:
    """Found by kill -9: temporary files of the state directory were not removed."""

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
