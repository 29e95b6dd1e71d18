"""Read the configuration again on SIGHUP; report an invalid one and keep the old."""

from __future__ import annotations

import attrs
import trio
from trio_util import AsyncBool

from certctrl.agent.acks import announce
from certctrl.agent.context import Agent
from certctrl.agent.features import features_of
from certctrl.agent.install_config import reload_items
from certctrl.agent.log_lines import Line, log_line
from certctrl.agent.systemd import Notifier
from certctrl.errors import CertctrlError
from certctrl.model.config import AgentConfig
from certctrl.store.config.files import load_config, load_policy

AT_START_ONLY = ("server_url", "queue_size", "name", "metrics_listen", "metrics_textfile", "metrics_public")


class Reloader:
    """Reads the files in a separate task, never in the OS-signal handler."""

    def __init__(self, agent: Agent, notifier: Notifier) -> None:
        self._agent = agent
        self._notifier = notifier
        self._requested = AsyncBool()

    def request(self) -> None:
        """Request one re-read; several before it happens are one."""
        self._requested.value = True

    async def reload_forever(self) -> None:
        """Re-read at each request, until cancelled."""
        while True:
            await self._requested.wait_value(True)
            self._requested.value = False
            self._notifier.reloading()
            before = features_of(self._agent.policy, self._agent.config)
            self.reload()
            if features_of(self._agent.policy, self._agent.config) != before:
                await announce(self._agent)
            self._agent.challenges.changed.value = True  # the policy may no longer allow them
            self._notifier.ready(f"polling {self._agent.config.application.server_url}")

    def reload(self) -> None:
        """Read configuration, policy and local items; activate all of them or none."""
        agent = self._agent
        try:
            fresh = load_config(agent.layout, agent.environ).config
            policy = load_policy(agent.layout)
        except CertctrlError as error:
            log_line(agent.log, Line.CONFIG_REFUSED, why=error)
            agent.report_problem(
                "config", f"new configuration rejected: {error}", error.fix or "correct it and send SIGHUP"
            )
            return
        agent.clear_problem("config")
        names = changed_names(agent.config, fresh) | ({"policy"} if policy != agent.policy else set())
        late = sorted(
            name for name in names if name.partition(".")[2] in AT_START_ONLY or name.startswith("httpclient")
        )
        agent.config, agent.policy = fresh, policy
        agent.session.reconfigure(fresh.application, trio.current_time())
        reload_items(agent)
        agent.retry_now()
        if agent.on_reload is not None:
            agent.on_reload(fresh)
        agent.reconcile_requested.value = True  # retry what was refused, and apply new items now
        log_line(agent.log, Line.CONFIG_RELOADED, changed=", ".join(sorted(names)) or "nothing")
        if late:
            log_line(agent.log, Line.CONFIG_NEEDS_RESTART, names=", ".join(late))


def changed_names(old: AgentConfig, new: AgentConfig) -> set[str]:
    """Return the settings that differ, as ``section.field``."""
    return {
        f"{section.name}.{field.name}"
        for section in attrs.fields(AgentConfig)
        for field in attrs.fields(type(getattr(old, section.name)))
        if getattr(getattr(old, section.name), field.name) != getattr(getattr(new, section.name), field.name)
    }
