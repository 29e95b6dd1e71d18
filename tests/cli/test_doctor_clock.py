"""The doctor's clock comes first: a wrong one makes everything else look broken."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest

from certctrl.cli.doctor.clock import blame_clock, far_off
from certctrl.cli.doctor.finding import CheckContext, Finding, fail, ok, warn
from certctrl.store.layout import ConfigDir
from certctrl.store.state.store import StateStore

from .conftest import DAY, NOW, Ran, record
from .doctor_helpers import register


def plane_at(seconds: float | None) -> Callable[..., object]:
    async def server_date(url: str, proxy: str) -> float | None:
        assert (url, proxy) == ("https://127.0.0.1:8443", "")
        return seconds

    return server_date


@pytest.mark.parametrize(
    ("plane", "words"),
    [
        (NOW + 100 * DAY, "this host's clock is 100d 0h 0m behind the control plane's"),
        (NOW - 100 * DAY, "this host's clock is 100d 0h 0m ahead of the control plane's"),
        (NOW + 60, None),
        (None, None),
    ],
)
async def test_the_planes_time(plane: float | None, words: str | None, context: CheckContext) -> None:
    found = await far_off(context, plane_at(plane))  # type: ignore[arg-type]
    assert (found.what if found is not None else None) == words


async def test_a_clock_behind_the_last_poll(context: CheckContext) -> None:
    context.store.session.save_last_poll(NOW + 30 * DAY)
    for server_date in (None, plane_at(None)):
        found = await far_off(context, server_date)  # type: ignore[arg-type]
        assert found is not None and "behind the time of its last poll" in found.what
    assert await far_off(attrs.evolve(context, now=lambda: NOW + 90 * DAY), None) is None
    context.layout.last_poll_time.write_text("{")
    assert await far_off(context, None) is None, "the check of the state files reports it"


def test_problems_that_the_clock_explains_have_one_fix() -> None:
    notes: list[Finding] = []
    report = blame_clock(notes.append)
    for one in (fail("tls", "w", "f"), warn("certificate", "w", "f"), ok("token", "w"), fail("disk", "w", "f"),
                fail("clock", "w", "f")):  # fmt: skip
        report(one)
    fixes = {one.check: one.fix for one in notes}
    first = "first correct this host's clock, then run doctor again"
    assert fixes == {"tls": first, "certificate": first, "token": "", "disk": "f"}


def test_the_clock_is_the_first_finding(
    layout: ConfigDir, store: StateStore, ran: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    register(store)
    store.installed.save_certificates({7: record()})
    monkeypatch.setattr("certctrl.agent.clock.wall_now", lambda: NOW + 100 * DAY)
    monkeypatch.setattr("certctrl.net.server_date.server_date", lambda _url, _proxy: _now())
    lines = ran("-c", layout.root, "doctor", "--json").json()
    assert (lines[0]["check"], lines[0]["level"]) == ("clock", "FAIL")
    fixes = {one["fix"] for one in lines if one["check"] == "certificate" and one["level"] != "OK"}
    assert fixes == {"first correct this host's clock, then run doctor again"}


async def _now() -> float:
    return NOW
