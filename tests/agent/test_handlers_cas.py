"""What the handlers of CAs do, per state of host and plane."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from handler_world import (
    APPLIED,
    FAILED,
    HOUR,
    IGNORED,
    NOW,
    TS,
    UNCHANGED,
    World,
    refused,
)

from certctrl.agent.handlers import (
    on_ca_assigned,
    on_ca_unassigned,
)
from certctrl.errors import (
    LaggingError,
    MaterialError,
    PlaneError,
    TransportError,
)
from certctrl.model.certificate import CaBundle
from certctrl.model.plan import Outcome, OutcomeKind
from certctrl.model.signals import (
    CaAssigned,
    CaUnassigned,
)


@pytest.fixture
def scene(tmp_path: Path) -> World:
    return World(tmp_path / "agent")


# --- CAs --------------------------------------------------------------------------------------------------------------

ASSIGN_CA, UNASSIGN_CA = CaAssigned(ts_ms=TS, ca_id=3), CaUnassigned(ts_ms=TS, ca_id=3)
CA = CaBundle(id=3, name="Private CA", ca_certificate_pem="PEM")


@pytest.mark.parametrize(("here", "named"), [("", "Private CA"), ("Private CA", "Private CA"), ("Private CA", "")])
@pytest.mark.parametrize("outcome", [Outcome(kind=APPLIED), Outcome(kind=UNCHANGED), Outcome(kind=FAILED, detail="no")])
async def test_an_assigned_ca_is_imported(scene: World, here: str, named: str, outcome: Outcome) -> None:
    scene.installer.ca_names |= {3: here} if here else {}
    scene.plane.cas[3] = attrs.evolve(CA, name=named)
    scene.installer.imports = outcome
    assert await on_ca_assigned(scene.agent, ASSIGN_CA) == outcome
    assert scene.installer.calls == [("import", 3, named, "PEM")]


async def test_the_ca_of_another_plane_is_not_replaced(scene: World) -> None:
    scene.installer.ca_names[3] = "Ours"
    scene.plane.cas[3] = CA
    with pytest.raises(MaterialError, match="is Ours, that of the plane Private CA") as caught:
        await on_ca_assigned(scene.agent, ASSIGN_CA)
    assert caught.value.reason == "other-ca" and caught.value.fix == "to remove this host's: cert-ctrl forget --ca 3"
    assert scene.did == []


@pytest.mark.parametrize(
    ("status", "at_first", "at_last"),
    [(404, LaggingError, PlaneError), (410, LaggingError, PlaneError), (403, PlaneError, PlaneError)],
)
async def test_a_ca_that_the_plane_does_not_offer_is_waited_for(
    scene: World, status: int, at_first: type[Exception], at_last: type[Exception]
) -> None:
    scene.plane.gone = status
    for expected in (at_first, at_last):
        with pytest.raises(expected):
            await on_ca_assigned(scene.agent, ASSIGN_CA)
        scene.waited(ASSIGN_CA)
    assert scene.did == []


@pytest.mark.parametrize(
    ("here", "listed", "at_first", "at_last"),
    [
        (True, None, APPLIED, None),
        (True, {}, APPLIED, None),
        (True, {4: "other"}, APPLIED, None),
        (True, {3: "Private CA"}, LaggingError, UNCHANGED),
        (False, {3: "Private CA"}, UNCHANGED, None),
        (False, None, UNCHANGED, None),
    ],
)
async def test_a_ca_is_removed_unless_the_plane_still_lists_it(
    scene: World,
    here: bool,
    listed: dict[int, str] | None,
    at_first: OutcomeKind | type[Exception],
    at_last: OutcomeKind | None,
) -> None:
    scene.installer.ca_names |= {3: "Private CA"} if here else {}
    scene.plane.ca_list = listed
    if isinstance(at_first, OutcomeKind):
        assert (await on_ca_unassigned(scene.agent, UNASSIGN_CA)).kind is at_first
    else:
        with pytest.raises(at_first):
            await on_ca_unassigned(scene.agent, UNASSIGN_CA)
        scene.waited(UNASSIGN_CA)
        assert (await on_ca_unassigned(scene.agent, UNASSIGN_CA)).kind is at_last
    kept = at_first is LaggingError
    assert scene.installer.cas == ({3} if kept else set())
    assert scene.did == ([] if kept else ["remove"])


@pytest.mark.parametrize(
    ("named", "since", "expected"),
    [
        (None, 0.0, APPLIED),
        ("Private CA", 0.0, APPLIED),
        ("Another CA", 0.0, IGNORED),
        (None, TS / 1000, APPLIED),
        (None, NOW, IGNORED),
        (None, NOW + HOUR, APPLIED),
    ],
)
async def test_another_plane_or_an_earlier_stream_removes_no_ca(
    scene: World, named: str | None, since: float, expected: OutcomeKind
) -> None:
    scene.follow(since)
    scene.installer.ca_names[3] = "Private CA"
    outcome = await on_ca_unassigned(scene.agent, attrs.evolve(UNASSIGN_CA, ca_name=named))
    assert outcome.kind is expected
    assert scene.installer.cas == (set() if expected is APPLIED else {3})


@pytest.mark.parametrize("error", [refused(500), TransportError("no route")])
async def test_without_an_answer_no_ca_is_removed(scene: World, error: Exception) -> None:
    scene.installer.ca_names[3] = "Private CA"
    scene.plane.fails["cas"] = error
    with pytest.raises(type(error)):
        await on_ca_unassigned(scene.agent, UNASSIGN_CA)
    assert scene.installer.cas == {3}
