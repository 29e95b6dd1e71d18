"""The features that this agent announces with its version."""

from __future__ import annotations

from certctrl.model.config import AgentConfig
from certctrl.model.features import ACME_HTTP01, ACME_TLS_ALPN01, AGENT_FEATURES, SERVING_REPORTS
from certctrl.model.policy import HostPolicy


def features_of(policy: HostPolicy, config: AgentConfig) -> tuple[str, ...]:
    """Return the features that this agent has under a policy and a configuration."""
    acme = policy.acme
    found = [*AGENT_FEATURES]
    if acme.http01_directory is not None or acme.http01_listen is not None:
        found.append(ACME_HTTP01)
    if acme.tls_alpn01_listen is not None:
        found.append(ACME_TLS_ALPN01)
    if config.application.report_serving:
        found.append(SERVING_REPORTS)
    return tuple(found)
