"""The features that this agent announces with its version."""

from __future__ import annotations

from certctrl.model.features import ACME_HTTP01, ACME_TLS_ALPN01, AGENT_FEATURES
from certctrl.model.policy import HostPolicy


def features_of(policy: HostPolicy) -> tuple[str, ...]:
    """Return the features that this agent has under a policy."""
    acme = policy.acme
    found = [*AGENT_FEATURES]
    if acme.http01_directory is not None or acme.http01_listen is not None:
        found.append(ACME_HTTP01)
    if acme.tls_alpn01_listen is not None:
        found.append(ACME_TLS_ALPN01)
    return tuple(found)
