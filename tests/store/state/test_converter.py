"""Certificate facts on disk: flat, as earlier releases wrote them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from certctrl.errors import StateCorruptError
from certctrl.model.certificate import CertFacts
from certctrl.model.plan import OutcomeKind
from certctrl.model.records import CertRecord, Stage
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.converter import facts_of_manifest, manifest_facts
from certctrl.store.state.installed import InstalledState

FACTS = CertFacts(
    cert_id=7, name="_wildcard.example.com", domains=("*.example.com", "example.com"), serial="04:ab",
    fingerprint_sha256="ab" * 32, not_before=1_700_000_000.0, not_after=1_800_000_000.0,
)  # fmt: skip
IN_A_MANIFEST = {
    "cert_id": 7, "domains": ["*.example.com", "example.com"], "serial": "04:ab", "fingerprint_sha256": "ab" * 32,
    "not_before": 1_700_000_000.0, "not_after": 1_800_000_000.0,
}  # fmt: skip
ROW = {
    "cert_id": 7, "name": "_wildcard.example.com", "domains": ["*.example.com", "example.com"], "serial": "04:ab",
    "fingerprint_sha256": "ab" * 32, "not_before": 1_700_000_000.0, "not_after": 1_800_000_000.0,
    "generation": "g2", "activated": "g1", "staged": "", "stage": "committed", "targets": ["/srv/x"], "held": False,
    "revoked": False, "alarmed": False, "last_outcome": "failed", "last_error": "no", "last_apply_at": 1.5,
    "attempts": 2, "next_try_at": 9.5, "owed": ["reload"],
}  # fmt: skip


@pytest.fixture
def state(tmp_path: Path) -> InstalledState:
    layout = ConfigDir(tmp_path)
    layout.state.mkdir(parents=True)
    return InstalledState(layout, RealFs())


def test_records_of_the_previous_release_are_read_and_written_without_their_retries(state: InstalledState) -> None:
    text = json.dumps({"state_version": 1, "certificates": {"7": ROW}}, separators=(",", ":")) + "\n"
    state.layout.certificates.write_text(text)
    found = state.load_certificates()
    assert found == {
        7: CertRecord(
            facts=FACTS, generation="g2", activated="g1", stage=Stage.COMMITTED, targets=("/srv/x",),
            last_outcome=OutcomeKind.FAILED, last_apply_at=1.5, pending=("reload",),
        )
    }  # fmt: skip
    state.save_certificates(found)
    kept: dict[str, Any] = {}
    for key, value in ROW.items():
        if key not in ("last_error", "attempts", "next_try_at", "owed"):
            kept[key] = value
        if key == "activated":
            kept["former"] = None  # not known
    kept |= {
        "standing": "known",
        "unassigned_at": 0.0,
        "owed": ["reload"],
        "held_since": 0.0,
        "batch": "",
        "source": "",
    }
    text = json.dumps({"state_version": 1, "certificates": {"7": kept}}, separators=(",", ":")) + "\n"
    assert state.layout.certificates.read_text() == text


def test_a_manifest_contains_the_facts_without_the_name() -> None:
    """A name in it would change the ids of all generations."""
    assert manifest_facts(FACTS) == IN_A_MANIFEST
    raw = {"facts": IN_A_MANIFEST | {"placeholder": True, "passwords": {}}}
    assert facts_of_manifest("_wildcard.example.com", raw, "x") == FACTS


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"serial": 4}, "certificates.7.serial: expected text"),
        ({"not_after": "x"}, "certificates.7.not_after: expected a number"),
    ],
)
def test_an_unreadable_fact_is_named(state: InstalledState, wrong: dict[str, object], where: str) -> None:
    state.layout.certificates.write_text(json.dumps({"state_version": 1, "certificates": {"7": ROW | wrong}}))
    with pytest.raises(StateCorruptError, match=where):
        state.load_certificates()
    with pytest.raises(StateCorruptError, match=where.replace("certificates.7", "facts")) as caught:
        facts_of_manifest("x", {"facts": IN_A_MANIFEST | wrong}, "some/where")
    assert str(caught.value).startswith("some/where is damaged: facts.")
    assert caught.value.path == "some/where"
    assert caught.value.fix == "remove its directory; the agent then fetches the certificate again"
