"""`plane renew --together` and `plane together`, against a served plane."""

from __future__ import annotations

import json

import pytest
from plane_commands import PlaneSite

from certctrl.errors import ExitStatus


@pytest.mark.integration
def test_certificates_are_renewed_together(site: PlaneSite) -> None:
    ids = [str(site("issue", name, "--json").json["id"]) for name in ("a.example", "b.example", "c.example")]
    done = site("renew", *ids, "--together", "--yes", "--json")
    assert done.status == 0, done
    rows = done.json
    assert {row["state"] for row in rows} == {"done"} and len({row["batch"] for row in rows}) == 1
    assert [str(row["cert_id"]) for row in rows] == ids
    refused = site("renew", ids[0], "--together", "--yes")
    assert refused.status == ExitStatus.USAGE and "2 to 100 certificates" in refused.err


@pytest.mark.integration
def test_a_set_is_made_shown_and_ended(site: PlaneSite) -> None:
    ids = [site("issue", name, "--json").json["id"] for name in ("d.example", "e.example")]
    assert site("together").output == "no sets, and no waiting batches\n"
    made = site("together", "shop", "d.example", str(ids[1]))
    assert made.output == f"set shop: certificates {ids[0]}, {ids[1]}\n"
    assert json.loads(site("together", "--json").output) == {
        "sets": [{"name": "shop", "cert_ids": ids}], "batches": []
    }  # fmt: skip
    before = {row["id"]: row["serial_number"] for row in site("certificates", "--json").json}
    assert site("renew", "d.example").status == 0
    after = {row["id"]: row["serial_number"] for row in site("certificates", "--json").json}
    assert all(after[one] != before[one] for one in ids), "both are renewed"
    assert site("together", "shop", "--end").output == "no sets, and no waiting batches\n"
    for wrong in (("together", "shop"), ("together", "shop", "d.example", "--end")):
        assert site(*wrong).status == ExitStatus.USAGE
    assert site("together", "shop", "d.example").status != 0, "one certificate is not a set"
    assert site("together", "--dissolve", "b-0").status != 0
