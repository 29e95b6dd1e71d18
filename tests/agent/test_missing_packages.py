"""Packages that are not installed disable what needs them, and end nothing."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from certctrl.agent import handlers
from certctrl.agent.dispatcher import Dispatcher
from certctrl.agent.run import publish_metrics_if_enabled
from certctrl.agent.signal_results import Result
from certctrl.model.config import AgentConfig, ApplicationConfig, IocConfig
from certctrl.model.plan import OutcomeKind
from certctrl.model.records import InboxEntry
from certctrl.model.signals import CertRenewed


def agent_with(config: AgentConfig) -> Any:
    problems: dict[str, tuple[str, ...]] = {}
    return SimpleNamespace(
        config=config,
        log=logging.getLogger("test"),
        problems=problems,
        report_problem=lambda key, *what: problems.update({key: what}),
        counters=SimpleNamespace(errors=Counter[str]()),
    )


@pytest.mark.parametrize("setting", [{"metrics_listen": "127.0.0.1:9464"}, {"metrics_textfile": "metrics.prom"}])
async def test_metrics_without_their_package(
    setting: dict[str, str], monkeypatch: pytest.MonkeyPatch, forget_modules: Callable[..., None]
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    forget_modules("certctrl.agent.metrics", "certctrl.agent.metric_families", "certctrl.net.prometheus")
    agent = agent_with(AgentConfig(application=attrs.evolve(ApplicationConfig(), **setting)))
    await publish_metrics_if_enabled(agent)
    ((what, fix),) = agent.problems.values()
    assert "metrics are disabled: " in what and "prometheus_client" in what
    assert fix == "pip install 'certctrl[metrics]', then restart the daemon"


class Extension:
    name = "mine"

    def load(self) -> Any:
        raise ImportError("no module named x")


@pytest.mark.parametrize("points", [[], [Extension()]], ids=["no such entry point", "it cannot be imported"])
async def test_an_extension_that_is_not_there_fails_its_signals_only(
    points: list[Extension], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_group: points)
    handlers._installed_handler.cache_clear()
    agent = agent_with(AgentConfig(ioc=attrs.evolve(IocConfig(), handlers={CertRenewed.type: "mine"})))
    handled = await Dispatcher(agent)._handle(InboxEntry(signal=CertRenewed(ts_ms=1, cert_id=1)), 0.0)
    assert isinstance(handled, Result)
    assert handled.outcome.kind is OutcomeKind.FAILED
    assert sum(agent.counters.errors.values()) == 1
