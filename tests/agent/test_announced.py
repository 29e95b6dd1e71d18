"""What a signal announced is compared with what the plane offers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import attrs
import pytest
import trio

from certctrl.agent.announced import (
    is_current,
    is_serial,
    missing_install_config,
    missing_renewal,
    require_arrival,
    wait_is_over,
)
from certctrl.agent.context import Agent
from certctrl.errors import LaggingError, PlaneError
from certctrl.install.plan.retries import LAGGING_FAILURES
from certctrl.model.certificate import CertFacts, CertificateSummary
from certctrl.model.records import Retry, RetryKind
from certctrl.model.signals import CertRenewed, InstallUpdated, Signal
from certctrl.store.state.installed import StoredInstallConfig

TS = 1_700_000_000_500
RENEWED = CertRenewed(ts_ms=TS, cert_id=1, serial="0B:02")
OLD = CertFacts(cert_id=1, name="a.example", serial="0a:01", not_before=TS / 1000 - 7200)
SUMMARY = CertificateSummary(id=1, domain_name="a.example", serial_number="0a:01", updated_at="2023-11-14T22:13:21Z")
EARLIER = attrs.evolve(SUMMARY, updated_at="2023-11-14T22:13:20Z")
"""Perhaps updated before the signal, in the same second."""


def agent_with(summary: CertificateSummary | int = 404, retry: Retry | None = None) -> Agent:
    async def authorized(call: Any) -> Any:
        return await call("token")

    async def fetch(_token: str, _cert_id: int) -> CertificateSummary:
        await trio.lowlevel.checkpoint()
        if isinstance(summary, int):
            raise PlaneError("no", status=summary)
        return summary

    rows = {} if retry is None else {retry.key: retry}
    table = SimpleNamespace(rows=lambda: rows)
    plane = SimpleNamespace(fetch_certificate=fetch)
    part = SimpleNamespace(authorized=authorized, plane=plane, installer=SimpleNamespace(retries=table))
    return cast(Agent, part)


def waited(signal: Signal, failures: int = LAGGING_FAILURES, kind: RetryKind = RetryKind.LAGGING) -> Retry:
    return Retry(resource=signal.resource, kind=kind, failures=failures, signal=signal)


@pytest.mark.parametrize(
    ("signal", "fetched", "agent", "arrived"),
    [
        (RENEWED, attrs.evolve(OLD, serial="0b:02"), agent_with(), True),
        (attrs.evolve(RENEWED, serial=None), OLD, agent_with(), True),
        (RENEWED, OLD, agent_with(), False),
        (RENEWED, OLD, agent_with(EARLIER), False),
        (RENEWED, OLD, agent_with(attrs.evolve(SUMMARY, updated_at="")), False),
        (RENEWED, OLD, agent_with(attrs.evolve(SUMMARY, serial_number="0b:02")), False),
        (RENEWED, OLD, agent_with(SUMMARY), True),
        (RENEWED, attrs.evolve(OLD, not_before=TS / 1000 + 1), agent_with(), True),
        (RENEWED, OLD, agent_with(retry=waited(RENEWED)), True),
        (RENEWED, OLD, agent_with(retry=waited(RENEWED, LAGGING_FAILURES - 1)), False),
        (RENEWED, OLD, agent_with(retry=waited(attrs.evolve(RENEWED, ts_ms=1))), False),
    ],
)
async def test_a_renewal_has_arrived_with_its_serial_or_a_newer_one(
    signal: CertRenewed, fetched: CertFacts, agent: Agent, arrived: bool
) -> None:
    missing = await missing_renewal(agent, signal, fetched)
    assert (missing == "") is arrived, missing


async def test_a_refusal_is_no_answer() -> None:
    with pytest.raises(PlaneError):
        await missing_renewal(agent_with(503), RENEWED, OLD)


CONFIG = StoredInstallConfig(
    raw={"id": 7, "version": 5},
    etag="e",
    version=5,
    hash="aGFzaA==",
    high_water={"7": 5, "3": 9},
    hashes={"7": "aGFzaA=="},
)


@pytest.mark.parametrize(
    ("signal", "stored", "arrived"),
    [
        (InstallUpdated(TS, 7, 5), CONFIG, True),
        (InstallUpdated(TS, 7, 4), CONFIG, True),
        (InstallUpdated(TS, 7, 6), CONFIG, False),
        (InstallUpdated(TS, 7, 5, "aGFzaA"), CONFIG, True),
        (InstallUpdated(TS, 7, 5, "b3RoZQ=="), CONFIG, False),
        (InstallUpdated(TS, 7, 5, "6f74686572"), CONFIG, True),
        (InstallUpdated(TS, None, 6), CONFIG, False),
        (InstallUpdated(TS, None, 5), CONFIG, True),
        (InstallUpdated(TS, None, None), CONFIG, True),
        (InstallUpdated(TS, 3, 9), CONFIG, True),
        (InstallUpdated(TS, 4, 1), CONFIG, False),
        (InstallUpdated(TS, 7, 1), None, False),
        (InstallUpdated(TS, 7, 0), None, True),
        (InstallUpdated(TS, 9, 5), attrs.evolve(CONFIG, raw={"id": 0}, high_water={"0": 5}), True),
    ],
)
def test_an_install_config_has_arrived_with_its_version_or_a_newer_one(
    signal: InstallUpdated, stored: StoredInstallConfig | None, arrived: bool
) -> None:
    missing = missing_install_config(signal, stored)
    assert (missing == "") is arrived, missing


def test_serials_are_compared_in_any_form() -> None:
    assert is_serial("00:0A:ff", "0a:ff") and is_serial("2815", "0a:ff") and is_serial("", "")
    assert not is_serial("0a:fe", "0a:ff") and not is_serial("0a:ff", "")


@pytest.mark.parametrize(
    ("updated_at", "current"), [("2023-11-14T22:13:20.500Z", True), ("2023-11-14T22:13:20Z", False), ("", False)]
)
def test_an_answer_is_current_if_it_was_updated_since(updated_at: str, current: bool) -> None:
    assert is_current(attrs.evolve(SUMMARY, updated_at=updated_at), RENEWED) is current


def test_the_wait_for_one_signal_ends() -> None:
    for retry in (None, waited(RENEWED, 3), waited(RENEWED, kind=RetryKind.WAITING)):
        with pytest.raises(LaggingError, match="not yet"):
            require_arrival(agent_with(retry=retry), RENEWED, "not yet")
    assert wait_is_over(agent_with(retry=waited(RENEWED)), RENEWED)
    require_arrival(agent_with(retry=waited(RENEWED)), RENEWED, "not yet")
